"""`nucleus-gvisor spec check`: all ties hold, and what it says follows from what it found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.conformance import explore
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import check, graph, mutants, ties, tlc
from nucleus_gvisor.spec.ties import CannotRun, Ended, Found, Task
from tests.support.places import ROOT

Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What the command finds; the one run of everything that is slow."""
    file = tmp_path_factory.mktemp("check") / "result.json"
    command = [sys.executable, "-m", "nucleus_gvisor.runtime.cli", "spec", "check", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert file.is_file(), done.stdout + done.stderr
    told: Result = json.loads(file.read_text())
    return {**told, "stdout": done.stdout, "returncode": done.returncode}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the whole command is in the fixture, and two busy cores are slow
@pytest.mark.parametrize("tie", ties.TIES)
def test_each_tie_holds(tie: str, result: Result) -> None:
    """Nothing is found against it, and it was run.

    Spec: GVisorRuntime!Next.
    """
    row = result["ties"][tie]
    assert (row["verdict"], row["findings"], row["missing"]) == ("holds", [], [])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", check.load())
def test_each_configuration_is_answered_as_expected(name: str, result: Result) -> None:
    """The verdict, the violated properties, the counterexample and the size of the search are the pinned ones."""
    assert result["tasks"][name]["findings"] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_figures_are_of_the_whole(result: Result, record_property: Callable[[str, object], None]) -> None:
    """Every edge is walked, replayed and told of, every non-edge refused, every mutant that can be is killed."""
    committed = graph.load()
    edges, figures = len(committed.edges), {tie: row["figures"] for tie, row in result["ties"].items()}
    assert figures["graph"] == {"states": len(committed.nodes), "edges": edges, "actions": len(committed.actions)}
    assert figures["bisimulation"]["edges"] == edges == len(explore().edges)
    ours = sum(action in ROWS for _, action, _ in committed.edges)
    assert figures["bisimulation"]["refusals"] == len(ROWS) * len(committed.nodes) - ours
    assert figures["replay"]["edges found out"] + figures["replay"]["told"] == edges == figures["replay"]["of"]
    assert figures["replay"]["refusals"] > 3_000
    killed, equivalent = figures["mutants"]["killed"], figures["mutants"]["equivalent"]
    assert killed == figures["mutants"]["of"] and killed + equivalent == len(mutants.load())
    assert figures["liveness"]["properties hold"] == figures["liveness"]["refuted where they must be"]
    for tie, row in figures.items():
        record_property(tie, row)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command_says_what_it_found(result: Result) -> None:
    """Exit code 0, a line for each task as it ends, and a table with every tie."""
    lines = result["stdout"].splitlines()
    of = len(result["tasks"])
    assert result["returncode"] == ties.HOLDS == result["exit"], result["stdout"]
    assert [line.split()[0] for line in lines[:of]] == [f"{n}/{of}" for n in range(1, of + 1)]
    assert all(re.match(rf"{tie} +│ holds", next(li for li in lines if li.startswith(tie))) for tie in ties.TIES)
    assert re.fullmatch(rf"{len(ties.TIES)} of {len(ties.TIES)} ties, [\d.]+ s: all holds", lines[-1])


# ---- what is run ----


def test_everything_is_run() -> None:
    """Each configuration and each tie has a task, and the longest begin first."""
    whole = ties.tasks()
    assert {tie for task in whole for tie in task.ties} == set(ties.TIES)
    assert {task.name for task in whole} >= set(check.load())
    weights = [task.weight for task in whole]
    assert weights == sorted(weights, reverse=True)


def test_what_is_named_is_run() -> None:
    """A tie means all tasks that speak for it; what is unknown is refused, with what there is."""
    assert [task.name for task in ties.tasks(["reached"])] == ["reached"]
    assert [task.name for task in ties.tasks(["graph"])] == [check.DUMPED]
    assert {task.name for task in ties.tasks(["refinement", "mutants"])} >= {"must-fail-refinement", "mutants"}
    assert [task.name for task in ties.tasks(["replay:Exec", "replay:Resolve"])] == ["replay"]
    with pytest.raises(ValueError, match=r"no configuration: grpah, reachd \(there are AllLaunches,"):
        ties.tasks(["grpah", "reachd"])


def test_each_property_has_a_kind() -> None:
    """What is about time and what is about refinement is told apart from what one state or one step can break."""
    kinds = {name: check.kind(name) for c in check.load().values() for name in check.checks(c.path)}
    assert {name for name, kind in kinds.items() if kind == check.REFINEMENT} == {"RefinesAbstract"}
    promises = mutants.properties(mutants.Module((check.HERE / "GVisorRuntime.tla").read_text()), check.HERE).promises
    life = {"EndsWithItsOwner", "GoneIsGone", "DoneIsDone", "NoneOutlivesTheSandbox", "LimitHolds", "EveryCallEnds"}
    assert {name for name, kind in kinds.items() if kind == check.LIVENESS} == {*promises, "LeftoversGo", *life}


# ---- what is said ----


def task(name: str, do: Callable[[], Mapping[str, Found]], *of: str) -> Task:
    return Task(name, of or (name,), 1, do)


def ended(*chosen: Task) -> list[Ended]:
    return list(ties.run(chosen))


def sound() -> Mapping[str, Found]:
    return {"records": Found({"accepted": 2})}


def unsound() -> Mapping[str, Found]:
    return {"mutants": Found({"killed": 1, "of": 2}, ("Exec: without Alive survives",))}


def unable() -> Mapping[str, Found]:
    raise CannotRun("no disk: buy one")


def broken() -> Mapping[str, Found]:
    raise RuntimeError("came apart")


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ([task("records", sound)], 0),
        ([task("records", sound), task("replay", unable)], 2),
        ([task("mutants", unsound), task("replay", unable)], 1),
        ([task("records", sound), task("graph", broken)], 1),
        ([], 2),
    ],
)
def test_any_doubt_is_in_the_exit_code(chosen: list[Task], code: int) -> None:
    """What fails outweighs what could not be run, a crash is a failure, and nothing at all shows nothing."""
    assert ties.verdict(ties.rows(ended(*chosen), whole=False)) == code


