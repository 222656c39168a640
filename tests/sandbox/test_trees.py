"""Directories in and out: whole, with their modes, never out of their place, and whatever the guest sends."""

import asyncio
import errno
import os
import socket
import stat
import struct
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus_gvisor.runtime import AsyncSandbox, CopyFailed, OutputLimit, Sandbox, trees
from nucleus_gvisor.runtime.capture import Pipes, TooLarge
from tests.e2e.launching import Caller
from tests.sandbox.conftest import Options
from tests.sandbox.test_guest import program  # noqa: F401

LONG = os.urandom(200_001)
FILES = {"a": b"a", "empty": b"", "sub/long": LONG, "sub/deep/er": b"x", "sub/\N{SNOWMAN} \n'": b"odd"}
LINKS = {"here": "a", "sub/up": "../a", "sub/down": "deep/er", "sub/deep/to nothing": "../nothing"}
OUT = {"out": "/etc/passwd", "sub/out": "../../etc", "sub/deep/out": "../deep/../../../etc", "round": "sub/../../x"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of the host's with all that there is."""
    root = tmp_path / "tree"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for name, target in (LINKS | OUT).items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(os.fspath(root / "socket"))
    (root / "a").chmod(0o4751)
    (root / "sub").chmod(0o555)
    (root / "sub/deep").chmod(0o1733)
    return root


def seen(root: Path) -> dict[str, object]:
    """What is in a tree: modes and bytes, and where links lead."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[os.fspath(path.relative_to(root))] = (stat.filemode(mode), what)
    return found


def check(copy: Path, original: Path) -> None:
    """The copy has all that may be copied, and nothing else."""
    expected = {name: what for name, what in seen(original).items() if name not in {*OUT, "fifo", "socket"}}
    for name, mode in (("a", "-rwxr-x--x"), ("sub/deep", "drwx-wx-wx")):  # no set-id bits, and none that are sticky
        expected[name] = (mode, expected[name][1])  # type: ignore[index]
    # The owner can always remove what he was sent.
    expected["sub"] = (stat.filemode((copy / "sub").stat().st_mode), None)
    assert seen(copy) == expected and (copy / "sub").stat().st_mode & 0o555 == 0o555


LEFT_OUT = tuple(sorted([*OUT, "fifo", "socket"]))


def test_there_and_back(box: Sandbox, tree: Path, tmp_path: Path) -> None:
    """Links within it stay, those that lead out and special files are left out and told, both ways; the guest has it
    with its modes, and what was there before is replaced or stays."""
    before = seen(tree)
    box.exec("sh", "-c", "mkdir -p /tmp/there; cd /tmp/there; echo old >a; ln -s /etc/passwd empty; echo mine >mine")
    assert tuple(sorted(box.put(tree, "/tmp/there"))) == LEFT_OUT
    # Not stat(1): Debian 12's release lacks the call.
    modes = "import os, sys; print(*(oct(os.stat(name).st_mode & 0o7777) for name in sys.argv[1:]))"
    assert box.exec("python3", "-c", modes, "a", "sub", "sub/deep", cwd="/tmp/there").stdout == "0o751 0o555 0o733\n"
    told = box.exec("sh", "-c", "cd /tmp/there; cat a mine; test ! -L empty && readlink here")
    assert told.stdout == "amine\na\n"
    box.exec("sh", "-c", "cd /tmp/there; rm mine; ln -s /etc/passwd out; mkfifo fifo; ln -s ../.. sub/deep/further")
    assert sorted(box.get("/tmp/there", tmp_path / "back")) == ["fifo", "out"]
    os.unlink(tmp_path / "back/sub/deep/further")
    check(tmp_path / "back", tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "tree"]
    assert seen(tree) == before


def test_on_asyncio(new_options: Options, tree: Path, tmp_path: Path) -> None:
    """The same there."""

    async def go() -> None:
        async with AsyncSandbox(**new_options) as box:
            assert tuple(sorted(await box.put(tree, "/tmp/there"))) == LEFT_OUT
            assert await box.get("/tmp/there", tmp_path / "back") == ()
            with pytest.raises(FileExistsError):
                await box.get("/tmp/there", tmp_path / "back")

    asyncio.run(go())
    check(tmp_path / "back", tree)


AS_CALLER = """
import os, sys, tempfile
from pathlib import Path
from nucleus_gvisor.runtime import Sandbox
with tempfile.TemporaryDirectory() as name, Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None) as box:
    tree = Path(name, "tree")
    (tree / "a/b").mkdir(parents=True)
    for number in range(300):
        (tree / "a/b" / str(number)).write_text(str(number))
    (tree / "out").symlink_to("/etc/passwd")
    print(box.put(tree, "/tmp/x"), box.get("/tmp/x", Path(name, "back")))
    back = Path(name, "back/a/b")
    print(sorted(int(path.read_text()) for path in back.iterdir()) == list(range(300)))
    print({(path.stat().st_uid, oct(path.stat().st_mode)) for path in back.iterdir()} == {(os.geteuid(), "0o100644")})
