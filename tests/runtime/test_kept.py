"""What is kept on disk: found, made, replaced, shared, removed; and never what somebody made of it."""

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import BadCache, Changed, StepFailed
from nucleus_gvisor.model.record import set_digest
from nucleus_gvisor.runtime import kept
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import resolve, stage
from tests.conformance.world import digest
from tests.runtime.conftest import nothing_left_open
from tests.support.pins import pin_of

ELF = Path("/bin/true").read_bytes()
NAMES = ("runsc", "gvisor-bin/gvisor_sentry")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others, and mounts")


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, after which nothing is held open."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    monkeypatch.setattr(kept, "_of_root", lambda *_: None)
    monkeypatch.setattr(kept, "_are_roots", lambda *_: False)
    with nothing_left_open():
        yield base / "cache"


@pytest.fixture
def runsc(base: Path) -> Path:
    """A set in a place of its own."""
    for number, name in enumerate(NAMES):
        path = base / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ELF + bytes([number]))
        path.chmod(0o755)
    return base / "bin/runsc"


def provided(runsc: Path) -> tuple[str, dict[str, str]]:
    """How the set was kept, and the digests of the very files that a launch would bind."""
    judged = resolve.judge(os.fsencode(runsc), Identity.current(), pin=None)
    try:
        found = kept.provide(judged, Identity.current())
        assert kept.still(found, judged, Identity.current())
        for name, file in found.files.items():
            assert digest(os.fsdecode(file.path)) == file.sha256 == stage.sha256(file.fd, file.snapshot.size), name
        found.close()
        return found.word, found.digests
    finally:
        judged.close()


def only(cache: Path) -> Path:
    """The directory of the only set."""
    assert not list(cache.glob("tmp-*")) and not list(cache.glob("**/new-*"))
    [folder] = (cache / "sets").iterdir()
    return folder


def test_a_set_is_kept_once(runsc: Path, cache: Path) -> None:
    """Made by the first, found by the second; by the digest that a pin has; read-only, and nobody else's to change."""
    assert provided(runsc)[0] == "made"
    before = (only(cache) / "runsc").stat()
    word, digests = provided(runsc)
    assert word == "found" and (only(cache) / "runsc").stat() == before
    assert only(cache).name == pin_of(runsc) == set_digest(digests)
    for name in NAMES:
        status = (only(cache) / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o555, 1)
        assert (only(cache) / name).read_bytes() == (runsc.parent / name).read_bytes()


def test_the_same_bytes_are_kept_once(runsc: Path, cache: Path) -> None:
    """Installed anew, or elsewhere, they are found by their digest; other bytes of the same size are not they."""
    provided(runsc)
    inode = (only(cache) / "runsc").stat().st_ino
    elsewhere = runsc.parents[1] / "elsewhere"
    shutil.copytree(runsc.parent, elsewhere)
    assert provided(elsewhere / "runsc")[0] == "found" and (only(cache) / "runsc").stat().st_ino == inode
    assert len(list((cache / "sources").iterdir())) == 2
    (elsewhere / "runsc").write_bytes(ELF + b"?")
    assert provided(elsewhere / "runsc")[0] == "made"
    assert len(list((cache / "sets").iterdir())) == 2


