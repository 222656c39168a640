"""What runsc says for itself: never on a stream that the caller gave a command, nor in what a command wrote."""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, CannotExec, Sandbox
from tests.conftest import OLD, PLACES, Release
from tests.sandbox.conftest import Options
from tests.support import places

pytestmark = pytest.mark.real

MANY = 6
"""Commands whose runsc could each be the one that hears of the sandbox's end before its own."""


@pytest.fixture(scope="module")
def every_options(each_release: Release) -> Iterator[Options]:
    with places.private_directory() as path:
        yield {"runsc": each_release.path, "runtime_dir": path}


class Stream:
    """A stream of the caller's, and what was written to it."""

    def __init__(self) -> None:
        self._reader, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def said(self) -> bytes:
        os.close(self.fd)
        with open(self._reader, "rb") as file:
            return file.read()


def _close(box: Sandbox) -> None:
    box.close()


def _kill(box: Sandbox) -> None:
    box.kill()
    assert box.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("end", [_close, _kill])
def test_a_sandbox_that_ends_before_its_commands(every_options: Options, end: Callable[[Sandbox], None]) -> None:
    """However its owner ends it, nothing is said of that."""
    stream = Stream()
    with Sandbox(**every_options) as box:
        running = [box.popen(["sleep", "600"], stdout=stream.fd, stderr=stream.fd) for _ in range(MANY)]
        end(box)
        for process in running:
            process.kill()
    assert stream.said == b""


def test_an_async_sandbox_that_ends_before_its_commands(new_options: Options) -> None:
    """The same."""
    stream = Stream()

    async def work() -> None:
        async with AsyncSandbox(**new_options) as box:
            for _ in range(MANY):
                await box.popen(["sleep", "600"], stdout=stream.fd, stderr=stream.fd)

    asyncio.run(work())
    assert stream.said == b""


def test_a_command_that_cannot_be_started(every_options: Options) -> None:
    """Whoever asked is told why, whatever the command's standard error was to be; releases before 2024 have one alone
    for both."""
    apart = Path(every_options["runsc"]) != PLACES[OLD]
    with Sandbox(**every_options) as box:
        with pytest.raises(CannotExec) as refused:
            box.exec("no-such-program")
        assert refused.value.errno == errno.ENOENT and b"no such file" in refused.value.output
        stream = Stream()
        with pytest.raises(CannotExec) as refused:
            box.popen(["no-such-program"], stderr=stream.fd)
        assert (refused.value.errno == errno.ENOENT, b"no such file" in stream.said) == (apart, not apart)


def test_a_supervisor_that_is_killed(new_options: Options) -> None:
    """By anybody: its commands' runsc say so where nobody reads it."""
    stream = Stream()
    with Sandbox(**new_options) as box:
        running = [box.popen(["sleep", "600"], stderr=stream.fd) for _ in range(MANY)]
        os.kill(box.pid, signal.SIGKILL)
        for process in running:
            process.kill()
    assert stream.said == b""
