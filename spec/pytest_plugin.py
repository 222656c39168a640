"""pytest plugin (entry point `pytest11`): judge a launcher from a test.

    def test_my_launcher_conforms(launcher_conformance):
        launcher_conformance(MyDriver())

`MyDriver` is a `nucleus_gvisor.model.conformance.Driver`. The test fails with the report's table when the launcher does
otherwise than the specification, or when something could not be tried.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from nucleus_gvisor.model.conformance import Driver, Edge, Finding, Node, Report


class Conformance(Protocol):
    """What the fixture `launcher_conformance` gives."""

    def __call__(
        self,
        driver: "Driver",
        *,
        launches: "Iterable[Node] | None" = None,
        refuse: "Callable[[Edge], bool] | None" = None,
        expect: "Callable[[Finding], bool]" = ...,
    ) -> "Report": ...


@pytest.fixture
def launcher_conformance(record_property: Callable[[str, object], None]) -> Conformance:
    """Judge a driver: every edge of the state graph of `launches` (by default those of the specification's bounds).

        report = launcher_conformance(driver, launches=[ask("required", "mount-locked", ...)], refuse=everything)

    `refuse` chooses which refusals are asked for as well. `expect` says which findings that did not pass the test knows
    of and accepts; by default none. The test fails with a table for every other. The report comes back, so that a test
    can look closer; its figures are recorded as the property `conformance`.
    """
    from nucleus_gvisor.model import conformance

    def check(
        driver: "Driver",
        *,
        launches: "Iterable[Node] | None" = None,
        refuse: "Callable[[Edge], bool] | None" = None,
        expect: "Callable[[Finding], bool]" = lambda _: False,
    ) -> "Report":
        graph = conformance.explore(launches)
        report = conformance.examine(driver, graph, refuse=refuse)
        record_property("conformance", {verdict.value: n for verdict, n in report.counts().items()})
        verdicts = [v for v in conformance.Verdict if v is not conformance.Verdict.PASSED]
        if not graph.edges or any(not expect(finding) for finding in report.of(*verdicts)):
            pytest.fail(f"{type(driver).__name__} does not conform\n{report.table()}", pytrace=False)
        return report

    return check
