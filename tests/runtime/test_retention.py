"""Records are kept by count, age and size; what is removed is written down first, and what may be asked about stays."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadArgument, StepFailed
from nucleus_gvisor.model.record import canonical
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.runtime import audit, cli, retention
from nucleus_gvisor.runtime.bounds import KEPT, RecordBounds
from nucleus_gvisor.runtime.cleanup import state_component
from nucleus_gvisor.runtime.errors import RecordsFull
from nucleus_gvisor.runtime.options import Audit, GVisorOciRunOptions
from nucleus_gvisor.runtime.retention import BATCH, LEDGER, MARK, Store
from tests.model.launches import Counted, launch, text_of
from tests.support.records import seeded

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

ANY = RecordBounds(count=0, days=0, size=0)


def leave(base: Path, number: int, state: LaunchState = LaunchState.EXECD, age: float = 0) -> Path:
    """A record as a launch leaves it, so many days ago."""
    ours, container = f"{number:032x}"[::-1], f"job-{number}"
    if state is LaunchState.FAILED:
        machine = launch(LaunchState.UNRESOLVED, Counted(), launch=ours, container=container)
        machine.fail(StepFailed("for a test"))
    else:
        machine = launch(state, launch=ours, container=container)
    path = base / "records" / f"{container}.{ours[:12]}.ndjson"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(text_of(machine.records))
    # The lower its number the older it is.
    then = time.time() - age * retention.DAY - 1000 + number
    os.utime(path, (then, then))
    return path


@pytest.fixture
def store(base: Path) -> Iterator[Store]:
    with retention.opened(base) as it:
        yield it


def left(base: Path) -> list[str]:
    """The containers whose records are there, the oldest first."""
    with retention.opened(base) as it:
        return [kept.container for kept in it.kept()]


def ledger(base: Path) -> list[tuple[str, str]]:
    """Container and bound of each removal in the ledger, which has to be a sound one."""
    path = base / "records" / LEDGER
    (finding,) = audit.verify([path])
    assert (finding.verdict, finding.reason) == ("accepted", "accepted"), finding
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert finding.lines == len(lines)
    return [(one[1], one[3]) for line in lines for one in line["removed"]]


# ---- bounds ----


def test_bounds_as_words() -> None:
    """Each can be left out, and has its default then; sizes have units."""
    assert RecordBounds.parse("count=5") == RecordBounds(count=5)
    assert RecordBounds.parse("size=2M, days=0.5") == RecordBounds(size=2 << 20, days=0.5)
    assert RecordBounds.parse("count=0,days=0,size=0") == ANY
    assert str(ANY) == "any number" and str(RecordBounds(count=3, days=0, size=0)) == "3 records"
    for text in ("", "5", "count=-1", "count=5,count=6", "count=5K", "days=1e3", "size=1T", "age=3", "count=5 days=1"):
        with pytest.raises(ValueError, match="count=N"):
            RecordBounds.parse(text)
    for wrong in (
        {"count": -1},
        {"days": -0.1},
        {"size": 1.5},
        {"count": True},
        {"days": float("nan")},
        {"count": "5"},
    ):
        with pytest.raises(BadArgument, match="keep_records"):
            RecordBounds(**wrong)
    with pytest.raises(BadArgument):
        RecordBounds.parse("count=1.5")


def test_contradictions_are_refused_by_name() -> None:
    """No record, and a file for it; no record, and how long it is kept."""
    assert GVisorOciRunOptions(record=False).audit is Audit.OFF
    assert (
        GVisorOciRunOptions(record=False).record is None
        and GVisorOciRunOptions(record=False, audit=Audit.OFF) is not None
    )
    for audit_ in (Audit.REQUIRED, Audit.BEST_EFFORT):
        assert GVisorOciRunOptions(record=Path("/x"), audit=audit_, keep_records=ANY).audit is audit_
    for options, name in (
        ({"record": Path("/x"), "audit": "off"}, "record /x"),
        ({"record": False, "audit": "best_effort"}, "record=False"),
        ({"keep_records": RecordBounds(count=1), "audit": "off"}, "keep_records"),
        ({"keep_records": RecordBounds(count=1), "record": False}, "keep_records"),
        ({"audit": "sometimes"}, "audit refused"),
    ):
        with pytest.raises(BadArgument, match=name):
            GVisorOciRunOptions(**options)


# ---- what is removed ----


def test_the_oldest_go_first_and_each_bound_says_why(base: Path) -> None:
    """By age, then by count, then by size; the newest stay."""
    for number in range(10):
        leave(base, number, age=40 if number < 2 else 0)
    size = sum(path.stat().st_size for path in (base / "records").iterdir())
    assert retention.prune(KEPT, base, dry_run=True) != [] and len(left(base)) == 10
    retention.prune(KEPT, base)
    retention.prune(RecordBounds(count=6), base)
    retention.prune(RecordBounds(size=size * 35 // 100), base)
    assert left(base) == [f"job-{number}" for number in (7, 8, 9)]
    assert ledger(base) == [
        (f"job-{n}", w) for n, w in zip(range(7), ["age"] * 2 + ["count"] * 2 + ["size"] * 3, strict=True)
    ]
    assert retention.prune(ANY, base) == []


def protected(base: Path) -> dict[str, Path]:
    """A record of each kind that is never removed, each older than any bound."""
    kinds = {"failed": leave(base, 1, LaunchState.FAILED, 99), "unended": leave(base, 2, LaunchState.CONFINED, 99)}
    kinds["alive"] = leave(base, 3, age=99)
    (base / "locks").mkdir(mode=0o700)
    (base / "locks" / state_component("job-3")).touch()
    kinds["cut"] = leave(base, 4, age=99)
    kinds["cut"].write_bytes(seeded(kinds["cut"].read_bytes()[:-5]))
    kinds["junk"] = leave(base, 5, age=99)
    kinds["junk"].write_bytes(seeded(b"junk\n" * 9))
    kinds["empty"] = leave(base, 6, age=99)
    kinds["empty"].write_bytes(seeded(b""))
    named = leave(base, 7, age=99)
    kinds["named"] = named.rename(named.parent / "mine.ndjson")
    other = leave(base, 8, age=99)
    kinds["another's name"] = other.rename(other.with_name("job-1." + "0" * 12 + ".ndjson"))
    linked = leave(base, 9, age=99)
    os.link(linked, base / "mine too")
    kinds["linked"] = linked
    (base / "records" / ("job-10." + "0" * 12 + ".ndjson")).symlink_to(linked)
    os.mkfifo(base / "records" / ("job-11." + "0" * 12 + ".ndjson"))
    for path in kinds.values():
        os.utime(path, (1, 1))
    return kinds


def test_what_somebody_may_ask_about_is_never_removed(base: Path) -> None:
    """Of the living, without an end, of failures, named by a caller, or nothing that a launch left."""
    kinds = protected(base)
    before = {name: path.read_bytes() for name, path in kinds.items()}
    leave(base, 20, age=50)
    assert [one.kept.container for one in retention.prune(RecordBounds(count=1, days=1, size=1), base)] == ["job-20"]
    assert {name: path.read_bytes() for name, path in kinds.items()} == before
    os.unlink(base / "locks" / state_component("job-3"))
    assert [one.kept.container for one in retention.prune(KEPT, base)] == ["job-3"], "its sandbox has ended"


def test_a_launch_is_refused_where_the_protected_reach_the_bound(base: Path, store: Store) -> None:
    """It says so, by its own type, each time; and with one less there is room again."""
    for number in range(4):
        leave(base, number, LaunchState.FAILED)
    leave(base, 9)
    store.make_room(RecordBounds(count=5))
    for _ in range(3):
        with pytest.raises(RecordsFull, match=r"reach the bounds.*4 records.*hint: look at them"):
            store.make_room(RecordBounds(count=4))
    assert len(left(base)) == 4 and ledger(base) == [("job-9", "count")]
    with pytest.raises(RecordsFull):
        store.make_room(RecordBounds(size=10))
    next((base / "records").glob("*.ndjson")).unlink()
    store.make_room(RecordBounds(count=4))


def test_a_small_file_system_is_not_filled(base: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All together take no more than a quarter of it, whatever the bound; without a bound they may."""
    sizes = [leave(base, number).stat().st_size for number in range(8)]
    monkeypatch.setattr(Store, "_room", lambda _: sum(sizes) * 2)
    store.make_room(ANY)
    assert len(left(base)) == 8
    store.make_room(KEPT)
    assert 2 <= len(left(base)) < 4


