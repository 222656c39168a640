"""The record on disk: each line is there, whole, before it counts, and nothing half written stays."""

import errno
import json
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadArgument, LaunchError, RecordRejected, StepFailed
from nucleus_gvisor.model.record import MAX_LINE, parse_all
from nucleus_gvisor.model.replay import REASONS, complete, fold, judge, split
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.runtime import audit, cli
from nucleus_gvisor.runtime.audit import Record
from tests.model.launches import bring, launch, moment, plain, sealed, text_of
from tests.support.forks import code, forked
from tests.support.modes import Mode
from tests.support.records import seeded

S = LaunchState
LINES = launch(S.EXECD, launch="a" * 32).records


@contextmanager
def record(path: Path | None = None) -> Iterator[Record]:
    """An open record, closed at the end."""
    it = Record()
    try:
        if path is not None:
            it.open(path)
        yield it
    finally:
        it.close()


def test_each_line_is_on_disk_when_append_returns(base: Path) -> None:
    """A reader finds every line at once, and each beginning of the file is an accepted record."""
    with record(base / "r") as it:
        for number, line in enumerate(LINES, 1):
            it.append(line)
            assert parse_all((base / "r").read_bytes()) == LINES[:number] == it.lines
            it.verify()
        assert it.states == tuple(PATH) and it.head == LINES[-1].digest()
        assert complete(it.lines)


def test_lines_are_forced_to_disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each append ends with a sync of the file, after the write."""
    calls: list[str] = []
    write, sync = os.write, os.fdatasync

    def note_write(fd: int, data: bytes) -> int:
        calls.append("write")
        return write(fd, data)

    def note_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    with record(base / "r") as it:
        monkeypatch.setattr(os, "write", note_write)
        monkeypatch.setattr(os, "fdatasync", note_sync)
        it.append(LINES[0])
        it.append(LINES[1])
    assert calls == ["write", "sync"] * 2


def test_lines_before_the_file_are_written_first(base: Path) -> None:
    """A record that begins in memory is whole once it has a file."""
    with record() as it:
        for line in LINES[:3]:
            it.append(line)
        assert not it.path
        directory = os.open(base, os.O_RDONLY)
        it.open_in(directory, "r", base / "r")
        it.open_in(directory, "again", base / "again")
        os.close(directory)
        it.append(LINES[3])
        assert str(it.path) == str(base / "r") and not (base / "again").exists()
    assert parse_all((base / "r").read_bytes()) == LINES[:4]


def test_the_file_is_the_callers_alone(base: Path) -> None:
    """Whatever the umask would allow."""
    before = os.umask(0)
    try:
        with record(base / "r"):
            assert stat.S_IMODE((base / "r").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_an_empty_record_says_so() -> None:
    """Without lines there is no head, no state, no evidence, and nothing to verify."""
    it = Record()
    assert (it.lines, it.states, it.head, it.path, it.evidence("Exec")) == ((), (), None, None, {})
    with pytest.raises(RecordRejected, match="empty"):
        it.verify()
    it.close()


def test_evidence_is_that_of_the_first_that_happened() -> None:
    """The evidence of one of several actions; a copy that can be changed."""
    it = Record()
    machine = launch(S.STAGED, sink=it.append)
    assert machine.records == it.lines
    assert it.evidence("StageSet", "StageSealed") == {} == it.evidence("Exec")
    it.evidence("StageSealed")["new"] = 1
    assert it.evidence("StageSealed") == {}


# ---- what cannot be written to ----


@pytest.mark.parametrize(
    "kind", ["link", "dangling link", "directory", "fifo", "device", "full", "socket", "missing folder", "long"]
)
def test_what_is_no_plain_file_is_refused(base: Path, kind: str) -> None:
    """At once, and without touching what a link leads to."""
    path = base / "r"
    (base / "victim").write_text("kept")
    match kind:
        case "link":
            path.symlink_to("victim")
        case "dangling link":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/null")
        case "full":
            path = Path("/dev/full")
        case "socket":
            path = Path("/dev/log/none")
        case "missing folder":
            path = base / "missing/r"
        case _:
            path = base / ("x" * 300)
    it = Record()
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadArgument) as caught:
        it.open(path)
    it.close()
    assert caught.value.path == os.fsencode(path)
    assert (base / "victim").read_text() == "kept" and not (base / "nowhere").exists()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_fifo_with_a_reader_is_refused(base: Path) -> None:
    """Also when somebody waits at its other end."""
    os.mkfifo(base / "r")
    reader = os.open(base / "r", os.O_RDONLY | os.O_NONBLOCK)
    it = Record()
    try:
        with pytest.raises(BadArgument):
            it.open(base / "r")
    finally:
        os.close(reader)
        it.close()


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_new_file_is_new(base: Path, kind: str) -> None:
    """In the records directory nothing that is there already is written to."""
    (base / "victim").write_text("kept")
    {"file": (base / "r").touch, "link": lambda: (base / "r").symlink_to("victim"), "directory": (base / "r").mkdir}[
        kind
    ]()
    directory = os.open(base, os.O_RDONLY)
    it = Record()
    try:
        with pytest.raises(StepFailed):
            it.open_in(directory, "r", base / "r")
    finally:
        os.close(directory)
        it.close()
    assert (base / "victim").read_text() == "kept"


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A soft limit for the size of files; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 400])
def test_half_a_line_does_not_stay(base: Path, room: int) -> None:
    """A line for which there is no room is not in the file, not in the record, and can be written later."""
    with record(base / "r") as it:
        it.append(LINES[0])
        size = (base / "r").stat().st_size
        with file_size_limit(size + room):
            with pytest.raises(StepFailed, match="cannot be written") as caught:
                it.append(LINES[1])
        assert caught.value.path == os.fsencode(base / "r") and caught.value.observed
        assert it.lines == LINES[:1] == parse_all((base / "r").read_bytes())
        it.append(LINES[1])
    assert parse_all((base / "r").read_bytes()) == LINES[:2]


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("state", PATH[:-1])
def test_a_line_that_is_not_kept_stops_the_launch(
    base: Path, state: LaunchState, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the disk fails, the machine stays, the file is a sound record, and the launch can go on to fail."""
    with record(base / "r") as it:
        machine = launch(state, sink=it.append, launch="a" * 32)
        before, text = moment(machine), (base / "r").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _broken)
            with pytest.raises(StepFailed) as caught:
                bring(machine, PATH[PATH.index(state) + 1]) if state is S.UNRESOLVED else _next(machine)
        assert caught.value.errno == 5
        assert moment(machine) == before and (base / "r").read_bytes() == text
        machine.fail(caught.value)
        assert fold(parse_all((base / "r").read_bytes())) == machine.facts and machine.state is S.FAILED


