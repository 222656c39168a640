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
from functools import partial
from pathlib import Path
from typing import Any

import gvisor
from run import bare, shown

from nucleus_gvisor.runtime import GVisorRuntime, Sandbox, arun, run

Figures = dict[str, float]
THREADS = 16
TREE = 1000


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


def timed(name: str, function: Callable[[], object]) -> Figures:
    """What one call takes."""
    figures: Figures = {}
    with measured(figures, name):
        function()
    return figures


def in_turn(contenders: dict[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Each contender's rounds, one of each after the other; the first of each warms up, and does not count."""
    rows: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            figures = measure()
            if number:
                rows[name].append(figures)
    return rows


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


def by_file(box: Any, tree: Path, back: Path, special: bool = False) -> Figures:
    """There and back, a file at a time; `special` ones cost a command each, as all did before there was an agent."""
    figures: Figures = {}
    with measured(figures, "put"):
        for path in filter(Path.is_file, tree.rglob("*")):
            box.write_file(f"/tmp/files/{path.relative_to(tree)}", path.read_bytes(), parents=True, special=special)
    with measured(figures, "get"):
        for path in filter(Path.is_file, tree.rglob("*")):
            box.read_file(f"/tmp/files/{path.relative_to(tree)}", special=special)
    return figures


def one_file(box: Any, special: bool = False) -> Figures:
    """1 kB there and back."""
    figures: Figures = {}
    with measured(figures, "write 1 kB"):
        box.write_file("/tmp/file", bytes(1024), special=special)
    with measured(figures, "read 1 kB"):
        box.read_file("/tmp/file", special=special)
    return figures


def as_tree(box: Any, tree: Path, back: Path) -> Figures:
    """There and back, as a whole."""
    figures: Figures = {}
    with measured(figures, "put"):
        box.put(tree, "/tmp/tree")
    with measured(figures, "get"):
        box.get("/tmp/tree", back)
    shutil.rmtree(back)
    return figures


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
    compare("A sandbox", in_turn({name: partial(life, make) for name, make in makers.items()}, given.rounds))
    boxes = {name: make() for name, make in makers.items()}
    commands = {name: partial(timed, "one more exec", partial(box.exec, "true")) for name, box in boxes.items()}
    compare("A command in a sandbox", in_turn(commands, 5 * given.rounds))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        for number in range(TREE):
            path = tree / str(number % 20) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1024))
        files = {"a command each": partial(one_file, special=True), "the agent": one_file}
        copies = {name: partial(way, boxes["ours"]) for name, way in files.items()}
        compare("A file of 1 kB (at most 2 ms, newest release 1 ms)", in_turn(copies, 5 * given.rounds))
        ways = {"a command each": partial(by_file, special=True), "file by file": by_file, "put and get": as_tree}
        copies = {name: partial(way, boxes["ours"], tree, Path(folder, "back")) for name, way in ways.items()}
        compare(f"A tree of {TREE} files", in_turn(copies, max(1, given.rounds // 7)))
    for box in boxes.values():
        box.close()

    scratch = Path(tempfile.mkdtemp(prefix="nucleus-gvisor-bench-"))
    try:
        plain = bare(given.runsc, release.default_platform, scratch)
        ours = partial(run, ["true"], runsc=given.runsc)
        runs = {"bare runsc run": plain, "run": ours}
        compare("One command", in_turn({n: partial(timed, "whole", f) for n, f in runs.items()}, given.rounds))
        runs = {
            "bare, 16 threads": partial(many, plain, given.many),
            "run, 16 threads": partial(many, ours, given.many),
            "arun": partial(many_on_asyncio, given.runsc, given.many),
        }
        compare(
            f"{given.many} commands at once",
            in_turn({n: partial(timed, "whole", f) for n, f in runs.items()}, max(1, given.rounds // 7)),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
