"""The plan of a launch: nothing is done, and what it says is what a launch then does."""

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.runtime import _child, _linux, explain, rehearsal
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.cleanup import owner_line, state_component
from nucleus_gvisor.runtime.options import Confinement, GVisorOciRunOptions, Platform, Program, StageMethod
from nucleus_gvisor.runtime.steps import confine
from tests.e2e.launching import digest
from tests.runtime.test_doctor import listing
from tests.support.modes import Mode

EFFECTS = [
    "execve",
    "execveat",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "unshare",
    "setns",
    "mount",
    "umount2",
    "mount_setattr",
    "open_tree",
    "move_mount",
    "fsopen",
    "memfd_create",
    "mkdir",
    "mkdirat",
    "mknodat",
    "unlink",
    "unlinkat",
    "rename",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "flock",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "fchownat",
    "truncate",
    "ftruncate",
    "setxattr",
    "prlimit64",
    "setrlimit",
    "kill",
    "close_range",
]
CHILD = [
    "dup2",
    "prctl",
    "close_range",
    "unshare",
    "mount_setattr",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "move_mount",
    "mkdirat",
    "symlinkat",
    "pivot_root",
    "umount2",
    "chdir",
    "execve",
    "execveat",
]
"""Calls of the child whose order and arguments the plan tells."""
PARENT = ["flock", "memfd_create", "socketpair", "pidfd_open"]
ID = "0123456789abcdef0123456789abcdef"
LINE = re.compile(r"(\d+)\s+(\w+)\((.*)")
Key = tuple[str, ...]


def explained(mode: Mode, *arguments: str | os.PathLike[str], code: int = 0) -> list[dict[str, Any]]:
    """The operations of `explain --json ARGUMENTS`."""
    done = mode.cli("explain", "--json", *arguments)
    assert (done.returncode, done.stderr) == (code, "")
    data = json.loads(done.stdout)
    assert data["refused"] == bool(code)
    operations: list[dict[str, Any]] = data["operations"]
    return operations


def traced(mode: Mode, calls: list[str], *arguments: str | os.PathLike[str]) -> list[tuple[str, str, str]]:
    """(pid, call, arguments and result) of the command line's own and its children's system calls, in order."""
    log = mode.base.parent / f"{mode.base.name}.trace"
    options = ["-f", "-qq", "-v", "-s", "4096", "-e", "signal=none", "-e", f"trace={','.join(calls)}"]
    command = [mode.python, "-m", "nucleus_gvisor.runtime.cli", *arguments]
    try:
        mode.run(["strace", *options, "-o", log, *command], timeout=120, env=mode.unmeasured())
        lines = log.read_text(errors="replace").splitlines()
    finally:
        log.unlink(missing_ok=True)
    return [(match[1], match[2], match[3]) for line in joined(lines) if (match := LINE.match(line))]


def joined(lines: list[str]) -> list[str]:
    """Each call on one line, where it began: strace tells in two what another process came between."""
    found: list[str] = []
    begun: dict[str, int] = {}
    for line in lines:
        rest = re.match(r"(\d+) +<\.\.\. \w+ resumed>(.*)", line)
        if line.endswith(" <unfinished ...>"):
            begun[line.split()[0]] = len(found)
            found.append(line.removesuffix(" <unfinished ...>"))
        elif rest and rest[1] in begun:
            found[begun.pop(rest[1])] += rest[2]
        else:
            found.append(line)
    return found


# ---- nothing is done ----


def test_nothing_is_done(mode: Mode) -> None:
    """Of all calls that make, change or execute something, only the interpreter's own start is made."""
    before = listing(mode.base)
    calls = [call for call in traced(mode, EFFECTS, "explain", "--", "true") if "prlimit64" not in call[1]]
    assert [call for _, call, _ in calls] == ["execve"]
    assert listing(mode.base) == before


def test_nothing_is_written(mode: Mode) -> None:
    """No file is opened for writing, but /dev/null."""
    opened = traced(mode, ["open", "openat", "creat", "openat2"], "explain", "--", "true")
    writing = [rest for _, _, rest in opened if re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)]
    assert [rest for rest in writing if "/dev/null" not in rest and ".coverage" not in rest] == []


