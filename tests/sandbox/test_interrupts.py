"""An interruption at every line of what ends a sandbox, and a signal handler that ends it there."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nucleus_gvisor.runtime.sandbox
from nucleus_gvisor.runtime import GuestProcess, Sandbox, TimeoutExpired
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
    """Does `what`, once, before the line of the package's that is the `number`th to be executed in this thread."""

    def __init__(self, number: int, what: Callable[[], object]) -> None:
        self._left, self._what = number, what
        self.where = ""

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        # What cannot be interrupted does not count: an exception there is printed, and goes nowhere.
        if event == "line" and not self.where and not finalizes(frame):
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
            with suppress(KeyboardInterrupt):
                work()
        finally:
            sys.settrace(None)


def finalizes(frame: FrameType | None) -> bool:
    """Is it a finalizer's, or of what that calls."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupt() -> None:
    raise KeyboardInterrupt


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
    assert launching.gone(launching.descendants(os.getpid())) == {}, what
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


def test_a_popen_that_is_interrupted(new_options: Options) -> None:
    """The same, until the caller has it."""
    with Sandbox(**new_options) as box:
        for number in lines(37):
            at = At(number, interrupt)
            got: list[GuestProcess[bytes]] = []
            at.during(lambda got=got: got.append(box.popen(["sleep", "600"])))  # type: ignore[misc]
            if got:
                got[0].kill()
                break
            assert [process for process in box.ps() if process.command == "sleep"] == [], at.where
