"""`arun` and `AsyncSandbox`: the same on asyncio, and whenever they are cancelled nothing is left."""

import asyncio
import errno
import gc
import inspect
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.runtime import (
    AsyncSandbox,
    CannotExec,
    GuestFailed,
    NotFound,
    OutputLimit,
    Sandbox,
    SandboxGone,
    TimeoutExpired,
    aio,
    arun,
    run,
)
from tests.e2e import launching
from tests.e2e.launching import Caller
from tests.sandbox.conftest import Options

pytestmark = pytest.mark.real

AS_CALLER = """
import asyncio, sys
from nucleus_gvisor.runtime import AsyncSandbox, arun
options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
async def main():
    done = await arun(["sh", "-c", "cat; id -u; exit 3"], input="in ", **options)
    print(done.returncode, done.stdout.split(), done.achieved, done.record.lines[-1].dest)
    async with AsyncSandbox(env={"A": "1"}, **options) as box:
        print(await box.exec("sh", "-c", "cat; echo $A$B", input="in ", env={"B": "2"}), box.achieved)
        async with await box.popen(["cat"], stdin=-1, stdout=-1) as process:
            print(await process.communicate(b"through"))
        try:
            async with asyncio.timeout(0.5):
                await box.exec("sleep", "60")
        except TimeoutError:
            print([process.command for process in await box.ps()])
    print(box.closed)
asyncio.run(main())
"""
INTERRUPTED = """
import asyncio, sys
from nucleus_gvisor.runtime import AsyncSandbox, arun
options = {"runsc": sys.argv[1], "pin": sys.argv[2] or None}
async def main():
    async with AsyncSandbox(**options) as box:
        says_ready = ["sh", "-c", "echo ready >&2; sleep 60"]
        await asyncio.gather(box.exec("sleep", "60"), arun(says_ready, stderr=2, **options))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


def descriptors() -> list[str]:
    """What this process has open, but for the images that it keeps for the next launch."""
    names = ((name, f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return sorted(name for name, link in names if os.path.lexists(link) and "memfd:runsc" not in os.readlink(link))


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a loop of its own; no descriptor may be left."""
    before = descriptors()
    result = asyncio.run(coroutine)
    end = time.monotonic() + 30
    while descriptors() != before and time.monotonic() < end:
        time.sleep(
            0.01
        )  # a thread that the loop no longer waits for closes what it had; nothing is collected meanwhile
    assert descriptors() == before
    return result


async def commands(box: AsyncSandbox) -> list[str]:
    """The names of the guest's processes but for our own."""
    return [process.command for process in await box.ps() if process.pid != 1]


def test_each_kind_of_caller_with_each_release(either: Caller) -> None:
    """All of it works for root, a user, and a user in a namespace."""
    done = either.script(AS_CALLER)
    assert done.stdout.splitlines() == [
        "3 ['in', '0'] mount-locked Exec'd",
        "<Completed ['sh', '-c', 'cat; echo $A$B'] returncode=0> mount-locked",
        "(b'through', None)",
        "['init']",
        "True",
    ], done.stderr


# ---- run ----


def test_run_is_the_same(new_options: Options, base: Path) -> None:
    """Output, code, input and files, as `run` has them."""

    async def body() -> None:
        script = "cat; echo err >&2; exit 7"
        done = await arun(["sh", "-c", script], input=b"\0\xff", text=False, **new_options)
        assert (done.stdout, done.stderr, done.returncode) == (b"\0\xff", b"err\n", 7)
        with (base / "in").open("w+b") as given, (base / "out").open("wb") as taken:
            given.write(b"x" * 300_000)
            given.seek(0)
            await arun(["cat"], stdin=given, stdout=taken, **new_options)
        assert (base / "out").read_bytes() == b"x" * 300_000
        with pytest.raises(GuestFailed):
            await arun(["false"], check=True, **new_options)
        with pytest.raises(NotFound):
            await arun(["true"], **(new_options | {"runsc": "/no/runsc"}))
        with pytest.raises(ValueError, match="network"):
            await arun(["true"], network="all", **new_options)

    awaited(body())


def test_run_is_bounded(new_options: Options) -> None:
    """In time and in output, and the errors carry what there was."""

    async def body() -> None:
        with pytest.raises(TimeoutExpired) as late:
            await arun(["sh", "-c", "echo begun; trap '' TERM; sleep 60"], timeout=2, **new_options)
        assert str(late.value.stdout) == "begun\n"
        with pytest.raises(OutputLimit) as much:
            await arun(["yes"], max_output=1000, **new_options)
        assert much.value.stdout == "y\n" * 500

    awaited(body())


# ---- a sandbox ----


