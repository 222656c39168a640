"""What a sandbox may use of the host, and who sees to it.

The kernel does where a cgroup can be had, v1 or v2, as root or delegated: the supervisor is put into one of ours before
it becomes runsc, and all of the sandbox is born in it. Without one there is, for each limit, the next best thing or a
refusal:

    memory      "cgroup", with the attendant in v1, where the kernel ends one process and not the sandbox; or "watch":
                the attendant adds up the guest's memory file and the supervisor's own memory every _attendant.GLANCE
                seconds, and ends the sandbox. A guest can use more for that long.
    cpus        "cgroup"; or "affinity", for whole numbers: the supervisor is bound to so many processors.
    pids        "cgroup"; or "rlimit" for all but the host's root: RLIMIT_NPROC, which the kernel (5.14) counts for each
                user namespace apart, and the sandbox has its own.
    lifetime    "watch".
    disk        "watch": the attendant adds up what the guest's layer takes on disk, as often. A quota of the kernel's
                would need privilege, and a file system that has it.

RLIMIT_AS is no limit for memory: the sentry reserves far more addresses than it uses. A limit ends the whole sandbox:
gVisor's processes are the sentry's, and the host cannot take one and leave the rest.

Processes of the guest are not the host's, who counts the sentry's threads and those that stand for the guest's. PIDS
says how many are allowed for each, from measurements, so that a guest always has those which were asked for.
"""

import os
import resource
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nucleus_gvisor.runtime.errors import LimitUnavailable
from nucleus_gvisor.runtime.options import Enforcement, unfit

