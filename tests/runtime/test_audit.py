"""The record on disk: each line is there, whole, before it counts, and nothing half written stays."""

import json
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import BadArgument, LaunchError, RecordRejected, StepFailed
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.runtime.audit import Record
from tests.model.launches import bring, launch, moment

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
