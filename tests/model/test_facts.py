"""Facts, guards and invariants: pure, total, and of the specification's types."""

import inspect
import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.model import guards, invariants
from nucleus_gvisor.model.facts import DOMAINS, NAMES, OPTIONS, RESIDUE, WORLD, Facts, type_ok
from nucleus_gvisor.model.invariants import INVARIANTS, STEPS, violated
from nucleus_gvisor.model.states import PATH, TERMINAL, LaunchState
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import FAILURES, ROWS, TRANSITIONS, Guard, failure_row
from tests.model.launches import UNDER_WAY, launch

S = LaunchState
any_facts = st.builds(
    Facts,
    residue=st.sets(st.sampled_from(sorted(RESIDUE))).map(frozenset),
    **{name: st.sampled_from(sorted(domain, key=str)) for name, domain in DOMAINS.items()},
)
GUARDS: list[Guard] = [value for value in vars(guards).values() if inspect.isfunction(value)]


@given(facts=any_facts)
def test_facts_round_trip_as_json(facts: Facts) -> None:
    """Facts are read back from JSON as they were written, and are well typed."""
    assert Facts.from_dict(json.loads(json.dumps(facts.as_dict()))) == facts
    assert type_ok(facts) and set(facts.as_dict()) == NAMES


@given(facts=any_facts)
def test_guards_and_invariants_answer_bool(facts: Facts) -> None:
    """Each is total and answers True or False, never something that merely counts as such."""
    for predicate in (*GUARDS, *INVARIANTS):
        assert type(predicate(facts)) is bool, predicate.__name__
    for row in TRANSITIONS:
        assert all(type(guard(facts)) is bool for guard in row.guards)


@given(before=any_facts, after=any_facts)
def test_action_properties_answer_bool(before: Facts, after: Facts) -> None:
    """Each judges any two states; what it finds is named."""
    broken = violated(before, after)
    assert all(type(law(before, after)) is bool for law in STEPS)
    assert set(broken) <= {law.__name__ for law in (*INVARIANTS, *STEPS)}


@given(facts=any_facts)
def test_no_step_starts_what_was_not_staged(facts: Facts) -> None:
    """From any facts, reachable or not: what a permitted action runs was staged, evidenced and permitted."""
    for row in TRANSITIONS:
        if facts.state in row.sources and all(guard(facts) for guard in row.guards):
            after = row.after(facts)
            if after.image != facts.image:
                assert (row.action, facts.state, after.image) == ("Exec", S.CONFINED, "trusted")
                assert facts.enforcement != "required" or (facts.confined == facts.confinement and facts.proved)
            if row.dest is S.FAILED:
                assert after.cause != "none" and after.staged == after.held == "nothing" and after.lock != "ours"


