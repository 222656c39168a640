"""Walking and opening by descriptors, on real directories: nobody else's link, directory or mode is stepped over."""

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nucleus_gvisor.model.errors import BadBase, BadPath, LaunchError, NotFound, StepFailed, Symlink, Untrusted
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.paths import Found, Walk, artifact_base, open_private, remove_tree
from tests.support.modes import NAMESPACE_MODE, ROOT_MODE, Mode

STRANGER = 12345
"""A uid that is neither root's nor the caller's."""
needs_root = pytest.mark.usefixtures("as_root")


@pytest.fixture
def as_root() -> None:
    """Only root can give a file away."""
    if os.geteuid():
        pytest.fail("run as root: files have to be given to others")


@pytest.fixture
def tree(base: Path) -> Path:
    """A sound directory with a program in it: DIR/a/b/program."""
    program = base / "a/b/program"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"program")
    for path in (base / "a", base / "a/b", program):
        path.chmod(0o755)
    return base


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def walked(path: Path | bytes, identity: Identity | None = None) -> Found:
    """Where the path leads; the descriptor is closed."""
    found = Walk(identity or Identity.current()).to(os.fsencode(path))
    status = os.stat(found.name, dir_fd=found.parent, follow_symlinks=False)
    os.close(found.parent)
    assert os.path.samestat(status, os.lstat(found.path))
    return found


def opened(path: Path | bytes, identity: Identity | None = None) -> os.stat_result:
    """The private directory's status; the descriptor is closed."""
    fd = open_private(os.fsencode(path), identity or Identity.current())
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


# ---- Walk ----


def test_a_plain_path_leads_to_itself(tree: Path) -> None:
    """Without links the path is the one that was given, doubled slashes and dots taken out."""
    assert walked(tree / "a/b/program").path == os.fsencode(tree / "a/b/program")
    assert walked(os.fsencode(tree) + b"//a/./b///program").path == os.fsencode(tree / "a/b/program")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/b/link", "program"),
        ("a/b/link", "./program"),
        ("a/b/link", "../b/program"),
        ("a/b/link", "../../a/b/program"),
        ("a/b/link", "{base}/a/b/program"),
        ("a/b/link", "{base}/a/b/../b/program"),
        ("link", "a/b/program"),
        ("link", "a/../a/b/program"),
        ("link", "a//b/./program"),
        ("a/b/link", "../" * 60 + "{base}/a/b/program"),
    ],
)
def test_links_are_followed_as_the_kernel_does(tree: Path, link: str, target: str) -> None:
    """Relative, absolute, through `..` and above the root: our walk ends where the kernel's own does."""
    target = target.replace("{base}", os.fspath(tree) if target.startswith("{") else os.fspath(tree)[1:])
    (tree / link).symlink_to(target)
    assert walked(tree / link).path == os.fsencode(os.path.realpath(tree / link)) == os.fsencode(tree / "a/b/program")


def test_a_directory_link_in_the_middle_is_followed(tree: Path) -> None:
    """`..` in a link's target is that of the directory where the link leads, not of where it stands."""
    (tree / "c/d").mkdir(parents=True, mode=0o755)
    (tree / "c/d/to-b").symlink_to("../../a/b")
    (tree / "c/up").symlink_to("d/to-b/../b/program")
    assert walked(tree / "c/d/to-b/program").path == os.fsencode(tree / "a/b/program")
    assert walked(tree / "c/up").path == os.fsencode(os.path.realpath(tree / "c/up"))


