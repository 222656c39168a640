"""Which tests come by which lines: who may kill a mutant, and what it costs to ask."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest
from coverage import Coverage, CoverageData

from tests.mutation.mutants import FILES, Mutant
from tests.mutation.nest import Nest
from tests.setup.provision import test_base

KEPT = test_base() / "mutation-reach.json"
SESSIONS = (
    (
        "tests/model", "tests/spec/test_graph_equality.py", "tests/spec/test_trace.py",
        "tests/conformance/test_graph.py", "tests/runtime",
    ),
    ("tests/conformance",),
    (
        "tests/hostile", "tests/e2e", "tests/sandbox/test_default_guest.py", "tests/sandbox/test_results.py",
        "tests/sandbox/test_writable.py",
    ),
)  # fmt: skip
"""In the order of their cost. What one process can run without one test disturbing the next."""
LEFT_OUT = ("test_doctor.py", "test_explain.py", "test_sweep.py", "test_reference_launcher.py")
"""They come by much of a launch, look at little of it or at something else, and take long."""
EXPLORED = "tests/conformance/test_graph.py::test_explored_graph_is_the_specification_s"
"""The table and the environment have the specification's graph: the quick part of graph equality."""
EQUALITY = (EXPLORED, "tests/spec/test_graph_equality.py::test_machine_has_exactly_the_steps_of_the_graph")
REPLAYS = tuple(
    f"tests/conformance/test_replay.py::test_{name}"
    for name in ("every_action_and_every_launch", "what_the_image_itself_may_do", "what_is_not_found_out")
)
"""They go through every action of a launch, and look at it from outside."""
FEW = 8


@dataclass
class Reach:
    """What a run of all tests showed."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Test -> how long it takes."""
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """File -> test -> lines of the file that it comes by, itself or in its children."""

    def tests(self, mutant: Mutant, first: Sequence[str], most: float) -> list[str]:
        """Tests that come by the mutant's lines; in each session first those in `first`, then those that are quick, and
        come by lines of the same function where few others do, as by what a check refuses with.

        No more in each session than took `most` seconds, but always those that go through everything.
        """
        by_test = self.lines.get(mutant.file, {})
        if ":module:" in mutant.id:  # a constant is read in all of them
            found = set(by_test)
        else:
            found = {test for test, lines in by_test.items() if not set(lines).isdisjoint(mutant.lines)}
        if mutant.file.startswith("model/"):  # a launch on the real kernel is no judge of the model
            always: tuple[str, ...] = EQUALITY
            found = {test for test in found if _session(test) == 0}
        else:
            always = REPLAYS
        found |= {test for test in self.seconds if test.startswith(always)}
        kept = [test for test in dict.fromkeys((EXPLORED, *first)) if test in found]
        scope = set(mutant.scope)
        visitors = Counter(line for test in found for line in by_test.get(test, ()) if line in scope)
        rarest = {test: min((visitors[n] for n in by_test.get(test, ()) if n in scope), default=0) for test in found}
        spent = [0.0] * len(SESSIONS)
        for test in sorted(
            found - set(kept), key=lambda test: (_session(test), (rarest[test] or 999) * self.seconds[test])
        ):
            spent[_session(test)] += self.seconds[test]
            if spent[_session(test)] < most or test.startswith(always):
                kept.append(test)
        return kept


def files(root: Path) -> list[str]:
    """The files of tests that may kill, those of the last session, which take long, first."""
    found = []
    for place in (place for places in reversed(SESSIONS) for place in places):
        path = root / place
        found += [path] if path.is_file() else sorted(path.rglob("test_*.py"))
    return [path.relative_to(root).as_posix() for path in dict.fromkeys(found) if path.name not in LEFT_OUT]


def _session(test: str) -> int:
    return next(n for n, places in enumerate(SESSIONS) if test.startswith(places))


def sessions(tests: Sequence[str]) -> Iterator[list[str]]:
    """The tests of each session, in order; first the few that most likely kill, because few are soon collected."""
    for n in range(len(SESSIONS)):
        mine = [test for test in tests if _session(test) == n]
        yield from filter(None, (mine[:FEW], mine[FEW:]))


def measure(nest: Nest, places: Sequence[str]) -> Reach:
    """Run the tests in `places` but slow ones, and see where they come by. Those that fail are left out, and said."""
    path = nest.home / "reach"
    nest.apart(lambda: nest.pytest(["-m", "not slow", *places], [Meter(path, nest)]), 3600)
    data = json.loads(path.read_text())
    for test in data.pop("failed"):
        if not nest.run([test], seconds=300).passed:  # some cannot bear to be measured
            print(f"left out, because it fails without a mutant: {test}", flush=True)
            del data["seconds"][test]
            for tests in data["lines"].values():
                tests.pop(test, None)
    return Reach(**data)


def merged(parts: Sequence[Reach]) -> Reach:
    whole = Reach()
    for part in parts:
        whole.seconds |= part.seconds
        for name, tests in part.lines.items():
            whole.lines.setdefault(name, {}).update(tests)
    return whole


def load() -> Reach:
    return Reach(**json.loads(KEPT.read_text()))


def keep(reach: Reach) -> None:
    KEPT.write_text(json.dumps(vars(reach)))


class Meter:
    """A plugin that measures each test by itself, and takes over what its children measured."""

    def __init__(self, path: Path, nest: Nest) -> None:
        self._path, self._nest = path, nest
        folders = [str(nest.tree / name) for name in ("model", "runtime")]
        self._coverage = Coverage(data_file=str(nest.home / "measured"), source_dirs=folders, config_file=False)
        self._coverage.start()
        self._seconds: dict[str, float] = defaultdict(float)
        self._lines: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """What the test's children measured is the test's; see tests/support/measured.py."""
        yield
        collect = import_module("tests.support.measured").collect
        for place in (*self._nest.base.glob("app-*"), *self._nest.base.glob("app-*/coverage-data")):
            collect(place, self._nest.home / "children")
        for file in self._nest.home.glob("children.*"):
            data = CoverageData(os.fspath(file))
            data.read()
            self._take(data, item.nodeid)
            file.unlink()

    def _take(self, data: CoverageData, test: str) -> None:
        for file in data.measured_files():
            name = file.rpartition("/nucleus_gvisor/")[2].removeprefix(f"{self._nest.tree}/")
            self._lines[name][test].update(data.lines(file) or ())

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        for file in data.measured_files():
            name = Path(file).relative_to(self._nest.tree).as_posix()
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    self._lines[name][test].add(line)
        lines = {
            name: {t: sorted(ls) for t, ls in tests.items()} for name, tests in self._lines.items() if name in FILES
        }
        seconds = {test: round(s, 3) for test, s in self._seconds.items()}
        self._path.write_text(json.dumps({"seconds": seconds, "lines": lines, "failed": sorted(self._failed)}))
