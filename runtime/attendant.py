"""The attendant as its owner sees it: runsc's commands where the sandbox is, and its end with the owner's.

Several threads may ask at once: a request is one packet, and each command answers on a channel of its own.
"""

import array
import errno
import marshal
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from nucleus_gvisor.runtime import _attendant
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.capture import Capture, readable
from nucleus_gvisor.runtime.descriptor import Descriptor, Kept
from nucleus_gvisor.runtime.errors import RunscFailed, SandboxGone
from nucleus_gvisor.runtime.limits import Held
from nucleus_gvisor.runtime.streams import open_standard_descriptors

PATIENCE = 30.0
"""Seconds that a command of runsc's may take before it is killed and given up."""
ANSWER_LIMIT = 8 << 20
FAREWELL = 2.0
"""Seconds that the attendant may take to end, before it is killed."""


def _see_no_failure(packet: bytes) -> None:
    if packet.startswith(_attendant.FAILED):
        raise RunscFailed(
            f"no runsc could be started beside the sandbox: {os.strerror(int(packet.removeprefix(_attendant.FAILED)))}"
        )


class Command:
    """One command of runsc's that runs in the sandbox's namespaces. Closing it kills it."""

    def __init__(self, link: Any) -> None:
        self._link, self._held = link, Descriptor(link)
        self.returncode: int | None = None
        self.pid: int | None = None
        """Of an `exec` that `has_begun`: its process's number in the guest; None when there is none."""
        self.refusal: bytes = b""
        """Why there is none, as runsc has it, where that was not said on the process's own standard error."""
        self.has_begun: bool = False
        self.sent_at: float = time.monotonic()
        """When it was not sent yet."""
        self.begun_at: float = self.sent_at
        """When it was heard to have begun."""

    @property
    def channel(self) -> int:
        """Readable once it has ended; that of an `exec` also when it has started. -1 once it is closed."""
        return self._held.number

    def begun(self, count: int, take: Callable[[Sequence[int]], None]) -> None:
        """Hear, once, how an `exec` has begun; `take` gets our ends of the `count` pipes that were made for it.

        EMFILE when this process has no room for them; RunscFailed when no command could be started.
        """
        # Its number first, which stays there to be read: what interrupts the rest has to end it.
        packet = self._link.recv(32, socket.MSG_PEEK)
        self.pid = int(packet) if packet.isdigit() else None
        packet, ends = linux.receive(self._link, 1 + _attendant.MAX_WORDS, _attendant.MAX_DESCRIPTORS)
        try:
            self.has_begun = True
            self.begun_at = time.monotonic()
            _see_no_failure(packet)
            if packet.startswith(_attendant.REFUSED):
                self.refusal = packet.removeprefix(_attendant.REFUSED)
            if packet and len(ends) != count:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            take(ends)
        except BaseException:
            for fd in ends:
                os.close(fd)
            raise

    def ended(self, deadline: float | None = None) -> bool:
        """Wait for its end until `deadline` (of time.monotonic; None: for ever); `returncode` is then known.

        SandboxGone when the attendant, and so the sandbox, ended first; RunscFailed when it could not be started.
        """
        with self._held.use() as channel:
            if self.returncode is not None:
                return True
            if channel < 0:
                raise SandboxGone("the sandbox has ended")
            if not readable(channel, deadline):
                return False
            # It stays there to be read by another thread, or again by who was interrupted here.
            packet = self._link.recv(32, socket.MSG_PEEK)
            if len(packet) == _attendant.STATUS.size:
                self.returncode = os.waitstatus_to_exitcode(*_attendant.STATUS.unpack(packet))
            self.close()
        if self.returncode is None:
            _see_no_failure(packet)
            raise SandboxGone("the sandbox has ended")
        return True

    def runs(self, deadline: float | None) -> bool:
        """Does it run still at `deadline`; whether it ended is not heard of by this."""
        with self._held.use() as channel:
            return self.returncode is None and channel >= 0 and not readable(channel, deadline)

    def close(self) -> None:
        if (held := self.__dict__.get("_held")) is not None:  # none where an interrupt came first
            held.close()

    def __del__(self) -> None:
        self.close()


