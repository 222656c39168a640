"""What lies among the locks and is none of ours names nothing that may be removed, emptied, waited for or followed."""

import os
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import BadBase, StepFailed
from nucleus_gvisor.runtime import cleanup, explain, owner
from nucleus_gvisor.runtime.bundle import OciBundle
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.options import GVisorOciRunOptions
from nucleus_gvisor.runtime.paths import remove_tree
from nucleus_gvisor.runtime.steps import prepare
from tests.runtime.test_cleanup import ID, collected, leave, place, taken

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

HOSTILE = (
    "records", "locks", "id-", "id-" + "g" * 64, "id-" + "0" * 63, "A" * 32, "0" * 31, "0" * 33, ID + "\n",
    "-rf", "...", "x" * 255, "\udcff", "a\nb", "٣" * 32,
)  # fmt: skip


def planted(base: Path) -> set[str]:
    """A base with records, a stray lock for each hostile name, and a directory beside the locks named like it."""
    leave(base, ID, b"")
    for name in HOSTILE:
        (base / "locks" / name).write_text("")
        (base / name).mkdir(exist_ok=True)
        (base / name / "kept").write_text("kept")
    return set(HOSTILE) | {"locks"}


def kept(base: Path) -> set[str]:
    """The directories of `base` that still have what was put into them; `locks` has always."""
    return {name for name in os.listdir(base) if (base / name / "kept").exists()} | {"locks"}


def test_only_names_of_our_making_mean_a_directory(base: Path) -> None:
    """Of all that lies among the locks, the dead launch's alone goes, with its directory; the rest stays as it was."""
    names = planted(base)
    assert collected(base) == [ID]
    assert kept(base) == names and set(HOSTILE) <= set(os.listdir(base / "locks"))


def test_gc_and_a_launch_leave_stray_names_alone(base: Path) -> None:
    """The verb and the beginning of a launch are as careful; what is listed as running is none of them."""
    names = planted(base)
    assert owner.gc(base) == [ID] and owner.running(base) == []
    leave(base, ID, b"")
    ours = prepare.take_place("f" * 32, base, Identity.current())
    assert ours.remove() == []
    ours.close()
    assert kept(base) == names and not (base / ID).exists()


@pytest.mark.parametrize("kind", ["directory", "link", "dangling", "hard link", "fifo", "socket"])
@pytest.mark.parametrize("name", ["0" * 32, "id-" + "0" * 64])
def test_what_has_a_locks_name_and_is_none(base: Path, name: str, kind: str) -> None:
    """It is not followed, waited for, emptied or removed; nor is the directory of its name."""
    victim = base / "records" / "launch"
    victim.parent.mkdir()
    victim.write_text("a record")
    (base / name).mkdir()
    (base / name / "kept").write_text("kept")
    (base / "locks").mkdir()
    odd = base / "locks" / name
    if kind == "directory":
        odd.mkdir()
    elif kind in ("link", "dangling"):
        odd.symlink_to(victim if kind == "link" else base / "nothing")
    elif kind == "hard link":
        os.link(victim, odd)
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        os.mknod(odd, 0o140600)
    assert collected(base) == [] and owner.running(base) == []
    with place(base, name) as it, pytest.raises((BadBase, StepFailed)) as caught:
        it.take()
    assert caught.value.path is not None and os.fsencode(base) in caught.value.path
    assert victim.read_text() == "a record" and (base / name / "kept").exists() and os.path.lexists(odd)
    told = explain.plan("job", OciBundle.build(["true"]), GVisorOciRunOptions(artifact_base=base))
    assert any(operation.call == "collect" for operation in told)


def test_the_locks_directory_is_bounded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch looks at so many locks and no more; the verb looks at all; a directory that is full is told by name."""
    dead = [f"{number:032x}" for number in range(12)]
    for name in dead:
        leave(base, name, b"")
    with place(base) as it:
        locks = os.open(base / "locks", os.O_RDONLY)
        try:
            some = cleanup.collect(it.base, it.base_path, locks, 5)
        finally:
            os.close(locks)
    assert len(some) == 5 and sorted(os.listdir(base / "locks")) == sorted(set(dead) - set(some))
    monkeypatch.setattr(cleanup, "MOST_LOCKS", 6)
    with place(base) as it, pytest.raises(StepFailed, match=r"too many locks.*gc"):
        it.take()
    assert sorted(owner.gc(base)) == sorted(set(dead) - set(some))
    assert not taken(base)


@pytest.mark.parametrize("mode", [0o1777, 0o770, 0o2775])
def test_a_hint_does_no_harm_to_a_shared_place(base: Path, mode: int) -> None:
    """Whoever names a directory of many is told to name another, and not to remove it or to lock the others out."""
    shared = base / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(BadBase) as caught:
        prepare.take_place(ID, shared, Identity.current())
    assert "name a directory" in caught.value.hint
    assert not any(word in caught.value.hint for word in ("remove", "rm ", "chmod", "chown", "mkdir"))


@pytest.mark.parametrize("depth", [1500])
def test_a_tree_deeper_than_stack_and_descriptors(base: Path, depth: int) -> None:
    """It is removed whole, and so is what lies beside each directory on the way."""
    fd = os.open(base, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    problems: list[OSError] = []
    top = os.open(base, os.O_RDONLY)
    remove_tree(top, b"d", problems.append)
    os.close(top)
    assert problems == [] and os.listdir(base) == ["file"]


def test_a_directory_that_was_moved_meanwhile_leads_nowhere(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved away while it is being emptied, it is no way into another directory: the removal ends, and says so."""
    (base / "it/in").mkdir(parents=True)
    (base / "it/in/file").write_text("x")
    (base / "other/kept").mkdir(parents=True)
    unlink = os.unlink

    def and_move(path: bytes, *, dir_fd: int) -> None:
        unlink(path, dir_fd=dir_fd)
        (base / "it/in").rename(base / "other/in")

    monkeypatch.setattr(os, "unlink", and_move)
    problems: list[OSError] = []
    top = os.open(base, os.O_RDONLY)
    remove_tree(top, b"it", problems.append)
    os.close(top)
    assert [error.strerror for error in problems] == ["Stale file handle"]
    assert (base / "other/kept").exists() and (base / "it").exists()
