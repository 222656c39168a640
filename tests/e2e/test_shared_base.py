"""Bases that a caller names although others have a hand in what lies above, and systemd's own directories."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.launching import Caller, summary
from tests.support.modes import NAMESPACE_MODE, Mode

BASE = "NUCLEUS_GVISOR_ARTIFACT_BASE"


@pytest.fixture
def below_tmp(mode: Mode) -> Iterator[Path]:
    """A directory of the caller's own below a sticky one that all may write."""
    assert os.stat("/tmp").st_mode & 0o1002 == 0o1002
    path = Path(tempfile.mkdtemp(prefix="base-", dir="/tmp"))
    os.chown(path, mode.account.pw_uid, mode.account.pw_gid)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def launch(caller: Caller, base: Path | str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`run` with that base named in the environment."""
    given = caller.mode.env() | {BASE: os.fspath(base)} | env
    return caller.run("--json", *flags, command=["echo", "ran"], env=given)


def test_below_a_sticky_directory(either: Caller, below_tmp: Path) -> None:
    """Named, it takes locks and records, and no more; in a user namespace nobody can tell who root is."""
    done = launch(either, below_tmp / "deep")
    if either.mode.name == NAMESPACE_MODE:
        assert done.returncode == 125 and "can be changed by others: /tmp;" in done.stderr
        return
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "ran"), done
    assert Path(summary(done)["record"]).parent == below_tmp / "deep/records"
    assert sorted(p.name for p in (below_tmp / "deep").iterdir()) == ["locks", "records"]


@pytest.mark.parametrize(
    "flags", [["--stage", "copy"], ["--enforcement", "off"], ["--enforcement", "best_effort"]], ids=" ".join
)
def test_nothing_else_lies_there(first: Caller, below_tmp: Path, flags: list[str]) -> None:
    """A copy of runsc, or a bundle that runsc reads from it, is for a base that others do not touch."""
    os.chown(below_tmp, first.mode.account.pw_uid, first.mode.account.pw_gid)
    done = launch(first, below_tmp, *flags)
    assert done.returncode == 125
    assert "below a directory that others write: /tmp" in done.stderr and "--artifact-base" in done.stderr


def test_only_when_named(modes: dict[str, Mode], below_tmp: Path) -> None:
    """What the environment happens to have is not named: HOME and XDG_RUNTIME_DIR below /tmp stay refused."""
    mode = modes["user"]
    os.chown(below_tmp, mode.account.pw_uid, mode.account.pw_gid)
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        env = {key: value for key, value in mode.env().items() if key != BASE} | {name: os.fspath(below_tmp)}
        done = mode.cli("run", "--", "true", env=env)
        assert done.returncode == 125 and "can be changed by others: /tmp;" in done.stderr, done


def test_another_was_there_first(modes: dict[str, Mode], below_tmp: Path) -> None:
    """Who squats on the name keeps the caller from it, and no more: neither his directory nor one in it is taken."""
    user = modes["user"]
    stranger = user.account.pw_uid + 1
    for base in (below_tmp, below_tmp / "below"):
        os.chown(below_tmp, stranger, stranger)
        below_tmp.chmod(0o755)
        done = user.cli("run", "--", "true", env=user.env() | {BASE: os.fspath(base)})
        assert done.returncode == 125 and f"owner uid {stranger}" in done.stderr


def test_the_sticky_directory_itself(modes: dict[str, Mode]) -> None:
    """It is nobody's own."""
    done = modes["user"].cli("run", "--", "true", env=modes["user"].env() | {BASE: "/tmp"})
    assert done.returncode == 125 and "not private to the caller" in done.stderr


@pytest.fixture(params=["0777", "2770"])
def volume(mode: Mode, request: pytest.FixtureRequest) -> Iterator[Path]:
    """What Kubernetes mounts as an emptyDir: root's, for all or for a group, and without the sticky bit."""
    path = Path(tempfile.mkdtemp(prefix="ngv-volume-", dir="/run"))
    path.chmod(0o755)
    options = f"mode={request.param},gid={mode.account.pw_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)
    path.rmdir()


def test_a_volume_that_others_write(first: Caller, volume: Path) -> None:
    """A directory of the caller's own in it takes locks and records, and no more."""
    done = launch(first, volume / "base")
    if first.mode.name == NAMESPACE_MODE:
        assert done.returncode == 125 and f"can be changed by others: {volume};" in done.stderr
        return
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "ran"), done
    assert sorted(p.name for p in (volume / "base").iterdir()) == ["locks", "records"]
    done = launch(first, volume / "base", "--stage", "copy")
    assert done.returncode == 125 and f"below a directory that others write: {volume}" in done.stderr
    done = launch(first, volume)
    assert done.returncode == 125 and f"not private to the caller: {volume}" in done.stderr


