"""The conformance harness on launchers that are wrong in one way each: it must say which."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import OnlyForward
from nucleus_gvisor.model.states import LaunchState

LAUNCH = c.ask("required", "mount-locked", "sealed", "runsc", "match", 1)
GRAPH = c.explore([LAUNCH])


class Meddler(c.ModelDriver):
    """Refuses what is not offered, and has done something all the same."""

    def reset(self, facts: Facts) -> None:
        super().reset(facts)
        self.meddled = False

    def fire(self, action: str) -> None:
        try:
            super().fire(action)
        except Exception:
            self.meddled = True
            raise

    def observe(self) -> Mapping[str, object]:
        return {**super().observe(), **({"base": "hostile"} if self.meddled else {})}


class Shy(c.ModelDriver):
    """Has no way to be asked for Exec."""

    def fire(self, action: str) -> None:
        if action == "Exec":
            raise c.Unsupported("it has no separate Exec")
        super().fire(action)


class Blind(c.ModelDriver):
    """Can do nothing, and sees nothing."""

    def fire(self, action: str) -> None:
        raise c.Unsupported(f"no {action} here")

    def observe(self) -> Mapping[str, object]:
        return {}


class Vague(c.ModelDriver):
    """Sees that something runs, and thinks that it is not what was judged."""

    def observe(self) -> Mapping[str, object]:
        seen = super().observe()
        return {**seen, "image": c.one_of("forged", "rewritten")} if seen.get("image") == "trusted" else seen


class Timid(c.ModelDriver):
    """Never executes."""

    def fire(self, action: str) -> None:
        if action == "Exec":
            raise c.Refused("not today")
        super().fire(action)


def walk_to(action: str) -> c.Walk:
    """The shortest undisturbed way to `action`, and its step."""
    walks = [walk for walk in c.cover(GRAPH) if action in walk.actions and not {"Kill"} & set(walk.actions)]
    shortest = min(walks, key=lambda walk: walk.actions.index(action))
    return c.Walk(shortest.begin, shortest.edges[: shortest.actions.index(action) + 1])


def test_a_refusal_that_changes_something_is_a_fault() -> None:
    """Asked for what is not offered, a launcher may not act: the finding names the variable, the table the count."""
    report = c.judge(Meddler(), [walk_to("Resolve")], refuse=lambda edge: edge.action == "Exec")
    [found] = [finding for finding in report.refusals.values() if finding.verdict is c.Verdict.FAILED]
    assert (found.variable, found.observed) == ("base", "hostile") and "not offered" in str(found)
    assert "something changed all the same" in str(found) and not report.conforms
    assert any(line.startswith("refusals") for line in report.table().splitlines())


def test_what_cannot_be_asked_for_is_unsupported() -> None:
    """A refusal that a driver cannot ask for is no pass; its edges are not reached behind it."""
    report = c.judge(Shy(), [walk_to("Exec")], refuse=lambda edge: edge.action == "Exec")
    assert {finding.verdict for finding in report.refusals.values()} == {c.Verdict.UNSUPPORTED}
    assert any(f.verdict is c.Verdict.UNSUPPORTED and "no separate Exec" in str(f) for f in report.findings.values())
    assert not report.conforms


def test_an_observation_may_be_vague_and_wrong() -> None:
    """What an observation leaves open is told as alternatives, on the line and in the JSON."""
    report = c.examine(Vague(), GRAPH)
    found = [finding for finding in report.faults if finding.edge.action == "Exec"]
    assert found and found[0].variable == "image" and "forged or rewritten" in str(found[0])
    assert found[0].as_dict()["observed"] == {"one_of": ["forged", "rewritten"]}


def test_a_broken_property_is_named() -> None:
    """A finding that breaks what the specification promises says which promise."""

    class Forged(c.ModelDriver):
        def observe(self) -> Mapping[str, object]:
            seen = super().observe()
            return {**seen, "image": "forged"} if seen.get("image") == "trusted" else seen

    report = c.examine(Forged(), GRAPH)
    assert any("breaks" in str(finding) and finding.breaks for finding in report.faults)


def test_the_environment_does_only_what_it_can() -> None:
    """A disturbance that is not possible is refused by the specification's own driver."""
    driver = c.ModelDriver()
    driver.reset(LAUNCH.facts)
    with pytest.raises(c.Refused, match="cannot happen here"):
        driver.disturb("GuestStarts")


def test_lockstep_ends_at_what_is_unsupported() -> None:
    """A run is over where one driver cannot follow, the specification where it was; and stops where one refuses."""
    first, second, *_ = walk_to("Exec").edges
    run = c.Lockstep([c.ModelDriver(), Blind()], LAUNCH)
    assert not run.take(first) and run.over and run.node == first.source
    with pytest.raises(ValueError, match="nothing follows"):
        run.take(second)
    run = c.Lockstep([Timid()], LAUNCH)
    with pytest.raises(c.Disagreement, match="Timid: refuses Exec: not today") as caught:
        for edge in walk_to("Exec").edges:
            run.take(edge)
    # Shortened, it still leads there: of steps that cannot be left out none was.
    assert c.shortest(caught.value, [Timid()]).walk.actions == walk_to("Exec").actions


def test_what_is_left_behind_is_listed() -> None:
    """A set that is observed is told as a list, in order."""

    class Untidy(c.ModelDriver):
        def observe(self) -> Mapping[str, object]:
            return {**super().observe(), "residue": frozenset({"b", "a"})}

    report = c.judge(Untidy(), [walk_to("Resolve")])
    [found] = report.faults
    assert found.variable == "residue" and 'residue is ["a", "b"], expected []' in str(found)


def test_a_terminal_state_is_left_by_nothing() -> None:
    """From Failed there is no way on, nor back."""
    failed = replace(LAUNCH.facts, state=LaunchState.FAILED)
    assert OnlyForward(failed, failed)
    assert not OnlyForward(failed, replace(failed, state=LaunchState.RESOLVED))
