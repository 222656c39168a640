"""What a launch with today's set of runsc may cost, and what it does: `make bench`. Never a timed assertion.

Each row has its bound beside it. Times are medians of interleaved pairs, and so are ratios, pair by pair: a drift of
the machine's speed meets both alike. The set is kept on disk, in a cache of the benchmark's own; what the very first
launch costs, which makes and syncs it, is a row too.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import gvisor
from run import bare

from nucleus_gvisor.runtime import GVisorRuntime, Sandbox, run

TEN, THREADS, IDLE = 10, 20, 5.0
FIRST = """
import sys, time
from nucleus_gvisor.runtime import run
began = time.perf_counter()
run(["true"], runsc=sys.argv[1], check=True)
print((time.perf_counter() - began) * 1000)
"""
"""A process whose first call is measured: what Python and the imports take is the command line's row."""

Action = Callable[[], object]


def milliseconds(action: Action) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def first_call(runsc: Path) -> float:
    done = subprocess.run([sys.executable, "-c", FIRST, runsc], check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def command(runsc: Path, *words: str) -> None:
    argv = [sys.executable, "-m", "nucleus_gvisor.runtime.cli", *words[:1], "--runsc", os.fspath(runsc), *words[1:]]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def life(make: Callable[[], Sandbox | gvisor.Sandbox]) -> None:
    box = make()
    box.exec("true")
    box.close()


def at_once(action: Action) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(action) for _ in range(THREADS)]:
            future.result()


def pairs(one: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of both, and of the ratio of the second to the first; the first round warms up."""
    rows = [(one(), other()) for _ in range(rounds + 1)][1:]
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    return middle[0], middle[1], statistics.median(b / a for a, b in rows)


def ratio(name: str, bound: float | None, figures: tuple[float, float, float]) -> None:
    first, second, times = figures
    limit = "" if bound is None else f"   (at most {bound:g})"
    print(f"{name:52} {second:9.1f} ms against {first:9.1f} ms: {times:5.2f} x{limit}", flush=True)


def figure(name: str, value: float, unit: str, bound: str = "") -> None:
    print(f"{name:52} {value:9.1f} {unit}{f'   ({bound})' if bound else ''}", flush=True)


# ---- memory ----


def shared() -> float:
    """MiB of shared memory that the machine has in use, meminfo(5)."""
    [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:")]
    return int(line.split()[1]) / 1024


def ours() -> dict[str, list[int]]:
    """The processes beside gVisor's own that living sandboxes have, by kind."""
    found: dict[str, list[int]] = {"companion": [], "waiting client": []}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            name, words = Path(f"/proc/{pid}/comm").read_text().strip(), Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if name == "ngv-attendant":
            found["companion"].append(pid)
        elif b"\0exec\0" in words:
            found["waiting client"].append(pid)
    return found


def private(pid: int) -> float:
    """MB that no other process has, proc(5), smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def ticks(pid: int) -> int:
    """Processor time so far, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def living(runsc: Path, count: int) -> Iterator[list[Sandbox]]:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: Sandbox(runsc=runsc), range(count)))
        for box in boxes:
            stack.callback(box.close)
        list(pool.map(lambda box: (box.exec("true"), box.files.stat("/")), boxes))
        time.sleep(1)  # until what is started ahead of the next command waits
        yield boxes


def memory(runsc: Path, hundred: int) -> None:
    before = shared()
    with living(runsc, TEN):
        figure("ten sandboxes: shared memory, all together", shared() - before, "MiB", "below 100")
        processes = ours()
        used = {pid: ticks(pid) for pids in processes.values() for pid in pids}
        sizes = {kind: statistics.mean(map(private, pids)) for kind, pids in processes.items()}
        for kind, size in sizes.items():
            figure(f"a {kind}: private memory, mean of {len(processes[kind])}", size, "MB")
        figure("both together", sum(sizes.values()), "MB", "below 10")
        time.sleep(IDLE)
        busy = sum(ticks(pid) - before_ for pid, before_ in used.items())
        figure(f"both, of ten, idle for {IDLE:g} s: processor time", busy, "ticks", "0")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "nucleus_gvisor.runtime.cli", "run", "--runsc", runsc, "--", "sleep", "3"],
        stdin=subprocess.DEVNULL,
    )
    time.sleep(2)
    figure("a waiting command line: private memory", private(waiting.pid), "MB", "below 8")
    waiting.wait()
    if hundred:
        before = shared()
        with living(runsc, hundred) as boxes:
            figure(f"{len(boxes)} sandboxes: shared memory, all together", shared() - before, "MiB")


