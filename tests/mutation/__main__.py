"""The kill matrix of the code: each mutant, and the test that fails because of it.

python -m tests.mutation               every mutant with the test that killed it: who survives now
python -m tests.mutation --find        look for a killer of those without one; can be broken off and resumed
python -m tests.mutation --show ID     what a mutant is, and its diff
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from fnmatch import fnmatchcase
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path

from tests.mutation import reach
from tests.mutation.mutants import FILES, Mutant, accounted, mutants
from tests.mutation.nest import TEST_SECONDS, Nest
from tests.support.places import ROOT

MATRIX = Path(__file__).with_name("matrix.json")
KINDS = {
    "tests/model/": "model tests",
    "tests/spec/test_graph_equality.py": "graph equality",
    reach.EXPLORED: "graph equality",
    "tests/conformance/": "replay",
    "tests/hostile/": "hostile",
}
OTHER = "other test"
STATES = {"equivalent": "equivalent", "surviving": "survives"}
LONGEST = 10.0
"""Seconds that any test takes, when nothing else runs."""
COLUMNS = (*dict.fromkeys(KINDS.values()), OTHER, "equivalent", "surviving", "not judged")
Entry = dict[str, object]
"""`what` the mutant is, and `test` with `kind` (and `hung`), or `equivalent` with the reason, or `survives`."""


def kind(test: str) -> str:
    """Which tie the test belongs to."""
    return next((name for place, name in KINDS.items() if test.startswith(place)), OTHER)


def load(path: Path = MATRIX) -> dict[str, Entry]:
    """The matrix: mutant's id -> what became of it."""
    data: dict[str, Entry] = json.loads(path.read_text()) if path.exists() else {}
    return data


def save(matrix: Mapping[str, Entry], order: Iterable[str], path: Path = MATRIX) -> None:
    """One line a mutant, in the order of the code."""
    lines = [f" {json.dumps(id)}: {json.dumps(matrix[id])}" for id in order if id in matrix]
    aside = path.with_suffix(".new")
    aside.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    aside.rename(path)


def differences(matrix: Mapping[str, Entry], present: Sequence[Mutant]) -> list[str]:
    """What the matrix does not say of the present code, each by name; empty when it is up to date."""
    there = {mutant.id: mutant for mutant in present}
    found = [f"{id}: no such mutant any more" for id in matrix if id not in there]
    for id, mutant in there.items():
        entry = matrix.get(id)
        if entry is None:
            found.append(f"{id} has no killer yet ({mutant.what}): python -m tests.mutation --find")
        elif entry["what"] != mutant.what:
            found.append(f"{id} is another mutant now ({mutant.what}; was {entry['what']})")
        elif not (entry.get("test") or entry.get("equivalent")):
            found.append(f"{id} survives: {mutant.what}")
    return found


def table(matrix: Mapping[str, Entry], present: Sequence[Mutant]) -> str:
    """The kill matrix by file."""
    counts = {name: Counter[str]() for name in FILES}
    for mutant in present:
        entry = matrix.get(mutant.id, {})
        state = next((name for name, key in STATES.items() if key in entry), "not judged")
        counts[mutant.file][str(entry["kind"]) if "test" in entry else state] += 1
    lines = [f"{'':30}{'mutants':>9}" + "".join(f"{name:>16}" for name in COLUMNS)]
    for name, row in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        lines.append(f"{name:30}{row.total():9}" + "".join(f"{row[column]:16}" for column in COLUMNS))
    hung = sum(bool(entry.get("hung")) for entry in matrix.values())
    return "\n".join([*lines, f"{hung} of them were killed because a test hung"])


# ---- in a worker process ----

_nest: Nest | None = None


def _nested() -> Nest:
    global _nest
    if _nest is None:
        _nest = Nest()
    return _nest


def _hunt(mutant: Mutant, tests: Sequence[str], seconds: float, longest: float) -> Entry:
    """What becomes of `mutant` in `tests`, which take so many seconds together, and the longest so many."""
    nest = _nested()
    with nest.with_mutant(mutant):
        for part in reach.sessions(tests):
            limit = TEST_SECONDS + int(6 * longest)
            outcome = nest.run(part, seconds=limit + 6 * seconds, test_seconds=limit)
            if not outcome.passed:
                test = outcome.test or part[0]
                entry: Entry = {"what": mutant.what, "kind": kind(test), "test": test}
                return {**entry, "hung": True} if outcome.hung else entry
    return {"what": mutant.what, "survives": f"{len(tests)} tests"}


def _measured(places: Sequence[str]) -> reach.Reach:
    return reach.measure(_nested(), places)


# ---- the ways to run ----