def test_no_descriptor_is_left_open(base: Path) -> None:
    """The library function closes what it opened, whether or not the launch would be refused."""
    before = sorted(os.listdir("/proc/self/fd"))
    options = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=base)
    for path in (None, b"/nowhere"):
        explain.plan(ID, OciBundle.build(["true"]), options, runsc_path=path)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_modules_are_as_they_were(base: Path) -> None:
    """The rehearsal has its own copies: the launch's modules keep the real system calls."""
    options = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=base)
    explain.plan(ID, OciBundle.build(["true"]), options)
    assert vars(_child)["os"] is os
    assert vars(_child)["linux"] is _linux
    assert sys.modules[_child.__name__] is _child


def test_the_rehearsal_is_strict() -> None:
    """A system call that the rehearsal does not know is an error there, never a real call."""
    fake = rehearsal._Os(None)  # type: ignore[arg-type]
    for name in ("unlink", "rename", "kill", "posix_spawn", "mknod", "system", "mount"):
        with pytest.raises(AttributeError):
            getattr(fake, name)
    assert fake.O_PATH == os.O_PATH
    with pytest.raises(AttributeError, match=r"no _signal\.pause"):
        rehearsal._Signal(None).pause()  # type: ignore[arg-type]
    copy = rehearsal._copy(_child)
    with pytest.raises(AttributeError, match=r"no os\.open"):
        copy.execute.__globals__["_read"](b"/proc/self/status")
    with pytest.raises(AttributeError, match=r"no fcntl\.fcntl"):
        rehearsal._copy(_linux).arrange([0, 1, 2])
    with pytest.raises(AttributeError, match="cannot reach /proc/self/environ"):
        copy.execute.__globals__["__builtins__"]["open"]("/proc/self/environ")