# ---- time ----


def execs(runsc: Path, rounds: int) -> tuple[float, float, float]:
    rows = []
    for _ in range(rounds):
        with Sandbox(runsc=runsc) as box:
            rows.append([milliseconds(lambda box=box: box.exec("true")) for _ in range(2)])  # type: ignore[misc]
    first, second = (statistics.median(column) for column in zip(*rows, strict=True))
    return second, first, statistics.median(a / b for a, b in rows)


def very_first(runsc: Path, scratch: Path) -> float:
    """Milliseconds of a first call that has the set to make, sync and ask."""
    cache = Path(tempfile.mkdtemp(dir=scratch))
    kept = os.environ["NUCLEUS_GVISOR_CACHE"]
    os.environ["NUCLEUS_GVISOR_CACHE"] = os.fspath(cache)
    try:
        return first_call(runsc)
    finally:
        os.environ["NUCLEUS_GVISOR_CACHE"] = kept
        shutil.rmtree(cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hundred", type=int, default=100, help="sandboxes that live at once; 0 leaves that out")
    parser.add_argument("--runsc", type=Path, required=True, help="runsc of a set, with gvisor-bin beside it")
    given = parser.parse_args()
    runsc, rounds = given.runsc.resolve(), given.rounds
    above = Path(os.environ.get("NUCLEUS_GVISOR_CACHE", Path.home() / ".cache"))
    above.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="nucleus-gvisor-bench-", dir=above))
    # As where a package is installed: its code is compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = os.fspath(scratch / "compiled")
    os.environ |= {"RUNSC_PATH": os.fspath(runsc), "NUCLEUS_GVISOR_CACHE": os.fspath(scratch / "cache")}
    try:
        release = GVisorRuntime.with_path(runsc).release()
        print(f"runsc {release.version} ({release.default_platform}), {rounds} pairs, load {os.getloadavg()[0]:.1f}")
        (scratch / "bundle").mkdir()
        plain = bare(runsc, release.default_platform, scratch / "bundle")
        alone: Callable[[], float] = lambda: plain()["whole"]  # noqa: E731
        warm = partial(run, ["true"], runsc=runsc)
        firsts = [very_first(runsc, scratch) for _ in range(max(1, rounds // 4))]
        warm()
        ratio('warm run(["true"]) against bare runsc', 1.15, pairs(alone, partial(milliseconds, warm), rounds))
        bare_guest = partial(milliseconds, partial(run, ["true"], runsc=runsc, etc="none"))
        without, with_, _ = pairs(bare_guest, partial(milliseconds, warm), rounds)
        figure("what a guest's own /etc, HOME and workspace add to it", with_ - without, "ms", "at most 3")
        ratio("first call in a process", 1.6, pairs(alone, partial(first_call, runsc), rounds))
        cold = partial(milliseconds, partial(command, runsc, "run", "--", "true"))
        ratio("cold command line", 2.5, pairs(alone, cold, rounds))
        figure("the very first launch, which makes the set", statistics.median(firsts), "ms")
        many = [partial(milliseconds, partial(at_once, action)) for action in (plain, warm)]
        ratio(f"{THREADS} at once from threads", 1.25, pairs(*many, max(1, rounds // 2)))  # type: ignore[call-arg]
        makers: list[Callable[[], Sandbox | gvisor.Sandbox]] = [gvisor.Sandbox, partial(Sandbox, runsc=runsc)]
        lives = [partial(milliseconds, partial(life, make)) for make in makers]
        ratio("Sandbox: start, exec, close against Google's", 0.8, pairs(*lives, rounds))  # type: ignore[call-arg]
        ratio("its first exec against its second", None, execs(runsc, rounds))
        shutil.rmtree(scratch / "cache/answers", ignore_errors=True)
        figure("doctor", milliseconds(partial(command, runsc, "doctor", "--again")), "ms", "below 2000")
        figure("doctor again", milliseconds(partial(command, runsc, "doctor")), "ms", "below 500")
        memory(runsc, given.hundred)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
