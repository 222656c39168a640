"""What a command has started ends with it, whatever the guest does to be taken for an earlier command's."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, Sandbox, TimeoutExpired
from nucleus_gvisor.runtime import sandbox as module
from nucleus_gvisor.runtime.errors import RunscFailed
from nucleus_gvisor.runtime.sandbox import Process
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options

pytestmark = pytest.mark.real

MARK = "escapee"
"""How a process calls itself that is to end."""
PRELUDE = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def called(name):
    assert libc.prctl(15, name.encode(), 0, 0, 0) == 0  # PR_SET_NAME
def escape():
    called("escapee")
    time.sleep(600)
"""
SIBLING = """
if libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:  # clone, CLONE_PARENT | SIGCHLD
    escape()
"""
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        escape()
    os._exit(0)
"""
WRAP = """
mine = os.getpid()
def live():
    numbers.append(threading.get_native_id())
while True:
    numbers = []
    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    if numbers[0] < mine:
        break
"""
THREAD_EXECUTES = """
def executes():
    time.sleep(1)
    os.execv("/bin/sleep", ["sleep", "600"])
threading.Thread(target=executes).start()
"""
COVERS_PROC = """
if libc.unshare(0x10000000) == 0:  # CLONE_NEWUSER
    libc.mount(b"none", b"/proc", b"tmpfs", 0, None)
    libc.umount2(b"/proc", 2)
"""
BEGUN = """
print("begun", flush=True)
time.sleep(600)
"""


def program(*parts: str) -> list[str]:
    return ["python3", "-c", "".join([PRELUDE, *parts, BEGUN])]


def begun(box: Sandbox, *parts: str) -> Any:
    process = box.popen(program(*parts), stdout=-1)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"begun\n"
    return process


def commands(box: Sandbox) -> list[str]:
    return sorted(process.command for process in box.ps())


@pytest.fixture
def one(new_options: Options) -> Iterator[Sandbox]:
    """A sandbox of one release: for what does not depend on it."""
    with Sandbox(**new_options) as box:
        yield box


@pytest.mark.parametrize(
    "parts",
    [[SIBLING], [SIBLING, DAEMON, THREAD_EXECUTES], [COVERS_PROC, DAEMON]],
    ids=["sibling", "thread", "proc"],
)
def test_what_a_command_has_started_ends_with_it(box: Sandbox, parts: list[str]) -> None:
    """An earlier command's daemon lives on."""
    box.exec("sh", "-c", "(setsid sleep 600 &)")
    begun(box, *parts).kill()
    assert commands(box) == ["init", "sleep"]


def test_what_a_command_has_started_ends_with_its_time(one: Sandbox) -> None:
    """A timeout ends as much as `kill` does."""
    one.exec("sh", "-c", "(setsid sleep 600 &)")
    with pytest.raises(TimeoutExpired):
        one.exec(program(SIBLING, DAEMON), timeout=3)
    assert commands(one) == ["init", "sleep"]


CALLER = """
import sys
from nucleus_gvisor.runtime import Sandbox, TimeoutExpired
with Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None) as box:
    box.exec("sh", "-c", "(setsid sleep 600 &)")
    try:
        box.exec("python3", "-c", sys.argv[3], timeout=3)
    except TimeoutExpired:
        print(box.closed or sorted(process.command for process in box.ps()))
"""


def test_each_kind_of_caller(newer: Caller) -> None:
    """Root, an ordinary user, and one in a user namespace."""
    done = newer.script(CALLER, "".join([PRELUDE, SIBLING, DAEMON, BEGUN]))
    assert done.stdout == "['init', 'sleep']\n", done


def test_a_loop_ends_it_all_too(new_options: Options) -> None:
    """AsyncSandbox ends a command by the same account."""

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            await box.exec("sh", "-c", "(setsid sleep 600 &)")
            with pytest.raises(TimeoutExpired):
                await box.exec(program(SIBLING, DAEMON), timeout=3)
            assert sorted(process.command for process in await box.ps()) == ["init", "sleep"]

    asyncio.run(body())


