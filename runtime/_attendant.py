"""A sandbox's attendant: what it does in the sandbox's namespaces, beside the supervisor, on its owner's word.

The confined child makes it just before it becomes runsc, so that from the first moment on somebody outlives the owner
long enough to end what the owner cannot end any more. It does three things. It runs runsc's other commands (exec, kill,
ps ...) where the sandbox's private tmpfs is, each from the verified image and as confined as the supervisor itself.
It looks after the limits that no kernel enforces. And it kills the supervisor, and with it the sandbox, when its owner
hangs up or ends.

Starting runsc takes longer than what it then does to start a process in the guest. So while one command runs, the next
one's runsc is started *ahead*: with streams of its own, it waits on a pipe for the process that it is to start.

Like `_child` it imports only what is cheap, and runs from a fork and in a fresh interpreter. runsc may be taken over by
its guest one day, and has the same user: so this process cannot be traced by it, and holds nothing of the host.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket  # socket without all that it imports
import errno
import fcntl
import marshal
import os
import select
import struct
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

try:
    from nucleus_gvisor.runtime import _linux as linux
except ImportError:
    import _linux as linux  # type: ignore[import-not-found,no-redef,unused-ignore]

MAX_PACKET = 1 << 16
MAX_DESCRIPTORS = 8
NAME = b"ngv-attendant"
DESCRIPTOR = struct.Struct("=i")
STATUS = struct.Struct("=i")
"""What a command's channel carries in the end: its wait status."""
REFUSED = b"-"
"""What it carries first for a process that was not started, in place of its number in the guest; why comes after."""
MAX_WORDS = 1 << 12
"""Bytes of that."""
APART = (b"--pass-fd", b"5:2")
"""runsc's arguments for an `exec` whose own standard error is not the process's, which is its descriptor 5."""
FAILED = b"failed "
"""What it carries, followed by an errno, instead of all that, when no command could be started."""
HELLO = struct.Struct("=i")
"""The first word: the attendant's process id, with its pidfd, and the pipe whose other end it has."""


GLANCE = 0.05
"""Seconds between two looks at a guest's memory."""
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
        self._oom = -1
        self._file = ""
        self._disk: float | None = None
        self._store = ""

    def begin(self, limits: dict[str, Any], given: list[int]) -> None:
        """Watch `limits`; `given` has, where a cgroup has the memory, the file that tells whom the kernel killed."""
        now = time.monotonic()
        self._end = now + limits.get("lifetime", float("inf"))
        self._memory = limits.get("memory")
        self._oom = given[0] if given else -1
        self._disk, self._store = limits.get("disk"), limits.get("store", "")
        self._seen = now + BLIND

    def pause(self) -> float | None:
        """How long to wait for other things, in milliseconds."""
        if self._memory is not None or self._oom >= 0 or self._disk is not None:
            return GLANCE * 1000
        left = self._end - time.monotonic()
        return None if left == float("inf") else min(max(0.0, left * 1000), 1_000_000_000)

    def met(self) -> str:
        """The limit that is met, or ""."""
        if time.monotonic() >= self._end:
            return "lifetime"
        if self._oom >= 0 and _killed(self._oom):
            return "memory"
        if self._disk is not None and self._stored() > self._disk:
            return "disk"
        if self._memory is None:
            return ""
        size = self._size()
        if time.monotonic() > self._seen:  # rather no guest than one that nobody watches
            return "memory"
        return "memory" if size > self._memory else ""

    def _stored(self) -> int:
        """Bytes on disk of what lies in the layer's directory, and of what lay there: gVisor's file has no name."""
        try:
            where = os.stat(self._store).st_dev
            paths = [f"{self._store}/{name}" for name in os.listdir(self._store)]
        except OSError:
            return 1 << 62  # rather no guest than one that nobody watches
        for pid in (self._supervisor, *linux.children(self._supervisor)):
            try:
                paths += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd") if int(number) > 2]
            except OSError:
                pass  # it has ended
        found = {}
        for path in paths:
            try:
                status = os.stat(path)
            except OSError:
                continue
            nameless = not status.st_nlink or path.startswith(self._store)
            if nameless and status.st_dev == where and status.st_mode & 0o170000 == 0o100000:
                found[status.st_ino] = status.st_blocks * 512
        return sum(found.values())

    def _size(self) -> int:
        children = linux.children(self._supervisor)
        if not self._file or not os.path.exists(self._file):
            self._file = next((path for pid in children for path in memory_files(pid)), "")
        blocks = 0
        if self._file:
            try:
                blocks = os.stat(self._file).st_blocks * 512
                self._seen = float("inf")
            except OSError:  # pragma: no cover - the process would have to end since the line before the last
                pass
        return blocks + sum(own_memory(pid) for pid in (self._supervisor, *children))


