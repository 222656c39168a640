"""Staging where it is done: what counts as untouched, what is kept for the next launch, what stays open."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import Changed, LaunchError, NoSpace, PinMismatch, SafetyViolation, StepFailed
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import make_directory
from nucleus_gvisor.runtime.steps import resolve, stage
from tests.runtime.conftest import nothing_left_open

ELF = Path("/bin/true").read_bytes()


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Nothing is kept from another test, and after `forget` nothing is held."""
    stage.forget()
    with nothing_left_open():
        yield
        stage.forget()


@pytest.fixture
def path(base: Path) -> Path:
    """A runsc in a place of its own."""
    path = base / "runsc"
    path.write_bytes(ELF)
    path.chmod(0o755)
    return path


@pytest.fixture
def judged(path: Path) -> Iterator[resolve.Judged]:
    """It, judged and held."""
    found = resolve.resolve(os.fsencode(path), Identity.current())
    yield found
    found.close()


def write(path: Path) -> None:
    """Equal bytes, written again, at another time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(ELF)
    os.utime(path, ns=(0, before.st_mtime_ns + 1))


def test_equal_files_are_sealed_once(judged: resolve.Judged) -> None:
    """The second launch gets a descriptor of its own of what the first has sealed."""
    one, two = stage.sealed(judged.runsc), stage.sealed(judged.runsc)
    assert one.fd != two.fd and os.path.samestat(os.fstat(one.fd), os.fstat(two.fd))
    assert (one.sha256, one.size) == (two.sha256, len(ELF)) == (stage.sha256(one.fd, len(ELF)), len(ELF))
    for item in (one, two):
        os.close(item.fd)


def test_what_is_kept_is_no_excuse_for_a_change(judged: resolve.Judged, path: Path) -> None:
    """A file that was written after it was judged is refused, though its bytes are still there, sealed."""
    os.close(stage.sealed(judged.runsc).fd)
    write(path)
    with pytest.raises(Changed, match="changed after it was judged"):
        stage.sealed(judged.runsc)


def test_kept_are_a_few(judged: resolve.Judged, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes when there are too many; whoever uses it still has its own descriptor."""
    monkeypatch.setattr(stage, "MAX_KEPT", 1)
    first = stage.sealed(judged.runsc)
    other = base / "other"
    other.write_bytes(ELF)
    other.chmod(0o755)
    second = resolve.resolve(os.fsencode(other), Identity.current())
    os.close(stage.sealed(second.runsc).fd)
    again = stage.sealed(judged.runsc)
    assert not os.path.samestat(os.fstat(first.fd), os.fstat(again.fd))
    assert stage.sha256(first.fd, first.size) == again.sha256
    for fd in (first.fd, again.fd):
        os.close(fd)
    second.close()


@pytest.mark.parametrize("gone", ["", "removed", "replaced"])
@pytest.mark.parametrize("written", [False, True])
def test_untouched(judged: resolve.Judged, path: Path, gone: str, written: bool) -> None:
    """Only the name may change: a write is one wherever the file is, and so is a change of ctime where it is there."""
    if written:
        write(path)
    elif not gone:
        path.chmod(0o755)  # changes ctime alone, as a write does whose mtime is put back
    if gone:
        path.unlink()
    if gone == "replaced":
        path.write_bytes(ELF)
    assert stage._untouched(judged.runsc) is (bool(gone) and not written)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EPERM])
