"""Limits: a guest that takes more than it may ends, whoever launched it, and the caller is told of what."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    BadArgument,
    Enforcement,
    Error,
    LifetimeExpired,
    Limits,
    LimitUnavailable,
    OutOfMemory,
    OutputLimit,
    Sandbox,
    SandboxGone,
    TimeoutExpired,
    TooManyProcesses,
    limits,
    run,
)
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options

pytestmark = pytest.mark.real

MEMORY = 200 << 20
HOG = "b = []\nprint('begun', flush=True)\nwhile True: b.append(bytearray(b'x') * (10 << 20))"
BOMB = ":(){ :|:& };:; sleep 60"
AS_CALLER = f"""
import json, sys
from nucleus_gvisor.runtime import LimitUnavailable, OutOfMemory, Sandbox, TooManyProcesses, run
options = {{"runsc": sys.argv[1], "pin": sys.argv[2] or None}}
hog, bomb = ["python3", "-c", {HOG!r}], ["bash", "-c", {BOMB!r}]
try:
    run(hog, memory={MEMORY}, **options)
except OutOfMemory as error:
    print(error.stdout.strip())
with Sandbox(memory={MEMORY}, **options) as box:
    print(box.exec("echo", "alive").stdout.strip())
    try:
        box.exec(*hog)
    except OutOfMemory as error:
        print(error.stdout.strip())
    print(box.closed)
everything = dict(memory={MEMORY}, cpus=1, pids=20, lifetime=60.0)
print(json.dumps(run(["true"], **everything, **options).achieved_limits))
script = "for i in $(seq 18); do sleep 1 & done; wait; echo as many as asked"
print(run(["bash", "-c", script], pids=20, **options).stdout.strip())
try:
    ended = run(bomb, pids=20, **options)
except TooManyProcesses as error:
    print("cgroup")
else:
    print("rlimit" if ended.returncode else "nothing")
half = run(["true"], cpus=0.5, limits="best_effort", **options).achieved_limits["cpus"]
try:
    done = run(["true"], cpus=0.5, **options)
except LimitUnavailable as error:
    print(half == "none" and error.record.lines[-1].dest)
else:
    print(half == "cgroup" and done.record.lines[-1].dest)
"""
HELD = """
import sys
from nucleus_gvisor.runtime import Sandbox
box = Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None, sandbox_id="0" * 32, memory=200 << 20, cpus=1, pids=50)
print("ready", flush=True)
box.wait()
"""


def test_each_kind_of_caller_with_each_release(caller: Caller) -> None:
    """A memory hog and a fork bomb end, who has not more than asked is let be, and what cannot be had is refused."""
    done = caller.script(AS_CALLER, timeout=180)
    lines = done.stdout.splitlines()
    assert lines[:4] == ["begun", "alive", "begun", "True"], done.stderr
    achieved = json.loads(lines[4])
    assert achieved["memory"] in ("cgroup", "watch") and achieved["cpus"] in ("cgroup", "affinity")
    assert achieved["lifetime"] == "watch"
    assert lines[5:7] == ["as many as asked", achieved["pids"]]
    assert lines[7] in ("Failed", "Exec'd")


def test_root_has_cgroups(options: Options) -> None:
    """Where the hierarchy is the caller's to write, the kernel enforces all that it can."""
    done = run(["true"], memory=MEMORY, cpus=0.5, pids=20, **options)
    writable = os.access("/sys/fs/cgroup/memory", os.W_OK) or os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK)
    if os.geteuid() == 0 and writable:
        assert done.achieved_limits == {"memory": "cgroup", "cpus": "cgroup", "pids": "cgroup"}
    else:
        assert "none" not in done.achieved_limits.values()


