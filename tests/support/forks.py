"""What is done in a child of its own, because it would spoil this process or end it."""

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILED = 77
"""A forked test's exit code when it raised."""


def forked(body: Callable[[], object]) -> int:
    """The id of a child that runs `body`, and exits with what it returns."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(body() or 0))  # type: ignore[call-overload]
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(FAILED)
    return pid


def code(pid: int) -> int:
    """The child's exit code, -N for signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def no_child() -> bool:
    """Has this process no child, not even a dead one."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False