def test_only_an_unknown_flag_is_asked_without(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without MFD_EXEC makes the memfd without it; any other answer is final."""
    asked: list[int] = []

    def answer(_: str, flags: int) -> int:
        asked.append(flags)
        raise OSError(error, "no")

    monkeypatch.setattr(linux, "memfd_create", answer)
    with pytest.raises(OSError, match="no"):
        stage._memfd()
    assert len(asked) == 1
    error = errno.EINVAL
    with pytest.raises(OSError, match="no"):
        stage._memfd()
    assert len(asked) == 3 and asked[2] == asked[1] & ~stage.MFD_EXEC


def test_a_pin_that_does_not_fit_keeps_nothing(path: Path) -> None:
    """What was sealed to compare it is closed; with the right pin it passes."""
    pin = "0" * 64
    judged = resolve.resolve(os.fsencode(path), Identity.current(), pin=pin)
    with pytest.raises(PinMismatch) as caught:
        stage.seal_all(judged)
    judged.close()
    pin = str(caught.value.observed)
    judged = resolve.resolve(os.fsencode(path), Identity.current(), pin=pin)
    held = stage.seal_all(judged)
    assert held["runsc"].sha256 == pin
    stage.close(held)
    judged.close()


@pytest.mark.parametrize("replaced", ["compared", "_untouched"])
def test_an_image_that_is_not_what_was_judged_is_closed(
    judged: resolve.Judged, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    """A copy that a writer tore, found by its bytes or by the file's times, is neither kept nor held."""
    answers = iter([True, False] if replaced == "_untouched" else [None])
    monkeypatch.setattr(stage, replaced, lambda *_: next(answers))
    with pytest.raises(Changed):
        stage.sealed(judged.runsc)
    assert not stage._kept


def test_a_set_that_is_copied_in_part_is_closed(path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a side binary cannot be written, the copy of runsc is not held either."""
    side = base / "gvisor-bin"
    side.mkdir(mode=0o755)
    (side / "a").write_bytes(ELF)
    (side / "a").chmod(0o755)
    judged = resolve.resolve(os.fsencode(path), Identity.current())
    write_copy = stage._write_copy

    def failing(item: stage.Sealed, parent: int, name: str, directory: bytes) -> int:
        if name != "runsc":
            raise NoSpace("no room", step="Stage")
        return write_copy(item, parent, name, directory)

    monkeypatch.setattr(stage, "_write_copy", failing)
    container = base / "container"
    container.mkdir(mode=0o700)
    assert isinstance(copied(judged, container), NoSpace)
    assert len(list(container.glob("exec-allow/stage-*/runsc"))) == 1  # the unwinding removes it
    judged.close()


def copied(judged: resolve.Judged, base: Path) -> LaunchError | stage.Staged:
    """The private copy below `base`, or why there is none."""
    container = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    held = stage.seal_all(judged)
    try:
        return stage.stage("copy", judged, held, container, os.fsencode(base))
    except LaunchError as error:
        stage.close(held)
        return error
    finally:
        os.close(container)


def test_a_copy_is_hashed_again(judged: resolve.Judged, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the directory in the end is what was sealed, or the launch ends."""
    staged = copied(judged, base)
    assert isinstance(staged, stage.Staged) and staged.directory is not None
    copy = Path(os.fsdecode(staged.directory)) / "runsc"
    assert copy.read_bytes() == ELF and copy.stat().st_mode & 0o7777 == 0o555
    os.close(staged.images["runsc"])

    def torn(out: int, source: int, offset: int, count: int) -> int:
        return os.pwrite(out, b"\0" * min(count, len(ELF) - offset), offset)

    monkeypatch.setattr(os, "sendfile", torn)
    error = copied(judged, base)
    assert isinstance(error, SafetyViolation) and "not what was written" in str(error)


def test_a_place_for_the_copy_that_cannot_be_made(
    judged: resolve.Judged, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was made, and nothing stays open."""
    os.close(stage.sealed(judged.runsc).fd)

    def full(parent: int, name: bytes) -> None:
        if name.startswith(b"stage-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make_directory(parent, name)

    monkeypatch.setattr(stage, "make_directory", full)
    assert isinstance(copied(judged, base), StepFailed)
    assert os.listdir(base / "exec-allow") == []


@pytest.mark.parametrize(("error", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StepFailed)])
def test_why_there_is_no_copy(
    judged: resolve.Judged, base: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[LaunchError]
) -> None:
    """A disk, or a quota, without room is told as such; another fault is another."""

    def full(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    os.close(stage.sealed(judged.runsc).fd)
    monkeypatch.setattr(os, "sendfile", full)
    found = copied(judged, base)
    assert type(found) is kind, found


def test_a_copy_that_goes_on_otherwise(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copy_file_range(2) stops half-way, sendfile(2) goes on at that place; another error is told."""
    content = os.urandom(100_000)
    (base / "source").write_bytes(content)
    real, tries = os.copy_file_range, [10_000]

    def some(source: int, target: int, size: int, into: int, onto: int) -> int:
        if not tries:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target, tries.pop(), into, onto)

    monkeypatch.setattr(os, "copy_file_range", some)
    with open(base / "source", "rb") as source, open(base / "target", "w+b") as target:
        stage.copy(source.fileno(), target.fileno(), len(content))
        assert os.pread(target.fileno(), len(content) + 1, 0) == content
        monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        monkeypatch.setattr(os, "sendfile", lambda *_: 0)
        with pytest.raises(OSError, match="I/O error"):
            stage.copy(source.fileno(), target.fileno(), len(content))


def test_a_source_that_is_cut_is_not_the_same(base: Path) -> None:
    """What is no longer there is not taken for what was read before, nor are other bytes for the same."""
    for name, size in (("image", 2), ("source", 1)):
        (base / name).write_bytes(bytes(size * stage.CHUNK))
    with open(base / "source", "rb") as source, open(base / "image", "rb") as image:
        assert stage.compared(image.fileno(), source.fileno(), 2 * stage.CHUNK) is None
        whole = stage.sha256(source.fileno(), stage.CHUNK)
        assert stage.compared(image.fileno(), source.fileno(), stage.CHUNK) == whole
    (base / "other").write_bytes(bytes(stage.CHUNK) + b"x" * stage.CHUNK)
    with open(base / "other", "rb") as other, open(base / "image", "rb") as image:
        assert stage.compared(image.fileno(), other.fileno(), 2 * stage.CHUNK) is None