@given(
    links=st.lists(
        st.lists(st.sampled_from(["..", ".", "a", "b", "c", "l0", "l1", "l2", "program", "/"]), min_size=1, max_size=5),
        min_size=3,
        max_size=3,
    ),
    path=st.lists(st.sampled_from(["a", "b", "c", "l0", "l1", "l2", "program"]), min_size=1, max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_links_end_where_the_kernel_ends(tree: Path, links: list[list[str]], path: list[str]) -> None:
    """Over any small maze of links: the same file as the kernel finds, or an error where the kernel has one too."""
    places = [tree / "l0", tree / "a/l1", tree / "a/b/l2"]
    for place, parts in zip(places, links, strict=True):
        place.unlink(missing_ok=True)
        target = "/".join(part for part in parts if part != "/")
        place.symlink_to(os.path.join(tree, target) if "/" in parts else target or ".")
    start = tree.joinpath(*path)
    try:
        kernel = os.path.realpath(start, strict=True)
    except OSError:
        with pytest.raises(LaunchError):
            walked(start)
        return
    if os.path.isfile(start):
        assert walked(start).path == os.fsencode(kernel)
    else:
        try:
            assert walked(start).path == os.fsencode(kernel)
        except BadPath as error:
            assert error.observed == "leads to a directory"


@pytest.mark.parametrize("length", [1, 2, 39, 40])
def test_as_many_links_as_the_kernel_follows(tree: Path, length: int) -> None:
    """Forty links in a row are followed, as the kernel does."""
    _chain(tree, length)
    assert walked(tree / f"link{length}").path == os.fsencode(tree / "a/b/program")
    assert (tree / f"link{length}").read_bytes() == b"program"


def _chain(tree: Path, length: int) -> None:
    (tree / "link0").symlink_to("a/b/program")
    for number in range(1, length + 1):
        (tree / f"link{number}").unlink(missing_ok=True)
        (tree / f"link{number}").symlink_to(f"link{number - 1}" if number > 1 else "a/b/program")


@pytest.mark.parametrize("kind", ["one too many", "self", "two", "in the middle", "growing"])
def test_link_loops_end(tree: Path, kind: str) -> None:
    """A loop is a Symlink error, soon, however it is made."""
    link = tree / "loop"
    if kind == "one too many":
        _chain(tree, 41)
        link = tree / "link41"
    elif kind == "self":
        link.symlink_to("loop")
    elif kind == "two":
        link.symlink_to("other")
        (tree / "other").symlink_to("loop")
    elif kind == "in the middle":
        link.symlink_to("loop/x")
        link = link / "program"
    else:
        link.symlink_to("./loop/loop/loop/loop")
    with pytest.raises(Symlink, match="too many links"):
        walked(link)


@pytest.mark.parametrize(
    "path", [b"", b"a", b"./a", b"../a", b"/../a", b"/a/../b", b"/a/..", b"/..", b"/\0", b"/a\0b", b"/", b"//", b"/."],
    ids=repr,
)  # fmt: skip
def test_paths_that_could_mean_anything_are_refused(path: bytes) -> None:
    """Relative, with `..`, with NUL, or nothing but the root: BadPath, with nothing looked at."""
    with pytest.raises(BadPath, match="path refused"):
        walked(path)


@pytest.mark.parametrize(
    "name", ["nothing", "nothing/program", "a/nothing/program", "a/b/program/more", "dangling", "through/x"]
)
def test_only_what_is_absent_is_not_found(tree: Path, name: str) -> None:
    """A missing name, a file on the way and a dangling link are absence."""
    (tree / "dangling").symlink_to("nowhere")
    (tree / "through").symlink_to("a/b/program")
    with pytest.raises(NotFound):
        walked(tree / name)


def test_a_link_to_a_directory_by_dots_is_refused(tree: Path) -> None:
    """A link may climb, but has to end in a name: there is nothing to be judged in `..`."""
    (tree / "link").symlink_to("a/..")
    with pytest.raises(BadPath, match="path refused") as caught:
        walked(tree / "link")
    assert caught.value.observed == "leads to a directory"


def test_what_cannot_be_looked_at_is_not_absent(tree: Path) -> None:
    """A name that is too long and a directory that may not be entered are errors (gvisor.rs:168 calls them absent)."""
    with pytest.raises(BadPath, match="cannot be looked at"):
        walked(tree / ("x" * 300))


def test_a_directory_that_may_not_be_entered_is_not_absent(mode: Mode) -> None:
    """EACCES on the way is told as such, to whom it applies."""
    closed = mode.base / "closed"
    script = (
        "import os, sys\nfrom nucleus_gvisor.model.errors import LaunchError\n"
        "from nucleus_gvisor.runtime.identity import Identity\nfrom nucleus_gvisor.runtime.paths import Walk\n"
        "os.mkdir(sys.argv[1], 0)\n"
        "try:\n    Walk(Identity.current()).to(os.fsencode(sys.argv[1]) + b'/program')\n"
        "except LaunchError as error:\n    print(type(error).__name__)\n"
    )
    done = mode.run([mode.python, "-c", script, closed])
    assert done.stdout.strip() == ("BadPath" if mode.name == "user" else "NotFound"), done.stderr


@pytest.mark.parametrize("which", ["a", "a/b"])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777, 0o1775, 0o2775, 0o722, 0o720, 0o702])
def test_directories_that_others_can_write_are_untrusted(tree: Path, which: str, mode: int) -> None:
    """Group or world write at any level is refused, sticky or not, and the error names the directory and the mode."""
    (tree / which).chmod(mode)
    with pytest.raises(Untrusted) as caught:
        walked(tree / "a/b/program")
    assert caught.value.path == os.fsencode(tree / which)
    assert f"{mode:04o}" in str(caught.value.observed)


