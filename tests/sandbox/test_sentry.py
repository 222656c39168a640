"""The sentry as the kernel sees it: what it could reach if a guest took it over."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import _linux as linux
from tests.conftest import PLACES, Release
from tests.support.modes import NAMES, Mode
from tests.support.pins import pin_of

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


CAPABILITIES = 0x240000 | 0x8141F
"""All that a sentry of any release has of them, in the launch's own user namespace (linux/capability.h)."""
FILES = re.compile(
    r"/dev/null|/memfd:.*|anon_inode:.*|(pipe|socket):.*|/root(/.*)?|/\d+/net/(dev|snmp)|/proc/\d+/net/(dev|snmp)"
)


def test_what_the_sentry_sees(mode: Mode, each_release: Release) -> None:
    """Where --rootless is not passed, nothing but an empty root is mounted in its sight: not the host's /proc.

    It is passed to the one release that does not start without, and only there. Whatever the release, the sentry is
    filtered, gains no privilege, has no capability but a few of its own namespace's, and holds nothing of the host's
    that the guest was not given. The network alternates.
    """
    release, which = each_release, list(PLACES.values()).index(each_release.path)
    network = ("none", "host")[(which + NAMES.index(mode.name)) % 2]
    pin = pin_of(release.path)  # in a user namespace nobody owns it
    with mode.popen([mode.python, "-c", LIVING, release.path, network, pin], stdin=-1) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        supervisor = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        kernel = sentry(pid)
        points = [line.split()[4] for line in Path(f"/proc/{kernel}/mountinfo").read_text().splitlines()]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{kernel}/status").read_text().splitlines())
        held = [os.readlink(path) for path in Path(f"/proc/{kernel}/fd").iterdir()]
        caller.communicate()
    needs = b"--rootless" in supervisor
    assert needs is (release.platform == "ptrace")
    assert points[:2] == ["/", "/proc"] if needs else points == ["/"]
    assert caller.returncode == 0
    assert (status["Seccomp"], status["NoNewPrivs"], status["Groups"].strip()) == ("2", "1", "")
    assert int(status["CapEff"], 16) & ~CAPABILITIES == 0
    assert set(status["Uid"].split()) == {str(mode.account.pw_uid)}
    assert [path for path in held if not FILES.fullmatch(path)] == []
