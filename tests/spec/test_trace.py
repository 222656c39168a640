"""TLC and the offline verifier judge records alike, and both reject bad ones at the same line.

Records are made by the machine without a world, for every step of the state graph; bad ones by an attacker who can
write the file at will and who mends sequence numbers and hashes afterwards, unless the case is about those.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from nucleus_gvisor.model.facts import DOMAINS, WORLD, Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import CLAIMS, NAMES, TransitionRecord
from nucleus_gvisor.model.replay import REASONS, Judgement, judge
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import graph, records, tlc, trace
from nucleus_gvisor.spec.records import mended, text
from tests.support.records import seeded

Lines = tuple[TransitionRecord, ...]
DIGEST = "5f" * 32


def launch(*steps: str | tuple[str, Mapping[str, object]], identity: str = "0" * 32, **options: object) -> Lines:
    """The record of a launch that takes these steps; a step may come with what is seen before it."""
    machine = LaunchMachine(fresh(**options), NoSteps(), launch=identity, container="job")
    for step in steps:
        machine.fire(*((step,) if isinstance(step, str) else step))
    return machine.records


def changed(lines: Sequence[TransitionRecord], number: int, **fields: object) -> Lines:
    """The lines with some fields of one of them replaced."""
    return tuple(replace(line, **fields) if line.seq == number else line for line in lines)  # type: ignore[arg-type]


def with_facts(lines: Sequence[TransitionRecord], number: int, **facts: object) -> Lines:
    """The lines with some facts of one of them replaced."""
    return changed(lines, number, facts={**lines[number].facts, **facts})


RUN = launch("Resolve", "Prepare", "StageCopy", "ConfineLocked", "Exec", "GuestStarts", method="copy", pin="match")
FAILED = launch("Resolve", ("FailBusy", {"lock": "theirs"}))
SKIPPED = launch("Resolve", "Prepare", "StageSealed", ("ConfineSkipped", {"userns": False}), enforcement="best_effort")
OTHER = launch("Resolve", "Prepare", identity="1" * 32)

GOOD = {
    "a run": RUN,
    "a run that a kill cut short": RUN[:4],
    "a failure": FAILED,
    "a best effort": SKIPPED,
    "left behind and collected": launch("Resolve", "Prepare", ("FailDirty", {"calls": False}), "Collect"),
    "seen again": mended(changed(RUN, 2, seen={"path": "trusted"})),
}

BAD: Mapping[str, tuple[bytes, int, str, str]] = {
    "a skipped step": (text(mended((*RUN[:2], *RUN[3:]))), 2, "source", "not offered in Resolved"),
    "a wrong cause": (text(mended(with_facts(FAILED, 2, cause="bad_bundle"))), 2, "effect", "these cause"),
    "reordered": (text((*RUN[:2], RUN[3], RUN[2], *RUN[4:])), 2, "order", "missing, doubled or moved"),
    "reordered and mended": (text(mended((*RUN[:2], RUN[3], RUN[2], *RUN[4:]))), 2, "source", "not offered"),
    "doubled": (text((*RUN[:2], *RUN[1:])), 2, "order", "missing, doubled or moved"),
    "cut within a line": (text(RUN)[:-40], 6, "cut", "was cut"),
    "cut at the front": (text(RUN[1:]), 0, "begin", "sequence number 1"),
    "forged evidence": (text(changed(RUN, 3, evidence={"sha256": "0" * 64})), 4, "chain", "chain is broken"),
    "forged facts": (text(mended(with_facts(RUN, 4, confined="landlock"))), 4, "effect", "these confined"),
    "facts that nobody knows": (text(mended(with_facts(RUN, 2, base="ours"))), 2, "format", "base = 'ours'"),
    "a line of another launch": (text(mended((*RUN[:2], OTHER[2], *RUN[3:]))), 2, "owner", "another launch"),
    "required, and skipped": (
        text(mended(changed(with_facts(RUN, 4, confined="none", proved=False), 4, action="ConfineSkipped"))),
        4, "guard", "guard MaySkip of ConfineSkipped",
    ),
    "a failure without its reason": (text(mended(changed(FAILED, 2, seen={}))), 2, "guard", "guard LockTheirs"),
    "seen too late": (text(mended(changed(RUN, 3, seen={"base": "hostile"}))), 3, "seen", "nothing in the environment"),
    "seen what nobody can do": (text(mended(changed(RUN, 3, seen={"space": "no"}))), 3, "seen", "space"),
    "seen 0 for FALSE": (
        text(mended(changed(with_facts(with_facts(FAILED, 1, calls=False), 2, calls=False), 1, seen={"calls": 0}))),
        1, "seen", "calls",
    ),
    "seen by another name": (
        text(mended(changed(SKIPPED, 4, seen={"available": False}))), 4, "seen", "available",
    ),
    "an action of no table": (text(mended(changed(RUN, 2, action="Trust"))), 2, "guard", "not an action"),
    "begun in the middle": (text(mended(RUN[3:])), 0, "begin", "does not begin as"),
    "begun confined": (text(mended(with_facts(RUN, 0, confined="landlock"))), 0, "begin", "does not begin as"),
    "said to have begun at the end": (text(mended(changed(RUN[:1], 0, dest="Exec'd"))), 0, "begin", "does not begin"),
    "another end": (text(mended(changed(RUN, 5, dest="Failed"))), 5, "effect", "not the state"),
    "evidence of another method": (
        text(mended(changed(RUN, 3, evidence={"method": "sealed"}))), 3, "evidence", "says otherwise of method",
    ),
    "evidence of two files": (
        text(mended(changed(RUN, 3, evidence={"sha256": "0" * 64, "digests": {"runsc": "1" * 64}}))),
        3, "evidence", "of pin",
    ),
    "evidence of another file": (
        text(mended(changed(RUN, 3, evidence={"sha256": "0" * 64, "pin": "1" * 64}))), 3, "evidence", "of pin",
    ),
    "not canonical": (text(RUN).replace(b'":', b'": ', 1), 0, "format", "not in canonical form"),
    "no line at all": (b"", 0, "empty", "empty"),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged() -> dict[str, Judgement]:
    """TLC's judgement of the records above; one run for all."""
    records = {**{name: text(lines) for name, lines in GOOD.items()}, **{name: bad[0] for name, bad in BAD.items()}}
    return dict(zip(records, trace.judge(list(records.values())), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_a_launch_is_accepted(name: str, judged: dict[str, Judgement]) -> None:
    """What a launch writes is a behaviour to both."""
    assert judged[name] == judge(text(GOOD[name])) == Judgement(len(GOOD[name]), "accepted")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_rejected(name: str, judged: dict[str, Judgement]) -> None:
    """Both reject it at the same line, each for the reason expected of it."""
    record, line, reason, words = BAD[name]
    found = judge(record)
    assert judged[name] == found == Judgement(line, reason)
    assert words in found.words


def test_every_reason_is_shown() -> None:
    """Each reason that can be given without a head has a record that is rejected for it."""
    assert {bad[2] for bad in BAD.values()} | {"accepted", "head"} == set(REASONS)


def test_a_cut_tail_is_noticed_by_the_head() -> None:
    """Both judges miss nothing without it, and everything with it."""
    head = RUN[-1].digest()
    texts = [text(RUN[:4]), text(RUN[:4]), text(RUN), text(RUN), b""]
    heads = [None, head, head, head.upper(), head]
    expected = [(4, "accepted"), (4, "head"), (7, "accepted"), (7, "head"), (0, "empty")]
    assert trace.judge(texts, heads) == [Judgement(*pair) for pair in expected]
    assert [judge(*pair) for pair in zip(texts, heads, strict=True)] == [Judgement(*pair) for pair in expected]


def test_a_bad_line_is_named_before_one_that_cannot_be_read() -> None:
    """The shortest bad prefix counts, whatever follows it."""
    bad = BAD["a wrong cause"][0] + b"{}\n"
    assert trace.judge([bad, text(RUN[:2]) + b"{}\n", text(RUN[:2]) + b"{"]) == (
        [Judgement(2, "effect"), Judgement(2, "format"), Judgement(2, "cut")]
    )
    assert judge(bad) == Judgement(2, "effect")


def test_launches_that_differ_in_ids_and_digests_alone_are_one_trace() -> None:
    """TLC judges them once; a launch that took the same steps otherwise is another."""
    same = [launch("Resolve", "Prepare", identity=digit * 32) for digit in "123"]
    other = changed(same[0], 2, prev=DIGEST)
    module, places = trace.module([(lines, None) for lines in (*same, other, same[0][:2])])
    assert places == [1, 1, 1, 2, 3] and "Traces == <<T1, T2, T3>>" in module


def test_every_action_can_be_told() -> None:
    """Trace.tla knows every row of the table by its name."""
    told = re.findall(r'\\/ action = "(\w+)" /\\ (\w+)', (graph.HERE / "Trace.tla").read_text())
    assert told == [(name, name) for name in ROWS]


def test_every_variable_is_told() -> None:
    """Trace.tla compares every fact, and lets the environment change every variable of the world."""
    source = (graph.HERE / "Trace.tla").read_text()
    for name, names in (("Facts", set(Facts.__dataclass_fields__)), ("World", set(WORLD))):
        body = re.search(rf"^{name} ==(.*?)\]", source, re.MULTILINE | re.DOTALL)
        assert body is not None
        pairs = re.findall(r"(\w+) \|-> (\w+)", body[1])
        assert {left for left, _ in pairs} == names
        assert all(left == right for left, right in pairs)


def test_command_names_line_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says of each file whether it is accepted, and if not, where and why not."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(text(RUN))
    bad.write_bytes(seeded(BAD["a wrong cause"][0]))
    assert trace.main([str(good)]) == 0
    assert trace.main([str(good), str(bad)]) == 1
    assert f"{bad}: line 2: {REASONS['effect']}" in capsys.readouterr().out


# ---- the format's own page ----


def test_the_format_page_has_every_field() -> None:
    """TRACE_FORMAT.md describes the fields that a line has, no others, and its example is a record."""
    page = (graph.HERE / "TRACE_FORMAT.md").read_text()
    table = re.search(r"\| field \|.*?\n\n", page, re.DOTALL)
    assert table is not None
    cells = [row.split("|")[1] for row in table[0].splitlines()[2:] if row]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(NAMES)
    example = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert example is not None
    assert judge(example[1].encode()) == Judgement(2, "accepted")


def test_the_walk_through_is_true(base: Path) -> None:
    """Its commands, run as an auditor would, print what the page says, and what it changes is noticed."""
    page = (graph.HERE / "TRACE_FORMAT.md").read_text()
    record, walk = page.partition("## Audit one launch")[::2]
    example = re.findall(r"```json\n(.*?)```", record, re.DOTALL)[-1]
    (base / "job-1.ndjson").write_text(example)
    chain, judges, alone = re.findall(r"```sh\n(.*?)```", walk, re.DOTALL)
    verdicts, steps = re.findall(r"```text\n(.*?)```", walk, re.DOTALL)

    def sh(script: str) -> str:
        script = script.replace("java -cp tla2tools.jar", f"{tlc.java()} -Djava.io.tmpdir={base} -cp {tlc.jar()}")
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(["sh", "-c", script], cwd=base, env=env, capture_output=True, text=True, timeout=120)
        assert done.stderr == "" and done.returncode == 0, done
        return done.stdout

    def at(printed: str) -> list[str]:
        return [line for line in printed.splitlines() if line.startswith("<<")]

    told = [line.split("#")[1].strip() for line in chain.splitlines()]
    assert [line.split()[0] for line in sh(chain).splitlines()] == told
    assert json.loads(example.splitlines()[1])["prev"] == told[0] and f'"head": "{told[1]}"' in walk
    assert sh(judges) == verdicts
    assert at(sh(alone)) == steps.splitlines()
    data = base / "audit/TraceData.tla"
    data.write_text(data.read_text().replace('"not_found"', '"busy"'))
    assert at(sh(alone))[-1] == '<<"at", 1, 1, "effect">>'


# ---- each good record, and each way to spoil it ----


class Spoilt(NamedTuple):
    """A record that an attacker made of a good one, and what both judges are to say of it."""

    how: str
    text: bytes
    expected: Judgement
    head: str | None = None
    """What was kept elsewhere."""


def evidenced(lines: Sequence[TransitionRecord]) -> Lines:
    """The same launch with the evidence that a real one has."""
    found = []
    for line in lines:
        facts, told = line.facts, dict[str, object]()
        pin = None if facts["pin"] == "none" else DIGEST
        if line.action == "Resolve":
            told = {"pin": pin}
        elif line.action.startswith("Stage"):
            told = {"method": facts["method"], "sha256": DIGEST, "digests": {"runsc": DIGEST}, "pin": pin}
        elif line.action.startswith("Confine"):
            told = {n: facts[v] for n, v in CLAIMS.items() if n != "method"}
        elif line.action in ("FailFault", "FailDirty"):
            told = {"error": {"cause": "busy"}}  # they tell of any error
        elif line.action.startswith("Fail"):
            told = {"error": {"cause": facts["cause"]}}
        found.append(replace(line, evidence=told))
    return mended(found)


def bit(digest: str, place: int = 7) -> str:
    """The digest with one bit flipped."""
    return f"{int(digest, 16) ^ 1 << place:064x}"


def spoilt(good: Lines) -> Iterator[Spoilt]:
    """All that can be done to a record, at each of its lines."""
    n = len(good)
    other = mended([replace(line, launch="1" * 32) for line in good])

    def moves(at: int) -> bool:
        return good[at].source != good[at].dest

    def first(at: int, reason: str) -> Judgement:
        return Judgement(at, reason if at else "begin")

    def at_once(at: int) -> str:
        """Why a line that is told too early, or again, cannot stand there."""
        return "source" if moves(at) else "guard"

    for at, line in enumerate(good):
        before, after = good[:at], good[at + 1 :]
        if after and moves(at) | (at == 0):
            yield Spoilt("a step skipped, chain mended", text(mended((*before, *after))), first(at, "source"))
        if after:
            yield Spoilt("a line missing", text((*before, *after)), first(at, "order"))
            yield Spoilt("lines swapped", text((*before, after[0], line, *after[1:])), first(at, "order"))
            yield Spoilt("cut between lines", text(good[: at + 1]), Judgement(at + 1, "accepted"))
            yield Spoilt("cut between lines", text(good[: at + 1]), Judgement(at + 1, "head"), good[-1].digest())
            if moves(at) | (at == 0):
                swapped = text(mended((*before, after[0], line, *after[1:])))
                yield Spoilt("lines swapped, chain mended", swapped, first(at, "source"))
        for cut in (1, 2, len(line.line()) // 2):
            yield Spoilt("cut within a line", text(good[: at + 1])[:-cut], Judgement(at, "cut"))
        yield Spoilt("a line doubled", text((*before, line, line, *after)), Judgement(at + 1, "order"))
        doubled = text(mended((*before, line, line, *after)))
        yield Spoilt("a line doubled, chain mended", doubled, Judgement(at + 1, at_once(at)))
        yield Spoilt("another launch's line", text((*before, other[at], *after)), (
            Judgement(at, "chain") if at else Judgement(1, "chain" if after else "accepted")))  # fmt: skip
        if n > 1:
            stranger = text(mended((*before, other[at], *after)))
            yield Spoilt("another launch's line, chain mended", stranger, Judgement(at or 1, "owner"))
            mixed = [*before, *(pair[k] for pair in zip(good[at:], other[at:], strict=True) for k in (0, 1))]
            yield Spoilt("launches interleaved", text(mixed), Judgement(at + 1, "order"))
            yield Spoilt("launches interleaved, chain mended", text(mended(mixed)), Judgement(at + 1, "owner"))
        if at:
            yield Spoilt("begun in the middle", text(mended(good[at:])), Judgement(0, "begin"))
            forged = text((*before, replace(line, prev=good[at].digest()), *after))
            yield Spoilt("a digest forged", forged, Judgement(at, "chain"))
            for place in (0, 255):
                flipped = text((*before, replace(line, prev=bit(line.prev, place)), *after))
                yield Spoilt("a bit of a digest flipped", flipped, Judgement(at, "chain"))
        yield from _facts_spoilt(good, at)
        yield from _evidence_spoilt(good, at)


def _facts_spoilt(good: Lines, at: int) -> Iterator[Spoilt]:
    line = good[at]
    for name in sorted({"cause", "image", "confined", "staged", "proved"}):
        others = sorted(DOMAINS[name] - {line.facts[name]}, key=str)
        # A failure has many other causes; elsewhere one wrong value is as good as another.
        for value in others if line.dest == "Failed" else others[:1]:
            bent = text(mended(with_facts(good, at, **{name: value})))
            yield Spoilt(f"another {name}", bent, Judgement(at, "effect" if at else "begin"))
    nowhere = text(mended(changed(good, at, seen={"space": "no"})))
    yield Spoilt("seen what nobody can do", nowhere, Judgement(at, "seen" if at else "begin"))
    yield Spoilt("an action of no table", text(mended(changed(good, at, action="Trust"))), Judgement(
        at, "guard" if at else "begin"))  # fmt: skip


def _evidence_spoilt(good: Lines, at: int) -> Iterator[Spoilt]:
    """Each piece of evidence bent: the next line notices, or the head; and the facts, if the chain is mended."""
    line, n = good[at], len(good)
    for name, value in bent_evidence(line):
        bent = replace(line, evidence={**line.evidence, name: value})
        here = (*good[:at], bent, *good[at + 1 :])
        how = f"{name} on record forged"
        contradicts = Judgement(at, "evidence")
        if at + 1 < n:
            yield Spoilt(f"{how}, chain mended", text(mended(here)), contradicts)
        yield Spoilt(how, text(here), contradicts)
    note = replace(line, evidence={**line.evidence, "note": "forged"})
    noted = text((*good[:at], note, *good[at + 1 :]))
    if at + 1 < n:
        yield Spoilt("a note added", noted, Judgement(at + 1, "chain"))
    else:
        yield Spoilt("a note added to the last line", noted, Judgement(n, "accepted"))
        yield Spoilt("a note added to the last line", noted, Judgement(n, "head"), line.digest())


def bent_evidence(line: TransitionRecord) -> Iterator[tuple[str, object]]:
    """Evidence of this line that contradicts its facts, one field at a time."""
    for name, variable in CLAIMS.items():
        if name in line.evidence:
            others: Sequence[object] = sorted(map(str, DOMAINS[variable] - {line.facts[variable]}))
            yield from ((name, value) for value in (*others, None, 1, [], "no such value"))
    if "error" in line.evidence and line.action not in ("FailFault", "FailDirty"):
        yield "error", {"cause": "fault"}
    if line.action == "Resolve" and line.facts["pin"] != "none":
        yield "pin", None
    if "sha256" in line.evidence:
        yield "sha256", bit(DIGEST)
        yield "digests", {"runsc": bit(DIGEST)}
        yield "pin", bit(DIGEST) if line.evidence["pin"] else DIGEST


@pytest.fixture(scope="module")
def shapes() -> list[Lines]:
    """A record for each sequence of actions that a launch can take, with evidence."""
    whole = {tuple(line.action for line in lines): lines for lines in records.good(graph.load())}
    begun = {actions[:n] for actions in whole for n in range(1, len(actions))}
    return [evidenced(lines) for actions, lines in whole.items() if actions not in begun]


@pytest.mark.campaign
def test_whatever_is_done_to_a_record_both_judges_name_it(
    shapes: list[Lines], record_property: Callable[[str, object], None]
) -> None:
    """Every kind of damage at every line of every kind of launch: both judges name the same line and reason."""
    cases = [case for lines in shapes for case in spoilt(lines)]
    tlcs = trace.judge([case.text for case in cases], [case.head for case in cases])
    wrong = [
        (case.how, [json.loads(line)["action"] for line in case.text.splitlines() if line.endswith(b"}")], mine, tlc)
        for case, tlc in zip(cases, tlcs, strict=True)
        if not (mine := judge(case.text, case.head)) == tlc == case.expected
    ]
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:5]}"
    record_property("spoilt records", len(cases))
    assert all(judge(text(lines)).accepted for lines in shapes)
    assert {case.expected.reason for case in cases} == set(REASONS) - {"empty", "format"}


# ---- damage at random ----


def another(name: str, value: object, chance: random.Random) -> object:
    """A value that the variable can have, and has not."""
    return chance.choice([other for other in sorted(DOMAINS[name], key=str) if other != value])


def drop(lines: Lines, chance: random.Random) -> Lines:
    """One line is missing."""
    gone = chance.randrange(len(lines))
    return lines[:gone] + lines[gone + 1 :]


def swap(lines: Lines, chance: random.Random) -> Lines:
    """Two neighbours have changed places."""
    at = chance.randrange(len(lines) - 1)
    return (*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :])