@pytest.mark.campaign  # a minute and more a release
@pytest.mark.timeout(900)
def test_process_numbers_that_begin_anew(box: Sandbox) -> None:
    """The daemon has a lower number than the command, as an earlier command's has."""
    box.exec("sh", "-c", "(setsid sleep 600 &)")
    for number in range(10):  # some that are free below the command's
        box.exec("true", str(number))
    process = begun(box, WRAP, DAEMON)
    (escaped,) = [each for each in box.ps() if each.command == MARK]
    assert escaped.pid < process.pid
    process.kill()
    assert commands(box) == ["init", "sleep"]


def test_two_that_end_at_once(box: Sandbox) -> None:
    """What ends one of them is not taken for something that the other has detached."""
    commands_ = [begun(box) for _ in range(4)]
    threads = [threading.Thread(target=command.kill) for command in commands_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert commands(box) == ["init"]


@pytest.mark.parametrize("parent", [0, 1])
def test_a_process_without_a_parent(one: Sandbox, monkeypatch: pytest.MonkeyPatch, parent: int) -> None:
    """Newer releases of runsc have none for the child of a clone with CLONE_PARENT, and older ones another."""
    listed = one._ps

    def ps() -> list[Process]:
        return [
            Process(each.pid, parent, each.uid, each.command) if each.command == MARK else each for each in listed()
        ]

    monkeypatch.setattr(one, "_ps", ps)
    one.exec("sh", "-c", "(setsid sleep 600 &)")
    begun(one, SIBLING).kill()
    assert commands(one) == ["init", "sleep"]


def test_a_command_whose_process_has_ended(one: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own start is known by our clock then: what may be of either command ends with the sandbox."""
    one.exec("sh", "-c", "(setsid sleep 600 &)")
    process = begun(one, DAEMON)
    listed = one._ps
    monkeypatch.setattr(one, "_ps", lambda: [each for each in listed() if each.pid != process.pid])
    earliest, latest = one._started(process.command, {each.pid for each in one.ps()})
    start = one._start_time(process.pid)
    assert earliest <= start <= latest
    monkeypatch.setattr(one, "_started", lambda *_: (start - 1_000_000, start + 1_000_000))
    process.kill()
    assert one.closed


def test_a_number_that_is_given_again(one: Sandbox) -> None:
    """A process that has started later than the command, with its number, does not lend it its start."""
    process = begun(one)
    command, listed = process.command, {process.pid}
    start = one._start_time(process.pid)
    assert one._started(command, listed) == (start, start)
    command.sent_at, command.begun_at = command.sent_at - 1000, command.begun_at - 1000
    earliest, latest = one._started(command, listed)
    assert earliest < latest < start - 50_000


def test_a_start_time_that_cannot_be_read(one: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell whose the daemon is: the sandbox ends."""
    one.exec("sh", "-c", "(setsid sleep 600 &)")
    process = begun(one, DAEMON)

    def refused(*_: object) -> int:
        raise RunscFailed("it cannot be read")

    monkeypatch.setattr(one, "_start_time", refused)
    process.kill()
    assert one.closed


def test_a_process_that_forges_a_row(one: Sandbox) -> None:
    """By a line in its name a process gives itself another parent."""
    begun(one, DAEMON, 'called("\\n2 5 1 0 a a a ")').kill()
    assert one.closed or commands(one) == ["init"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"7 (sh) S 0\n",
        b"7 (a) S" + b" 0" * 18 + b" 1" + b" 0" * 30 + b"\n" + b"7 (a) S" + b" 0" * 18 + b" 9" + b" 0" * 30 + b"\n",
        b"8 (a) S" + b" 0" * 18 + b" 9" + b" 0" * 30 + b"\n",
    ],
    ids=["nothing", "short", "two", "another"],
)
def test_what_is_no_start_time(one: Sandbox, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """A line that is not of that process, or of another form, is an error, never a time."""
    monkeypatch.setattr(one, "_run_own", lambda *_, **__: line)
    with pytest.raises(RunscFailed, match="no start time"):
        one._start_time(7)


def test_what_reads_starts_is_no_commands(make: MakeSandbox) -> None:
    """Whatever a command's user, it is another than the reader's, which has no right at all."""
    box = make()
    values = dict(row.split(b":\t", 1) for row in box._run_own("r", "/proc/self/status").splitlines() if b":\t" in row)
    assert set(values[b"Uid"].split()) == {str(module.OURS).encode()}
    assert int(values[b"CapEff"], 16) == 0
