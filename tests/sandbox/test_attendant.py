"""The attendant as its owner sees it, when it, or what it runs, does not answer."""

import os
import signal
import time
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import RunscFailed, Sandbox, SandboxGone, _attendant, attendant
from nucleus_gvisor.runtime.attendant import Attendant, Command
from tests.e2e import launching
from tests.sandbox.conftest import MakeSandbox

pytestmark = pytest.mark.real


def test_a_command_that_has_not_ended() -> None:
    """It is waited for no longer than was asked, and can be waited for again."""
    reader, writer = os.pipe()
    command = Command(reader)
    try:
        assert not command.ended(time.monotonic())
        os.write(writer, _attendant.STATUS.pack(7 << 8))
        assert (command.ended(time.monotonic()), command.returncode) == (True, 7)
    finally:
        os.close(writer)
        command.close()


def test_an_attendant_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch whose attendant hangs, its end of the socket open, is given up after a while."""
    monkeypatch.setattr(attendant, "PATIENCE", 0.05)
    it = Attendant()
    other = os.dup(it.theirs.fileno())
    try:
        with pytest.raises(SandboxGone, match="while it was started"):
            it.meet()
    finally:
        os.close(other)
        it.dismiss()


def test_a_sandbox_that_does_not_answer(box: Sandbox) -> None:
    """A question is given up in time, and what asked it ends; once the sandbox goes on, so does its owner."""
    stopped = [pid for pid in launching.descendants(os.getpid()) if b"boot" in _words(pid)]
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    before = launching.descendants(os.getpid())
    try:
        with pytest.raises(RunscFailed, match=r"runsc ps did not answer within 0\.3 s"):
            box._attendant.ask("ps", box._command("ps"), 0.3)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    asked = {pid: what for pid, what in launching.descendants(os.getpid()).items() if before.get(pid) != what}
    assert launching.gone({pid: what for pid, what in asked.items() if "ngv-attendant" not in what}) == {}
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_a_command_of_runscs_that_is_killed(box: Sandbox) -> None:
    """What became of the guest's process is not known then, whoever asks and however often."""
    before = launching.descendants(os.getpid())
    with box.popen(["sleep", "600"]) as process:
        (runsc,) = [p for p in launching.descendants(os.getpid()) if p not in before and b"exec" in _words(p)]
        os.kill(runsc, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(SandboxGone, match="was killed"):
                process.wait()
        process.kill()
        assert process.returncode == 128 + signal.SIGKILL


def _spare(box: Sandbox) -> int:
    """The child that waits to become the next command; it is made a moment after one was started."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        below = launching.descendants(box._attendant._pid)
        if len(below) == 1 and not any(b"exec" in _words(pid) for pid in below):
            return next(iter(below))
        time.sleep(0.01)
    pytest.fail(f"no spare: {below}")


def test_a_command_begins_from_a_spare(box: Sandbox) -> None:
    """Not the first, but the next; it has the sandbox's descriptors and nothing else, and is as any other command."""
    box.exec("true")
    spare = _spare(box)
    held = {os.readlink(path).partition(":")[0] for path in Path(f"/proc/{spare}/fd").iterdir()}
    assert held == {"/dev/null", "socket", "/memfd"}
    with box.popen(["sleep", "600"]) as process:
        assert b"exec" in _words(spare)
        assert box.exec("echo", "beside").stdout == "beside\n"  # from the next, or without one
        process.kill()
    assert box.exec("echo", "after").stdout == "after\n"


def test_a_spare_that_is_killed(box: Sandbox) -> None:
    """The next command is made as the first was, and the one after it from a spare again."""
    box.exec("true")
    first = _spare(box)
    os.kill(first, signal.SIGKILL)
    assert launching.gone({first: launching.descendants(os.getpid()).get(first, "")}) == {}
    assert box.exec("echo", "alive").stdout == "alive\n"
    assert _spare(box) != first


def test_a_spare_ends_with_its_sandbox(make: MakeSandbox) -> None:
    """However that ends: nothing of the attendant's stays."""
    for end in (Sandbox.close, Sandbox.kill, lambda box: os.kill(box._attendant._pid, signal.SIGKILL)):
        box = make()
        box.exec("true")
        spare = _spare(box)
        before = {spare: launching.descendants(os.getpid())[spare]}
        end(box)
        assert launching.gone(before) == {}


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []  # it has ended meanwhile