def rename(lines: Lines, chance: random.Random) -> Lines:
    """A line tells of another action."""
    at = chance.randrange(1, len(lines))
    return changed(lines, at, action=chance.choice(sorted(ROWS.keys() - {lines[at].action})))


def bend(lines: Lines, chance: random.Random) -> Lines:
    """One fact has another value, from some line on."""
    at, name = chance.randrange(len(lines)), chance.choice(sorted(DOMAINS))
    value = another(name, lines[at].facts[name], chance)
    last = chance.choice((at + 1, len(lines)))
    for number in range(at, last):
        lines = with_facts(lines, number, **{name: value})
    return lines


def move(lines: Lines, chance: random.Random) -> Lines:
    """A line stands between other states."""
    at, where = chance.randrange(len(lines)), chance.choice(("source", "dest"))
    return changed(lines, at, **{where: another("state", getattr(lines[at], where), chance)})


def imagine(lines: Lines, chance: random.Random) -> Lines:
    """A line says that something else was seen, and its facts agree."""
    at, name = chance.randrange(1, len(lines)), chance.choice(sorted(WORLD))
    value = another(name, lines[at - 1].facts[name], chance)
    seen = {**lines[at].seen, name: value} if chance.random() < 0.8 else {}
    for number in range(at, len(lines)):
        lines = with_facts(lines, number, **{name: value})
    return changed(lines, at, seen=seen)