RAN: dict[str, Any] = launch(S.EXECD).facts.as_dict() | {"state": S.EXECD, "residue": frozenset({"directory"})}
COPIED: dict[str, Any] = RAN | {"method": "copy", "residue": frozenset({"directory", "stage"})}
CAUSES = {str(cause) for cause in DOMAINS["cause"]} - {"none"}


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"image": "rewritten", "state": S.EXECD}, "RunsVerifiedBytes"),
        ({"image": "trusted", "state": S.EXECD, "pin": "mismatch"}, "PinHonoured"),
        ({"state": S.EXECD, "enforcement": "required"}, "RequiredMeansConfined"),
        ({"state": S.EXECD, "confined": "landlock", "proved": True}, "RequiredMeansConfined"),
        ({"image": "trusted"}, "NothingRunsUnlessExecd"),
        ({"guest": "running", "state": S.EXECD}, "NothingRunsUnlessExecd"),
        ({"state": S.FAILED, "cause": "fault", "residue": frozenset({"stage"})}, "FailedLeavesNothing"),
        ({"state": S.FAILED, "cause": "fault", "lock": "ours"}, "FailedLeavesNothing"),
        ({"state": S.FAILED, "cause": "fault", "staged": "trusted"}, "FailedLeavesNothing"),
        ({"state": S.FAILED}, "CauseIffFailed"),
        ({"cause": "fault"}, "CauseIffFailed"),
        ({"guest": "stuck", "image": "trusted", "state": S.EXECD}, "ConfinedCanMount"),
        ({"proved": True}, "ProofIsOfConfinement"),
        ({"confined": "landlock"}, "ProofIsOfConfinement"),
        ({**RAN, "request": False}, "ExecMeansAllWasWell"),
        ({**RAN, "fit": False}, "ExecMeansAllWasWell"),
        ({**RAN, "execve": False}, "ExecMeansAllWasWell"),
        ({**RAN, "base": "hostile"}, "ExecMeansAllWasWell"),
        ({**RAN, "bundle": "hostile"}, "ExecMeansAllWasWell"),
        ({**RAN, "lock": "free"}, "ExecMeansAllWasWell"),
        ({**RAN, "residue": frozenset()}, "ExecMeansAllWasWell"),
        ({**RAN, "method": "copy"}, "ExecMeansAllWasWell"),
        ({**RAN, "residue": frozenset({"directory", "stage"})}, "ExecMeansAllWasWell"),
        ({**COPIED, "space": False}, "ExecMeansAllWasWell"),
        ({**RAN, "method": "kept", "cache": "changed"}, "ExecMeansAllWasWell"),
        ({**RAN, "method": "kept", "confined": "none", "proved": False}, "ExecMeansAllWasWell"),
        ({"state": S.FAILED, "cause": "untrusted_cache", "cache": "hostile"}, "CauseIsTrue"),
        ({"state": S.FAILED, "cause": "untrusted_cache", "method": "kept"}, "CauseIsTrue"),
        ({"state": S.FAILED, "cause": "kept_changed", "cache": "changed"}, "CauseIsTrue"),
        ({"state": S.FAILED, "cause": "kept_changed", "method": "kept"}, "CauseIsTrue"),
        ({**RAN, "enforcement": "off"}, "ConfinedMeansHostCan"),
        ({**RAN, "confinement": "landlock"}, "ConfinedMeansHostCan"),
        ({**RAN, "holds": False}, "ConfinedMeansHostCan"),
        ({**RAN, "userns": False}, "ConfinedMeansHostCan"),
        ({**RAN, "confined": "landlock", "confinement": "landlock", "landlock": False}, "ConfinedMeansHostCan"),
        ({**RAN, "confined": "none", "proved": False, "enforcement": "best_effort"}, "SkippedMeansCannot"),
        *(({"state": S.FAILED, "cause": cause}, "CauseIsTrue") for cause in sorted(CAUSES - {"changed"})),
        *(
            ({"state": S.FAILED, "cause": cause, "enforcement": "best_effort", **world}, "CauseIsTrue")
            for cause, world in (
                ("incompatible", {"confinement": "landlock"}),
                ("cannot_confine", {"userns": False}),
                ("not_proved", {"holds": False}),
            )
        ),
        ({"state": S.FAILED, "cause": "no_space", "space": False}, "CauseIsTrue"),
        ({"state": S.FAILED, "cause": "unfit", "fit": False, "program": "plain"}, "CauseIsTrue"),
        ({"residue": frozenset({"house"})}, "TypeOK"),
        ({"held": "verified"}, "TypeOK"),
    ],
    ids=str,
)
def test_each_invariant_can_fail(changes: dict[str, Any], law: str) -> None:
    """For each there are facts that it, by name, does not hold of; of a launch's beginning all hold."""
    assert not [holds.__name__ for holds in INVARIANTS if not holds(Facts())]
    assert law in [holds.__name__ for holds in INVARIANTS if not holds(replace(Facts(), **changes))]


