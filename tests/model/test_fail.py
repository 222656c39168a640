"""Failing: every error ends the launch in Failed, with its own cause where it has one, and with everything unmade."""

from collections.abc import Iterator, Mapping

import pytest

from nucleus_gvisor.model.environment import explains
from nucleus_gvisor.model.errors import (
    ConfineFailed,
    GuardRefused,
    Incompatible,
    LaunchError,
    NoSpace,
    NotProved,
    PinMismatch,
    SafetyViolation,
    StepFailed,
)
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import INVARIANTS, violated
from nucleus_gvisor.model.machine import LaunchMachine
from nucleus_gvisor.model.record import TransitionRecord
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import FAILURES
from tests.model.launches import FITTING, UNDER_WAY, Counted, all_errors, every_option, launch, made, moment

S = LaunchState
AT_FAULT = ("GuardRefused", "SafetyViolation", "StepFailed", "RecordRejected")


def own_states(cause: str) -> set[LaunchState]:
    """Where a launch can fail for this cause by the specification's own words."""
    return {source for row in FAILURES if row.cause == cause for source in row.sources}


def options_for(kind: type[LaunchError]) -> dict[str, str]:
    """Options with which this error can come about, and which can be confined as far as its state."""
    return FITTING.get(kind.cause, {})


def ready(state: LaunchState, kind: type[LaunchError], steps: Counted) -> LaunchMachine:
    """A launch in `state` with options for `kind`; Confined is not to be had under what cannot confine."""
    options = dict(options_for(kind))
    if state is S.CONFINED and kind is Incompatible:
        options["program"] = "plain"
    return launch(state, steps, **options)


@pytest.mark.parametrize("state", UNDER_WAY)
@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_ends_in_failed(kind: type[LaunchError], state: LaunchState) -> None:
    """In every state; with the error's cause where the cause belongs to the state, as a fault elsewhere."""
    steps = Counted()
    machine = ready(state, kind, steps)
    machine.fail(made(kind))
    facts = machine.facts
    assert facts.state is S.FAILED
    assert facts.cause == (kind.cause if state in own_states(kind.cause) else "fault")
    assert (facts.held, facts.staged, facts.confined, facts.residue) == ("nothing", "nothing", "none", frozenset())
    assert facts.lock in ("free", "theirs") and not facts.proved and facts.image == "none"
    assert all(holds(facts) for holds in INVARIANTS)
    assert complete(machine.records) and fold(machine.records) == facts
    assert [action for action in steps.performed if action.startswith("Fail")] == [machine.records[-1].action]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_failure_that_accepts_it(kind: type[LaunchError]) -> None:
    """What the error shows is what the guards of its failure ask for, and what the environment can do there."""
    rows = [row for row in FAILURES if row.cause == kind.cause]
    assert rows, f"no failure has the cause {kind.cause}"
    for row in rows:
        for state in set(row.sources):
            facts = ready(state, kind, Counted()).facts
            seen = facts.seen(kind.shows)
            refused = [guard.__name__ for guard in row.guards if not guard(seen)]
            assert refused == (["HasResidue"] if row.action == "FailDirty" and not facts.residue else [])
            assert explains(facts, seen) is not None


def test_every_failure_has_an_error_of_its_own() -> None:
    """Each cause but the two that are no error's own belongs to one family of errors, and those families differ."""
    tops = [kind for kind in LaunchError.__subclasses__() if kind.__name__ not in AT_FAULT and kind in all_errors()]
    causes = [kind.cause for kind in tops]
    assert len(set(causes)) == len(causes)
    assert set(causes) == {row.cause for row in FAILURES} - {"fault", "left_behind"}
    for kind in all_errors():
        assert kind.cause in causes or kind.__name__ in AT_FAULT


def test_no_two_families_show_the_same() -> None:
    """What two families of errors show of the world differs, so that their guards can tell them apart."""
    tops = [kind for kind in LaunchError.__subclasses__() if kind in all_errors() and kind.__name__ not in AT_FAULT]
    shown = [tuple(sorted(kind.shows.items(), key=str)) for kind in tops]
    assert len(set(shown)) == len(shown)


# ---- an error that does not fit the launch ----


