"""Let TLC judge launch records: is each a behaviour of the specification, and if not, which line is the first that
is none, and why. One run of TLC judges any number of records.

TLC reads neither JSON nor hashes. So the lines are parsed by `model.record`, digests become numbers that are equal
where the digests are, and what is left is a module of plain data, which `Trace.tla` follows. `model.replay.fold`
judges the same records without TLC; the two are written apart and must agree.

    nucleus-gvisor spec trace FILE ...
"""

import argparse
import io
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import DOMAINS, RESIDUE, WORLD
from nucleus_gvisor.model.record import GENESIS, TransitionRecord, claims, read
from nucleus_gvisor.model.replay import REASONS, Judgement, split
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import tlc

HERE = Path(__file__).resolve().parent
MODULES = ("Trace.tla", "Trace.cfg", "GVisorRuntime.tla", "AbstractGVisor.tla")
"""What TLC needs beside TraceData.tla."""
Lines = Sequence[TransitionRecord]


def judge(
    records: Sequence[bytes], heads: Sequence[str | None] | None = None, *, keep: Path | None = None
) -> list[Judgement]:
    """TLC's judgement of each of `records`, which are whole launches; one run for all, and none for none.

    `heads` has the hash of each one's last line, where it is known. With `keep`, a directory, all that TLC was given is
    left there. Raises what `tlc.run` raises.
    """
    texts = [_read(record) for record in records]
    pairs = zip(texts, heads or [None] * len(texts), strict=True)
    found = iter(_follow([(lines, head) for (lines, _), head in pairs if lines], keep))
    judgements = []
    for lines, stop in texts:
        followed = next(found) if lines else None
        if stop is None or (followed is not None and followed.line < len(lines)):
            assert followed is not None
            judgements.append(followed)
        else:
            judgements.append(stop)
    return judgements


def _read(text: bytes) -> tuple[Lines, Judgement | None]:
    """The lines of a record, as far as they can be read, and why no further."""
    lines: list[TransitionRecord] = []
    try:
        lines.extend(read(io.BytesIO(text)))
    except RecordRejected as error:
        return lines, Judgement(error.line, error.reason)
    return lines, None if lines else Judgement(0, "empty")


_AT = re.compile(r'^<<"at", (\d+), (\d+), "(\w+)">>$', re.MULTILINE)


def _follow(records: Sequence[tuple[Lines, str | None]], keep: Path | None) -> list[Judgement]:
    if not records:
        return []
    text, places = module(records)
    with tempfile.TemporaryDirectory(prefix="trace-") as scratch:
        folder = keep or Path(scratch)
        (folder / "TraceData.tla").write_text(text)
        for name in MODULES:
            shutil.copy(HERE / name, folder)
        verdict = tlc.run(folder / "Trace.tla", folder / "Trace.cfg", library=folder)
    furthest = {place: Judgement(0, "begin") for place in places}
    for trace, line, reason in _AT.findall(verdict.text):
        number, here = int(trace), Judgement(int(line), reason)
        # A line that TLC went beyond is accepted. Where it stopped, "seen" is said of the states in which not all
        # that was seen had happened yet, so any other reason is nearer.
        before = furthest[number]
        if reason != "followed" and (before.line, before.reason != "seen") < (here.line, here.reason != "seen"):
            furthest[number] = here
    return [furthest[place] for place in places]


# ---- records as a module of plain data ----


def module(records: Sequence[tuple[Lines, str | None]]) -> tuple[str, list[int]]:
    """The text of TraceData.tla for these records and their heads, and which of its traces each record is.

    Digests are numbered within a record, in the order in which they appear: a trace is compared with itself only, so
    this loses nothing. Records that are then the same text are one trace: TLC could not tell them apart. So launches
    that differ in ids, times and digests alone are judged once. Equal lines and equal facts are written once as well.
    """
    facts: dict[str, int] = {}
    known_lines: dict[str, int] = {}
    traces: dict[tuple[str, int], int] = {}
    places = []
    for lines, head in records:
        numbers: dict[object, int] = {GENESIS: 0}
        told = [_line(line, numbers, facts) for line in lines]
        written = ", ".join(f"L{known_lines.setdefault(line, len(known_lines))}" for line in told)
        known = 0 if head is None else numbers.setdefault(head, len(numbers))
        places.append(traces.setdefault((written, known), len(traces) + 1))
    names = ", ".join(f"T{number}" for number in traces.values())
    return "\n".join(
        [
            "---- MODULE TraceData ----\nEXTENDS Naturals, Sequences",
            *(f"F{number} == {text}" for text, number in facts.items()),
            *(f"L{number} == {text}" for text, number in known_lines.items()),
            *(f"T{number} == <<{written}>>" for (written, _), number in traces.items()),
            f"Traces == <<{names}>>",
            f"Heads == <<{', '.join(str(known) for _, known in traces)}>>",
            "====",
            "",
        ]
    ), places


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
            ("claims", tla_record((n, _known(v, DOMAINS[n])) for n, v in claims(record).items())),
            ("facts", f"F{facts.setdefault(written, len(facts))}"),
        ]
    )


def _possible(name: str, value: object) -> bool:
    """Is `value` one that the world's variable `name` can have; 1 is not TRUE."""
    return name in WORLD and isinstance(value, str | bool) and value in DOMAINS[name]


def _known(name: object, names: Collection[object]) -> str:
    return f'"{name}"' if isinstance(name, str) and name in names else '"?"'


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
    """Command line: one line for each launch; 1 when one is not accepted."""
    parser = argparse.ArgumentParser(prog="nucleus-gvisor spec trace", description="Let TLC judge launch records.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a record, NDJSON")
    parser.add_argument("--head", metavar="SHA256", help="hash of the record's last line, for one launch alone")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave there all that TLC was given, to run it again")
    given = parser.parse_args(arguments)
    found = [(path, text) for path in given.files for text in split(path.read_bytes())]
    if given.head and len(found) > 1:
        parser.error("--head is for one launch alone")
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    judgements = judge([text for _, text in found], [given.head] * len(found), keep=given.keep)
    for (path, _), judgement in zip(found, judgements, strict=True):
        where = "" if judgement.accepted else f"line {judgement.line}: "
        print(f"{'ok' if judgement.accepted else 'REJECTED':8} {path}: {where}{REASONS[judgement.reason]}")
    return 0 if all(judgement.accepted for judgement in judgements) else 1


if __name__ == "__main__":
    raise SystemExit(main())
