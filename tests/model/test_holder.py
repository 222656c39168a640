"""What `transitions` is given: a state that only a commit moves, and no trigger but the specification's actions."""

from dataclasses import replace

import pytest

from nucleus_gvisor.model.errors import SafetyViolation
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.machine import LaunchMachine, _Holder
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import TRANSITIONS


def test_there_are_no_triggers_but_the_actions() -> None:
    """Above all no `to_X`, which would be a jump without a guard."""
    machine = LaunchMachine(Facts(), NoSteps())
    assert set(machine._machine.events) == {row.trigger for row in TRANSITIONS}


@pytest.mark.parametrize("pending", [None, LaunchState.PREPARED])
def test_a_state_is_set_only_to_what_is_being_committed(pending: LaunchState | None) -> None:
    """Between commits, or to another state than the pending one, it is a safety violation, and nothing moves."""
    holder = _Holder(Facts())
    holder.pending = None if pending is None else replace(Facts(), state=pending)
    with pytest.raises(SafetyViolation):
        holder.state = LaunchState.RESOLVED
    assert holder.facts == Facts()


def test_a_commit_moves_it_once() -> None:
    """The pending facts become the facts, and are not pending any more."""
    holder, after = _Holder(Facts()), replace(Facts(), state=LaunchState.RESOLVED)
    holder.pending = after
    holder.state = LaunchState.RESOLVED
    assert holder.facts == after
    assert holder.__dict__["pending"] is None


def test_an_interrupt_between_record_and_move_leaves_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was kept while the state was not moved is given up, so that the records still lead to the facts."""

    class Interrupting(_Holder):
        @property
        def state(self) -> LaunchState:
            return self.facts.state

        @state.setter
        def state(self, value: LaunchState) -> None:
            raise KeyboardInterrupt

    machine = LaunchMachine(Facts(), NoSteps())
    begun, before = machine.records, machine.facts
    monkeypatch.setattr(machine._holder, "__class__", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        machine.fire("Resolve")
    assert (machine.records, machine.facts) == (begun, before)
    monkeypatch.undo()
    machine.fire("Resolve")
    assert [record.action for record in machine.records] == ["Init", "Resolve"]


def test_an_interrupt_after_the_move_leaves_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that was moved stays, with its line: what is on record has happened."""

    class Interrupting(_Holder):
        @property
        def state(self) -> LaunchState:
            return self.facts.state

        @state.setter
        def state(self, value: LaunchState) -> None:
            vars(_Holder)["state"].fset(self, value)
            raise KeyboardInterrupt

    machine = LaunchMachine(Facts(), NoSteps())
    monkeypatch.setattr(machine._holder, "__class__", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        machine.fire("Resolve")
    monkeypatch.undo()
    assert machine.state is LaunchState.RESOLVED
    assert [record.action for record in machine.records] == ["Init", "Resolve"]
    machine.fire("Prepare")
    assert machine.records[-1].dest == LaunchState.PREPARED.value