def test_a_broken_rehearsal_is_no_short_plan(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the child's code does something that cannot be rehearsed, the plan fails rather than leaves it out."""

    def unheard(*_: object, **__: object) -> None:
        raise AttributeError("the rehearsal has no such call")

    monkeypatch.setattr(rehearsal._Os, "mkdir", unheard)
    with pytest.raises(RuntimeError, match="no such call"):
        explain.plan(ID, OciBundle.build(["true"]), GVisorOciRunOptions(artifact_base=base))


# ---- the plan is true ----


def flags(text: str, prefix: str) -> str:
    return "|".join(sorted(set(re.findall(rf"{prefix}\w+", text))))


def key_of_trace(call: str, rest: str) -> Key:
    """What of a traced call the plan tells too."""
    names = re.findall(r'"([^"]*)"', rest)
    if call == "unshare":
        return call, flags(rest, "CLONE_")
    if call == "mount_setattr":
        parts = re.search(r"attr_set=(.*?), attr_clr=(.*?), propagation=(\S+)", rest)
        assert parts, rest
        wanted = [flags(part, "MOUNT_ATTR_") for part in parts.groups()[:2]]
        return call, names[0], *wanted, flags(parts[3], "MS_P"), flags(rest, "AT_RECURSIVE")
    if call == "open_tree":
        return call, flags(rest, "AT_RECURSIVE")
    if call == "fsconfig":
        return call, "=".join(names) or flags(rest, "FSCONFIG_CMD_")
    if call == "fsmount":
        return call, flags(rest, "MOUNT_ATTR_")
    if call == "mkdirat":
        return call, names[0].rpartition("/")[2], rest.split(", ")[2][:4]
    if call == "prctl":
        return call, flags(rest, "PR_")
    if call in ("execve", "chdir"):
        return call, names[0]
    if call == "dup2":
        return call, rest.split(", ")[1].split(")")[0]
    return (call,)


def key_of_plan(call: str, detail: str) -> Key:
    """The same of an operation of the plan."""
    if call == "unshare":
        return call, flags(detail, "CLONE_")
    if call == "mount_setattr":
        path = "" if detail.startswith("<") else detail.split()[0]
        changes = dict(re.findall(r"(set|clear) (\S+)", detail))
        wanted = [flags(changes.get(word, ""), "MOUNT_ATTR_") for word in ("set", "clear")]
        return call, path, *wanted, flags(detail, "MS_P"), flags(detail, "AT_RECURSIVE")
    if call == "open_tree":
        return call, flags(detail, "AT_RECURSIVE")
    if call == "fsconfig":
        return call, detail
    if call == "fsmount":
        return call, flags(detail, "MOUNT_ATTR_")
    if call == "mkdirat":
        path, mode = detail.split()[-2:]
        return call, path.rpartition("/")[2], mode
    if call == "prctl":
        return call, flags(detail, "PR_")
    if call in ("execve", "chdir"):
        return call, detail
    if call == "dup2":
        return call, detail.rpartition(" ")[2]
    return (call,)


def collapsed(keys: Iterator[Key]) -> list[Key]:
    """One close_range in a row: how many there are depends on which numbers the descriptors have."""
    out: list[Key] = []
    for key in keys:
        if key != ("close_range",) or out[-1:] != [key]:
            out.append(key)
    return out


def planned_child(operations: list[dict[str, Any]]) -> list[Key]:
    """What the plan says of the child, from its start on."""
    calls = [operation["call"] for operation in operations]
    start = calls.index("pidfd_open")
    told = [o for o in operations[start:] if o["call"] in CHILD and o["step"] in ("Confine", "Exec")]
    return collapsed(key_of_plan(o["call"], o["detail"]) for o in told)


def real_child(trace: list[tuple[str, str, str]]) -> tuple[str, list[Key], str]:
    """The child's pid, what it did up to the image's execve, and that one's arguments."""
    start = next(number for number, (_, call, _) in enumerate(trace) if call == "pidfd_open")
    child = next(pid for pid, call, _ in trace if call == "close_range")
    mine = [(call, rest) for pid, call, rest in trace if pid == child and call in CHILD]
    assert start
    images = [n + 1 for n, (call, rest) in enumerate(mine) if call == "execveat" and '"runsc"' in rest]
    end = images[0] if images else len(mine)  # what follows is runsc's own
    return child, collapsed(key_of_trace(call, rest) for call, rest in mine[:end]), mine[end - 1][1]


WAYS: dict[str, list[str]] = {
    "as it comes": [],
    "unconfined": ["--enforcement", "off"],
    "a set": ["--stage", "set"],
    "a copy": ["--stage", "copy"],
    "a network": ["--network", "sandbox"],
    "mounts": ["--mount", "/usr/share:/data", "--mount", "/etc/hostname:/name:ro"],
    "a rootfs without a place": ["--rootfs", "/usr", "--mount", "/etc/hostname:/no/such/name"],
}


def _numbered(word: str) -> str:
    """The number of runsc's own log is any that is free."""
    return re.sub(r"^/proc/self/fd/[0-9]+$", "/proc/self/fd/N", word)


def same(mode: Mode, way: list[str]) -> None:
    """Compare the plan with a traced run of the same arguments."""
    arguments = ["--id", ID, *way, "--timeout", "30", "--", "true"]
    operations = explained(mode, *arguments)
    trace = traced(mode, [*CHILD, *PARENT], "run", *arguments)
    child, done, execve = real_child(trace)
    planned = planned_child(operations)
    assert done == planned[: len(done)]
    refused_by_binary = "--network" in way  # this release has no such network: it is refused once it has answered
    assert (len(done) == len(planned)) != refused_by_binary
    if not refused_by_binary:
        strings = re.findall(r'"((?:[^"\\]|\\.)*)"', execve)[1:]
        argv = [o["detail"].partition("] ")[2] for o in operations if o["call"] == "argv"]
        env = [o["detail"] for o in operations if o["call"] == "env"]
        if "--rootless" in strings:  # what the trial showed
            argv.insert(argv.index("--ignore-cgroups"), "--rootless")
        platform = strings[argv.index("--platform") + 1]
        argv = [platform if word == explain.ASKED else word for word in argv]
        assert [_numbered(word) for word in strings] == [_numbered(word) for word in argv + env]
        assert len(env) == 6
    parent = trace[0][0]
    calls = [call for pid, call, rest in trace if pid == parent and call in PARENT and f"{ID}" not in rest]
    order = [next(n for n, call in enumerate(calls) if call == name) for name in PARENT]
    assert order == sorted(order)
    assert child != parent


def test_the_plan_is_true(mode: Mode) -> None:
    """For each kind of caller, the child's calls in a traced run are those of the plan, in its order, and no others."""
    same(mode, [])


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items() if way])
def test_the_plan_is_true_for(modes: dict[str, Mode], way: list[str]) -> None:
    """The same for other stages, confinements, networks and mounts."""
    same(modes["user"], way)


