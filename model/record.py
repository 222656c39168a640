"""The record of a launch: one line for each transition, each naming the hash of the line before it.

A line is canonical JSON (sorted keys, no white space, ASCII), so that equal records are equal bytes.
Format: `spec/TRACE_FORMAT.md`.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, BinaryIO, NamedTuple

from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import Facts

canonical: Callable[[object], str] = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""The one text of JSON data."""
VERSION = 1
GENESIS = "0" * 64
MAX_LINE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionRecord:
    """One transition as it was committed. Line 0 has the action `Init` and the facts that the launch began with."""

    launch: str
    """32 hex digits, drawn anew for each launch."""
    container: str
    seq: int
    action: str
    source: str
    dest: str
    seen: Mapping[str, object]
    """What the world had changed since the line before."""
    facts: Mapping[str, object]
    """All variables after the transition."""
    evidence: Mapping[str, object]
    time: str
    """When it was committed, RFC 3339, UTC."""
    ms: float
    """How long it took, milliseconds."""
    prev: str
    """SHA-256 of the line before, in hex; zeros in line 0."""
    v: int = VERSION

    def line(self) -> bytes:
        """The record's own bytes, without the newline."""
        return canonical({name: getattr(self, name) for name in NAMES}).encode("ascii")

    def digest(self) -> str:
        """SHA-256 of the line, in hex: the next line's `prev`."""
        return hashlib.sha256(self.line()).hexdigest()


NAMES = tuple(sorted(f.name for f in fields(TransitionRecord)))
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "v": int, "launch": str, "container": str, "seq": int, "action": str, "source": str, "dest": str, "seen": dict,
    "facts": dict, "evidence": dict, "time": str, "ms": (int, float), "prev": str,
}  # fmt: skip


def parse(line: bytes, number: int = 0) -> TransitionRecord:
    """The record that `line` is; RecordRejected unless it is exactly what `TransitionRecord.line` writes."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        if not line.isascii():
            raise ValueError("not ASCII")
        data = json.loads(line.decode())
        if not isinstance(data, dict) or tuple(sorted(data)) != NAMES:
            raise ValueError("fields missing or unknown")
        for name, kind in _TYPES.items():
            if not isinstance(data[name], kind) or isinstance(data[name], bool):
                raise ValueError(f"{name} has the wrong type")
        if data["v"] != VERSION:
            raise ValueError(f"version {data['v']}")
        record = TransitionRecord(**data)
        # Two texts of one record would have two hashes: only the canonical one, without a name twice, is a record.
        if record.line() != line:
            raise ValueError("not in canonical form")
        Facts.from_dict(record.facts)
    except json.JSONDecodeError as error:
        raise rejected(number, "format", f"no JSON: {error.msg} at byte {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise rejected(number, "format", error) from error
    return record


def rejected(line: int, reason: str, why: object, observed: str | None = None) -> RecordRejected:
    """The error that names the first bad line, and one of `model.replay.REASONS`."""
    error = RecordRejected(
        f"line {line}: {why}",
        step="record",
        observed=observed,
        expected="a line that a launch of the specification leaves",
    )
    error.line, error.reason = line, reason
    return error


def read(file: BinaryIO) -> Iterator[TransitionRecord]:
    """The records in `file`, line by line, never more than one in memory; RecordRejected as of `parse_all`."""
    return (line.record for line in Reader().lines(file))


class Line(NamedTuple):
    """A line that was read."""

    record: TransitionRecord
    digest: str
    """Its SHA-256, as of `TransitionRecord.digest`."""
    facts: Facts
    """What the record's facts are."""


# Each matches nothing but the one text of what it says.
_STRING, _COUNT = r'"([ !#-\[\]-~]*)"', "(0|[1-9][0-9]{0,8})"
_TIME = rf"{_COUNT}(\.(?:0|[0-9]{{0,2}}[1-9]))?"
_BEFORE = re.compile(rf'\{{"action":{_STRING},"container":{_STRING},"dest":{_STRING},"evidence":(\{{.*\}})')
_AFTER = re.compile(
    rf'{_STRING},"ms":{_TIME},"prev":{_STRING},"seen":(\{{[^{{}}]*\}}),"seq":{_COUNT},"source":{_STRING},'
    rf'"time":{_STRING},"v":{VERSION}\}}'
)


