"""Standard streams that gVisor cannot take as they are.

The sentry keeps its own offset, from zero, for a regular file that it is given: two programs writing to one log would
overwrite each other, and a file that was read in part would be read again. Such a stream goes through a pipe.
"""

import errno
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nucleus_gvisor.runtime import _linux as linux

CHUNK = 1 << 16


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
    """Handle signals so, in the main thread; yields a descriptor to wait for as well, readable when one has come.

    A signal that comes after the interpreter has looked for one, and before poll(2) waits, would be handled only when
    something else happens: so it is made something to wait for.
    """
    signalled, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    woken = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
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
        self._drains: dict[int, int] = {}
        """Readable end of a pipe from the guest -> the file that it goes to."""
        self.stdio: tuple[int, int, int] = (
            self._input(standard[0]),
            self._output(standard[1]),
            self._output(standard[2]),
        )

    def _input(self, fd: int) -> int:
        if not _is_file(fd) or not os.lseek(fd, 0, os.SEEK_CUR):
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)  # a guest that does not read must not keep us from its output
        self._given.append(reader)
        self._feeds[writer] = fd
        return reader

    def _output(self, fd: int) -> int:
        if not _is_file(fd) and self._limit is None:
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._given.append(writer)
        self._drains[reader] = fd
        return writer

    def started(self) -> None:
        """The guest has its ends: ours would keep its pipes open for ever."""
        while self._given:
            linux.close(self._given.pop())

    def run(self, pidfd: int, timeout: float | None, signalled: int) -> bool:
        """Copy until the process behind `pidfd` has ended; False when `timeout` seconds passed first. `signalled` is
        what `handling` yields."""
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        for fd in (pidfd, signalled):
            poll.register(fd, select.POLLIN)
        for fd in self._drains:
            poll.register(fd, select.POLLIN)
        for fd in self._feeds:
            poll.register(fd, select.POLLOUT)
        while True:
            ready = poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000)
            if not ready:
                return False
            for fd, _ in ready:
                if fd == signalled:
                    os.read(signalled, CHUNK)  # its handler has run by now
                elif fd != pidfd and not (self._feed(fd) if fd in self._feeds else self._drain(fd)):
                    poll.unregister(fd)
            if any(fd == pidfd for fd, _ in ready):
                return True
            if self.exceeded:
                return False

    def drain(self) -> None:
        """Copy what is left of the output once the guest is gone, and close the pipes."""
        self.started()
        for fd in list(self._drains):
            while self._drain(fd):
                pass
            linux.close(fd)
            del self._drains[fd]
        for fd in list(self._feeds):
            self._stop_feeding(fd)

    def _feed(self, pipe: int) -> bool:
        """One piece of the file to the guest; False at its end, or when the guest reads no more.

        The file's offset moves by what the pipe took: what the guest never got is still there for who comes next.
        """
        source = self._feeds[pipe]
        piece = os.pread(source, CHUNK, os.lseek(source, 0, os.SEEK_CUR))
        try:
            taken = os.write(pipe, piece) if piece else 0
        except BlockingIOError:  # pragma: no cover - a guest that fills its own input after poll(2) saw room
            return True
        except BrokenPipeError:
            taken = 0
        if not taken:
            self._stop_feeding(pipe)
            return False
        os.lseek(source, taken, os.SEEK_CUR)
        return True

    def _stop_feeding(self, pipe: int) -> None:
        del self._feeds[pipe]
        linux.close(pipe)

    def _drain(self, pipe: int) -> bool:
        """One piece of output to where it goes; False at its end."""
        piece = memoryview(os.read(pipe, CHUNK))
        if not piece or self.exceeded:
            return False
        if self._limit is not None:
            size = self._sizes[pipe] = self._sizes.get(pipe, 0) + len(piece)
            self.exceeded = size > self._limit
            piece = piece[: len(piece) - max(0, size - self._limit)]
        while piece:
            piece = piece[os.write(self._drains[pipe], piece) :]
        return True


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
