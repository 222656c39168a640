"""Fixtures for sandboxes: made in this process for what the interface does, and as each kind of caller."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import Sandbox
from tests.conftest import Release
from tests.e2e import launching
from tests.e2e.conftest import caller, either, first, newer, no_process_left, subreaper  # noqa: F401
from tests.support import places

MakeSandbox = Callable[..., Sandbox]
Options = dict[str, Any]
"""Keyword arguments, as `SandboxOptions` has them."""


def client() -> int:
    """The one `runsc exec` of this process's sandboxes that has been told in a file what to start: a `popen`'s."""
    (pid,) = (pid for pid in launching.descendants(os.getpid()) if _held(pid, 3).startswith("/memfd:process"))
    return pid


def _held(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


@pytest.fixture(scope="session")
def options(release: Release) -> Iterator[Options]:
    """The runsc and the artifact base of sandboxes that this process makes, for both releases in turn."""
    with places.private_directory() as path:
        yield {"runsc": release.path, "runtime_dir": path}
        assert sorted(p.name for p in path.iterdir()) in ([], ["locks", "records"])
        assert list((path / "locks").iterdir()) == []


@pytest.fixture(scope="session")
def new_options(runsc_new: Path) -> Iterator[Options]:
    """The same for the newer release alone: for what hardly depends on it."""
    with places.private_directory() as path:
        yield {"runsc": runsc_new, "runtime_dir": path}


@pytest.fixture
def make(options: Options, request: pytest.FixtureRequest) -> Iterator[MakeSandbox]:
    """Make sandboxes, which are closed in the end."""
    with ExitStack() as stack:

        def made(**more: Any) -> Sandbox:
            return stack.enter_context(Sandbox(**(options | more)))

        yield made


@pytest.fixture
def box(make: MakeSandbox) -> Sandbox:
    """A sandbox with nothing special, which the test may spoil."""
    return make()
