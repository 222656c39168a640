"""A workspace: a copy that leaves the host's directory alone, and what is written back of it is all or nothing."""

import asyncio
import errno
import hashlib
import inspect
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    AsyncSandbox,
    BadArgument,
    BadBase,
    BadBundle,
    Changes,
    Refused,
    Sandbox,
    SandboxGone,
    StepFailed,
    SyncFailed,
    Unsupported,
    WorkspaceConflict,
    arun,
    owner,
    run,
    workspace,
    writeback,
)
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.cli import main
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options
from tests.support import places


def tree(root: Path | str) -> dict[str, Any]:
    """All that can be told of a directory, but for the times of directories and of links."""
    found: dict[str, Any] = {}
    for folder, names, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in names + files)):
            status = os.lstat(path)
            content: Any = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest(), status.st_mtime_ns
            found[os.path.relpath(path, root)] = (oct(status.st_mode), status.st_uid, status.st_gid, content)
    return found


TREE = "import hashlib, os, stat\nfrom pathlib import Path\nfrom typing import Any\n" + inspect.getsource(tree)
WORK = f"""{TREE}
import sys
from nucleus_gvisor.runtime import Sandbox, Unsupported, WorkspaceConflict, run
options = dict(runsc=sys.argv[1], pin=sys.argv[2] or None)
root = os.path.join(os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"], "work")
os.umask(0o022)
for name in ("src", "old/deep", "open"):
    os.makedirs(os.path.join(root, name))
os.chmod(root + "/open", 0o777)
for name in ("src/a", "old/deep/x", "b"):
    with open(os.path.join(root, name), "w") as file:
        file.write(name)
    os.utime(os.path.join(root, name), (1, 1))
os.symlink("/usr/bin/python3", root + "/program")
os.mkfifo(root + "/fifo")
before = tree(root)
CHANGE = "pwd; cat b; echo >>src/a; rm -r old; mkdir -p new/in; echo n >new/in/f; ln -s /etc new/out; chmod 4755 b; ls"

done = run(["sh", "-c", CHANGE], workspace=root, **options)
print(done.stdout.split(), done.synchronised, tree(root) == before)
print(done.changes)
done = run(["sh", "-c", CHANGE + "; exit 3"], workspace=root, sync="success", **options)
print(done.returncode, done.synchronised, tree(root) == before)
done = run(["sh", "-c", CHANGE], workspace=root, sync="success", **options)
after = tree(root)
changed = sorted(name for name in after if before.get(name) != after[name] and name != ".")
print(done.synchronised, sorted(set(after) ^ set(before)), changed)
print(after["b"][0], os.listdir(os.path.join(root, "new")))
with Sandbox(workspace=root, **options) as box:
    box.exec("sh", "-c", "echo 1 >one")
    print(box.diff().added, box.sync().added, bool(box.diff()))
    box.exec("sh", "-c", "echo 2 >>one; rm b")
    print(box.sync().changed, bool(box.sync()))
    box.exec("sh", "-c", "mkdir shut; echo x >shut/f; chmod 0 shut/f shut")
    print(box.sync().added, bool(box.diff()), oct(os.stat(root + "/shut").st_mode))
    os.chmod(root + "/shut", 0o700)
    os.chmod(root + "/shut/f", 0o600)
    box.exec("sh", "-c", "echo 3 >>one; rm program")
    with open(root + "/one", "a") as file:
        file.write("host")
    before = tree(root)
    try:
        box.sync()
    except WorkspaceConflict as error:
        print(error.paths, tree(root) == before)
for mode in ("ro", "rw"):
    done = run(["sh", "-c", "pwd; echo x >one"], workspace=root, workspace_mode=mode, **options)
    print(done.stdout.split(), done.changes, tree(root) == before)
try:
    done = run(["sh", "-c", "echo x >open/y"], user=7, workspace=root, sync="success", **options)
    print(done.changes.added, done.changes.owners, os.stat(root + "/open/y").st_uid)
except Unsupported as error:
    print(type(error).__name__)
print(sorted(name for name in os.listdir(os.path.dirname(root)) if name not in ("locks", "records")))
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that only we can change."""
    with places.private_directory() as path:
        yield path


@pytest.fixture
def work(base: Path) -> Path:
    """A workspace in it."""
    root = base / "work"
    for name in ("src", "old/deep"):
        (root / name).mkdir(parents=True)
    for name in ("src/a", "old/deep/x", "b"):
        (root / name).write_text(name)
    (root / "program").symlink_to("/usr/bin/python3")
    return root