def test_a_row_has_figures_findings_and_what_is_missing() -> None:
    """Counts add up, names are counted once, and whatever was raised is told with its text."""

    def more(*names: str) -> Callable[[], Mapping[str, Found]]:
        return lambda: {"safety": Found({"states": 3, "properties hold": frozenset(names)})}

    whole = ended(task("one", more("A", "B"), "safety"), task("two", more("B"), "safety"), task("graph", broken),
                  task("replay", unable), task("mutants", unsound))  # fmt: skip
    found = {row.tie: row for row in ties.rows(whole, whole=False)}
    assert found["safety"].figures == {"states": 6, "properties hold": 2}
    assert found["graph"].findings == ("graph: RuntimeError: came apart",)
    assert (found["replay"].said, found["replay"].missing) == ("NOT RUN", ("no disk: buy one",))
    assert (found["mutants"].said, found["mutants"].told) == ("FAILS", "1 killed of 2")


def test_what_nothing_refutes_is_doubted() -> None:
    """A promise that holds, and is refuted by no configuration, may hold of everything."""
    held = Found({"properties hold": frozenset({"A", "B"}), "refuted where they must be": frozenset({"A"})})
    row = ties.rows(ended(task("one", lambda: {"liveness": held}, "liveness")), whole=True)[0]
    assert row.findings == ("B is refuted by no configuration: it may hold of everything",)


def verdict(code: int = tlc.OK, **more: Any) -> tlc.Verdict:
    given: dict[str, Any] = dict(exit=code, violated=(), initial=1, generated=1, distinct=1, depth=1, coverage={},
                                 trace=(), seconds=0.0, text="")  # fmt: skip
    return tlc.Verdict(**{**given, **more})


@pytest.mark.parametrize(
    ("change", "seen_by", "kind", "words"),
    [
        ({"checks": ["TypeOK"]}, verdict(), "safety", "no longer asks for PinHonoured"),
        ({"checks": ["TypeOK", "PinHonoured", "New"]}, verdict(), "safety", "asks for New, which manifest.json"),
        (
            {"violated": ["PinHonoured"], "exit": 12},
            verdict(12),
            "safety",
            "PinHonoured is violated in AllLaunches.cfg",
        ),
        ({"distinct": 2}, verdict(), "safety", "distinct: 2, expected 1"),
        ({}, verdict(coverage={"Exec": 0, "Resolve": 1}), "safety", "action Exec is never taken"),
    ],
)
def test_a_configurations_difference_is_named(
    change: dict[str, object], seen_by: tlc.Verdict, kind: str, words: str
) -> None:
    """Each way to be unlike the manifest has a line of its own, and no line more."""
    expected = {"exit": 0, "violated": [], "checks": ["TypeOK", "PinHonoured"], "distinct": 1}
    one = check.Configuration("AllLaunches", "MCGVisorRuntime", "", (), expected)
    ((told, line),) = check.findings(one, {**expected, **change}, seen_by)
    assert told == kind and words in line


def test_what_must_fail_and_does_not_is_named() -> None:
    """A configuration that TLC finds nothing against any more says which property it was to refute."""
    expected = {"exit": 13, "violated": ["GuestRuns"], "checks": ["GuestRuns"]}
    one = check.Configuration("must-fail-unfair-GuestStarts", "MustFail", "", (), expected)
    assert list(check.findings(one, {**expected, "exit": 0, "violated": []}, verdict())) == [
        ("liveness", "GuestRuns must be refuted in must-fail-unfair-GuestStarts.cfg, and TLC finds nothing against it")
    ]


def test_writing_changes_the_manifest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--write` takes what TLC shows, for what is named; everything else stays, and ties have nothing to write."""
    name, manifest = "must-fail-refinement", tmp_path / "manifest.json"
    known = json.loads(check.MANIFEST.read_text())
    manifest.write_text(
        json.dumps({**known, name: {**known[name], "expected": {**known[name]["expected"], "depth": 99}}})
    )
    monkeypatch.setattr(check, "MANIFEST", manifest)
    monkeypatch.setattr(check.load, "__defaults__", (manifest,))
    assert ties.main([name]) == ties.FAILS
    assert ties.main(["--write", name]) == ties.HOLDS
    assert json.loads(manifest.read_text()) == known
    with pytest.raises(SystemExit):
        ties.main(["--write", "mutants"])
