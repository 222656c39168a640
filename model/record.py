"""The record of a launch: one line for each transition, each naming the hash of the line before it.

A line is canonical JSON (sorted keys, no white space, ASCII), so that equal records are equal bytes.
Format: `spec/TRACE_FORMAT.md`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

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


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name stands twice")
    return data


def parse(line: bytes, number: int = 0) -> TransitionRecord:
    """The record that `line` is; RecordRejected unless it is exactly what `TransitionRecord.line` writes."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        data = json.loads(line.decode("ascii"), object_pairs_hook=_unique)
        if not isinstance(data, dict) or tuple(sorted(data)) != NAMES:
            raise ValueError("fields missing or unknown")
        for name, kind in _TYPES.items():
            if not isinstance(data[name], kind) or isinstance(data[name], bool):
                raise ValueError(f"{name} has the wrong type")
        if data["v"] != VERSION:
            raise ValueError(f"version {data['v']}")
        record = TransitionRecord(**data)
        # Two texts of one record would have two hashes: only the canonical one is a record.
        if record.line() != line:
            raise ValueError("not in canonical form")
        Facts.from_dict(record.facts)
    except (ValueError, RecursionError) as error:
        raise RecordRejected(f"line {number}: {error}", step="record") from error
    return record


def parse_all(text: bytes) -> tuple[TransitionRecord, ...]:
    """All records of one launch, in order; RecordRejected when a line is not one or the last is not ended."""
    if text and not text.endswith(b"\n"):
        raise RecordRejected("the last line is not ended: it was cut while it was written", step="record")
    return tuple(parse(line, number) for number, line in enumerate(text.split(b"\n")[:-1]))
