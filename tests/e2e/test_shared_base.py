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