def test_the_plan_is_true_on_disk(mode: Mode) -> None:
    """What a launch leaves below the base is what the plan names there, and nothing else."""
    named = [o["detail"].split(" ")[0] for o in explained(mode, "--id", ID, "--", "true") if o["step"] == "Prepare"]
    assert mode.cli("run", "--id", ID, "--", "true").returncode == 0
    (record,) = (mode.base / "records").iterdir()
    pattern = next(name for name in named if "/records/" in name)
    assert len(pattern) == len(str(record))
    assert pattern.partition("?")[0] == str(record)[: pattern.index("?")]
    assert str(mode.base / ID) in named
    assert f"{mode.base}/locks/{ID}" in named


def test_the_image_is_the_one_that_runs(modes: dict[str, Mode]) -> None:
    """The digest in the plan is the one in the record of the launch."""
    mode = modes["user"]
    (told,) = [
        o["detail"].split()[1] for o in explained(mode, "--stage", "sealed", "--", "true") if o["call"] == "sha256"
    ]
    launch = json.loads(mode.cli("run", "--json", "--", "true").stdout)
    assert launch["digests"]["runsc"] == told


def test_an_old_state_component(modes: dict[str, Mode]) -> None:
    """An id that is not 32 hex digits has its digest's directory, in the plan as in a launch."""
    details = [o["detail"] for o in explained(modes["user"], "--id", "job-1", "--", "true")]
    assert f"{modes['user'].base}/{state_component('job-1')} 0700" in details


# ---- what is told ----


def test_steps_come_in_their_order(mode: Mode) -> None:
    """The operations are grouped by step, in the order of the states."""
    steps = [operation["step"] for operation in explained(mode, "--", "true")]
    assert list(dict.fromkeys(steps)) == list(explain.STEPS)
    assert steps == sorted(steps, key=explain.STEPS.index)


def test_every_canary_is_named(base: Path) -> None:
    """The canaries are those of the launch, all of them, before the undo test and the look at the mounts."""
    told = explain.plan(ID, OciBundle.build(["true"]), GVisorOciRunOptions(artifact_base=base))
    canaries = [argv[0].decode() for argv in confine.canaries()]
    tried = [(o.call, o.detail) for o in told if "a canary" in o.why]
    assert tried == [
        ("kill", "0 to the parent"),
        ("connect", "an abstract socket from outside"),
        *[("execveat", f"{path}, by descriptor") for path in canaries],
        *[("openat", f"{way} O_PATH") for path in canaries for way in (path, f"/proc/0/root{path}")],
    ]
    calls = [o.call for o in told if "undo" in o.why or o.call == "ask" or "mountinfo" in o.detail]
    assert calls == ["mount_setattr"] * 2 + ["read"] + ["ask"] * 3


def test_what_only_the_binary_knows(modes: dict[str, Mode]) -> None:
    """The platform of `auto` is said to be asked; one that was named is in the argument vector."""
    told = explained(modes["user"], "--", "true")
    assert any("asked of the sealed binary" in o["detail"] for o in told if o["step"] == "Exec")
    named = explained(modes["user"], "--platform", "ptrace", "--", "true")
    assert not any("asked of the sealed binary" in o["detail"] for o in named if o["step"] == "Exec")
    assert any(o["detail"].endswith("] ptrace") for o in named if o["call"] == "argv")


def test_a_base_that_would_be_made(modes: dict[str, Mode]) -> None:
    """Directories that a launch would make first are told, and not made."""
    mode = modes["user"]
    told = explained(mode, "--artifact-base", mode.base / "a/b", "--", "true")
    made = [o["detail"] for o in told if o["step"] == "Prepare" and o["call"] == "mkdirat"]
    assert made[:2] == [f"{mode.base}/a 0700", f"{mode.base}/a/b 0700"]
    assert list(mode.base.iterdir()) == []


def test_leftovers_are_named(modes: dict[str, Mode]) -> None:
    """What dead launches left is told as that which the launch will collect, and left where it is."""
    mode = modes["user"]
    (mode.base / "locks").mkdir(mode=0o700)
    (mode.base / "locks" / ("d" * 32)).touch()
    (mode.base / "locks" / ("a" * 32)).write_bytes(owner_line(os.getpid()))
    for path in (mode.base / "locks", *(mode.base / "locks").iterdir()):
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
    before = listing(mode.base)
    (collect,) = [o["detail"] for o in explained(mode, "--", "true") if o["call"] == "collect"]
    assert collect.endswith(f": {'d' * 32}")
    assert listing(mode.base) == before


