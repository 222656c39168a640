"""What the agent does with files, as the program does it on each machine and as pathlib and os have it; and whatever a
guest answers in its place."""

import errno
import itertools
import os
import select
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nucleus_gvisor.runtime import CopyFailed, OutputLimit, Sandbox, files, trees
from nucleus_gvisor.runtime.files import (
    Agent,
    Agents,
    Ask,
    Conversation,
    FileKind,
    Files,
    Lost,
    Steps,
    as_pieces,
    listing,
    parsed,
    reading,
    status,
)
from tests.sandbox.test_guest import program  # noqa: F401


class Box:
    """As much of a sandbox as `Files` needs: its guest is this host, and `agent` does what is asked."""

    def __init__(self, agent: Agent, where: Path) -> None:
        self._agent, self._where = agent, where

    def _from_working_dir(self, path: str) -> str:
        return os.path.normpath(self._where / path)

    def _do(self, name: str, steps: Steps[Any], timeout: float | None, deadline: float | None) -> Any:
        return Sandbox._do(cast(Sandbox, self), name, steps, timeout, deadline)

    def _ask_agent(self, said: tuple[str, str], ask: Ask, timeout: float | None, deadline: float | None) -> bytes:
        return asked(self._agent, ask)

    def read_file(self, path: str, max_bytes: int, timeout: float | None) -> bytes:
        return cast(bytes, self._do("read_file", reading(path, max_bytes), None, None))

    def write_file(self, path: str, data: bytes | str, **how: Any) -> None:
        del how["timeout"]
        self._do("write_file", files.writing(path, data, **how), None, None)


def asked(agent: Agent, ask: Ask) -> bytes:
    """What the agent answers, waited for."""
    talk = Conversation(agent, ask, ("ask", ask.path))
    while (awaited := talk.step()) is not None:
        assert files.ready(*awaited, None)
    Sandbox._copied(talk.code or 0, ask.path)
    return talk.answer()