def _killed(events: int) -> bool:
    """Has the kernel killed a process of the cgroup, by its file memory.oom_control, cgroup-v1/memory.rst."""
    try:
        lines = os.pread(events, 4096, 0).split(b"\n")
    except OSError:
        return False
    return any(line.startswith(b"oom_kill ") and line.split()[1] != b"0" for line in lines)


def memory_files(pid: int) -> list[str]:
    found = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            if os.readlink(path).startswith("/memfd:runsc-memory"):
                found.append(path)
    except OSError:
        pass
    return found


def own_memory(pid: int) -> int:
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

    It may be killed before it can end the supervisor. So the kernel does, when the attendant's end of a pipe is closed
    (fcntl(2), F_SETSIG): the owner has the other, and only has to keep it. Spec: SandboxLife!SupDies, Ends, Exits.
    """
    pid = os.getpid()
    supervisor = os.pidfd_open(pid)
    tie, alive = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(tie, fcntl.F_SETOWN, pid)
        fcntl.fcntl(tie, fcntl.F_SETSIG, _signal.SIGKILL)
        fcntl.fcntl(tie, fcntl.F_SETFL, os.O_ASYNC)
        attendant, pidfd = linux.clone_sibling()
        if attendant == 0:
            try:
                _attend(link, owner, image, env, supervisor, pid, alive)
            finally:  # whatever went wrong here: a sandbox without its attendant would outlive its owner
                try:
                    _kill_commands()  # first: they tell of the sandbox's end on streams that are the caller's
                finally:
                    try:
                        linux.kill_with_all_below(pid, supervisor)
                    finally:
                        try:
                            _await_commands()
                        finally:
                            os._exit(0)
        # From here and not from itself: its owner can then wait for it, also when it ended at once.
        _say(link, HELLO.pack(attendant), pidfd, tie)
        os.close(pidfd)
    finally:
        _close((tie, alive, supervisor))


def _kill_commands() -> None:
    """They would die with this process: but only once it has, and whoever waits for its end wants to see theirs."""
    for pid in linux.children(os.getpid()):
        os.kill(pid, _signal.SIGKILL)


def _await_commands() -> None:
    for pid in linux.children(os.getpid()):
        os.waitpid(pid, 0)


def _attend(link: int, owner: int, image: int, env: dict[bytes, bytes], supervisor: int, pid: int, alive: int) -> None:
    linux.set_dumpable(False)  # ptrace(2), /proc/PID/mem and /proc/PID/fd are closed to others of the same user
    linux.close_all_but({link, image, supervisor, alive})
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in range(3):  # the guest's streams end when the guest does
        os.dup2(null, target)
    os.close(null)
    linux.set_name(NAME)
    os.setsid()  # what the owner's terminal or shell sends to its process group is not for it, nor for its commands
    linux.default_dispositions()  # for what it starts
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)  # for itself: nobody may be there to be told
    boss = os.pidfd_open(owner)
    if os.getppid() != owner:  # it ended first, and `boss` may be anyone
        return
    sock = linux.packets(link)
    poll = select.poll()
    for fd in (link, boss, supervisor):
        poll.register(fd, select.POLLIN)
    commands = Commands(image, env, poll)
    watch = Watch(pid)
    while True:
        ready = poll.poll(watch.pause())
        if limit := watch.met():
            sock.send(limit.encode())
            return
        for fd, _ in ready:
            if fd == link:
                # A child of the owner's may hold the other end too: its end is one sign of the owner's, not the only.
                packet, given, whole = _receive(sock)
                if not packet:
                    return
                word, *rest = marshal.loads(packet)
                if word == "watch":
                    watch.begin(rest[0], given)
                elif word == "ahead":
                    commands.want(*rest)
                else:
                    commands.take(word, rest, given, whole=whole)
            elif fd in (boss, supervisor):
                return
            else:
                commands.hear(fd)
        commands.provide()  # not before: numbers that were closed, and are given out again, may stand in `ready`


Kind = tuple[bool, tuple[bytes, ...]]
"""What one that waits ahead is good for: a process that has something to read, or not, and runsc's arguments."""


