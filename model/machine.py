"""The one `transitions.Machine`, and the only way to fire it.

How it is set up, and why (transitions 0.9.3): `auto_transitions=False`, because the default adds an unguarded
`to_X()` jump for every state. Each guard is wrapped so that False raises, because the library answers a false
guard with a silent False. All work is in `prepare`, `conditions` and `before`, because a raise there leaves the
state as it was, while one in `after` or `on_enter` comes too late. The machine's model is a private holder, so
that no trigger is an attribute that a caller could reach, and its state can be set while a transition commits, at
no other time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from transitions import EventData, Machine, MachineError

from nucleus_gvisor.model.environment import explains
from nucleus_gvisor.model.errors import GuardRefused, LaunchError, SafetyViolation, StepFailed
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import violated
from nucleus_gvisor.model.record import GENESIS, TransitionRecord, parse
from nucleus_gvisor.model.replay import fold
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.steps import Steps
from nucleus_gvisor.model.table import ROWS, TRANSITIONS, Guard, Row, failure_row

Sink = Callable[[TransitionRecord], None]


class _Holder:
    """What `transitions` sees: a state that only a commit can change."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.pending: Facts | None = None

    @property
    def state(self) -> LaunchState:
        return self.facts.state

    @state.setter
    def state(self, value: LaunchState) -> None:
        if self.pending is None or self.pending.state is not value:
            raise SafetyViolation(
                f"state set to {value} outside a transition", observed=self.facts.state, expected="a transition"
            )
        self.facts, self.pending = self.pending, None