def test_exec_is_the_same(options: Options) -> None:
    """Pairs, codes, input, limits and typed errors, as `Sandbox.exec` has them; and the sandbox outlives them."""

    async def body() -> None:
        async with AsyncSandbox(**options) as box:
            done = await box.exec("sh", "-c", "cat; echo err >&2", input=b"\0\xff" * 200_000, text=False)
            assert done == (b"\0\xff" * 200_000, b"err\n")
            with pytest.raises(GuestFailed) as failed:
                await box.exec("sh", "-c", "echo out; exit 3")
            assert (failed.value.returncode, failed.value.stdout) == (3, "out\n")
            with pytest.raises(CannotExec, match="no-such-program"):
                await box.exec("no-such-program")
            with pytest.raises(OutputLimit) as much:
                await box.exec("yes", max_output=1000)
            assert much.value.stdout == "y\n" * 500
            with pytest.raises(TimeoutExpired) as late:
                await box.exec("sh", "-c", "echo begun; sleep 60 | sleep 61", timeout=1)
            assert str(late.value.stdout) == "begun\n"
            with pytest.raises(TimeoutExpired):
                await box.exec("sleep", "60", timeout=0)
            assert await commands(box) == []
            many = await asyncio.gather(*(box.exec("echo", str(number)) for number in range(10)))
            assert [done.stdout for done in many] == [f"{number}\n" for number in range(10)]
        with pytest.raises(SandboxGone):
            await box.exec("true")

    awaited(body())


def test_files_and_the_sandbox_as_a_whole(new_options: Options, base: Path) -> None:
    """Files go in and out, and the whole is seen, stopped and signalled."""
    (base / "host").write_bytes(os.urandom(300_000))

    async def body() -> None:
        box = await AsyncSandbox(**new_options)
        await box.write_file("/tmp/x", "data", mode=0o700)
        assert await box.read_file("/tmp/x") == b"data"
        await box.put(base / "host", "/tmp/y")
        await box.get("/tmp/y", base / "back")
        assert (base / "back").read_bytes() == (base / "host").read_bytes()
        with pytest.raises(FileNotFoundError):
            await box.get("/tmp/z", base / "none")
        with pytest.raises(OutputLimit):
            await box.get("/tmp/y", base / "none", max_bytes=1000)
        with pytest.raises(NotADirectoryError):
            await box.put(base / "host", "/tmp/x/y")
        assert sorted(path.name for path in base.iterdir()) == ["back", "host"]
        await box.pause()
        await box.resume()
        process = await box.popen(["sleep", "60"])
        assert await commands(box) == ["sleep"]
        assert (await box.stats())["pids"]["current"] >= 2
        await box.signal(signal.SIGKILL, process.pid)
        assert await process.wait() == 137
        asyncio.get_running_loop().call_later(0.3, box.kill)
        assert await box.wait() == -signal.SIGKILL
        await box.close()
        await box.close()

    awaited(body())


def test_streams(new_options: Options) -> None:
    """Lines and pieces come as they are written, what is written is read, and long lines come in parts."""

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            async with await box.popen(["cat"], stdin=-1, stdout=-1) as process:
                assert process.stdin is not None and process.stdout is not None
                for word in (b"one\n", b"two\n", b"no end"):
                    await process.stdin.write(word)
                assert [await process.stdout.readline(), await process.stdout.read(2)] == [b"one\n", b"tw"]
                process.stdin.close()
                assert [line async for line in process.stdout] == [b"o\n", b"no end"]
            assert process.returncode == 0
            script = f"head -c {aio.MAX_LINE + 5} /dev/zero | tr '\\0' x; echo"
            async with await box.popen(["sh", "-c", script], stdout=-1) as process:
                assert process.stdout is not None
                assert [len(line) async for line in process.stdout] == [aio.MAX_LINE, 6]
            with pytest.raises(KeyError):
                async with await box.popen(["cat"], stdin=-1) as process:
                    raise KeyError
            assert process.returncode == 137
            process = await box.popen(["sh", "-c", "cat; echo err >&2"], stdin=-1, stdout=-1, stderr=-1)
            assert await process.communicate(b"x" * 300_000) == (b"x" * 300_000, b"err\n")
            process = await box.popen(["yes"], stdout=-1)
            with pytest.raises(OutputLimit):
                await process.communicate(max_output=1000)
            process = await box.popen(["sh", "-c", "echo begun; sleep 60"], stdout=-1)
            with pytest.raises(TimeoutExpired) as late:
                await process.communicate(timeout=1)
            assert late.value.stdout == b"begun\n"
            assert await commands(box) == []

    awaited(body())


def test_an_endless_printer_does_not_keep_the_loop(new_options: Options) -> None:
    """Others run, and the reader can be cancelled."""

    async def body() -> None:
        async with AsyncSandbox(**new_options) as box:
            turns = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), await box.popen(["yes"], stdout=-1) as process:
                    assert process.stdout is not None
                    async for _ in process.stdout:
                        turns += 1
            assert turns > 0
            assert await commands(box) == []

    awaited(body())


