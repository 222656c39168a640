"""Sandboxes whose runsc hangs, dies or is interrupted: what was asked for ends, and says how."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from nucleus_gvisor.runtime import (
    AsyncSandbox,
    LifetimeExpired,
    NotFound,
    RunscFailed,
    Sandbox,
    SandboxGone,
    StartFailed,
    TimeoutExpired,
    aio,
    arun,
    run,
)
from nucleus_gvisor.runtime import sandbox as module
from nucleus_gvisor.runtime.capture import Pipes, readable
from nucleus_gvisor.runtime.errors import CopyFailed
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import MakeSandbox, Options, client

pytestmark = pytest.mark.real

FORKED = """
import os, sys
from nucleus_gvisor.runtime import Sandbox
box = Sandbox(runsc=sys.argv[1], pin=sys.argv[2] or None)
if os.fork() == 0:
    sys.exit()
os.wait()
print(box.exec("echo", "alive").stdout, end="")
box.close()
"""
AT_EXIT = """
import asyncio, atexit, sys
from nucleus_gvisor.runtime import AsyncSandbox
async def begin():
    return await AsyncSandbox(runsc=sys.argv[1], pin=sys.argv[2] or None)
def end():
    asyncio.run(box.close())
    print(box.closed)
box = asyncio.run(begin())
atexit.register(end)
"""


def freeze(pid: int) -> None:
    """Stop all the sandbox's processes but the supervisor, as a host without time for them does."""
    for below in launching.descendants(pid):
        os.kill(below, signal.SIGSTOP)


# ---- the start ----


