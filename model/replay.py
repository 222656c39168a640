"""Judge records: fold them over the table, the disturbances and the invariants."""

from collections.abc import Iterable, Sequence

from nucleus_gvisor.model.environment import explains
from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import DOMAINS, OPTIONS, WORLD, Facts
from nucleus_gvisor.model.invariants import violated
from nucleus_gvisor.model.record import GENESIS, TransitionRecord
from nucleus_gvisor.model.states import TERMINAL
from nucleus_gvisor.model.table import ROWS


def initial(f: Facts) -> bool:
    """Is this a state that a launch may begin in (the specification's Init)."""
    fresh = Facts(**{name: getattr(f, name) for name in OPTIONS})
    return f == fresh or f == fresh.seen({"pin": "match"})


def _follow(before: Facts, record: TransitionRecord) -> Facts:
    """The facts after one record; ValueError says which rule it breaks."""
    row = ROWS.get(record.action)
    after = Facts.from_dict(record.facts)
    if row is None:
        raise ValueError(f"{record.action} is not an action")
    if record.source != before.state or before.state not in row.sources:
        raise ValueError(f"{record.action} is not offered in {before.state}")
    # `available` is an observation's word; a record has the variable's own.
    if strange := set(record.seen) - WORLD:
        raise ValueError(f"not observable: {', '.join(sorted(strange))}")
    for name, value in record.seen.items():
        # Python's 0 equals False, and the specification's FALSE is no number.
        if not isinstance(value, str | bool) or value not in DOMAINS[name]:
            raise ValueError(f"{name} = {value!r} is nothing that can be seen")
    seen = before.seen(record.seen)
    if explains(before, seen) is None:
        raise ValueError(f"nothing in the environment does {dict(record.seen)} in {before.state}")
    for guard in row.guards:
        if not guard(seen):
            raise ValueError(f"guard {guard.__name__} of {record.action} does not hold")
    expected = row.after(seen)
    if after != expected:
        wrong = [n for n, v in expected.as_dict().items() if record.facts[n] != v]
        raise ValueError(f"{record.action} does not lead to these {', '.join(wrong)}")
    if record.dest != after.state:
        raise ValueError(f"dest {record.dest} is not the state {after.state}")
    if broken := violated(seen, after):
        raise ValueError(f"{', '.join(broken)} violated")
    return after


def fold(records: Iterable[TransitionRecord]) -> Facts:
    """The facts at the end of `records`; RecordRejected with the shortest prefix that is no behaviour.

    Checked are the hash chain, that all lines are of one launch, and that each step is an edge of the
    specification's graph. A record without a terminal state is accepted: a killed launch leaves one (`complete` tells).
    """
    facts: Facts | None = None
    last: TransitionRecord | None = None
    for number, record in enumerate(records):
        try:
            if record.seq != number:
                raise ValueError(f"sequence number {record.seq}: a line is missing, doubled or moved")
            if record.prev != (GENESIS if last is None else last.digest()):
                raise ValueError("the chain is broken: this line does not name the hash of the line before")
            if last is not None and (record.launch, record.container) != (last.launch, last.container):
                raise ValueError("a line of another launch")
            if facts is None:
                facts = Facts.from_dict(record.facts)
                stands = record.source == record.dest == facts.state
                if record.action != "Init" or record.seen or not stands or not initial(facts):
                    raise ValueError("does not begin as a launch begins")
            else:
                facts = _follow(facts, record)
        except (ValueError, TypeError) as error:
            raise RecordRejected(
                f"line {number}: {error}", step="record", observed=f"{record.action} {record.source} -> {record.dest}"
            ) from error
        last = record
    if facts is None:
        raise RecordRejected("empty: a launch leaves at least its first line", step="record")
    return facts


def by_launch(records: Iterable[TransitionRecord]) -> dict[str, list[TransitionRecord]]:
    """The lines of a file that several launches appended to, launch by launch, in the order of their first lines."""
    launches: dict[str, list[TransitionRecord]] = {}
    for record in records:
        launches.setdefault(record.launch, []).append(record)
    return launches


def complete(records: Sequence[TransitionRecord]) -> bool:
    """Does the record end in a terminal state."""
    return bool(records) and records[-1].dest in TERMINAL
