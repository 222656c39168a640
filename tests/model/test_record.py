"""Record files: written in one form only, and rejected when a single bit is another."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import LaunchError, RecordRejected
from nucleus_gvisor.model.record import GENESIS, MAX_LINE, TransitionRecord, claims, parse, parse_all, set_digest
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import LaunchState
from tests.model.launches import Counted, launch, plain, sealed, text_of

S = LaunchState
HEAD_ONLY = {"time", "ms", "evidence"}
"""Fields of the last line that nothing but its own hash, the head, vouches for."""


def _full() -> tuple[TransitionRecord, ...]:
    steps = Counted(
        act=lambda action: {"sha256": "5f" * 32, "argv": ["runsc", "--root", "/a b"], "pid": 17, "did": action}
    )
    return launch(S.EXECD, steps, launch="0123456789abcdef" * 2, container="job-1", method="copy", pin="match").records


RECORDS = _full()
TEXT = text_of(RECORDS)
LINES = TEXT.splitlines(keepends=True)
STRUCTURE = set(b'{}[]":,\n')


def accepted(text: bytes) -> tuple[TransitionRecord, ...] | None:
    """The records when reading and replaying accept them."""
    try:
        records = parse_all(text)
        fold(records)
    except RecordRejected:
        return None
    return records


def rejected(text: bytes) -> str:
    """Why the text is rejected; the test fails when it is not."""
    with pytest.raises(RecordRejected) as caught:
        fold(parse_all(text))
    return str(caught.value)


DIGEST, OTHER = "5f" * 32, "60" * 32
SET = hashlib.sha256(f"{OTHER}  gvisor-bin/x\n{DIGEST}  runsc\n".encode()).hexdigest()
"""What `sha256sum gvisor-bin/x runsc | sha256sum` prints."""


@pytest.mark.parametrize(
    ("action", "evidence", "said"),
    [
        ("Exec", {}, {}),
        ("Exec", {"method": "copy", "requested": "landlock", "pid": 7}, {"method": "copy", "confinement": "landlock"}),
        ("FailExec", {"error": {"cause": "exec"}}, {"cause": "exec"}),
        ("FailExec", {"error": {}}, {}),
        ("FailExec", {"error": "text"}, {}),
        ("FailFault", {"error": {"cause": "exec"}}, {}),
        ("FailDirty", {"error": {"cause": "exec"}}, {}),
        ("Exec", {"digests": {}, "pin": None}, {"pin": "none"}),
        ("Exec", {"digests": "text", "pin": DIGEST}, {}),
        ("Exec", {"pin": DIGEST, "sha256": DIGEST}, {"pin": "match"}),
        ("Exec", {"pin": DIGEST, "sha256": DIGEST, "digests": {"runsc": DIGEST}}, {"pin": "match"}),
        ("Exec", {"pin": DIGEST, "digests": {"runsc": OTHER}}, {"pin": "mismatch"}),
        ("Exec", {"pin": DIGEST, "sha256": DIGEST, "digests": {"runsc": OTHER}}, {"pin": "two digests of one file"}),
        ("Exec", {"pin": DIGEST, "sha256": DIGEST, "set": OTHER}, {"pin": "two digests of one file"}),
        ("Exec", {"pin": SET, "digests": {"runsc": DIGEST, "gvisor-bin/x": OTHER}, "set": SET}, {"pin": "match"}),
        ("Exec", {"pin": DIGEST, "digests": {"runsc": DIGEST, "gvisor-bin/x": OTHER}}, {"pin": "mismatch"}),
        ("Exec", {"sha256": DIGEST}, {}),
        ("Exec", {"pin": DIGEST}, {}),
    ],
)
def test_what_evidence_says_of_variables(action: str, evidence: dict[str, object], said: dict[str, object]) -> None:
    """No more than it holds, of whatever form it is: evidence is the forger's to write."""
    assert claims(replace(RECORDS[-1], action=action, evidence=evidence)) == said


# ---- one form ----


def test_a_record_file_reads_back_as_it_was() -> None:
    """What was written is read, accepted, complete, and written again as the same bytes."""
    records = parse_all(TEXT)
    assert records == RECORDS and text_of(records) == TEXT
    assert fold(records).state is S.EXECD and complete(records)


