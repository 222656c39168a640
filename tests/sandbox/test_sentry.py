"""The sentry as the kernel sees it: what it could reach if a guest took it over."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import _linux as linux
from tests.conftest import Release
from tests.support.modes import Mode

pytestmark = pytest.mark.real

LIVING = """
import sys
from nucleus_gvisor.runtime import Sandbox
with Sandbox(runsc=sys.argv[1], network=sys.argv[2], pin=sys.argv[3]) as box:
    print(box.pid, flush=True)
    sys.stdin.read()
"""
"""A caller that keeps a sandbox until its standard input ends."""


def below(pid: int) -> Iterator[int]:
    """The processes below `pid`."""
    for child in linux.children(pid):
        yield child
        yield from below(child)


def sentry(supervisor: int) -> int:
    """The process of a living sandbox in which the guest's kernel is."""
    found = [pid for pid in below(supervisor) if b"\0boot\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("network", ["none", "host"])
def test_the_sentry_sees_no_file_system(mode: Mode, release: Release, network: str) -> None:
    """Where --rootless is not passed, nothing but an empty root is mounted in its sight: not the host's /proc.

    It is passed to the one release that does not start without, and only there.
    """
    pin = hashlib.sha256(release.path.read_bytes()).hexdigest()  # in a user namespace nobody owns it
    with mode.popen([mode.python, "-c", LIVING, release.path, network, pin], stdin=-1) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        supervisor = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        kernel = sentry(pid)
        points = [line.split()[4] for line in Path(f"/proc/{kernel}/mountinfo").read_text().splitlines()]
        caller.communicate()
    needs = b"--rootless" in supervisor
    assert needs is (release.platform == "ptrace")
    assert points[:2] == ["/", "/proc"] if needs else points == ["/"]
    assert caller.returncode == 0
