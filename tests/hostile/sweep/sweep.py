"""The sweep: every system call of a launch, every fault that it can have, in every kind of caller.

The points are discovered: a launch without a fault is traced, and each of its calls from the first path touched to the
moment where the launch has become a sandbox is one, named by the process that makes it, the call, and which one of that
name it is. At each point every error that the call can return is injected, once and from then on, and SIGKILL and
SIGTERM. Where no call of that name came after the one that failed, to fail from then on is the same, and is not done
again.
"""

import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from nucleus_gvisor.runtime.steps import confine
from tests.hostile.bench import DRIVER, Bench, Witness, compiled
from tests.hostile.sweep.by_strace import Strace, chosen
from tests.hostile.sweep.faults import ERRORS, SIGNALS
from tests.hostile.sweep.judge import Expected, violations
from tests.hostile.sweep.trap import WAITS, Fault
from tests.support.app import installed_app
from tests.support.modes import NAMES, NAMESPACE_MODE, Mode, private_base
from tests.support.places import ROOT

T = TypeVar("T")
_BOOT = """\
import sys
sys.path += sys.argv[3].split(":")
from tests.hostile.sweep import warm
warm.main(sys.argv[1], int(sys.argv[2]))
"""
SECONDS = 40.0
"""For a launch and the one after it, which take a twentieth of a second: more is a hang."""
ATTEMPTS = 4
"""How often a point is tried that a launch does not reach each time: two processes run at once."""


def call_numbers() -> dict[str, int]:
    """This machine's system calls by name, from its own headers."""
    command = ["gcc", "-E", "-dM", "-include", "asm/unistd.h", "-x", "c", "/dev/null"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    words = [line.split() for line in lines if line.startswith("#define __NR_")]
    return {name.removeprefix("__NR_"): int(number) for _, name, number in (w for w in words if len(w) == 3)}


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Worker:
    """A warm process for one mode, with a probe, a witness and an artifact base of its own."""

    def __init__(self, mode: Mode, folder: Path, driver: str, before: str, seconds: float) -> None:
        self._witness = Witness()
        probe = compiled("probe", folder, f"-DWITNESS={self._witness.port}")
        bench = Bench(mode.base, probe, self._witness, mode)
        canaries = [path for path in (*map(os.fsdecode, confine.CANARIES), mode.python) if Path(path).exists()]
        self.expected = Expected(_digest(bench.runsc), frozenset(map(_digest, canaries)))
        given = json.loads(bench.command(before=before)[-1])
        self.strace = Strace(bench, mode, given, driver)
        setting = {
            "canaries": sorted(self.expected.canaries),
            "cwd": str(mode.base),
            "digest": self.expected.digest,
            "driver": driver,
            "env": mode.unmeasured(),
            "gid": mode.account.pw_gid,
            "given": given,
            "namespace": mode.name == NAMESPACE_MODE,
            "numbers": call_numbers(),
            "seconds": seconds,
            "uid": mode.account.pw_uid,
        }
        path = folder / "setting"
        path.write_text(json.dumps(setting))
        listening = self._witness.fileno()
        self._process = subprocess.Popen(
            [mode.python, "-s", "-S", "-P", "-c", _BOOT, path, str(listening), f"{mode.app}:{ROOT}"],
            cwd=mode.base,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            pass_fds=[listening],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any] | None) -> Any:
        """The answer of `warm.main`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the sweep's own process died: {self._process.wait()}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer

    def close(self) -> None:
        self._process.communicate()
        self._witness.close()


@contextmanager
def _in_memory(folder: Path) -> Iterator[Path]:
    """A directory in `folder` that is as private, on a tmpfs: not to wait for a disk takes a third off each launch."""
    if os.geteuid():
        yield folder
        return
    status = folder.stat()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "sweep", os.fspath(folder)], check=True)
    try:
        inner = folder / "base"
        inner.mkdir(0o700)
        os.chown(inner, status.st_uid, status.st_gid)
        yield inner
    finally:
        subprocess.run(["umount", "--lazy", os.fspath(folder)], check=True)


@contextmanager
def workers(
    name: str, count: int, *, driver: str = DRIVER, before: str = "", seconds: float = SECONDS
) -> Iterator[list[Worker]]:
    """`count` warm processes for the mode `name`. `before` spoils the launcher; `seconds` are what it may take."""
    with ExitStack() as stack:
        app = stack.enter_context(installed_app())
        made = []
        for _ in range(count):
            base = stack.enter_context(_in_memory(stack.enter_context(private_base(name))))
            folder = stack.enter_context(private_base(NAMES[0]))
            made.append(Worker(Mode(name, app, base), folder, driver, before, seconds))
            stack.callback(made[-1].close)
        yield made


Point = tuple[str, str, int]


def points(calls: Iterable[Sequence[str]]) -> list[Point]:
    """The points of a launch with these calls, in order."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for role, call in calls:
        counts[role, call] += 1
        found.append((role, call, counts[role, call]))
    return found


def faults(point: Point) -> Iterator[Fault]:
    """All that is injected at a point."""
    role, call, number = point
    for error in ERRORS.get(call, ()):
        yield Fault(role, call, number, error)
        yield Fault(role, call, number, error, lasting=True)
    for name in SIGNALS:
        yield Fault(role, call, number, name)


