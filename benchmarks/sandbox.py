"""Measure sandboxes side by side: `make bench`. Medians and minima of one run, and ratios; never a timed assertion.

Against Google's `gvisor` package: start, one exec, another exec, close. Against bare `runsc`, as `run.py` has it: the
whole of `run(["true"])`, and many at once. Each round takes every contender once, in turn. Beside the time on the clock
stands the processors' (user and system, of this process and of all that it has waited for), which a busy machine
changes less; what Google's package leaves to others, for it detaches its sandboxes, is not in it.
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gvisor
from run import bare, shown

from nucleus_gvisor.runtime import GVisorRuntime, Sandbox, arun, run

Figures = dict[str, float]
THREADS = 16


def processors() -> float:
    """Milliseconds of processor time so far."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used) * 1000


@contextmanager
def measured(figures: Figures, name: str) -> Iterator[None]:
    """Add what the block takes to `figures`."""
    began, used = time.perf_counter(), processors()
    yield
    figures[name] = (time.perf_counter() - began) * 1000
    figures[f"{name}, processors"] = processors() - used


def life(make: Callable[[], Any]) -> Figures:
    """One sandbox from start to close."""
    figures: Figures = {}
    with measured(figures, "start + exec + close"):
        with measured(figures, "start"):
            box = make()
        with measured(figures, "exec"):
            box.exec("true")
        with measured(figures, "close"):
            box.close()
    return figures


def execs(make: Callable[[], Any], rounds: int) -> list[Figures]:
    """Commands in one sandbox."""
    rows = []
    box = make()
    for _ in range(rounds):
        figures: Figures = {}
        with measured(figures, "one more exec"):
            box.exec("true")
        rows.append(figures)
    box.close()
    return rows


def whole(function: Callable[[], object]) -> Figures:
    figures: Figures = {}
    with measured(figures, "whole"):
        function()
    return figures


def many(function: Callable[[], object], count: int) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(function) for _ in range(count)]:
            future.result()


def many_on_asyncio(runsc: Path, count: int) -> None:
    async def body() -> None:
        await asyncio.gather(*(arun(["true"], runsc=runsc) for _ in range(count)))

    asyncio.run(body())


def compare(title: str, contenders: dict[str, list[Figures]]) -> None:
    """Print medians and minima; the ratio is of the first contender's to each, both ways of counting."""
    print(f"{title}: milliseconds, median (min .. max)")
    (_, first), *_ = contenders.items()
    for name, rows in contenders.items():
        for key in rows[0]:
            ours, theirs = ([row[key] for row in some] for some in (rows, first))
            middle = statistics.median(ours) / (statistics.median(theirs) or 1)
            ratio = f"{middle:.2f} ({min(ours) / (min(theirs) or 1):.2f})"
            print(f"    {name:14} {key:32} {shown(ours)}   {'' if rows is first else ratio + ' x'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--runsc", type=Path, default=Path(shutil.which("runsc") or "/usr/bin/runsc"))
    given = parser.parse_args()
    os.environ["RUNSC_PATH"] = os.fspath(given.runsc)
    release = GVisorRuntime.with_path(given.runsc).release()
    print(f"runsc {release.version} ({release.default_platform}), {given.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    makers: dict[str, Callable[[], Any]] = {"Google's": gvisor.Sandbox, "ours": lambda: Sandbox(runsc=given.runsc)}
    lives: dict[str, list[Figures]] = {name: [] for name in makers}
    for number in range(given.rounds + 1):
        for name, make in makers.items():
            figures = life(make)
            if number:  # the first round warms up
                lives[name].append(figures)
    compare("A sandbox", lives)
    compare("A command in a sandbox", {name: execs(make, given.rounds) for name, make in makers.items()})

    scratch = Path(tempfile.mkdtemp(prefix="nucleus-gvisor-bench-"))
    try:
        plain = bare(given.runsc, release.default_platform, scratch)
        runs: dict[str, Callable[[], object]] = {
            "bare runsc run": plain,
            "run": lambda: run(["true"], runsc=given.runsc),
        }
        rows: dict[str, list[Figures]] = {name: [] for name in runs}
        for number in range(given.rounds + 1):
            for name, function in runs.items():
                figures = whole(function)
                if number:
                    rows[name].append(figures)
        compare("One command", rows)
        runs = {
            "bare, 16 threads": lambda: many(plain, given.many),
            "run, 16 threads": lambda: many(lambda: run(["true"], runsc=given.runsc), given.many),
            "arun": lambda: many_on_asyncio(given.runsc, given.many),
        }
        compare(f"{given.many} commands at once", {name: [whole(function)] for name, function in runs.items()})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