# ---- at a launch ----


def test_most_launches_do_not_look(base: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many records a mark says after how many launches the next one looks; a day later one looks in any case."""
    for number in range(retention.FEW + 40):
        leave(base, number)
    looks: list[int] = []
    kept = Store.kept
    monkeypatch.setattr(Store, "kept", lambda self: (looks.append(1), kept(self))[1])  # type: ignore[func-returns-value]
    bounds = RecordBounds(count=200)
    for _ in range(5):
        store.make_room(bounds)
    assert len(looks) == 1 and (base / "records" / MARK).exists()
    for _ in range(bounds.slack):
        store.make_room(bounds)
    assert len(looks) == 2
    text = (base / "records" / MARK).read_bytes()
    (base / "records" / MARK).write_bytes(b"1" + text[1:].replace(text[:10].split()[0][1:], b"0" * 9, 1))
    store.make_room(bounds)
    for spoilt in (b"", b"x", b"1 2 3\n", b"\0" * 40):
        (base / "records" / MARK).write_bytes(spoilt)
        before = len(looks)
        store.make_room(bounds)
        assert len(looks) == before + 1, spoilt
    for _ in range(200):
        store.make_room(RecordBounds(count=70))
    assert len(left(base)) <= 70
    retention.prune(RecordBounds(count=3), base)
    (base / "records" / MARK).unlink()
    store.make_room(bounds)
    assert not (base / "records" / MARK).exists(), "with few records each launch looks"


WORKER = """
import os, sys
from tests.runtime.test_retention import leave, LaunchState, RecordBounds, retention, Path
base, first = Path(sys.argv[1]), int(sys.argv[2])
with retention.opened(base) as store:
    for number in range(first, first + 25):
        store.make_room(RecordBounds(count=10))
        leave(base, number)
"""


def test_many_processes_at_once(base: Path) -> None:
    """However they meet, each removal is in the ledger once, and the records stay within bounds."""
    command = [sys.executable, "-c", WORKER, os.fspath(base)]
    workers = [subprocess.Popen([*command, str(100 * n)], stderr=subprocess.PIPE, text=True) for n in range(4)]
    for worker in workers:
        assert (worker.communicate(timeout=120)[1], worker.returncode) == ("", 0)
    with retention.opened(base) as store:
        store.make_room(RecordBounds(count=10))
    removed = [container for container, _ in ledger(base)]
    assert len(removed) == len(set(removed)) and len(left(base)) <= 9
    assert sorted(removed + left(base)) == sorted(f"job-{100 * n + number}" for n in range(4) for number in range(25))


def test_who_is_already_at_it_is_not_waited_for(base: Path, store: Store) -> None:
    """By a launch; the verb waits."""
    for number in range(4):
        leave(base, number)
    other = os.open(base / "records", os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        store.make_room(RecordBounds(count=2))
        assert len(left(base)) == 4
    finally:
        os.close(other)
    store.make_room(RecordBounds(count=2))
    assert len(left(base)) == 1


# ---- the ledger ----


def test_killed_between_the_line_and_the_removal(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written down and is still there is removed by the next, and written down again."""
    for number in range(4):
        leave(base, number)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            retention.prune(RecordBounds(count=2), base)
    assert len(left(base)) == 4 and ledger(base) == [("job-0", "count"), ("job-1", "count")]
    retention.prune(RecordBounds(count=2), base)
    assert len(left(base)) == 2 and ledger(base) == [("job-0", "count"), ("job-1", "count")] * 2


def test_killed_within_a_line(base: Path) -> None:
    """A line without its end was of nothing yet: it goes, and the chain goes on."""
    for number in range(4):
        leave(base, number)
    path = base / "records" / LEDGER
    path.write_bytes(b'{"bounds":')
    retention.prune(RecordBounds(count=3), base)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    assert [finding.reason for finding in audit.verify([path])] == ["cut"]
    retention.prune(RecordBounds(count=2), base)
    assert ledger(base) == [("job-0", "count"), ("job-1", "count")]


def test_nothing_is_removed_that_cannot_be_written_down(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a damaged ledger: the records stay, the ledger is as it was, and the error names it."""
    for number in range(4):
        leave(base, number)
    retention.prune(RecordBounds(count=3), base)
    path = base / "records" / LEDGER
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fdatasync", full)
        with pytest.raises(StepFailed, match=LEDGER):
            retention.prune(RecordBounds(count=2), base)
    assert path.read_bytes() == before and len(left(base)) == 3
    path.write_bytes(before[:-20] + b"\n")
    with pytest.raises(StepFailed, match=r"ledger.*damaged.*hint: nucleus-gvisor audit verify"):
        retention.prune(RecordBounds(count=2), base)
    assert len(left(base)) == 3


def test_little_room_is_enough(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the line of many does not fit, one is removed after the other: each makes room."""
    for number in range(6):
        leave(base, number)
    write = os.write
    limit = 600

    def little(fd: int, data: bytes) -> int:
        if len(data) > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", little)
    retention.prune(RecordBounds(count=1), base)
    monkeypatch.undo()
    assert left(base) == ["job-5"] and len(ledger(base)) == 5


def chain(base: Path, lines: int) -> list[bytes]:
    """A ledger of so many lines."""
    for number in range(lines):
        leave(base, number)
        retention.prune(RecordBounds(count=1, size=1), base)
    return (base / "records" / LEDGER).read_bytes().splitlines(keepends=True)


def test_damage_of_the_ledger_is_found(base: Path) -> None:
    """A line changed, dropped, moved or doubled, another form of it, a forged beginning; a tail only by its head."""
    lines = chain(base, 5)
    path = base / "records" / LEDGER

    def reason(text: bytes, *heads: str) -> list[str]:
        path.write_bytes(text)
        return [finding.reason for finding in audit.verify([path], heads)]

    whole = b"".join(lines)
    assert reason(whole) == ["accepted"]
    (told,) = audit.verify([path])
    assert told.head is not None and reason(whole, told.head) == ["accepted"]
    assert reason(b"".join(lines[:-1]), told.head) == ["accepted", "head"]
    assert reason(b"".join(lines[:2] + lines[3:])) == ["order"]
    assert reason(b"".join(lines[:2] + lines[1:])) == ["order"]
    assert reason(whole.replace(b'"size"]]', b'"age"]]', 1)) == ["chain"]
    assert reason(whole.replace(b'"days":30', b'"days": 30', 1)) == ["format"]
    assert reason(whole.replace(b'"v":1', b'"v":2', 1)) == ["format"]
    assert reason(whole.replace(b'"seq":0', b'"seq":true', 1)) == ["format"]
    assert reason(whole.replace(b'"removed":[[', b'"removed":[[1,', 1)) == ["format"]
    assert reason(whole.replace(b'"removed":[[', b'"removed":[{},[', 1)) == ["format"]
    assert reason(whole.replace(b"{", b'{"a":1,', 1)) == ["format"]
    assert reason(b"[" * 100_000 + b"\n") == ["format"] and reason(b"x" * (2 << 20)) == ["format"]
    for removed in (b"{}", b'["four"]'):
        assert reason(re.sub(rb'(?<="removed":).*(?=,"seq")', removed, lines[0])) == ["format"]
    assert reason(canonical(list(retention.LEDGER_FIELDS)).encode() + b"\n") == ["format"]
    assert reason(lines[0].replace(b'"seq":0', b'"seq":-1')) == ["format"]
    assert reason(lines[0].replace(b'"seq":0', b'"seq":7')) == ["begin"]
    assert reason(b"".join(lines[1:]).replace(json.loads(lines[1])["prev"].encode(), b"0" * 64)) == ["begin"]
    assert reason(b"") == ["empty"]
    assert reason(b"".join(lines[2:])) == ["accepted"], "its beginning may have been dropped"
    assert "2 older ones were dropped" in str(next(iter(audit.verify([path]))))
    assert [finding.verdict for finding in audit.verify([base / "records"])][-1] == "accepted"


def test_the_ledger_is_kept_short(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its older half goes; its numbers go on, so that nobody takes the rest for the whole."""
    monkeypatch.setattr(retention, "MOST_LEDGER", 2000)
    chain(base, 20)
    path = base / "records" / LEDGER
    (finding,) = audit.verify([path])
    assert finding.verdict == "accepted" and "older ones were dropped" in finding.words
    assert path.stat().st_size < 4000 and json.loads(path.read_bytes().splitlines()[-1])["seq"] >= 18
    (path.parent / (LEDGER + ".new")).write_text("left by one that was killed")
    with monkeypatch.context() as patch:

        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "rename", refused)
        for number in range(30, 40):
            leave(base, number)
            retention.prune(RecordBounds(count=1, size=1), base)
    assert os.listdir(path.parent) == [LEDGER] or not (path.parent / (LEDGER + ".new")).exists()
    assert ledger(base)


def test_a_batch_is_a_line(base: Path) -> None:
    """So that no line is longer than any reader takes."""
    for number in range(BATCH + 3):
        leave(base, number)
    retention.prune(RecordBounds(count=1), base)
    assert len((base / "records" / LEDGER).read_bytes().splitlines()) == 2 and len(ledger(base)) == BATCH + 2


def test_what_cannot_be_told_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that cannot be seen, a line without end, a file that took the record's place, a line written in part."""
    path = leave(base, 1)
    (base / "locks").touch()
    assert retention.prune(RecordBounds(count=1, size=1), base) == []
    (base / "locks").unlink()
    whole = path.read_bytes()
    path.write_bytes(seeded(b"x" * (3 << 20)))
    assert retention.prune(RecordBounds(size=1), base) == []
    path.write_bytes(whole)
    write, write_down = os.write, Store._write_down
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:-9]))
        with pytest.raises(StepFailed, match=LEDGER):
            retention.prune(RecordBounds(size=1), base)
    assert (base / "records" / LEDGER).read_bytes() == b"" and path.exists()
    with monkeypatch.context() as patch:

        def swapped(store: Store, *args: Any) -> None:
            write_down(store, *args)
            path.rename(base / "was")
            path.write_bytes(whole)

        patch.setattr(Store, "_write_down", swapped)
        retention.prune(RecordBounds(size=1), base)
    assert path.read_bytes() == whole