@needs_root
@pytest.mark.parametrize("which", ["a", "a/b"])
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o555])
def test_directories_of_a_stranger_are_untrusted(tree: Path, which: str, mode: int) -> None:
    """Whoever owns a directory can change it, whatever its mode says now."""
    (tree / which).chmod(mode)
    os.chown(tree / which, STRANGER, 0)
    with pytest.raises(Untrusted) as caught:
        walked(tree / "a/b/program")
    assert caught.value.path == os.fsencode(tree / which) and str(STRANGER) in str(caught.value.observed)


@needs_root
def test_directories_of_the_caller_are_trusted(tree: Path) -> None:
    """An ordinary caller trusts itself and root, and nobody else."""
    caller = replace(Identity.current(), uid=STRANGER, host_root=False)
    os.chown(tree / "a", STRANGER, 0)
    assert walked(tree / "a/b/program", caller).name == b"program"
    os.chown(tree / "a/b", STRANGER + 1, 0)
    with pytest.raises(Untrusted):
        walked(tree / "a/b/program", caller)


@needs_root
@pytest.mark.parametrize("target", ["b/program", "{base}/a/b/program", "nothing", "link"])
def test_links_of_a_stranger_are_refused(tree: Path, target: str) -> None:
    """A link that somebody else made is refused before it is followed, wherever it leads."""
    (tree / "a/link").symlink_to(target.replace("{base}", os.fspath(tree)))
    os.chown(tree / "a/link", STRANGER, 0, follow_symlinks=False)
    with pytest.raises(Symlink, match="made by someone else") as caught:
        walked(tree / "a/link")
    assert caught.value.path == os.fsencode(tree / "a/link")


@needs_root
def test_where_a_link_leads_is_judged_too(tree: Path) -> None:
    """A trusted link into an untrusted directory does not make it trusted."""
    (tree / "link").symlink_to("a/b/program")
    (tree / "back").symlink_to("a/b/../../a/b/program")
    (tree / "a/b").chmod(0o777)
    for name in ("link", "back"):
        with pytest.raises(Untrusted):
            walked(tree / name)


@needs_root
def test_owners_without_an_id_are_noted(tree: Path) -> None:
    """In a user namespace an unmapped owner may be the host's root or anyone: taken, and told."""
    here = replace(Identity.current(), host_root=False, unmapped=65534)
    assert walked(tree / "a/b/program", here).unmapped is False
    os.chown(tree / "a", 65534, 65534)
    assert walked(tree / "a/b/program", here).unmapped is True
    with pytest.raises(Untrusted):
        walked(tree / "a/b/program")


def test_the_directory_is_held_when_names_change(tree: Path) -> None:
    """What was found stays reachable by its descriptor when the path is swapped for another's."""
    found = Walk(Identity.current()).to(os.fsencode(tree / "a/b/program"))
    (tree / "a").rename(tree / "old")
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/program").write_bytes(b"evil")
    fd = os.open(found.name, os.O_RDONLY, dir_fd=found.parent)
    assert os.read(fd, 10) == b"program"
    os.close(fd)
    os.close(found.parent)


@given(path=st.binary(max_size=40).map(lambda tail: b"/proc/" + tail) | st.binary(max_size=40))
@example(b"/proc/self/exe")
@example(b"/dev/stdin/x")
def test_any_path_is_walked_or_refused(path: bytes) -> None:
    """Whatever the bytes, there is an answer or a typed error."""
    try:
        os.close(Walk(Identity.current()).to(path).parent)
    except LaunchError as error:
        assert "\n" not in str(error)


# ---- open_private ----


def test_missing_directories_are_made_private(base: Path) -> None:
    """All that is missing is made, for the caller alone, whatever the umask."""
    for umask, name in ((0o077, "x"), (0, "y"), (0o777, "z")):
        before = os.umask(umask)
        try:
            opened(base / name / "deep/base")
        finally:
            os.umask(before)
        for path in (base / name, base / name / "deep", base / name / "deep/base"):
            assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, os.geteuid()), path


def test_opening_again_changes_nothing(base: Path) -> None:
    """A base that is there is taken as it is, with what is in it."""
    opened(base / "it")
    (base / "it/file").write_text("kept")
    assert opened(base / "it").st_ino == (base / "it").stat().st_ino
    assert (base / "it/file").read_text() == "kept"


