"""A sandbox's attendant: what it does in the sandbox's namespaces, beside the supervisor, on its owner's word.

The confined child makes it just before it becomes runsc, so that from the first moment on somebody outlives the owner
long enough to end what the owner cannot end any more. It does three things. It runs runsc's other commands (exec, kill,
ps ...) where the sandbox's private tmpfs is, each from the verified image and as confined as the supervisor itself.
It looks after the limits that no kernel enforces. And it kills the supervisor, and with it the sandbox, when its owner
hangs up or ends.

Once it has started a command, it makes a *spare*: a child that waits to become the next one. To make a child takes
longer than all else that is done here for a command, and while one runs there is time.

Like `_child` it imports only what is cheap, and runs from a fork and in a fresh interpreter. runsc may be taken over by
its guest one day, and has the same user: so this process cannot be traced by it, and holds nothing of the host.
"""

import _signal  # type: ignore[import-not-found]
import fcntl
import marshal
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any

try:
    from nucleus_gvisor.runtime import _linux as linux
except ImportError:
    import _linux as linux  # type: ignore[import-not-found,no-redef,unused-ignore]

MAX_PACKET = 1 << 16
MAX_DESCRIPTORS = 8
NAME = b"ngv-attendant"
STATUS = struct.Struct("=i")
"""What a command's channel carries in the end: its wait status."""
HELLO = struct.Struct("=i")
"""The first word: the attendant's process id."""


GLANCE = 0.05
"""Seconds between two looks at a guest's memory."""
LULL = 5
"""Milliseconds without anything to do, after which there is time for other things."""
BLIND = 20.0
"""Seconds after which a guest whose memory cannot be seen is ended."""


class Watch:
    """The limits that no kernel enforces here: how long the sandbox lives, and how much memory it has.

    The guest's memory is a file in memory that the sentry holds open (MemoryFile in gVisor's pkg/sentry/pgalloc): its
    blocks are what the guest has, however its processes share them. The sentry's own comes on top.
    """

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._end = self._seen = float("inf")
        self._memory: float | None = None
        self._oom = ""
        self._file = ""

    def begin(self, limits: "dict[str, Any]") -> None:
        now = time.monotonic()
        self._end = now + limits.get("lifetime", float("inf"))
        self._memory = limits.get("memory")
        self._oom = limits.get("oom", "")
        self._seen = now + BLIND

    def pause(self) -> float | None:
        """How long to wait for other things, in milliseconds."""
        if self._memory is not None or self._oom:
            return GLANCE * 1000
        left = self._end - time.monotonic()
        return None if left == float("inf") else min(max(0.0, left * 1000), 1_000_000_000)

    def met(self) -> str:
        """The limit that is met, or ""."""
        if time.monotonic() >= self._end:
            return "lifetime"
        if self._oom and _killed(self._oom):
            return "memory"
        if self._memory is None:
            return ""
        size = self._size()
        if time.monotonic() > self._seen:  # rather no guest than one that nobody watches
            return "memory"
        return "memory" if size > self._memory else ""

    def _size(self) -> int:
        children = linux.children(self._supervisor)
        if not self._file or not os.path.exists(self._file):
            self._file = next((path for pid in children for path in _memory_files(pid)), "")
        blocks = 0
        if self._file:
            try:
                blocks = os.stat(self._file).st_blocks * 512
                self._seen = float("inf")
            except OSError:  # pragma: no cover - the process would have to end since the line before the last
                pass
        return blocks + sum(_own_memory(pid) for pid in (self._supervisor, *children))


def _killed(path: str) -> bool:
    """Has the kernel killed a process of the cgroup, cgroup-v1/memory.rst."""
    try:
        with open(path, "rb") as file:
            return any(line.startswith(b"oom_kill ") and line.split()[1] != b"0" for line in file)
    except OSError:
        return False


def _memory_files(pid: int) -> list[str]:
    found = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            if os.readlink(path).startswith("/memfd:runsc-memory"):
                found.append(path)
    except OSError:
        pass
    return found


