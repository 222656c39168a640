"""Fixtures that all tests share. What they need and cannot find makes a test fail, never skip."""

import pwd
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

from tests.setup import releases
from tests.setup.provision import NEWER, OLDER, test_base
from tests.support import app as support_app
from tests.support import modes as support_modes
from tests.support import places, records
from tests.support.modes import Mode

# A deadline measures the machine, not the code: one that is busy with a sandbox is slow now and then.
settings.register_profile("nucleus-gvisor", deadline=None, print_blob=True)
settings.load_profile("nucleus-gvisor")


# Whoever starts the tests may ignore signals (nohup; a shell's background, in which `make test` has half of them), and
# what they start would ignore them too.
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Every record that a test leaves is judged when the session ends."""
    config.pluginmanager.register(records)


class Release(NamedTuple):
    """A release of runsc, and the platform that it can run everywhere."""

    path: Path
    platform: str


OLD, NEW = "20221219", "20240729"
PLACES = {
    OLD: OLDER,
    NEW: test_base() / NEWER,
    **{name: test_base() / releases.FOLDER / name / "runsc" for name in (*releases.pins(), releases.ALONE)},
}
"""Where each release lies, the oldest first; the last is today's runsc without what belongs beside it."""
RAN = set[str]()
"""Those that tests of this session had."""


def release_of(name: str) -> Release:
    """The release of that name; the test fails where the set-up has not made it."""
    path = PLACES[name]
    if not path.is_file():
        pytest.fail(f"{path} is missing; run: python3 tests/setup/provision.py test", pytrace=False)
    RAN.add(name)
    return Release(path, "ptrace" if name == OLD else "systrap")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which releases the tests had."""
    if RAN:
        left = [name for name in PLACES if name not in RAN]
        missed = f"; not {', '.join(left)}" if left else ""
        terminalreporter.write_line(f"releases of runsc: {', '.join(sorted(RAN))}{missed}")


@pytest.fixture(scope="session", autouse=True)
def measured_children() -> Iterator[None]:
    """Under coverage, children that end in execve or _exit are measured too."""
    with support_app.measured_children():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is `root_first` is a campaign for the other kinds of caller."""
    for item in items:
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        if item.get_closest_marker("root_first") and params.get("mode") != support_modes.NAMES[0]:
            item.add_marker(pytest.mark.campaign)


@pytest.fixture
def base() -> Iterator[Path]:
    """A fresh private directory of the caller, below nothing that others can write."""
    with places.private_directory() as path:
        yield path


@pytest.fixture(scope="session")
def runsc_old() -> Path:
    """Debian 12's runsc."""
    return release_of(OLD).path


@pytest.fixture(scope="session")
def runsc_new() -> Path:
    """Debian 13's runsc."""
    return release_of(NEW).path


@pytest.fixture(scope="session", params=["old", "new"])
def release(request: pytest.FixtureRequest) -> Release:
    """Both of Debian's releases of runsc in turn."""
    return release_of(OLD if request.param == "old" else NEW)


@pytest.fixture(scope="session")
def today() -> Release:
    """The newest release, with its side binaries."""
    return release_of(releases.TODAY)


@pytest.fixture(scope="session", params=PLACES)
def each_release(request: pytest.FixtureRequest) -> Release:
    """All releases of runsc in turn, and the newest without its side binaries."""
    return release_of(request.param)


@pytest.fixture(scope="session")
def user() -> pwd.struct_passwd:
    """The ordinary user."""
    return support_modes.ordinary_user()


@pytest.fixture(scope="session")
def app() -> Iterator[Path]:
    """A directory for PYTHONPATH with our packages, which every user can import."""
    places.sweep()
    with support_app.installed_app() as path:
        yield path


@pytest.fixture
def modes(app: Path) -> Iterator[dict[str, Mode]]:
    """All kinds of caller by name, each with a fresh private artifact base."""
    with ExitStack() as stack:
        yield {
            name: Mode(name, app, stack.enter_context(support_modes.private_base(name))) for name in support_modes.NAMES
        }


@pytest.fixture(params=support_modes.NAMES)
def mode(request: pytest.FixtureRequest, app: Path) -> Iterator[Mode]:
    """Each kind of caller in turn, with a fresh private artifact base."""
    with support_modes.private_base(request.param) as path:
        yield Mode(request.param, app, path)
