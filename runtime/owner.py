"""Which sandboxes run below an artifact base, and how anyone with the right to ends them or what dead ones left.

There is no list of them besides what each launch has anyway: its lock names its supervisor, whose own arguments name
the container. So nothing can be out of date.
"""

import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model.errors import BadArgument, StepFailed
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.cleanup import collect, components, owner_lives, read_lock
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import enter, open_base

PATIENCE = 30.0


@dataclass(frozen=True)
class Running:
    """A sandbox that runs."""

    id: str
    pid: int
    """Of its supervisor (runsc)."""
    owner: int
    """The process that made it."""
    seconds: float
    """Since its start."""
    line: bytes
    """What its lock says: which process, since when."""
    lock: str


def _locks(base: os.PathLike[str] | None) -> tuple[int, int, bytes, bytes]:
    """Descriptors of the base and of its locks, its path, and the directory above that is shared with others, if any;
    StepFailed and BadBase as a launch has them."""
    identity = Identity.current()
    directory, path, shared = open_base(base, identity)
    try:
        return directory, enter(directory, b"locks", path + b"/locks", create=True), path, shared
    except BaseException:
        os.close(directory)
        raise


def running(base: os.PathLike[str] | None = None) -> list[Running]:
    """The sandboxes below `base`, the oldest first; those of other pid namespaces cannot be seen."""
    directory, locks, _, _ = _locks(base)
    try:
        found = [_look(locks, name) for name in components(locks)]
    finally:
        os.close(locks)
        os.close(directory)
    return sorted((one for one in found if one is not None), key=lambda one: -one.seconds)


def _look(locks: int, name: str) -> Running | None:
    try:
        line = read_lock(name, locks=locks)
        fields = line.split()
        if len(fields) != 4 or fields[3] != os.readlink("/proc/self/ns/pid").encode() or not owner_lives(line):
            return None
        pid = int(fields[0])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None  # it has ended meanwhile
    if b"run" not in words:
        return None  # a launch that has not executed runsc yet
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return Running(os.fsdecode(words[-1]), pid, int(stat[1]), age, line, name)


def kill(container_id: str, base: os.PathLike[str] | None = None) -> Running:
    """End the sandbox `container_id`, and wait for it; BadArgument when none of that name runs."""
    for one in running(base):
        if one.id == container_id:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(one.pid)
                try:
                    # SAFETY: only now the number is known to be the process that the lock names, and stays so.
                    if owner_lives(one.line):
                        linux.kill_with_all_below(one.pid, pidfd)
                        poll = select.poll()
                        poll.register(pidfd, select.POLLIN)
                        if not poll.poll(PATIENCE * 1000):  # pragma: no cover - stuck in the kernel, not to be made
                            raise StepFailed(
                                "the supervisor does not end",
                                observed=f"pid {one.pid}",
                                expected="its end within seconds",
                                hint="look at it in /proc: the kernel does not end a process that waits for a device",
                            )
                finally:
                    os.close(pidfd)
            return one
    raise BadArgument(
        "no such sandbox runs", observed=container_id, hint="nucleus-gvisor ps", expected="the id of a living sandbox"
    )


def gc(base: os.PathLike[str] | None = None) -> list[str]:
    """Remove what dead launches left; the names of their directories. Each launch does so too, when it starts.

    What killed processes had begun to write to a workspace is finished or undone: its path is named too.
    """
    from nucleus_gvisor.runtime.writeback import recover  # which nothing else here needs

    directory, locks, path, shared = _locks(base)
    try:
        # Below a directory that others write no journal is made, and none is believed.
        written = [] if shared else [where for where, why in recover(directory) if why is None]
        return [*collect(directory, path, locks), *written]
    finally:
        os.close(locks)
        os.close(directory)
