"""The Python machine has exactly the steps of the specification's state graph. Needs no Java.

For each state that TLC reaches, a machine is brought there along a shortest path, by `fire` alone, and every action
of the table is fired. What is a step of the graph must happen and lead where the graph says; everything else must be
refused and leave state, facts and records as they were. What the environment does is told to the machine as an
observation, as in a launch; whether it may do it is asked of `model.environment`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest

from nucleus_gvisor.model import machine as machine_module
from nucleus_gvisor.model import replay as replay_module
from nucleus_gvisor.model.environment import DISTURBANCES, kill
from nucleus_gvisor.model.errors import GuardRefused, LaunchError
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.machine import LaunchMachine
from nucleus_gvisor.model.replay import fold, initial
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS, STAGE, Row
from nucleus_gvisor.spec import graph as g

GRAPH = g.load()
EVENTS = {d.action: d for d in DISTURBANCES}
BUDGET = "budget"


def facts_of(node: g.Node) -> Facts:
    """The node without the model's own variable."""
    return Facts.from_dict({name: g.plain(value) for name, value in node.items() if name != BUDGET})


@dataclass
class Walk:
    """What a walk over a graph found."""

    differences: list[str] = field(default_factory=list)
    taken: int = 0
    refusals: int = 0
    events: int = 0


@dataclass
class Traveller:
    """A machine somewhere in the graph, with what has happened around it since its last step."""

    machine: LaunchMachine
    told: dict[str, object] = field(default_factory=dict)

    def go(self, action: str) -> None:
        """Take one step of the graph, the environment's included."""
        if action == "Kill":
            # A dead launcher fires nothing. What is fired on its facts is fired by someone who finds them.
            dead = kill(self.machine.facts.seen(self.told))
            assert dead is not None
            self.machine, self.told = LaunchMachine(dead, NoSteps()), {}
        elif action in EVENTS:
            self.told[EVENTS[action].field] = EVENTS[action].new
        else:
            self.machine.fire(action, self.told)
            self.told = {}


def travel(graph: g.Graph, node: int, path: Iterable[g.Edge]) -> Traveller:
    """A machine that went along `path` to `node`; LaunchError when it would not."""
    path = tuple(path)
    begin = path[0][0] if path else node
    traveller = Traveller(LaunchMachine(facts_of(graph.nodes[begin]), NoSteps()))
    for _, action, _ in path:
        traveller.go(action)
    return traveller


def walk(graph: g.Graph, actions: Iterable[str] = tuple(ROWS)) -> Walk:
    """Compare the machine with `graph` at each node that can be reached in it."""
    found, steps = Walk(), graph.steps()
    for node, path in graph.paths().items():
        edges = {action: target for action, target in steps[node] if action in ROWS}
        try:
            _visit(graph, node, path, edges, actions, found)
        except LaunchError as error:
            found.differences.append(f"{_shown(graph, node)} cannot be reached: {error}")
        _look_around(graph, node, dict(steps[node]), found)
    return found


def _visit(
    graph: g.Graph, node: int, path: Iterable[g.Edge], edges: dict[str, int], actions: Iterable[str], found: Walk
) -> None:
    traveller = travel(graph, node, path)
    for action in actions:
        if action not in edges:
            _refused(traveller, action, f"{action} at {_shown(graph, node)}", found)
    for action, target in edges.items():
        if traveller.machine.facts.seen(traveller.told) != facts_of(graph.nodes[node]):
            traveller = travel(graph, node, path)  # the step before has moved it
        _taken(traveller, action, facts_of(graph.nodes[target]), f"{action} at {_shown(graph, node)}", found)


def _refused(traveller: Traveller, action: str, where: str, found: Walk) -> None:
    """Not a step of the graph: the machine must refuse, and nothing may change."""
    machine = traveller.machine
    before = (machine.state, machine.facts, machine.records)
    try:
        machine.fire(action, traveller.told)
    except GuardRefused:
        found.refusals += 1
        if (machine.state, machine.facts, machine.records) != before:
            found.differences.append(f"{where} is refused, and changes something all the same")
    except LaunchError as error:
        found.differences.append(f"{where} is not refused by a guard: {error}")
    else:
        found.differences.append(f"{where} happens, and is no step of the specification")


def _taken(traveller: Traveller, action: str, target: Facts, where: str, found: Walk) -> None:
    """A step of the graph: it must happen, lead where the graph says, and leave a record that is accepted."""
    machine = traveller.machine
    records = machine.records
    try:
        traveller.go(action)
    except LaunchError as error:
        found.differences.append(f"{where} does not happen: {error}")
        return
    found.taken += 1
    if machine.facts != target or machine.state is not target.state:
        found.differences.append(f"{where} leads elsewhere: {machine.facts}")
    if len(machine.records) != len(records) + 1 or machine.records[-1].action != action:
        found.differences.append(f"{where} leaves no record of its own")
    if target.alive and fold(machine.records) != target:
        found.differences.append(f"{where}: its records lead elsewhere")