@pytest.fixture
def copy(base: Path, work: Path) -> Iterator[workspace.Copy]:
    """A copy of it, filled, in `base`/copy, as a guest would have it."""
    (base / "copy").mkdir(mode=0o700)
    (base / "base").mkdir(mode=0o700)
    made = _copy_of(base)
    made.fill()
    yield made
    made.close()


def _copy_of(base: Path, size: int = 1 << 20) -> workspace.Copy:
    folders = [os.open(base / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("work", "copy")]
    return workspace.Copy(folders[0], os.fsencode(base / "work"), folders[1], size, base / "base")


@pytest.mark.real
def test_each_kind_of_caller_with_each_release(caller: Caller) -> None:
    """What is copied leaves the host's directory as it is, and what is written back is what was shown."""
    done = caller.script(WORK)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "['/workspace', 'bb', 'new', 'open', 'program', 'src'] False True",
        "Changes(added=('new', 'new/in', 'new/in/f'), changed=('src/a',), removed=('old', 'old/deep', 'old/deep/x'),"
        " modes=('b',), left_out=('fifo', 'new/out'), owners=())",
        "3 False True",
    ]
    assert lines[3:12] == [
        "True ['new', 'new/in', 'new/in/f', 'old', 'old/deep', 'old/deep/x']"
        " ['b', 'new', 'new/in', 'new/in/f', 'src/a']",
        "0o100755 ['in']",
        "('one',) ('one',) False",
        "('one',) False",
        "('shut', 'shut/f') False 0o40000",
        "('one',) True",
        "['/workspace'] None True",
        "['/workspace'] None False",
        {"root": "('open/y',) () 7", "user": f"('open/y',) ('open/y',) {caller.mode.account.pw_uid}"}.get(
            caller.mode.name, "Unsupported"
        ),
    ]
    assert lines[12:] == ["['work']"]


# ---- what a guest may leave ----


def _link_for_directory(root: Path, outside: Path) -> None:
    (root / "src/a").unlink()
    (root / "src").rmdir()
    (root / "src").symlink_to(outside)


def _directory_for_link(root: Path, outside: Path) -> None:
    (root / "program").unlink()
    (root / "program").mkdir()
    (root / "program/x").write_text("x")


def _special(root: Path, outside: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "b").unlink()
    os.mkfifo(root / "b")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(root / "socket"))
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _links(root: Path, outside: Path) -> None:
    (root / "out").symlink_to("../outside/secret")
    (root / "src/up").symlink_to("../../outside")
    (root / "late").symlink_to("src/../../outside")
    (root / "b").unlink()
    (root / "b").symlink_to(outside / "secret")


def _modes(root: Path, outside: Path) -> None:
    (root / "b").chmod(0o6777)
    (root / "new").write_text("x")
    (root / "new").chmod(0o4755)
    (root / "src").chmod(0o1700)


def _hard_links(root: Path, outside: Path) -> None:
    os.link(root / "b", root / "src/b")
    os.link(root / "src/a", root / "c")