def measure(places: Sequence[str], jobs: int) -> None:
    """Learn which test comes by which line; of the tests in `places` alone, where they are named."""
    known = [reach.load()] if places else []
    with _pool(jobs) as pool:
        for learnt in pool.map(_measured, [[place] for place in places or reach.files(ROOT)]):
            known.append(learnt)
            reach.keep(reach.merged(known))


def find(chosen: Sequence[Mutant], matrix: dict[str, Entry], order: Sequence[str], jobs: int, most: float) -> None:
    """Look for a killer of each of `chosen`; the matrix is written after each."""
    with _pool(jobs) as pool:
        known = reach.load()
        # Who has killed others of the same function is asked first.
        killers: dict[str, Counter[str]] = {}
        for id, entry in matrix.items():
            if entry.get("test"):
                killers.setdefault(_function(id), Counter())[str(entry["test"])] += 1
        waiting = iter(chosen)
        running: dict[Future[Entry], Mutant] = {}

        def submit() -> None:
            if mutant := next(waiting, None):
                like = killers.get(_function(mutant.id), Counter())
                tests = known.tests(mutant, [test for test, _ in like.most_common(5)], most)
                times = [known.seconds[test] for test in tests]
                running[pool.submit(_hunt, mutant, tests, sum(times), max(times, default=0))] = mutant

        for _ in range(jobs):
            submit()
        number = 0
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                mutant, entry = running.pop(future), future.result()
                matrix[mutant.id] = entry
                if entry.get("test"):
                    killers.setdefault(_function(mutant.id), Counter())[str(entry["test"])] += 1
                save(matrix, order)
                number += 1
                result = entry.get("test") or f"SURVIVES {entry['survives']}"
                print(f"{number}/{len(chosen)} {mutant.id}: {result}", flush=True)
                submit()


def _function(id: str) -> str:
    return ":".join(id.split(":")[:2])


def check(chosen: Sequence[Mutant], matrix: Mapping[str, Entry], jobs: int) -> list[str]:
    """The mutants that their recorded killers do not kill any more, by name."""
    killable = [mutant for mutant in chosen if matrix.get(mutant.id, {}).get("test")]
    tests = [[str(matrix[mutant.id]["test"])] for mutant in killable]
    with _pool(jobs) as pool:
        found = list(pool.map(_hunt, killable, tests, repeat(LONGEST), repeat(LONGEST)))
    return [
        f"{mutant.id} survives {test[0]} now: {mutant.what}"
        for mutant, test, entry in zip(killable, tests, found, strict=True)
        if "survives" in entry
    ]


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=_begin)


def _begin() -> None:
    Finalize(None, lambda: _nest.close() if _nest is not None else None, exitpriority=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.mutation", description=__doc__.split("\n")[0])
    parser.add_argument("--find", action="store_true", help="look for a killer of the mutants that have none")
    parser.add_argument("--again", action="store_true", help="also of those that survived before")
    parser.add_argument("--only", metavar="PATTERN", action="append", help="mutants whose id is like this")
    parser.add_argument("--show", metavar="ID", help="what a mutant is, and its diff")
    parser.add_argument("--measure", metavar="TESTS", nargs="*", help="measure anew which test comes by which line")
    parser.add_argument("--seconds", type=float, default=30, help="of tests to try on each, in each session")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    present = mutants(ROOT)
    order = [mutant.id for mutant in present]
    matrix = load()
    if given.show:
        for mutant in present:
            if mutant.id == given.show:
                print(
                    mutant.what,
                    json.dumps(matrix.get(mutant.id)),
                    mutant.diff((ROOT / mutant.file).read_bytes()),
                    sep="\n",
                )
        return 0 if given.show in order else 2
    chosen = [mutant for mutant in present if any(fnmatchcase(mutant.id, p) for p in given.only or ["*"])]
    began = time.monotonic()
    if given.measure is not None or (given.find and not reach.KEPT.exists()):
        measure(given.measure or (), given.jobs)
    if given.find:
        # What is no mutant any more, or has become another, is looked for anew.
        same = {mutant.id: mutant.what for mutant in present}
        matrix = {id: entry for id, entry in matrix.items() if same.get(id) == entry["what"]}
        left = [m for m in chosen if m.id not in matrix or (given.again and "survives" in matrix[m.id])]
        find(left, matrix, order, given.jobs, given.seconds)
        problems: list[str] = []
    else:
        problems = check(chosen, matrix, given.jobs)
    print(table(matrix, present))
    if not given.only:
        ours = {id: entry for id, entry in matrix.items() if accounted(id)}
        problems += differences(ours, [mutant for mutant in present if accounted(mutant.id)])
    for problem in problems:
        print(f"FAILED {problem}")
    seconds = time.monotonic() - began
    print(f"{len(present)} mutants, {len(chosen)} of them asked for, {len(problems)} problems, {seconds:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
