"""Hypothesis looks for sequences that the walks do not have: specification, stand-in and real runsc in lockstep."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.stateful import run_state_machine_as_test

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.model.states import LaunchState
from tests.conformance.edges import askable, graph, known
from tests.conformance.real import RealDriver
from tests.conformance.world import Site
from tests.conftest import Release

Record = Callable[[str, object], None]


def not_found_out(edge: c.Edge) -> bool:
    """The steps that no driver of the runtime can take: those of the table."""
    return known(edge) is not None


def everyday(machine: Any, examples: int, steps: int, number: int | None = None, **how: Any) -> None:
    """One run as `make test` has it; with a `number`, one that can be had again.

    Without Hypothesis's own shrinking: `state_machine` shortens by itself, to fewer steps and in less time.
    """
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    how |= {"suppress_health_check": list(HealthCheck), "phases": phases}
    if number is not None:
        machine, how = seed(number)(machine), {"database": None, **how}
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps, **how))


def reachable(graph: c.Graph, leave_out: c.Chooser) -> set[c.Edge]:
    """The edges that are not left out, and lie behind none that are."""
    nodes, found = set(graph.initial), set[c.Edge]()
    kept = [edge for edge in graph.edges if not leave_out(edge)]
    while new := {edge for edge in kept if edge.source in nodes} - found:
        found |= new
        nodes |= {edge.target for edge in new}
    return found


def came_far(taken: set[c.Edge], share: int, graph: c.Graph, leave_out: c.Chooser = lambda _: False) -> None:
    """The run came to Exec'd, failed for every cause that can be had, and took one edge in `share` at least."""
    within = reachable(graph, leave_out)
    assert taken <= within
    assert {edge.action for edge in taken} == {edge.action for edge in within}
    assert {edge.target.facts.cause for edge in taken} == {edge.target.facts.cause for edge in within}
    assert any(edge.target.facts.state is LaunchState.EXECD for edge in taken)
    assert len(taken) * share >= len(within), f"{len(taken)} of {len(within)}"


def test_specification_alone(record_property: Record) -> None:
    """The oracle keeps its own properties whatever happens, and a run comes far: a third of the graph at least."""
    taken = set[c.Edge]()
    everyday(c.state_machine(lambda: [c.ModelDriver()], taken=taken), 10, 500)
    record_property("edges", len(taken))
    came_far(taken, 3, graph())


@pytest.mark.slow
def test_more_disturbances_than_the_graph_has() -> None:
    """The same where the environment may act twice as often."""
    launches = [node._replace(budget=2) for node in c.usual_launches()]
    everyday(c.state_machine(lambda: [c.ModelDriver()], launches), 10, 200)


@pytest.mark.slow
def test_specification_and_runtime(driver: RealDriver, tmp_path: Path, record_property: Record) -> None:
    """The real runtime around the stand-in does what the specification does, in sequences that nobody chose."""
    taken = set[c.Edge]()
    machine = c.state_machine(
        lambda: [c.ModelDriver(), driver],
        refuse=askable,
        leave_out=not_found_out,
        trace=tmp_path / "trace.itf.json",
        taken=taken,
    )
    everyday(machine, 3, 400)
    record_property("edges", len(taken))
    came_far(taken, 10, graph(), not_found_out)


def lasting(edge: c.Edge) -> bool:
    """The steps that real runsc cannot take: what it is once judged it stays."""
    return not_found_out(edge) or edge.action == "Impostor"


@pytest.mark.slow
@pytest.mark.real
def test_specification_and_real_runsc(
    release: Release, large_place: Site, tmp_path: Path, record_property: Record
) -> None:
    """The same with real runsc, in fewer steps."""
    driver = RealDriver(large_place, release.path)
    launches = [node for node in c.usual_launches() if node.facts.program == "runsc"]
    taken = set[c.Edge]()
    machine = c.state_machine(
        lambda: [c.ModelDriver(), driver],
        launches,
        refuse=askable,
        leave_out=lasting,
        trace=tmp_path / "trace.itf.json",
        taken=taken,
    )
    try:
        everyday(machine, 2, 250)
    finally:
        driver.close()
    record_property("edges", len(taken))
    came_far(taken, 10, c.explore(launches), lasting)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("real", [False, True], ids=["alone", "runtime"])
def test_all_edges(real: bool, driver: RealDriver) -> None:
    """Runs that are each bound for the edges which those before did not take soon have taken all of them."""
    taken = set[c.Edge]()
    leave_out: c.Chooser = not_found_out if real else lambda _: False
    drivers: list[c.Driver] = [c.ModelDriver(), driver] if real else [c.ModelDriver()]
    edges = reachable(graph(), leave_out)
    for number in range(50):
        wanted = [edge for edge in graph().edges if edge in edges - taken]
        if not wanted:
            return
        machine = c.state_machine(lambda: drivers, refuse=askable, leave_out=leave_out, wanted=wanted, taken=taken)
        everyday(machine, 10, 500, number)
    pytest.fail(f"{len(wanted)} of {len(edges)} edges were never taken")


# ---- it can fail ----


class Liar(c.ModelDriver):
    """Shows one value of one variable as another."""

    def __init__(self, variable: str, value: object, shown: object) -> None:
        self.lie = variable, value, shown

    def observe(self) -> Mapping[str, object]:
        variable, value, shown = self.lie
        seen = dict(super().observe())
        return {**seen, variable: shown} if seen[variable] == value else seen


def lies() -> list[tuple[str, object, object]]:
    """More than a hundred, of every variable: each value that it comes to have, shown as the next, or the one after."""
    nodes = [node.facts.as_dict() for node in graph().nodes]
    found: list[tuple[str, object, object]] = []
    for variable in sorted(nodes[0]):
        values = list({str(facts[variable]): facts[variable] for facts in nodes}.values())
        turned = [values[step:] + values[:step] for step in (1, 2) if step < len(values)]
        found += [(variable, *pair) for others in turned for pair in zip(values, others, strict=True)]
    return found


