"""Judge records: fold them over the table, the disturbances and the invariants."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nucleus_gvisor.model.environment import explains
from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import DOMAINS, OPTIONS, WORLD, Facts
from nucleus_gvisor.model.invariants import violated
from nucleus_gvisor.model.record import GENESIS, Line, Reader, TransitionRecord, canonical, claims, read, rejected
from nucleus_gvisor.model.states import TERMINAL
from nucleus_gvisor.model.table import ROWS

REASONS: Mapping[str, str] = {
    "accepted": "a behaviour of the specification",
    "empty": "not even the first line is there",
    "format": "not a line that a launch writes",
    "cut": "the last line is not ended",
    "begin": "does not begin as a launch begins",
    "order": "not the number that follows",
    "chain": "does not name the hash of the line before",
    "owner": "a line of another launch",
    "source": "not where the launch stood",
    "seen": "nothing in the environment does this here",
    "guard": "the action is not possible here",
    "effect": "the action does not lead to these facts",
    "evidence": "the evidence contradicts the facts",
    "head": "the last line is not the one that the head names",
}
"""All that can be said of a record. Of several, the first that is so is said, in the order of this table."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one record."""

    line: int
    """The first line that is not accepted, counted from 0; the number of lines when all are."""
    reason: str
    """One of REASONS."""
    words: str = field(default="", compare=False)
    """The same in full, from a judge who says more."""

    @property
    def accepted(self) -> bool:
        return self.reason == "accepted"


def initial(f: Facts) -> bool:
    """Is this a state that a launch may begin in (the specification's Init)."""
    fresh = Facts(**{name: getattr(f, name) for name in OPTIONS})
    return f == fresh or f == fresh.seen({"pin": "match"})


Steps = dict[tuple[int, int, str, str, str, str], tuple[Facts, Facts]]
"""Steps that were accepted: all that was judged of each, and the facts before and after, by which it is told."""
MOST_STEPS = 10_000


class _Broken(ValueError):
    """Why a line is not accepted: one of REASONS, and the words for it."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def _step(before: Facts, record: TransitionRecord, after: Facts) -> None:
    """Judge the step to `after`, the record's facts. What is asked, and in which order, is `Reason` of Trace.tla."""
    row = ROWS.get(record.action)
    stray = ""
    if row is None:
        stray = f"{record.action} is not an action"
    elif before.state not in row.sources:
        stray = f"{record.action} is not offered in {before.state}"
    if record.source != before.state:
        raise _Broken("source", stray or f"source {record.source} is not the state {before.state}")
    # `available` is an observation's word; a record has the variable's own.
    if strange := set(record.seen) - WORLD:
        raise _Broken("seen", f"not observable: {', '.join(sorted(strange))}")
    for name, value in record.seen.items():
        # Python's 0 equals False, and the specification's FALSE is no number.
        if not isinstance(value, str | bool) or value not in DOMAINS[name]:
            raise _Broken("seen", f"{name} = {value!r} is nothing that can be seen")
    seen = before.seen(record.seen)
    if explains(before, seen) is None:
        raise _Broken("seen", f"nothing in the environment does {dict(record.seen)} in {before.state}")
    if row is None or stray:
        raise _Broken("guard", stray)
    for guard in row.guards:
        if not guard(seen):
            raise _Broken("guard", f"guard {guard.__name__} of {record.action} does not hold")
    expected = row.after(seen)
    if after != expected:
        wrong = [n for n, v in expected.as_dict().items() if record.facts[n] != v]
        raise _Broken("effect", f"{record.action} does not lead to these {', '.join(wrong)}")
    if record.dest != after.state:
        raise _Broken("effect", f"dest {record.dest} is not the state {after.state}")
    if broken := violated(seen, after):
        raise _Broken("effect", f"{', '.join(broken)} violated")


def _believe(record: TransitionRecord) -> None:
    wrong = [name for name, value in claims(record).items() if record.facts[name] != value]
    if wrong:
        raise _Broken("evidence", f"the evidence says otherwise of {', '.join(wrong)}")


