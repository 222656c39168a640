"""The record of a launch: one line for each transition, each naming the hash of the line before it.

A line is canonical JSON (sorted keys, no white space, ASCII), so that equal records are equal bytes.
Format: `spec/TRACE_FORMAT.md`.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import BinaryIO

from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import Facts

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
        data = {name: getattr(self, name) for name in NAMES}
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

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
    error = RecordRejected(f"line {line}: {why}", step="record", observed=observed)
    error.line, error.reason = line, reason
    return error


def read(file: BinaryIO) -> Iterator[TransitionRecord]:
    """The records in `file`, line by line, never more than one in memory; RecordRejected as of `parse_all`."""
    number = 0
    while line := file.readline(MAX_LINE + 2):
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            raise rejected(number, "cut", "the last line is not ended: it was cut while it was written")
        yield parse(line.removesuffix(b"\n"), number)
        number += 1


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
    staged = [told["sha256"]] if "sha256" in told else []
    staged += [digests["runsc"]] if isinstance(digests, Mapping) and "runsc" in digests else []
    if any(digest != staged[0] for digest in staged):
        said["pin"] = "two digests of one file"
    elif "pin" in told and told["pin"] is None:
        said["pin"] = "none"
    elif "pin" in told and staged:
        said["pin"] = "match" if told["pin"] == staged[0] else "mismatch"
    return said