def caught(lie: tuple[str, object, object], number: int) -> c.Disagreement:
    """What an everyday run finds with a driver that lies."""
    machine = c.state_machine(lambda: [c.ModelDriver(), Liar(*lie)])
    with pytest.raises(c.Disagreement) as found:
        everyday(machine, 10, 500, number)
    return found.value


def test_a_hundred_liars_are_caught() -> None:
    """A driver that lies about one value of one field is caught by each of a hundred runs."""
    assert len(lies()) > 100
    for number, (variable, value, shown) in enumerate(lies()):
        text = str(caught((variable, value, shown), number))
        assert f"Liar: {variable} is {c._shown(shown)}, expected {c._shown(value)}; after" in text


def test_no_state_outlives_an_example() -> None:
    """A run takes the same steps after another of its class as before; a failure comes again from what was saved."""
    runs = [set[c.Edge](), set[c.Edge]()]
    taken = set[c.Edge]()
    machine = c.state_machine(lambda: [c.ModelDriver()], taken=taken)
    for run in runs:
        taken.clear()
        everyday(machine, 3, 200, 7)
        run |= taken
    assert runs[0] == runs[1] and len(runs[0]) > 100
    saved = InMemoryExampleDatabase()
    steps = list[str]()

    class Noting(Liar):
        def fire(self, action: str) -> None:
            steps.append(action)
            super().fire(action)

    machine = c.state_machine(lambda: [c.ModelDriver(), Noting("cause", "left_behind", "fault")])
    told = set[str]()
    counts = []
    for _ in range(2):
        steps.clear()
        with pytest.raises(c.Disagreement) as found:
            everyday(machine, 10, 200, database=saved)
        told.add(str(found.value))
        counts.append(len(steps))
    assert len(told) == 1 and "FailDirty" in told.pop()
    assert counts[1] < counts[0], "the second run began with what the first one had found"


class Unable(c.ModelDriver):
    """Cannot end a launch, nor tell a refusal; were the oracle to go on without it, it would be seen to lag behind."""

    def fire(self, action: str) -> None:
        if action.startswith("Fail") or action not in c.offered(self._facts):
            raise c.Unsupported(action)
        super().fire(action)


def test_what_is_unsupported_does_not_move_the_specification() -> None:
    """A launch ends where a driver cannot go on; what the others did there is not compared, nor counted as taken."""
    taken = set[c.Edge]()
    everyday(c.state_machine(lambda: [c.ModelDriver(), Unable()], taken=taken), 5, 200, 3)
    assert taken and not {action for edge in taken if (action := edge.action).startswith("Fail")}
    run = c.Lockstep([c.ModelDriver(), Unable()], c.usual_launches()[0])
    [edge] = [edge for edge in run.ahead() if edge.action == "FailFault"] or [run.ahead()[0]]
    node = run.node
    refused = next(edge for edge in c.refusals(node))
    assert not run.take(refused) and run.node is node and run.over
    with pytest.raises(ValueError, match="nothing follows"):
        run.take(edge)


class Forgetful(c.ModelDriver):
    """Does not see that the pin is not honoured, once the binary is held."""

    def observe(self) -> Mapping[str, object]:
        seen = dict(super().observe())
        return {**seen, "pin": "match"} if (seen["state"], seen["pin"]) == ("Resolved", "mismatch") else seen


def broken(machine: Any) -> str:
    """What is reported of `machine`, quickly and always the same."""
    quick = settings(max_examples=500, stateful_step_count=12, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(c.Disagreement) as caught:
        run_state_machine_as_test(machine, settings=quick)
    return "\n".join([str(caught.value), *caught.value.__notes__])


def test_a_difference_shrinks_to_the_shortest_list_of_actions(tmp_path: Path) -> None:
    """A driver that forgets one thing is found out; the shortest way there is printed, saved, and can be replayed."""
    trace = tmp_path / "trace.itf.json"
    launches = [c.ask("required", "mount-locked", "sealed", "runsc", "match", 3)]
    text = broken(c.state_machine(lambda: [c.ModelDriver(), Forgetful()], launches, trace=trace))
    assert "Forgetful: pin is match, expected mismatch; after" in text and str(trace) in text
    walk = c.load(trace)
    assert sorted(walk.actions) == ["OtherRelease", "Resolve"]
    assert ", ".join(walk.actions) in text
    report = c.replay(trace, Forgetful())
    assert [(f.variable, f.expected, f.observed) for f in report.faults] == [("pin", "mismatch", "match")]
    assert c.replay(trace, c.ModelDriver()).conforms


class Obliging(c.ModelDriver):
    """Refuses nothing."""

    def fire(self, action: str) -> None:
        if action in c.offered(self._facts):
            super().fire(action)


def test_a_missing_refusal_is_found_as_well(tmp_path: Path) -> None:
    """A launcher that takes an action which is not offered is found in the first such step."""
    trace = tmp_path / "trace.itf.json"
    text = broken(c.state_machine(lambda: [Obliging()], trace=trace))
    assert "Obliging: does not refuse" in text and "~" in text
    assert [edge.offered for edge in c.load(trace).edges][-2:] in ([False], [True, False])
    assert c.replay(trace, Obliging()).faults


def test_a_specification_that_breaks_its_own_property_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariants are looked at after every rule."""
    monkeypatch.setattr(c, "violated", lambda before, after: ["Nonsense"] if after.state == "Resolved" else [])
    assert "the specification: Resolve breaks Nonsense" in broken(c.state_machine(lambda: []))
