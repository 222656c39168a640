"""Records to judge: one for every step of the state graph, and the same damaged in every way that has a name.

The good ones are written by the machine without a world. The bad ones are the work of somebody who can write the file
at will, and who mends numbers and hashes afterwards where his damage would show in nothing else. TLC and the offline
verifier, `model.replay`, judge all of them; they must agree on the line and on the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nucleus_gvisor.model import replay
from nucleus_gvisor.model.facts import DOMAINS
from nucleus_gvisor.model.record import GENESIS, TransitionRecord
from nucleus_gvisor.model.replay import Judgement
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import bisimulation, graph, trace

Lines = tuple[TransitionRecord, ...]


@dataclass(frozen=True, slots=True)
class Seeded:
    """A record, what it is, and the judgement that it must get."""

    name: str
    text: bytes
    expected: Judgement


def text(lines: Sequence[TransitionRecord]) -> bytes:
    """The file that has these lines."""
    return b"".join(line.line() + b"\n" for line in lines)


def mended(lines: Sequence[TransitionRecord]) -> Lines:
    """The same lines with sequence numbers and hashes made to fit."""
    found: list[TransitionRecord] = []
    for line in lines:
        found.append(replace(line, seq=len(found), prev=found[-1].digest() if found else GENESIS))
    return tuple(found)


def good(committed: graph.Graph) -> list[Lines]:
    """Records that between them tell every step of the graph that a living launcher, or somebody after it, can take."""
    paths = committed.paths()
    ways = {
        (*paths[edge[0]], edge): None
        for edge in committed.edges
        if edge[1] in ROWS and all(action != "Kill" for _, action, _ in paths[edge[0]])
    }
    # What another record begins with is told by it.
    begun = {way[:n] for way in ways for n in range(1, len(way))}
    return [bisimulation.travel(committed, 0, way).machine.records for way in ways if way not in begun]


# ---- damage ----

Damage = Callable[[Lines, int], tuple[bytes, int, str]]
"""From a record and the number of a line: the file, the line that must be named, and the reason."""


def _skip(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return text(mended(lines[:at] + lines[at + 1 :])), at, "source"


def _cause(lines: Lines, at: int) -> tuple[bytes, int, str]:
    facts = lines[at].facts
    other = next(cause for cause in sorted(map(str, DOMAINS["cause"])) if cause not in (facts["cause"], "none"))
    return _with(lines, at, facts={**facts, "cause": other}), at, "effect"


def _flip(lines: Lines, at: int) -> tuple[bytes, int, str]:
    first = f"{int(lines[at].prev[0], 16) ^ 1:x}"
    return text((*lines[:at], replace(lines[at], prev=first + lines[at].prev[1:]), *lines[at + 1 :])), at, "chain"


def _forge(lines: Lines, at: int) -> tuple[bytes, int, str]:
    forged = replace(lines[at - 1], evidence={**lines[at - 1].evidence, "note": "forged"})
    return text((*lines[: at - 1], forged, *lines[at:])), at, "chain"


def _swap(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return text((*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :])), at - 1, "begin" if at == 1 else "order"


def _double(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return text((*lines[: at + 1], *lines[at:])), at + 1, "order"


def _cut(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return text(lines[: at + 1])[:-20], at, "cut"


def _behead(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return text(mended(lines[at:])), 0, "begin"


def _interleave(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return _with(lines, at, launch="f" * 32), at, "owner"


def _move(lines: Lines, at: int) -> tuple[bytes, int, str]:
    facts = lines[at].facts
    return _with(lines, at, facts={**facts, "alive": not facts["alive"]}), at, "effect"


def _rename(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return _with(lines, at, action="Trust"), at, "guard"


def _imagine(lines: Lines, at: int) -> tuple[bytes, int, str]:
    return _with(lines, at, seen={**lines[at].seen, "space": "no"}), at, "seen"


def _with(lines: Lines, at: int, **fields: object) -> bytes:
    bent = replace(lines[at], **fields)  # type: ignore[arg-type]
    return text(mended((*lines[:at], bent, *lines[at + 1 :])))


DAMAGE: dict[str, Damage] = {
    "a step skipped": _skip,
    "a wrong cause": _cause,
    "a digest with one bit flipped": _flip,
    "evidence forged": _forge,
    "two lines swapped": _swap,
    "a line doubled": _double,
    "cut within a line": _cut,
    "its beginning cut off": _behead,
    "a line of another launch": _interleave,
    "facts forged": _move,
    "an action of no table": _rename,
    "seen what nobody can do": _imagine,
}


def bad(whole: Sequence[Lines]) -> Iterator[Seeded]:
    """Each kind of damage done to one record for each action that a record can end with, in the midst of it."""
    for lines in {lines[-1].action: lines for lines in whole}.values():
        at = len(lines) // 2
        for name, damage in DAMAGE.items():
            # There must be a line to skip before another, and only a failure has a cause.
            if (name == "a step skipped" and at == len(lines) - 1) or (
                name == "a wrong cause" and lines[at].facts["cause"] == "none"
            ):
                continue
            file, line, reason = damage(lines, at)
            yield Seeded(f"{name}, in a record that ends with {lines[-1].action}", file, Judgement(line, reason))


@dataclass(frozen=True, slots=True)
class Judged:
    """How the two judges did."""

    accepted: int
    rejected: int
    findings: tuple[str, ...]


def judge(committed: graph.Graph) -> Judged:
    """Both judges' answers to all good and bad records, compared with each other and with what is expected."""
    whole = good(committed)
    seeded = [Seeded(f"a record that ends with {w[-1].action}", text(w), Judgement(len(w), "accepted")) for w in whole]
    seeded += bad(whole)
    answers = trace.judge([record.text for record in seeded])
    findings = []
    for record, tlc in zip(seeded, answers, strict=True):
        for who, answer in (("TLC", tlc), ("the offline verifier", replay.judge(record.text))):
            if answer != record.expected:
                findings.append(f"{record.name}: {who} says {_said(answer)}, expected {_said(record.expected)}")
    told = {line.action for lines in whole for line in lines} - {"Init"}
    findings += [f"no record tells of {action}" for action in sorted(ROWS.keys() - told)]
    return Judged(len(whole), len(seeded) - len(whole), tuple(findings))


def _said(judgement: Judgement) -> str:
    return "accepted" if judgement.accepted else f"line {judgement.line}: {replay.REASONS[judgement.reason]}"
