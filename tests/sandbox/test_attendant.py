"""The attendant as its owner sees it, when it, or what it runs, does not answer."""

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from nucleus_gvisor.runtime import CannotExec, RunscFailed, Sandbox, SandboxGone, TimeoutExpired, _attendant, attendant
from nucleus_gvisor.runtime.attendant import Attendant, Command
from nucleus_gvisor.runtime.capture import Pipes, readable
from tests.e2e import launching
from tests.sandbox.conftest import MakeSandbox, client

pytestmark = pytest.mark.real

Result = TypeVar("Result")


def test_a_command_that_has_not_ended() -> None:
    """It is waited for no longer than was asked, and can be waited for again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = Command(ours)
    with theirs:
        assert not command.ended(time.monotonic())
        theirs.send(_attendant.STATUS.pack(7 << 8))
        assert (command.ended(time.monotonic()), command.returncode) == (True, 7)


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
    with box.popen(["sleep", "600"]) as process:
        os.kill(client(), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(RunscFailed, match="was killed"):
                process.wait()
        process.kill()
        assert process.returncode == 128 + signal.SIGKILL


def _ahead(box: Sandbox, count: int = 1) -> dict[int, str]:
    """The clients of runsc's that wait for what they are to start, once there are `count` and nothing else runs."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        below = launching.descendants(box._attendant._pid)
        if len(below) == count and all(b"exec" in _words(pid) for pid in below):
            return below
        time.sleep(0.01)
    pytest.fail(f"not {count} ahead: {below}")


def test_a_client_waits_ahead(box: Sandbox) -> None:
    """The next command's, which has its streams and nothing else of anybody's; it becomes a command like any other."""
    for number in range(3):
        (ahead,) = found = _ahead(box)
        assert os.readlink(f"/proc/{ahead}/fd/0") == "/dev/null"
        held = [os.readlink(f"/proc/{ahead}/fd/{fd}").partition(":")[0] for fd in range(5)]
        assert held == ["/dev/null", "pipe", "pipe", "pipe", "pipe"]
        script = "pwd; id -u; echo $NAME; echo to >&2; test -p /dev/stdin || echo none; exit 3"
        done = box.exec("sh", "-c", script, cwd="/tmp", user=(7, 7), env={"NAME": str(number)}, check=False)
        assert (done.stdout, done.stderr, done.returncode) == (f"/tmp\n7\n{number}\nnone\n", "to\n", 3)
        assert launching.gone(found) == {}


def test_one_waits_for_each_kind(box: Sandbox) -> None:
    """One with something to read and one without; streams of the caller's own are for those that are not ahead."""
    (other,) = _ahead(box)
    assert box.exec("cat", input="x").stdout == "x"
    both = _ahead(box, 2)
    (fed,) = both.keys() - {other}
    box.exec("true")
    assert fed in _ahead(box, 2)
    with box.popen(["sleep", "600"]) as process:
        assert box.exec("cat", input="y" * 200_000).stdout == "y" * 200_000
        assert launching.gone({fed: both[fed]}) == {}
        process.kill()
    assert fed not in _ahead(box, 2)
    assert box.exec("cat", input=b"", text=False).stdout == b""


def test_several_at_once(box: Sandbox) -> None:
    """One of them has what waits ahead, and each has its own answer."""
    _ahead(box)
    with ThreadPoolExecutor(8) as pool:
        for number, done in enumerate(pool.map(lambda number: box.exec("echo", str(number)), range(32))):
            assert done.stdout == f"{number}\n"
    _ahead(box)


def test_what_is_refused_ahead(box: Sandbox) -> None:
    """No such program, and no such directory: in runsc's words, as without one that waits."""
    _ahead(box)
    with pytest.raises(CannotExec, match="no-such-program"):
        box.exec("no-such-program")
    with pytest.raises(CannotExec, match="no-such-program"):
        box.exec("no-such-program")
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_a_process_that_is_too_long_for_a_pipe(box: Sandbox) -> None:
    """It is read from a file, by a client of its own."""
    found = _ahead(box)
    for size in (60_000, 70_000, 120_000):
        assert box.exec("sh", "-c", "echo ${#LONG}", env={"LONG": "x" * size}).stdout == f"{size}\n"
    assert launching.gone(found) == {}
    _ahead(box)


def test_one_ahead_that_is_killed(box: Sandbox) -> None:
    """The next command does without, and the one after it does not."""
    (first,) = found = _ahead(box)
    os.kill(first, signal.SIGKILL)
    assert launching.gone(found) == {}
    assert box.exec("echo", "alive").stdout == "alive\n"
    assert first not in _ahead(box)