@pytest.mark.parametrize("mode", [0o755, 0o500, 0o711, 0o7700, 0])
def test_a_readable_base_is_made_private(base: Path, mode: int) -> None:
    """A directory of the caller's that nobody else could write becomes 0700."""
    (base / "it").mkdir()
    (base / "it").chmod(mode)
    assert stat.S_IMODE(opened(base / "it").st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o707, 0o720])
def test_a_writable_base_is_refused_as_it_is(base: Path, mode: int) -> None:
    """What others could write may hold what others planted: refused, and not even chmodded."""
    (base / "it").mkdir()
    (base / "it").chmod(mode)
    with pytest.raises(BadBase) as caught:
        opened(base / "it")
    assert stat.S_IMODE((base / "it").stat().st_mode) == mode
    assert caught.value.path == os.fsencode(base / "it") and caught.value.hint


@pytest.mark.parametrize("which", ["up", "up/more"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_base_below_what_others_can_write_is_refused(base: Path, which: str, mode: int) -> None:
    """Each directory above is judged, sticky or not, before anything is made in it (gvisor.rs:664 judges one)."""
    (base / "up/more").mkdir(parents=True)
    (base / which).chmod(mode)
    with pytest.raises(BadBase) as caught:
        opened(base / "up/more/it")
    assert caught.value.path == os.fsencode(base / which)
    assert not (base / "up/more/it").exists()


@needs_root
@pytest.mark.parametrize("which", ["up", "up/it"])
def test_a_strangers_base_is_refused(base: Path, which: str) -> None:
    """A base, or a directory above it, that somebody else owns is refused and left as it was."""
    (base / "up/it").mkdir(parents=True, mode=0o755)
    os.chown(base / which, STRANGER, STRANGER)
    before = (base / which).stat()
    with pytest.raises(BadBase) as caught:
        opened(base / "up/it")
    assert caught.value.path == os.fsencode(base / which)
    assert (base / which).stat().st_mode == before.st_mode and not list((base / "up/it").iterdir())


@needs_root
def test_host_root_trusts_only_root_above(base: Path) -> None:
    """An ordinary caller's own directory may lie above its base; for host root only root's."""
    (base / "up").mkdir(mode=0o755)
    os.chown(base / "up", STRANGER, STRANGER)
    (base / "up/it").mkdir()
    os.chown(base / "up/it", STRANGER, STRANGER)
    caller = replace(Identity.current(), uid=STRANGER, host_root=False)
    assert opened(base / "up/it", caller).st_uid == STRANGER
    with pytest.raises(BadBase):
        opened(base / "up/it")


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "real")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("below", ["", "/it"])
@pytest.mark.parametrize("make", [_link, _dangling, lambda p: p.write_text("x"), os.mkfifo, _socket],
                         ids=["link", "dangling link", "file", "fifo", "socket"])  # fmt: skip
def test_what_is_no_directory_is_refused(base: Path, make: Callable[[Path], None], below: str) -> None:
    """A link, a file or anything else in the place of the base or above it, at once and without being followed."""
    (base / "real").mkdir(mode=0o700)
    make(base / "name")
    with pytest.raises(BadBase, match="plain directory") as caught:
        opened(os.fsencode(base / "name") + below.encode())
    assert caught.value.path == os.fsencode(base / "name")
    assert not list((base / "real").iterdir()) and not (base / "nowhere").exists()


@pytest.mark.parametrize("path", [b"", b"x", b"./x", b"/", b"//", b"/a/../b", b"/a\0b"], ids=repr)
def test_a_base_is_an_absolute_path(path: bytes) -> None:
    """Relative, root itself, with `..` or NUL: BadBase, with nothing made."""
    with pytest.raises(BadBase, match="path refused"):
        opened(path)


def test_a_name_that_is_too_long_is_a_failed_call(base: Path) -> None:
    """What the kernel refuses keeps the call's errno."""
    with pytest.raises(StepFailed) as caught:
        opened(base / ("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_directory_that_may_not_be_read_is_a_failed_call(mode: Mode) -> None:
    """It is one, so that it is no wrong base; root is not kept out."""
    script = (
        "import os, sys\nfrom nucleus_gvisor.model.errors import LaunchError\n"
        "from nucleus_gvisor.runtime.identity import Identity\nfrom nucleus_gvisor.runtime.paths import open_private\n"
        "os.mkdir(sys.argv[1], 0o300)\n"
        "try:\n    open_private(os.fsencode(sys.argv[1]), Identity.current())\n"
        "except LaunchError as error:\n    print(type(error).__name__, error.errno)\n"
    )
    done = mode.run([mode.python, "-c", script, mode.base / "closed"])
    denied = "" if mode.name == ROOT_MODE else f"StepFailed {errno.EACCES}\n"
    assert (done.returncode, done.stderr) == (0, "") and done.stdout in (denied, ""), done
    assert done.stdout == denied or mode.name == NAMESPACE_MODE  # whose root has the capability over its own files


@needs_root
def test_a_read_only_place_is_a_failed_call(base: Path) -> None:
    """A missing directory cannot be made there, and one that is there can be opened."""
    (base / "there").mkdir(mode=0o700)
    subprocess.run(["mount", "--bind", base, base], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", base], check=True)
        assert stat.S_ISDIR(opened(base / "there").st_mode)
        with pytest.raises(StepFailed) as caught:
            opened(base / "missing")
        assert caught.value.errno == errno.EROFS
    finally:
        subprocess.run(["umount", base], check=True)


@needs_root
def test_acls_are_no_way_around(base: Path) -> None:
    """Write permission that an access list gives shows in the group bits and is refused."""
    (base / "it").mkdir(mode=0o700)
    entries = [(1, 7, -1), (2, 7, STRANGER), (4, 0, -1), (16, 7, -1), (32, 0, -1)]  # linux/posix_acl_xattr.h
    text = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + (uid & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, perm, uid in entries
    )
    try:
        os.setxattr(base / "it", "system.posix_acl_access", text)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return
    with pytest.raises(BadBase):
        opened(base / "it")


# ---- artifact_base ----

USER = Identity(uid=STRANGER, gid=STRANGER, host_root=False, unmapped=None, elevated=False)
ROOT = replace(USER, uid=0, gid=0, host_root=True)
NESTED = replace(USER, uid=0, gid=0, unmapped=65534)
NAMES = ("NUCLEUS_GVISOR_ARTIFACT_BASE", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME")


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, base: Path) -> Iterator[Callable[..., None]]:
    """Sets exactly these of the variables that matter; values are directories below `base` that are made."""

    def put(*names: str, **values: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name in names:
            (base / name).mkdir(exist_ok=True)
            monkeypatch.setenv(name, os.fspath(base / name))
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    put()
    yield put


def test_the_argument_comes_first(base: Path, env: Callable[..., None]) -> None:
    """What the caller names is taken, whoever it is and whatever the environment says."""
    env(*NAMES)
    for identity in (USER, ROOT, NESTED, replace(ROOT, elevated=True)):
        assert artifact_base(Path("/named"), identity) == b"/named"


@pytest.mark.parametrize("identity", [USER, ROOT, NESTED], ids=["user", "root", "nested"])
def test_then_our_variable(identity: Identity, base: Path, env: Callable[..., None]) -> None:
    """Our own variable is taken for everyone whose environment is believed."""
    env(*NAMES)
    assert artifact_base(None, identity) == os.fsencode(base / NAMES[0])


@pytest.mark.parametrize("identity", [USER, ROOT, NESTED], ids=["user", "root", "nested"])
def test_nothing_is_believed_when_elevated(identity: Identity, env: Callable[..., None]) -> None:
    """No variable decides where a set-id program keeps its directories (gvisor.rs:501)."""
    env(*NAMES)
    elevated = replace(identity, elevated=True)
    if identity.host_root:
        assert artifact_base(None, elevated) == b"/run/nucleus-gvisor"
    else:
        with pytest.raises(BadBase):
            artifact_base(None, elevated)


def test_host_root_has_one_place(env: Callable[..., None]) -> None:
    """Host root uses /run/nucleus-gvisor, not a user's session."""
    env(*NAMES[1:])
    assert artifact_base(None, ROOT) == b"/run/nucleus-gvisor"


def test_others_places_in_order(base: Path, env: Callable[..., None]) -> None:
    """The session's directory, then the state directory, then the home; only what is there and absolute."""
    env(*NAMES[1:])
    assert artifact_base(None, USER) == os.fsencode(base / "XDG_RUNTIME_DIR/nucleus-gvisor")
    env(*NAMES[2:])
    assert artifact_base(None, USER) == os.fsencode(base / "XDG_STATE_HOME/nucleus-gvisor")
    env("HOME")
    assert artifact_base(None, USER) == os.fsencode(base / "HOME/.local/state/nucleus-gvisor")
    env("HOME", XDG_RUNTIME_DIR="relative", XDG_STATE_HOME="/nonexistent/state")
    assert artifact_base(None, USER) == os.fsencode(base / "HOME/.local/state/nucleus-gvisor")
    env("HOME", XDG_RUNTIME_DIR="/nonexistent/run")
    assert artifact_base(None, NESTED) == os.fsencode(base / "HOME/.local/state/nucleus-gvisor")


@pytest.mark.parametrize("home", ["", "relative", "."])
def test_there_is_no_place_in_tmp(home: str, env: Callable[..., None]) -> None:
    """Where nothing is named, that is an error with a hint: below /tmp anyone squats on the name (gvisor.rs:517)."""
    env(HOME=home)
    with pytest.raises(BadBase) as caught:
        artifact_base(None, USER)
    assert "NUCLEUS_GVISOR_ARTIFACT_BASE" in caught.value.hint and "/tmp" not in str(caught.value)


def test_relative_names_are_of_the_current_directory(
    base: Path, env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument or variable without a leading slash counts from where the caller stands."""
    monkeypatch.chdir(base)
    assert artifact_base(Path("here"), USER) == os.fsencode(base / "here")
    env(NUCLEUS_GVISOR_ARTIFACT_BASE="there/deep")
    assert artifact_base(None, USER) == os.fsencode(base / "there/deep")


def test_a_deleted_directory_is_no_place(base: Path, env: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name in a directory that is gone is BadBase; an absolute one does not care."""
    gone = base / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(BadBase, match="current directory"):
        artifact_base(Path("here"), USER)
    assert artifact_base(Path("/named"), USER) == b"/named"
    monkeypatch.undo()


def test_names_that_are_not_utf8_are_kept(base: Path, env: Callable[..., None]) -> None:
    """Bytes go through unchanged, from the argument and from every variable, and such a base can be made and opened."""
    odd = os.fsdecode(os.fsencode(base) + b"/\xff\xfe")
    assert artifact_base(Path(odd), USER) == os.fsencode(odd)
    env(NUCLEUS_GVISOR_ARTIFACT_BASE=odd)
    assert artifact_base(None, USER) == os.fsencode(odd)
    env(HOME=odd)
    assert artifact_base(None, USER) == os.fsencode(odd) + b"/.local/state/nucleus-gvisor"
    assert stat.S_ISDIR(opened(os.fsencode(odd)).st_mode)


# ---- remove_tree ----


def test_a_tree_is_removed_and_nothing_beside_it(base: Path) -> None:
    """Files, links and directories go; what links lead to stays."""
    (base / "kept").mkdir()
    (base / "kept/file").write_text("kept")
    (base / "it/deep/er").mkdir(parents=True)
    (base / "it/deep/link").symlink_to(base / "kept")
    (base / "it/file").write_text("x")
    os.mkfifo(base / "it/fifo")
    (base / os.fsdecode(b"it/\xff\n")).write_text("odd")
    (base / "it/deep").chmod(0)
    _removed(base, b"it")
    assert not (base / "it").exists() and (base / "kept/file").read_text() == "kept"


def _removed(base: Path, name: bytes) -> list[OSError]:
    problems: list[OSError] = []
    fd = os.open(base, os.O_PATH)
    try:
        remove_tree(fd, name, problems.append)
    finally:
        os.close(fd)
    return problems


def test_a_link_is_removed_itself(base: Path) -> None:
    """The top of a tree may have become a link: the link goes, not what it leads to."""
    (base / "kept").mkdir()
    (base / "kept/file").write_text("kept")
    (base / "it").symlink_to("kept")
    assert not _removed(base, b"it")
    assert not (base / "it").is_symlink() and (base / "kept/file").exists()


def test_what_is_not_there_is_no_problem(base: Path) -> None:
    """Somebody else was faster: nothing to say."""
    assert _removed(base, b"it") == []


@needs_root
def test_what_cannot_be_removed_is_told_and_the_rest_goes(base: Path) -> None:
    """A mount point stays, with an error that names it; what is beside it is removed."""
    (base / "it/mnt").mkdir(parents=True)
    (base / "it/file").write_text("x")
    subprocess.run(["mount", "-t", "tmpfs", "none", base / "it/mnt"], check=True)
    try:
        problems = _removed(base, b"it")
    finally:
        subprocess.run(["umount", base / "it/mnt"], check=True)
    assert problems and problems[0].errno == errno.EBUSY
    assert [path.name for path in (base / "it").iterdir()] == ["mnt"]
