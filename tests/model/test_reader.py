"""A reader of many lines knows what it has seen again, and judges each line as `parse` and a fresh follower do."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.model import replay
from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.record import MAX_LINE, Line, Reader, TransitionRecord, parse
from nucleus_gvisor.model.replay import Follower, Steps
from nucleus_gvisor.model.states import LaunchState
from tests.model.launches import launch

RECORDS = launch(LaunchState.EXECD, launch="0123456789abcdef" * 2, container="job-1").records
LINES = [record.line() for record in RECORDS]
OTHERS = launch(LaunchState.EXECD, launch="f" * 32, container="job-2").records


def warm() -> Reader:
    """A reader that has seen the lines of a whole launch."""
    reader = Reader()
    for line in LINES:
        reader.line(line)
    return reader


def answer(read: Any, line: bytes) -> object:
    """The record, or why there is none."""
    try:
        return read(line)
    except RecordRejected as error:
        return error.reason, str(error)


def same(line: bytes) -> bool:
    """Do a reader that knows the parts and `parse` answer the same; what they answer, where it is a record."""
    reader, plain = warm(), answer(parse, line)
    told = answer(lambda text: reader.line(text).record, line)
    assert told == plain, line
    if isinstance(told, TransitionRecord):
        found = reader.line(line)
        assert (found.digest, found.facts.as_dict()) == (told.digest(), told.facts) and told.line() == line
    return isinstance(told, TransitionRecord)


def test_what_is_known_again_is_what_was_read() -> None:
    """The records of another launch, whose parts are known, are read without being judged in full: equal to the bit."""
    reader = warm()
    for record in OTHERS:
        line = reader.line(record.line())
        assert line == Line(record, record.digest(), line.facts) and type(line.record.ms) is type(record.ms)
        assert reader.line(record.line()).facts is line.facts, "it is not known again"
    assert sum(same(line) for line in LINES) == len(LINES)


LINE = LINES[2].decode()
FACTS = json.dumps(RECORDS[2].facts, sort_keys=True, separators=(",", ":"))
REST = LINE.partition(',"launch":')[2]
CHANGES = [
    (LINE, LINE + " "),
    (LINE, " " + LINE),
    (LINE, LINE[:-1]),
    (LINE, ""),
    (LINE, LINE + LINE),
    ('"job-1"', '"jöb-1"'),
    ('"job-1"', '"j\\u00f6b"'),
    ('"job-1"', '"j\\u006fb"'),
    ('"job-1"', '"\\"facts\\":{}"'),
    ('"job-1"', "1"),
    ('"job-1"', "null"),
    ('"job-1"', '"' + "x" * MAX_LINE + '"'),
    ('"job-1"', '"\x7f"'),
    ('"evidence":{}', '"evidence":{"a":1}'),
    ('"evidence":{}', '"evidence":{ }'),
    ('"evidence":{}', '"evidence":{"a":1,"a":1}'),
    ('"evidence":{}', '"evidence":{"b":1,"a":1}'),
    ('"evidence":{}', '"evidence":{"a":NaN}'),
    ('"evidence":{}', '"evidence":[]'),
    ('"evidence":{}', '"evidence":{"a":1e400}'),
    ('"evidence":{}', '"evidence":{"a":' + "[" * 9999 + "]" * 9999 + "}"),
    ('"evidence":{}', '"evidence":{"a":1},"evidence":{}'),
    ('"evidence":{}', '"evidence":{},"extra":{}'),
    ('"evidence":{}', f'"evidence":{{"a":1}},"facts":{FACTS}'),
    ('"evidence":{}', f'"evidence":{{"facts":{FACTS}}}'),
    ('"evidence":{}', '"evidence":{"a":}'),
    ('"evidence":{}', '"evidence":{}}'),
    ('"seen":{}', f'"seen":{{"a":1,"facts":{FACTS},"launch":{REST}'),
    ('"seen":{}', '"seen":{"a":1}'),
    ('"seen":{}', '"seen":[]'),
    ('"seen":{}', '"seen":{ }'),
    ('"seen":{}', '"seen":{"a":1,"a":2}'),
    ('"seen":{}', f'"seen":{{"x":1,"facts":{FACTS}}}'),
    ('"alive":true', '"alive":1'),
    ('"alive":true', '"alive":1.0'),
    ('"alive":true', '"alive": true'),
    ('"alive":true,', ""),
    ('"seq":2', '"seq":02'),
    ('"seq":2', '"seq":2.0'),
    ('"seq":2', '"seq":true'),
    ('"seq":2', '"seq":-2'),
    ('"seq":2', '"seq":' + "9" * 5000),
    ('"v":1', '"v":2'),
    ('"v":1', '"v":1.0'),
    ('"v":1', '"v":true'),
    *(
        ('"ms":0.0', f'"ms":{ms}')
        for ms in (
            "1",
            "1.5",
            "0",
            "12.034",
            "123456789.001",
            "01",
            "1.50",
            "1.",
            ".5",
            "1e3",
            "-0.5",
            "0.0001",
            "1.5e-07",
            "NaN",
            "Infinity",
            "true",
            "1234567890.5",
            '"1"',
        )
    ),
]


def test_each_line_is_judged_as_alone() -> None:
    """Whatever is odd in a line is found, and worded, as if nothing had been read before."""
    line = LINE.replace(f'"ms":{json.dumps(RECORDS[2].ms)}', '"ms":0.0')
    accepted = 0
    for old, new in CHANGES:
        changed = new if old == LINE else line.replace(old, new)
        assert changed != line, old
        accepted += same(changed.encode())
    assert accepted == 16


@given(
    st.integers(0, len(LINES) - 1),
    st.integers(0, 2000),
    st.sampled_from(b'{}[]":,\\0129eE.-abftn\x00\xff\n '),
    st.booleans(),
)
def test_no_byte_makes_a_difference(number: int, at: int, byte: int, insert: bool) -> None:
    """A line with any byte changed, or put in, is answered as `parse` answers it."""
    line = bytearray(LINES[number])
    at %= len(line)
    line[at : at + (not insert)] = bytes([byte])
    same(bytes(line))


def test_a_file_is_read_line_by_line() -> None:
    """Numbers, ends and lengths of lines are told as `parse_all` tells them."""
    assert [line.record for line in Reader().lines(io.BytesIO(b"".join(line + b"\n" for line in LINES)))] == list(
        RECORDS
    )
    for text, reason in ((LINES[0], "cut"), (b"x" * (MAX_LINE + 5), "format"), (LINES[0] + b"\n" + b"x\n", "format")):
        with pytest.raises(RecordRejected) as caught:
            list(warm().lines(io.BytesIO(text)))
        assert (caught.value.reason, caught.value.line) == (reason, text.count(b"\n") // 2)


def test_what_it_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many parts, none longer than so much; beyond that it judges as before."""
    reader = Reader()
    monkeypatch.setattr(Reader, "MOST", 4)
    monkeypatch.setattr(Reader, "LONGEST", 20)
    for number in range(20):
        evidence = {"a": number} if number % 2 else {"long": "x" * 100 + str(number)}
        record = replace(RECORDS[0], evidence=evidence)
        assert [reader.line(record.line()).record for _ in "ab"] == [record, record]
        facts = {**RECORDS[0].facts, "space": bool(number % 2), "userns": number % 3 == 0, "calls": number % 5 == 0}
        reader.line(replace(RECORDS[0], facts=facts).line())
    for kept in (reader._facts, reader._values):
        assert 1 <= len(kept) <= 4
    assert max(map(len, reader._values)) <= 20


