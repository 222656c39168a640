"""Limits: a guest that takes more than it may ends, whoever launched it, and the caller is told of what."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    BadArgument,
    Error,
    LifetimeExpired,
    Limits,
    OutOfMemory,
    OutputLimit,
    Sandbox,
    SandboxGone,
    TimeoutExpired,
    TooManyProcesses,
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