def _look_around(graph: g.Graph, node: int, edges: dict[str, int], found: Walk) -> None:
    """The environment's steps from this node: those of `model.environment`, as long as there is budget."""
    facts, budget = facts_of(graph.nodes[node]), graph.nodes[node][BUDGET]
    assert isinstance(budget, int)
    possible = {d.action: d.after(facts) for d in DISTURBANCES if d.possible(facts)}
    if (dead := kill(facts)) is not None:
        possible["Kill"] = dead
    expected = possible if budget else {}
    shown = {action: target for action, target in edges.items() if action not in ROWS}
    for action in expected.keys() | shown.keys():
        target = graph.nodes[shown[action]] if action in shown else None
        if action not in expected:
            found.differences.append(f"{action} at {_shown(graph, node)} is not in model.environment")
        elif target is None:
            found.differences.append(f"{action} at {_shown(graph, node)} is no step of the specification")
        elif (facts_of(target), target[BUDGET]) != (expected[action], budget - 1):
            found.differences.append(f"{action} at {_shown(graph, node)} leads elsewhere")
        else:
            found.events += 1


def _shown(graph: g.Graph, node: int) -> str:
    """What is not as in an undisturbed launch, for the reader of a difference."""
    facts = facts_of(graph.nodes[node])
    plain = Facts(state=facts.state).as_dict()
    changed = {name: value for name, value in facts.as_dict().items() if value != plain[name]}
    return f"{facts.state} {changed}"


def test_machine_has_exactly_the_steps_of_the_graph(record_property: Callable[[str, object], None]) -> None:
    """Each step happens, each non-step is refused, at every reachable state.

    Spec: GVisorRuntime!Next.
    """
    found = walk(GRAPH)
    assert not found.differences, "\n".join(found.differences[:20])
    assert found.taken + found.events == len(GRAPH.edges)
    assert found.taken + found.refusals == len(ROWS) * len(GRAPH.nodes)
    for name in ("taken", "events", "refusals"):
        record_property(name, getattr(found, name))


def test_every_node_is_reached() -> None:
    """The walk leaves no committed state out."""
    assert len(GRAPH.paths()) == len(GRAPH.nodes)


def test_launches_begin_alike() -> None:
    """A node is one that TLC begins in exactly when a record may begin there."""
    assert {n for n, node in enumerate(GRAPH.nodes) if initial(facts_of(node))} == set(GRAPH.initial)


def test_every_action_is_a_step_of_both() -> None:
    """No action is dead, and none has a name on one side only."""
    assert GRAPH.actions == ROWS.keys() | EVENTS.keys() | {"Kill"}


# ---- the comparison can fail ----


def small() -> g.Graph:
    """The committed graph as seen from one launch: enough to show a difference, and quick."""
    begin = next(n for n in GRAPH.initial if GRAPH.nodes[n]["method"] == "copy" and GRAPH.nodes[n][BUDGET] == 1)
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
    """A row that lost a guard takes steps that the graph does not have."""
    use(monkeypatch, without(ROWS[action], guard))
    found = walk(small()).differences
    assert any(line.startswith(f"{action} at") for line in found)


def test_a_row_too_many_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An action that the specification does not know is a difference wherever it happens."""
    use(monkeypatch, replace(ROWS["Collect"], action="Tidy"))
    found = walk(small(), (*ROWS, "Tidy")).differences
    assert any(line.startswith("Tidy at") and "no step of the specification" in line for line in found)


def test_a_wrong_effect_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that leads elsewhere than the graph is a difference, though no invariant is broken."""
    use(monkeypatch, replace(ROWS["FailSpace"], cause="changed"))
    assert any("FailSpace at" in line and "leads elsewhere" in line for line in walk(small()).differences)


@pytest.mark.parametrize("action", ["FailFault", "Collect", "RewriteInPlace", "Kill"])
def test_a_missing_step_is_reported(action: str) -> None:
    """A graph that lost an action is not the machine's, neither the launcher's actions nor the environment's."""
    graph = small()
    found = walk(replace(graph, edges=tuple(edge for edge in graph.edges if edge[1] != action))).differences
    assert any(line.startswith(f"{action} at") for line in found)


REDUNDANT = {
    ("Exec", "Evidenced"),
    ("ConfineLandlock", "Fit"),
    *((action, "Alive") for action in (*STAGE.values(), "Exec")),
}
"""Guards that no reachable state needs. A killed launcher holds and has staged nothing, so it could neither stage nor
exec. What is confined by Landlock is no runsc, and is asked nothing. Exec asks again for the evidence of every step in
case someone bent our own data; what it is for is shown by the configurations `reference-PolicyOnlyIfRootless` and
`reference-ReopensByPath`, which have to take it away."""


def test_each_guard_is_needed() -> None:
    """Without it the table has steps that the graph has not, so graph equality would report it."""
    facts = [facts_of(node) for node in GRAPH.nodes]
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