def _broken(*_: object) -> int:
    raise OSError(5, "Input/output error")


def _next(machine: object) -> None:
    from nucleus_gvisor.model.machine import LaunchMachine
    from tests.model.launches import way

    assert isinstance(machine, LaunchMachine)
    machine.fire(way(machine.facts)[PATH.index(machine.state)])


def test_no_room_at_all(base: Path) -> None:
    """On a full file system the record is refused, not half written."""
    if os.geteuid():
        pytest.fail("run as root: something has to be mounted")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", base], check=True)
    try:
        with record(base / "r") as it:
            written = 0
            with pytest.raises(StepFailed, match="cannot be written"):
                for line in LINES * 3:
                    it.append(line)
                    written += 1
            assert written and len(it.lines) == written
            assert (base / "r").read_bytes() == b"".join(line.line() + b"\n" for line in it.lines)
    finally:
        subprocess.run(["umount", base], check=True)


def test_a_new_file_without_room_for_its_first_lines_is_no_record(base: Path) -> None:
    """It is not left behind empty, or half; the record goes on in memory."""
    with record() as it:
        it.append(LINES[0])
        directory = os.open(base, os.O_RDONLY)
        try:
            with file_size_limit(10), pytest.raises(StepFailed, match="cannot be written"):
                it.open_in(directory, "r", base / "r")
        finally:
            os.close(directory)
        assert os.listdir(base) == [] and it.path is None and it.lines == LINES[:1]


def test_an_end_that_cannot_be_written_is_an_end(base: Path) -> None:
    """The launch has failed all the same: the line is in the record, and `problem` says that it is not in the file."""
    with record(base / "r") as it:
        it.append(LINES[0])
        with file_size_limit((base / "r").stat().st_size):
            it.end(LINES[1])
        assert it.lines == LINES[:2] and "cannot be written" in str(it.problem)
        it.append(LINES[2])  # the file is let go: nothing may follow a line that is missing
        assert parse_all((base / "r").read_bytes()) == LINES[:1]


def test_the_last_line_can_be_taken_back(base: Path) -> None:
    """In place, Exec is written before execve; when that refuses, file and record are as before it."""
    with record(base / "r") as it:
        for line in LINES:
            it.append(line)
        it.retract()
        assert it.lines == LINES[:-1] == parse_all((base / "r").read_bytes())
        it.append(LINES[-1])
    assert parse_all((base / "r").read_bytes()) == LINES
    memory = Record()
    memory.append(LINES[0])
    memory.retract()
    assert memory.lines == ()