def test_a_lock_of_a_dead_launch_is_no_obstacle(base: Path) -> None:
    """The id can be had again."""
    (base / "locks").mkdir(mode=0o700)
    (base / "locks" / ID).write_bytes(b"1 1 gone elsewhere\n")
    told = explain.plan(ID, OciBundle.build(["true"]), GVisorOciRunOptions(artifact_base=base))
    assert not any(o.refused for o in told)


def test_a_bundle_that_is_loaded(modes: dict[str, Mode]) -> None:
    """A directory is read and judged as the launch would, and its root is bound."""
    mode = modes["user"]
    (mode.base / "b/rootfs").mkdir(parents=True, mode=0o755)
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": True},
    }
    (mode.base / "b/config.json").write_text(json.dumps(config))
    for path in (mode.base / "b", *(mode.base / "b").iterdir()):
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
        path.chmod(0o755 if path.is_dir() else 0o644)
    told = explained(mode, "--bundle", mode.base / "b")
    assert f"{mode.base}/b/config.json" in [o["detail"] for o in told if o["call"] == "read"]
    assert any(o["detail"].startswith(f"{mode.base}/b/rootfs -> ") for o in told if o["call"] == "bind")


def test_the_pin_is_compared(modes: dict[str, Mode], runsc_old: Path) -> None:
    """A pin that the bytes agree with is no refusal."""
    right = digest(runsc_old)
    told = explained(modes["user"], "--pin", right, "--", "true")
    assert f"pin {right}" in [o["detail"] for o in told if o["call"] == "compare"]


def test_a_process_with_threads_is_not_forked(base: Path) -> None:
    """The plan is that of the process that asks."""

    def starts() -> list[str]:
        told = explain.plan(ID, OciBundle.build(["true"]), GVisorOciRunOptions(artifact_base=base))
        return [o.call for o in told if o.call in ("fork", "posix_spawn")]

    assert starts() == ["fork"]
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert starts() == ["posix_spawn"]
    finally:
        over.set()
        thread.join()


def test_a_record_that_is_named(modes: dict[str, Mode]) -> None:
    """One that is there, or can be made, is the record; what a launch cannot append to is refused as a launch does."""
    mode = modes["user"]
    new, there, foreign = (mode.base / name for name in ("new", "there", "foreign"))
    for path in (there, foreign):
        path.touch(mode=0o600)
    os.chown(there, mode.account.pw_uid, mode.account.pw_gid)
    for path in (new, there):
        told = explained(mode, "--record", path, "--", "true")
        assert [o["detail"].split()[0] for o in told if o["why"].startswith("the record")] == [os.fspath(path)]
    assert not new.exists()
    refusals = {mode.base: "not a regular file", there / "x": "Not a directory"}
    if os.geteuid() == 0:
        refusals[foreign] = "not writable"
    for path, words in refusals.items():
        (refusal,) = [o for o in explained(mode, "--record", path, "--", "true", code=1) if o["refused"]]
        assert refusal["step"] == "Resolve" and words in refusal["detail"]
        assert mode.cli("run", "--record", path, "--", "true").returncode == 125


def test_kvm_is_looked_at(modes: dict[str, Mode]) -> None:
    """The device is tried in Confine, and a host without it is refused there."""
    mode = modes["user"]
    done = mode.cli("explain", "--json", "--platform", "kvm", "--", "true")
    told = json.loads(done.stdout)["operations"]
    (at,) = [number for number, o in enumerate(told) if o["call"] == "access"]
    assert told[at]["step"] == "Confine"
    if done.returncode:
        assert told[at + 1]["why"].startswith("Unsupported") and "/dev/kvm" in told[at + 1]["detail"]


@pytest.mark.parametrize("limits", ["required", "best_effort"])
def test_limits_are_told_with_who_enforces_them(mode: Mode, limits: str) -> None:
    """As a launch of the same caller then has it; what nobody would enforce is refused in Exec, or gone without."""
    asked = ["--memory", "200M", "--cpus", "1", "--pids", "50", "--limits", limits, "--", "true"]
    before = listing(mode.base)
    done = mode.cli("explain", "--json", *asked)
    operations = json.loads(done.stdout)["operations"]
    assert listing(mode.base) == before
    told = [o["detail"] for o in operations if o["call"] == "limit"]
    assert {o["step"] for o in operations if o["call"] == "limit"} == {"Exec"}
    launch = json.loads(mode.cli("run", "--json", *asked).stdout)
    assert (done.returncode == 0) == (launch["error"] is None)
    if launch["error"] is None:
        values = {"memory": 200 << 20, "cpus": 1.0, "pids": 50}
        assert told == [f"{name} {values[name]}: {who}" for name, who in launch["limits"].items()]


