"""Secret files: what is planted is in the guest, for its user alone, and nowhere else that anybody could look."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import BadArgument, Credential, Sandbox, Unsupported, arun, run, secret_files
from nucleus_gvisor.runtime.cli import main
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options
from tests.support import places

pytestmark = pytest.mark.real

PLANT = """
import glob, os, sys
from nucleus_gvisor.runtime import Credential, Sandbox, Unsupported, run
options = dict(runsc=sys.argv[1], pin=sys.argv[2] or None)
base = os.environ["NUCLEUS_GVISOR_ARTIFACT_BASE"]
secret = os.urandom(16).hex()  # in no source, and so in no argument of this process
kept = os.path.join(base, "kept")
with open(kept, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    file.write(secret)
reader, writer = os.pipe()
os.write(writer, secret.encode())
os.close(writer)
os.environ["CREDENTIALS_DIRECTORY"] = base
sources = {"/run/secrets/a": kept, "/run/secrets/b": reader, "/etc/c": Credential("kept"), "/tmp/d": secret.encode()}

def found():
    # Where else it is: arguments and variables of every process, and files below the base.
    where = []
    for path in [*glob.glob("/proc/[0-9]*/cmdline"), *glob.glob("/proc/[0-9]*/environ")]:
        try:
            with open(path, "rb") as file:
                where += [path] if secret.encode() in file.read() else []
        except OSError:
            pass
    for folder, _, names in os.walk(base):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                where += [name] if secret.encode() in file.read() else []
    return where

with Sandbox(secret_files=sources, debug_dir=base, **options) as box:
    for path in sources:
        assert box.exec("cat", path).stdout == secret, path
        assert box.exec("cat", path, user=(7, 7), check=False).returncode == 1
        assert box.exec("sh", "-c", f"echo x >{path}", check=False).returncode
    mode = box.exec("python3", "-c", "import os; s = os.stat('/run/secrets/a'); print(oct(s.st_mode), s.st_uid)").stdout
    print(mode, end="")
    print(secret in repr((vars(box), box._request, box._process.made_with)), found())
print(found())
try:
    ask = ["sh", "-c", "id -u; wc -c </run/secrets/a"]
    done = run(ask, secret_files={"/run/secrets/a": kept}, user=7, **options)
    print(done.stdout.split())
except Unsupported as error:
    print(error)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that only we can change."""
    with places.private_directory() as path:
        yield path


def test_nowhere_else(caller: Caller) -> None:
    """For each kind of caller and release, from each kind of source: read by its user, written and found by nobody."""
    done = caller.script(PLANT)
    assert done.returncode == 0, done.stderr
    mode, living, after, other = done.stdout.splitlines()
    assert mode == "0o100400 0"
    assert living == "False ['kept']"
    assert after == "['kept']"
    if caller.mode.name == "userns":
        assert "none that a secret file could belong to" in other
    else:
        assert other == "['7', '32']"


def test_not_in_a_checkpoint(new_options: Options, base: Path) -> None:
    """Not unless it is asked for; then its note names them, and a restore wants them again, and may change them."""
    options: dict[str, Any] = {**new_options, "secret_files": {"/run/secrets/key": b"first"}}
    with Sandbox(**options) as box:
        with pytest.raises(BadArgument, match=r"would hold secrets.*/run/secrets/key.*include_secrets=True") as caught:
            box.checkpoint(base / "image")
        assert "first" not in str(caught.value)
        assert not (base / "image").exists()
        box.checkpoint(base / "image", include_secrets=True)
    note = json.loads((base / "image/note").read_text())
    assert note["secret_files"] == ["/run/secrets/key"]
    assert "first" not in (base / "image/note").read_text()
    with pytest.raises(BadArgument, match=r"another secret_files.*/run/secrets/key"):
        Sandbox.restore(base / "image", **new_options)
    options["secret_files"] = {"/run/secrets/key": b"later"}
    with Sandbox.restore(base / "image", **options) as box:
        assert box.exec("cat", "/run/secrets/key").stdout == "later"


def _make(base: Path, kind: str) -> object:
    path = base / "source"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "link":
        (base / "other").write_text("SECRET")
        (base / "other").chmod(0o600)
        path.symlink_to("other")
    elif kind == "in a directory of all":
        (base / "shared").mkdir()
        (base / "shared").chmod(0o777)
        path = base / "shared/source"
        path.write_text("SECRET")
        path.chmod(0o600)
    elif kind == "large":
        path.write_bytes(b"SECRET" + bytes(secret_files.MAX_SECRET))
        path.chmod(0o600)
    elif kind != "absent":
        path.write_text("SECRET")
        path.chmod(int(kind, 8))
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("absent", "cannot be read.*No such file"),
        ("directory", "plain file"),
        ("fifo", "plain file"),
        ("link", "a symbolic link.*name the file that it leads to"),
        ("in a directory of all", "mode 0777"),
        ("large", "more bytes"),
        ("0604", "mode 0604"),
        ("0620", "mode 0620"),
    ],
)
def test_sources_that_are_refused(base: Path, kind: str, text: str) -> None:
    """What others can read, or may have put there, is none; nobody waits, and nothing of it is told."""
    before = len(os.listdir("/proc/self/fd"))
    source = _make(base, kind)
    with pytest.raises(BadArgument, match=text) as caught:
        run(["true"], secret_files={"/run/secrets/x": source})  # type: ignore[dict-item]
    assert "SECRET" not in f"{caught.value} {caught.value.as_dict()}"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"run/x": b""}, ValueError, "absolute path"),
        ({"/run/../x": b""}, ValueError, "absolute path"),
        ({"/run/": b""}, ValueError, "absolute path"),
        ({"/proc/x": b""}, ValueError, "not below /proc"),
        ({"/run/x": b"", "//run/./x": b""}, ValueError, "same target twice"),
        ({f"/run/{number}": b"" for number in range(65)}, ValueError, "64 at most"),
        ({f"/run/{number}": bytes(1 << 20) for number in range(5)}, ValueError, "of all"),
        ({"/run/x": -1}, ValueError, "descriptor -1"),
        ({"/run/x": Credential("../x")}, ValueError, "credential's name"),
        ({"/run/x": Credential("x")}, ValueError, "no directory in CREDENTIALS_DIRECTORY"),
        ({"/run/x": True}, TypeError, "bool"),
        ({"/run/x": None}, TypeError, "NoneType"),
        ({1: b""}, TypeError, "int"),
        ([], TypeError, "list"),
    ],
)
def test_arguments_that_are_refused(asked: Any, error: type[Exception], text: str) -> None:
    """Before anything is begun."""
    with pytest.raises(error, match=text):
        run(["true"], secret_files=asked)


def test_a_mount_at_the_same_place(new_options: Options) -> None:
    """One of them would hide the other."""
    with pytest.raises(BadArgument, match="each target once"):
        run(["true"], mounts=["/etc/hostname:/mnt"], secret_files={"/mnt": b""}, **new_options)


def test_a_launch_without_a_tmpfs(new_options: Options) -> None:
    """An unconfined one would have to write them to disk."""
    with pytest.raises(Unsupported, match="tmpfs that only mount-locked makes"):
        run(["true"], enforcement="off", secret_files={"/run/secrets/x": b"SECRET"}, **new_options)


def test_in_a_root_of_the_callers(make: MakeSandbox, base: Path) -> None:
    """Nothing is made in it."""
    root = base / "root"
    root.mkdir()
    box = make(rootfs=root, mounts=["/usr:/usr", "/usr/bin:/bin", "/usr/lib:/lib", "/usr/lib64:/lib64"],
               secret_files={"/run/secrets/key": b"x"})  # fmt: skip
    assert box.read_file("/run/secrets/key") == b"x"
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("source", ["{path}", "fd:{fd}", "credential:key"])
def test_on_the_command_line(
    new_options: Options, base: Path, source: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From each kind of source; what would be done is told without what is in it."""
    (base / "key").write_text("hushhush")
    (base / "key").chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(base))
    where = ["--runsc", os.fspath(new_options["runsc"]), "--artifact-base", os.fspath(new_options["runtime_dir"])]
    for verb in ("run", "explain"):
        fd = os.open(base / "key", os.O_RDONLY)
        secret = f"--secret-file=/run/secrets/key={source.format(path=base / 'key', fd=fd)}"
        assert main([verb, *where, secret, "--", "sh", "-c", "wc -c </run/secrets/key"]) == 0
        os.close(fd)
        said = capfd.readouterr()
        assert "hushhush" not in said.out + said.err
        assert verb == "explain" or said.out == "8\n"


@pytest.mark.parametrize("given", ["key", "/run/x", "run/x=/y", "/run/x=", "/run/x=fd:y"])
def test_words_that_are_refused(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As any word that means nothing."""
    with pytest.raises(SystemExit):
        main(["run", "--secret-file", given, "--", "true"])
    assert "expected" in capfd.readouterr().err


def test_a_bundle_brings_its_own(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And a target twice is a mistake."""
    assert main(["run", "--bundle", os.fspath(base), "--secret-file", "/run/x=/y"]) == 125
    assert main(["run", "--secret-file", "/run/x=/y", "--secret-file", "/run/x=/z", "--", "true"]) == 125
    said = capfd.readouterr().err
    assert "nothing beside --bundle" in said
    assert "/run/x twice" in said


def test_asynchronous(new_options: Options) -> None:
    """The same."""
    done = asyncio.run(arun(["cat", "/run/secrets/key"], secret_files={"/run/secrets/key": b"x"}, **new_options))
    assert done.stdout == "x"
