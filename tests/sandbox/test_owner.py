"""Sandboxes end with their owner, whenever and however that ends; and others can list, end and collect them."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import LaunchError, owner
from nucleus_gvisor.runtime.cleanup import owner_line, state_component
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.support.places import mounts_below

pytestmark = pytest.mark.real

MOMENTS = 50
LOOP = """
import sys
from nucleus_gvisor.runtime import Sandbox, run
options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
threads = sys.argv[3] == "threads"
if threads:
    import threading, time
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("started", flush=True)
while True:
    with Sandbox(**options) as box:
        print("open", flush=True)
        box.popen(["sleep", "600"])
        box.exec("sh", "-c", "sleep 600 & true")
        print("done", flush=True)
    run(["sleep", "0.1"], **options)
"""
HELD = """
import sys, threading
from nucleus_gvisor.runtime import Sandbox
with Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None, sandbox_id="held") as box:
    print("ready", flush=True)
    print(box.wait(), flush=True)
"""
FORKED = """
import os, sys, time
from nucleus_gvisor.runtime import Sandbox
box = Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None)
if os.fork() == 0:
    os.close(1)
    time.sleep(2)
    os._exit(0)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def started(caller: Caller, source: str, *arguments: str) -> subprocess.Popen[str]:
    """A program that has printed its first line."""
    given = [os.fspath(caller.runsc), caller.pin or "", *arguments]
    process = caller.mode.popen([caller.mode.python, "-W", "error", "-c", source, *given])
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line in ("ready\n", "started\n"), process.communicate(timeout=30)
    return process


def ended(process: subprocess.Popen[str], caller: Caller, below: dict[int, str]) -> None:
    """Nothing of what a program had is left, but what the next launch, or `gc`, collects."""
    assert launching.gone(below) == {}
    launching.reap()
    assert mounts_below(caller.mode.base) == []
    collected = caller.mode.cli("gc")
    assert (collected.returncode, collected.stderr) == (0, "")
    assert sorted(p.name for p in caller.mode.base.iterdir()) in (["locks"], ["locks", "records"], [])
    assert not any((caller.mode.base / "locks").glob("*"))


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("threads", ["one", "threads"])
def test_the_owner_is_killed_at_any_moment(first: Caller, threads: str) -> None:
    """SIGKILL at fifty moments of start, exec, close and run: no process, mount or file stays but the records."""
    chance = random.Random(f"moments {threads}")
    for moment in range(MOMENTS):
        before = launching.descendants(os.getpid())
        process = started(first, LOOP, threads)
        time.sleep(chance.random() * 1.2)
        process.kill()
        process.communicate(timeout=30)
        below = {p: what for p, what in launching.descendants(os.getpid()).items() if before.get(p) != what}
        try:
            ended(process, first, below)
        except AssertionError as error:
            raise AssertionError(f"moment {moment}: {error}") from error


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_owner_ends(either: Caller, number: int) -> None:
    """However it ends, its sandbox does, and all in it."""
    process = started(either, HELD)
    below = launching.descendants(process.pid)
    process.send_signal(number)
    process.communicate(timeout=30)
    ended(process, either, below)


def test_a_child_of_the_owners_does_not_keep_it(newer: Caller) -> None:
    """A forked child that holds copies of all descriptors outlives its parent; the sandbox does not."""
    before = launching.descendants(os.getpid())
    process = started(newer, FORKED)
    process.wait(timeout=30)
    deadline = time.monotonic() + 1.5  # before the child ends
    while time.monotonic() < deadline and len(names := running(before)) > 1:
        time.sleep(0.02)
    assert [name.split()[0].startswith("python") for name in names.values()] == [True]
    process.communicate(timeout=30)
    ended(process, newer, names)


def running(before: dict[int, str]) -> dict[int, str]:
    return {p: what for p, what in launching.descendants(os.getpid()).items() if before.get(p) != what}


def test_the_attendant_is_killed(first: Caller) -> None:
    """The kernel does its work where it can: for sandboxes that the owner's initial thread made."""
    process = started(first, HELD)
    (attendant,) = [p for p, what in launching.descendants(process.pid).items() if what.startswith("ngv-attendant")]
    below = launching.descendants(process.pid)
    os.kill(attendant, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=30)
    left = launching.gone(below, 2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}


