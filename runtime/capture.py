"""What a program writes, read into bounded memory while it runs, and what it is to read, fed to it."""

import io
import os
import select
import stat
import subprocess
import termios
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.gvisor import Stream
from nucleus_gvisor.runtime.streams import open_standard_descriptors

CHUNK = 1 << 16
MAX_OUTPUT = 64 << 20
"""Bytes of each captured stream, unless the caller says otherwise."""
NAMES = ("stdin", "stdout", "stderr")
PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL

Data = str | bytes
Redirection = Stream
"""A descriptor or an object with `fileno()`, PIPE, STDOUT, DEVNULL, or None."""
_LONGEST = 1_000_000_000
"""poll(2) takes an int."""


def milliseconds(deadline: float | None) -> float | None:
    """How long to poll until `deadline` (of time.monotonic) or, where that is far away, for the first time."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()) * 1000, _LONGEST)


def readable(fd: int, deadline: float | None) -> bool:
    """Wait until `fd` is readable or at its end; False when `deadline` came first."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not poll.poll(milliseconds(deadline)):
        if deadline is not None and time.monotonic() >= deadline:
            return False
    return True


class TooLarge(Exception):
    """A sink wants no more than it has taken."""


class Sink(Protocol):
    """Takes what a program writes, and what it holds is closed in the end."""

    def take(self, piece: memoryview, /) -> None:
        """One piece; OSError where it cannot, TooLarge where it will not."""

    def close(self) -> None:
        """Close what it holds; once is enough."""


