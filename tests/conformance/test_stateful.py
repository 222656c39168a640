"""Hypothesis looks for sequences that the walks do not have: specification, stand-in and real runsc in lockstep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from nucleus_gvisor.model import conformance as c
from tests.conformance.edges import askable, known
from tests.conformance.real import RealDriver
from tests.conformance.world import Site
from tests.conftest import Release


def not_found_out(edge: c.Edge) -> bool:
    """The steps that no driver of the runtime can take: those of the table."""
    return known(edge) is not None


def test_specification_alone() -> None:
    """The oracle keeps its own properties whatever happens, with more disturbances at once than the graph has."""
    launches = [node._replace(budget=6) for node in c.usual_launches()]
    machine = c.state_machine(lambda: [c.ModelDriver()], launches)
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=14))


@pytest.mark.slow
def test_specification_and_runtime(driver: RealDriver, tmp_path: Path) -> None:
    """The real runtime around the stand-in does what the specification does, in sequences that nobody chose."""
    machine = c.state_machine(
        lambda: [c.ModelDriver(), driver], refuse=askable, leave_out=not_found_out, trace=tmp_path / "trace.itf.json"
    )
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=10))


def lasting(edge: c.Edge) -> bool:
    """The steps that real runsc cannot take: what it is once judged it stays."""
    return not_found_out(edge) or edge.action == "Impostor"


@pytest.mark.slow
@pytest.mark.real
def test_specification_and_real_runsc(release: Release, large_place: Site, tmp_path: Path) -> None:
    """The same with real runsc, few examples."""
    driver = RealDriver(large_place, release.path)
    launches = [node for node in c.usual_launches() if node.facts.program == "runsc"]
    machine = c.state_machine(
        lambda: [c.ModelDriver(), driver],
        launches,
        refuse=askable,
        leave_out=lasting,
        trace=tmp_path / "trace.itf.json",
    )
    try:
        run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=9))
    finally:
        driver.close()


# ---- it can fail ----


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
    """A launcher that takes an action which is not offered is found in one step."""
    trace = tmp_path / "trace.itf.json"
    text = broken(c.state_machine(lambda: [Obliging()], trace=trace))
    assert "Obliging: does not refuse" in text and "; after ~" in text
    assert len(c.load(trace).edges) == 1 and not c.load(trace).edges[0].offered
    assert c.replay(trace, Obliging()).faults


def test_a_specification_that_breaks_its_own_property_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariants are looked at after every rule."""
    monkeypatch.setattr(c, "violated", lambda before, after: ["Nonsense"] if after.state == "Resolved" else [])
    assert "the specification: Resolve breaks Nonsense" in broken(c.state_machine(lambda: []))
