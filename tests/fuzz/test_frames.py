"""What a guest answers for the agent: whatever it is, it is refused or means what it says, and takes bounded memory."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus_gvisor.runtime import CopyFailed, OutputLimit, files, trees
from nucleus_gvisor.runtime.capture import Pipes
from nucleus_gvisor.runtime.files import Ask, FileKind, Lost, globbing, parsed
from tests.fuzz.budget import budget
from tests.sandbox.test_agent import answering, asked

LIMIT = 50_000
lengths = st.integers(-5, 20) | st.sampled_from([-(1 << 31), -4096, -4097, 1 << 16, (1 << 16) + 1, (1 << 31) - 1])
pieces = st.one_of(
    st.binary(max_size=200).map(lambda data: struct.pack("<i", len(data)) + data),
    st.tuples(lengths, st.binary(max_size=20)).map(lambda made: struct.pack("<i", made[0]) + made[1]),
    st.binary(max_size=9),
)
answers = st.tuples(st.lists(pieces, max_size=6), st.sampled_from([b"", struct.pack("<i", 0), struct.pack("<i", -2)]))


def heard(data: bytes) -> tuple[bytes, int] | None:
    """The answer and its errno, by the grammar written a second time; None when it is none."""
    answer = b""
    while len(data) >= 4:
        (size,) = struct.unpack_from("<i", data)
        data = data[4:]
        if size <= 0:
            return (answer, -size) if not data and size >= -trees.LONGEST else None
        if size > trees.PIECE or len(data) < size:
            return None
        answer, data = answer + data[:size], data[size:]
    return None


@given(made=answers)
@example(made=([struct.pack("<i", 1) + b"x"], struct.pack("<i", -200)))
@budget(150)
def test_answers(made: tuple[list[bytes], bytes]) -> None:
    """Heard as the grammar has them, or refused; never another error."""
    data = b"".join(made[0]) + made[1]
    expected = heard(data)
    with answering(data) as agent:
        try:
            assert expected == (asked(agent, Ask(kind="r", path="/x", limit=LIMIT)), 0)
        except (Lost, OSError) as error:
            assert expected is None or expected[1], (data, error)


@given(made=answers, size=st.integers(0, 300))
@budget(60)
def test_files_of_the_host(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[bytes], bytes], size: int
) -> None:
    """A file is there with what was said, or nothing is; and nothing else."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = b"".join(made[0]) + made[1]
    expected = heard(data)
    try:
        with trees.to_get(folder / "file", size, False) as (_, file), answering(data) as agent:
            asked(agent, Ask(kind="r", path="/x", sink=file, limit=size))
    except (Lost, OSError, OutputLimit, CopyFailed):
        assert os.listdir(folder) == []
        assert expected is None or expected[1] or len(expected[0]) > size
    else:
        assert os.listdir(folder) == ["file"]
        assert expected == ((folder / "file").read_bytes(), 0)


names = st.sampled_from([b"", b".", b"..", b"a", b"b", b"a/b", b"\0", b"\xff", b"x" * 300]) | st.binary(max_size=6)
modes = st.sampled_from([0o100644, 0o40755, 0o120777, 0o10644, 0o140644, 0o20666, 0o60666, 0, 0o170000, 1 << 31])
entries = st.builds(
    lambda name, target, mode, ns, zero, more: (
        files.ENTRY.pack(len(name) + more, len(target), mode, 1, 2, 3, -4, ns, zero) + name + target
    ),
    names,
    names | st.just(b""),
    modes,
    st.sampled_from([0, 999_999_999, 1_000_000_000, (1 << 32) - 1]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1, 60_000]),
)


@given(told=st.lists(entries | st.binary(max_size=50), max_size=5).map(b"".join), name=st.sampled_from([None, "x"]))
@budget(200)
def test_listings(told: bytes, name: str | None) -> None:
    """What is believed is plain names, each once, of kinds that there are; never another error."""
    try:
        found = parsed(told, name)
    except OSError as error:
        assert "does not send files" in str(error)
        return
    assert len({one.name for one in found}) == len(found) <= len(told) // files.ENTRY.size
    for one in found:
        assert "/" not in one.name and "\0" not in one.name and one.name not in ("", ".", "..")
        assert isinstance(one.kind, FileKind) and 0 <= one.mode <= 0o7777
        assert one.target is None or (one.kind is FileKind.LINK and "\0" not in one.target)
        assert files.encoded(one.name) in told or name is not None


def test_memory() -> None:
    """An answer that is longer than its bound takes little more than that, however it comes."""
    for size in (1, 1000, trees.PIECE):
        data = (struct.pack("<i", size) + bytes(size)) * (4 * LIMIT // size)
        with answering(data) as agent:
            tracemalloc.start()
            with pytest.raises(OutputLimit):
                asked(agent, Ask(kind="r", path="/x", limit=LIMIT))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 2 * LIMIT + 8 * trees.PIECE, size


patterns = st.text("ab*?[]!./-\\", max_size=8).filter(bool)


@given(pattern=patterns)
@example(pattern="[!]")
@example(pattern="**/**")
@budget(100)
def test_patterns(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> None:
    """They match what pathlib's do, but for `**` at the end, and dots that lead up, which are taken by name here."""
    if ".." in pattern or "//" in pattern or pattern.startswith("/") or pattern.rstrip("/").endswith("**"):
        return
    root = tmp_path_factory.getbasetemp() / "patterns"
    if not root.exists():
        for name in ("a", "b/a/b", "b/ab", "ab/-", "a.b", "[a]", "!"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    try:
        expected = sorted({os.path.normpath(path) for path in root.glob(pattern.rstrip("/"))})
    except (ValueError, NotImplementedError, IndexError):  # pathlib's own for what it cannot take
        return
    assert list(matched(root, pattern)) == expected


def matched(root: Path, pattern: str) -> tuple[str, ...]:
    """What `globbing` finds on this host."""
    steps = globbing(os.fspath(root), pattern)
    try:
        ask = next(steps)
        while True:
            try:
                told = b"".join(map(entry_of, [ask.path] if ask.kind == "s" else sorted(Path(ask.path).iterdir())))
            except OSError as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(told)
    except StopIteration as stop:
        return tuple(stop.value)


def entry_of(path: str | Path) -> bytes:
    """As the agent tells it."""
    at = os.stat(path) if isinstance(path, str) else path.lstat()
    name = b"" if isinstance(path, str) else os.fsencode(path.name)
    return files.ENTRY.pack(len(name), 0, at.st_mode, 0, 0, 0, 0, 0, 0) + name


def test_a_tree_in_place_of_a_file(tmp_path: Path) -> None:
    """An agent sends no trees: what comes as a file's bytes is a file's bytes."""
    told = trees.FRAME.pack(ord("d"), 0, 0, 0o755)
    copying = trees.Copying("g", Pipes())
    received = trees.Received(tmp_path / "x", 1000, copying)
    with answering(struct.pack("<i", len(told)) + told + struct.pack("<i", 0)) as agent:
        asked(agent, Ask(kind="r", path="/x", sink=trees.ReceivedFile(received)))
    received.see_that_it_is_whole()
    received.close()
    assert (tmp_path / "x").read_bytes() == told