def rewrite(path: Path) -> None:
    times = path.stat()
    path.chmod(0o755)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    path.chmod(0o555)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def swap(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    new.chmod(0o555)
    new.rename(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def lengthen(path: Path) -> None:
    path.chmod(0o755)
    path.write_bytes(path.read_bytes() + b"x")
    path.chmod(0o555)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


TAMPERED: dict[str, Callable[[Path], object]] = {
    "bytes": rewrite,
    "another file": swap,
    "mode": lambda path: path.chmod(0o755),
    "set-id": lambda path: path.chmod(0o4555),
    "hard link": lambda path: os.link(path, path.with_name("another")),
    "symbolic link": replace_by_link,
    "gone": Path.unlink,
    "longer": lengthen,
    "a directory": make_directory,
    **({"owner": lambda path: os.chown(path, 65534, 65534)} if os.geteuid() == 0 else {}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_changed_is_made_anew(runsc: Path, cache: Path, how: str, name: str) -> None:
    """Whatever was done to a kept file, no launch gets it: the set is made again from the judged one, and said so."""
    provided(runsc)
    TAMPERED[how](only(cache) / name)
    judged = resolve.judge(os.fsencode(runsc), Identity.current(), pin=None)
    assert kept.foresee(judged, Identity.current()).word == "replaced"
    judged.close()
    word, digests = provided(runsc)
    assert (word, set_digest(digests)) == ("replaced", pin_of(runsc))
    assert provided(runsc)[0] == "found"


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_changed_during_a_launch_is_found(runsc: Path, cache: Path, how: str) -> None:
    """After it was provided, and before it is staged."""
    judged = resolve.judge(os.fsencode(runsc), Identity.current(), pin=None)
    found = kept.provide(judged, Identity.current())
    TAMPERED[how](only(cache) / "runsc")
    # A descriptor of the file that lies there no longer is of the file that was verified: the child finds out.
    if how not in ("another file", "gone", "a directory", "symbolic link"):
        assert not kept.still(found, judged, Identity.current())
    found.close()
    judged.close()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"runsc": 1}', '{"runsc": ["x", 1, 2, 3, 4, 5]}', "[" * 5000, '{"runsc": [7]}'],
)
def test_a_manifest_that_is_none(runsc: Path, cache: Path, text: str) -> None:
    """It is not believed, and no error either."""
    provided(runsc)
    (only(cache) / "manifest").write_text(text)
    assert provided(runsc)[0] == "replaced"


def with_device(folder: Path, change: Callable[[list[object]], object]) -> None:
    told = json.loads((folder / "manifest").read_text())
    for entry in told.values():
        change(entry)
    (folder / "manifest").write_text(json.dumps(told))


def test_another_number_of_the_device(runsc: Path, cache: Path) -> None:
    """As after a reboot: the bytes are hashed again. Where those differ as well, the set is made anew."""
    provided(runsc)

    def other_device(entry: list[object]) -> None:
        entry[1] = int(str(entry[1])) + 1

    with_device(only(cache), other_device)
    inode = (only(cache) / "runsc").stat().st_ino
    assert provided(runsc)[0] == "found" and (only(cache) / "runsc").stat().st_ino == inode
    assert json.loads((only(cache) / "manifest").read_text())["runsc"][1] == (only(cache) / "runsc").stat().st_dev
    rewrite(only(cache) / "runsc")
    now = resolve.Snapshot.of_status((only(cache) / "runsc").stat())
    told = json.loads((only(cache) / "manifest").read_text())
    told["runsc"][1:] = [now.device + 1, *now.numbers[1:]]
    (only(cache) / "manifest").write_text(json.dumps(told))
    assert provided(runsc)[0] == "replaced"


@pytest.mark.parametrize("moment", ["copy", "compared"])
def test_a_source_that_changes_while_it_is_copied(
    runsc: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An upgrade in the middle: nothing is kept of either, and the launch is told."""
    time.sleep(0.02)
    original = getattr(stage, moment)

    def changing(*arguments: int) -> object:
        (runsc.parent / "gvisor-bin/gvisor_sentry").write_bytes(ELF + b"?")
        return original(*arguments)

    monkeypatch.setattr(stage, moment, changing)
    with pytest.raises(Changed):
        provided(runsc)
    assert not list((cache / "sets").iterdir()) and not list(cache.glob("tmp-*"))
    monkeypatch.undo()


def strangers(cache: Path) -> None:
    os.chown(cache, 65534, 65534)


@pytest.mark.parametrize(
    "spoil",
    [lambda cache: cache.chmod(0o777), lambda cache: cache.chmod(0o775), *([strangers] if os.geteuid() == 0 else [])],
)
def test_a_cache_that_others_can_write(runsc: Path, cache: Path, spoil: Callable[[Path], None]) -> None:
    """It is neither mended nor used, with or without something in it."""
    provided(runsc)
    spoil(cache)
    before = cache.stat().st_mode
    with pytest.raises(BadCache) as caught:
        provided(runsc)
    assert caught.value.path == os.fsencode(cache) and cache.stat().st_mode == before


def test_a_link_for_a_cache(runsc: Path, cache: Path) -> None:
    """A cache is reached without links, whoever made them."""
    (cache.parent / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to("elsewhere")
    with pytest.raises(BadCache):
        provided(runsc)


@needs_root
def test_no_room(runsc: Path, cache: Path) -> None:
    """A full disk is an error of the cache's alone, and leaves no part of a set."""
    cache.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k,mode=700", "test", cache], check=True)
    try:
        with pytest.raises(StepFailed) as caught:
            provided(runsc)
        assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
        assert not list(cache.glob("tmp-*")) and not list(cache.glob("sets/*"))
    finally:
        subprocess.run(["umount", cache], check=True)


CALLS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "rename"),
    (os, "mkdir"),
    (os, "fchmod"),
    (stage, "copy"),
    (stage, "compared"),
    (kept, "_prune"),
]


def killed_before(runsc: Path, number: int) -> bool:
    """Provide in a process that is killed before its `number`th call of those that leave something; was it?"""
    pid = os.fork()
    if pid == 0:
        left = [number]
        try:
            for module, name in CALLS:

                def counting(*arguments: object, _call: object = getattr(module, name), **more: object) -> object:
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return _call(*arguments, **more)  # type: ignore[operator]

                setattr(module, name, counting)
            provided(runsc)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("changed", [False, True])
def test_a_maker_that_is_killed(runsc: Path, cache: Path, changed: bool) -> None:
    """At any point there is the old, which is found wanting, or the new; and the next one clears up."""
    number = 1
    while True:
        if changed:
            provided(runsc)
            (only(cache) / "runsc").chmod(0o755)
        elif cache.exists():
            shutil.rmtree(cache)
        if not killed_before(runsc, number):
            break
        assert provided(runsc)[1]["runsc"] == digest(runsc)
        kept.collect(Identity.current())
        assert only(cache).name == pin_of(runsc) and provided(runsc)[0] == "found"
        number += 1
    assert number > 10


def test_several_at_once(runsc: Path, cache: Path) -> None:
    """One makes it, and the others wait and find it."""
    reader, writer = os.pipe()
    children = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, provided(runsc)[0].encode() + b" ")
            finally:
                os._exit(0)
        children.append(pid)
    os.close(writer)
    for pid in children:
        os.waitpid(pid, 0)
    with open(reader) as told:
        assert sorted(told.read().split()) == ["found"] * 5 + ["made"]
    only(cache)


