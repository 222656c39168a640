"""TLC and the offline verifier judge records alike, and both reject bad ones at the same line.

Records are made by the machine without a world, for every step of the state graph; bad ones by an attacker who can
write the file at will and who mends sequence numbers and hashes afterwards, unless the case is about those.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nucleus_gvisor.model.environment import DISTURBANCES
from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.facts import DOMAINS, WORLD, Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import GENESIS, NAMES, TransitionRecord, parse_all
from nucleus_gvisor.model.replay import fold
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import graph, trace
from nucleus_gvisor.spec.trace import Judgement

Lines = tuple[TransitionRecord, ...]


def text(lines: Sequence[TransitionRecord]) -> bytes:
    """The file that has these lines."""
    return b"".join(line.line() + b"\n" for line in lines)


def launch(*steps: str | tuple[str, Mapping[str, object]], identity: str = "0" * 32, **options: object) -> Lines:
    """The record of a launch that takes these steps; a step may come with what is seen before it."""
    machine = LaunchMachine(fresh(**options), NoSteps(), launch=identity, container="job")
    for step in steps:
        machine.fire(*((step,) if isinstance(step, str) else step))
    return machine.records


def mended(lines: Sequence[TransitionRecord]) -> Lines:
    """The same lines with sequence numbers and hashes made to fit."""
    found: list[TransitionRecord] = []
    for line in lines:
        found.append(replace(line, seq=len(found), prev=found[-1].digest() if found else GENESIS))
    return tuple(found)


def changed(lines: Sequence[TransitionRecord], number: int, **fields: object) -> Lines:
    """The lines with some fields of one of them replaced."""
    return tuple(replace(line, **fields) if line.seq == number else line for line in lines)  # type: ignore[arg-type]


def with_facts(lines: Sequence[TransitionRecord], number: int, **facts: object) -> Lines:
    """The lines with some facts of one of them replaced."""
    return changed(lines, number, facts={**lines[number].facts, **facts})


def offline(record: bytes) -> Judgement:
    """What `model.replay` says of a record, in the same form; its reason is its own text."""
    try:
        lines = parse_all(record)
        fold(lines)
    except RecordRejected as error:
        number = re.match(r"(?:record: )?line (\d+): ", str(error))
        return Judgement(int(number[1]) if number else record.count(b"\n"), str(error))
    return Judgement(len(lines), "accepted")


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
    assert judged[name] == offline(text(GOOD[name])) == Judgement(len(GOOD[name]), "accepted")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_rejected(name: str, judged: dict[str, Judgement]) -> None:
    """Both reject it at the same line, each for the reason expected of it."""
    record, line, reason, words = BAD[name]
    assert judged[name] == Judgement(line, reason)
    found = offline(record)
    assert found.line == line
    assert words in found.reason


def test_every_reason_is_shown() -> None:
    """Each reason that TLC can give has a record that is rejected for it."""
    assert {bad[2] for bad in BAD.values()} | {"accepted"} == set(trace.REASONS)


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
    bad.write_bytes(BAD["a wrong cause"][0])
    assert trace.main([str(good)]) == 0
    assert trace.main([str(good), str(bad)]) == 1
    assert f"{bad}: line 2: {trace.REASONS['effect']}" in capsys.readouterr().out


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
    assert offline(example[1].encode()) == Judgement(2, "accepted")


# ---- all steps, and damage at random ----


def records_of_all_steps() -> list[Lines]:
    """A record that ends with each step of the graph which a living launcher can take."""
    committed = graph.load()
    paths, found = committed.paths(), []
    events = {d.action: (d.field, d.new) for d in DISTURBANCES}
    for edge in committed.edges:
        way = (*paths[edge[0]], edge)
        if edge[1] not in ROWS or any(action == "Kill" for _, action, _ in way):
            continue
        begin = {name: graph.plain(value) for name, value in committed.nodes[way[0][0]].items() if name != "budget"}
        machine = LaunchMachine(Facts.from_dict(begin), NoSteps())
        told: dict[str, object] = {}
        for _, action, _ in way:
            if action in events:
                told.update([events[action]])
            else:
                machine.fire(action, told)
                told = {}
        found.append(machine.records)
    return found


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
    whole = records_of_all_steps()
    long = [lines for lines in whole if len(lines) > 2]
    damaged = []
    for _ in range(1000):
        lines = chance.choice(DAMAGE)(chance.choice(long), chance)
        damaged.append(mended(lines) if chance.random() < 0.9 else lines)
    records = [text(lines) for lines in (*whole, *damaged)]
    answers = trace.judge(records)
    assert all(answer.accepted for answer in answers[: len(whole)])
    mine = [offline(record) for record in records]
    differ = [
        (tlc, ours, [json.loads(line) for line in record.splitlines()][-1])
        for tlc, ours, record in zip(answers, mine, records, strict=True)
        if (tlc.accepted, tlc.line) != (ours.accepted, ours.line)
    ]
    assert not differ, differ[:3]
    # The damage is worth something only when most of it is found, by many reasons, and some is none.
    reasons = [answer.reason for answer in answers[len(whole) :]]
    assert {"accepted", "begin", "source", "seen", "guard", "effect", "order", "chain"} <= set(reasons)
    assert reasons.count("accepted") < 200
