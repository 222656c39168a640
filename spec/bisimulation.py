"""The Python machine has exactly the steps of the specification's state graph. Needs no Java.

For each state that TLC reaches, a machine is brought there along a shortest path, by `fire` alone, and every action
of the table is fired. What is a step of the graph must happen and lead where the graph says; everything else must be
refused and leave state, facts and records as they were. What the environment does is told to the machine as an
observation, as in a launch; whether it may do it is asked of `model.environment`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nucleus_gvisor.model import guards
from nucleus_gvisor.model.environment import DISTURBANCES, kill
from nucleus_gvisor.model.errors import GuardRefused, LaunchError
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.machine import LaunchMachine
from nucleus_gvisor.model.replay import fold, initial
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import graph as g
from nucleus_gvisor.spec import mutants

EVENTS = {d.action: d for d in DISTURBANCES}
BUDGET = "budget"


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
    traveller = Traveller(LaunchMachine(g.facts_of(graph.nodes[begin]), NoSteps()))
    for _, action, _ in path:
        traveller.go(action)
    return traveller


def judge(graph: g.Graph) -> Walk:
    """The whole comparison: the walk, all of the graph in it, and the same actions and beginnings on both sides."""
    found = walk(graph)
    missing = ROWS.keys() | EVENTS.keys() | {"Kill"}
    strange = [f"{a} is a step of the specification, and is in no table of the model" for a in graph.actions - missing]
    strange += [f"{a} is in the model's tables, and is no step of the specification" for a in missing - graph.actions]
    begins = {n for n, node in enumerate(graph.nodes) if initial(g.facts_of(node))}
    strange += [
        f"{g.shown('Init', graph.nodes[n])}: a launch may begin here in {where} only"
        for where, nodes in (("the model", begins - {*graph.initial}), ("the specification", {*graph.initial} - begins))
        for n in nodes
    ]
    if not found.differences and len(graph.paths()) != len(graph.nodes):
        strange.append("graph.json has states that nothing leads to")
    found.differences[:0] = sorted(strange)
    return found


def walk(graph: g.Graph, actions: Iterable[str] | None = None) -> Walk:
    """Compare the machine with `graph` at each node that can be reached in it; by default for every row."""
    found, steps = Walk(), graph.steps()
    actions = tuple(ROWS if actions is None else actions)
    facts = [g.facts_of(node) for node in graph.nodes]
    for node, path in graph.paths().items():
        edges = {action: facts[target] for action, target in steps[node] if action in ROWS}
        try:
            _visit(graph, node, path, edges, actions, facts[node], found)
        except LaunchError as error:
            found.differences.append(f"{_place(graph, node)} cannot be reached: {error}")
        _look_around(graph, node, dict(steps[node]), found)
    return found


def _visit(
    graph: g.Graph,
    node: int,
    path: Iterable[g.Edge],
    edges: dict[str, Facts],
    actions: Iterable[str],
    here: Facts,
    found: Walk,
) -> None:
    def tell(action: str, what: str) -> None:
        found.differences.append(f"{g.shown(action, graph.nodes[node])} {what}")

    traveller = travel(graph, node, path)
    for action in actions:
        if action not in edges:
            _refused(traveller, action, tell, found)
    for action, target in edges.items():
        if traveller.machine.facts.seen(traveller.told) != here:
            traveller = travel(graph, node, path)  # the step before has moved it
        _taken(traveller, action, target, tell, found)


Tell = Callable[[str, str], None]


def _refused(traveller: Traveller, action: str, tell: Tell, found: Walk) -> None:
    """Not a step of the graph: the machine must refuse, and nothing may change."""
    machine = traveller.machine
    before = (machine.state, machine.facts, machine.records)
    facts = machine.facts.seen(traveller.told)
    try:
        machine.fire(action, traveller.told)
    except GuardRefused:
        found.refusals += 1
        if (machine.state, machine.facts, machine.records) != before:
            tell(action, "is refused, and changes something all the same")
    except LaunchError as error:
        tell(action, f"is not refused by a guard: {error}{blame(action, facts)}")
    else:
        tell(action, f"happens, and is no step of the specification{blame(action, facts)}")


def _taken(traveller: Traveller, action: str, target: Facts, tell: Tell, found: Walk) -> None:
    """A step of the graph: it must happen, lead where the graph says, and leave a record that is accepted."""
    machine = traveller.machine
    records = machine.records
    try:
        traveller.go(action)
    except LaunchError as error:
        tell(action, f"does not happen: {error}")
        return
    found.taken += 1
    if machine.facts != target or machine.state is not target.state:
        leads, wanted = machine.facts.as_dict(), target.as_dict()
        told = (f"{name} is {leads[name]}, and {wanted[name]} there" for name in wanted if leads[name] != wanted[name])
        tell(action, f"leads elsewhere than in the specification: {', '.join(told)}")
    if len(machine.records) != len(records) + 1 or machine.records[-1].action != action:
        tell(action, "leaves no record of its own")
    if target.alive and fold(machine.records) != target:
        tell(action, "leaves records that lead elsewhere")


def _look_around(graph: g.Graph, node: int, edges: dict[str, int], found: Walk) -> None:
    """The environment's steps from this node: those of `model.environment`, as long as there is budget."""
    facts, budget = g.facts_of(graph.nodes[node]), graph.nodes[node][BUDGET]
    assert isinstance(budget, int)
    possible = {d.action: d.after(facts) for d in DISTURBANCES if d.possible(facts)}
    if (dead := kill(facts)) is not None:
        possible["Kill"] = dead
    expected = possible if budget else {}
    shown = {action: target for action, target in edges.items() if action not in ROWS}
    for action in expected.keys() | shown.keys():
        target = graph.nodes[shown[action]] if action in shown else None
        if action not in expected:
            found.differences.append(f"{g.shown(action, graph.nodes[node])} is not in model/environment.py")
        elif target is None:
            found.differences.append(f"{g.shown(action, graph.nodes[node])} is no step of the specification")
        elif (g.facts_of(target), target[BUDGET]) != (expected[action], budget - 1):
            found.differences.append(f"{g.shown(action, graph.nodes[node])} leads elsewhere")
        else:
            found.events += 1


def _place(graph: g.Graph, node: int) -> str:
    return g.shown("", graph.nodes[node]).removeprefix(" at ")


# ---- why ----


def blame(action: str, facts: Facts) -> str:
    """Which guards of the specification's action, as it is written, do not hold here: the machine does not ask them."""
    module = mutants.Module((g.HERE / "GVisorRuntime.tla").read_text())
    if action not in module.definitions:
        return f": {action} is a row of model/table.py, and no action of GVisorRuntime.tla"
    asked = list(dict.fromkeys(_guards(module.tree(action))))
    failing = [name for name in asked if getattr(guards, name.lstrip("~"))(facts) == name.startswith("~")]
    if failing:
        return f": the specification asks guard {' and '.join(failing)} of {action}, the model does not"
    return f": of its guards ({', '.join(asked)}) one says less in model/guards.py, or its row has another source"


def _guards(node: mutants.Node) -> Iterator[str]:
    """Names of the guards that an action is a conjunction of, `~` before those that must not hold."""
    match node.op:
        case "name" if hasattr(guards, node.text):
            yield node.text
        case "~" if hasattr(guards, node.kids[0].text):
            yield f"~{node.kids[0].text}"
        case "name" | "/\\":
            for kid in node.kids:
                yield from _guards(kid)