PREFIX = "nucleus-gvisor-"
LIST = "cgroups"
"""The file, in the container's directory, that names its cgroups for whoever has to remove them."""
PIDS = {"systrap": (96, 4), "kvm": (96, 4), "ptrace": (160, 16)}
"""Platform -> host threads of the sentry itself, and for each process of the guest."""
PERIOD = 100_000
"""Microseconds over which processor time is counted."""
PATIENCE = 10.0
"""Seconds after the supervisor's end for the kernel to end what was in the cgroup."""
MEMORY, CPUS, PIDS_LIMIT, LIFETIME, DISK = "memory", "cpus", "pids", "lifetime", "disk"
DISK_DEFAULT = 8 << 30
"""Bytes of a layer on disk for which no limit was named."""
_CONTROLLERS = {MEMORY: "memory", CPUS: "cpu", PIDS_LIMIT: "pids"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What was asked for; None is no limit.

    memory: bytes of the whole sandbox, the sentry's own included (some 30 MB).
    cpus: processors, 0.5 being half of one's time.
    pids: processes and threads of the guest.
    lifetime: seconds that the sandbox may live.
    disk: bytes of what the guest writes to its root, where that goes to disk (`Writable.DISK`).
    enforcement: `required` fails the launch for a limit that cannot be enforced; with `best_effort` it goes on, and
        `achieved_limits` says "none"; `off` is not to be had.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    lifetime: float | None = None
    disk: int | None = None
    enforcement: Enforcement = Enforcement.REQUIRED

    def __post_init__(self) -> None:
        _judge(MEMORY, self.memory, 1 << 20, 1 << 50)
        _judge(CPUS, self.cpus, 0.01, 1 << 16)
        _judge(PIDS_LIMIT, self.pids, 1, 1 << 20)
        _judge(LIFETIME, self.lifetime, 0.001, 2_000_000)
        _judge(DISK, self.disk, 1 << 20, 1 << 60)
        try:
            object.__setattr__(self, "enforcement", Enforcement(self.enforcement))
        except ValueError:
            raise unfit("limits", self.enforcement, "required or best_effort") from None
        if self.enforcement is Enforcement.OFF:
            raise unfit("limits", self.enforcement, "required or best_effort")

    def with_those_of(self, bundle: Mapping[str, int | float]) -> "Limits":
        """These and a bundle's: of two for the same, the lower."""
        lower = {
            name: value if (own := getattr(self, name)) is None else min(own, value) for name, value in bundle.items()
        }
        return replace(self, **lower)  # type: ignore[arg-type]

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the limits that there are."""
        return tuple(name for name in (MEMORY, CPUS, PIDS_LIMIT, LIFETIME, DISK) if getattr(self, name) is not None)

    @property
    def watched(self) -> bool:
        """Do they need an attendant, here."""
        if self.disk is not None or self.lifetime is not None:
            return True
        if self.memory is None:
            return False
        place = _places((MEMORY,)).get(MEMORY)
        return place is None or not place.unified


def _judge(name: str, value: Any, least: float, most: float) -> None:
    whole = name in (MEMORY, PIDS_LIMIT, DISK)
    fits = isinstance(value, int) and not isinstance(value, bool) if whole else isinstance(value, int | float)
    if value is not None and not (fits and least <= value <= most):  # nan is not either
        raise unfit(name, value, f"{'a whole number' if whole else 'a number'} from {least} to {most}")


# ---- where cgroups can be made ----


@dataclass(frozen=True)
class _Place:
    """A directory of cgroupfs in which we may make a cgroup, and where the caller itself is in that hierarchy."""

    directory: str
    own: str
    unified: bool


def _places(wanted: tuple[str, ...]) -> dict[str, _Place]:
    """Limit -> where a cgroup that enforces it can be made; what cannot be had is not in it."""
    own = {}
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found = {}
    unified = ""
    for line in _lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, point = (_unescaped(field) for field in fields.split()[3:5])
        kind, _, options = rest.split()[:3]
        for limit in wanted if kind == "cgroup" else ():
            controller = _CONTROLLERS[limit]
            if controller in options.split(",") and controller in own:
                where = _below(point, root, own[controller])
                if os.access(where, os.W_OK | os.X_OK):
                    found[limit] = _Place(where, where, False)
        if kind == "cgroup2" and "" in own:
            unified = _below(point, root, own[""])
            top = point
    left = [limit for limit in wanted if limit not in found]
    if unified and left:
        found |= _unified(unified, top, left)
    return found


def _unified(own: str, top: str, wanted: list[str]) -> dict[str, _Place]:
    """In v2 a process is in one cgroup: the directory, from our own upwards, that has most of what is wanted.

    cgroup_namespaces(7), cgroups(7): children have the controllers of cgroup.subtree_control, and who moves a process
    must be able to write cgroup.procs where it was and is to be, and in what is above both.
    """
    best: dict[str, _Place] = {}
    where = own
    while True:
        if all(os.access(path, os.W_OK) for path in (where, f"{where}/cgroup.procs")):
            enabled = " ".join(_lines(f"{where}/cgroup.subtree_control")).split()
            here = {n: _Place(where, own, True) for n in wanted if _CONTROLLERS[n] in enabled}
            if len(here) > len(best):
                best = here
        if where == top or len(where) <= len(top):
            return best
        where = os.path.dirname(where)


def _below(point: str, root: str, path: str) -> str:
    """Where cgroup `path` is when `root` of its hierarchy is mounted at `point`."""
    inner = path.removeprefix(root) if root != "/" and (path + "/").startswith(root + "/") else path
    return (point + "/" + inner.strip("/")).rstrip("/")


def _unescaped(text: str) -> str:
    return text.encode().decode("unicode_escape")  # \040 for a space, proc(5)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# ---- enforcing them ----


@dataclass
class Held:
    """The limits of one launch: put in force before the image runs, asked afterwards whether one was met."""

    limits: Limits
    attended: bool = False
    """Is there an attendant, who can watch."""
    achieved: dict[str, str] = field(default_factory=dict)
    """Limit -> who enforces it; and of a bundle's fields likewise, by name."""
    of_bundle: tuple[str, ...] = ()
    """Those that the bundle asks for."""
    store: str = ""
    """The directory of the layer that is on disk."""
    _made: dict[str, _Place] = field(default_factory=dict)
    """The directory of each cgroup that was made."""
    _of: dict[str, str] = field(default_factory=dict)
    """Limit -> its cgroup."""
    told: Callable[[], str | None] | None = None
    """Asks the attendant which limit it has ended the sandbox for."""
    unwatched: Callable[[], bool] = lambda: False
    """Was the attendant killed, and the sandbox with it, whatever it watched."""
    _met: str | None = None

    def hold(self, pid: int, directory: int, platform: str) -> dict[str, str]:
        """Put process `pid`, which is about to become runsc, under the limits, and list its cgroups in `directory`.

        LimitUnavailable when one cannot be enforced at all, and that was not left open.
        """
        wanted = tuple(name for name in self.limits.asked if name in _CONTROLLERS)
        try:
            self._make(_places(wanted) if wanted else {}, directory)
            for name in wanted:
                if name in self._of:
                    self._set(name, platform)
            for path in self._made:
                _write(f"{path}/cgroup.procs", pid)
        except OSError as error:
            if self.limits.enforcement is Enforcement.REQUIRED:
                raise LimitUnavailable(
                    "a cgroup cannot be made",
                    step="Exec",
                    observed=str(error),
                    hint="limits: best_effort",
                    expected="a cgroup of ours below the caller's",
                ) from error
            self.release(pid)
            self._of.clear()  # what was made is listed, and is removed afterwards
        for name in self.limits.asked:
            self.achieved[name] = "cgroup" if name in self._of else self._otherwise(name, pid, platform)
        self.require(self.achieved)
        return self.achieved

    def foreseen(self) -> dict[str, str]:
        """Limit -> who would enforce it, or how none would, as far as that can be seen; nothing is made."""
        places = _places(tuple(name for name in self.limits.asked if name in _CONTROLLERS))
        return {name: "cgroup" if name in places else self._next_best(name) for name in self.limits.asked}

    def require(self, achieved: Mapping[str, str]) -> None:
        """LimitUnavailable when one has nobody to enforce it, and that was not left open."""
        lacking = [
            f"{name} (linux.resources)" if name in self.of_bundle else name
            for name, how in achieved.items()
            if how == "none"
        ]
        if lacking and self.limits.enforcement is Enforcement.REQUIRED:
            raise LimitUnavailable(
                "a limit cannot be enforced here",
                step="Exec",
                observed=f"no way for {', '.join(lacking)}",
                expected="a writable cgroup with that controller",
                hint="run under `systemd-run --user --scope -p Delegate=yes`, or leave it to limits: best_effort",
            )

    def _make(self, places: dict[str, _Place], directory: int) -> None:
        name = PREFIX + secrets.token_hex(12)
        for limit, place in places.items():
            path = f"{place.directory}/{name}"
            self._made[path] = place
            self._of[limit] = path
        if not self._made:
            return
        # Named before they are made: whoever is killed in between leaves nothing that nobody knows of.
        fd = os.open(LIST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            os.write(fd, "".join(f"{path}\n" for path in self._made).encode())
        finally:
            os.close(fd)
        for path in self._made:
            os.mkdir(path, 0o755)

    def _set(self, limit: str, platform: str) -> None:
        path = self._of[limit]
        unified = self._made[path].unified
        asked = self.limits
        if limit == MEMORY:
            _write(f"{path}/{'memory.max' if unified else 'memory.limit_in_bytes'}", asked.memory)
            # All of it dies, where the kernel can; and swap is no way around the limit.
            if unified:
                _write(f"{path}/memory.oom.group", 1)
            swap = f"{path}/{'memory.swap.max' if unified else 'memory.memsw.limit_in_bytes'}"
            if os.path.exists(swap):
                _write(swap, 0 if unified else asked.memory)
        elif limit == CPUS:
            quota = max(1000, int((asked.cpus or 0) * PERIOD))  # the least that the kernel takes
            if unified:
                _write(f"{path}/cpu.max", f"{quota} {PERIOD}")
            else:
                _write(f"{path}/cpu.cfs_period_us", PERIOD)
                _write(f"{path}/cpu.cfs_quota_us", quota)
        else:
            _write(f"{path}/pids.max", self._threads(platform))

    def _threads(self, platform: str) -> int:
        base, each = PIDS.get(platform, PIDS["ptrace"])
        return base + each * (self.limits.pids or 0)

    def _next_best(self, limit: str) -> str:
        """Who can enforce a limit without a cgroup."""
        if limit in (MEMORY, LIFETIME, DISK) and self.attended:
            return "watch"
        if limit == CPUS and float(self.limits.cpus or 0).is_integer():
            return "affinity"
        # The kernel counts none of its root's processes, whatever namespace they are in (fork in kernel/fork.c).
        return "rlimit" if limit == PIDS_LIMIT and _host_uid() else "none"

    def _otherwise(self, limit: str, pid: int, platform: str) -> str:
        """Enforce a limit without a cgroup; who does."""
        how = self._next_best(limit)
        with suppress(OSError, ValueError):
            if how == "affinity":
                mine = sorted(os.sched_getaffinity(0))
                count = int(self.limits.cpus or 0)
                start = secrets.randbelow(len(mine))
                os.sched_setaffinity(pid, {mine[(start + n) % len(mine)] for n in range(min(count, len(mine)))})
            elif how == "rlimit":
                resource.prlimit(pid, resource.RLIMIT_NPROC, (self._threads(platform),) * 2)
            return how
        return "none"

    @property
    def watch(self) -> dict[str, Any]:
        """What the attendant is to look after."""
        watch = {name: getattr(self.limits, name) for name, how in self.achieved.items() if how == "watch"}
        if DISK in watch:
            watch["store"] = self.store
        path = self._of.get(MEMORY)
        # v1 kills one process. Without it the sentry may wait for ever, so somebody has to end the others.
        return watch if path is None or self._made[path].unified else {**watch, "oom": f"{path}/memory.oom_control"}

    def release(self, pid: int) -> None:
        """Take the attendant out again, and so the commands that it starts: it must not die in the guest's place."""
        for place in self._made.values():
            with suppress(OSError):
                _write(f"{place.own}/cgroup.procs", pid)

    def met(self) -> str | None:
        """The name of the limit that was met, if one was."""
        if self._met is None:
            watched = None if self.told is None else self.told()
            self._met = watched or next((name for name in self._of if self._was_met(name)), None)
        return self._met

    def _was_met(self, limit: str) -> bool:
        path = self._of[limit]
        if limit == MEMORY:
            events = f"{path}/{'memory.events' if self._made[path].unified else 'memory.oom_control'}"
            return _counter(events, "oom_kill") > 0
        return limit == PIDS_LIMIT and _counter(f"{path}/pids.events", "max") > 0


def _host_uid() -> int:
    """The effective user as the host's root would name it, as far as that can be seen from here."""
    for line in _lines("/proc/self/uid_map"):
        inside, outside, count = map(int, line.split())
        if inside <= os.geteuid() < inside + count:
            return outside + os.geteuid() - inside
    return 0


def _counter(path: str, name: str) -> int:
    return sum(int(line.split()[1]) for line in _lines(path) if line.split()[:1] == [name])


def _write(path: str, value: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # cgroupfs makes no files
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def remove(base: int, component: str, on_error: Callable[[OSError], None]) -> None:
    """Remove the cgroups that container directory `component` lists, once the kernel has emptied them."""
    try:
        fd = os.open(f"{component}/{LIST}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    except OSError:
        return
    try:
        paths = os.read(fd, 1 << 16).decode().split("\n")
    finally:
        os.close(fd)
    deadline = time.monotonic() + PATIENCE
    for path in paths:
        if os.path.basename(path).startswith(PREFIX):
            _remove(path, deadline, on_error)


def _remove(path: str, deadline: float, on_error: Callable[[OSError], None]) -> None:
    pause = 0.001
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            # The supervisor has ended; what it had started is killed by the kernel, which takes a moment. Nothing tells
            # of the last one's end in v1.
            if time.monotonic() >= deadline:
                on_error(error)
                return
            time.sleep(pause)
            pause = min(0.05, pause * 2)
        else:
            return