def test_a_line_is_canonical_json() -> None:
    """Each line is ASCII, one JSON object with sorted names and no white space outside of its texts."""
    for line in LINES:
        data = json.loads(line)
        assert line == json.dumps(data, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        assert line.isascii() and line.count(b"\n") == 1


def test_the_chain_names_each_line_before() -> None:
    """Line 0 names nothing; every other line the hash of the bytes before it, which sha256sum would print."""
    import hashlib

    data = [json.loads(line) for line in LINES]
    assert data[0]["prev"] == "0" * 64 == GENESIS
    for before, after in zip(LINES, data[1:], strict=False):
        assert after["prev"] == hashlib.sha256(before.rstrip(b"\n")).hexdigest()


def _other_forms() -> Iterator[tuple[str, bytes]]:
    line = LINES[-1].rstrip(b"\n")
    data = json.loads(line)
    yield "a space", line.replace(b'"seq":', b'"seq": ')
    yield "leading space", b" " + line
    yield "trailing space", line + b" "
    yield "carriage return", line + b"\r"
    yield "other order", json.dumps(dict(reversed(data.items())), separators=(",", ":")).encode()
    yield "escaped letter", line.replace(b'"Exec"', b'"\\u0045xec"')
    yield "exponent", line.replace(b'"pid":17', b'"pid":1.7e1')
    yield "float seq", line.replace(b'"seq":5', b'"seq":5.0')
    yield "long number", line.replace(b'"seq":5', b'"seq":' + b"9" * 6000)
    yield "infinite ms", json.dumps({**data, "ms": 0}, sort_keys=True, separators=(",", ":")).encode().replace(
        b'"ms":0', b'"ms":1e999')  # fmt: skip
    yield "NaN ms", json.dumps({**data, "ms": float("nan")}, sort_keys=True, separators=(",", ":")).encode()
    yield "Infinity in evidence", line.replace(b'"pid":17', b'"pid":Infinity')
    yield "byte order mark", b"\xef\xbb\xbf" + line
    yield "UTF-16", line.decode().encode("utf-16")
    yield "not ASCII", line.replace(b"job-1", "jöb-1".encode())
    yield "NUL", line + b"\0"
    yield "two objects", line + line
    yield "a list", b"[" + line + b"]"
    yield "a text", json.dumps(line.decode()).encode()
    yield "null", b"null"
    yield "empty", b""
    yield "name twice", line.replace(b'"seq":5', b'"seq":5,"seq":5')
    yield "name twice, deep", line.replace(b'"pid":17', b'"pid":17,"pid":17')
    yield "name twice, escaped", line.replace(b'"seq":5', b'"seq":5,"\\u0073eq":5')
    yield "huge", line.replace(b"/a b", b"/a b" + b"x" * MAX_LINE)
    yield "deep evidence", line.replace(b'"pid":17', b'"pid":' + b"[" * 100_000 + b"]" * 100_000)
    yield "deep, unclosed", line.replace(b'"pid":17', b'"pid":' + b'{"a":' * 100_000)
    for name in data:
        yield f"without {name}", _dumped({key: value for key, value in data.items() if key != name})
    yield "one field more", _dumped({**data, "note": "hello"})


def _dumped(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in _other_forms()])
def test_another_form_of_a_line_is_rejected(line: bytes) -> None:
    """Only the bytes that the writer writes are a line: else one record would have two hashes."""
    assert line != LINES[-1].rstrip(b"\n"), "the test has changed nothing"
    with pytest.raises(RecordRejected, match="line 5"):
        parse(line, 5)
    assert accepted(b"".join(LINES[:-1]) + line + b"\n") is None