def test_the_oldest_goes(runsc: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used longest ago, but none that is fresh, and none that a process executes; and `collect` does the same."""
    provided(runsc)
    first = only(cache)
    for number in range(kept.MOST + 2):
        (runsc.parent / "gvisor-bin/gvisor_sentry").write_bytes(ELF + bytes([number + 7]))
        provided(runsc)
    assert len(list((cache / "sets").iterdir())) == kept.MOST + 3  # all fresh
    for number, folder in enumerate(sorted((cache / "sets").iterdir(), key=lambda path: path.stat().st_mtime)):
        os.utime(folder, (number, number))
    status = (first / "runsc").stat()
    held = (status.st_dev, status.st_ino)
    monkeypatch.setattr(kept, "executed", lambda: {held})
    kept.collect(Identity.current())
    left = {folder.name for folder in (cache / "sets").iterdir()}
    assert len(left) == kept.MOST + 1 and first.name in left
    monkeypatch.setattr(kept, "executed", set)
    kept.collect(Identity.current())
    left = {folder.name for folder in (cache / "sets").iterdir()}
    assert len(left) == kept.MOST and first.name not in left
    kept.collect(Identity.current())
    assert {path.read_text().strip() for path in (cache / "sources").iterdir()} <= left


def test_what_is_executed_is_known() -> None:
    """This interpreter is."""
    status = os.stat("/proc/self/exe")
    assert (status.st_dev, status.st_ino) in kept.executed()


def test_a_maker_that_does_not_end(runsc: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it is told in the end, and launches without."""
    monkeypatch.setattr(kept, "PATIENCE", 0.05)
    cache.mkdir(mode=0o700)
    fd = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(StepFailed, match="busy"):
            provided(runsc)
    finally:
        os.close(fd)


def test_a_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, root's own place, XDG's, the home's; and an error where there is none."""
    who = Identity(uid=1000, gid=1000, host_root=False, unmapped=None, elevated=False)
    for name in ("NUCLEUS_GVISOR_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadCache):
        kept.cache_path(who)
    monkeypatch.setenv("HOME", "/home/me")
    assert kept.cache_path(who) == b"/home/me/.cache/nucleus-gvisor"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert kept.cache_path(who) == b"/xdg/nucleus-gvisor"
    assert kept.cache_path(Identity(uid=0, gid=0, host_root=True, unmapped=None, elevated=False)) == kept.ROOTS
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", "/named/")
    assert kept.cache_path(who) == b"/named"
    assert kept.places(who) == [b"/named", kept.ROOTS]