def test_processor_time_is_held_back(options: Options, base: Path) -> None:
    """The kernel has made a busy guest wait; without a cgroup, it has bound all of it to one processor."""
    with Sandbox(**(options | {"runtime_dir": base}), cpus=1 if os.geteuid() else 0.1) as box:
        box.exec("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        if box.achieved_limits["cpus"] == "cgroup":
            (cgroup,) = (base / box.id).joinpath("cgroups").read_text().splitlines()
            counted = dict(line.split() for line in Path(cgroup, "cpu.stat").read_text().splitlines())
            assert int(counted["nr_throttled"]) > 0
        else:
            assert {len(os.sched_getaffinity(pid)) for pid in launching.descendants(box.pid)} == {1}


def test_a_fork_bomb_in_a_living_sandbox(make: MakeSandbox) -> None:
    """It ends the sandbox, and whatever is asked of that afterwards says why."""
    box = make(pids=20)
    expected = TooManyProcesses if box.achieved_limits["pids"] == "cgroup" else Error
    with pytest.raises(expected):
        box.exec("bash", "-c", BOMB, timeout=60)
    with pytest.raises(SandboxGone if expected is Error else expected):
        box.exec("true")


def test_a_lifetime_ends_a_sandbox_and_a_run(options: Options) -> None:
    """A process that ignores SIGTERM too; the error is a TimeoutError of subprocess's, with the output."""
    with Sandbox(lifetime=2.5, **options) as box:
        with pytest.raises(LifetimeExpired) as caught:
            box.exec("sh", "-c", "trap '' TERM; echo begun; while :; do sleep 1; done")
        assert caught.value.stdout == "begun\n"
        assert str(caught.value) == "the sandbox has lived for its 2.5 seconds, and was ended"
        with pytest.raises(LifetimeExpired):
            box.ps()
    with pytest.raises(TimeoutExpired) as expired:
        run(["sh", "-c", "trap '' TERM; echo begun; while :; do sleep 1; done"], lifetime=2.5, **options)
    error: Any = expired.value
    assert (type(error), error.stdout) == (LifetimeExpired, "begun\n")


def test_binary_output_without_end_costs_what_is_kept(first: Caller) -> None:
    """A command that prints what is no text, faster than anyone reads, ends at its limit; the sandbox goes on."""
    source = """
import resource, sys
from nucleus_gvisor.runtime import OutputLimit, Sandbox
with Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None) as box:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in (False, True):
        try:
            box.exec("cat", "/dev/urandom", max_output=1 << 20, text=text)
        except OutputLimit as error:
            print(type(error.stdout).__name__, 500_000 < len(error.stdout) <= 1 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10)
    print(box.exec("echo", "alive").stdout.strip())
"""
    done = first.script(source)
    assert done.stdout.splitlines() == ["bytes True", "str True", "True", "alive"], done.stderr


def test_a_killed_owner_leaves_no_cgroup(newer: Caller) -> None:
    """The next launch, or `gc`, removes what the owner cannot any more."""
    process = newer.mode.popen([newer.mode.python, "-W", "error", "-c", HELD, os.fspath(newer.runsc), newer.pin or ""])
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=30)
        below = launching.descendants(process.pid)
        listed = newer.mode.base / ("0" * 32) / "cgroups"
        cgroups = [Path(line) for line in listed.read_text().splitlines()] if listed.exists() else []
        assert all(path.is_dir() for path in cgroups)
        assert cgroups or os.geteuid() or newer.mode.name != "root" or not os.access("/sys/fs/cgroup/memory", os.W_OK)
        os.kill(process.pid, signal.SIGKILL)
    assert launching.gone(below) == {}
    launching.reap()
    done = newer.mode.cli("gc")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path for path in cgroups if path.exists()] == []
    assert not any((newer.mode.base / "locks").iterdir())