class Attendant:
    """The owner's end. It exists before the launch (`theirs` goes along with it) and is met afterwards."""

    def __init__(self) -> None:
        open_standard_descriptors()
        self._ours, theirs = linux.socketpair()
        self.theirs: Any = theirs
        self._pid = 0
        self._pidfd: Descriptor | None = None
        self._tie: Descriptor | None = None
        """While this is open, the kernel kills the supervisor when the attendant ends, however it does."""
        self._spares: list[Descriptor] = []
        """Keep numbers free for these two, which come when the sandbox runs already."""
        self._killed = False
        try:
            for _ in range(2):
                self._spares.append(Descriptor(Kept(os.dup(self._ours.fileno()))))
        except BaseException:
            self._free()
            self._ours.close()
            theirs.close()
            raise

    def meet(self) -> None:
        """Hear the attendant's first word, after the launch; SandboxGone when it did not come to that."""
        self.theirs.close()
        self._free()
        self._ours.settimeout(PATIENCE)
        try:
            packet, came = linux.receive(self._ours, _attendant.HELLO.size, 2)
            self._pidfd, self._tie = (Descriptor(Kept(fd)) for fd in came)
        except (OSError, ValueError):  # nothing came, or without them
            packet = b""
        self._ours.settimeout(None)
        if len(packet) != _attendant.HELLO.size:
            raise SandboxGone("the sandbox ended while it was started")
        (self._pid,) = _attendant.HELLO.unpack(packet)

    def _free(self) -> None:
        for spare in self._spares:
            spare.close()

    def watch(self, held: Held) -> None:
        """Have it see to the limits that are its to see to; it is under none itself, nor are its commands."""
        if self._pidfd is not None:
            with self._pidfd.use() as pidfd:
                # SAFETY: cgroupfs takes a number, which is its own for as long as nobody can have reaped it.
                if pidfd >= 0 and not readable(pidfd, time.monotonic()):
                    held.release(self._pid)
        watch = dict(held.watch)
        if not watch:
            return
        with ExitStack() as opened:
            # The cgroups' file system is out of its reach.
            paths = [watch.pop("oom")] if "oom" in watch else []
            self._send(("watch", watch), *(opened.enter_context(open(path, "rb")).fileno() for path in paths))

    def _send(self, packet: tuple[Any, ...], *descriptors: int) -> None:
        try:
            fds = array.array("i", descriptors)
            self._ours.sendmsg([marshal.dumps(packet)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        except OSError as error:
            raise SandboxGone("the sandbox has ended") from error

    def told(self) -> str | None:
        """The limit that it ended the sandbox for, once it has ended; None when it was for no limit."""
        with suppress(OSError):
            return self._ours.recv(_attendant.MAX_PACKET, socket.MSG_PEEK | socket.MSG_DONTWAIT).decode() or None
        return None

    def last_word(self) -> str | None:
        """`told`, for a sandbox that has ended; the attendant is then dismissed."""
        limit = self.told()
        self.dismiss()
        return limit

    def start(self, argv: Sequence[bytes], *descriptors: int, terminal: bool = False) -> Command:
        """Execute the verified image with `argv` and with `descriptors` as its 0, 1, 2, 3 ...

        With `terminal`, descriptor 0 becomes the controlling terminal of a session of its own.
        """
        held: list[Command] = []
        try:
            return self._begin(held, ("start", list(argv), terminal), *descriptors)
        except BaseException:
            for command in held:
                command.close()
            raise

    def exec(
        self,
        held: list[Command],
        argv: Sequence[bytes],
        process: int,
        *streams: int,
        fed: bool = False,
        terminal: bool = False,
    ) -> None:
        """A command that starts the process in file `process`, which is its descriptor 3, and says its number on 4.

        It is in `held` before it is sent: what interrupts this finds there what may run.

        Without `streams` it gets pipes, and `Command.begun` has our ends: to what it reads, only if it is `fed` (it
        has nothing to read otherwise), and of its two outputs.
        """
        self._begin(held, ("exec", list(argv), terminal, fed), process, *streams)

    def prepare(self, argv: Sequence[bytes]) -> None:
        """An `exec` with `argv`, and nothing to read, will come."""
        self._send(("ahead", (False, tuple(argv))))

    def _begin(self, held: list[Command], packet: tuple[Any, ...], *descriptors: int) -> Command:
        ours, theirs = linux.socketpair()
        try:
            command = Command(ours)
            held.append(command)
            self._send(packet, theirs.fileno(), *descriptors)
        finally:
            theirs.close()
        return command

    def ask(self, name: str, argv: Sequence[bytes], timeout: float = PATIENCE, *more: int) -> bytes:
        """What command `name` prints; RunscFailed when it fails, or takes longer than `timeout` seconds."""
        with open(os.devnull, "rb") as null:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            try:
                command = self.start(argv, null.fileno(), writer, writer, *more)
            except BaseException:
                os.close(reader)
                raise
            finally:
                os.close(writer)
            with Capture({reader: ANSWER_LIMIT}) as capture:
                deadline = time.monotonic() + timeout
                try:
                    in_time = capture.run(command.channel, deadline) and command.ended(deadline)
                finally:
                    command.close()
        output = capture.output[reader]
        if not in_time:
            raise RunscFailed(f"runsc {name} did not answer within {timeout:g} s", output)
        if command.returncode != 0:
            raise RunscFailed(f"runsc {name} failed", output)
        return output

    def was_killed(self) -> bool:
        """Did somebody kill it before it was to end, and so the sandbox; known once it is dismissed."""
        return self._killed

    def hang_up(self) -> None:
        """Have it end the sandbox and its commands, and then itself; also where a fork of this process has the link."""
        with suppress(OSError):  # it has ended
            self._ours.shutdown(socket.SHUT_WR)

    def await_end(self) -> None:
        """Wait a moment for it to end the sandbox, once it was hung up on: it ends its commands first, which would tell
        of the sandbox's end on streams that are the caller's."""
        if self._pidfd is not None:
            with self._pidfd.use() as pidfd:
                if pidfd >= 0:
                    self._ends(pidfd)

    def dismiss(self) -> None:
        """End it and its commands, after the supervisor. What interrupts this leaves it to be done again.

        Spec: SandboxLife!CloseDismisses, CloseGivesUp.
        """
        self.theirs.close()
        self.hang_up()
        if self._pidfd is None and self._ours.fileno() >= 0:
            with suppress(SandboxGone):
                self.meet()
        self._free()
        self._ours.close()
        if self._pidfd is not None:
            with self._pidfd.use() as pidfd:
                in_time = pidfd < 0
                try:
                    in_time = in_time or self._ends(pidfd)
                finally:
                    if not in_time:
                        with suppress(OSError):  # it has gone, or there is no room to look below it: they end with it
                            linux.kill_with_all_below(self._pid, pidfd, patience=PATIENCE)
                    with suppress(ChildProcessError):  # somebody has reaped it
                        if pidfd >= 0 and (end := os.waitid(os.P_PIDFD, pidfd, os.WEXITED)) is not None:
                            self._killed = in_time and end.si_code != os.CLD_EXITED
            self._pidfd.close()
        if self._tie is not None:
            self._tie.close()

    def _ends(self, pidfd: int) -> bool:
        """Does it end in time, and by itself."""
        return readable(pidfd, time.monotonic() + FAREWELL)
