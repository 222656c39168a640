"""The Python machine has exactly the steps of the specification's state graph; what differs is told with its cause."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from nucleus_gvisor.model import machine as machine_module
from nucleus_gvisor.model import replay as replay_module
from nucleus_gvisor.model.table import ROWS, STAGE, Row
from nucleus_gvisor.spec import bisimulation as b
from nucleus_gvisor.spec import graph as g

GRAPH = g.load()


def test_machine_has_exactly_the_steps_of_the_graph(record_property: Callable[[str, object], None]) -> None:
    """Each step happens, each non-step is refused, at every reachable state, and both have the same actions.

    Spec: GVisorRuntime!Next.
    """
    found = b.judge(GRAPH)
    assert not found.differences, "\n".join(found.differences[:20])
    assert found.taken + found.events == len(GRAPH.edges)
    assert found.taken + found.refusals == len(ROWS) * len(GRAPH.nodes)
    for name in ("taken", "events", "refusals"):
        record_property(name, getattr(found, name))


# ---- the comparison can fail ----


def small() -> g.Graph:
    """The committed graph as seen from one launch: enough to show a difference, and quick."""
    begin = next(n for n in GRAPH.initial if GRAPH.nodes[n]["method"] == "copy" and GRAPH.nodes[n][b.BUDGET] == 1)
    kept = sorted(replace(GRAPH, initial=(begin,)).paths())
    place = {node: n for n, node in enumerate(kept)}
    return g.Graph(
        tuple(GRAPH.nodes[n] for n in kept),
        (place[begin],),
        tuple((place[s], action, place[t]) for s, action, t in GRAPH.edges if s in place),
    )


def use(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    """Let the machine run with a copy of the table in which `row` stands for the row of its name."""
    rows = {**ROWS, row.action: row}
    monkeypatch.setattr(b, "ROWS", rows)
    monkeypatch.setattr(machine_module, "ROWS", rows)
    monkeypatch.setattr(machine_module, "TRANSITIONS", tuple(rows.values()))
    monkeypatch.setattr(replay_module, "ROWS", rows)


def without(row: Row, guard: str) -> Row:
    """`row` with one guard dropped."""
    return replace(row, guards=tuple(held for held in row.guards if held.__name__ != guard))


@pytest.mark.parametrize(
    ("action", "guard"), [("Prepare", "LockFree"), ("StageCopy", "SpaceLeft"), ("FailDirty", "HasResidue")]
)
def test_a_missing_guard_is_reported(action: str, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that lost a guard takes steps that the graph does not have, and the guard is named."""
    use(monkeypatch, without(ROWS[action], guard))
    found = b.walk(small()).differences
    assert any(line.startswith(f"{action} at") and f"asks guard {guard} of {action}" in line for line in found)


def test_a_row_too_many_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An action that the specification does not know is a difference wherever it happens."""
    use(monkeypatch, replace(ROWS["Collect"], action="Tidy"))
    found = b.judge(small()).differences
    assert "Tidy is in the model's tables, and is no step of the specification" in found
    assert any(line.startswith("Tidy at") and "no action of GVisorRuntime.tla" in line for line in found)


def test_a_wrong_effect_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that leads elsewhere than the graph is a difference, though no invariant is broken."""
    use(monkeypatch, replace(ROWS["FailSpace"], cause="changed"))
    assert any("FailSpace at" in line and "leads elsewhere" in line for line in b.walk(small()).differences)


@pytest.mark.parametrize("action", ["FailFault", "Collect", "RewriteInPlace", "Kill"])
def test_a_missing_step_is_reported(action: str) -> None:
    """A graph that lost an action is not the machine's, neither the launcher's actions nor the environment's."""
    graph = small()
    found = b.walk(replace(graph, edges=tuple(edge for edge in graph.edges if edge[1] != action))).differences
    assert any(line.startswith(f"{action} at") for line in found)


REDUNDANT = {
    ("Exec", "Evidenced"),
    ("ConfineLandlock", "Fit"),
    *((action, "Alive") for action in (*STAGE.values(), "Exec", "FailCache", "FailKept")),
}
"""Guards that no reachable state needs. A killed launcher holds and has staged nothing, so it could neither stage nor
exec. Nor does the graph have one that is killed after its cache was changed: `AllLaunches` has. What is confined by
Landlock is no runsc, and is asked nothing. Exec asks again for the evidence of every step in case someone bent our
own data; what it is for is shown by the configurations `reference-PolicyOnlyIfRootless` and
`reference-ReopensByPath`, which have to take it away."""


def test_each_guard_is_needed() -> None:
    """Without it the table has steps that the graph has not, so graph equality would report it."""
    facts = [g.facts_of(node) for node in GRAPH.nodes]
    needless = {
        (row.action, guard.__name__)
        for row in ROWS.values()
        for guard in row.guards
        if not any(
            f.state in row.sources and not guard(f) and all(other(f) for other in row.guards if other is not guard)
            for f in facts
        )
    }
    assert needless == REDUNDANT
