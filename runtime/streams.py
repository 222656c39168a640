"""Standard streams that gVisor cannot take as they are.

The sentry keeps its own offset, from zero, for a regular file that it is given: two programs writing to one log would
overwrite each other, and a file that was read in part would be read again. Such a stream goes through a pipe.
"""

import errno
import math
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nucleus_gvisor.runtime import _linux as linux

CHUNK = 1 << 16
MOMENT = 1.0
"""Seconds that a reader has for what is left when the guest was ended."""
ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})


def open_standard_descriptors() -> None:
    """With 0, 1 or 2 closed, the next file opened would be the guest's standard stream: /dev/null goes there.

    Whatever is kept beyond a call is opened after this: pipes, sockets, the record, sealed copies of runsc.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:  # pragma: no cover - the sweep does it, whose processes are not measured
                raise
            # The lowest free number is what open answers; another, when a thread was faster with one of its own.
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            if null == number:
                os.set_inheritable(null, True)
            else:  # pragma: no cover - the other thread would have to open it between these two lines
                os.close(null)


@contextmanager
def handling(handlers: Mapping[signal.Signals, signal.Handlers | Callable[..., Any]]) -> Iterator[int]:
    """Handle signals so, in the main thread, but for those that it ignores: who started it wants that (nohup(1)).

    Yields a descriptor to wait for as well, readable when one has come.

    A signal that comes after the interpreter has looked for one, and before poll(2) waits, would be handled only when
    something else happens: so it is made something to wait for.
    """
    signalled, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    woken = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    wanted = {number: handler for number, handler in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        linux.close(signalled)
        linux.close(wakes)


class Relay:
    """The three descriptors to give the guest (`stdio`), and the copying behind those that are pipes.

    `standard` are the caller's own; they are read and written, never closed.
    """

    def __init__(self, standard: tuple[int, int, int] = (0, 1, 2), *, limit: int | None = None) -> None:
        self._limit = limit
        """Bytes of each output; the rest is not copied."""
        self._sizes: dict[int, int] = {}
        self.exceeded: bool = False
        """Was there a rest."""
        self._given: list[int] = []
        """The guest's ends, ours to close once the guest has them."""
        self._feeds: dict[int, int] = {}
        """Writable end of a pipe to the guest -> the file that it comes from."""
        self._drains: dict[int, tuple[int, int]] = {}
        """Readable end of a pipe from the guest -> which stream it is, and where that goes."""
        self._writers: dict[int, Writer] = {}
        """By such an end, where what is written to may block."""
        self._end: float | None = None
        self._ending: set[int] = set()
        """Signals that end programs, and came while the guest ran."""
        self.unread: bool = False
        """Was there output that nobody had taken when there was no more time."""
        self.failed: tuple[int, OSError] | None = None
        """Which of the streams could not be copied to its end, and why."""
        self.stdio: tuple[int, int, int] = (
            self._input(standard[0]),
            self._output(1, standard[1]),
            self._output(2, standard[2]),
        )

    def _input(self, fd: int) -> int:
        if not _is_file(fd) or not os.lseek(fd, 0, os.SEEK_CUR):
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)  # a guest that does not read must not keep us from its output
        self._given.append(reader)
        self._feeds[writer] = fd
        return reader

    def _output(self, number: int, fd: int) -> int:
        if not _is_file(fd) and self._limit is None:
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._given.append(writer)
        self._drains[reader] = number, fd
        return writer

    def started(self) -> None:
        """The guest has its ends: ours would keep its pipes open for ever."""
        while self._given:
            linux.close(self._given.pop())

    def run(self, pidfd: int, timeout: float | None, signalled: int) -> bool:
        """Copy until the process behind `pidfd` has ended; False when `timeout` seconds passed first. `signalled` is
        what `handling` yields."""
        self._end = None if timeout is None else time.monotonic() + timeout
        return self._copy(self._end, signalled, pidfd) is None

    def drain(self, signalled: int = -1, *, in_time: bool = True) -> int:
        """Copy what is left of the output once the guest is gone, and close the pipes.

        A reader that is slow is waited for until the timeout of `run`, or a moment where it has passed (not `in_time`),
        or a signal comes that ends programs: its number, else 0. One that came while the guest ran is enough where the
        reader takes nothing for a moment.
        """
        self.started()
        end = self._end if in_time else time.monotonic() + MOMENT
        number = self._copy(end, signalled) or 0 if self._drains else 0
        self.unread = bool(self._drains)
        for fd in list(self._drains):
            self._stop_draining(fd)
        for fd in list(self._feeds):
            self._stop_feeding(fd)
        return number

    def _copy(self, end: float | None, signalled: int, pidfd: int = -1) -> int | None:
        """Copy until the process has ended (None), or, without one, all is copied (0). Before that, 0 at the moment
        `end` or when a limit is exceeded, and without a process the number of a signal that ends programs."""
        while True:
            poll = select.poll()
            for fd in (pidfd, signalled):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            idle: dict[int, int] = {}
            for fd in self._drains:
                writer = self._writers.get(fd)
                waits = fd if writer is None or not writer.busy else writer.idle
                idle[waits] = fd
                poll.register(waits, select.POLLIN)
            for fd in self._feeds if pidfd >= 0 else ():
                poll.register(fd, select.POLLOUT)
            patience = math.inf if end is None else max(0.0, end - time.monotonic())
            ended_by = self._ending if pidfd < 0 else set()
            if ended_by:
                patience = min(patience, MOMENT)
            ready = poll.poll(None if patience == math.inf else patience * 1000)
            if not ready:
                return min(ended_by, default=0)
            for fd, _ in ready:
                if fd == signalled:
                    came = set(os.read(signalled, CHUNK))  # its handler has run by now
                    if pidfd < 0 and came & ENDING:
                        return min(came & ENDING)
                    self._ending |= came & ENDING
                elif fd in self._feeds:
                    self._feed(fd)
                elif fd in self._drains:
                    self._drain(fd)
                elif fd in idle:
                    self._written(idle[fd])
            if any(fd == pidfd for fd, _ in ready):
                return None
            if (self.exceeded and pidfd >= 0) or not (self._drains or pidfd >= 0):
                return 0

    def _feed(self, pipe: int) -> None:
        """One piece of the file to the guest, until its end, or the guest reads no more.

        The file's offset moves by what the pipe took: what the guest never got is still there for who comes next.
        """
        source = self._feeds[pipe]
        try:
            piece = os.pread(source, CHUNK, os.lseek(source, 0, os.SEEK_CUR))
        except OSError as error:
            self.failed, piece = (0, error), b""
        try:
            taken = os.write(pipe, piece) if piece else 0
        except BlockingIOError:  # pragma: no cover - a guest that fills its own input after poll(2) saw room
            return
        except BrokenPipeError:
            taken = 0
        if taken:
            os.lseek(source, taken, os.SEEK_CUR)
        else:
            self._stop_feeding(pipe)

    def _stop_feeding(self, pipe: int) -> None:
        del self._feeds[pipe]
        linux.close(pipe)

    def _drain(self, pipe: int) -> None:
        """One piece of output to where it goes; at the end, the pipe is closed."""
        piece = memoryview(os.read(pipe, CHUNK))
        if not piece or self.exceeded:
            self._stop_draining(pipe)
            return
        if self._limit is not None:
            size = self._sizes[pipe] = self._sizes.get(pipe, 0) + len(piece)
            self.exceeded = size > self._limit
            piece = piece[: len(piece) - max(0, size - self._limit)]
        target = self._drains[pipe][1]
        if _is_file(target):  # which takes what there is room for
            try:
                linux.write_all(target, piece)
            except OSError as error:
                self._fail(pipe, error)
        else:
            if pipe not in self._writers:
                self._writers[pipe] = Writer(target)
                self._writers[pipe].start()
            self._writers[pipe].give(piece)

    def _written(self, pipe: int) -> None:
        """Its writer has done with a piece."""
        writer = self._writers[pipe]
        writer.take_back()
        if writer.failed is not None:
            self._fail(pipe, writer.failed)

    def _fail(self, pipe: int, error: OSError) -> None:
        """The guest is cut off, as from a reader that has gone; and where that is what happened, it is no failure."""
        if error.errno != errno.EPIPE:
            self.failed = self._drains[pipe][0], error
        self._stop_draining(pipe)

    def _stop_draining(self, pipe: int) -> None:
        del self._drains[pipe]
        linux.close(pipe)
        writer = self._writers.pop(pipe, None)
        if writer is not None and not writer.busy:
            writer.end()


class Writer(threading.Thread):
    """Writes to what may block for as long as its reader likes, a terminal or a pipe: a piece at a time.

    To set O_NONBLOCK there would set it for the caller's shell and for all others that share it, and what poll(2) says
    of a shared pipe may be untrue by the time of write(2).
    """

    def __init__(self, target: int) -> None:
        super().__init__(name="nucleus-gvisor", daemon=True)  # one that is stuck does not keep us from our end
        self._target = target
        self._piece: memoryview | None = None
        self._given = threading.Semaphore(0)
        self.idle: int = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable when a piece was written."""
        self.busy: bool = False
        self.failed: OSError | None = None

    def give(self, piece: memoryview) -> None:
        self._piece, self.busy = piece, True
        self._given.release()

    def take_back(self) -> None:
        os.eventfd_read(self.idle)
        self.busy = False

    def end(self) -> None:
        """It is idle, and nothing more will come."""
        self._piece = None
        self._given.release()
        self.join()
        linux.close(self.idle)

    def run(self) -> None:
        while self._given.acquire() and (piece := self._piece) is not None:
            try:
                linux.write_all(self._target, piece)
            except OSError as error:
                self.failed = error
            os.eventfd_write(self.idle, 1)


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