def test_ps_and_kill(either: Caller) -> None:
    """Each sandbox is listed with its supervisor and its owner, and ends when it is told to; once, and by its name."""
    process = started(either, HELD)
    below = launching.descendants(process.pid)
    (line,) = either.mode.cli("ps", "--json").stdout.splitlines()
    listed = json.loads(line)
    assert (listed["id"], listed["owner"]) == ("held", process.pid)
    assert below[listed["pid"]]
    assert listed["seconds"] >= 0
    table = either.mode.cli("ps").stdout.splitlines()
    assert [row.split()[-1] for row in table] == ["ID", "held"]
    assert either.mode.cli("kill", "held").returncode == 0
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("-9\n", "", 0)
    again = either.mode.cli("kill", "held")
    assert (again.returncode, again.stdout) == (125, "")
    assert again.stderr.startswith("nucleus-gvisor: no such sandbox runs; observed: held")
    assert either.mode.cli("ps", "--json").stdout == ""
    ended(process, either, below)


def test_ps_shows_runs_as_well(newer: Caller) -> None:
    """What the command line runs is listed like any other."""
    with newer.popen("--id", "cli-run", command=["sh", "-c", "echo ready; sleep 60"]) as process:
        with launching.started(process):
            (line,) = newer.mode.cli("ps", "--json").stdout.splitlines()
            assert json.loads(line)["id"] == "cli-run"
            assert newer.mode.cli("kill", "cli-run").returncode == 0
            assert process.wait(timeout=30) == 137


@pytest.fixture
def named(base: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start processes whose arguments and locks are those of a supervisor."""
    (base / "locks").mkdir(mode=0o700)
    with ExitStack() as stack:

        def start(name: str, word: str = "run") -> subprocess.Popen[bytes]:
            command = ["sh", "-c", "echo; read line", word, name]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == b"\n"  # it has executed sh
            (base / "locks" / state_component(name)).write_bytes(owner_line(process.pid))
            return process

        yield start


def test_only_the_named_one_is_ended(base: Path, named: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """Of several, and never a process that has only the number of the one that was listed."""
    processes = {name: named(name) for name in ("one", "two")}
    first, second = owner.running(base)
    assert {found.id: found.pid for found in (first, second)} == {name: p.pid for name, p in processes.items()}
    assert owner.kill(second.id, base).pid == second.pid
    assert (processes[second.id].wait(), processes[first.id].poll()) == (-signal.SIGKILL, None)


def test_a_number_that_was_given_again(
    base: Path, named: Callable[[str], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that ended just before, and whose number somebody else has now: he is not killed."""
    process = named("one")
    (listed,) = owner.running(base)
    pid, start, *rest = listed.line.split()
    stale = replace(listed, line=b" ".join([pid, b"%d" % (int(start) - 1), *rest]))
    monkeypatch.setattr(owner, "running", lambda _: [stale])
    assert owner.kill("one", base) == stale
    assert process.poll() is None


def test_what_is_no_sandbox_is_not_listed(base: Path, named: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Launches that have not come to runsc, dead ones, those of other pid namespaces, and what is no lock at all."""
    named("launching", "sh")
    locks = base / "locks"
    line = (locks / state_component("launching")).read_bytes()
    (locks / state_component("dead")).touch()
    (locks / state_component("elsewhere")).write_bytes(line.replace(b"pid:[", b"pid:[9"))
    (locks / state_component("folder")).mkdir()
    (locks / state_component("link")).symlink_to(state_component("launching"))
    assert owner.running(base) == []


def test_locks_that_are_none(base: Path) -> None:
    """Refused as a launch refuses them, with no descriptor left open."""
    (base / "locks").touch()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LaunchError, match="locks"):
        owner.running(base)
    assert os.listdir("/proc/self/fd") == before


def test_nothing_to_list_in_a_new_place(newer: Caller, base: Path) -> None:
    """No sandboxes, and no complaint; a place that is not sound is refused as a launch refuses it."""
    assert newer.mode.cli("gc").returncode == 0
    assert newer.mode.cli("ps", "--json").stdout == ""
    base.chmod(0o755)
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    refused = newer.mode.cli("ps", "--artifact-base", base / "open/x")
    assert refused.returncode == 125
    assert os.fspath(base / "open") in refused.stderr
