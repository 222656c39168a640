"""What is broken on purpose is noticed, and what is said names the cause.

Each case changes a copy of the project, in one place, and runs there the command that a user would run, for the tie
that is to notice. Nothing is replaced while it runs: it is the tie itself that finds the fault.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.spec import records, tlc
from tests.support.places import ROOT
from tests.support.records import seeded

PARTS = ("model", "runtime", "spec", "tests")
SPEC, MC, TABLE = "spec/GVisorRuntime.tla", "spec/MCGVisorRuntime.cfg", "model/table.py"


@pytest.fixture
def copy(base: Path) -> Path:
    """The project's own files; `names` in it has the tree of links that gives the packages their import names."""
    for part in PARTS:
        shutil.copytree(ROOT / part, base / part, ignore=shutil.ignore_patterns("__pycache__"))
    names = base / "names/nucleus_gvisor"
    names.mkdir(parents=True)
    for part in PARTS[:3]:
        (names / part).symlink_to(base / part)
    return base


def change(copy: Path, path: str, old: str, new: str) -> None:
    """Replace `old`, which must stand there once."""
    text = (copy / path).read_text()
    assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
    (copy / path).write_text(text.replace(old, new))


def cli(copy: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and all output of `nucleus-gvisor ARGUMENTS` in the copy."""
    # A copy is not measured: its files are gone when the report is made.
    env = {"PATH": os.environ["PATH"], "HOME": str(copy), "PYTHONPATH": str(copy / "names"), **variables}
    command = [sys.executable, "-m", "nucleus_gvisor.runtime.cli", *arguments]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_the_copy_itself_holds(copy: Path) -> None:
    """Without a change, the copy passes: what the cases below are told is told of their change."""
    code, said = cli(copy, "spec", "check", "must-fail-refinement", "correspondence")
    # The document is written anew at leisure; that it is stale is no fault of the copy.
    faults = [
        line for line in said.splitlines() if line.startswith("FAILED") and "spec correspondence --write" not in line
    ]
    assert (code in (0, 1), faults) == (True, []), said
    where = "import nucleus_gvisor.spec.ties as t, nucleus_gvisor.model as m; print(t.__file__, m.__file__)"
    env = {"PYTHONPATH": str(copy / "names")}
    found = subprocess.run([sys.executable, "-c", where], env=env, capture_output=True, text=True, check=True)
    assert all(Path(path).is_relative_to(copy) for path in found.stdout.split())


CASES = {
    "a guard removed from the specification": (
        SPEC, "/\\ BaseSound /\\ BundleSound /\\ LockFree\n", "/\\ BaseSound /\\ BundleSound\n",
        ["graph"], r"guard LockFree of Prepare",
    ),
    "the same guard removed from the model": (
        TABLE, "g.BundleSound, g.LockFree)", "g.BundleSound)",
        ["bisimulation"], r"Prepare at Resolved \(.*lock=theirs.*\) .*: the specification asks guard LockFree of "
        r"Prepare, the model does not",
    ),
    "the same guard always true in the model": (
        "model/guards.py", 'return f.lock == "free"', "return True",
        ["bisimulation"], r"Prepare at Resolved .* one says less in model/guards.py",
    ),
    "an action deleted from Next": (
        SPEC, "\\/ FailBase \\/ FailBundle \\/ FailBusy", "\\/ FailBase \\/ FailBundle",
        ["graph"], r"FailBusy is never taken any more: is it still in Next",
    ),
    "an INVARIANT line deleted": (
        MC, "FailedLeavesNothing ", "",
        ["MCGVisorRuntime"], r"MCGVisorRuntime.cfg no longer asks for FailedLeavesNothing",
    ),
    "a bound that shrinks": (
        "spec/must-fail-no-fairness.cfg", "Launches <- MCLaunches", "Launches <- OneLaunch",
        ["must-fail-no-fairness"], r"must-fail-no-fairness.cfg: distinct: \d+, expected \d+",
    ),
    "a term of fairness dropped": (
        SPEC, "WF_vars(GuestStarts) /\\ WF_vars(Collect)\n\nSpec", "WF_vars(GuestStarts)\n\nSpec",
        ["MCGVisorRuntime"], r"CrashCollected is violated .* where the model goes on with Collect: .* in Fairness",
    ),
    "a transition added to the table": (
        TABLE, "AFTERWARDS = (\n", 'AFTERWARDS = (\n    Row("Tidy", (S.FAILED,), None, (g.LockFree,), _same),\n',
        ["bisimulation"], r"Tidy is in the model's tables, and is no step of the specification",
    ),
    "a check removed from a step of the runtime": (
        "runtime/steps/stage.py", "    now = Snapshot.of(file.fd)\n", "    return True\n",
        ["replay:FailChanged"], r"FailChanged at Prepared \(.*held=rewritten.*SourceUnchanged of FailChanged",
    ),
    "a citation that leads nowhere": (
        "runtime/steps/resolve.py", "Spec: GVisorRuntime!Resolve.", "Spec: GVisorRuntime!Resolved.",
        ["correspondence"], r"runtime/steps/resolve.py:\d+: cites GVisorRuntime!Resolved, which does not exist",
    ),
    "a verifier that believes every digest": (
        "model/replay.py", "if record.prev != self.head:", "if False:",
        ["records"], r"a digest with one bit flipped.*: the offline verifier says .*, expected line \d+: does not name",
    ),
    "a cause that the model does not know": (
        SPEC, '/\\ Fail("Prepared", "no_space", {})', '/\\ Fail("Prepared", "no_room", {})',
        ["MCGVisorRuntime"], r"TypeOK is violated in MCGVisorRuntime.cfg: after .*FailSpace",
    ),
    "a specification that is none": (
        SPEC, "Taken == held", "Taken == == held",
        ["must-fail-refinement"], r"TlcFailed: TLC exited with 150 on must-fail-refinement.cfg",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_broken_is_named(case: str, copy: Path) -> None:
    """The tie fails, and one of its lines says what was done."""
    path, old, new, names, words = CASES[case]
    change(copy, path, old, new)
    code, said = cli(copy, "spec", "check", *names)
    told = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert code == 1 and any(re.search(words, line) for line in told), said


# ---- records ----


def launch() -> Sequence[bytes]:
    """The lines of a launch that ran."""
    machine = LaunchMachine(fresh(method="copy", pin="match"), NoSteps(), launch="a" * 32, container="job")
    for action in ("Resolve", "Prepare", "StageCopy", "ConfineLocked", "Exec"):
        machine.fire(action)
    return records.text(machine.records).splitlines(keepends=True)


def flipped(lines: Sequence[bytes]) -> bytes:
    """One bit of the digest that line 3 has of line 2."""
    name = b'"prev":"'
    at = lines[3].index(name) + len(name)
    digit = f"{int(lines[3][at : at + 1], 16) ^ 1:x}".encode()
    return b"".join([*lines[:3], lines[3][:at] + digit + lines[3][at + 1 :], *lines[4:]])


@pytest.mark.slow
def test_a_damaged_record_is_named_by_both_judges(base: Path) -> None:
    """A flipped bit, two lines swapped, and a cut tail: file, line and reason, by TLC and without it."""
    lines = launch()
    damaged = {
        "flipped": (flipped(lines), "line 3", "the hash of the line before"),
        "swapped": (b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]), "line 2", "number"),
        "cut": (b"".join(lines)[:-30], "line 5", "the last line is not ended"),
    }
    (base / "whole").write_bytes(b"".join(lines))
    for name, (text, _, _) in damaged.items():
        (base / name).write_bytes(seeded(text))
    for judge in (["spec", "trace"], ["audit", "verify"]):
        done = subprocess.run(
            [sys.executable, "-m", "nucleus_gvisor.runtime.cli", *judge, *(str(base / n) for n in ("whole", *damaged))],
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = {name: line for line in done.stdout.splitlines() for name in damaged if f"{base / name}" in line}
        assert done.returncode == 1 and not re.search(r"whole.*REJECTED|REJECTED.*whole", done.stdout), done.stdout
        for name, (_, where, why) in damaged.items():
            assert "REJECTED" in said[name] and where in said[name] and why in said[name], done.stdout + done.stderr


# ---- what cannot be run ----


def test_another_jar_is_named(base: Path) -> None:
    """A checker that is not the pinned one gives no verdict: neither 0 nor 1."""
    jar = base / "tla2tools.jar"
    jar.write_bytes(tlc.jar().read_bytes() + b"\0")
    code, said = cli_here("reached", NUCLEUS_TLA2TOOLS_JAR=str(jar))
    assert code == 2 and re.search(rf"NOT RUN safety: {jar} is not the pinned TLC: SHA-256 \w+, expected \w+", said), (
        said
    )


def test_a_missing_java_is_named(base: Path) -> None:
    """What to install is said."""
    code, said = cli_here("reached", NUCLEUS_JAVA=str(base / "java"))
    assert code == 2 and re.search(r"NOT RUN safety: no Java at .*: pip install 'nucleus-gvisor\[verify\]'", said), said


def cli_here(*names: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nucleus_gvisor.runtime.cli", "spec", "check", *names],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_installed_package_has_no_replay(copy: Path) -> None:
    """Outside of a checkout, what lies among the tests is not run, and that is said, not passed over."""
    shutil.rmtree(copy / "tests")
    code, said = cli(copy, "spec", "check", "replay", "correspondence")
    assert code == 2, said
    for tie in ("replay", "correspondence"):
        assert re.search(rf"NOT RUN {tie}: .* is no checkout", said), said
