"""`make sweep`: the whole sweep, in every kind of caller; or one point of it."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.bench import DRIVER
from tests.hostile.sweep import pairs, sweep
from tests.hostile.sweep.faults import ERRORS, SIGNALS
from tests.hostile.sweep.sweep import Point, Result
from tests.hostile.sweep.trap import Fault, adopt_orphans
from tests.setup.provision import NEWER, test_base
from tests.support.modes import NAMES
from tests.support.places import private_directory

COLUMNS = {"points": 8, "injections": 12, "alike": 7, "by strace": 11, "violations": 12, "seconds": 9}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.sweep", description=__doc__)
    parser.add_argument("--mode", action="append", choices=NAMES, help="kind of caller; all by default")
    parser.add_argument("--at", metavar="PROCESS:CALL:N", help="this point alone")
    errors = sorted({*SIGNALS, *(name for names in ERRORS.values() for name in names)})
    parser.add_argument("--fault", choices=errors, help="this error or signal alone")
    parser.add_argument("--lasting", action="store_true", help="with --at and --fault: from then on")
    parser.add_argument("--quick", action="store_true", help="one fault a point, and some more at random")
    parser.add_argument("--more", type=int, default=0, metavar="N", help="with --quick: how many more")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="with --quick: which")
    parser.add_argument("--workers", type=int, default=3 * len(os.sched_getaffinity(0)), help="how many at once")
    parser.add_argument("--driver", type=Path, help="the launcher to try, as tests/hostile/driver.py is one")
    parser.add_argument("--before", default="", metavar="CODE", help="Python that spoils the launching process first")
    parser.add_argument("--pairs", action="store_true", help="two signals, at each two calls of an ending")
    parser.add_argument("--no-strace", action="store_true", help="without the part that strace does")
    given = parser.parse_args()
    if given.pairs:
        return _pairs()
    driver = given.driver.read_text() if given.driver else DRIVER
    rest = [*(["--driver", str(given.driver)] if given.driver else [])]
    rest += ["--before", given.before] if given.before else []
    began, bad = time.monotonic(), 0
    total: Counter[str] = Counter()
    print("mode    " + "".join(f"{name:>{width}}" for name, width in COLUMNS.items()), flush=True)
    for mode in given.mode or NAMES:
        with sweep.workers(mode, given.workers, driver=driver, before=given.before) as pool:
            strace = not (given.no_strace or given.at or given.quick or given.driver or given.before)
            result = sweep.run(pool, mode, lambda found: _chosen(given, found), strace=strace)
        bad += len(result.violations)
        total += result.outcomes
        _show(result, rest)
    if given.quick:
        print(f"seed {given.seed}")
    print("ended in: " + ", ".join(f"{name} {count}" for name, count in total.most_common()))
    print(f"{bad} violations, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _pairs() -> int:
    adopt_orphans()  # what an ending leaves
    bad = 0
    with private_directory() as base:
        for name, (work, always) in pairs.kinds(test_base() / NEWER, base).items():
            struck = list(pairs.pairs(work, base, always))
            found = [(at, pairs.problems(name, ended)) for at, ended in struck]
            found = [(at, texts) for at, texts in found if texts]
            bad += len(found)
            print(f"{name:26}{len(struck):5} pairs, {len(found)} violations", flush=True)
            for at, texts in found:
                print(f"  at the calls {at} and {at + 1}: {'; '.join(texts)}")
    return 1 if bad else 0


def _chosen(given: argparse.Namespace, found: Sequence[Point]) -> list[Fault]:
    if given.quick:
        return sweep.quick(found, given.seed, given.more)
    wanted = sweep.everything(found)
    if given.at is not None:
        wanted = [fault for fault in wanted if fault.point == given.at]
        wanted = [fault for fault in wanted if not given.fault or fault.lasting == given.lasting]
    return [fault for fault in wanted if given.fault in (None, fault.what)]


def _show(result: Result, rest: Sequence[str]) -> None:
    injected = (result.injections, result.alike, result.by_strace)
    counts = (result.points, *injected, len(result.violations), round(result.seconds))
    cells = (f"{count:{width}}" for count, width in zip(counts, COLUMNS.values(), strict=True))
    print(f"{result.mode:8}" + "".join(cells), flush=True)
    if result.unreached:
        print(f"  not reached again: {', '.join(sorted({fault.point for fault in result.unreached}))}")
    if result.ended:
        print(f"  {result.ended} times the verified image ran confined, and was ended because the launch then failed")
    for fault, found in result.violations:
        print(f"  {sweep.command(result.mode, fault, *rest)}")
        for text in found:
            print(f"      {text}")


if __name__ == "__main__":
    sys.exit(main())