@pytest.mark.parametrize(
    ("error", "state", "options"),
    [
        (ConfineFailed("for a test"), S.STAGED, {"enforcement": "best_effort"}),
        (NotProved("for a test"), S.STAGED, {"enforcement": "best_effort"}),
        (Incompatible("for a test"), S.STAGED, {}),
        (NoSpace("for a test"), S.PREPARED, {"method": "sealed"}),
        (NoSpace("for a test"), S.PREPARED, {"method": "set"}),
        (PinMismatch("for a test"), S.PREPARED, {"pin": "none"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, LaunchError) else str(x),
)
def test_an_error_that_does_not_fit_is_a_fault_and_is_unwound(
    error: LaunchError, state: LaunchState, options: dict[str, str]
) -> None:
    """An error whose own failure is refused was not unwound yet: nothing may be given up as left behind."""
    steps = Counted()
    machine = launch(state, steps, **options)
    machine.fail(error)
    assert (machine.state, machine.facts.cause) == (S.FAILED, "fault")
    assert machine.facts.residue == frozenset()
    assert fold(machine.records) == machine.facts


# ---- when unwinding fails as well ----


def _unwinding_fails(times: int, error: BaseException) -> Counted:
    left = [error] * times

    def act(action: str) -> Mapping[str, object] | None:
        if action.startswith("Fail") and left:
            raise left.pop()
        return None

    return Counted(act=act)


@pytest.mark.parametrize(
    "second",
    [StepFailed("cannot remove", observed="EBUSY"), SafetyViolation("swapped"), OSError(16, "Device or resource busy")],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("state", UNDER_WAY[2:])
def test_both_errors_are_kept(state: LaunchState, second: Exception) -> None:
    """When unwinding fails, the launch has failed all the same, and the first error names the second."""
    machine = launch(state, _unwinding_fails(1, second), method="copy")
    residue = machine.facts.residue
    first = StepFailed("the first error")
    machine.fail(first)
    assert (machine.state, machine.facts.cause, machine.facts.residue) == (S.FAILED, "left_behind", residue)
    assert str(first).startswith("the first error")
    assert any(str(second) in note for note in first.__notes__)
    assert all(holds(machine.facts) for holds in INVARIANTS) and fold(machine.records) == machine.facts


@pytest.mark.parametrize("state", UNDER_WAY[:2])
def test_nothing_is_left_behind_where_nothing_was_made(state: LaunchState) -> None:
    """Before there is a directory, a failed unwinding leaves a fault and no residue."""
    machine = launch(state, _unwinding_fails(1, StepFailed("cannot close")))
    machine.fail(LaunchError("the first error"))
    assert (machine.state, machine.facts.cause, machine.facts.residue) == (S.FAILED, "fault", frozenset())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=lambda e: type(e).__name__)
def test_an_interrupted_unwinding_can_be_repeated(error: BaseException) -> None:
    """An interrupt during unwinding comes out as it is; nothing has changed, and failing again succeeds."""
    machine = launch(S.STAGED, _unwinding_fails(1, error))
    before = moment(machine)
    with pytest.raises(type(error)):
        machine.fail(LaunchError("the first error"))
    assert moment(machine) == before
    machine.fail(LaunchError("the first error"))
    assert machine.state is S.FAILED and machine.facts.residue == frozenset()


def test_a_record_that_cannot_be_kept_stops_failing_too() -> None:
    """Where no line can be written any more, the launch claims nothing, and both errors are kept."""
    full = [False]

    def sink(_: TransitionRecord) -> None:
        if full[0]:
            raise StepFailed("the record cannot be written")

    machine = launch(S.STAGED, sink=sink)
    before, first = moment(machine), StepFailed("the first error")
    full[0] = True
    with pytest.raises(StepFailed, match="record cannot be written"):
        machine.fail(first)
    assert moment(machine) == before
    assert any("record cannot be written" in note for note in first.__notes__)


def test_what_is_left_is_collected() -> None:
    """A launch that left something behind can be collected once, by whoever finds the lock free."""
    machine = launch(S.CONFINED, _unwinding_fails(1, StepFailed("cannot remove")))
    machine.fail(LaunchError("the first error"))
    machine.fire("Collect")
    assert (machine.state, machine.facts.cause, machine.facts.residue) == (S.FAILED, "left_behind", frozenset())
    with pytest.raises(GuardRefused, match="HasResidue"):
        machine.fire("Collect")


def _failures() -> Iterator[tuple[Facts, Facts]]:
    for options in every_option():
        if options["enforcement"] == "off" or not (
            options["confinement"] == "landlock" and options["program"] == "runsc"
        ):
            for state in UNDER_WAY:
                machine = launch(state, **options)
                before = machine.facts
                machine.fail(LaunchError("for a test"))
                yield before, machine.facts


def test_failing_breaks_no_property_whatever_was_asked_for() -> None:
    """From every state of a launch with any options the way to Failed keeps all invariants and action properties."""
    for before, after in _failures():
        assert not violated(before, after)
        assert after.state is S.FAILED and after.cause == "fault"


@pytest.mark.parametrize(
    "options", [{}, {"enforcement": "off"}, {"confinement": "landlock", "program": "plain"}], ids=str
)
def test_a_guest_starts_once(options: dict[str, str]) -> None:
    """After Exec'd the guest runs, under each confinement that can hold it, and starts no second time."""
    machine = launch(S.EXECD, **options)  # type: ignore[arg-type]
    machine.fire("GuestStarts")
    assert (machine.state, machine.facts.guest) == (S.EXECD, "running")
    with pytest.raises(GuardRefused, match="GuestNotYet"):
        machine.fire("GuestStarts")
    assert fold(machine.records) == machine.facts


def test_runsc_under_landlock_would_be_stuck() -> None:
    """Facts that no launch reaches: the machine itself stops a guest that would hang."""
    facts = Facts(
        state=S.EXECD, confinement="landlock", confined="landlock", proved=True, image="trusted", staged="trusted"
    )
    machine = LaunchMachine(facts, Counted())
    with pytest.raises(SafetyViolation, match="ConfinedCanMount"):
        machine.fire("GuestStarts")
    assert machine.facts.guest == "none"