def test_a_limit_that_nobody_would_enforce(modes: dict[str, Mode]) -> None:
    """Half a processor wants a cgroup, which an ordinary user has no place for: refused, or gone without."""
    mode = modes["user"]
    told = explained(mode, "--cpus", "0.5", "--limits", "best_effort", "--", "true")
    (how,) = [o["detail"] for o in told if o["call"] == "limit"]
    if how == "cpus 0.5: none":
        (refusal,) = [o for o in explained(mode, "--cpus", "0.5", "--", "true", code=1) if o["refused"]]
        assert (refusal["step"], refusal["why"].split(",")[0]) == ("Exec", "LimitUnavailable")
    else:
        assert how == "cpus 0.5: cgroup"


def test_without_a_standard_output(modes: dict[str, Mode]) -> None:
    """The exit code still tells."""
    mode = modes["user"]
    argv = f"{mode.python} -m nucleus_gvisor.runtime.cli explain"
    assert mode.run(["/bin/sh", "-c", f"exec {argv} -- true >&-"]).returncode == 0
    assert mode.run(["/bin/sh", "-c", f"exec {argv} --runsc /nowhere -- true >&-"]).returncode == 1


def test_a_system_call_that_fails(base: Path) -> None:
    """Whatever the host refuses to the look itself is the plan's refusal, and nothing is left open."""
    options = GVisorOciRunOptions(artifact_base=base)
    explain.plan(ID, OciBundle.build(["true"]), options)
    kept = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                kept.append(os.dup(0))
        os.close(kept.pop())
        told = explain.plan(ID, OciBundle.build(["true"]), options)
    finally:
        for fd in kept:
            os.close(fd)
    (refusal,) = [o for o in told if o.refused]
    assert "Too many open files" in refusal.detail


def test_landlock_around_a_plain_program(base: Path) -> None:
    """The reference's policy is explained too, for a supervisor that it can hold."""
    options = GVisorOciRunOptions(
        program=Program.PLAIN, confinement=Confinement.LANDLOCK, stage=StageMethod.COPY, artifact_base=base
    )
    told = explain.plan(ID, OciBundle.build(["true"]), options)
    calls = [o.call for o in told]
    assert not any(o.refused for o in told), told[-1]
    order = [calls.index(name) for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")]
    assert order == sorted(order)
    assert calls.index("landlock_restrict_self") < calls.index("execve") < calls.index("execveat")
    assert any(o.detail == f"execute beneath <{base}/{ID}/exec-allow>" for o in told)
    assert "ask" not in calls


def test_side_binaries(base: Path, runsc_old: Path) -> None:
    """With gvisor-bin beside runsc, each file of a set is sealed and written to its tmpfs; auto binds what is kept."""
    (base / "gvisor-bin").mkdir(mode=0o755)
    shutil.copy(runsc_old, base / "runsc")
    shutil.copy("/bin/true", base / "gvisor-bin" / "side")
    options = GVisorOciRunOptions(artifact_base=base)
    told = explain.plan(ID, OciBundle.build(["true"]), options, runsc_path=os.fsencode(base / "runsc"))
    assert "auto takes kept" in [o.detail for o in told]
    bound = [o.detail for o in told if o.call == "move_mount" and "/sets/" in o.detail]
    assert [line.split("/set/")[1] for line in bound] == ["runsc", "gvisor-bin/side"]
    options = GVisorOciRunOptions(artifact_base=base, stage=StageMethod.SET)
    told = explain.plan(ID, OciBundle.build(["true"]), options, runsc_path=os.fsencode(base / "runsc"))
    written = [o.detail for o in told if o.step == "Confine" and o.call == "sendfile"]
    assert [line.split(" to ")[0] for line in written] == ["<runsc>", "<gvisor-bin/side>"]


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "step", "error"),
    [
        (["--id", ".."], "Resolve", "BadId"),
        (["--runsc", "/nowhere/runsc"], "Resolve", "NotFound"),
        (["--runsc", "/etc/hostname"], "Resolve", "NotElf"),
        (["--stage", "store"], "Resolve", "Untrusted"),
        (["--stage", "set", "--confinement", "landlock"], "Resolve", "BadArgument"),
        (["--record", "/nowhere/record"], "Resolve", "BadArgument"),
        (["--stage", "copy", "--artifact-base", "/tmp/nucleus-gvisor-nowhere"], "Prepare", "BadBase"),
        (["--artifact-base", "/"], "Prepare", "BadBase"),
        (["--rootfs", "/nowhere"], "Prepare", "BadBundle"),
        (["--mount", "/nowhere:/data"], "Prepare", "BadBundle"),
        (["--network", "sandbox", "--enforcement", "off"], "Prepare", "BadBundle"),
        (["--pin", "0" * 64], "Stage", "PinMismatch"),
        (["--confinement", "landlock"], "Confine", "Incompatible"),
        (["--network", "sandbox", "--rootless"], "Confine", "Unsupported"),
    ],
)
def test_a_refusal_is_shown_at_its_step(modes: dict[str, Mode], arguments: list[str], step: str, error: str) -> None:
    """What a launch would refuse ends the plan where the launch would end, with the same error."""
    mode = modes["user"]
    told = explained(mode, *arguments, "--", "true", code=1)
    (refusal,) = [o for o in told if o["refused"]]
    assert (refusal["step"], refusal["why"].split(",")[0]) == (step, error)
    assert {o["step"] for o in told[told.index(refusal) + 1 :]} == {"Fail"}
    launch = json.loads(mode.cli("run", "--json", *arguments, "--", "true").stdout)
    assert launch["error"]["error"] == error
    assert launch["states"][-1:] == [LaunchState.FAILED.value] or launch["states"] == []