DAMAGE: tuple[Callable[[Lines, random.Random], Lines], ...] = (drop, swap, rename, bend, bend, move, imagine, imagine)


@pytest.mark.slow
def test_tlc_and_the_offline_verifier_agree() -> None:
    """On a record for every step of the graph, and on a thousand damaged ones, at the very line."""
    chance = random.Random(1)
    whole = records.good(graph.load())
    long = [lines for lines in whole if len(lines) > 2]
    damaged = []
    for _ in range(1000):
        lines = chance.choice(DAMAGE)(chance.choice(long), chance)
        damaged.append(mended(lines) if chance.random() < 0.9 else lines)
    texts = [text(lines) for lines in (*whole, *damaged)]
    answers = trace.judge(texts)
    assert all(answer.accepted for answer in answers[: len(whole)])
    differ = [
        (tlc, ours, [json.loads(line) for line in record.splitlines()][-1])
        for tlc, ours, record in zip(answers, map(judge, texts), texts, strict=True)
        if tlc != ours
    ]
    assert not differ, differ[:3]
    # The damage is worth something only when most of it is found, by many reasons, and some is none.
    reasons = [answer.reason for answer in answers[len(whole) :]]
    assert {"accepted", "begin", "source", "seen", "guard", "effect", "order", "chain"} <= set(reasons)
    assert reasons.count("accepted") < 200