BAD_FIELDS: list[tuple[str, object]] = [
    ("v", 2),
    ("v", "1"),
    ("v", True),
    ("v", None),
    ("launch", 7),
    ("launch", None),
    ("container", []),
    ("container", True),
    ("seq", "5"),
    ("seq", None),
    ("seq", True),
    ("action", 5),
    ("action", None),
    ("source", {}),
    ("dest", False),
    ("seen", []),
    ("seen", None),
    ("seen", "{}"),
    ("facts", []),
    ("facts", None),
    ("facts", {}),
    ("evidence", []),
    ("evidence", "x"),
    ("time", 1.5),
    ("time", None),
    ("ms", "1"),
    ("ms", None),
    ("ms", True),
    ("prev", 0),
    ("prev", None),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_a_field_of_another_type_is_rejected(name: str, value: object) -> None:
    """JSON types are not mixed up, booleans and numbers least of all."""
    with pytest.raises(RecordRejected):
        parse(_dumped({**json.loads(LINES[-1]), name: value}))


BAD_FACTS: list[tuple[str, object]] = [
    ("alive", 1),
    ("alive", "true"),
    ("fit", 1.0),
    ("holds", None),
    ("proved", 1),
    ("request", []),
    ("state", "exec'd"),
    ("state", True),
    ("state", "EXECD"),
    ("cause", "unknown"),
    ("cause", None),
    ("held", "Trusted"),
    ("residue", "stage"),
    ("residue", None),
    ("residue", {"stage": 1}),
    ("residue", ["stage", 1]),
    ("residue", ["house"]),
    ("residue", [["stage"]]),
    ("method", {}),
    ("pin", True),
    ("image", ""),
    ("residue", ["directory", "stage", "stage"]),
    ("residue", ["stage", "directory"]),
]


@pytest.mark.parametrize(("name", "value"), BAD_FACTS, ids=str)
def test_facts_outside_of_their_domain_are_rejected(name: str, value: object) -> None:
    """A variable has its own values in one spelling, sets in one order and nothing twice."""
    lines = plain(RECORDS)
    lines[-1]["facts"][name] = value
    assert accepted(sealed(lines)) is None


@pytest.mark.parametrize("change", [lambda f: f.pop("alive"), lambda f: f.update(extra=True), lambda f: f.clear()])
def test_facts_are_complete(change: Callable[[dict[str, Any]], object]) -> None:
    """All variables stand in each line, and nothing else."""
    lines = plain(RECORDS)
    change(lines[-1]["facts"])
    rejected(sealed(lines))


# ---- a bit, a line ----


def _flipped(place: int, bit: int) -> tuple[TransitionRecord, ...] | None:
    """The records with one bit flipped, or None. Only the line with the bit is read, unless line ends change."""
    new = TEXT[place] ^ (1 << bit)
    if 10 in (TEXT[place], new):
        return accepted(TEXT[:place] + bytes([new]) + TEXT[place + 1 :])
    number = TEXT.count(b"\n", 0, place)
    at = place - sum(map(len, LINES[:number]))
    try:
        record = parse(LINES[number][:at] + bytes([new]) + LINES[number][at + 1 : -1], number)
        records = (*RECORDS[:number], record, *RECORDS[number + 1 :])
        fold(records)
    except RecordRejected:
        return None
    return records


def _refused_or_seen_by_the_head(place: int, bit: int) -> None:
    records = _flipped(place, bit)
    if records is None:
        return
    assert len(records) == len(RECORDS) and records[:-1] == RECORDS[:-1]
    assert records[-1].digest() != RECORDS[-1].digest()
    changed = {name for name in json.loads(LINES[0]) if getattr(records[-1], name) != getattr(RECORDS[-1], name)}
    assert changed <= HEAD_ONLY, f"bit {bit} of byte {place} changes {changed} and is accepted"


def test_a_flipped_bit_of_the_structure_is_rejected() -> None:
    """Every bit of every bracket, quote, comma, colon and line end, in all lines."""
    places = [place for place, byte in enumerate(TEXT) if byte in STRUCTURE]
    assert len(places) > 1000
    for place in places:
        for bit in range(8):
            _refused_or_seen_by_the_head(place, bit)


def test_a_flipped_bit_of_any_byte_is_rejected() -> None:
    """One bit of every byte of the file; only the last line's free fields need the head to be noticed."""
    for place in range(len(TEXT)):
        _refused_or_seen_by_the_head(place, place * 5 % 8)


@pytest.mark.slow
def test_every_flipped_bit_is_rejected() -> None:
    """All bits of a full launch's file."""
    for place in range(len(TEXT)):
        for bit in range(8):
            _refused_or_seen_by_the_head(place, bit)


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4
    )
)
def test_any_edit_is_rejected_or_seen_by_the_head(edits: list[tuple[int, int, bytes]]) -> None:
    """Bytes cut out, put in or replaced anywhere."""
    text = TEXT
    for place, cut, new in edits:
        text = text[:place] + new + text[place + cut :]
    records = accepted(text)
    if records is not None and text != TEXT:
        whole = [n for n, record in enumerate(records[:-1]) if record != RECORDS[n]]
        assert not whole, f"lines {whole} were changed, and are accepted"
        assert records[-1].digest() != RECORDS[-1].digest()


@pytest.mark.parametrize("place", range(len(LINES)))
def test_a_doubled_line_is_rejected(place: int) -> None:
    """No line can stand twice."""
    assert f"line {place + 1}" in rejected(b"".join([*LINES[: place + 1], *LINES[place:]]))


@pytest.mark.parametrize("place", range(len(LINES) - 1))
def test_a_missing_line_is_rejected(place: int) -> None:
    """No line but the last can be missing: what follows names it."""
    assert f"line {place}" in rejected(b"".join(LINES[:place] + LINES[place + 1 :]))