class Command:
    """A process of runsc's, with the descriptors that there are for it; -1 for those that there are not."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self.channel = -1
        """Where its owner hears of it. One that waits ahead has none."""
        self.told = -1
        """Where it says its process's number in the guest."""
        self.says = -1
        """Where it says why it fails; -1 for one that has its process's standard error."""
        self.process = -1
        """Where one that waits ahead is told of its process."""
        self.asked = self.unread = -1
        """Of one that waited ahead: the file with its process, and the other end of `process`, until it has begun."""
        self.size = 0
        """Bytes that it was told."""
        self.ends: list[int] = []
        """Our ends of its streams, until its owner has them."""
        self.kind: Kind | None = None

    def tell(self, process: int) -> bool:
        """Say what is in file `process`; False when it has ended, or that is more than the pipe takes."""
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        data = os.pread(process, os.fstat(process).st_size, 0)
        self.size = len(data)
        try:
            told = not ended.poll(0) and os.write(self.process, data) == len(data)
            self.asked = linux.duplicate(process)
        except OSError:
            told = False
        os.close(self.process)
        self.process = -1
        return told

    def heard_nothing(self) -> bool:
        """Was it told, and has it read none of that, so that it cannot have started anything."""
        if self.asked < 0 or self.size == 0:
            return False
        left = fcntl.ioctl(self.unread, termios.FIONREAD, bytes(4))
        return int.from_bytes(left, sys.byteorder) == self.size

    def words(self) -> bytes:
        """Why it fails, by its own account."""
        try:
            return os.read(self.says, MAX_WORDS) if self.says >= 0 else b""
        except BlockingIOError:  # it was killed
            return b""

    def begun(self) -> None:
        """What it was asked is not needed any more."""
        _close(fd for fd in (self.asked, self.unread) if fd >= 0)
        self.asked = self.unread = -1

    def close(self) -> None:
        self.begun()
        ours = (self.pidfd, self.channel, self.told, self.says, self.process, *self.ends)
        _close(fd for fd in ours if fd >= 0)


