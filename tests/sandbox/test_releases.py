"""What differs between releases of runsc, and is the same here with each."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import RunscFailed, Sandbox, run
from nucleus_gvisor.runtime.capture import readable
from nucleus_gvisor.runtime.sandbox import Process, processes
from tests.conftest import OLD, PLACES, Release
from tests.e2e import launching
from tests.sandbox.conftest import Options
from tests.sandbox.test_sentry import sentry
from tests.support import places

pytestmark = pytest.mark.real
SERVICE = ["/bin/sleep", "1000"]
SPIN = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"


@pytest.fixture(scope="module")
def given(each_release: Release) -> Iterator[Options]:
    """Where sandboxes of that release are made."""
    with places.private_directory() as path:
        yield {"runsc": each_release.path, "runtime_dir": path}
        assert places.mounts_below(path) == [] and list((path / "locks").iterdir()) == []


def clients(box: Sandbox) -> list[int]:
    """Those of runsc's commands that wait for their process."""
    found = launching.descendants(os.getpid())
    return [pid for pid in found if b"\0--internal-pid-file\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_sandbox_that_lives(given: Options) -> None:
    """A client waits before it is needed, and is used; `ps` reads what a release's columns are; `stats` is measured."""
    with Sandbox(**given, service=SERVICE) as box:
        _used_client(box)
        assert [(process.pid, process.uid, process.command) for process in box.ps()] == [
            (1, 0, "init"),
            (2, 0, "sleep"),
        ]
        _measured(box)


def _used_client(box: Sandbox) -> None:
    """The first command finds a client that waits, as the later ones do theirs."""
    deadline = time.monotonic() + 60
    while not clients(box):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (waits,) = clients(box)
    pidfd = os.pidfd_open(waits)
    try:
        assert box.exec("echo", "one").stdout == "one\n"
        assert readable(pidfd, time.monotonic() + 60), "another one was used"
    finally:
        os.close(pidfd)


def _measured(box: Sandbox) -> None:
    """The sandbox's own processor time, which rises with what it does, its memory, and no number that nobody knows."""
    before = box.stats()
    box.exec("sh", "-c", SPIN)
    after = box.stats()
    uptime = float(Path("/proc/uptime").read_text().split()[0]) * 1e9
    assert 0 < before["cpu"]["usage"]["total"] < after["cpu"]["usage"]["total"] < uptime * (os.cpu_count() or 1)
    assert 1 << 20 < after["memory"]["usage"]["usage"] < 1 << 30
    assert after["pids"]["current"] == 2
    assert set(after) <= {"cpu", "memory", "pids", "network_interfaces"}
    assert set(after["memory"]) == set(after["memory"]["usage"]) == {"usage"}


def test_files(given: Options) -> None:
    """One agent answers all, of another user than root too; when the guest ends it another does."""
    for user in (0, 7):
        with Sandbox(**given, user=user) as box:
            box.files.write("a/b", os.urandom(200_000), parents=True)
            box.files.move("a/b", "c")
            found = box.files.stat("c")
            assert (found.uid, found.size, found.kind) == (user, 200_000, "file")
            assert [one.name for one in box.files.list()] == ["a", "c"] == [path[11:] for path in box.files.glob("*")]
            box.files.remove("a", recursive=True)
            (agent,) = box._agents.there
            assert [process.pid for process in box.ps()] == [1]
            box.exec("kill", "-9", str(agent))
            assert len(box.files.read("c")) == 200_000 and box._agents.there != {agent}


def test_checkpoint_and_restore(given: Options, base: Path) -> None:
    """The service goes on; one file or three, as the release writes them; the oldest is refused by name."""
    with Sandbox(**given, service=SERVICE) as box:
        if given["runsc"] == PLACES[OLD]:
            with pytest.raises(RunscFailed, match="no image of this release can be restored"):
                box.checkpoint(base / "image")
            return
        box.write_file("/tmp/kept", "kept")
        box.checkpoint(base / "image")
    assert set(os.listdir(base / "image/image")) in (
        {"checkpoint.img"},
        {"checkpoint.img", "pages.img", "pages_meta.img"},
    )
    with Sandbox.restore(base / "image", **given, service=SERVICE) as again:
        assert [process.command for process in again.ps()] == ["init", "sleep"]
        assert again.read_file("/tmp/kept") == b"kept"


@pytest.mark.parametrize("victim", ["companion", "supervisor", "sentry"])
def test_who_is_killed_takes_the_sandbox_along(given: Options, victim: str) -> None:
    """No process of it is left, before anybody has asked for anything."""
    with Sandbox(**given) as box:
        below = launching.descendants(os.getpid())
        companion = next(pid for pid, what in below.items() if what.startswith("ngv-attendant"))
        os.kill({"companion": companion, "supervisor": box.pid, "sentry": sentry(box.pid)}[victim], signal.SIGKILL)
        if victim != "companion":  # which ends when the supervisor has
            del below[companion]
        assert launching.gone(below) == {}
        assert box.wait(60) != 0


def test_alone_it_says_so_in_the_record(given: Options) -> None:
    """A release that belongs beside others runs without them still, and the record warns of it."""
    evidence = run(["true"], **given).record.evidence("ConfineLocked")
    assert ("warning" in evidence) is (given["runsc"].parent.name == "20260831-alone")


def test_the_columns_of_ps() -> None:
    """Whatever they are, those that are needed are found by name; what is no row is none."""
    table = "UID PID PPID PGID C TTY STIME TIME CMD\n0 1 0 1 24 ? 22:27 0s a b\n\n7 2 1 2 0 ? 22:27 0s\nx\n"
    assert processes(table) == [Process(1, 0, 0, "a b"), Process(2, 1, 7, "")]
    assert processes("") == processes("PID\n1\n") == []
