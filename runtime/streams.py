"""Standard streams that gVisor cannot take as they are.

The sentry keeps its own offset, from zero, for a regular file that it is given: two programs writing to one log would
overwrite each other, and a file that was read in part would be read again. Such a stream goes through a pipe.
"""

import os
import select
import stat
from contextlib import suppress

CHUNK = 1 << 16


def open_standard_descriptors() -> None:
    """With 0, 1 or 2 closed, the next file opened would be the guest's standard stream: /dev/null goes there."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


class Relay:
    """The three descriptors to give the guest, and the copying behind those that are pipes."""

    def __init__(self, standard: tuple[int, int, int] = (0, 1, 2)) -> None:
        self._given: list[int] = []
        """Our copies of the guest's ends, closed once the guest has them."""
        self._routes: dict[int, int] = {}
        """Readable descriptor -> where its bytes go."""
        self._owned: set[int] = set()
        self.stdio = (self._input(standard[0]), self._output(standard[1]), self._output(standard[2]))

    def _input(self, fd: int) -> int:
        if not _is_file(fd) or not os.lseek(fd, 0, os.SEEK_CUR):
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._given.append(reader)
        self._route(fd, writer)
        return reader

    def _output(self, fd: int) -> int:
        if not _is_file(fd):
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._given.append(writer)
        self._owned.add(reader)
        self._route(reader, fd)
        return writer

    def _route(self, source: int, target: int) -> None:
        self._routes[source] = target
        if target > 2:
            self._owned.add(target)
            os.set_blocking(target, True)

    def started(self) -> None:
        """The guest has its ends: ours would keep its pipes open for ever."""
        while self._given:
            os.close(self._given.pop())

    def run(self, pidfd: int, timeout: float | None) -> bool:
        """Copy until the process behind `pidfd` has ended; False when `timeout` seconds passed first."""
        import time

        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        for fd in (pidfd, *self._routes):
            poll.register(fd, select.POLLIN)
        while True:
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000
            ready = poll.poll(left)
            if not ready:
                return False
            for fd, _ in ready:
                if fd != pidfd and not self._copy(fd):
                    poll.unregister(fd)
            if any(fd == pidfd for fd, _ in ready):
                return True

    def drain(self) -> None:
        """Copy what is left of the output once the guest is gone, and close everything."""
        self.started()
        for source, target in list(self._routes.items()):
            if target in self._owned:  # towards the guest: nobody reads any more
                continue
            while self._copy(source):
                pass
        for fd in self._owned:
            with suppress(OSError):
                os.close(fd)
        self._owned.clear()
        self._routes.clear()

    def _copy(self, source: int) -> bool:
        """One piece from `source` to where it goes; False at its end, or when nobody takes it."""
        target = self._routes[source]
        try:
            piece = memoryview(os.read(source, CHUNK))
            if not piece:
                raise EOFError
            while piece:
                piece = piece[os.write(target, piece) :]
        except (EOFError, BrokenPipeError):
            if target in self._owned:
                os.close(target)
                self._owned.discard(target)
            return False
        return True


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