def _closed(root: Path, outside: Path) -> None:
    (root / "new").mkdir()
    (root / "new/x").write_text("x")
    (root / "new/x").chmod(0)
    (root / "new").chmod(0)


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], Changes, dict[str, str]]] = {
    "a link for a directory": (_link_for_directory, Changes(left_out=("src",)), {}),
    "a directory for a link": (
        _directory_for_link,
        Changes(added=("program/x",), changed=("program",)),
        {"program": "0o40755", "program/x": "0o100644"},
    ),
    "special files": (
        _special,
        Changes(left_out=("b", "fifo", *(("null",) if os.geteuid() == 0 else ()), "socket")),
        {},
    ),
    "links out": (_links, Changes(left_out=("b", "late", "out", "src/up")), {}),
    "modes": (
        _modes,
        Changes(added=("new",), modes=("b", "src")),
        {"b": "0o100777", "new": "0o100755", "src": "0o40700"},
    ),
    "hard links": (_hard_links, Changes(added=("c", "src/b")), {"c": "0o100644", "src/b": "0o100644"}),
    "closed to their owner": (
        _closed,
        Changes(added=("new", "new/x")),
        {"new": "0o40000", **({"new/x": "0o100000"} if os.geteuid() == 0 else {})},  # which only root can look at
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_guest_leaves(copy: workspace.Copy, base: Path, work: Path, kind: str) -> None:
    """Nothing is followed, no set-id bit and no special file is written, and nobody waits."""
    change, expected, written = HOSTILE[kind]
    outside = base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    before, around = tree(work), tree(outside)
    change(base / "copy", outside)
    assert copy.diff() == expected
    assert copy.sync() == expected
    after = tree(work)
    changed = {name: after[name][0] for name in after if before.get(name) != after[name] and name != "."}
    assert changed == written
    assert {name for name in before if name not in after} == set()
    assert tree(outside) == around
    assert not copy.diff()
    for folder in (base / "copy/new", work / "new"):
        with suppress(OSError):
            folder.chmod(0o700)


def test_a_file_without_end(copy: workspace.Copy, base: Path, work: Path) -> None:
    """A hole counts as what it says: it is shown, and neither read nor written."""
    before = tree(work)
    with open(base / "copy/huge", "wb") as file:
        file.truncate(1 << 40)
    assert copy.diff() == Changes(added=("huge",))
    with pytest.raises(SyncFailed, match=r"1099511627776 bytes.*it is as it was") as caught:
        copy.sync()
    assert caught.value.errno == errno.EFBIG
    assert tree(work) == before


def test_a_change_that_leaves_no_time(copy: workspace.Copy, base: Path, work: Path) -> None:
    """Contents are compared: neither size nor times need differ."""
    path = base / "copy/b"
    status = path.stat()
    path.write_text("c")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert copy.sync() == Changes(changed=("b",))
    assert (work / "b").read_text() == "c"


def test_a_deep_tree(copy: workspace.Copy, base: Path) -> None:
    """A name that no call takes is an error of its own, and not the host's memory or descriptors."""
    here = os.open(base / "copy", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("deepest", dir_fd=here)
        below = os.open("deepest", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(OSError, match="File name too long"):
        copy.diff()
    shutil.rmtree(base / "copy/deepest")


def test_too_many_entries(copy: workspace.Copy, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a guest has made, no more is looked at than it may have."""
    monkeypatch.setattr(workspace, "MOST", 10)
    for number in range(10):
        (base / "copy" / str(number)).touch()
    with pytest.raises(OSError, match="more than 10 entries"):
        copy.diff()


# ---- conflicts ----


def _moved(root: Path) -> None:
    (root / "src").rename(root / "elsewhere")
    (root / "src").symlink_to("elsewhere")


CONFLICTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], str]] = {
    "edited": (lambda host: (host / "b").write_text("mine"), lambda copy: (copy / "b").write_text("its"), "b"),
    "edited, removed": (lambda host: (host / "b").write_text("mine"), lambda copy: (copy / "b").unlink(), "b"),
    "removed, edited": (lambda host: (host / "b").unlink(), lambda copy: (copy / "b").write_text("its"), "b"),
    "added": (lambda host: (host / "n").write_text("mine"), lambda copy: (copy / "n").write_text("its"), "n"),
    "moved": (_moved, lambda copy: (copy / "src/a").write_text("its"), "src/a"),
    "mode": (lambda host: (host / "b").chmod(0o600), lambda copy: (copy / "b").chmod(0o700), "b"),
    "more in it": (
        lambda host: (host / "old/more").touch(),
        lambda copy: shutil.rmtree(copy / "old"),
        "old",
    ),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_conflicts(copy: workspace.Copy, base: Path, work: Path, kind: str) -> None:
    """Refused by name, and nothing is written, not even what nobody else has touched."""
    host, guest, name = CONFLICTS[kind]
    host(work)
    guest(base / "copy")
    (base / "copy/other").write_text("its")
    before = tree(work)
    with pytest.raises(WorkspaceConflict, match="has changed on the host") as caught:
        copy.sync()
    assert caught.value.paths == (name,)
    assert tree(work) == before
    assert os.listdir(base / "base") == []


@pytest.mark.parametrize("when", range(4))
def test_an_edit_while_it_is_written(
    copy: workspace.Copy, base: Path, work: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """What came out is looked at: an edit between any two steps is a conflict, and what was done is undone."""
    for name in ("b", "src/a"):
        (base / "copy" / name).write_text("its")
    (base / "copy/new").write_text("its")
    (base / "copy/old/deep/x").unlink()
    before: dict[str, Any] = {}
    rename, calls = linux.rename, iter(range(100))

    def edited(*arguments: Any) -> None:
        if next(calls) == when + 1:  # after the trial of the file system
            (work / "src/a").write_text("mine")
            (work / "new").write_text("mine")
            before.update({name: state for name, state in tree(work).items() if name in ("src/a", "new")})
        rename(*arguments)

    monkeypatch.setattr(linux, "rename", edited)
    old = tree(work)
    with suppress(WorkspaceConflict):
        copy.sync()
        raise AssertionError("no conflict")
    after = tree(work)
    assert {name: after[name] for name in before} == before
    assert {name: state for name, state in after.items() if name not in before} == {
        name: state for name, state in old.items() if name not in before
    }
    assert os.listdir(base / "base") == []


# ---- kills and full disks ----


def _strike(number: int, after: bool) -> None:
    """Have this process killed at its call `number` of those that change anything on disk."""
    calls = iter(range(1 << 20))

    def struck(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **more: Any) -> Any:
            mine = next(calls) == number
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **more)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return instead

    ours = ("rename", "write_all", "sync_file_system", "open")
    others = ("mkdir", "rmdir", "unlink", "fsync", "symlink", "chmod", "fchmod", "utime")
    for module, names in ((linux, ours), (os, others)):
        for name in names:
            setattr(module, name, struck(getattr(module, name)))


def _in_fork(work: Callable[[], object], number: int = -1, after: bool = False) -> bool:
    """Do it in a process that is killed at that call; did it come to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if number >= 0:
                _strike(number, after)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def _recover(base: Path) -> list[tuple[str, OSError | None]]:
    fd = os.open(base / "base", os.O_RDONLY)
    try:
        return writeback.recover(fd)
    finally:
        os.close(fd)


def _spoil(root: Path) -> None:
    (root / "src/a").write_text("changed")
    (root / "b").unlink()
    (root / "b").mkdir()
    (root / "b/in").write_text("in")
    (root / "old/deep/x").unlink()
    (root / "old/deep").rmdir()
    (root / "old").rmdir()
    (root / "new").mkdir()
    (root / "new/f").write_text("f")
    (root / "new/link").symlink_to("f")
    (root / "program").unlink()
    (root / "src").chmod(0o700)


def _names(root: Path) -> dict[str, Any]:
    return {name: (state[0], state[3] and state[3][0]) for name, state in tree(root).items() if name != "."}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_killed_owner(base: Path, work: Path, after: bool) -> None:
    """Killed at any call that changes anything, it leaves the directory old or new once somebody has gone on; killed
    there too, likewise. Nothing of ours is left."""
    (base / "base").mkdir(mode=0o700)
    kept = base / "kept"
    subprocess.run(["cp", "-a", work, kept], check=True)
    (base / "copy").mkdir(mode=0o700)
    old, new, seen = _names(work), {}, set[str]()
    number, ended = 0, False
    while not ended:
        for folder in (work, base / "copy"):
            subprocess.run(["rm", "-rf", folder], check=True)
        subprocess.run(["cp", "-a", kept, work], check=True)
        (base / "copy").mkdir(mode=0o700)
        copy = _copy_of(base)
        copy.fill()
        _spoil(base / "copy")
        new = _names(base / "copy")
        ended = _in_fork(copy.sync, number, after)
        copy.close()
        if number % 3 == 0:
            _in_fork(lambda: _recover(base), number // 3 % 12, after)
        _in_fork(lambda: _recover(base))
        found = _names(work)
        assert found in (old, new), number
        seen.add("old" if found == old else "new")
        assert os.listdir(base / "base") == []
        number += 1
    assert seen == {"old", "new"}
    assert number > 40


FULL = f"""{TREE}
import errno, subprocess, sys
from pathlib import Path
from nucleus_gvisor.runtime import SyncFailed, workspace
base = Path(sys.argv[1])
for name in ("work", "copy", "base"):
    (base / name).mkdir(mode=0o700)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", base / "work"], check=True)
(base / "work/a").write_text("a")
(base / "work/b").write_bytes(bytes(64 << 10))
folders = [os.open(base / name, os.O_RDONLY) for name in ("work", "copy")]
copy = workspace.Copy(folders[0], os.fsencode(base / "work"), folders[1], 1 << 20, base / "base")
copy.fill()
(base / "copy/a").write_text("changed")
(base / "copy/large").write_bytes(os.urandom(300 << 10))
before = tree(base / "work")
try:
    copy.sync()
except SyncFailed as error:
    print(error.errno == errno.ENOSPC, error.pending, tree(base / "work") == before, error)
print(os.listdir(base / "base"))
(base / "copy/large").write_bytes(os.urandom(100 << 10))
print(copy.sync(), (base / "work/a").read_text())
"""


def test_a_full_disk(first: Caller, base: Path) -> None:
    """It is met before the first change, and when there is room all is written."""
    alone = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    env = first.mode.env()
    with places.private_directory() as folder:
        words = [*alone, first.mode.python, "-c", FULL, os.fspath(folder)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    failed, left, written = done.stdout.splitlines()
    assert failed.startswith("True False True the workspace")
    assert "No space left on device; it is as it was" in failed
    assert left == "[]"
    assert written == f"{Changes(added=('large',), changed=('a',))} changed"


def test_a_file_system_without_exchange(copy: workspace.Copy, base: Path, work: Path, monkeypatch: Any) -> None:
    """It is told before anything is changed."""

    def rename(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(linux, "rename", rename)
    (base / "copy/b").write_text("its")
    before = tree(work)
    with pytest.raises(SyncFailed, match="cannot exchange two names"):
        copy.sync()
    assert tree(work) == before
    assert os.listdir(base / "base") == []


def test_what_cannot_be_undone_is_gone_on_with(
    copy: workspace.Copy, base: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and `gc` does it."""
    for name in ("b", "src/a"):
        (base / "copy" / name).write_text("its")
    rename, calls = linux.rename, iter(range(100))

    def failing(*arguments: Any) -> None:
        if next(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*arguments)

    monkeypatch.setattr(linux, "rename", failing)
    with pytest.raises(SyncFailed, match="half written") as caught:
        copy.sync()
    assert caught.value.pending
    assert [where for where, error in _recover(base) if error is not None] == [os.fspath(work)]
    monkeypatch.undo()
    assert owner.gc(base / "base") == [os.fspath(work)]
    assert [(work / name).read_text() for name in ("b", "src/a")] == ["its", "its"]
    assert sorted(os.listdir(work)) == ["b", "old", "program", "src"]


def test_journals_that_are_not_obeyed(base: Path, work: Path) -> None:
    """One that lives, of another mode, with another name as well, cut, or of a workspace that is another one now."""
    (base / "base").mkdir(mode=0o700)
    before = tree(work)
    for number, text in enumerate((b"", b"junk\n", b"{}")):
        path = base / "base" / f"sync-{number:032x}"
        path.write_bytes(text)
        path.chmod(0o600)
    (base / "base" / f"sync-{9:032x}").write_bytes(b"")
    (base / "base" / f"sync-{9:032x}").chmod(0o644)
    assert _recover(base) == []
    assert os.listdir(base / "base") == [f"sync-{9:032x}"]
    assert tree(work) == before


# ---- launches ----


@pytest.mark.real
def test_what_is_no_workspace(new_options: Options, base: Path, work: Path) -> None:
    """The host itself, what is ours or has it in it, also by a link; what is no directory; what does not fit."""
    (base / "to-root").symlink_to("/")
    (base / "to-base").symlink_to(new_options["runtime_dir"])
    (base / "to-work").symlink_to("work")
    for mode in ("copy", "rw"):
        options: dict[str, Any] = {**new_options, "workspace_mode": mode}
        for path in ("/", "/proc", base / "to-root"):
            with pytest.raises(Refused, match="give the host away"):
                run(["true"], workspace=path, **options)
        for path in (base / "to-base", new_options["runtime_dir"] / "locks"):
            with pytest.raises(Refused, match="directory of ours"):
                run(["true"], workspace=path, **options)
        with pytest.raises(BadBundle, match="not there"):
            run(["true"], workspace=base / "absent", **options)
    with pytest.raises(BadBundle, match="no directory"):
        run(["true"], workspace=work / "b", **new_options)
    (work / "large").write_bytes(bytes(1 << 18))
    with pytest.raises(StepFailed, match=r"does not fit.*large.*workspace_size"):
        run(["true"], workspace=work, workspace_size=1 << 17, **new_options)
    with pytest.raises(Unsupported, match="only mount-locked makes"):
        run(["true"], workspace=work, enforcement="off", **new_options)
    done = run(["cat", "b"], workspace=base / "to-work", **new_options)
    assert done.stdout == "b"
    assert done.record.path is not None
    lines = [json.loads(line)["evidence"] for line in done.record.path.read_text().splitlines()]
    assert {os.fspath(base / "to-work"): os.fspath(work)} in [line.get("led") for line in lines]
    assert {"entries": 8, "bytes": (1 << 18) + 16, "left_out": 0, "owners": 0} in [
        line.get("workspace") for line in lines
    ]


@pytest.mark.real
def test_what_a_guest_fills(new_options: Options, work: Path) -> None:
    """The copy has its bound, and the guest meets it as any full disk."""
    before = tree(work)
    script = "dd if=/dev/zero of=x bs=1k count=2k; ls"
    done = run(["sh", "-c", script], workspace=work, workspace_size=1 << 20, **new_options)
    assert "No space left" in done.stderr
    assert tree(work) == before


@pytest.mark.parametrize(
    "options",
    [
        {"workspace": "/usr", "workspace_mode": "move"},
        {"workspace_mode": "rw"},
        {"workspace_size": 1 << 20},
        {"workspace": "/usr", "workspace_mode": "ro", "workspace_size": 1 << 20},
        {"workspace": "/usr", "workspace_size": 1},
        {"workspace": "/usr", "workspace_size": True},
        {"sync": "success"},
        {"workspace": "/usr", "sync": "later"},
        {"workspace": "/usr", "workspace_mode": "rw", "sync": "always"},
        {"workspace": "/usr", "mounts": ["/usr:/workspace"]},
    ],
)
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    """Before anything is begun."""
    with pytest.raises(BadArgument):
        run(["true"], **options)


@pytest.mark.real
def test_a_sandbox_without_one(make: MakeSandbox, base: Path) -> None:
    """There is nothing to write back; and a base that others may replace keeps no journal."""
    box = make()
    for ask in (box.diff, box.sync):
        with pytest.raises(BadArgument, match="nothing to"):
            ask()


def test_a_base_that_others_may_replace(copy: workspace.Copy, base: Path, work: Path) -> None:
    """No journal is kept there, and none is believed."""
    shared = base / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    copy._base = shared / "base"
    (base / "copy/b").write_text("its")
    if os.geteuid() == 0:
        with pytest.raises(BadBase, match="others write"):
            copy.sync()
        assert (work / "b").read_text() == "b"


@pytest.mark.real
def test_after_the_sandbox_has_ended(new_options: Options, work: Path) -> None:
    """What it had done until then can still be seen, and written; no descriptor stays."""
    before = len(os.listdir("/proc/self/fd"))
    with Sandbox(workspace=work, **new_options) as box:
        box.exec("sh", "-c", "echo its >b")
        box.kill()
        assert box.diff() == box.sync() == Changes(changed=("b",))
    assert (work / "b").read_text() == "its\n"
    with pytest.raises(SandboxGone):
        box.diff()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.real
def test_asynchronous(new_options: Options, work: Path) -> None:
    """The same."""

    async def both() -> None:
        done = await arun(["sh", "-c", "echo its >b"], workspace=work, sync="always", **new_options)
        assert (done.changes, done.synchronised) == (Changes(changed=("b",)), True)
        async with AsyncSandbox(workspace=work, **new_options) as box:
            await box.exec("touch", "new")
            assert await box.diff() == await box.sync() == Changes(added=("new",))

    asyncio.run(both())
    assert ((work / "b").read_text(), (work / "new").read_bytes()) == ("its\n", b"")


@pytest.mark.real
def test_on_the_command_line(new_options: Options, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is not written back is told; `--sync` writes it, and a conflict ends with 125."""
    where = ["--runsc", os.fspath(new_options["runsc"]), "--artifact-base", os.fspath(new_options["runtime_dir"])]
    before = tree(work)
    words = ["--", "sh", "-c", "pwd; echo its >b; touch new"]
    assert main(["run", *where, "--workspace", os.fspath(work), *words]) == 0
    said = capfd.readouterr()
    assert said.out == "/workspace\n"
    assert "1 added, 1 changed, which is not written back: --sync" in said.err
    assert tree(work) == before
    assert main(["run", *where, "--json", "--workspace", f"{work}:copy", "--sync", "success", *words]) == 0
    data = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert data["synchronised"] is True
    assert (data["changes"]["added"], data["changes"]["changed"]) == (["new"], ["b"])
    assert (work / "b").read_text() == "its\n"
    assert main(["run", *where, "--workspace", f"{work}:ro", "--", "sh", "-c", "echo x >b"]) == 2
    assert main(["explain", *where, "--workspace", os.fspath(work), "--", "true"]) == 0
    assert f"{work} -> " in capfd.readouterr().out
    assert main(["run", "--bundle", "/", "--workspace", os.fspath(work)]) == 125
    assert main(["run", *where, "--sync", "always", "--", "true"]) == 125
    assert "nothing beside --bundle" in capfd.readouterr().err