def test_it_starts_once_and_must(new_options: Options) -> None:
    """Misuse is told."""

    async def body() -> None:
        box = AsyncSandbox(**new_options)
        with pytest.raises(RuntimeError, match="not started"):
            await box.exec("true")
        await box.close()
        async with box:
            with pytest.raises(RuntimeError, match="once"):
                await box

    awaited(body())


def test_signatures() -> None:
    """What `run` and `Sandbox` take and have, their twins take and have."""
    assert inspect.signature(arun).parameters == inspect.signature(run).parameters
    for name, method in inspect.getmembers(AsyncSandbox, inspect.iscoroutinefunction):
        if not name.startswith("_") and name not in ("popen", "wait"):  # no text, and no second way to time out
            assert inspect.signature(method).parameters == inspect.signature(getattr(Sandbox, name)).parameters, name
        assert name.startswith("_") or inspect.getdoc(method), name


# ---- the end ----


async def life(options: Options) -> None:
    """All that can be awaited, one after the other."""
    async with AsyncSandbox(**options) as box:
        await box.exec("sh", "-c", "sleep 60 & echo; cat", input="x", check=False)
        async with await box.popen(["sh", "-c", "echo; sleep 0.2"], stdout=-1) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"\n"
        await box.write_file("/tmp/x", "x")
        await asyncio.gather(box.ps(), box.exec("sleep", "0.2"), box.exec("true"))
    await arun(["sleep", "0.2"], **options)


async def endless(options: Options) -> None:
    """The same, and then nothing: whoever cancels it is never too late."""
    await life(options)
    await asyncio.sleep(600)


Cancelled = Callable[[Options, float], Coroutine[Any, Any, None]]


async def by_cancel(options: Options, after: float) -> None:
    task = asyncio.create_task(endless(options))
    await asyncio.sleep(after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(options: Options, after: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after):
            await endless(options)


async def twice(options: Options, after: float) -> None:
    task = asyncio.create_task(endless(options))
    await asyncio.sleep(after)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.005)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.timeout(900)
@pytest.mark.parametrize("moments", [4, pytest.param(30, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("cancelled", [by_cancel, by_timeout, twice])
def test_cancelled_at_any_moment(new_options: Options, cancelled: Cancelled, moments: int) -> None:
    """When the cancellation is over, no process and no descriptor is left."""
    began = time.monotonic()
    asyncio.run(life(new_options))
    whole = time.monotonic() - began
    chance = random.Random(f"{cancelled.__name__} {moments}")
    gc.collect()  # what tests that failed have left is not ours
    before = descriptors(), launching.gone(launching.descendants(os.getpid()))
    assert before[1] == {}
    for moment in range(moments):
        after = chance.random() * whole * 0.7
        awaited(cancelled(new_options, after))
        left = descriptors(), launching.gone(launching.descendants(os.getpid()), 0.5)
        assert left == before, f"moment {moment}, after {after:.3f} s"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("number", range(5))
def test_the_loop_is_closed_early(new_options: Options, number: int, caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that nobody will run any more ends its guest when it is thrown away; an open sandbox says so."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # which says that a task was destroyed
    before = descriptors()
    loop = asyncio.new_event_loop()
    task = loop.create_task(life(new_options))
    loop.run_until_complete(asyncio.sleep(0.05 + number * 0.3))
    loop.close()
    del task
    end = time.monotonic() + 30
    while descriptors() != before and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    assert descriptors() == before
    assert launching.gone(launching.descendants(os.getpid())) == {}


def test_interrupted(newer: Caller) -> None:
    """KeyboardInterrupt ends all guests, and is raised."""
    process = newer.mode.popen(
        [newer.mode.python, "-W", "error", "-c", INTERRUPTED, os.fspath(newer.runsc), newer.pin or ""]
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    below = launching.descendants(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert launching.gone(below) == {}


def test_a_forked_child_has_threads_of_its_own(new_options: Options) -> None:
    """It does not wait for those that its parent had."""
    asyncio.run(arun(["true"], **new_options))
    pid = os.fork()
    if pid == 0:
        try:
            code = asyncio.run(arun(["sh", "-c", "exit 3"], **new_options)).returncode
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_two_that_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hear that there is something, and one has it; the other goes on waiting. An error is no end."""

    async def body() -> None:
        reader, writer = os.pipe()
        with open(reader, "rb") as file, open(writer, "wb", buffering=0) as other:
            output = aio.Output(file)
            tasks = [asyncio.create_task(output.read()) for _ in range(2)]
            await asyncio.sleep(0)
            other.write(b"one")
            done, waiting = await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [b"one"]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
            other.write(b"two")
            assert [await task for task in waiting] == [b"two"]
            other.write(b"three")

            def broken(*_: object) -> bytes:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

            monkeypatch.setattr(os, "read", broken)
            with pytest.raises(OSError, match="memory"):
                await output.read()
            monkeypatch.undo()

    asyncio.run(body())