"""


def test_each_kind_of_caller(newer: Caller) -> None:
    """What comes back is the caller's own."""
    done = newer.script("import os; os.umask(0o022)\n" + AS_CALLER)
    assert done.stdout == "('out',) ()\nTrue\nTrue\n", done.stderr


def test_what_is_the_guests_error(box: Sandbox, tree: Path, tmp_path: Path) -> None:
    """What the guest cannot read or make, with the path there; and nothing is left on the host."""
    box.exec("sh", "-c", "mkdir /tmp/file; mkdir /tmp/file/a; touch /tmp/file/a/b")
    with pytest.raises(IsADirectoryError, match="'/tmp/file/a'"):
        box.put(tree, "/tmp/file")
    with pytest.raises(FileNotFoundError, match="'/tmp/no/where'"):
        box.put(tree, "/tmp/no/where")
    with pytest.raises(FileNotFoundError, match="'/tmp/nothing'"):
        box.get("/tmp/nothing", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_bounds(box: Sandbox, tmp_path: Path) -> None:
    """Neither many small entries, nor a large one, nor a deep tree."""
    box.exec("sh", "-c", "mkdir -p /tmp/many /tmp/large; cd /tmp/many; seq 100 | xargs touch")
    box.exec("sh", "-c", "truncate -s 1T /tmp/large/file")
    for name, bound in (("many", 50 * trees.ENTRY), ("large", 200_000)):
        with pytest.raises(OutputLimit, match=f"more than {bound} bytes"):
            box.get(f"/tmp/{name}", tmp_path / "back", max_bytes=bound)
    assert box.get("/tmp/many", tmp_path / "many", max_bytes=100 * trees.ENTRY) == ()
    box.exec("python3", "-c", "import os\nos.chdir('/tmp')\nfor _ in range(300): os.mkdir('d'); os.chdir('d')")
    with pytest.raises(OSError, match="'/tmp/d/d") as caught:
        box.get("/tmp/d", tmp_path / "back")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert [path.name for path in tmp_path.iterdir()] == ["many"]


def test_what_the_host_cannot(box: Sandbox, tree: Path, tmp_path: Path) -> None:
    """A place that is taken, a tree that cannot be read, a deep one: said before or during, and nothing is left."""
    with pytest.raises(FileExistsError, match="tree"):
        box.get("/tmp", tree)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        box.get("/tmp", tmp_path / "file")
    deep = tmp_path / "deep"
    (deep / "/".join(["d"] * 300)).mkdir(parents=True)
    with pytest.raises(CopyFailed, match="put: copying stdin failed") as caught:
        box.put(deep, "/tmp/x")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file", "tree"]


# ---- the guest's program itself, on each machine ----


def received(part: Path, data: bytes, bound: int = 1 << 30, size: int = 1 << 16) -> trees.Copying:
    """What the host makes of these bytes, which come in pieces of `size`."""
    copying = trees.Copying("g", Pipes())
    with closing(trees.Received(part, bound, copying)) as making:
        for at in range(0, len(data), size):
            making.take(memoryview(data[at : at + size]))
        making.see_that_it_is_whole()
    return copying


def test_the_program_writes_and_reads_trees(program: list[str], tree: Path, tmp_path: Path) -> None:  # noqa: F811
    """What one makes the other takes; more than a buffer, and a buffer's pieces at every border."""
    copy, back = tmp_path / "copy", tmp_path / "back"
    left_out: list[str] = []
    fd = os.open(tree, os.O_RDONLY)
    data = b"".join(trees.packed(fd, os.fsencode(tree), left_out))
    os.close(fd)
    subprocess.run([*program, "p", copy], input=data, check=True)
    assert tuple(sorted(left_out)) == LEFT_OUT
    check(copy, tree)
    told = subprocess.run([*program, "g", copy], capture_output=True, check=True).stdout
    for size in (1, 7, 1 << 16):
        received(back, told, size=size)
        check(back, tree)
        subprocess.run(["rm", "-r", back], check=True)


def test_the_program_tells_what_it_could_not(program: list[str], tmp_path: Path) -> None:  # noqa: F811
    """Its status is errno, and it says where; input that is cut off is no tree."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").mkdir()
    (tmp_path / "x/y/z").touch()
    told = subprocess.run([*program, "p", tmp_path / "x"], input=frame("d") + frame("f", b"y"), capture_output=True)
    assert (told.returncode, told.stdout) == (errno.EISDIR, b"y")
    for cut in (b"", frame("d")[:3], frame("d") + frame("f", b"new") + struct.pack("<I", 9) + b"x", frame("?")):
        assert subprocess.run([*program, "p", tmp_path / "x"], input=cut).returncode == errno.EBADMSG


# ---- what a hostile guest sends ----


def frame(kind: str, name: bytes = b"", mode: int = 0o755, length: int | None = None) -> bytes:
    return struct.pack("<BBHI", ord(kind), 0, len(name) if length is None else length, mode) + name


def link(name: bytes, target: bytes) -> bytes:
    return frame("l", name) + struct.pack("<I", len(target)) + target


EMPTY = struct.pack("<I", 0)
FORGED = {
    "nothing": b"",
    "no root": frame("f", b"x") + EMPTY + frame("e"),
    "no end": frame("d"),
    "more after its end": frame("d") + frame("e") + frame("d", b"x"),
    "a second root": frame("d") + frame("d") + frame("e"),
    "more than a file": frame("f") + EMPTY + frame("f", b"x") + EMPTY + frame("e"),
    "an absolute name": frame("d") + frame("d", b"/x") + frame("e"),
    "a name that leads up": frame("d") + frame("f", b"../x") + EMPTY + frame("e"),
    "up and down": frame("d") + frame("d", b"a") + frame("f", b"a/../../x") + EMPTY + frame("e"),
    "itself": frame("d") + frame("d", b".") + frame("e"),
    "through itself": frame("d") + link(b"./x", b"..") + frame("e"),
    "a NUL": frame("d") + frame("d", b"a\0b") + frame("e"),
    "no directory above": frame("d") + frame("d", b"a/b") + frame("e"),
    "through a file": frame("d") + frame("f", b"a") + EMPTY + frame("d", b"a/b") + frame("e"),
    "through a link": frame("d") + link(b"a", b".") + frame("f", b"a/x") + EMPTY + frame("e"),
    "twice": frame("d") + frame("d", b"a") + frame("d", b"a") + frame("e"),
    "over a link": frame("d") + link(b"a", b"b") + frame("f", b"a") + EMPTY + frame("e"),
    "back into one that is done": frame("d") + frame("d", b"a") + frame("d", b"b") + frame("d", b"a/x") + frame("e"),
    "too long a name": frame("d", length=5000) + bytes(5000),
    "too long a piece": frame("d") + frame("f", b"a") + struct.pack("<I", 1 << 31),
    "too long a link": frame("d") + frame("l", b"a") + struct.pack("<I", 1 << 31),
    "no kind": frame("d") + frame("?", b"a") + frame("e"),
    "too deep": frame("d") + b"".join(frame("d", b"/".join([b"d"] * n)) for n in range(1, 300)) + frame("e"),
    "too many left out": frame("d") + frame("s", b"x") * (trees.MOST_LEFT_OUT + 1) + frame("e"),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged(tmp_path: Path, data: bytes) -> None:
    """An error, and nothing outside its place."""
    inner = tmp_path / "in"
    inner.mkdir()
    with pytest.raises(OSError):
        received(inner / "part", data)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in inner.iterdir()] in ([], ["part"])


NAMES = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"x" * 200]), max_size=4).map(b"/".join)
FRAMES = st.one_of(
    st.tuples(st.sampled_from("dse"), NAMES).map(lambda made: frame(*made)),
    st.tuples(NAMES, NAMES).map(lambda made: link(*made)),
    st.tuples(NAMES, st.binary(max_size=9)).map(
        lambda made: frame("f", made[0]) + (struct.pack("<I", len(made[1])) + made[1] if made[1] else b"") + EMPTY
    ),
    st.binary(max_size=12),
)


@given(parts=st.lists(FRAMES, max_size=12), size=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_whatever_it_sends(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], size: int) -> None:
    """No name outside, no link that leads out, no other error; and no more than the bound."""
    outer = tmp_path_factory.mktemp("fuzz")
    (outer / "in").mkdir()
    try:
        received(outer / "in/part", frame("d") + b"".join(parts) + frame("e"), bound=40_000, size=size)
    except (OSError, TooLarge):
        pass
    assert [path.name for path in outer.iterdir()] == ["in"]
    found = [path for path in (outer / "in").rglob("*") if path.name != "part"]
    assert len(found) <= 10
    root = outer / "in/part"
    for path in found:
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


@pytest.mark.parametrize(
    ("name", "target", "inside"),
    [
        (b"l", b"a", True),
        (b"l", b"./a/./b", True),
        (b"d/l", b"../a", True),
        (b"d/l", b"..", True),
        (b"l", b"..", False),
        (b"d/l", b"../../a", False),
        (b"l", b"/a", False),
        (b"l", b"", False),
        # Where d leads to the root, this leads out of it.
        (b"l", b"d/../x", False),
        (b"e/l", b"../d/../x", False),
    ],
)
def test_links_that_stay_inside(name: bytes, target: bytes, inside: bool) -> None:
    """Wherever the tree's other links lead, this one leads nowhere else."""
    assert trees.stays_inside(name, target) is inside


def test_the_streams_of_a_tree_are_closed(tree: Path, tmp_path: Path) -> None:
    """Of a copy that was never begun, too."""
    before = os.listdir("/proc/self/fd")
    with trees.to_put(tree, False) as copying:
        copying.pipes.close()
    with pytest.raises(OSError, match="not whole"), trees.to_get(tmp_path / "x", 1, False) as (copying, _):
        copying.pipes.close()
    assert os.listdir("/proc/self/fd") == before