@pytest.mark.parametrize(
    ("before", "after", "law"),
    [
        ({}, {"state": S.PREPARED}, "OnlyForward"),
        ({"state": S.PREPARED}, {"state": S.RESOLVED}, "OnlyForward"),
        ({"state": S.EXECD}, {"state": S.FAILED}, "OnlyForward"),
        ({"state": S.FAILED}, {"state": S.EXECD}, "OnlyForward"),
        ({"state": S.FAILED}, {"state": S.UNRESOLVED}, "OnlyForward"),
        ({"enforcement": "required"}, {"enforcement": "off"}, "OptionsAreFixed"),
        ({"method": "sealed"}, {"method": "copy"}, "OptionsAreFixed"),
        ({"confined": "mount-locked"}, {"confined": "none"}, "NeverLessConfined"),
        ({"confined": "mount-locked"}, {"confined": "landlock"}, "NeverLessConfined"),
        ({"alive": False}, {"alive": False, "state": S.RESOLVED}, "DeadDoNothing"),
        ({"alive": False}, {"alive": False, "image": "trusted"}, "DeadDoNothing"),
        ({"cause": "busy"}, {"cause": "fault"}, "CauseIsFinal"),
        ({"cause": "busy"}, {"cause": "none"}, "CauseIsFinal"),
        ({}, {"cause": "left_behind"}, "LeftMeansResidue"),
        ({"residue": frozenset({"stage"})}, {"cause": "left_behind"}, "LeftMeansResidue"),
        ({"lock": "theirs"}, {"lock": "ours"}, "LockIsRespected"),
        ({"lock": "theirs"}, {"lock": "theirs", "residue": frozenset({"directory"})}, "LockIsRespected"),
        ({"base": "hostile"}, {"base": "private"}, "BaseIsRespected"),
        ({"base": "hostile"}, {"base": "hostile", "residue": frozenset({"directory"})}, "BaseIsRespected"),
        ({"cache": "hostile"}, {"cache": "private"}, "BaseIsRespected"),
    ],
    ids=str,
)
def test_each_action_property_can_fail(before: dict[str, Any], after: dict[str, Any], law: str) -> None:
    """For each there is a step that it, by name, forbids; to stay as one was is always allowed."""
    f, g = replace(Facts(), **before), replace(Facts(), **after)
    assert law in violated(f, g)
    assert invariants.BaseIsRespected(Facts(), replace(Facts(), cache="hostile")) and invariants.BaseIsRespected(g, g)
    assert not [stays.__name__ for stays in STEPS if not stays(f, f)]


def test_every_law_was_made_to_fail() -> None:
    """No invariant and no action property is missing from the two tests above."""
    tests: list[Any] = [test_each_invariant_can_fail, test_each_action_property_can_fail]
    tested = {law for test in tests for mark in test.pytestmark for *_, law in mark.args[1]}
    assert tested == {law.__name__ for law in (*INVARIANTS, *STEPS)}
    public = {name for name, value in vars(invariants).items() if inspect.isfunction(value) and name[0].isupper()}
    assert public == tested