def _own_memory(pid: int) -> int:
    """Bytes that no other process has: RssAnon of proc(5), which has it in KiB."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def start(link: int, owner: int, image: int, env: dict[bytes, bytes]) -> None:
    """Make the attendant, a sibling of this process, which is about to become the supervisor.

    A sibling, so that the owner can reap it; a child of runsc would be nobody's once runsc has ended.
    """
    pid = os.getpid()
    supervisor = os.pidfd_open(pid)
    try:
        if linux.clone_sibling() == 0:
            try:
                _attend(link, owner, image, env, supervisor, pid)
            finally:  # whatever went wrong here: a sandbox without its attendant would outlive its owner
                try:
                    linux.kill_with_all_below(pid, supervisor)
                finally:  # its commands have asked the kernel to die with this process
                    os._exit(0)
    finally:
        os.close(supervisor)


def _attend(link: int, owner: int, image: int, env: dict[bytes, bytes], supervisor: int, pid: int) -> None:
    linux.set_dumpable(False)  # ptrace(2), /proc/PID/mem and /proc/PID/fd are closed to others of the same user
    linux.close_all_but({link, image, supervisor})
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in range(3):  # the guest's streams end when the guest does
        os.dup2(null, target)
    os.close(null)
    linux.set_name(NAME)
    linux.default_dispositions()  # for what it starts
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)  # for itself: nobody may be there to be told
    boss = os.pidfd_open(owner)
    if os.getppid() != owner:  # it ended first, and `boss` may be anyone
        return
    sock = socket.socket(fileno=link)
    sock.send(HELLO.pack(os.getpid()))
    commands: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, channel)
    starter = Starter(image, env)
    poll = select.poll()
    watch = Watch(pid)
    for fd in (link, boss, supervisor):
        poll.register(fd, select.POLLIN)
    while True:
        pause = watch.pause()
        if starter.lacks:
            pause = LULL if pause is None else min(pause, LULL)
        ready = poll.poll(pause)
        if starter.lacks and not ready:
            starter.provide()
        if limit := watch.met():
            sock.send(limit.encode())
            return
        for fd, _ in ready:
            if fd == link:
                # A child of the owner's may hold the other end too: its end is one sign of the owner's, not the only.
                if not _command(sock, starter, commands, poll, watch):
                    return
            elif fd in (boss, supervisor):
                return
            elif fd in commands:
                pid, channel = commands.pop(fd)
                _, status = os.waitpid(pid, 0)
                poll.unregister(channel)
                poll.unregister(fd)
                os.close(fd)
                try:
                    os.write(channel, STATUS.pack(status))
                except OSError:
                    pass  # nobody wants to know
                os.close(channel)
            else:
                for pidfd, (_, channel) in commands.items():
                    if channel == fd:  # its reader has gone: so shall the command
                        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)


def _command(
    sock: socket.socket,
    starter: "Starter",
    commands: dict[int, tuple[int, int]],
    poll: "select.poll",
    watch: "Watch",
) -> bool:
    """Do what the owner asks for; False when it hung up. The descriptors of a command: the channel, 0, 1, 2, and more.

    A command that cannot be started leaves its channel closed without a status.
    """
    packet, fds, _, _ = socket.recv_fds(sock, MAX_PACKET, MAX_DESCRIPTORS)
    if not packet:
        return False
    word, *rest = marshal.loads(packet)
    if word == "watch":
        watch.begin(*rest)
        return True
    channel, *given = fds
    try:
        pid, pidfd = starter.start(rest[0], rest[1], given)
        commands[pidfd] = (pid, channel)
        poll.register(pidfd, select.POLLIN)
        poll.register(channel, 0)  # POLLERR: the reader has gone
    except OSError:
        os.close(channel)
    finally:
        for fd in given:
            os.close(fd)
    return True


class Starter:
    """Starts commands, from a spare where there is one."""

    def __init__(self, image: int, env: dict[bytes, bytes]) -> None:
        self._image, self._env = image, env
        self._spare: tuple[int, int, socket.socket] | None = None
        self.lacks = False
        """Is a spare to be made when there is time."""

    def start(self, argv: list[bytes], terminal: bool, given: list[int]) -> tuple[int, int]:
        """Number and pidfd of a process that becomes the image, with `argv`, and `given` as its descriptors 0, 1 ..."""
        self.lacks = True
        if self._spare is not None:
            pid, pidfd, link = self._spare
            self._spare = None
            try:
                with link:
                    socket.send_fds(link, [marshal.dumps((argv, terminal))], given)
                return pid, pidfd
            except OSError:  # somebody has killed it
                os.close(pidfd)
                _end(pid)
        return self._fork(lambda: self._become(argv, terminal, given))

    def provide(self) -> None:
        """Have a spare for the next command, if one can be had; otherwise that is made when it is asked for."""
        self.lacks = False
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._spare = *self._fork(lambda: self._wait(theirs)), ours
            finally:
                theirs.close()
                if self._spare is None:
                    ours.close()
        except OSError:
            pass  # the next command that is started brings another attempt

    def _fork(self, work: Callable[[], None]) -> tuple[int, int]:
        """Number and pidfd of a child that does `work`, and dies with this process."""
        pid = os.fork()
        if pid == 0:
            try:
                linux.die_with_parent(_signal.SIGKILL)
                work()
            finally:
                os._exit(125)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            _end(pid)
            raise

    def _wait(self, link: socket.socket) -> None:
        """Become what is asked for; when nobody can ask any more, end."""
        linux.close_all_but({self._image, link.fileno()})
        packet, given, _, _ = socket.recv_fds(link, MAX_PACKET, MAX_DESCRIPTORS)
        if packet:
            argv, terminal = marshal.loads(packet)
            self._become(argv, terminal, given)

    def _become(self, argv: list[bytes], terminal: bool, given: list[int]) -> None:
        if terminal:  # then the kernel tells runsc of its keys and its size, and runsc the guest
            os.setsid()
            fcntl.ioctl(given[0], termios.TIOCSCTTY, 0)
        image = fcntl.fcntl(self._image, fcntl.F_DUPFD_CLOEXEC, len(given))
        linux.arrange(given)
        linux.close_all_but({*range(len(given)), image})
        os.chdir("/")
        linux.default_signal(_signal.SIGPIPE)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.execve(image, argv, self._env)


def _end(pid: int) -> None:
    os.kill(pid, _signal.SIGKILL)
    os.waitpid(pid, 0)