def test_a_low_limit_is_shown(modes: dict[str, Mode]) -> None:
    """A limit that a launch refuses is the plan's refusal, before any path is looked at."""
    mode = modes["user"]
    argv = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "explain", "--", "true"]
    done = mode.run(["/bin/sh", "-c", f"ulimit -Sn 100; exec {' '.join(argv)}"])
    assert done.returncode == 1
    assert "refuse            Resolve: the soft RLIMIT_NOFILE is too low" in done.stdout
    assert "/usr/bin/runsc" not in done.stdout


def test_a_busy_id_is_shown(modes: dict[str, Mode]) -> None:
    """A lock that names a living owner is a refusal; the lock is looked at, not taken."""
    mode = modes["user"]
    (mode.base / "locks").mkdir(mode=0o700)
    lock = mode.base / "locks" / ID
    lock.write_bytes(owner_line(os.getpid()))
    for path in (lock.parent, lock):
        os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
    before = listing(mode.base)
    (refusal,) = [o for o in explained(mode, "--id", ID, "--", "true", code=1) if o["refused"]]
    assert refusal["why"] == "Busy, cause busy"
    assert listing(mode.base) == before


def test_best_effort_goes_on(modes: dict[str, Mode]) -> None:
    """With best effort an incompatible confinement is skipped, and the plan says so."""
    arguments = ["--confinement", "landlock", "--enforcement", "best_effort", "--", "true"]
    told = explained(modes["user"], *arguments)
    assert any(o["detail"].startswith("ConfineSkipped: ") for o in told)
    assert not {"unshare", "landlock_restrict_self"} & {o["call"] for o in told}


# ---- printing ----


def test_plain_text(modes: dict[str, Mode]) -> None:
    """Piped, it is one plain line an operation below a line for each step's transition."""
    done = modes["user"].cli("explain", "--", "true")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    heads = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in heads] == list(explain.STEPS)
    assert "Confined -> Exec'd" in heads[4]


def test_on_a_terminal(modes: dict[str, Mode]) -> None:
    """On a terminal a refusal stands out."""
    mode = modes["user"]
    command = f"{mode.python} -m nucleus_gvisor.runtime.cli explain --runsc /nowhere -- true"
    done = mode.run(["script", "-qec", command, "/dev/null"], env={**mode.env(), "TERM": "xterm"})
    assert done.returncode == 1
    assert re.search(r"\x1b\[1;31m\s+refuse", done.stdout)


def test_a_name_cannot_forge_the_plan(modes: dict[str, Mode]) -> None:
    """Control characters of a path come out escaped."""
    for form in ([], ["--json"]):
        done = modes["user"].cli("explain", *form, "--runsc", "/nowhere/\x1b[31m\nx", "--", "true")
        assert done.returncode == 1
        assert "\x1b" not in done.stdout
        assert "/nowhere/\\x1b[31m\\nx" in done.stdout.replace("\\\\", "\\")