class Reader:
    """Reads many lines. They differ in few parts: what it has judged in full it knows again by its text.

    A line is canonical when it is put together of canonical parts in the order of their names; so a line whose parts
    are known need not be written again to be compared. Any other goes the long way, `parse`. Equal parts of records are
    one object: nobody may change them.
    """

    MOST, LONGEST = 1000, 4096

    def __init__(self) -> None:
        self._facts: dict[str, tuple[Mapping[str, object], Facts]] = {}
        self._values: dict[str, Any] = {}

    def lines(self, file: BinaryIO) -> Iterator[Line]:
        """The lines of `file`, never more than one in memory; RecordRejected as of `parse_all`."""
        number = 0
        while text := file.readline(MAX_LINE + 2):
            if not text.endswith(b"\n") and len(text) <= MAX_LINE:
                raise rejected(number, "cut", "the last line is not ended: it was cut while it was written")
            yield self.line(text.removesuffix(b"\n"), number)
            number += 1

    def line(self, text: bytes, number: int = 0) -> Line:
        """The line that `text` is; RecordRejected as of `parse`."""
        try:
            return self._known(text)
        except (LookupError, ValueError, RecursionError):
            record = parse(text, number)
        facts = Facts.from_dict(record.facts)
        self._keep(self._facts, canonical(record.facts), (record.facts, facts))
        return Line(record, hashlib.sha256(text).hexdigest(), facts)

    def _known(self, text: bytes) -> Line:
        head, _, tail = text.decode("ascii").rpartition(',"facts":')
        told, _, rest = tail.partition(',"launch":')
        before, after = _BEFORE.fullmatch(head), _AFTER.fullmatch(rest)
        if before is None or after is None or len(text) > MAX_LINE:
            raise ValueError("not so long, or not of these parts")
        data, facts = self._facts[told]
        action, container, dest, evidence = before.groups()
        launch, ms, part, prev, seen, seq, source, time = after.groups()
        record = TransitionRecord(
            launch=launch, container=container, seq=int(seq), action=action, source=source, dest=dest,
            seen=self._value(seen), facts=data, evidence=self._value(evidence), time=time,
            ms=float(ms + part) if part else int(ms), prev=prev,
        )  # fmt: skip
        return Line(record, hashlib.sha256(text).hexdigest(), facts)

    def _value(self, text: str) -> Any:
        """The JSON value that `text` is the one text of; ValueError where it is none."""
        found = self._values.get(text)
        if found is None:
            found = json.loads(text)
            if canonical(found) != text:
                raise ValueError("not in canonical form")
            if len(text) <= self.LONGEST:
                self._keep(self._values, text, found)
        return found

    def _keep(self, among: dict[str, Any], text: str, what: Any) -> None:
        if len(among) >= self.MOST:
            among.clear()
        among[text] = what


def parse_all(text: bytes) -> tuple[TransitionRecord, ...]:
    """All records in `text`, in order; RecordRejected when a line is not one or the last is not ended."""
    return tuple(read(io.BytesIO(text)))


CLAIMS = {"method": "method", "confined": "confined", "enforcement": "enforcement", "requested": "confinement"}
"""Evidence, and the variable of the specification whose value it is."""


def claims(line: TransitionRecord) -> dict[str, object]:
    """What the evidence of a line says of variables; whoever believes the line's facts wants the same there."""
    told = line.evidence
    said = {variable: told[name] for name, variable in CLAIMS.items() if name in told}
    error, digests = told.get("error"), told.get("digests")
    # A fault and a leftover come of any error; every other failure has its error's cause.
    if isinstance(error, Mapping) and "cause" in error and line.action not in ("FailFault", "FailDirty"):
        said["cause"] = error["cause"]
    files = digests if isinstance(digests, Mapping) else {}
    staged = [told["sha256"]] if "sha256" in told else []
    staged += [files["runsc"]] if "runsc" in files else []
    whole = set_digest(files) if len(files) > 1 else staged[0] if staged else None
    if any(digest != staged[0] for digest in staged) or told.get("set", whole) != whole:
        said["pin"] = "two digests of one file"
    elif "pin" in told and told["pin"] is None:
        said["pin"] = "none"
    elif "pin" in told and whole is not None:
        said["pin"] = "match" if told["pin"] == whole else "mismatch"
    return said


def set_digest(digests: Mapping[str, object]) -> str:
    """What a pin names: the digest of runsc; with side binaries, that of the lines that sha256sum prints, by name."""
    if len(digests) == 1:
        return str(next(iter(digests.values())))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode("utf-8", "backslashreplace")).hexdigest()
