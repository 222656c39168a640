"""An interruption at every line of what ends a sandbox, and a signal handler that ends it there."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dis import opmap
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nucleus_gvisor.runtime.sandbox
from nucleus_gvisor.runtime import (
    AsyncSandbox,
    GuestProcess,
    GVisorOciRunOptions,
    GVisorRuntime,
    Limits,
    OciBundle,
    Platform,
    Sandbox,
    TimeoutExpired,
    arun,
    run,
)
from tests.e2e import launching
from tests.sandbox.conftest import Options

# Between `open` and its `with` a strike leaves a file or a socket to Python, which closes it, and would rather be told.
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Exception ignored in.*(FileIO|socket):pytest.PytestUnraisableExceptionWarning"),
]

PACKAGE = os.fspath(Path(nucleus_gvisor.runtime.sandbox.__file__).parent) + "/"
ALL = os.environ.get("NUCLEUS_GVISOR_LINES") == "all"


class At:
    """Does `what`, once, before the line of the package's that is the `number`th to be executed in this thread, from
    the one on where function `since` is called."""

    def __init__(self, number: int, what: Callable[[], object], since: str = "") -> None:
        self._left, self._what, self._since = number, what, since
        self.where = ""

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if frame.f_code.co_qualname == self._since:
            self._since = ""
        return self._line

    def _line(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        # What cannot be interrupted does not count: an exception there is printed, and goes nowhere.
        if event == "line" and not self.where and not self._since and not idles(frame) and not finalizes(frame):
            self._left -= 1
            if self._left == 0:
                self.where = f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                self._what()
        return self._line

    def during(self, work: Callable[[], object]) -> None:
        """`work`, in which it happens; what it raises of that is its own."""
        sys.settrace(self)
        try:
            with suppress(KeyboardInterrupt, asyncio.CancelledError):
                work()
        finally:
            sys.settrace(None)


def idles(frame: FrameType) -> bool:
    """Is it a `try:` that does nothing: no signal is looked for there, so the compiler lets no handler cover it."""
    return frame.f_code.co_code[frame.f_lasti] == opmap["NOP"]


def finalizes(frame: FrameType | None) -> bool:
    """Is it a finalizer's, or of what that calls."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupt() -> None:
    raise KeyboardInterrupt


def press() -> None:
    """Ctrl-C, which asyncio turns into a cancellation of its first task."""
    signal.raise_signal(signal.SIGINT)


def descriptors() -> dict[str, str]:
    """What this process holds open, but for what looks at it."""
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {name: what for name, what in found.items() if not what.startswith(f"/proc/{os.getpid()}/fd")}


def lines(step: int) -> Iterator[int]:
    """Lines to strike, every `step`th from the first on: the caller leaves when there are no more."""
    number = 1
    while True:
        yield number
        number += 1 if ALL else step


def sound(options: Options, before: dict[str, str], what: str) -> None:
    """Nothing is left of a sandbox that was closed."""
    assert launching.descendants(os.getpid()) == {}, what  # at once: whoever says that it has ended has seen it
    assert before.items() <= descriptors().items(), what  # none of another's was closed
    assert list((options["runtime_dir"] / "locks").iterdir()) == [], what


def test_a_close_that_is_interrupted(new_options: Options) -> None:
    """On every line: the next one goes on, and nothing is left or closed twice."""
    Sandbox(**new_options).close()
    for number in lines(11):
        before = descriptors()
        box = Sandbox(**new_options)
        at = At(number, interrupt)
        at.during(box.close)
        box.close()
        box.close()
        sound(new_options, before, at.where)
        assert box.closed
        del box
        if not at.where:
            break


def test_a_handler_that_closes_what_is_being_closed(new_options: Options) -> None:
    """On every line: neither waits for the other, and nothing is closed twice."""
    Sandbox(**new_options).close()
    for number in lines(13):
        before = descriptors()
        box = Sandbox(**new_options)

        def handler(box: Sandbox = box) -> None:
            box._process.send_signal(15)
            box.kill()
            box.close()
            assert box.closed

        at = At(number, handler)
        at.during(box.close)
        assert box.closed
        sound(new_options, before, at.where)
        del box, handler
        if not at.where:
            break


def test_a_command_that_is_interrupted(new_options: Options) -> None:
    """On every line of its start and its wait: nothing of it runs on, and the sandbox does."""
    with Sandbox(**new_options) as box:

        def work() -> None:
            with suppress(TimeoutExpired):
                box.exec("sleep", "600", timeout=0.3)

        work()
        for number in lines(97):
            before = descriptors()
            at = At(number, interrupt)
            at.during(work)
            assert not box.closed, at.where
            left = [process for process in box.ps() if process.command == "sleep"]
            assert left == [] and box.exec("echo", "on").stdout == "on\n", at.where
            # Where an end has just changed hands it is left to the process's end: two of them at most.
            assert len(descriptors().keys() - before.keys()) <= 3, at.where
            if not at.where:
                break