@pytest.mark.parametrize("place", range(len(LINES) - 1))
@pytest.mark.parametrize("other", range(1, len(LINES)))
def test_swapped_lines_are_rejected(place: int, other: int) -> None:
    """Order matters; the first line that is out of place is named."""
    if place < other:
        lines = list(LINES)
        lines[place], lines[other] = lines[other], lines[place]
        assert f"line {place}" in rejected(b"".join(lines))


def test_a_tail_cut_within_a_line_is_rejected() -> None:
    """A file that ends within a line was cut while it was written, wherever the cut is."""
    for end in range(1, len(TEXT)):
        if TEXT[end - 1 : end] != b"\n":
            with pytest.raises(RecordRejected, match="not ended"):
                parse_all(TEXT[:end])


@pytest.mark.parametrize("kept", range(1, len(LINES)))
def test_a_tail_cut_between_lines_is_not_complete(kept: int) -> None:
    """A killed launch leaves such a file: a behaviour, not a complete one; the head shows what is gone."""
    records = parse_all(b"".join(LINES[:kept]))
    assert fold(records).state == RECORDS[kept - 1].dest
    assert not complete(records) and records[-1].digest() != RECORDS[-1].digest()


@pytest.mark.parametrize("text", [b"", b"\n", b"\n" * 3, b" \n"])
def test_an_empty_file_is_rejected(text: bytes) -> None:
    """A launch leaves at least its first line."""
    rejected(text)
    assert not complete(())


@pytest.mark.parametrize("extra", [b"\n", b"{}\n", b"x", b"\0\n", LINES[0]])
def test_what_is_appended_is_rejected(extra: bytes) -> None:
    """Nothing can follow the last line."""
    rejected(TEXT + extra)


@pytest.mark.parametrize("place", range(len(LINES)))
def test_a_line_of_another_launch_is_rejected(place: int) -> None:
    """Two launches that did the same cannot lend each other a line."""
    other = launch(S.EXECD, Counted(), launch="f" * 32, container="job-1", method="copy", pin="match").records
    lines = list(LINES)
    lines[place] = other[place].line() + b"\n"
    rejected(b"".join(lines))


@pytest.mark.parametrize("name", ["launch", "container"])
@pytest.mark.parametrize("place", range(1, len(LINES)))
def test_names_do_not_change_under_way(name: str, place: int) -> None:
    """All lines name one launch and one container, though the chain be whole."""
    lines = plain(RECORDS)
    lines[place][name] = "f" * 32
    assert f"line {place}: a line of another launch" in rejected(sealed(lines))


# ---- anything at all ----


@given(text=st.binary(max_size=400))
@example(b"[" * 200_000)
@example(b'{"a":' * 50_000 + b"\n")
@example(b'{"v":' + b"9" * 5000 + b"}\n")
@example(b'"\\ud800"\n')
@example(b"\xff\xfe\n")
def test_no_bytes_do_more_than_be_rejected(text: bytes) -> None:
    """Whatever lies in the file, reading it ends in records or in RecordRejected."""
    try:
        parse_all(text)
    except RecordRejected as error:
        assert "\n" not in str(error)


wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    place=st.integers(0, 5),
    changes=st.dictionaries(st.sampled_from(sorted(json.loads(LINES[0]))), wild, max_size=3),
    facts=st.dictionaries(st.sampled_from(sorted(json.loads(LINES[0])["facts"])), wild, max_size=2),
    seen=st.dictionaries(
        st.text(max_size=6) | st.sampled_from(sorted(json.loads(LINES[0])["facts"])), wild, max_size=2
    ),
)
def test_no_data_does_more_than_be_rejected(
    place: int, changes: dict[str, Any], facts: dict[str, Any], seen: dict[str, Any]
) -> None:
    """Any JSON in any field of a line whose form is right: at most RecordRejected comes of it."""
    lines = plain(RECORDS)
    lines[place]["facts"].update(facts)
    lines[place]["seen"].update(seen)
    lines[place].update(changes)
    text = b"".join(_dumped(line) + b"\n" for line in lines)
    try:
        fold(parse_all(text))
    except LaunchError as error:
        assert isinstance(error, RecordRejected) and "\n" not in str(error)


def test_what_a_pin_names() -> None:
    """runsc's own digest, or that of the lines which sha256sum prints of all files, sorted by name."""
    assert set_digest({"runsc": DIGEST}) == DIGEST
    both = {"runsc": DIGEST, "gvisor-bin/x": OTHER}
    assert set_digest(both) == SET == set_digest(dict(reversed(both.items())))
