"""Many sandboxes at once, from threads and from asyncio: each is right, and nothing is left."""

import asyncio
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from nucleus_gvisor.runtime import AsyncSandbox, Sandbox, arun, run
from tests.e2e import launching
from tests.sandbox.conftest import Options
from tests.sandbox.test_aio import descriptors
from tests.support.places import mounts_below

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
THREADS = 16
PLATFORM = "ptrace"
"""An idle sandbox on systrap costs 3 % of a processor (runsc 20240729, with nothing of ours around it): a hundred would
keep two processors busy with nothing."""
COUNTS = [8, pytest.param(100, marks=pytest.mark.campaign)]


def all_live(count: int) -> None:
    """There is one supervisor for each, and one attendant."""
    names = Counter(what.split()[0] for what in launching.descendants(os.getpid()).values())
    # The client that waits ahead is runsc as well, and is the attendant until it is.
    assert names["memfd:runsc"] + names["runsc"] >= count and names["ngv-attendant"] >= count, names


def nothing_left(options: Options, before: list[str]) -> None:
    assert launching.gone(launching.descendants(os.getpid())) == {}
    assert descriptors() == before
    assert mounts_below(options["runtime_dir"]) == []
    assert not any((options["runtime_dir"] / "locks").iterdir())


@pytest.mark.parametrize("count", COUNTS)
def test_from_threads(new_options: Options, count: int) -> None:
    """Sixteen threads make them, use all of them while all live, and close them."""
    before = descriptors()
    together = threading.Barrier(THREADS + 1)
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> list[str]:
        boxes: list[tuple[int, Sandbox]] = []
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                boxes.append((number, Sandbox(env={"N": str(number)}, platform=PLATFORM, **new_options)))
            together.wait()
            together.wait()
            for number, box in boxes:
                box.write_file("/tmp/n", str(number))
            return [box.exec("sh", "-c", "echo $N $(cat /tmp/n)").stdout for _, box in boxes]
        except BaseException:
            together.abort()
            raise
        finally:
            for _, box in boxes:
                box.close()

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pool.submit(work) for _ in range(THREADS)]
        try:
            with suppress(threading.BrokenBarrierError):
                together.wait()
                all_live(count)
                together.wait()
        except BaseException:
            together.abort()  # nobody is waited for any more: else a count that is wrong would never be told
            raise
        failed = [error for future in found if (error := future.exception()) is not None]
        assert [error for error in failed if not isinstance(error, threading.BrokenBarrierError)] == []
        said = [line for future in found for line in future.result()]
    assert sorted(said) == sorted(f"{number} {number}\n" for number in range(count))
    nothing_left(new_options, before)


@pytest.mark.parametrize("count", COUNTS)
def test_from_asyncio(new_options: Options, count: int) -> None:
    """The same in one thread's loop, which starts no thread for any of them."""
    before = descriptors()

    async def body() -> list[str]:
        together = asyncio.Barrier(count)
        threads: list[int] = []

        async def work(number: int) -> str:
            async with AsyncSandbox(env={"N": str(number)}, platform=PLATFORM, **new_options) as box:
                if await together.wait() == 0:
                    all_live(count)
                    threads.append(threading.active_count())
                await together.wait()  # a command's process is an attendant too, until it is runsc
                await box.write_file("/tmp/n", str(number))
                return str((await box.exec("sh", "-c", "echo $N $(cat /tmp/n)")).stdout)

        said = await asyncio.gather(*map(work, range(count)))
        assert count < 50 or threads[0] < 30
        return said

    assert asyncio.run(body()) == [f"{number} {number}\n" for number in range(count)]
    nothing_left(new_options, before)


@pytest.mark.parametrize("count", COUNTS)
def test_runs(new_options: Options, count: int) -> None:
    """And runs, from both."""
    before = descriptors()
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(lambda number: run(["echo", str(number)], **new_options).stdout, range(count)))
    assert done == [f"{number}\n" for number in range(count)]

    async def body() -> list[str]:
        return [
            one.stdout for one in await asyncio.gather(*(arun(["echo", str(n)], **new_options) for n in range(count)))
        ]

    assert asyncio.run(body()) == done
    nothing_left(new_options, before)