def test_a_run_leaves_no_cgroup(new_options: Options, base: Path) -> None:
    """Not when it ends by itself, not when it is ended, not when it could not be launched."""
    where = new_options | {"runtime_dir": base}
    run(["true"], memory=MEMORY, pids=20, **where)
    with pytest.raises(OutOfMemory):
        run(["python3", "-c", HOG], memory=MEMORY, **where)
    with pytest.raises(OutputLimit):
        run(["yes"], memory=MEMORY, max_output=1000, **where)
    assert sorted(path.name for path in base.iterdir()) == ["locks", "records"]
    assert list((base / "locks").iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 0},
        {"memory": 1.5},
        {"memory": True},
        {"cpus": 0},
        {"cpus": float("nan")},
        {"cpus": "1"},
        {"pids": 0},
        {"pids": -1},
        {"lifetime": 0},
        {"lifetime": float("inf")},
        {"enforcement": "off"},
        {"enforcement": "perhaps"},
    ],
    ids=str,
)
def test_what_is_no_limit(wrong: dict[str, Any]) -> None:
    """It is refused before anything is touched."""
    with pytest.raises(BadArgument, match=f"{next(iter(wrong)) if 'enforcement' not in wrong else 'limits'} refused"):
        Limits(**wrong)


# ---- cgroups ----


def test_the_nearest_cgroup_with_most_controllers(base: Path) -> None:
    """In v2 a process is in one cgroup: of those upwards that are ours to write, the first with most of what is asked.

    Plain directories stand in for the hierarchy: a host whose v1 has the controllers has none left for v2.
    """
    tree = {"": "memory cpu pids", "a": "memory pids", "a/b": "", "a/b/c": "memory"}
    for folder, controllers in tree.items():
        (base / folder).mkdir(exist_ok=True)
        (base / folder / "cgroup.procs").touch()
        (base / folder / "cgroup.subtree_control").write_text(f"{controllers}\n")
    top, own = os.fspath(base), os.fspath(base / "a/b/c")

    def found(*wanted: str) -> dict[str, str]:
        places = limits._unified(own, top, list(wanted))
        assert all(place.own == own and place.unified for place in places.values())
        return {limit: os.path.relpath(place.directory, top) for limit, place in places.items()}

    assert found("memory") == {"memory": "a/b/c"}
    assert found("pids") == {"pids": "a"}
    assert found("memory", "pids") == {"memory": "a", "pids": "a"}
    assert found("memory", "cpus", "pids") == dict.fromkeys(("memory", "cpus", "pids"), ".")
    (base / "cgroup.procs").unlink()
    assert found("memory", "cpus", "pids") == {"memory": "a", "pids": "a"}


@pytest.mark.parametrize("swap", [True, False])
def test_what_a_unified_cgroup_is_told(base: Path, swap: bool) -> None:
    """The files of the kernel's cgroup-v2.rst, in its units: all of the sandbox dies, and swap is no way around.

    On plain files, as above; where v2 has the controllers, every test with limits runs on the real ones.
    """
    files = {"memory.max": "209715200", "memory.oom.group": "1", "cpu.max": "50000 100000", "pids.max": "176"}
    files |= {"memory.swap.max": "0"} if swap else {}
    for name in files:
        (base / name).touch()
    held = limits.Held(Limits(memory=MEMORY, cpus=0.5, pids=20))
    held._made[os.fspath(base)] = limits._Place(os.fspath(base.parent), os.fspath(base.parent), True)
    for limit in ("memory", "cpus", "pids"):
        held._of[limit] = os.fspath(base)
        held._set(limit, "systrap")
    assert {path.name: path.read_text() for path in base.iterdir()} == files
    assert held.watch == {}