@pytest.mark.parametrize(("since", "step"), [("", 67), ("GuestProcess.__init__", 5)])
def test_a_popen_that_is_interrupted(new_options: Options, since: str, step: int) -> None:
    """The same, until the caller has it; above all from where the process runs, and nobody else knows of it."""
    with Sandbox(**new_options) as box:
        for number in lines(step):
            at = At(number, interrupt, since)
            got: list[GuestProcess[bytes]] = []
            at.during(lambda got=got: got.append(box.popen(["sleep", "600"])))  # type: ignore[misc]
            if got:
                got[0].kill()
                break
            assert [process for process in box.ps() if process.command == "sleep"] == [], at.where


# ---- endings of what has ended, and of what does not live on ----


def test_a_wait_that_is_interrupted(new_options: Options) -> None:
    """Of a sandbox that ends by itself, on every line: the next one has its code, and closing it leaves nothing."""
    Sandbox(**new_options).close()
    for number in lines(67):
        before = descriptors()
        box = Sandbox(**new_options)
        at = At(number, interrupt)
        box.kill()
        at.during(box.wait)
        assert box.wait(60) == -signal.SIGKILL, at.where
        box.close()
        sound(new_options, before, at.where)
        del box
        if not at.where:
            break


@pytest.mark.parametrize("watched", [False, True])
def test_an_end_that_is_interrupted(new_options: Options, watched: bool) -> None:
    """Of a launch that nobody attends, or that its own limit has one for: the next one goes on."""
    runtime = GVisorRuntime.with_path(new_options["runsc"])
    options = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=new_options["runtime_dir"])
    limits = Limits(lifetime=600) if watched else None
    bundle = OciBundle.build(["sleep", "600"])
    runtime.spawn("first", bundle, options, limits=limits).end()
    for number in lines(29):
        before = descriptors()
        process = runtime.spawn("struck", bundle, options, limits=limits)
        at = At(number, interrupt)
        at.during(process.end)
        process.end()
        sound(new_options, before, at.where)
        assert process.returncode == -signal.SIGKILL and process.problems == (), at.where
        del process
        if not at.where:
            break


@pytest.mark.parametrize("seconds", [None, 0.1])
def test_a_run_that_is_interrupted_as_it_ends(new_options: Options, seconds: float | None) -> None:
    """From the line on where its guest is waited for: nothing outlives it."""

    def work() -> None:
        with suppress(TimeoutExpired):
            run(["true"] if seconds is None else ["sleep", "600"], timeout=seconds, **new_options)

    work()
    for number in lines(61):
        before = descriptors()
        at = At(number, interrupt, since="Capture.run")
        at.during(work)
        sound(new_options, before, at.where)
        if not at.where:
            break


# ---- on asyncio ----


def awaited(work: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], object]:
    """`work` in a loop of its own."""

    async def alone() -> object:
        return await work()

    return lambda: asyncio.run(alone())


@pytest.mark.parametrize("how", [interrupt, press])
@pytest.mark.parametrize("what", ["close", "wait"])
def test_an_async_sandbox_whose_ending_is_interrupted(
    new_options: Options, what: str, how: Callable[[], object]
) -> None:
    """On every line of the loop's: it can be closed again, by another loop, and nothing is left."""

    async def made() -> AsyncSandbox:
        return await AsyncSandbox(**new_options)

    asyncio.run(asyncio.run(made()).close())
    for number in lines(7 if what == "close" else 131):
        before = descriptors()
        box = asyncio.run(made())
        at = At(number, how)
        if what == "wait":
            box.kill()
        at.during(awaited(getattr(box, what)))
        asyncio.run(box.close())
        sound(new_options, before, at.where)
        assert box.closed
        del box
        if not at.where:
            break


@pytest.mark.parametrize("how", [interrupt, press])
@pytest.mark.parametrize("seconds", [None, 0.1])
def test_an_async_run_that_is_interrupted_as_it_ends(
    new_options: Options, seconds: float | None, how: Callable[[], object]
) -> None:
    """From the line on where its guest is waited for: nothing outlives it."""

    async def work() -> None:
        with suppress(TimeoutExpired):
            await arun(["true"] if seconds is None else ["sleep", "600"], timeout=seconds, **new_options)

    asyncio.run(work())
    for number in lines(17):
        before = descriptors()
        at = At(number, how, since="_copied")
        at.during(awaited(work))
        sound(new_options, before, at.where)
        if not at.where:
            break
