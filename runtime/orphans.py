"""Processes of a launch that have become the caller's children, told from its own, and reaped.

What runsc and its sentry have started is nobody's once these have ended. The kernel gives it to the first process, or
to the nearest that asked for orphans (PR_SET_CHILD_SUBREAPER): a container's entry point, a supervisor of services.
Such a caller would keep a dead process for each for ever; and it may not wait for whatever ends, for its own
children's exit codes are its own to ask for. So each launch's processes bear a mark that none but they can have: a
random number as their RLIMIT_LOCKS, which Linux has not enforced since 2.4. Whatever they start has it too, a dead
process keeps it, and nobody can raise it again. runsc and all below it bear the mark less one.
"""

import os
import resource
import secrets
import select
import signal
import time

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.descriptor import Descriptor

PATIENCE = 10.0
"""Seconds for the kernel to end what was killed."""
_LEAST = 1 << 40
"""A lower bound of the caller's own leaves too few numbers for a mark."""


def new_mark() -> int:
    """A number for one launch; 0 where there can be none, or nobody needs it."""
    if not linux.gets_orphans():
        return 0
    hard = resource.getrlimit(linux.RLIMIT_LOCKS)[1]
    most = 1 << 62 if hard == resource.RLIM_INFINITY else hard
    return secrets.randbelow(most - _LEAST) + _LEAST if most > 2 * _LEAST else 0


def reap(mark: int, *, living: bool) -> None:
    """Reap the children of this process that bear `mark`; `living` ones are ended first, or left alone."""
    if not mark:
        return
    deadline = time.monotonic() + PATIENCE
    left: set[int] = set()
    while found := set(_marked(mark)) - left:  # the end of one makes orphans of what was below it
        for pid in found:
            if not _reaped(pid, mark, living, deadline):
                left.add(pid)


def _marked(mark: int) -> list[int]:
    return [pid for pid in linux.children(os.getpid()) if _mark(pid) == mark]


def await_end(pidfd: int, seconds: float) -> bool:
    """Wait until the child behind `pidfd` has ended, but no longer than `seconds`; has it. It is not reaped.

    ChildProcessError where nobody can know.
    """
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(max(0.0, seconds) * 1000))
    except OSError:  # poll(2) needs memory; it is ours to end all the same
        while os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True


def _mark(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            words = next(line for line in file if line.startswith(b"Max file locks")).split()
        return int(words[3])
    except (OSError, ValueError, StopIteration):
        return -1


def _reaped(pid: int, mark: int, living: bool, deadline: float) -> bool:
    """Has it been reaped, here or by somebody else."""
    try:
        descriptor = Descriptor(os.pidfd_open(pid))
    except OSError:
        return True
    with descriptor.use() as pidfd:
        descriptor.close()  # by the end of its use
        # SAFETY: the number may have become another's before there was a pidfd of it.
        if _mark(pid) != mark:
            return True
        try:
            if living:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not await_end(pidfd, deadline - time.monotonic() if living else 0):
                return False
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        except (ProcessLookupError, ChildProcessError):
            pass
    return True
