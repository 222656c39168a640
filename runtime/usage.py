"""What a sandbox uses, measured from the processes that make it: without a cgroup of its own nobody else knows."""

import os
from typing import Any

from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime._attendant import memory_files, own_memory

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def measured(supervisor: int) -> dict[str, Any]:
    """Processor time in nanoseconds and memory in bytes, in runsc's own layout; without what cannot be told."""
    pids = [supervisor]
    for pid in pids:  # which grows meanwhile
        pids += linux.children(pid)
    times = [time for pid in pids if (time := _time(pid)) is not None]
    # Systrap's own are copies that share the guest's memory, which is a file that the sentry has.
    shared = [size for pid in pids for path in memory_files(pid) if (size := _blocks(path)) is not None]
    found: dict[str, Any] = {}
    if times and len(pids) > 1:
        found["cpu"] = {"usage": {"total": sum(times) * TICK}}
    if shared:
        found["memory"] = {"usage": {"usage": max(shared) + sum(map(own_memory, pids))}}
    return found


def _blocks(path: str) -> int | None:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return None


def _time(pid: int) -> int | None:
    """Ticks that a process has run for, with those of its children that have ended (proc(5)); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
    except OSError:
        return None