def test_a_process_that_has_gone_is_held_by_nobody() -> None:
    """What the kernel refuses is not said to be enforced."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    held = limits.Held(Limits(cpus=1, enforcement=Enforcement.BEST_EFFORT))
    assert held._otherwise("cpus", gone.pid, "systrap") == "none"


def test_a_cgroup_that_cannot_be_joined(base: Path) -> None:
    """Nothing runs without it, unless the caller said so; what was made is removed afterwards."""
    if not limits._places(("memory",)):
        pytest.skip("needs a memory cgroup that the caller can write")
    gone = subprocess.Popen(["true"])
    gone.wait()
    directory = os.open(base, os.O_PATH | os.O_DIRECTORY)
    try:
        for enforcement in (Enforcement.REQUIRED, Enforcement.BEST_EFFORT):
            held = limits.Held(Limits(memory=MEMORY, enforcement=enforcement))
            if enforcement is Enforcement.REQUIRED:
                with pytest.raises(LimitUnavailable, match="No such process"):
                    held.hold(gone.pid, directory, "systrap")
            else:
                assert held.hold(gone.pid, directory, "systrap") == {"memory": "none"}
            (cgroup,) = map(Path, (base / "cgroups").read_text().splitlines())
            assert cgroup.is_dir()
            remove_cgroups(base)
            assert not cgroup.exists()
            (base / "cgroups").unlink()
    finally:
        os.close(directory)


def remove_cgroups(base: Path) -> list[OSError]:
    """What is left of the cgroups that the list in `base` names."""
    problems: list[OSError] = []
    above = os.open(base.parent, os.O_RDONLY)
    try:
        limits.remove(above, base.name, problems.append)
    finally:
        os.close(above)
    return problems


def test_removing_cgroups_that_are_not_there_or_stay(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that was killed has listed what it never made; what does not empty is told of; names of others stay."""
    monkeypatch.setattr(limits, "PATIENCE", 0.05)
    full, other = base / f"{limits.PREFIX}full", base / "other"
    for path in (full, full / "inner", other):
        path.mkdir()
    (base / "cgroups").write_text(f"{base}/{limits.PREFIX}never-made\n{full}\n{other}\n")
    (problem,) = remove_cgroups(base)
    assert (problem.errno, problem.filename) == (errno.ENOTEMPTY, os.fspath(full))
    assert other.is_dir()


MAPPED = """
import os
from nucleus_gvisor.runtime import _linux, limits
_linux.unshare(_linux.CLONE_NEWUSER)
print(limits._host_uid(), flush=True)
input()
os.setresuid(3, 3, 3)
print(limits._host_uid())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map several users")
def test_who_a_user_of_a_namespace_is_outside(first: Caller) -> None:
    """As the mapping that has it says; without one, nobody but root can be assumed."""
    process = first.mode.popen([first.mode.python, "-c", MAPPED], stdin=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        Path(f"/proc/{process.pid}/uid_map").write_text("0 100000 1\n1 200000 5\n")
        assert process.communicate("go\n", timeout=30) == ("200002\n", "")


# ---- on the command line ----


def test_limits_on_the_command_line(either: Caller) -> None:
    """Each ends the guest with a code and a line of its own, and the JSON object has what was achieved."""
    done = either.run("--memory", "200M", "--json", command=["python3", "-c", HOG])
    data = launching.summary(done)
    assert (done.returncode, data["limit"]) == (137, "memory")
    assert data["limits"]["memory"] in ("cgroup", "watch")
    assert done.stderr.endswith("nucleus-gvisor: ended for its limit: --memory\n")
    done = either.run("--cpus", "1", "--pids", "20", "--json", command=["echo", "alive"])
    data = launching.summary(done)
    assert (done.returncode, data["limit"], launching.guest_output(done)) == (0, None, "alive\n")
    assert set(data["limits"]) == {"cpus", "pids"} and "none" not in data["limits"].values()
    done = either.run("--max-output", "1000", command=["yes"])
    assert (done.returncode, done.stdout) == (137, "y\n" * 500)
    assert done.stderr == "nucleus-gvisor: ended for more output than --max-output\n"


@pytest.mark.parametrize("flags", [["--memory", "1T"], ["--memory", "0"], ["--cpus", "nan"], ["--pids", "-1"]], ids=str)
def test_what_is_no_limit_on_the_command_line(first: Caller, flags: list[str]) -> None:
    """One line says so, and nothing runs."""
    done = first.run(*flags, command=["echo", "ran"])
    assert done.returncode in (2, 125) and done.stdout == ""
    assert "expected" in done.stderr
