"""Let TLC judge launch records: is each a behaviour of the specification, and if not, which line is the first that
is none, and why. One run of TLC judges any number of records.

TLC reads neither JSON nor hashes. So the lines are parsed by `model.record`, digests become numbers that are equal
where the digests are, and what is left is a module of plain data, which `Trace.tla` follows. `model.replay.fold`
judges the same records without TLC; the two are written apart and must agree.

    python -m nucleus_gvisor.spec.trace FILE ...
"""

import argparse
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import DOMAINS, RESIDUE, WORLD
from nucleus_gvisor.model.record import GENESIS, TransitionRecord, parse
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import tlc

HERE = Path(__file__).resolve().parent
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
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one record."""

    line: int
    """The first line that is not accepted, counted from 0; the number of lines when all are."""
    reason: str
    """One of REASONS."""

    @property
    def accepted(self) -> bool:
        return self.reason == "accepted"


def judge(records: Sequence[bytes]) -> list[Judgement]:
    """TLC's judgement of each of `records`, which are whole files. Raises what `tlc.run` raises."""
    read = [_read(record) for record in records]
    lines = [item for item in read if not isinstance(item, Judgement)]
    found = iter(_follow(lines) if lines else [])
    return [item if isinstance(item, Judgement) else next(found) for item in read]


def _read(text: bytes) -> Sequence[TransitionRecord] | Judgement:
    """The lines of a record, or why they are none."""
    *whole, rest = text.split(b"\n")
    lines = []
    for number, line in enumerate(whole):
        try:
            lines.append(parse(line, number))
        except RecordRejected:
            return Judgement(number, "format")
    if rest:
        return Judgement(len(whole), "cut")
    return lines or Judgement(0, "empty")


_AT = re.compile(r'^<<"at", (\d+), (\d+), "(\w+)">>$', re.MULTILINE)


def _follow(records: Sequence[Sequence[TransitionRecord]]) -> list[Judgement]:
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        Path(folder, "TraceData.tla").write_text(module(records))
        verdict = tlc.run(HERE / "Trace.tla", HERE / "Trace.cfg", library=Path(folder))
    furthest = {number: Judgement(0, "begin") for number in range(len(records))}
    for trace, line, reason in _AT.findall(verdict.text):
        number, here = int(trace) - 1, Judgement(int(line), reason)
        # A line that TLC went beyond is accepted. Where it stopped, "seen" is said of the states in which not all
        # that was seen had happened yet, so any other reason is nearer.
        before = furthest[number]
        if reason != "followed" and (before.line, before.reason != "seen") < (here.line, here.reason != "seen"):
            furthest[number] = here
    return list(furthest.values())


# ---- records as a module of plain data ----


def module(records: Sequence[Sequence[TransitionRecord]]) -> str:
    """The text of TraceData.tla. Equal facts are written once, because records have most of them in common."""
    numbers: dict[object, int] = {GENESIS: 0}
    facts: dict[str, int] = {}
    traces = [
        f"T{number} == <<{', '.join(_line(line, numbers, facts) for line in record)}>>"
        for number, record in enumerate(records)
    ]
    known = [f"F{number} == {text}" for text, number in facts.items()]
    names = ", ".join(f"T{number}" for number in range(len(records)))
    head = "---- MODULE TraceData ----\nEXTENDS Naturals, Sequences"
    return "\n".join([head, *known, *traces, f"Traces == <<{names}>>", "====", ""])


def _line(record: TransitionRecord, numbers: dict[object, int], facts: dict[str, int]) -> str:
    def number(item: object) -> int:
        return numbers.setdefault(item, len(numbers))

    written = tla_record((name, tla_value(value)) for name, value in record.facts.items())
    sound = all(_possible(name, value) for name, value in record.seen.items())
    return tla_record(
        [
            ("seq", str(record.seq if 0 <= record.seq < 1 << 31 else -1)),  # TLC's numbers end there
            ("prev", str(number(record.prev))),
            ("hash", str(number(record.digest()))),
            ("owner", str(number((record.launch, record.container)))),
            ("action", _known(record.action, {"Init", *ROWS})),
            ("source", _known(record.source, set(LaunchState))),
            ("dest", _known(record.dest, set(LaunchState))),
            ("sound", tla_value(sound)),
            ("seen", tla_record((n, tla_value(v)) for n, v in record.seen.items()) if sound else "<<>>"),
            ("facts", f"F{facts.setdefault(written, len(facts))}"),
        ]
    )


def _possible(name: str, value: object) -> bool:
    """Is `value` one that the world's variable `name` can have; 1 is not TRUE."""
    return name in WORLD and isinstance(value, str | bool) and value in DOMAINS[name]


def _known(name: str, names: Iterable[str]) -> str:
    return f'"{name}"' if name in names else '"?"'


def tla_record(pairs: Iterable[tuple[str, str]]) -> str:
    """A record in TLA+ from names and values that are TLA+ already; without any, the function without a domain."""
    written = ", ".join(f"{name} |-> {value}" for name, value in pairs)
    return f"[{written}]" if written else "<<>>"


def tla_value(value: object) -> str:
    """A value in TLA+; only what is in a domain of the model comes here, so that no text can end the string."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, list):
        assert RESIDUE.issuperset(value)
        return "{" + ", ".join(f'"{item}"' for item in value) + "}"
    assert isinstance(value, str) and any(value in domain for domain in DOMAINS.values())
    return f'"{value}"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: one line for each file; 1 when one is not accepted."""
    parser = argparse.ArgumentParser(prog="nucleus-gvisor spec trace", description="Let TLC judge launch records.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a launch's record, NDJSON")
    files: list[Path] = parser.parse_args(arguments).files
    judgements = judge([path.read_bytes() for path in files])
    for path, judgement in zip(files, judgements, strict=True):
        where = "" if judgement.accepted else f"line {judgement.line}: "
        print(f"{'ok' if judgement.accepted else 'REJECTED':8} {path}: {where}{REASONS[judgement.reason]}")
    return 0 if all(judgement.accepted for judgement in judgements) else 1


if __name__ == "__main__":
    raise SystemExit(main())