def followed(records: tuple[TransitionRecord, ...], known: Steps) -> object:
    """How far a follower comes that reads `records`, and why no farther."""
    reader, follower = Reader(), Follower(known)
    try:
        for record in records:
            follower.take(record, reader.line(record.line()))
    except RecordRejected as error:
        return error.line, error.reason, str(error)
    return follower.lines, follower.head, follower.facts


def test_known_steps_accept_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """After whole launches, each damage of a line is found as by a follower that knows nothing."""
    known: Steps = {}
    assert (
        followed(RECORDS, known) == followed(RECORDS, {}) == (len(RECORDS), RECORDS[-1].digest(), replay.fold(RECORDS))
    )
    for at in range(1, len(RECORDS)):
        record = RECORDS[at]
        bends: tuple[dict[str, Any], ...] = (
            {"action": "Exec"}, {"action": "none"}, {"source": "Failed"}, {"dest": "Failed"},
            {"seen": {"space": False}}, {"seen": {"space": 0}}, {"seen": {"space": []}}, {"facts": RECORDS[0].facts},
            {"evidence": {"method": "x"}},
            {"facts": {**record.facts, "space": False}}, {"seq": 9}, {"prev": "0" * 64}, {"launch": "e" * 32},
        )  # fmt: skip
        for bent in bends:
            lines = (*RECORDS[:at], replace(record, **bent))
            assert followed(lines, known) == followed(lines, {}), bent
            assert followed(lines, known)[0] == at or bent == {"action": record.action}  # type: ignore[index]


def test_a_step_is_asked_once_and_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal steps of two launches are judged once, by the same reader; more than so many are judged each time."""
    asked: list[str] = []
    step = replay._step

    def noted(before: Facts, record: TransitionRecord, after: Facts) -> None:
        asked.append(record.action)
        step(before, record, after)

    monkeypatch.setattr(replay, "_step", noted)
    reader = Reader()
    known: Steps = {}
    for records in (RECORDS, OTHERS, RECORDS):
        follower = Follower(known)
        for record in records:
            follower.take(record, reader.line(record.line()))
    assert asked == [record.action for record in RECORDS[1:]] and len(known) == len(asked)
    monkeypatch.setattr(replay, "MOST_STEPS", 2)
    few: Steps = {}
    follower = Follower(few)
    for record in RECORDS:
        follower.take(record, reader.line(record.line()))
    assert len(few) == 2