def test_a_guest_that_does_not_start_in_time(new_options: Options, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, run or restored, and nothing of it is left."""
    with Sandbox(**new_options) as box:
        box.checkpoint(base / "image")
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(StartFailed, match="did not start within 0 s"):
        Sandbox(**new_options)
    with pytest.raises(StartFailed, match="was not restored within 0 s"):
        Sandbox.restore(base / "image", **new_options)


def test_a_run_that_is_watched_and_does_not_start(new_options: Options) -> None:
    """Its attendant goes with it."""
    with pytest.raises(NotFound):
        run(["true"], lifetime=10, **(new_options | {"runsc": "/no/runsc"}))


# ---- a command that does not start ----


def test_a_command_that_is_not_heard_of(new_options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run or not: the sandbox ends, in time."""
    with Sandbox(**new_options) as box:
        freeze(box.pid)
        monkeypatch.setattr(module, "PATIENCE", 0.5)
        with pytest.raises(TimeoutExpired):
            box.exec("true", timeout=0.1)
        assert box.wait(timeout=30) == -signal.SIGKILL


def test_interrupted_while_a_command_starts(new_options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt is raised, and the command is not left to start later."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "TREE_PATIENCE", 0.5)
    with Sandbox(**new_options) as box:
        freeze(box.pid)
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                box.exec("true")
        finally:
            signal.signal(signal.SIGALRM, before)
        assert box.wait(timeout=30) == -signal.SIGKILL


def test_a_sandbox_that_ends_while_a_command_starts(new_options: Options) -> None:
    """The sandbox is what is gone, not the program."""
    with Sandbox(**new_options) as box:
        freeze(box.pid)
        killer = threading.Timer(0.3, box.kill)
        killer.start()
        with pytest.raises(SandboxGone):
            box.exec("no-such-program")
        killer.join()


@pytest.mark.parametrize("program", ["true", "no-such-program"])
def test_a_sandbox_that_has_ended_and_not_been_heard_of(new_options: Options, program: str) -> None:
    """Its kernel is gone, and runsc refuses the command before its supervisor has said so; on a loop as well."""

    def end(box: Sandbox) -> None:
        os.kill(box.pid, signal.SIGSTOP)
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in launching.descendants(box.pid)}
        (kernel,) = [pid for pid in words if b"boot" in words[pid]]
        pidfd = os.pidfd_open(kernel)
        os.kill(kernel, signal.SIGKILL)
        assert readable(pidfd, time.monotonic() + 30)
        os.close(pidfd)

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            await box.exec("true")
            end(box._box)
            with pytest.raises(SandboxGone, match="has ended"):
                await box.exec(program)

    with Sandbox(**new_options) as box:
        box.exec("true")  # the supervisor holds the container's lock no longer
        end(box)
        with pytest.raises(SandboxGone, match="has ended"):
            box.exec(program)
        assert box.wait(timeout=30) == -signal.SIGKILL
    asyncio.run(body())


def test_a_program_that_ends_as_a_failing_runsc_does(box: Sandbox) -> None:
    """Its code is told, after a look at the sandbox."""
    assert box.exec("sh", "-c", "echo said; exit 128", check=False).returncode == 128
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_asynchronous_commands_that_do_not_start(new_options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a loop, late and cancelled."""
    monkeypatch.setattr(aio, "PATIENCE", 0.5)
    monkeypatch.setattr(module, "TREE_PATIENCE", 0.5)

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            freeze(box.pid)
            with pytest.raises(TimeoutExpired):
                await box.exec("true", timeout=0.1)
            assert await box.wait() == -signal.SIGKILL
        async with AsyncSandbox(**new_options) as box:
            freeze(box.pid)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await box.exec("true")
            assert await box.wait() == -signal.SIGKILL

    asyncio.run(body())


# ---- a command that runs ----


def guests(box: Sandbox) -> list[str]:
    """What runs in the guest beside its init."""
    return [process.command for process in box.ps() if process.pid != 1]


@pytest.mark.parametrize("how", ["wait", "poll", "communicate", "kill", "send_signal"])
def test_a_client_that_is_killed(box: Sandbox, how: str) -> None:
    """The code of the command is lost with it, and nobody makes one up: the command ends, and the sandbox lives."""
    process = box.popen(["sh", "-c", "sleep 60 & sleep 60"])
    while len(guests(box)) < 3:
        pass
    os.kill(client(), signal.SIGKILL)
    assert readable(process.command.channel, time.monotonic() + 30)
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: process.wait(timeout=30),
        "poll": process.poll,
        "communicate": process.communicate,
        "kill": process.kill,
        "send_signal": process.terminate,
    }
    if how == "kill":
        process.kill()
    else:
        # Whoever asks, and however often, until it is killed, as `communicate` does.
        for call in (calls[how], *(() if how == "communicate" else (process.wait,))):
            with pytest.raises(RunscFailed, match="client of the command was killed"):
                call()
        process.kill()
    assert guests(box) == [] and process.wait() == 137
    assert box.exec("echo", "alive").stdout == "alive\n"


def test_a_client_of_a_command_with_a_daemon_is_killed(box: Sandbox) -> None:
    """Whose the daemon is, nobody can tell any more: the sandbox ends, and that is true when it is said."""
    process = box.popen(["sh", "-c", "(setsid sleep 60 </dev/null >/dev/null 2>&1 &); exec sleep 61"])
    while sum("sleep" in name for name in guests(box)) < 2:
        pass
    os.kill(client(), signal.SIGKILL)
    with pytest.raises(SandboxGone, match="client of a command was killed"):
        process.wait(timeout=30)
    assert box.closed
    process.kill()
    assert process.wait() == 137


def test_the_client_of_an_exec_is_killed(box: Sandbox) -> None:
    """The call ends with an error, and nothing of it runs on."""

    def kill() -> None:
        while not any("sleep" in name for name in guests(box)):
            pass
        for pid in launching.descendants(os.getpid()):
            if b"\0--internal-pid-file\0" in Path(f"/proc/{pid}/cmdline").read_bytes():  # one waits for the next
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunscFailed, match="client of the command was killed"):
        box.exec("sleep", "60")
    killer.join()
    assert guests(box) == [] and box.exec("true").returncode == 0


def test_who_watches_a_limit_is_killed(new_options: Options) -> None:
    """The sandbox of a `run` ends with it, and that is no end of the guest's own."""

    def kill() -> None:
        while not (
            found := [p for p, w in launching.descendants(os.getpid()).items() if w.startswith("ngv-attendant")]
        ):
            pass
        time.sleep(0.5)
        os.kill(found[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SandboxGone, match="who watched its limits was killed"):
        run(["sleep", "60"], lifetime=50, **new_options)
    killer.join()


def test_a_client_that_hangs(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose end is not heard of ends with the whole sandbox."""
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    process = box.popen(["sleep", "60"])
    os.kill(client(), signal.SIGSTOP)
    process.kill()
    assert process.returncode == 137
    assert box.closed


def test_a_signal_that_there_is_not(box: Sandbox) -> None:
    """runsc's answer, as long as the command runs; and the command goes on."""
    with box.popen(["sleep", "60"]) as process:
        with pytest.raises(RunscFailed):
            process.send_signal(999)
        assert repr(process) == f"<GuestProcess ['sleep', '60'] pid={process.pid} returncode=None>"
        process.kill()


def test_a_signal_to_what_has_just_ended(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is nobody's when runsc looks for it, and nothing happens."""
    send = box.signal

    def late(number: int, pid: int | None = None) -> None:
        assert process.wait(timeout=30) == 0
        send(number, pid)

    monkeypatch.setattr(box, "signal", late)
    with box.popen(["sleep", "0.3"]) as process:
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_command_that_ends_with_its_sandbox(make: MakeSandbox) -> None:
    """A client that has heard of the end before us says that the program cannot be executed; it is the sandbox that
    has gone."""
    box = make()
    with box.popen(["true"]) as process:
        process.wait(timeout=30)
    box.close()
    with pytest.raises(SandboxGone, match="has ended"):
        box._refuse(("true",), process.command, Pipes())


def test_another_process_than_the_owner(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has the same descriptors, and would take the answers that are its parent's."""
    monkeypatch.setattr(box, "_owner", 1)
    for call in (box.ps, lambda: box.exec("true")):
        with pytest.raises(SandboxGone, match="belongs to another process"):
            call()


def test_a_copy_that_is_killed(box: Sandbox) -> None:
    """It has no errno, and no data."""
    box.exec("mkfifo", "/tmp/fifo")

    def kill() -> None:
        deadline = time.monotonic() + 30
        while len(box.ps()) < 2 and time.monotonic() < deadline:
            pass
        box.signal(signal.SIGKILL, box.ps()[-1].pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunscFailed, match="copying /tmp/fifo was ended with 137"):
        box.read_file("/tmp/fifo", special=True)
    killer.join()


def test_no_limit_is_blamed_that_was_not_met(make: MakeSandbox) -> None:
    """A sandbox that was killed is gone, whatever it was limited to."""
    box = make(lifetime=600)
    box.kill()
    box.wait(timeout=30)
    with pytest.raises(SandboxGone) as gone:
        box.exec("true")
    assert type(gone.value) is SandboxGone


def test_a_command_that_is_killed_for_the_limit(make: MakeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may kill it before the rest of the sandbox; what it had said is kept."""
    box = make(lifetime=600)
    monkeypatch.setattr(box._process.held, "told", lambda: "lifetime")
    with pytest.raises(LifetimeExpired) as expired:
        box.exec("sh", "-c", "echo said; exit 137", check=False)
    assert expired.value.stdout == "said\n" and box.closed


def test_errors_that_are_kept_hold_no_descriptor(make: MakeSandbox) -> None:
    """Whoever keeps what a sandbox that has gone raised keeps words, and nothing of the system's."""
    box = make()
    os.kill(box.pid, signal.SIGKILL)
    box.wait(timeout=30)
    calls: list[Callable[[], object]] = [
        lambda: box.exec("true", input="x"),
        lambda: box.popen(["true"], stdout=-1),
        lambda: box.popen(["true"], pty=True),
        lambda: box.read_file("/etc/hosts"),
        lambda: box.write_file("/tmp/x", "x"),
        lambda: box._attendant.ask("ps", [b"runsc"]),
    ]
    before, kept = sorted(os.listdir("/proc/self/fd")), []
    for call in calls:
        with pytest.raises(SandboxGone) as gone:
            call()
        kept.append(gone.value)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_fork_of_the_owner_that_exits_leaves_it(first: Caller) -> None:
    """What it drops at its exit is not its own."""
    done = first.script(FORKED)
    assert done.stdout == "alive\n", done.stderr


# ---- asyncio ----


def test_closed_when_the_interpreter_ends(first: Caller) -> None:
    """No thread can be started any more, and the sandbox ends all the same."""
    done = first.script(AT_EXIT)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_an_asynchronous_sandbox_tells_of_itself(new_options: Options) -> None:
    """What `Sandbox` says, and what becomes of a command when it is killed."""

    async def body() -> None:
        async with AsyncSandbox(sandbox_id="named", lifetime=600, **new_options) as box:
            assert (box.id, box.achieved_limits, box.record.states[-1]) == ("named", {"lifetime": "watch"}, "Exec'd")
            assert repr(box) == f"<AsyncSandbox <Sandbox named pid={box.pid}>>"
            process = await box.popen(["sleep", "60"])
            assert repr(process) == f"<AsyncGuestProcess ['sleep', '60'] pid={process.pid} returncode=None>"
            await process.terminate()
            assert await process.wait() == 143
            asyncio.get_running_loop().call_later(1, box.kill)
            with pytest.raises(SandboxGone) as gone:
                await box.exec("sh", "-c", "echo begun; sleep 60")
            assert gone.value.stdout == "begun\n"

    asyncio.run(body())


def test_a_file_that_takes_no_output(new_options: Options, base: Path) -> None:
    """The host's own error is raised, once the guest has ended."""
    (base / "file").touch()
    with (base / "file").open("rb") as unwritable:
        with pytest.raises(CopyFailed, match="Bad file descriptor"):
            run(["echo", "x"], stdout=unwritable, **new_options)
        with pytest.raises(CopyFailed, match="Bad file descriptor"):
            asyncio.run(arun(["echo", "x"], stdout=unwritable, **new_options))


def test_cancelled_work_that_fails_or_never_began() -> None:
    """A cancellation is all that is raised; work that no thread had begun is not begun."""
    free, begun = threading.Event(), []

    def fail() -> NoReturn:
        begun.append("fail")
        free.wait(30)
        raise ZeroDivisionError

    async def body() -> None:
        workers = aio._pool._max_workers
        tasks = [asyncio.create_task(aio._call(fail)) for _ in range(workers)]
        while len(begun) < workers:
            await asyncio.sleep(0.01)
        late = asyncio.create_task(aio._call(lambda: begun.append("late")))
        await asyncio.sleep(0)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        tasks[0].cancel()
        await asyncio.sleep(0)
        free.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] + [ZeroDivisionError] * (workers - 1)

    asyncio.run(body())
    assert set(begun) == {"fail"}