class _ToFile:
    """A regular file that takes what is written, by a descriptor that is this object's to close."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def take(self, piece: memoryview) -> None:
        linux.write_all(self._fd, piece)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:  # gevent's os.close takes no other number
            with suppress(OSError):
                os.close(fd)


class Capture:
    """Pipes of one program: `limits` are those it writes, with how many bytes of each are wanted, and `feed` is what it
    reads: `data`, or from descriptor `source`, or what `pieces` give. `sinks` have, by pipe, a name and what takes all
    of it.

    All of these descriptors, and the sinks, are this object's to close.
    """

    def __init__(
        self,
        limits: Mapping[int, int],
        feed: int = -1,
        data: bytes = b"",
        *,
        source: int = -1,
        pieces: Generator[bytes, None, None] | None = None,
        sinks: Mapping[int, tuple[str, Sink]] | None = None,
    ) -> None:
        self._sinks = dict(sinks or {})
        limits = {**limits, **dict.fromkeys(self._sinks, 0)}
        self._limits = limits
        # What is read out of it as a whole is not copied once more.
        self._parts: dict[int, io.BytesIO] = {fd: io.BytesIO() for fd in limits}
        self._open = set(limits)
        self._feed, self._source, self._pieces = feed, source, pieces
        self._data = memoryview(data)
        self.exceeded: bool = False
        """Did it write more than was wanted."""
        self.failed: tuple[str, OSError] | None = None
        """The stream whose copy could not be made, and why."""
        for fd in (*limits, *([feed] if feed >= 0 else [])):
            os.set_blocking(fd, False)
        if not data and source < 0 and pieces is None:
            self._stop_feeding()

    @property
    def output(self) -> dict[int, bytes]:
        """What each pipe gave, up to its limit."""
        return {fd: parts.getvalue() for fd, parts in self._parts.items()}

    def run(self, until: int, deadline: float | None) -> bool:
        """Copy until descriptor `until` is readable, then read what is left; False when `deadline` came first, or
        it was stopped before.

        What the program's own background processes write after its end is not waited for. An `until` of -1 is of a
        program whose end was seen before.
        """
        if until < 0:
            self.drain()
            return not self.stopped
        poll = select.poll()
        poll.register(until, select.POLLIN)
        for fd, event in self.waiting().items():
            poll.register(fd, event)
        while True:
            ready = poll.poll(milliseconds(deadline))
            if not ready and deadline is not None and time.monotonic() >= deadline:
                return False
            for fd, _ in ready:
                if fd != until and not self.move(fd):
                    poll.unregister(fd)
                    self.stop(fd)
            if self.stopped:
                return False
            if any(fd == until for fd, _ in ready):
                self.drain()
                return not self.stopped

    @property
    def stopped(self) -> bool:
        """Is nothing more copied: more was written than is wanted (`exceeded`), or a copy cannot be made (`failed`)."""
        return self.exceeded or self.failed is not None

    def waiting(self) -> dict[int, int]:
        """The descriptors to wait for, each with its poll(2) event."""
        feeding = {self._feed: select.POLLOUT} if self._feed >= 0 else {}
        return {**dict.fromkeys(self._open, select.POLLIN), **feeding}

    def move(self, fd: int) -> bool:
        """Copy one piece from or to `fd`, which is ready; False when that was all: then wait no more, and `stop` it."""
        return self._write() if fd == self._feed else self._read(fd) is not False

    def stop(self, fd: int) -> None:
        """Close the descriptor that feeds, once nobody waits for it: its reader then sees the end."""
        if fd == self._feed:
            self._stop_feeding()

    def drain(self) -> None:
        """Read what lies in the pipes."""
        for fd in list(self._open):
            while not self.stopped and self._read(fd):
                pass

    def _read(self, fd: int) -> bool | None:
        """One piece; None when there is none now, False at the end."""
        try:
            piece = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        if not piece:
            self._open.discard(fd)
            return False
        if fd in self._sinks:
            name, sink = self._sinks[fd]
            try:
                sink.take(memoryview(piece))
            except TooLarge:
                self.exceeded = True
            except OSError as error:
                self.failed = self.failed or (name, error)
            else:
                return True
            self._open.discard(fd)
            return False
        room = self._limits[fd] - self._parts[fd].tell()
        if len(piece) > room:
            self.exceeded = True
        self._parts[fd].write(piece[:room])
        return True

    def _write(self) -> bool:
        """One piece; False when all was written, or is no longer wanted.

        A file's offset moves by what the pipe took: what the program never got is still there for who comes next.
        """
        piece: bytes | memoryview = self._data[:CHUNK]
        try:
            if self._source >= 0:
                piece = os.pread(self._source, CHUNK, os.lseek(self._source, 0, os.SEEK_CUR))
            elif not piece and self._pieces is not None:
                piece = self._data = memoryview(next(self._pieces, b""))
        except OSError as error:
            self.failed = self.failed or ("stdin", error)
            return False
        if not piece:
            return False
        try:
            taken = os.write(self._feed, piece)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        if self._source >= 0:
            os.lseek(self._source, taken, os.SEEK_CUR)
            return True
        self._data = self._data[taken:]
        return bool(self._data) or self._pieces is not None

    def _stop_feeding(self) -> None:
        feed, self._feed = self._feed, -1
        if feed >= 0:
            os.close(feed)

    def close(self) -> None:
        self._stop_feeding()
        if self._pieces is not None:
            self._pieces.close()
        for _, sink in self._sinks.values():
            sink.close()
        held = [*self._limits, self._source]
        self._limits, self._sinks, self._source = {}, {}, -1
        for fd in held:
            if fd >= 0:  # gevent's os.close takes no other number
                with suppress(OSError):
                    os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pipes:
    """The three streams of a program: the ends that it gets (`guest`), and those which are kept of what is piped.

    As they are made, for an `exec`: nothing to read but `input`, and two outputs, by pipes of which the attendant has
    the guest's ends, and ours come later (`take`). `redirected` and `of` have those that a caller asks for.

    gVisor keeps an offset of its own, from zero, for a regular file that it is given: two programs would overwrite each
    other's lines, and what was read in part would be read again. A file is copied through a pipe.
    """

    guest: tuple[int, ...] = ()
    """All three, or none where they are made elsewhere."""

    def __init__(self, input: Data | None = None) -> None:
        open_standard_descriptors()
        self._close: list[int] = []
        self.terminal = False
        """Are all three one terminal."""
        self.ours: list[int] = [-1, -1, -1]
        self.copies: dict[int, int] = {}
        """Which of the three -> our own descriptor of the regular file that it is copied from or to."""
        self.pieces: Generator[bytes, None, None] | None = None
        """What the program reads, where it is piped and is no `input`."""
        self.sink: Sink | None = None
        """What takes its standard output, where that is piped."""
        self.fed: bool = input is not None
        self._data = input.encode() if isinstance(input, str) else (input or b"")

    @property
    def to_come(self) -> int:
        """How many of our ends are made elsewhere."""
        return 0 if self.guest else 2 + self.fed

    def take(self, ends: Sequence[int]) -> None:
        """Our ends of what was made elsewhere; none of them when it was not made after all."""
        if ends:
            self.ours[-len(ends) :] = ends

    @classmethod
    def redirected(
        cls, input: Data | None, stdin: Redirection, stdout: Redirection, stderr: Redirection, capture: bool
    ) -> Self:
        """Streams as `subprocess.run` has them; those that are not given are captured, or the caller's own."""
        if input is not None:
            if stdin not in (None, PIPE):
                raise ValueError("stdin and input may not both be given")
            stdin = PIPE
        default = PIPE if capture else None
        streams = [DEVNULL if stdin is None else stdin, *(default if s is None else s for s in (stdout, stderr))]
        self = cls(input)
        guest: list[int] = []
        try:
            for number, stream in enumerate(streams):
                guest.append(guest[1] if number == 2 and stream == STDOUT else self._end(number, stream))
        except BaseException:
            self.close()
            raise
        self.guest = tuple(guest)
        return self

    @classmethod
    def of(
        cls,
        stdin: Redirection,
        stdout: Redirection,
        stderr: Redirection,
        text: bool,
        pty: bool,
        window: tuple[int, int],
    ) -> Self:
        """The streams of a `popen`: with `pty` a terminal in their place, our end of which is `ours[1]`."""
        if not pty:
            return cls.redirected(None, stdin, stdout, stderr, False)
        if (stdin, stdout, stderr, text) != (None, None, None, False):
            raise ValueError("a terminal takes the place of the streams")
        if not all(0 < size < 1 << 16 for size in window):
            raise ValueError(f"window {window}: expected rows and columns")
        open_standard_descriptors()
        ours, theirs = os.openpty()
        termios.tcsetwinsize(ours, window)
        self = cls.redirected(None, theirs, theirs, theirs, False)
        self._close.append(theirs)
        self.ours[1] = ours
        self.terminal = True
        return self

    def _end(self, number: int, stream: Redirection) -> int:
        if stream == DEVNULL:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._close.append(null)
            return null
        if stream != PIPE:
            given = number if stream is None else stream if isinstance(stream, int) else stream.fileno()
            # SAFETY: a duplicate at once. The caller may close his at any time, and the number is another file's then.
            own = linux.duplicate(given)
            if not stat.S_ISREG(os.fstat(own).st_mode):
                self._close.append(own)
                return own
            self.copies[number] = own
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs, self.ours[number] = (reader, writer) if number == 0 else (writer, reader)
        self._close.append(theirs)
        return theirs

    def started(self) -> None:
        """The guest has its ends: ours would keep its pipes open for ever."""
        while self._close:
            os.close(self._close.pop())

    def capture(self, limit: int) -> Capture:
        """Hand our ends over, to be read, fed and copied."""
        elsewhere = [*self.copies, *([1] if self.sink is not None else [])]
        self._captured = [-1 if number in elsewhere else self.ours[number] for number in (1, 2)]
        return self._handed(range(3), limit)

    def copier(self) -> Capture:
        """Hand over those of our ends that are copies of files."""
        return self._handed(self.copies, 0)

    def _handed(self, numbers: Iterable[int], limit: int) -> Capture:
        ends = {number: self.ours[number] for number in numbers if self.ours[number] >= 0}
        outputs = {number: fd for number, fd in ends.items() if number}
        copies = self.copies
        sinks: dict[int, Sink] = {number: _ToFile(fd) for number, fd in copies.items() if number}
        if self.sink is not None:
            sinks[1] = self.sink
        capture = Capture(
            {fd: limit for number, fd in outputs.items() if number not in sinks},
            ends.get(0, -1),
            self._data,
            source=copies.get(0, -1),
            pieces=self.pieces,
            sinks={fd: (NAMES[number], sinks[number]) for number, fd in outputs.items() if number in sinks},
        )
        # At once, and last: whoever is interrupted has to close what is ours, and nothing else.
        self.ours, self.copies = [-1 if number in ends else fd for number, fd in enumerate(self.ours)], {}
        return capture

    def results(self, capture: Capture, text: bool) -> tuple[Any, Any]:
        """What `capture` had of the two outputs; None for those that were not to be captured."""
        out, err = (None if fd < 0 else decoded(capture.output[fd], text) for fd in self._captured)
        return out, err

    def close(self) -> None:
        """Close what nobody took over."""
        self.started()
        for number, fd in enumerate(self.ours):
            self.ours[number] = -1  # before: whoever is interrupted between must not close a number twice
            if fd >= 0:
                os.close(fd)
        while self.copies:
            os.close(self.copies.popitem()[1])

    def __del__(self) -> None:
        """What an interrupt came between: it was made, and nobody had it."""
        if "copies" in self.__dict__:  # the last that the closing needs
            self.close()


def decoded(data: bytes, text: bool) -> Data:
    """As subprocess decodes, but a guest cannot make it fail."""
    return data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n") if text else data
