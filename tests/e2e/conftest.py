"""Fixtures for launches with real runsc, or with a stand-in for it, on the real kernel."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Release
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.setup.provision import test_base
from tests.support import modes as support_modes
from tests.support import places
from tests.support.modes import Mode

PROBES = Path(__file__).parent / "probes"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """Whatever a launch leaves running becomes our child, where it is seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def no_process_left(subreaper: None) -> Iterator[None]:
    """No test here leaves a process behind."""
    before = launching.descendants(os.getpid())
    yield
    after = {p: what for p, what in launching.descendants(os.getpid()).items() if before.get(p) != what}
    left = launching.gone(after)
    launching.reap()
    assert left == {}


@pytest.fixture(scope="session")
def readable() -> Iterator[Path]:
    """A directory that every user can enter and only we can write, below no directory that others can write."""
    test_base().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="base-", dir=test_base()))
    folder.chmod(0o755)
    yield folder
    places.remove(folder)


@pytest.fixture(scope="session")
def probe(readable: Path) -> Path:
    """The program that stands in runsc's place and reports what it can do there."""
    path = readable / "runsc-probe"
    flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", os.fspath(path), os.fspath(PROBES / "inside.c")], check=True)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def without_loader(readable: Path) -> Path:
    """A whole program for this machine that the kernel refuses to execute: its loader is not there."""
    path = readable / "without-loader"
    link = ["gcc", "-Wl,--dynamic-linker=/no/such/loader.so", "-o", os.fspath(path), os.fspath(PROBES / "inside.c")]
    subprocess.run(link, check=True)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def probe_set(readable: Path, probe: Path) -> Path:
    """The same program as a release that has side binaries."""
    folder = readable / "set"
    (folder / "gvisor-bin").mkdir(parents=True)
    for path in (folder / "runsc", folder / "gvisor-bin/helper"):
        shutil.copy(probe, path)
        path.chmod(0o755)
    for path in (folder, folder / "gvisor-bin"):
        path.chmod(0o755)
    return folder / "runsc"


@pytest.fixture
def caller(mode: Mode, release: Release) -> Caller:
    """Each kind of caller with each release."""
    return Caller(mode, release.path)


@pytest.fixture
def newer(mode: Mode, runsc_new: Path) -> Caller:
    """Each kind of caller with the newer release."""
    return Caller(mode, runsc_new)


@pytest.fixture(params=["new", pytest.param("old", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest, mode: Mode, runsc_new: Path, runsc_old: Path) -> Caller:
    """As `caller`, but the older release counts as slow: for what hardly depends on it."""
    return Caller(mode, runsc_new if request.param == "new" else runsc_old)


@pytest.fixture
def first(app: Path, runsc_new: Path) -> Iterator[Caller]:
    """The most privileged caller that there is here, with the newer release: where the mode makes no difference."""
    name = support_modes.NAMES[0]
    with support_modes.private_base(name) as path:
        yield Caller(Mode(name, app, path), runsc_new)