def test_what_is_taken_back_is_taken_from_the_disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is forced there; and where somebody has cut the file shorter than the line, it is not ours any more."""
    with record(base / "r") as it:
        it.append(LINES[0])
        it.append(LINES[1])
        synced: list[int] = []
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
        it.retract()
        assert synced == [(base / "r").stat().st_size]
        whole = (base / "r").read_bytes()
        os.truncate(base / "r", 10)
        with pytest.raises(StepFailed, match="not the last any more"):
            it.retract()
        assert (base / "r").stat().st_size == 10
        with open(base / "r", "r+b") as file:
            file.write(whole)


def test_a_umask_that_leaves_nothing(base: Path) -> None:
    """The record is its owner's to read all the same."""
    before = os.umask(0o777)
    try:
        with record(base / "r") as it:
            it.append(LINES[0])
    finally:
        os.umask(before)
    assert stat.S_IMODE((base / "r").stat().st_mode) == 0o600


def test_a_terminal_is_not_taken_for_the_own() -> None:
    """A process without one would get it by opening it (tty(4)), and its owner's keys would be signals."""
    ours, theirs = os.openpty()
    name = Path(os.ttyname(theirs))

    def body() -> None:
        os.setsid()
        with pytest.raises(BadArgument, match="regular file"):
            Record().open(name)
        with pytest.MonkeyPatch.context() as patch:  # as if it had been put there after the look
            patch.setattr(os, "stat", lambda *_, **__: os.lstat(__file__))
            [finding] = audit.verify([name])
        assert finding.words == "REJECTED: cannot be read: not a regular file"
        with pytest.raises(OSError, match="No such device"):
            os.open("/dev/tty", os.O_RDONLY)

    assert code(forked(body)) == 0
    os.close(ours)
    os.close(theirs)