class Commands:
    """The commands that run, and those that wait ahead, one of a kind."""

    def __init__(self, image: int, env: dict[bytes, bytes], poll: select.poll) -> None:
        self._image, self._env, self._poll = image, env, poll
        self._waited: dict[int, Command] = {}
        """By each descriptor that is waited for."""
        self._ahead: dict[Kind, Command] = {}
        self._wanted: set[Kind] = set()
        """Those to be started ahead."""

    def take(self, word: str, rest: list[Any], given: list[int], whole: bool = True) -> None:
        """Start what the owner asks for. `given` has its channel, and then, for

        start: its descriptors 0, 1, 2 ...
        exec: the process to start in the guest, and its streams; without these it gets pipes, and its owner their ends.

        It is FAILED when that is not the `whole` of them, for want of descriptors, or no command can be started.
        """
        channel, *given = given
        try:
            if not whole:
                raise OSError(errno.EMFILE, "no room for its descriptors")
            command = self._start(rest[0], rest[1], given) if word == "start" else self._exec(*rest, *given)
        except OSError as error:
            _say(channel, FAILED + str(error.errno).encode())
            os.close(channel)
        else:
            command.channel = channel
            self._wait(channel, command, 0)  # for POLLHUP: its reader has gone
            if command.told >= 0:
                self._wait(command.told, command)
        finally:
            _close(given)

    def hear(self, fd: int) -> None:
        """Something has happened on `fd`."""
        command = self._waited.get(fd)
        if command is None:
            return  # of one that ended with what was heard just before
        if fd == command.told:
            self._started(command)
        elif fd == command.pidfd:
            self._ended(command)
        else:  # its reader has gone: so shall the command
            self._forget(fd)
            _signal.pidfd_send_signal(command.pidfd, _signal.SIGKILL)

    def want(self, kind: Kind) -> None:
        """Have one of that kind, unless there is one."""
        if kind not in self._ahead:
            self._wanted.add(kind)

    def provide(self) -> None:
        """Start ahead what is wanted, if it can be had; otherwise it is started when it is asked for."""
        while self._wanted:
            kind = self._wanted.pop()
            try:
                reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                command = self._ahead[kind] = self._piped(kind, reader)
                command.process, command.unread = writer, reader
            except OSError:
                _close((reader, writer))

    def _exec(self, argv: list[bytes], terminal: bool, fed: bool, process: int, *streams: int) -> Command:
        if streams:
            return self._executed(argv, terminal, [*streams, process])
        kind = (fed, tuple(argv))
        command = self._ahead.pop(kind, None)
        if command is not None:
            if command.tell(process):
                return command
            _signal.pidfd_send_signal(command.pidfd, _signal.SIGKILL)
        return self._piped(kind, process)

    def _piped(self, kind: Kind, process: int) -> Command:
        """One for the process that will be read from `process`, with pipes for streams."""
        fed, argv = kind
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for number in range(0 if fed else 1, 3):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                ours.append(reader if number else writer)
                theirs.append(writer if number else reader)
            # Our own descriptor 0 is /dev/null.
            command = self._executed(list(argv), False, [*(() if fed else (0,)), *theirs, process])
        except OSError:
            _close(ours)
            raise
        finally:
            _close(theirs)
        command.kind, command.ends = kind, ours
        return command

    def _executed(self, argv: list[bytes], terminal: bool, given: list[int]) -> Command:
        """One that says its process's number on its descriptor 4, and, where it is APART, why it fails on its 2."""
        made: list[int] = []
        try:
            for _ in range(2 if APART[0] in argv else 1):
                made += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            told, tells, *words = made
            its = [*given, tells]
            if words:  # in place of the process's standard error, which comes last
                its = [*given[:2], words[1], given[3], tells, given[2]]
            command = self._start(argv, terminal, its)
        except OSError:
            _close(made[::2])
            raise
        finally:
            _close(made[1::2])
        command.told = told
        command.says = words[0] if words else -1
        return command

    def _start(self, argv: list[bytes], terminal: bool, given: list[int]) -> Command:
        """The image, executed with `argv`, and with `given` as its descriptors 0, 1 ...; it dies with this process."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                linux.die_with_parent(_signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(125)  # it ended before this could be asked for
                # A session of its own: a command that handles its group's signals must not pass them to the others.
                os.setsid()
                if terminal:  # then the kernel tells runsc of its keys and its size, and runsc the guest
                    fcntl.ioctl(given[0], termios.TIOCSCTTY, 0)
                image = fcntl.fcntl(self._image, fcntl.F_DUPFD_CLOEXEC, len(given))
                linux.arrange(given)
                linux.close_all_but({*range(len(given)), image})
                os.chdir("/")
                linux.default_signal(_signal.SIGPIPE)
                _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
                os.execve(image, argv, self._env)
            finally:
                os._exit(125)
        command = Command(pid)
        try:
            command.pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._wait(command.pidfd, command)
        return command

    def _started(self, command: Command, ended: bool = False) -> None:
        """It has said its process's number, or will not any more."""
        try:
            number = os.read(command.told, 32)
        except BlockingIOError:  # it has ended, but not what it started
            number = b""
        self._forget(command.told)
        if not number and not ended and command.asked >= 0:
            return  # how it ends says whether it was refused
        command.begun()
        _say(command.channel, number or REFUSED + command.words(), *command.ends)
        _close((command.told, *command.ends))
        command.told, command.ends = -1, []
        if number and command.kind is not None:
            self.want(command.kind)

    def _ended(self, command: Command) -> None:
        _, status = os.waitpid(command.pid, 0)
        if command.channel >= 0:
            if command.told >= 0:
                # Killed from outside, while it waited: that is nothing that its owner did, or is told of.
                if os.WIFSIGNALED(status) and command.heard_nothing() and self._again(command):
                    return
                self._started(command, ended=True)
            _say(command.channel, STATUS.pack(status))
            self._forget(command.channel)
        else:
            self._ahead = {kind: other for kind, other in self._ahead.items() if other is not command}
        self._forget(command.pidfd)
        command.close()

    def _again(self, command: Command) -> bool:
        """Have another do what the command, which has ended, was to do; False when none can be had."""
        assert command.kind is not None
        try:
            other = self._piped(command.kind, command.asked)
        except OSError:
            return False
        other.channel, command.channel = command.channel, -1
        self._wait(other.channel, other, 0)
        self._wait(other.told, other)
        for fd in (command.told, command.pidfd):
            self._forget(fd)
        command.close()
        return True

    def _wait(self, fd: int, command: Command, event: int = select.POLLIN) -> None:
        self._waited[fd] = command
        self._poll.register(fd, event)

    def _forget(self, fd: int) -> None:
        if self._waited.pop(fd, None) is not None:
            self._poll.unregister(fd)


def _receive(link: Any) -> tuple[bytes, list[int], bool]:
    """A packet with its descriptors, and whether those are all: there may be no room for more."""
    packet, extra, flags, _ = link.recvmsg(MAX_PACKET, _socket.CMSG_LEN(MAX_DESCRIPTORS * DESCRIPTOR.size))
    return packet, linux.descriptors(extra), not flags & _socket.MSG_CTRUNC


def _say(channel: int, packet: bytes, *descriptors: int) -> None:
    """Tell a command's owner, should there be one still."""
    link = linux.packets(channel)
    try:
        data = b"".join(map(DESCRIPTOR.pack, descriptors))
        link.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)] if descriptors else [])
    except OSError:
        pass  # nobody wants to know
    finally:
        link.detach()


def _close(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)