class Follower:
    """Follows one launch's record, line by line, in memory that does not grow.

    Checked are the hash chain, that all lines are of one launch, that each step is an edge of the specification's
    graph, and that the evidence does not contradict the facts. A record may end anywhere: a killed launch's does.
    `known` are steps that were accepted before, by another follower of the same reader: equal ones are not asked again.
    """

    def __init__(self, known: Steps | None = None) -> None:
        self._known: Steps = {} if known is None else known
        self.lines: int = 0
        """How many were accepted."""
        self.facts: Facts | None = None
        """Where the last of them led."""
        self.head = GENESIS
        """Its SHA-256."""
        self.owner: tuple[str, str] | None = None
        """Launch and container."""

    @property
    def complete(self) -> bool:
        """Has the launch come to its end."""
        return self.facts is not None and self.facts.state in TERMINAL

    def take(self, record: TransitionRecord, line: Line | None = None) -> None:
        """Accept the next line; RecordRejected, and nothing changed, when no behaviour has it here.

        `line` is what a `Reader` knows of the record.
        """
        try:
            facts = self._judge(record, None if line is None else line.facts)
        except (ValueError, TypeError) as error:
            reason = "begin" if self.facts is None else getattr(error, "reason", "format")
            told = f"{record.action} {record.source} -> {record.dest}"
            raise rejected(self.lines, reason, error, told) from error
        self.facts, self.owner = facts, (record.launch, record.container)
        self.head = record.digest() if line is None else line.digest
        self.lines += 1

    def _judge(self, record: TransitionRecord, facts: Facts | None) -> Facts:
        if record.seq != self.lines:
            raise _Broken("order", f"sequence number {record.seq}: a line is missing, doubled or moved")
        if record.prev != self.head:
            raise _Broken("chain", "the chain is broken: this line does not name the hash of the line before")
        if self.owner not in (None, (record.launch, record.container)):
            raise _Broken("owner", "a line of another launch")
        facts = facts or Facts.from_dict(record.facts)
        stands = record.source == record.dest == facts.state
        if self.facts is not None:
            self._follow(self.facts, record, facts)
        elif record.action != "Init" or record.seen or not stands or not initial(facts):
            raise _Broken("begin", "does not begin as a launch begins")
        _believe(record)
        return facts

    def _follow(self, before: Facts, record: TransitionRecord, after: Facts) -> None:
        seen = canonical(record.seen) if record.seen else ""
        step = (id(before), id(after), record.action, record.source, record.dest, seen)
        if step not in self._known:
            _step(before, record, after)
            if len(self._known) < MOST_STEPS:
                self._known[step] = (before, after)  # as long as these are kept, nothing else has their ids


def fold(records: Iterable[TransitionRecord]) -> Facts:
    """The facts at the end of `records`, judged by a `Follower`; RecordRejected with the first bad line, or for none.

    A record without a terminal state is accepted: a killed launch leaves one (`complete` tells).
    """
    follower = Follower()
    for record in records:
        follower.take(record)
    if follower.facts is None:
        raise _empty()
    return follower.facts


def _empty() -> RecordRejected:
    return rejected(0, "empty", "empty: a launch leaves at least its first line")


def judge(text: bytes, head: str | None = None) -> Judgement:
    """The judgement of one launch's record; with `head`, its last line's hash, also of whether the tail is there."""
    follower = Follower()
    try:
        for line in Reader().lines(io.BytesIO(text)):
            follower.take(line.record, line)
        if not follower.lines:
            raise _empty()
        if head not in (None, follower.head):
            raise rejected(follower.lines, "head", REASONS["head"])
    except RecordRejected as error:
        return Judgement(error.line, error.reason, str(error))
    return Judgement(follower.lines, "accepted")


def by_launch(records: Iterable[TransitionRecord]) -> dict[str, list[TransitionRecord]]:
    """The lines of a file that several launches appended to, launch by launch, in the order of their first lines."""
    launches: dict[str, list[TransitionRecord]] = {}
    for record in records:
        launches.setdefault(record.launch, []).append(record)
    return launches


def split(text: bytes) -> list[bytes]:
    """The record of each launch in a file, launch by launch; all of it as one where a line cannot be read."""
    try:
        launches = by_launch(read(io.BytesIO(text)))
    except RecordRejected:
        return [text]
    return [b"".join(record.line() + b"\n" for record in records) for records in launches.values()] or [text]


def complete(records: Sequence[TransitionRecord]) -> bool:
    """Does the record end in a terminal state."""
    return bool(records) and records[-1].dest in TERMINAL
