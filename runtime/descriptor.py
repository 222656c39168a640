"""Descriptors that are closed once, whatever interrupts it and whoever uses them meanwhile.

A signal handler runs between any two steps of the interpreter, and may raise, or close what the interrupted code is
about to use. So no ending here waits for a lock that the interrupted code may hold, and none keeps the number of a
closed descriptor, which the kernel gives out again: to another thread, by the time that it is used or closed once more.
"""

import errno
import io
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _User:
    """Whoever uses a descriptor now. One that was interrupted on its way out is none any more, for it is dropped."""


class File(io.FileIO):
    """The owner of a descriptor that is a number."""

    def __del__(self) -> None:
        self.close()  # dropped by who was interrupted: nothing to warn of


_open: set[object] = set()


class Kept(File):
    """One that stays open until it is closed.

    Python's collector closes a file that is garbage before it runs the `finally` of a coroutine that is garbage with
    it, which still needs the descriptor to end its guest. So an open one is never garbage.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        _open.add(self)

    def close(self, _forget: Callable[[object], None] = _open.discard) -> None:
        super().close()
        _forget(self)


class Descriptor:
    """Owns a descriptor. Closing it, once or often, from wherever and whatever interrupts, closes it once."""

    def __init__(self, owned: Any = None) -> None:
        """`owned`: a descriptor, not of a directory, or a socket."""
        # Both owners forget the number and close it in one call of the interpreter's, and once.
        self.owner: Any = File(owned) if isinstance(owned, int) else owned
        """Set, where there was none, on the very line that makes what it owns: see `_linux.Ledger`."""
        self._users = weakref.WeakSet[_User]()
        self._unwanted = False

    @property
    def number(self) -> int:
        """The descriptor; -1 once it is closed."""
        return -1 if self._unwanted or self.owner is None else int(self.owner.fileno())

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, which stays open within; -1 once it is closed."""
        user = _User()
        self._users.add(user)  # before one looks whether it is unwanted: `close` does it the other way round
        try:
            yield self.number
        finally:
            self._users.discard(user)
            if self._unwanted:
                self.close()

    def close(self) -> None:
        """Close it, or leave that to its last user."""
        self._unwanted = True
        if self._users or self.owner is None:
            return
        try:
            self.owner.close()
        except OSError as error:  # it is closed all the same: see `_linux.close`
            if error.errno == errno.EBADF:
                raise
