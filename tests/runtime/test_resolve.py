"""The judgement of runsc where it is made: what is told of several candidates, what a wrapper is, what stays open."""

import os
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import BadPath, LaunchError, NotElf, NotFound, Untrusted
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import resolve

ELF = Path("/bin/true").read_bytes()


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def write(path: Path, content: bytes, mode: int = 0o755) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refusal(path: Path | None, *, store: bool = False, pin: str | None = None) -> LaunchError:
    """Why what lies at `path`, or at every candidate, is refused."""
    with pytest.raises(LaunchError) as caught:
        resolve.resolve(None if path is None else os.fsencode(path), Identity.current(), store=store, pin=pin).close()
    return caught.value


def test_each_candidate_is_told_with_its_verdict(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first refusal is raised, with a word on each that was looked at; of one alone there is nothing to add."""
    absent, loose, text = base / "absent", write(base / "loose", ELF, 0o777), write(base / "text", b"text\n")
    monkeypatch.setattr(resolve, "SYSTEM_PATHS", [os.fsencode(path) for path in (absent, loose, text)])
    monkeypatch.setenv("PATH", "")
    error = refusal(None)
    assert isinstance(error, Untrusted) and error.path == os.fsencode(loose)
    [note] = error.__notes__
    assert note.startswith(f"looked at: {absent}: absent; {loose}: ") and f"; {text}: " in note
    assert "ELF" in note.rpartition(f"{text}: ")[2]
    monkeypatch.setattr(resolve, "SYSTEM_PATHS", [os.fsencode(loose)])
    assert not hasattr(refusal(None), "__notes__")
    monkeypatch.setattr(resolve, "SYSTEM_PATHS", [os.fsencode(absent)])
    missing = refusal(None)
    assert isinstance(missing, NotFound) and missing.observed == f"{absent}: absent"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"#!/bin/sh\nexec %s\n", None, ""),
        (b"exec %s\n", NotElf, "executable for this machine"),
        (b"#!/bin/sh\nexec %s\nexec /bin/true\n", NotElf, "executable for this machine"),
        (b"#!/bin/sh\nexec /x/..%s\n", BadPath, "the wrapper's target has .."),
    ],
)
def test_what_a_wrapper_is(base: Path, text: bytes, error: type[LaunchError] | None, words: str) -> None:
    """A script whose last exec names a runsc by a path that does not climb; anything else is followed nowhere."""
    target = write(base / "runsc-real", ELF)
    script = write(base / "runsc", text % os.fsencode(target))
    if error is None:
        judged = resolve.resolve(os.fsencode(script), Identity.current())
        assert judged.runsc.path == os.fsencode(target)
        judged.close()
        return
    found = refusal(script)
    assert isinstance(found, error) and words in str(found)


def test_a_file_that_is_exchanged_while_it_is_opened_is_closed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened is not what was looked at: neither is held."""
    numbers = iter(range(10))
    monkeypatch.setattr(resolve, "file_id", lambda _: (0, next(numbers)))
    assert "replaced while it was opened" in str(refusal(write(base / "runsc", ELF)))


def test_a_store_that_can_be_written_is_none(base: Path) -> None:
    """What was opened for it is closed again."""
    assert "the store can be written" in str(refusal(write(base / "runsc", ELF), store=True))


def test_too_many_side_binaries_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many as are allowed it passes, each of them held; with one more nothing is."""
    monkeypatch.setattr(resolve, "MAX_SIDE_BINARIES", 2)
    runsc, side = write(base / "runsc", ELF), base / "gvisor-bin"
    side.mkdir(mode=0o755)
    for name in ("a", "b"):
        write(side / name, ELF)
    judged = resolve.resolve(os.fsencode(runsc), Identity.current())
    assert [os.path.basename(file.path) for file in judged.side] == [b"a", b"b"]
    judged.close()
    write(side / "c", ELF)
    assert "too many side binaries" in str(refusal(runsc))


@pytest.mark.parametrize("bad", [b"text\n", b""])
def test_one_bad_side_binary_refuses_all(base: Path, bad: bytes) -> None:
    """Those that were open by then are closed."""
    runsc, side = write(base / "runsc", ELF), base / "gvisor-bin"
    side.mkdir(mode=0o755)
    write(side / "a", ELF)
    write(side / "b", bad)
    assert isinstance(refusal(runsc), NotElf)


def test_a_file_where_gvisor_bin_should_be(base: Path) -> None:
    """Nor a link to a directory: runsc would look there."""
    runsc = write(base / "runsc", ELF)
    write(base / "gvisor-bin", b"")
    assert "not a plain directory" in str(refusal(runsc))
    (base / "gvisor-bin").unlink()
    (base / "elsewhere").mkdir(mode=0o755)
    (base / "gvisor-bin").symlink_to("elsewhere")
    assert "not a plain directory" in str(refusal(runsc))


def test_times_tell_what_was_written(base: Path) -> None:
    """Removing and renaming a file is not writing to it; a byte more, or another time, is."""
    path = write(base / "file", ELF)
    fd = os.open(path, os.O_RDONLY)
    try:
        before = resolve.Snapshot.of(fd)
        path.rename(base / "other")
        assert resolve.Snapshot.of(fd).unwritten_since(before)
        (base / "other").unlink()
        assert resolve.Snapshot.of(fd) != before and resolve.Snapshot.of(fd).unwritten_since(before)
        os.utime(fd, ns=(0, before.modified + 1))
        assert not resolve.Snapshot.of(fd).unwritten_since(before)
    finally:
        os.close(fd)