def test_a_directory_that_others_write_is_no_volume(modes: dict[str, Mode], volume: Path) -> None:
    """In one that is not mounted there by itself, others are anyone: it stays refused."""
    volume.chmod(0o777)
    user, open_ = modes["user"], volume / "open"
    open_.mkdir()
    open_.chmod(0o777)
    done = user.cli("run", "--", "true", env=user.env() | {BASE: f"{open_}/base"})
    assert done.returncode == 125 and f"can be changed by others: {open_};" in done.stderr


def test_a_neighbour_renames_the_base(modes: dict[str, Mode], volume: Path) -> None:
    """He keeps the caller from it, and from what it recorded; what he puts there instead is not taken, and the sandbox
    that runs goes on.
    """
    volume.chmod(0o777)
    user, base, away = modes["user"], volume / "base", volume / "away"
    env = user.env() | {BASE: os.fspath(base)}
    script = "echo begun; read line; echo $line"
    with user.popen(
        [user.python, "-m", "nucleus_gvisor.runtime.cli", "run", "--", "sh", "-c", script],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        base.rename(away)
        base.mkdir()
        stranger = user.account.pw_uid + 1
        os.chown(base, stranger, stranger)
        assert f"owner uid {stranger}" in user.cli("run", "--", "true", env=env).stderr
        out, _ = process.communicate("ended\n", timeout=120)
        assert (process.returncode, out) == (0, "ended\n")
    assert [*(away / "locks").iterdir()] == [] and [*base.iterdir()] == []
    base.rmdir()
    assert user.cli("run", "--", "true", env=env).returncode == 0


# Runs a program as root of a user namespace with a range of ids, as in a container.
IN_A_CONTAINER = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(99)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os.setgid(0)
    os.setuid(0)
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(ready[0], 1)
for kind in ("gid", "uid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write("0 100000 65536")
os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of uid 1000 of the container's, in which only its root has a directory."""
    above = Path(tempfile.mkdtemp(prefix="ngv-home-", dir="/run"))
    above.chmod(0o755)
    for path, uid in ((above / "home", 101000), (above / "home/base", 100000)):
        path.mkdir(0o755)
        os.chown(path, uid, uid)
    yield above / "home"
    shutil.rmtree(above)


def test_root_of_a_container_in_anothers_home(modes: dict[str, Mode], home: Path) -> None:
    """Named, it takes locks and records; chosen by us, or for what runsc would read, it stays refused; so does one
    that still others write.
    """
    mode = modes["root"]

    def launched(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        given = {key: value for key, value in mode.env().items() if key != BASE} | env
        command = [mode.python, "-m", "nucleus_gvisor.runtime.cli", "run", *flags, "--", "echo", "ran"]
        return mode.run([mode.python, "-c", IN_A_CONTAINER, *command], env=given, timeout=120)

    done = launched(**{BASE: f"{home}/base"})
    assert (done.returncode, done.stdout) == (0, "ran\n"), done
    assert sorted(path.name for path in (home / "base").iterdir()) == ["locks", "records"]
    done = launched("--stage", "copy", **{BASE: f"{home}/base"})
    assert done.returncode == 125 and f"below a directory that others write: {home}" in done.stderr
    done = launched(HOME=os.fspath(home), XDG_STATE_HOME="", XDG_RUNTIME_DIR="")
    assert done.returncode == 125 and f"can be changed by others: {home};" in done.stderr
    home.chmod(0o777)
    done = launched(**{BASE: f"{home}/base"})
    assert done.returncode == 125 and f"can be changed by others: {home};" in done.stderr


@pytest.mark.parametrize("variable", ["RUNTIME_DIRECTORY", "STATE_DIRECTORY"])
@pytest.mark.parametrize("named", ["all", "the first"])
def test_a_services_directories(first: Caller, variable: str, named: str) -> None:
    """systemd's may be several, links (DynamicUser=), of mode 0755, and have other things in them."""
    own, other = first.mode.base / "private/own", first.mode.base / "other"
    own.mkdir(0o755, parents=True)
    (own / "service.sock").touch()
    link = first.mode.base / "own"
    link.symlink_to("private/own")
    several = f"{link}:{other}"
    done = launch(first, several if named == "all" else link, **{variable: several})
    assert done.returncode == 0, done.stderr
    assert Path(summary(done)["record"]).parent == own / "nucleus-gvisor/records"
    told = first.mode.cli("doctor", "--json", env=first.mode.env() | {BASE: several, variable: several})
    base = next(check for check in json.loads(told.stdout)["checks"] if check["name"] == "artifact base")
    assert base["details"]["path"] == f"{own}/nucleus-gvisor"