def test_one_ahead_that_is_killed_with_its_command(box: Sandbox) -> None:
    """It was told what to start and had not read it: another starts it, and its owner hears of nothing."""
    for words, answer in ((["echo", "alive"], "alive\n"), (["sh", "-c", "cat; exit 3"], "")):
        (ahead,) = _ahead(box)
        os.kill(ahead, signal.SIGSTOP)
        asked = _process(box, words)
        held: list[Command] = []
        box._attendant.exec(held, box._exec, asked)
        (process,) = held
        os.kill(ahead, signal.SIGKILL)
        assert readable(process.channel, time.monotonic() + 60)
        ends: list[int] = []
        process.begun(2, ends.extend)
        out, err = ends
        assert process.pid is not None
        assert process.ended(time.monotonic() + 60)
        assert (process.returncode, os.read(out, 100).decode()) == (3 if "sh" in words else 0, answer)
        for fd in (out, err, asked):
            os.close(fd)
    assert box.exec("echo", "alive").stdout == "alive\n"
    with pytest.raises(CannotExec):
        box.exec("no-such-program")


def _process(box: Sandbox, words: list[str]) -> int:
    """A file with a process, as `Sandbox` makes it."""
    file = os.memfd_create("process", os.MFD_CLOEXEC)
    os.write(file, json.dumps(box._request.process(words, None, None, None)).encode())
    return file


def test_one_ahead_that_is_stopped(box: Sandbox) -> None:
    """It is one that does not answer: the command is given up in time, and what had been started with it goes."""
    (ahead,) = _ahead(box)
    os.kill(ahead, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (ahead, signal.SIGCONT)).start()
    with pytest.raises(TimeoutExpired):
        box.exec("sleep", "600", timeout=0.1)
    assert [process.command for process in box.ps()][1:] == []
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_one_ahead_ends_with_its_sandbox(make: MakeSandbox) -> None:
    """However that ends: nothing of the attendant's stays."""
    for end in (Sandbox.close, Sandbox.kill, lambda box: os.kill(box._attendant._pid, signal.SIGKILL)):
        box = make()
        found = _ahead(box)
        end(box)
        assert launching.gone(found) == {}


def test_an_attendant_without_descriptors(box: Sandbox) -> None:
    """What is asked then is refused with the reason, and the sandbox goes on."""
    _ahead(box)
    pid = box._attendant._pid
    calls = (
        lambda: box.exec("cat", input="x"),
        lambda: box.popen(["true"]),
        box.ps,
    )
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    free = [number for number in range(1024) if number not in used]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    for room in (1, 2, 4):  # for the channel alone, for some of what comes with it, and for that alone
        for call in calls:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[room], hard))
            try:
                with pytest.raises(RunscFailed, match="no runsc could be started beside the sandbox: Too many open"):
                    call()
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_a_command_that_nobody_wants_and_that_failed(box: Sandbox) -> None:
    """Its failure does not take the place of what made it unwanted, and nothing is to be ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.send(_attendant.FAILED + b"24")
        box._unsend([Command(ours)], Pipes())
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_an_attendant_that_does_not_end(make: MakeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, or when waiting for it is interrupted: it is killed, and its commands with it.

    No descriptor is needed for that, when this process has none left.
    """
    monkeypatch.setattr(attendant, "FAREWELL", 0.2)
    box = make()
    process = box.popen(["sleep", "600"])
    before = launching.descendants(os.getpid())
    assert client() in before and process.runs
    os.kill(box._attendant._pid, signal.SIGSTOP)
    box.close()
    assert launching.still(before) == {}  # none is left when it returns, and not a moment later
    box = make()
    before = launching.descendants(os.getpid())
    monkeypatch.setattr(attendant.Attendant, "_ends", interrupted)
    with pytest.raises(KeyboardInterrupt):
        box.close()
    assert launching.gone(before) == {}
    monkeypatch.undo()
    box = make()
    before = launching.descendants(os.getpid())
    ends = attendant.Attendant._ends
    monkeypatch.setattr(attendant.Attendant, "_ends", lambda self, pidfd: with_room(0, ends, self, pidfd))
    box.close()
    assert launching.gone(before) == {}


def with_room(count: int, function: Callable[..., Result], *args: object) -> Result:
    """What `function` returns where only `count` more descriptors can be had."""
    free = []
    for _ in range(count + 1):
        free.append(os.dup(0))
    for fd in free:
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        return function(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def interrupted(*_: object) -> bool:
    raise KeyboardInterrupt


def test_no_room_for_the_ends_of_a_command(box: Sandbox) -> None:
    """Its owner has no descriptors left: the command ends, nothing stays open, and the sandbox goes on."""
    _ahead(box)
    held = sorted(os.listdir("/proc/self/fd"))
    begun = Command.begun
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr(Command, "begun", lambda *given: with_room(1, begun, *given))  # for one end of two
        box.exec("sleep", "600")
    assert sorted(os.listdir("/proc/self/fd")) == held
    assert [process.command for process in box.ps()][1:] == []
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_no_room_for_its_link() -> None:
    """What was made of it is closed."""
    held = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Too many open files"):
        with_room(2, attendant.Attendant)
    assert sorted(os.listdir("/proc/self/fd")) == held


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []  # it has ended meanwhile