# ---- launches that need none ----


def test_a_record_that_cannot_be_written_fails_the_launch_or_not(base: Path) -> None:
    """Asked for with best effort it goes on in memory, and says why; the file keeps what it had."""
    lines = launch(LaunchState.EXECD).records
    for wanted in ("required", "best_effort"):
        record = audit.Record()
        assert record.achieved == "memory"
        record.audit = wanted
        record.open(base / wanted)
        record.append(lines[0])
        assert record.achieved == "file"
        os.close(record._fd)
        record._fd = os.open("/dev/full", os.O_WRONLY)
        if wanted == "required":
            with pytest.raises(StepFailed, match=r"No space left.*hint: make room"):
                record.append(lines[1])
            assert record.lines == lines[:1] and record.problem is None
            record.close()
        else:
            for line in lines[1:]:
                record.append(line)
            assert record.lines == lines and record.achieved == "memory" and "No space left" in str(record.problem)
            assert record._fd == -1
        assert (base / wanted).read_bytes() == text_of(lines[:1])
    record = audit.Record()
    record.open(base / "required")
    os.close(record._fd)
    record._fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(StepFailed) as caught:
        record.append(lines[0])
    assert "make room" not in caught.value.hint
    record.end(lines[0])
    assert record._fd == -1


# ---- the verbs ----