def everything(found: Iterable[Point]) -> list[Fault]:
    """All that is injected at these points."""
    return [fault for point in found for fault in faults(point)]


@dataclass
class Result:
    """What one mode's sweep found."""

    mode: str
    points: int = 0
    injections: int = 0
    alike: int = 0
    """Faults that were to last and are no others than those that do not: no call of that name came after."""
    by_strace: int = 0
    unreached: list[Fault] = field(default_factory=list)
    """What no launch came to: how often the parent looks whether its child is ready is chance."""
    violations: list[tuple[Fault | None, list[str]]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    """Launches of which the image ran, verified and confined, and which then failed, and were ended."""
    seconds: float = 0.0


def discover(pool: Sequence[Worker], result: Result) -> dict[Point, bool]:
    """Every point that any of a few launches has, and whether every launch has it: all had, and nobody waits there."""
    found: Counter[Point] = Counter()
    launches = 0
    for worker in pool:
        for _ in range(2):
            told = worker.ask(None)
            found.update(points(told["calls"]))
            launches += 1
            if told["violations"] and not result.violations:
                result.violations.append((None, told["violations"]))
    result.points = len(found)
    return {point: count == launches and point[0] != WAITS for point, count in found.items()}


def share(pool: Sequence[Worker], work: Callable[[Worker, T], None], items: Iterable[T]) -> None:
    """Have the workers do the work, each what is next."""
    pending, lock, problems = iter(list(items)), threading.Lock(), list[BaseException]()

    def loop(worker: Worker) -> None:
        try:
            while not problems:
                with lock:
                    try:
                        item = next(pending)
                    except StopIteration:
                        return
                work(worker, item)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=loop, args=[worker]) for worker in pool]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def inject(pool: Sequence[Worker], result: Result, wanted: Iterable[Fault], found: Mapping[Point, bool]) -> None:
    """Inject them all. A point that every launch has and this one does not come to is a violation as well."""
    lock = threading.Lock()
    pairs: dict[Fault, list[Fault]] = {}
    for fault in wanted:
        pairs.setdefault(replace(fault, lasting=False), []).append(fault)

    def pair(worker: Worker, faults: Sequence[Fault]) -> None:
        for fault in sorted(faults, key=lambda fault: fault.lasting):
            if not one(worker, fault) and not fault.lasting and len(faults) > 1:
                with lock:
                    result.alike += 1
                return

    def one(worker: Worker, fault: Fault) -> bool:
        """Could it have been injected a second time."""
        for _ in range(ATTEMPTS):
            told = worker.ask(vars(fault))
            if told["hit"] or told["violations"]:
                break
        unmade = not told["hit"] and found.get((fault.role, fault.call, fault.number), True)
        with lock:
            result.injections += told["hit"]
            problems = list(told["violations"])
            if not told["hit"]:
                result.unreached.append(fault)
                if unmade:
                    problems.append("no launch comes to this point any more")
            if problems:
                result.violations.append((fault, problems))
            if told["hit"]:
                result.outcomes[told["outcome"]] += 1
                result.ended += told["ran"] > 0 and told["outcome"] not in ("exit 0", "killed")
        return bool(told["more"] or not told["hit"] or problems)

    share(pool, pair, pairs.values())


def compare(pool: Sequence[Worker], result: Result) -> None:
    """Have strace inject what it can single out: the invariant holds there as well, and the end is the same."""
    lock = threading.Lock()

    def one(worker: Worker, item: tuple[Fault, int]) -> None:
        fault, number = item
        seen = worker.strace.inject(fault, number)
        problems = [f"by strace: {text}" for text in violations(seen, worker.expected)]
        told = worker.ask(vars(fault))
        if seen.outcome != told["outcome"]:
            problems.append(f"by strace it ends in {seen.outcome}, otherwise in {told['outcome']}")
        with lock:
            result.by_strace += 1
            if problems:
                result.violations.append((fault, problems))

    share(pool, one, chosen(pool[0].strace.calls()))


def run(
    pool: Sequence[Worker],
    mode: str,
    choose: Callable[[Sequence[Point]], Iterable[Fault]] = everything,
    *,
    strace: bool = False,
) -> Result:
    """One mode's sweep, over the faults that `choose` wants of the points found."""
    began, result = time.monotonic(), Result(mode)
    found = discover(pool, result)
    if not found:
        raise RuntimeError("nothing to sweep: the driver makes no marks (sched_yield) around its launch")
    inject(pool, result, choose(list(found)), found)
    if strace:
        compare(pool, result)
    result.seconds = time.monotonic() - began
    return result


def quick(found: Sequence[Point], seed: int, more: int) -> list[Fault]:
    """One fault for each point, and some more at random; the same ones for the same seed."""
    chance = random.Random(seed)
    first = [chance.choice(list(faults(point))) for point in found]
    others = everything(found)
    return list(dict.fromkeys([*first, *chance.sample(others, min(more, len(others)))]))


def command(mode: str, fault: Fault | None, *rest: str) -> str:
    """What to type to see it again."""
    words = [os.path.relpath(sys.executable), "-m", "tests.hostile.sweep", "--mode", mode]
    if fault is not None:
        words += ["--at", fault.point, "--fault", fault.what, *(["--lasting"] if fault.lasting else [])]
    return shlex.join([*words, *rest])
