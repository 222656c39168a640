"""The table of what was expected and what was observed: at the end of a test run, and in a file when asked.

`NUCLEUS_GVISOR_CATALOGUE=FILE` writes it, as Markdown.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile.catalogue.table import CASES, ELSEWHERE, FILE, Case

Key = tuple[str, str]
"""A case's id and the kind of caller; or a test's name and `elsewhere`."""
_observed: dict[Key, list[str]] = {}


@pytest.fixture
def observe(request: pytest.FixtureRequest, case: Case, mode: object) -> Iterator[Callable[[str], None]]:
    """Tells the table what came of the case."""
    key = (case.id, str(getattr(mode, "name", mode)))
    told = _observed.setdefault(key, [])
    count = len(told)
    yield told.append
    if len(told) == count:  # the test ended before it could tell
        told.append("FAILED")


class Elsewhere:
    """What tests elsewhere show: whether they passed. A conftest's own hook would hear of the tests beside it alone."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            _observed.setdefault((report.nodeid, ELSEWHERE), []).append(report.outcome)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Elsewhere())


def _shown(name: str) -> str:
    """How the tests went that `name` stands for."""
    test, _, inside = name.removesuffix("]").partition("[")
    found = [
        outcome
        for (nodeid, kind), outcomes in _observed.items()
        for outcome in outcomes
        if kind == ELSEWHERE and nodeid.startswith(test) and inside in nodeid[len(test) :]
    ]
    if not found:
        return "not run"
    return f"{found.count('passed')} of {len(found)} passed"


def rows() -> list[tuple[str, str, str, str, str]]:
    """Case, kind of caller, expected, observed, and what it is about or where it is shown."""
    table = []
    for case in CASES:
        for mode in case.modes:
            if told := _observed.get((case.id, mode)):
                table.append((case.id, mode, case.expected, "; ".join(dict.fromkeys(told)), case.what))
        for name in case.shown:
            test = name.rpartition("::")[2]
            table.append((case.id, ELSEWHERE, case.expected, _shown(name), test))
    return table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print it if a case of the catalogue was run."""
    if not any(case.id == id for case in CASES for id, _ in _observed):
        return
    table = [("case", "caller", "expected", "observed", "about"), *rows()]
    terminalreporter.section("catalogue")
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        shown = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        terminalreporter.line(f"{shown}  {row[4]}")
    if path := os.environ.get(FILE):
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in table]
        lines.insert(1, "|---" * 5 + "|")
        Path(path).write_text("\n".join(lines) + "\n")
