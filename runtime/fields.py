"""Every field of an OCI configuration, and who keeps what it asks for: gVisor, the launch, or nobody.

A bundle is somebody's word about what its guest may do. A word that nobody keeps must not be taken silently: a profile
that denies a call, or a limit, that is only written down protects nobody. So FIELDS has every field of the OCI
runtime-spec (1.0 to 1.3), and a launch refuses those that nobody keeps, or, told to do its best, goes on without them
and says so. BUNDLE.md shows the same table to people.

A field that asks for nothing (null, false, 0, "" or empty) is always kept. Properties that the specification does not
have are ignored, as it demands ("Extensibility").
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kept(StrEnum):
    """Who keeps what a field asks for."""

    RUNSC = "runsc"
    """gVisor, as releases 20221219 and 20240729 were seen to."""
    LAUNCH = "launch"
    """The launch itself."""
    NO_MEANING = "no meaning"
    """There is nothing under gVisor that it could be about."""
    REFUSED = "refused"
    """Nobody: the launch fails, or goes on without it and says so."""


@dataclass(frozen=True)
class Field:
    """One field's row."""

    kept: Kept
    why: str
    fits: Callable[[Any], bool] | None = None
    """Values that are kept, where only some are."""
    only: str = ""
    """The values that fit, in words."""
    locked: bool = False
    """Nobody keeps it under mount-locked; without, gVisor does."""


DEVICES = {
    "/dev/null": ("c", 1, 3),
    "/dev/zero": ("c", 1, 5),
    "/dev/full": ("c", 1, 7),
    "/dev/random": ("c", 1, 8),
    "/dev/urandom": ("c", 1, 9),
    "/dev/tty": ("c", 5, 0),
    "/dev/ptmx": ("c", 5, 2),
}
"""The device nodes that every guest has from gVisor's own kernel."""
SECCOMP_ACTIONS = frozenset(f"SCMP_ACT_{name}" for name in ("ALLOW", "ERRNO", "KILL", "TRACE", "TRAP"))
"""What runsc's filter can do; for any other it refuses to start."""
UNIFIED = frozenset(("memory.max", "memory.swap.max", "cpu.max", "pids.max"))
"""The cgroup v2 settings that are limits of ours."""
_SETTINGS = ", ".join(sorted(UNIFIED))
LOST_OPTIONS = frozenset(
    ("idmap", "nosymfollow", "ridmap", "rnodev", "rnoexec", "rnosuid", "rnosymfollow", "rro", "tmpcopyup")
)
"""Mount options that runsc passes over."""
_EPERM = 1
_DEFAULT_UMASK = 0o022
_DEFAULT_SHARES = 1024