def test_options_and_world_do_not_overlap() -> None:
    """What was asked for cannot be observed to be otherwise, and every variable has a domain."""
    assert not OPTIONS & WORLD and (OPTIONS | WORLD) < NAMES
    assert set(DOMAINS) == {field.name for field in fields(Facts)} - {"residue"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_facts_are_frozen(name: str) -> None:
    """No variable is assigned, none is added."""
    facts = Facts()
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(facts, name, "x")
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        facts.extra = 1  # type: ignore[attr-defined]
    assert facts == Facts()


def test_available_is_what_the_confinement_needs() -> None:
    """The one word of an error stands for user namespaces or for Landlock, and for nothing else."""
    assert Facts(confinement="mount-locked").seen({"available": False}) == Facts(
        confinement="mount-locked", userns=False
    )
    assert Facts(confinement="landlock").seen({"available": False}) == Facts(confinement="landlock", landlock=False)


@pytest.mark.parametrize("world", [{"held": "somehow"}, {"lock": True}, {"state": "Exec'd"}, {"userns": 1}])
def test_nothing_else_can_be_seen(world: dict[str, object]) -> None:
    """A value that the variable cannot have, or a variable that is not the world's."""
    with pytest.raises(ValueError, match=r"not observable|not a value of"):
        Facts().seen(world)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"residue": ["crumbs"]}, "residue unknown"),
        ({"residue": "none"}, "not a list of names"),
        ({"residue": ["mount", "mount"]}, "not written as a set"),
        ({"lock": "whose"}, "lock = 'whose'"),
        ({"more": 1}, "missing or unknown"),
    ],
)
def test_what_is_no_facts(change: dict[str, object], why: str) -> None:
    """Each is told by its name; what is no object at all as well."""
    with pytest.raises(ValueError, match=why):
        Facts.from_dict(Facts().as_dict() | change)
    for nothing in (7, None, "facts"):
        with pytest.raises(ValueError, match="missing or unknown"):
            Facts.from_dict(nothing)  # type: ignore[arg-type]


@given(facts=any_facts)
def test_seeing_nothing_changes_nothing(facts: Facts) -> None:
    """An observation without news leaves the facts alone, and so do steps without a world."""
    assert facts.seen({}) == facts
    assert facts.seen(NoSteps().observe("Resolve", facts)) == facts
    assert facts.seen({name: getattr(facts, name) for name in WORLD}) == facts


def test_states_are_the_specifications() -> None:
    """Seven states, one path, two ends, spelled with the apostrophe."""
    assert [str(state) for state in PATH] == ["Unresolved", "Resolved", "Prepared", "Staged", "Confined", "Exec'd"]
    assert {str(state) for state in TERMINAL} == {"Exec'd", "Failed"}
    assert set(PATH) | TERMINAL == set(LaunchState)


def test_table_rows_have_names_of_their_own() -> None:
    """No two actions share a name or a trigger, and only failures have causes."""
    assert len(ROWS) == len(TRANSITIONS) == len({row.trigger for row in TRANSITIONS})
    for row in TRANSITIONS:
        assert (row.cause != "none") == (row in FAILURES) == row.action.startswith("Fail")
        assert not set(row.sources) & TERMINAL or row.dest is None


@pytest.mark.parametrize("state", UNDER_WAY)
@pytest.mark.parametrize("cause", sorted(str(cause) for cause in DOMAINS["cause"]))
def test_every_cause_has_a_failure_everywhere(cause: str, state: LaunchState) -> None:
    """Its own where there is one, a fault elsewhere: no cause leaves a launch without a way to Failed."""
    row = failure_row(state, cause)
    assert state in row.sources and row.dest is S.FAILED and row.cause in (cause, "fault")


def test_facts_of_a_launch_are_never_beyond_their_types() -> None:
    """Along the way all facts are well typed and keep every invariant."""
    for state in PATH:
        facts = launch(state).facts
        assert type_ok(facts) and not [holds.__name__ for holds in INVARIANTS if not holds(facts)]


def test_what_is_kept_is_for_launches_that_are_locked() -> None:
    """They alone may ask for it, and no other launch is touched by what becomes of the cache."""
    for enforcement in DOMAINS["enforcement"]:
        for confinement in DOMAINS["confinement"]:
            asked = replace(Facts(), method="kept", enforcement=str(enforcement), confinement=str(confinement))
            assert guards.RequestSound(asked) is ((enforcement, confinement) == ("required", "mount-locked"))
    for cache in ("hostile", "changed"):
        other = replace(Facts(), state=S.CONFINED, staged="trusted", cache=cache)
        assert guards.CacheSound(other) and guards.KeptUnchanged(other)
        assert ROWS["Exec"].after(other).image == "trusted"
