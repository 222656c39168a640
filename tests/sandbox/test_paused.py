"""Commands that are started while a sandbox is paused."""

import asyncio
import threading
import time

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, Sandbox, SandboxGone, TimeoutExpired
from tests.sandbox.conftest import Options

pytestmark = pytest.mark.real


def _waits(box: Sandbox) -> None:
    """Wait until a command waits at the gate."""
    end = time.monotonic() + 60
    while not (box._gate is not None and box._gate._users):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command_waits_until_the_sandbox_goes_on(box: Sandbox) -> None:
    """It runs then; its time counts meanwhile, and files wait as commands do."""
    box.exec("true")
    box.pause()
    with pytest.raises(TimeoutExpired):
        box.exec("echo", "x", timeout=0.2)
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(box.exec("echo", "one").stdout)),
        threading.Thread(target=lambda: answers.append(str(box.popen(["true"]).wait()))),
        threading.Thread(target=lambda: answers.append(box.read_file("/proc/sys/kernel/hostname").decode())),
    ]
    for thread in threads:
        thread.start()
    _waits(box)
    assert answers == []
    box.resume()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["0", "gvisor\n", "one\n"]
    assert box.exec("echo", "after").stdout == "after\n"


def test_a_paused_sandbox_that_is_closed(box: Sandbox) -> None:
    """Whoever waits is told that it has gone."""
    box.pause()
    told: list[BaseException] = []

    def work() -> None:
        try:
            box.exec("true")
        except SandboxGone as error:
            told.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    _waits(box)
    box.close()
    thread.join()
    assert len(told) == 1


def test_on_asyncio(options: Options) -> None:
    """The same; other tasks go on meanwhile."""

    async def work() -> None:
        async with AsyncSandbox(**options) as box:
            await box.pause()
            with pytest.raises(TimeoutExpired):
                await box.exec("echo", "x", timeout=0.2)
            waiting = asyncio.create_task(box.exec("echo", "x"))
            await asyncio.sleep(0)
            assert not waiting.done()
            await box.resume()
            assert (await waiting).stdout == "x\n"
            await box.pause()
            waiting = asyncio.create_task(box.exec("echo", "x"))
            await asyncio.sleep(0)
            await box.close()
            with pytest.raises(SandboxGone):
                await waiting

    asyncio.run(work())