def _one_of(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


def _none_above_zero(value: Any) -> bool:
    """Does it set no bound: cgroups take -1 for none."""
    return type(value) is int and value <= 0


def _inside_proc(paths: Any) -> bool:
    return all(isinstance(path, str) and path.startswith(("/proc/", "/sys/")) for path in paths)


def _own_device(device: Any) -> bool:
    return isinstance(device, dict) and DEVICES.get(str(device.get("path"))) == tuple(
        device.get(name) for name in ("type", "major", "minor")
    )


def _plain_profile(profile: Any) -> bool:
    """Can runsc's filter do what the profile asks for; an errno is judged by itself."""
    if not isinstance(profile, dict):
        return False
    rules = profile.get("syscalls") or []
    actions = [profile.get("defaultAction"), *(rule.get("action") for rule in rules if isinstance(rule, dict))]
    # TSYNC is what a filter of the init's has in any case; SPEC_ALLOW is about the host's processor.
    harmless = {"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"}
    return (
        SECCOMP_ACTIONS.issuperset(actions)
        and harmless.issuperset(profile.get("flags") or [])
        and not profile.get("listenerPath")
        and not profile.get("listenerMetadata")
    )


def _unified(settings: Any) -> bool:
    return isinstance(settings, dict) and UNIFIED.issuperset(settings)


R, L, N, X = Kept.RUNSC, Kept.LAUNCH, Kept.NO_MEANING, Kept.REFUSED
_IDS = "the sandbox has a user namespace of its own, with the ids that the launch gives it"
_HOST_LABEL = "a label of the host's: no process or file of the guest's is the host's"
_NO_MASK = "mount something else over it instead"
_PROC = "paths in /proc and /sys, of which a guest has its own, with nothing of the host in them"
_ELSEWHERE = "of another platform than Linux"

FIELDS: dict[str, Field] = {
    "ociVersion": Field(L, "1.x.y"),
    # ---- process ----
    "process.terminal": Field(R, "the streams that the launch is given become the guest's terminal"),
    "process.consoleSize": Field(X, "a terminal has the size that its other end sets; nothing without `terminal`"),
    "process.user.uid": Field(R, ""),
    "process.user.gid": Field(R, ""),
    "process.user.umask": Field(X, "the guest starts with 0022, whatever is asked for", _one_of(_DEFAULT_UMASK), "18"),
    "process.user.additionalGids": Field(R, ""),
    "process.user.username": Field(N, _ELSEWHERE),
    "process.args": Field(R, ""),
    "process.commandLine": Field(N, _ELSEWHERE),
    "process.env": Field(R, ""),
    "process.cwd": Field(R, ""),
    "process.capabilities.bounding": Field(R, "of the guest's kernel"),
    "process.capabilities.effective": Field(R, "of the guest's kernel"),
    "process.capabilities.inheritable": Field(R, "of the guest's kernel"),
    "process.capabilities.permitted": Field(R, "of the guest's kernel"),
    "process.capabilities.ambient": Field(R, "of the guest's kernel"),
    "process.rlimits[].type": Field(R, "set in the guest, whose kernel enforces those that it knows"),
    "process.rlimits[].hard": Field(R, ""),
    "process.rlimits[].soft": Field(R, ""),
    "process.noNewPrivileges": Field(R, "always on in these releases; under mount-locked the supervisor has it too"),
    "process.apparmorProfile": Field(N, _HOST_LABEL),
    "process.selinuxLabel": Field(N, _HOST_LABEL),
    "process.oomScoreAdj": Field(R, "of gVisor's processes on the host; less than the caller's own takes host root"),
    "process.scheduler": Field(X, "the guest's threads are the sentry's"),
    "process.ioPriority": Field(X, "the guest's threads are the sentry's"),
    "process.execCPUAffinity": Field(X, "use the option `cpus`"),
    # ---- root, mounts, names ----
    "root.path": Field(L, "judged, and shown to runsc at a private place"),
    "root.readonly": Field(R, ""),
    "hostname": Field(R, ""),
    "domainname": Field(X, "the guest's domain name is its host name"),
    "mounts[].destination": Field(R, ""),
    "mounts[].type": Field(L, "bind, tmpfs, proc, sysfs, devpts, devtmpfs, mqueue, cgroup, cgroup2 or none"),
    "mounts[].source": Field(L, "of a bind: judged, and shown to runsc at a private place"),
    "mounts[].options": Field(
        R,
        "ro, noexec and noatime; no program gains privilege and no device is the host's in any case",
        lambda options: not isinstance(options, list) or LOST_OPTIONS.isdisjoint(map(str, options)),
        f"all but {', '.join(sorted(LOST_OPTIONS))}",
    ),
    "mounts[].uidMappings": Field(X, _IDS),
    "mounts[].gidMappings": Field(X, _IDS),
    # ---- hooks, annotations ----
    "hooks.prestart": Field(L, "on the host, when it is allowed; see Hooks"),
    "hooks.createRuntime": Field(L, "on the host, when it is allowed; see Hooks"),
    "hooks.createContainer": Field(X, "belongs in the container, where only the guest runs; refused in any case"),
    "hooks.startContainer": Field(X, "belongs in the container, where only the guest runs; refused in any case"),
    "hooks.poststart": Field(L, "on the host, when it is allowed; see Hooks"),
    "hooks.poststop": Field(L, "on the host, when it is allowed; see Hooks"),
    "annotations": Field(L, "`dev.gvisor.` ones that change runsc's flags or reach the host have to be allowed"),
    # ---- linux ----
    "linux.namespaces[].type": Field(R, "the guest has all of its own, in any case"),
    "linux.namespaces[].path": Field(
        X, "a guest has its own kernel, and joins no other's; of a network, the launch's network option decides"
    ),
    "linux.uidMappings": Field(R, _IDS, locked=True),
    "linux.gidMappings": Field(R, _IDS, locked=True),
    "linux.timeOffsets": Field(X, "the guest's clocks are the sentry's"),
    "linux.devices[]": Field(
        X, "a guest has gVisor's own devices and none of the host's, a GPU's neither", _own_device, ", ".join(DEVICES)
    ),
    "linux.netDevices": Field(X, "a guest has gVisor's own network stack"),
    "linux.cgroupsPath": Field(N, "the launch makes a cgroup of its own where a limit is asked for"),
    "linux.sysctl": Field(X, "the guest's kernel settings are gVisor's own"),
    "linux.rootfsPropagation": Field(
        N, "no mount of the guest's reaches the host",
        _one_of("private", "rprivate", "slave", "rslave", "unbindable", "runbindable"),
        "all but shared and rshared",
    ),
    "linux.maskedPaths": Field(X, _NO_MASK, _inside_proc, _PROC),
    "linux.readonlyPaths": Field(
        X, _NO_MASK, _inside_proc, _PROC
    ),
    "linux.mountLabel": Field(N, _HOST_LABEL),
    "linux.intelRdt": Field(X, "nobody sets it"),
    "linux.memoryPolicy": Field(X, "nobody sets it"),
    "linux.personality": Field(
        X,
        "the guest's kernel has LINUX alone",
        lambda asked: isinstance(asked, dict) and asked.get("domain") == "LINUX" and not asked.get("flags"),
        "LINUX",
    ),
    "linux.seccomp": Field(
        R,
        "by the guest's kernel, where `runsc flags` lists `--oci-seccomp`",
        _plain_profile,
        f"{', '.join(sorted(SECCOMP_ACTIONS))}; no listener; the flags TSYNC and SPEC_ALLOW",
    ),
    "linux.seccomp.architectures": Field(N, "the guest has its machine's own; calls of another kill it"),
    "linux.seccomp.defaultErrnoRet": Field(X, "the errno is always EPERM", _one_of(_EPERM), "1"),
    "linux.seccomp.syscalls[].errnoRet": Field(X, "the errno is always EPERM", _one_of(_EPERM), "1"),
    # ---- resources ----
    "linux.resources.devices": Field(N, "no device of the host's is in the guest's reach"),
    "linux.resources.memory.limit": Field(L, "as the option `memory`"),
    "linux.resources.memory.swap": Field(L, "a sandbox with a memory limit has no swap: both together are its memory"),
    "linux.resources.memory.reservation": Field(X, "nobody sets it", _none_above_zero, "-1"),
    "linux.resources.memory.kernel": Field(X, "nobody sets it", _none_above_zero, "-1"),
    "linux.resources.memory.kernelTCP": Field(X, "nobody sets it", _none_above_zero, "-1"),
    "linux.resources.memory.swappiness": Field(X, "nobody sets it"),
    "linux.resources.memory.disableOOMKiller": Field(X, "a sandbox that is out of memory is ended"),
    "linux.resources.memory.useHierarchy": Field(N, "the cgroup has none below it"),
    "linux.resources.memory.checkBeforeUpdate": Field(N, "limits are not changed later"),
    "linux.resources.cpu.quota": Field(L, "as the option `cpus`, with `period`"),
    "linux.resources.cpu.period": Field(L, "as the option `cpus`, with `quota`"),
    "linux.resources.cpu.shares": Field(X, "nobody sets it", _one_of(_DEFAULT_SHARES), "1024"),
    "linux.resources.cpu.burst": Field(X, "nobody sets it"),
    "linux.resources.cpu.realtimeRuntime": Field(X, "nobody sets it", _none_above_zero, "-1"),
    "linux.resources.cpu.realtimePeriod": Field(X, "nobody sets it"),
    "linux.resources.cpu.cpus": Field(X, "use the option `cpus`"),
    "linux.resources.cpu.mems": Field(X, "nobody sets it"),
    "linux.resources.cpu.idle": Field(X, "nobody sets it"),
    "linux.resources.pids.limit": Field(L, "as the option `pids`"),
    "linux.resources.blockIO": Field(X, "nobody sets it"),
    "linux.resources.hugepageLimits": Field(N, "a guest uses no huge pages of hugetlbfs"),
    "linux.resources.network": Field(X, "nobody sets it"),
    "linux.resources.rdma": Field(N, "no device of the host's is in the guest's reach"),
    "linux.resources.unified": Field(L, "as the options `memory`, `cpus` and `pids`", _unified, _SETTINGS),
    # ---- other platforms ----
    "solaris": Field(X, _ELSEWHERE),
    "windows": Field(X, _ELSEWHERE),
    "vm": Field(X, _ELSEWHERE),
    "zos": Field(X, _ELSEWHERE),
    "freebsd": Field(X, _ELSEWHERE),
}  # fmt: skip
"""Field -> its row, `[]` standing for each item of a list. What lies below a row's field is told by that row."""

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def lost(config: dict[str, Any], *, locked: bool) -> dict[str, Any]:
    """The fields that ask for something that nobody keeps, by name (`mounts[2].uidMappings`), with their values."""
    found: dict[str, Any] = {}
    for pattern, row in FIELDS.items():
        for name, value in _values(config, pattern):
            if not _asks_for_nothing(value) and not _is_kept(row, value, locked) and not _is_below(name, found):
                found[name] = value
    terminal = (config.get("process") or {}).get("terminal")
    if not terminal:  # "MUST ignore consoleSize if terminal is false or unset"
        found.pop("process.consoleSize", None)
    for name in list(found):  # a network's path is the network option's matter
        if name.startswith("linux.namespaces[") and _parent(config, name).get("type") == "network":
            del found[name]
    return found


def table() -> str:
    """All rows, as BUNDLE.md shows them."""
    who = {
        Kept.RUNSC: "gVisor",
        Kept.LAUNCH: "the launch",
        Kept.NO_MEANING: "no meaning",
        Kept.REFUSED: "refused",
    }
    lines = ["| Field | Kept by | |", "|---|---|---|"]
    for name, row in FIELDS.items():
        kept = who[row.kept] + ("; refused under mount-locked" if row.locked else "")
        if row.only:
            kept = f"{who[row.kept]}, but for: {row.only}" if row.kept is Kept.REFUSED else f"{kept}: {row.only}"
        lines.append(f"| `{name}` | {kept} | {row.why} |")
    return "\n".join(lines) + "\n"


def told(name: str) -> str:
    """What to expect of the field of that name, as its row says."""
    pattern = re.sub(r"\[\d+\]", "[]", name)
    row = FIELDS.get(pattern)
    if row is None:
        return "what the launch can keep"
    return f"{row.only}: {row.why}" if row.only else f"nothing there: {row.why}"


def without(config: dict[str, Any], names: list[str]) -> None:
    """Take the named fields out of `config`; of mount options only those that are lost."""
    for name in reversed(names):  # the items of a list from its end
        parent, (key, index) = _parent(config, name), _STEP.findall(name)[-1]
        if name.startswith("mounts[") and key == "options":
            parent[key] = [option for option in parent[key] if option not in LOST_OPTIONS]
        else:
            del parent[int(index) if index else key]


def _is_kept(row: Field, value: Any, locked: bool) -> bool:
    if row.fits is not None:
        return row.fits(value)
    return row.kept is not Kept.REFUSED and not (row.locked and locked)


def _is_below(name: str, found: dict[str, Any]) -> bool:
    return any(name.startswith((f"{above}.", f"{above}[")) for above in found)


def _asks_for_nothing(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_asks_for_nothing, value.values()))
    return not value


def _parent(config: dict[str, Any], name: str) -> Any:
    node: Any = config
    for key, index in _STEP.findall(name)[:-1]:
        node = node[int(index) if index else key]
    return node


def _values(node: Any, pattern: str, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of each place in the document that a row's field stands for."""
    key, _, rest = pattern.partition(".")
    each, key = key.endswith("[]"), key.removesuffix("[]")
    if not isinstance(node, dict) or key not in node:
        return
    name = f"{name}.{key}" if name else key
    items = [(name, node[key])]
    if each:
        listed = node[key] if isinstance(node[key], list) else []
        items = [(f"{name}[{index}]", item) for index, item in enumerate(listed)]
    for where, value in items:
        if rest:
            yield from _values(value, rest, where)
        else:
            yield where, value