def test_the_verbs(base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """List as a table and as JSON, by id, state and age; prune for show and in earnest; collect with the records."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "none"))
    for number in range(5):
        leave(base, number, age=0 if number else 3)
    leave(base, 7, LaunchState.FAILED)
    where = ("--artifact-base", os.fspath(base))

    def said(*words: str) -> list[str]:
        assert cli.main([*words, *where]) == 0
        return capsys.readouterr().out.splitlines()

    table = said("records", "list")
    assert len(table) == 7 and table[0].split()[:3] == ["LAST", "LINE", "STATE"] and table[-1].endswith("of a failure")
    rows = [json.loads(line) for line in said("records", "list", "--json")]
    assert [row["id"] for row in rows] == ["job-0", "job-1", "job-2", "job-3", "job-4", "job-7"]
    assert rows[0]["head"] == next(iter(audit.verify([base / "records" / rows[0]["file"]]))).head
    assert [row["protected"] for row in rows] == [None] * 5 + ["of a failure"]
    assert [json.loads(line)["id"] for line in said("records", "list", "--json", "--state", "Failed")] == ["job-7"]
    assert [json.loads(line)["id"] for line in said("records", "list", "--json", "--id", "job-2")] == ["job-2"]
    assert [json.loads(line)["id"] for line in said("records", "list", "--json", "--older", "2")] == ["job-0"]
    would = said("records", "prune", "--dry-run", "--keep-records", "count=4")
    assert len(would) == 2 and len(left(base)) == 6
    assert said("records", "prune", "--keep-records", "count=4") == would and len(left(base)) == 4
    (row,) = [json.loads(line) for line in said("records", "prune", "--keep-records", "count=3", "--json")]
    assert (row["id"], row["why"]) == ("job-2", "count")
    assert said("gc") == [] and said("gc", "--records", "--keep-records", "count=2") == [
        "job-3." + "3" + "0" * 11 + ".ndjson"
    ]
    assert len(ledger(base)) == 4
    with pytest.raises(SystemExit):
        cli.main(["records", "prune", "--keep-records", "much"])


# ---- what somebody has put there ----


def test_what_is_no_file_is_no_record(base: Path, store: Store) -> None:
    """A FIFO with a record's name counts for nothing, and nobody waits for it."""
    leave(base, 1)
    os.mkfifo(base / "records" / f"job-2.{'0' * 12}.ndjson")
    os.mkdir(base / "records" / f"job-3.{'0' * 12}.ndjson")
    assert [kept.container for kept in store.kept()] == ["job-1"]


def test_a_ledger_that_leads_elsewhere_is_not_written_to(base: Path, store: Store) -> None:
    """Nor is anything removed then."""
    leave(base, 1)
    other = base / "other"
    other.touch()
    (base / "records" / LEDGER).symlink_to(other)
    bounds = RecordBounds(count=0, days=0, size=1)
    chosen, _, _ = store.over(bounds)
    assert [one.kept.container for one in chosen] == ["job-1"]
    with pytest.raises(StepFailed):
        store.remove(chosen, bounds)
    assert (other.stat().st_size, left(base)) == (0, ["job-1"])