def test_a_fifo_that_is_put_in_a_records_place(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between look and opening: nobody waits for it."""
    os.mkfifo(base / "r.ndjson")
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.lstat(__file__))
    assert [finding.words for finding in audit.verify([base / "r.ndjson"])] == [
        "REJECTED: cannot be read: not a regular file"
    ]


def test_a_directory_that_cannot_be_read_is_told_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has no record is not known then, and is not said."""

    def scandir(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [finding.words for finding in audit.verify([base])] == ["REJECTED: cannot be read: Permission denied"]


def test_a_bad_launch_in_a_broken_file_is_told_too(base: Path) -> None:
    """Each has its own finding; a launch that was well so far has none, for its end is not known."""
    (base / "r").write_bytes(seeded(OTHER + bad() + b"rubbish\n"))
    found = [(finding.launch, finding.verdict, finding.reason) for finding in audit.verify([base / "r"])]
    assert found == [("a" * 32, "rejected", "effect"), (None, "rejected", "format")]


def test_a_second_launch_is_appended(base: Path) -> None:
    """A file that is named for several launches keeps all of them."""
    other = launch(S.EXECD, launch="b" * 32).records
    for lines in (LINES, other):
        with record(base / "r") as it:
            for line in lines:
                it.append(line)
            it.verify()
    assert parse_all((base / "r").read_bytes()) == LINES + other


def test_taking_back_leaves_anothers_line(base: Path) -> None:
    """Two launches may append to one file: what one takes back is its own line, not what the other wrote since."""
    other = launch(S.RESOLVED, launch="b" * 32).records
    with record(base / "r") as first, record(base / "r") as second:
        for line in LINES:
            first.append(line)
        second.append(other[0])
        try:
            first.retract()
        except LaunchError:
            pass
    kept = [json.loads(line)["launch"] for line in (base / "r").read_bytes().splitlines()]
    assert kept.count("b" * 32) == 1


def test_closing_twice_is_closing_once(base: Path) -> None:
    """A closed record keeps its lines and writes no more."""
    it = Record()
    it.open(base / "r")
    it.append(LINES[0])
    it.close()
    it.close()
    it.append(LINES[1])
    assert it.lines == LINES[:2] and parse_all((base / "r").read_bytes()) == LINES[:1]


# ---- the audit ----

TEXT = text_of(LINES)
HEAD = LINES[-1].digest()
OTHER = text_of(launch(S.STAGED, launch="b" * 32).records)


def bad() -> bytes:
    """A record that says at its last line that nothing was executed."""
    lines = plain(LINES)
    lines[-1]["facts"]["image"] = "none"
    return seeded(sealed(lines))


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines of `audit verify`."""
    capsys.readouterr()
    code = cli.main(["audit", "verify", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out.splitlines()


def test_a_whole_record_is_accepted(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its end, and with the head that the launch printed."""
    (base / "r").write_bytes(TEXT)
    code, (line,) = verify(capsys, base / "r")
    assert code == 0 and f"accepted, 6 lines, ends in Exec'd, complete, head {HEAD}" in line
    code, (line,) = verify(capsys, "--head", HEAD.upper(), base / "r")
    assert code == 0 and f"complete, to the head given, head {HEAD}" in line


@pytest.mark.parametrize("kept", range(1, len(LINES)))
def test_a_cut_tail_is_told(base: Path, capsys: pytest.CaptureFixture[str], kept: int) -> None:
    """Without a head it is an unfinished record, with another exit code; the head shows that a tail was cut."""
    (base / "r").write_bytes(text_of(LINES[:kept]))
    code, (line,) = verify(capsys, base / "r")
    assert code == 3 and "INCOMPLETE: a killed launch, or a cut tail" in line
    code, (_, line) = verify(capsys, base / "r", "--head", HEAD)
    assert code == 1 and f"no record has the head {HEAD}: its tail was cut" in line


def test_the_head_of_a_killed_launch_makes_it_whole(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was cut from it; and lines that follow a head are not the launch's."""
    (base / "r").write_bytes(text_of(LINES[:3]))
    code, (line,) = verify(capsys, base / "r", "--head", LINES[2].digest())
    assert code == 0 and "incomplete, to the head given" in line
    (base / "r").write_bytes(TEXT)
    code, (line,) = verify(capsys, base / "r", "--head", LINES[2].digest())
    assert code == 1 and "REJECTED: the head given is line 2's, and lines follow it" in line


def test_each_launch_in_a_file_is_judged(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two launches that appended to one file at once are apart; the bad one is named with its first bad line."""
    pairs = zip(bad().splitlines(keepends=True), [*OTHER.splitlines(keepends=True), b"", b""], strict=True)
    text = seeded(b"".join(line for pair in pairs for line in pair))
    (base / "r").write_bytes(text)
    code, (first, second) = verify(capsys, base / "r")
    assert code == 1
    assert f"{base / 'r'}: launch {'a' * 32}: REJECTED: record: line 5: Exec does not lead to these image" in first
    assert f"launch {'b' * 32}: accepted, 4 lines" in second
    assert b"".join(sorted(split(text))) == b"".join(sorted([bad(), OTHER]))


def test_all_below_a_directory_is_judged(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each *.ndjson, however deep; links are not followed, and a directory without a record is no good answer."""
    (base / "a/records").mkdir(parents=True)
    (base / "a/records/1.ndjson").write_bytes(TEXT)
    (base / "a/2.ndjson").write_bytes(OTHER)
    (base / "a/owner").write_text("no record")
    (base / "a/again").symlink_to("records")
    (base / "a/around").symlink_to("..")
    code, lines = verify(capsys, base / "a")
    assert code == 3 and [line.split(":")[0] for line in lines] == [f"{base}/a/2.ndjson", f"{base}/a/records/1.ndjson"]
    (base / "a/link.ndjson").symlink_to("records/1.ndjson")
    os.mkfifo(base / "a/pipe.ndjson")
    code, lines = verify(capsys, base / "a")
    refused = [f"{base}/a/{name}.ndjson: REJECTED: cannot be read: not a regular file" for name in ("link", "pipe")]
    assert code == 1 and [line for line in lines if "REJECTED" in line] == refused
    (base / "none").mkdir()
    code, (line,) = verify(capsys, base / "none")
    assert code == 1 and "no .ndjson file below it" in line
    assert verify(capsys, base / "a/link.ndjson")[0] == 0  # who names a link means what it leads to


def test_a_directory_that_cannot_be_entered_is_told(mode: Mode) -> None:
    """What was not looked at is not accepted."""
    (mode.base / "r.ndjson").write_bytes(TEXT)
    os.chown(mode.base / "r.ndjson", mode.account.pw_uid, -1)
    (mode.base / "closed").mkdir(mode=0)
    done = mode.cli("audit", "verify", mode.base)
    if mode.name == "user":  # which is nobody's root
        assert (
            done.returncode == 1 and f"{mode.base}/closed: REJECTED: cannot be read: Permission denied" in done.stdout
        )
    assert "accepted, 6 lines" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("fifo", "cannot be read: not a regular file"),
        ("/dev/zero", "cannot be read: not a regular file"),
        ("/proc/self/mem", "cannot be read: Input/output error"),
        ("empty", "REJECTED: empty: a launch leaves at least its first line"),
        ("binary", "line 0: not ASCII"),
        ("text", "line 0: no JSON: Expecting value at byte 0"),
        ("long line", f"line 0: longer than {MAX_LINE} bytes"),
        ("two gigabytes", f"line 6: longer than {MAX_LINE} bytes"),
        ("half a line", "line 6: the last line is not ended: it was cut while it was written"),
    ],
)
def test_what_is_no_record_is_told_in_one_line(
    base: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    """Nothing is waited for, and no more than a line is ever in memory."""
    path = base / "it"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "binary":
            path.write_bytes(Path("/bin/true").read_bytes())
        case "text":
            path.write_text("hello\n")
        case "long line":
            path.write_bytes(b"x" * (100 << 20))
        case "two gigabytes":
            path.write_bytes(TEXT)
            os.truncate(path, 2 << 30)
        case "half a line":
            path.write_bytes(seeded(TEXT + b'{"action":'))
        case str() if kind.startswith("/"):
            path = Path(kind)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), hard))
    try:
        code, (line,) = verify(capsys, path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if kind == "two gigabytes":
            os.truncate(path, 0)  # two gigabytes are not kept for the session's judges
    assert code == 1 and line.startswith(f"{path}: REJECTED: ") and words in line


def test_too_many_launches_in_one_file_are_refused(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes some memory until the file's end."""
    monkeypatch.setattr(audit, "MOST_LAUNCHES", 1)
    (base / "r").write_bytes(TEXT + OTHER)
    code, (line,) = verify(capsys, base / "r")
    assert code == 1 and "more than 1 launches in one file" in line


def test_the_findings_as_json(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object, with all that the lines say."""
    (base / "good").write_bytes(TEXT)
    (base / "bad").write_bytes(bad())
    code, (line,) = verify(capsys, "--json", "--head", HEAD, "--head", "0" * 64, base / "good", base / "bad")
    found = json.loads(line)["findings"]
    assert code == 1 and [f["verdict"] for f in found] == ["accepted", "rejected", "rejected"]
    assert [f["reason"] for f in found] == ["accepted", "effect", "head"]
    assert (found[0]["launch"], found[0]["lines"], found[0]["state"], found[0]["head"]) == ("a" * 32, 6, "Exec'd", HEAD)
    assert (found[1]["lines"], found[1]["state"], found[2]["head"]) == (5, "Confined", "0" * 64)


@pytest.mark.parametrize("head", ["", "0" * 63, "g" * 64, "0" * 65])
def test_what_is_no_head_is_refused(base: Path, capsys: pytest.CaptureFixture[str], head: str) -> None:
    """As any other wrong argument is."""
    with pytest.raises(SystemExit) as caught:
        verify(capsys, "--head", head, base)
    assert caught.value.code == 2 and "no SHA-256 in hex" in capsys.readouterr().err


def test_a_path_that_no_file_can_have() -> None:
    """A NUL in it is a finding as any other."""
    [finding] = audit.verify([Path("a\0b")])
    assert finding.reason == "unreadable" and "null" in str(finding), finding


def test_names_cannot_forge_a_finding(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line end or an escape in a file's name, or in a record's launch, stays within its line."""
    path = base / "x\nforged: accepted\033[2K"
    lines = plain(LINES[:1])
    lines[0]["launch"] = "a\nforged: accepted, 6 lines"
    path.write_bytes(sealed(lines))
    code, (line,) = verify(capsys, path)
    assert code == 3 and line.isprintable()


edits = st.lists(
    st.tuples(st.integers(0, len(TEXT)), st.integers(0, 40), st.binary(max_size=12) | st.sampled_from(
        [b"\n", b'"', b"0", b"true", *TEXT.splitlines(keepends=True), *OTHER.splitlines(keepends=True)])),
    max_size=3,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits)
@example(edits=[])
@example(edits=[(0, 0, b"\xff")])
def test_any_file_gets_an_answer(
    base: Path, capsys: pytest.CaptureFixture[str], edits: list[tuple[int, int, bytes]]
) -> None:
    """Never a traceback; and what is accepted TLC judges too when the session ends, for the file lies in a base."""
    text = TEXT
    for place, cut, new in edits:
        text = text[:place] + new + text[place + cut :]
    (base / "r").write_bytes(text)
    code, lines = verify(capsys, base / "r")
    judgements = [judge(part) for part in split(text)]
    if any(not judgement.accepted for judgement in judgements):
        seeded(text)
    assert (code == 1) == any(not judgement.accepted for judgement in judgements), lines
    assert all(judgement.reason in REASONS for judgement in judgements) and all(line.isprintable() for line in lines)