@contextmanager
def living(words: list[str]) -> Iterator[tuple[Agent, "subprocess.Popen[bytes]"]]:
    """The program as an agent; it ends when nobody asks any more."""
    with subprocess.Popen([*words, "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        agent = Agent(process.pid, os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()))
        process.stdin.close()
        process.stdout.close()
        try:
            yield agent, process
            assert agent.waits
        finally:
            agent.close()
        assert process.wait(60) == errno.EBADMSG  # its input has ended


@pytest.fixture
def here(program: list[str], tmp_path: Path) -> Iterator[Files]:  # noqa: F811
    """The files of a directory of the host."""
    (tmp_path / "x").mkdir()
    with living(program) as (agent, _):
        yield Files(cast(Sandbox, Box(agent, tmp_path / "x")))


def test_bytes_and_text(here: Files, tmp_path: Path) -> None:
    """Of every size at the border of a piece, and larger than a pipe; a shorter file takes the place of a longer."""
    for size in (0, 1, 1024, trees.PIECE - 8, trees.PIECE - 7, trees.PIECE, trees.PIECE + 1, 1_000_003, 0):
        data = os.urandom(size)
        here.write("file", data)
        assert (tmp_path / "x/file").read_bytes() == data == here.read("file"), size
    here.write("a/b/\N{SNOWMAN} \udcff", "text \N{SNOWMAN}", parents=True, mode=0o640)
    assert stat.S_IMODE((tmp_path / "x/a/b/\N{SNOWMAN} \udcff").stat().st_mode) == 0o640
    assert here.read_text("a/b/\N{SNOWMAN} \udcff") == "text \N{SNOWMAN}"


def test_what_is_told_of_files(here: Files, tmp_path: Path) -> None:
    """As lstat(2) and stat(2) have it, for each kind; a directory of many pieces has all its entries, by name."""
    root = tmp_path / "x"
    (root / "file").write_bytes(b"12345")
    (root / "file").chmod(0o4751)
    os.utime(root / "file", ns=(0, -1_000_000_007))
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    (root / "broken").symlink_to("/no/where")
    os.mkfifo(root / "fifo")
    for number in range(2000):
        (root / "directory" / f"{number:0200}").touch()
    for found in here.list():
        at = (root / found.name).lstat()
        assert (found.size, found.uid, found.gid) == (at.st_size, at.st_uid, at.st_gid)
        assert (found.mode, found.mtime_ns) == (stat.S_IMODE(at.st_mode), at.st_mtime_ns)
        assert here.stat(found.name, follow_symlinks=False) == found
    kinds = {"broken": "link", "directory": "directory", "fifo": "fifo", "file": "file", "link": "link"}
    assert {found.name: str(found.kind) for found in here.list()} == kinds
    assert [found.target for found in here.list()] == ["/no/where", None, None, None, "file"]
    followed = here.stat("link")
    assert (followed.name, followed.kind, followed.size) == ("link", FileKind.FILE, 5)
    assert here.stat("/dev/null").kind is FileKind.DEVICE
    assert [found.name for found in here.list("directory")] == sorted(os.listdir(root / "directory"))


def test_directories_and_names(here: Files, tmp_path: Path) -> None:
    """Made with those above, moved over what is there, removed with what is in them; links are not followed."""
    root = tmp_path / "x"
    here.mkdir("a/b/c", 0o750, parents=True)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o750]
    here.mkdir("a/b", exist_ok=True)
    here.mkdir("a/b", parents=True, exist_ok=True)
    (root / "file").write_text("old")
    (root / "a/b/file").write_text("new")
    here.move("a/b/file", "file")
    assert (root / "file").read_text() == "new"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (root / "a/link").symlink_to(outside)
    for number in range(600):
        (root / "a/b" / f"{number:0100}").touch()
    deep = root / "a" / "/".join(["d"] * 200)
    deep.mkdir(parents=True)
    here.remove("a", recursive=True)
    here.remove("a", missing_ok=True)
    assert os.listdir(root) == ["file"] and os.listdir(outside) == ["kept"]
    here.mkdir("empty")
    here.remove("empty")
    here.remove("file")
    assert os.listdir(root) == []


ERRORS: dict[str, tuple[type[OSError], Callable[[Files], object]]] = {
    "read": (FileNotFoundError, lambda here: here.read("nothing")),
    "read a directory": (IsADirectoryError, lambda here: here.read("directory")),
    "write": (FileNotFoundError, lambda here: here.write("no/where", bytes(200_000))),
    "write a directory": (IsADirectoryError, lambda here: here.write("directory", b"x")),
    "write below a file": (NotADirectoryError, lambda here: here.write("file/x", b"x", parents=True)),
    "stat": (FileNotFoundError, lambda here: here.stat("broken")),
    "list": (FileNotFoundError, lambda here: here.list("nothing")),
    "list a file": (NotADirectoryError, lambda here: here.list("file")),
    "mkdir": (FileExistsError, lambda here: here.mkdir("directory")),
    "mkdir over a file": (FileExistsError, lambda here: here.mkdir("file", parents=True, exist_ok=True)),
    "mkdir in nothing": (FileNotFoundError, lambda here: here.mkdir("no/where")),
    "remove": (FileNotFoundError, lambda here: here.remove("nothing")),
    "remove a full one": (OSError, lambda here: here.remove("directory")),
    "move": (FileNotFoundError, lambda here: here.move("nothing", "x")),
    "move over a directory": (IsADirectoryError, lambda here: here.move("file", "directory")),
    "walk": (FileNotFoundError, lambda here: list(here.walk("nothing"))),
    "too long": (OSError, lambda here: here.list("/".join(["d" * 255] * 17))),
}


def test_errors(here: Files, tmp_path: Path) -> None:
    """They are Python's, with the path; the agent is there for the next request."""
    root = tmp_path / "x"
    (root / "directory").mkdir()
    (root / "directory/x").touch()
    (root / "file").touch()
    (root / "broken").symlink_to("nothing")
    for name, (kind, call) in ERRORS.items():
        with pytest.raises(kind) as caught:
            call(here)
        assert str(caught.value.filename).startswith(f"{root}/"), name
    with pytest.raises(FileNotFoundError) as caught:
        here.move("nothing", "target")
    assert caught.value.filename2 == f"{root}/target"
    with pytest.raises(ValueError, match="null byte"):
        here.write("a\0b", b"")
    with pytest.raises(ValueError, match="expected permission bits"):
        here.mkdir("x", -1)
    assert [found.name for found in here.list()] == ["broken", "directory", "file"]


PATTERNS = (
    "*", "a*", "*.py", "?", "[ab]*", "[!a]*", ".*", "a", "a/b.py", "a/*", "*/*", "*/*.py", "**/*.py", "**/*", "a/**/x",
    "**/a/*", "**/**/x", "link/*", "*/x", "nothing/*", "broken", "bro*", "broken/*", "file/*", "A*", "./a/./*",
)  # fmt: skip


def test_glob_as_pathlib(here: Files, tmp_path: Path) -> None:
    """The same paths for the same patterns, whatever lies there."""
    root = tmp_path / "x"
    for name in ("a/b.py", "a/x", "a/a/x", "a/.hidden.py", ".dot/x", "b/c/d/x", "file", "A.py", "b.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "link").symlink_to("b")
    (root / "broken").symlink_to("no/where")
    (root / "a/round").symlink_to("..")
    for pattern in PATTERNS:
        expected = sorted({os.path.normpath(path) for path in root.glob(pattern)})
        assert list(here.glob(pattern)) == expected, pattern
        assert list(here.glob(f"{root}/{pattern}")) == expected, pattern
    assert here.glob("b/**") == tuple(f"{root}/b{below}" for below in ("", "/c", "/c/d"))
    for pattern in ("", "a**"):
        with pytest.raises(ValueError, match="pattern"):
            here.glob(pattern)


def test_walk_as_os(here: Files, tmp_path: Path) -> None:
    """The same, in the same order where that is by name; a caller leaves out what he takes away."""
    root = tmp_path / "x"
    for name in ("a/b/c", "a/d", "e/f"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    (root / "a/link").symlink_to("../e")
    (root / "a/broken").symlink_to("nothing")
    expected = []
    for where, directories, others in os.walk(root):
        directories.sort()
        expected.append((where, list(directories), sorted(others)))
    assert [(where, list(inside), others) for where, inside, others in here.walk()] == expected
    seen = []
    for where, directories, _ in here.walk():
        seen.append(os.path.relpath(where, root))
        if "b" in directories:
            directories.remove("b")
    assert seen == [".", "a", "a/d", "e", "e/f"]


def test_bounds(here: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is read into memory, and of what a glob looks at."""
    root = tmp_path / "x"
    for number in range(20):
        (root / str(number)).touch()
    monkeypatch.setattr(files, "MAX_MATCHES", 19)
    with pytest.raises(OSError, match="more than 19 files would be looked at"):
        here.glob("**/*")


def test_a_bound_that_is_met(program: list[str], tmp_path: Path) -> None:  # noqa: F811
    """The first of it is there, and the agent, which has more to say, ends."""
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    (tmp_path / "many").mkdir()
    for number in range(50):
        (tmp_path / "many" / str(number)).touch()
    agents = []
    with pytest.raises(OutputLimit, match="more than 100 bytes") as caught, living(program) as (agent, process):
        agents.append((agent, process))
        asked(agent, Ask(kind="r", path=f"{tmp_path}/large", limit=100))
    assert caught.value.stdout == b"x" * 100
    with pytest.raises(OutputLimit), living(program) as (agent, process):
        asked(agent, Ask(kind="l", path=f"{tmp_path}/many", limit=100))


def test_what_is_no_request(program: list[str]) -> None:  # noqa: F811
    """The program ends: it is ours that asks, or nobody's."""
    for request in (b"x", struct.pack("<BBHI", ord("?"), 0, 1, 0) + b"x", struct.pack("<BBHI", ord("r"), 0, 5000, 0)):
        done = subprocess.run([*program, "a"], input=request, capture_output=True)
        assert (done.returncode, done.stdout) == (errno.EBADMSG, b"")


def test_a_removal_that_nobody_waits_for_stops(program: list[str], tmp_path: Path) -> None:  # noqa: F811
    """Between two entries it looks whether anybody will hear of it."""
    (tmp_path / "x").mkdir()
    for number in range(20):
        (tmp_path / "x" / str(number)).touch()
    request = b"".join(Ask(kind="u", path=f"{tmp_path}/x", flag=True).pieces())
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run([*program, "a"], input=request, stdout=writer)
    os.close(writer)
    assert len(os.listdir(tmp_path / "x")) == 20


# ---- what a guest answers in its place ----


@contextmanager
def answering(data: bytes) -> Iterator[Agent]:
    """An agent that says `data`, whatever it is asked, and has then ended."""
    (requests, ours), (theirs, answers) = os.pipe(), os.pipe()
    agent = Agent(7, ours, theirs)
    writer = threading.Thread(target=_say, args=(answers, data))
    writer.start()
    try:
        yield agent
    finally:
        agent.close()
        os.close(requests)
        writer.join()


def _say(fd: int, data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except BrokenPipeError:
        pass  # it was heard enough
    finally:
        os.close(fd)


def entry(name: bytes = b"x", mode: int = 0o100644, target: bytes = b"", **more: int) -> bytes:
    lengths = more.get("length", len(name)), len(target)
    return files.ENTRY.pack(*lengths, mode, 0, 0, 1, 2, more.get("ns", 3), more.get("zero", 0)) + name + target


def piece(data: bytes) -> bytes:
    return struct.pack("<i", len(data)) + data


END = struct.pack("<i", 0)
NO_ANSWERS = {
    "nothing": b"",
    "half a length": b"\0\0",
    "no end": piece(b"x"),
    "half a piece": piece(b"1234")[:6],
    "more after the end": END + b"x",
    "another end": END + END,
    "too long a piece": struct.pack("<i", trees.PIECE + 1) + bytes(trees.PIECE + 1) + END,
    "no errno": struct.pack("<i", -5000),
    "the lowest": struct.pack("<i", -(1 << 31)),
}
NO_LISTINGS = {
    "no entry": b"x",
    "half an entry": entry()[:-1],
    "a slash": entry(b"a/b"),
    "up": entry(b".."),
    "itself": entry(b"."),
    "no name": entry(b""),
    "a NUL": entry(b"a\0"),
    "no kind": entry(mode=0o644),
    "more than a mode": entry(mode=0o100644 | 1 << 20),
    "a file that leads": entry(target=b"x"),
    "a NUL in a link": entry(mode=0o120777, target=b"a\0"),
    "no fraction": entry(ns=10**9),
    "not zero": entry(zero=1),
    "too long a name": entry(length=60_000),
    "too long a link": entry(mode=0o120777, target=b"x" * 4097),
}


@pytest.mark.parametrize("data", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_no_answer(data: bytes) -> None:
    """An error, and it is heard no further."""
    with answering(data) as agent, pytest.raises((Lost, OSError)):
        asked(agent, Ask(kind="r", path="/x", limit=1 << 20))


@pytest.mark.parametrize("data", NO_LISTINGS.values(), ids=NO_LISTINGS)
def test_no_listing(data: bytes) -> None:
    """Nothing of it is believed, alone or after what is right."""
    for told in (data, entry(b"before") + data):
        with pytest.raises(OSError, match="does not send files") as caught:
            parsed(told)
        assert caught.value.errno == errno.EBADMSG


def test_no_status() -> None:
    """None, two, or one with a name of its own."""
    for told in (b"", entry(), entry(b"") + entry(b"x")):
        steps = status("/x", True)
        next(steps)
        with pytest.raises(OSError, match="does not send files"):
            steps.send(told)


def test_a_name_that_is_told_twice() -> None:
    """It is there once: a directory may change while it is read."""
    assert [found.uid for found in parsed(entry() + entry())] == [0]


def test_an_answer_without_end() -> None:
    """It is heard up to its bound."""
    endless = piece(b"x" * 60_000) * 40 + END
    for ask in (Ask(kind="r", path="/x", limit=100_000), Ask(kind="l", path="/x", limit=100_000)):
        with answering(endless) as agent, pytest.raises(OutputLimit):
            asked(agent, ask)


def test_one_that_speaks_unasked_is_not_asked() -> None:
    """Nor one that has ended."""
    for data in (END, b""):
        agents = Agents()
        with answering(data) as agent:
            assert select.select([agent.answers], [], [], 60)[0]
            agents.give_back(agents.use(agent), keep=True)
            assert agents.take() is None and agent.answers.closed and agents.busy == []


def test_agents_wait_up_to_a_bound() -> None:
    """More are closed."""
    agents, made = Agents(), []
    for number in range(files.MOST_IDLE + 2):
        (_, ours), (theirs, _) = os.pipe(), os.pipe()
        made.append(agents.use(Agent(number, ours, theirs)))
    assert {agent.pid for agent in agents.busy} == set(range(len(made)))
    for agent in made:
        agents.give_back(agent, keep=True)
    assert [agent.answers.closed for agent in made] == [False] * files.MOST_IDLE + [True] * 2
    assert agents.dismiss(0) == set(range(files.MOST_IDLE)) and agents.take() is None


# ---- what the host cannot ----


def test_what_the_host_cannot_read_or_write(tmp_path: Path) -> None:
    """It is said which; and what was heard until then is nothing."""

    def failing() -> Iterator[bytes]:
        yield from itertools.islice(as_pieces(bytes(1 << 20)), 1)
        raise OSError(errno.EIO, "no disk")

    with answering(b"") as agent, pytest.raises(CopyFailed, match="copying stdin failed: no disk"):
        asked(agent, Ask(kind="w", path="/x", more=failing()))
    received = trees.Received(tmp_path / "no" / "where", 100, trees.Copying("g", cast(Any, None)))
    with answering(piece(b"x") + END) as agent, pytest.raises(CopyFailed, match="copying stdout failed"):
        asked(agent, Ask(kind="r", path="/x", sink=trees.ReceivedFile(received)))
    received.close()


def test_a_reader_that_has_gone() -> None:
    """Lost, also where it is still being told; one that somebody has closed is of no use."""
    (requests, ours), (theirs, answers) = os.pipe(), os.pipe()
    os.close(requests)
    agent = Agent(7, ours, theirs)
    with pytest.raises(Lost):
        asked(agent, Ask(kind="w", path="/x", more=as_pieces(b"x")))
    agent.close()
    assert not agent.waits and agent.dismiss()
    os.close(answers)


def test_one_that_is_not_heard_out() -> None:
    """It is closed after so many bytes: to write more ends it."""
    with answering(bytes(2 * files.MOST_UNHEARD)) as agent:
        assert agent.dismiss(60) and agent.answers.closed


def test_steps_end_when_the_guests_error_is_theirs() -> None:
    """A listing has no answer of its own to an error."""
    steps = listing("/x")
    next(steps)
    with pytest.raises(PermissionError):
        steps.throw(PermissionError(errno.EACCES, "no", "/x"))