class LaunchMachine:
    """One launch: its facts, its records, and `fire`, which moves it.

    `steps` does and sees; `sink` is given each record before its transition commits and makes it durable: if it
    raises, the transition does not happen. `by` is the first record's evidence: who launches. Spec: GVisorRuntime!Init.
    """

    def __init__(
        self,
        facts: Facts,
        steps: Steps,
        *,
        sink: Sink = lambda _: None,
        launch: str = "0" * 32,
        container: str = "",
        by: Mapping[str, object] | None = None,
    ) -> None:
        self._holder = _Holder(facts)
        self._steps = steps
        self._sink = sink
        self._seen: Mapping[str, object] = {}
        self._told: Mapping[str, object] = {}
        self._began = time.perf_counter()
        self._origin = facts
        self._firing = False
        self._machine = Machine(
            model=None,
            states=LaunchState,
            initial=None,
            auto_transitions=False,
            send_event=True,
            queued=False,
            transitions=[
                {
                    "trigger": row.trigger,
                    "source": list(row.sources),
                    "dest": row.dest,
                    "prepare": partial(self._observe, row),
                    "conditions": [partial(self._judge, row, guard) for guard in row.guards],
                    "before": partial(self._do, row),
                }
                for row in TRANSITIONS
            ],
        )
        self._identity = (launch, container)
        self._records: tuple[TransitionRecord, ...] = ()
        self._commit("Init", facts, facts, {}, by or {})

    @property
    def state(self) -> LaunchState:
        """Where the launch stands."""
        return self._holder.facts.state

    @property
    def facts(self) -> Facts:
        """The specification's variables, as far as they have been seen."""
        return self._holder.facts

    @property
    def records(self) -> tuple[TransitionRecord, ...]:
        """What has been committed so far, in order."""
        return self._records

    def fire(self, action: str, seen: Mapping[str, object] | None = None) -> None:
        """Make `action` happen, or raise and leave state, facts and records as they were.

        `seen` adds what the caller has learnt about the world. Raises GuardRefused when the action is not offered
        here or a guard does not hold, the step's own LaunchError when the world refuses, and whatever the sink
        raises.
        """
        row = ROWS.get(action)
        if row is None:
            raise GuardRefused(action, self.state, "no such action", observed=action, expected=", ".join(ROWS))
        if self._firing:
            raise GuardRefused(
                action,
                self.state,
                "another action is under way",
                observed="one that is not done",
                expected="one action at a time",
            )
        before, kept = self._holder.facts, self._records
        try:
            self._firing, self._told, self._began = True, seen or {}, time.perf_counter()
            self._machine.events[row.trigger].trigger(self._holder)
            if self._holder.pending is not None:  # an action that leaves the launch state alone
                self._holder.state = self._holder.pending.state
        except MachineError as error:
            raise GuardRefused(
                action, before.state, "source", observed=before.state, expected=", ".join(row.sources)
            ) from error
        except BaseException:
            if self._holder.facts is before:  # interrupted between the record and the move that it tells of
                self._records = kept
            raise
        finally:
            self._firing = False
            self._holder.pending = None

    def fail(self, error: LaunchError) -> None:
        """End the launch in Failed for the reason that `error` gives, unwinding all that was made.

        When unwinding fails as well, the launch ends in Failed with cause `left_behind`, and the second error is
        added to the first as a note.
        """
        row = failure_row(self.state, error.cause)
        # An error that does not fit what was asked for is a fault, whatever it says.
        fits = row.cause == error.cause and self._fits(row, error.shows)
        try:
            self.fire(row.action if fits else "FailFault", error.shows if fits else StepFailed.shows)
        except Exception as second:
            error.add_note(f"while unwinding: {second}")
            dirty = bool(self.facts.residue)
            self.fire("FailDirty" if dirty else "FailFault", StepFailed.shows)

    def _fits(self, row: Row, shows: Mapping[str, object]) -> bool:
        facts = self.facts.seen(shows)
        return explains(self.facts, facts) is not None and all(guard(facts) for guard in row.guards)

    # ---- callbacks of the machine, in the order in which they run ----

    def _observe(self, row: Row, _: EventData) -> None:
        facts = self._holder.facts
        seen = {**self._steps.observe(row.action, facts), **self._told}
        try:
            explained = explains(facts, facts.seen(seen)) is not None
        except (ValueError, TypeError) as error:
            raise SafetyViolation(
                f"observed what cannot be: {error}",
                step=row.action,
                observed=seen,
                expected="values that the specification has",
            ) from error
        if not explained:
            raise SafetyViolation(
                "observed what nothing in the environment does",
                step=row.action,
                observed=seen,
                expected="what the environment can do",
            )
        self._seen = seen

    def _judge(self, row: Row, guard: Guard, _: EventData) -> bool:
        facts = self._holder.facts.seen(self._seen)
        if not guard(facts):
            raise GuardRefused(
                row.action,
                facts.state,
                guard.__name__,
                observed=self._seen or None,
                expected=f"that {guard.__name__} holds",
            )
        return True

    def _do(self, row: Row, _: EventData) -> None:
        before = self._holder.facts.seen(self._seen)
        after = row.after(before)
        if broken := violated(before, after):
            raise SafetyViolation(
                f"{row.action} would violate {', '.join(broken)}",
                step=row.action,
                observed=f"in {before.state}",
                expected="an action that keeps every invariant",
            )
        if row.action == "Exec":
            self._check_evidence()
        evidence = self._steps.perform(row.action, before, after)
        self._commit(row.action, before, after, self._seen, evidence)
        self._holder.pending = after

    def _check_evidence(self) -> None:
        """Whoever bent our own data to get here has not passed the steps that the records show."""
        ours = [(record.launch, record.container) for record in self._records[:1]] == [self._identity]
        if not ours or fold(self._records) != self._holder.facts:
            raise SafetyViolation(
                "the facts are not those that this launch's records lead to",
                step="Exec",
                observed=self._holder.facts.state,
                expected="those that fold from its records",
            )

    def _commit(
        self, action: str, before: Facts, after: Facts, seen: Mapping[str, object], evidence: Mapping[str, object]
    ) -> None:
        known = (self._holder.facts if self._records else self._origin).as_dict()
        record = TransitionRecord(
            launch=self._identity[0],
            container=self._identity[1],
            seq=len(self._records),
            action=action,
            source=before.state.value,
            dest=after.state.value,
            seen={n: v for n, v in before.as_dict().items() if v != known[n]},
            facts=after.as_dict(),
            evidence=dict(evidence),
            time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            ms=round((time.perf_counter() - self._began) * 1000, 3),
            prev=self._records[-1].digest() if self._records else GENESIS,
        )
        try:
            # What is kept is what a reader of the line will have, and no later change to the step's own data.
            record = parse(record.line(), record.seq)
        except (TypeError, ValueError, RecursionError) as error:
            raise StepFailed(
                "the evidence cannot be recorded",
                step=action,
                observed=str(error),
                expected="what JSON can hold",
                hint="report it: the step's evidence is at fault, not the host",
            ) from error
        self._sink(record)
        self._records = (*self._records, record)


def fresh(**options: object) -> Facts:
    """The facts that a launch with these options begins with. Spec: GVisorRuntime!Init."""
    return replace(Facts(), **options)  # type: ignore[arg-type]
