"""The specification's state graph: taken from TLC, made canonical, committed, and read again without Java.

`graph.json` is the graph of `MCGVisorRuntime` with the hashes of all that it follows from. Nodes are sorted by their
values and edges by their ends, so equal specifications give equal bytes, whatever order TLC went in. It is a
multigraph: two actions between the same two states are two edges.

    python -m nucleus_gvisor.spec.graph [--write] [--draw FILE [--where NAME=VALUE]]
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model import conformance
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import draw, tlc

HERE = Path(__file__).resolve().parent
GRAPH = HERE / "graph.json"
SOURCES = ("AbstractGVisor.tla", "GVisorRuntime.tla", "MCGVisorRuntime.cfg", "MCGVisorRuntime.tla")

Value = str | bool | int | frozenset[str]
Node = Mapping[str, Value]
"""One state: each variable of the specification, `budget` included."""
Edge = tuple[int, str, int]
"""Source, action, target; nodes by their place in `Graph.nodes`."""


class GraphError(ValueError):
    """A graph that cannot be read, is not the one that was written, or has a step without a name of its own."""


@dataclass(frozen=True, slots=True)
class Graph:
    """All reachable states, those that a launch may begin in, and every step between them."""

    nodes: tuple[Node, ...]
    initial: tuple[int, ...]
    edges: tuple[Edge, ...]

    @property
    def actions(self) -> frozenset[str]:
        """Names of the actions that are taken somewhere."""
        return frozenset(action for _, action, _ in self.edges)

    def steps(self) -> Mapping[int, tuple[tuple[str, int], ...]]:
        """For each node its actions and where they lead."""
        found: dict[int, list[tuple[str, int]]] = {n: [] for n in range(len(self.nodes))}
        for source, action, target in self.edges:
            found[source].append((action, target))
        return {n: tuple(steps) for n, steps in found.items()}

    def paths(self) -> Mapping[int, tuple[Edge, ...]]:
        """For each node a shortest way to it from a node where a launch may begin."""
        found: dict[int, tuple[Edge, ...]] = {n: () for n in self.initial}
        steps, queue = self.steps(), deque(self.initial)
        while queue:
            node = queue.popleft()
            for action, target in steps[node]:
                if target not in found:
                    found[target] = (*found[node], (node, action, target))
                    queue.append(target)
        return found


# ---- from TLC's dot to a graph ----

_NODE = re.compile(r'^(-?\d+) \[label="((?:[^"\\]|\\.)*)"(,style = filled)?\]', re.MULTILINE)
_EDGE = re.compile(r'^(-?\d+) -> (-?\d+) \[label="(\w*)"', re.MULTILINE)
_NAMELESS = {"", "Next", "System", "Environment", "Afterwards", "UnnamedAction", "Action"}


def parse(dot: str) -> Graph:
    """The canonical graph in what `-dump dot,actionlabels` wrote.

    Raises GraphError when a step bears no action's name. (Edges without a label are TLC's stuttering, not steps.)
    """
    states: dict[str, Node] = {}
    begins: set[str] = set()
    for name, label, filled in _NODE.findall(dot):
        states[name] = {variable: value(text) for variable, text in tlc.conjuncts(_unescape(label))}
        if filled:
            begins.add(name)
    steps = _EDGE.findall(dot)
    if nameless := {action for _, _, action in steps} & _NAMELESS:
        raise GraphError(f"steps without an action's name: {', '.join(sorted(nameless))}")
    order = sorted(states, key=lambda name: _key(states[name]))
    place = {name: n for n, name in enumerate(order)}
    return Graph(
        tuple(states[name] for name in order),
        tuple(sorted(place[name] for name in begins)),
        tuple(sorted({(place[source], action, place[target]) for source, target, action in steps})),
    )


def _unescape(label: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], label)


def value(text: str) -> Value:
    """A TLA+ value of the kinds that our variables have."""
    if text in {"TRUE", "FALSE"}:
        return text == "TRUE"
    if text.startswith("{") and text.endswith("}"):
        return frozenset(re.findall(r'"([^"]*)"', text))
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    return int(text)


def plain(value: Value) -> object:
    """`value` as JSON has it: a set is a sorted list."""
    return sorted(value) if isinstance(value, frozenset) else value


def _key(node: Node) -> str:
    return json.dumps({name: plain(v) for name, v in node.items()}, sort_keys=True)


# ---- its committed form ----


def dumps(graph: Graph, hashes: Mapping[str, str]) -> str:
    """`graph` as the text of graph.json: a node is a list of places in its columns' lists of values."""
    columns = {name: _column(graph, name) for name in sorted(graph.nodes[0])}
    places = ([columns[name].index(json.dumps(plain(node[name]))) for name in columns] for node in graph.nodes)
    parts = {
        "hashes": json.dumps({**hashes, "graph": digest(graph)}, indent=1, sort_keys=True),
        "columns": "{\n" + _lines(f'"{name}": [{", ".join(v)}]' for name, v in columns.items()) + "\n}",
        "initial": json.dumps(graph.initial),
        "nodes": "[\n" + _lines(json.dumps(node, separators=(",", ":")) for node in places) + "\n]",
        "edges": "[\n" + _lines(json.dumps(edge, separators=(",", ":")) for edge in graph.edges) + "\n]",
    }
    return "{\n" + _lines(f'"{name}": {part}' for name, part in parts.items()) + "\n}\n"


def _column(graph: Graph, name: str) -> list[str]:
    return sorted({json.dumps(plain(node[name])) for node in graph.nodes})


def _lines(items: Iterable[str]) -> str:
    return ",\n".join(items)


def digest(graph: Graph) -> str:
    """SHA-256 of the graph itself, in hex: the same for every way of writing it down."""
    hashed = hashlib.sha256()
    for part in ([_key(node) for node in graph.nodes], graph.initial, graph.edges):
        hashed.update(json.dumps(part).encode())
    return hashed.hexdigest()


def loads(text: str) -> tuple[Graph, Mapping[str, str]]:
    """The graph in `text` and the hashes beside it; GraphError when the graph is not the one that was written."""
    data = json.loads(text)
    columns: dict[str, list[Value]] = {name: [_value(v) for v in values] for name, values in data["columns"].items()}
    graph = Graph(
        tuple({n: columns[n][i] for n, i in zip(columns, node, strict=True)} for node in data["nodes"]),
        tuple(data["initial"]),
        tuple((source, action, target) for source, action, target in data["edges"]),
    )
    if digest(graph) != data["hashes"]["graph"]:
        raise GraphError("graph.json was edited by hand: write it anew with `python -m nucleus_gvisor.spec.graph`")
    return graph, data["hashes"]


def _value(data: object) -> Value:
    if isinstance(data, list):
        return frozenset(str(item) for item in data)
    if isinstance(data, str | bool | int):
        return data
    raise GraphError(f"not a value of the specification: {data!r}")


def load(path: Path = GRAPH) -> Graph:
    """The committed graph. Needs no Java. GraphError when the specification beside it is not the one it is of."""
    graph, hashes = loads(path.read_text())
    changed = [name for name, digest in source_hashes().items() if hashes[name] != digest]
    if changed:
        raise GraphError(f"{', '.join(changed)} changed since graph.json was written: write it anew")
    return graph


def source_hashes() -> Mapping[str, str]:
    """SHA-256 of each file that the graph follows from."""
    return {name: tlc.sha256(HERE / name) for name in SOURCES}


# ---- afresh ----


def dumped() -> tuple[tlc.Verdict, str]:
    """TLC's verdict on `MCGVisorRuntime`, and the graph that it went through, in dot."""
    with tempfile.TemporaryDirectory(prefix="graph-") as folder:
        dot = Path(folder, "graph.dot")
        verdict = tlc.run(HERE / "MCGVisorRuntime.tla", HERE / "MCGVisorRuntime.cfg", dump=dot, coverage=True)
        return verdict, dot.read_text()


def text_of(verdict: tlc.Verdict, dot: str) -> str:
    """The text of graph.json that `dumped` gives. GraphError when the graph is not all that was checked."""
    graph = parse(dot)
    # What was dumped must be all that was checked, or the graph is not the specification's.
    counts = (len(graph.nodes), len(graph.initial))
    if counts != (verdict.distinct, verdict.initial):
        raise GraphError(f"the dump has {counts} states and beginnings, TLC {verdict.distinct, verdict.initial}")
    return dumps(graph, {**source_hashes(), "tla2tools.jar": tlc.sha256(tlc.jar())})


def fresh() -> tuple[str, tlc.Verdict]:
    """The text of graph.json as TLC has it now, and TLC's verdict on the way."""
    verdict, dot = dumped()
    if verdict.exit != tlc.OK:
        raise GraphError(f"the specification does not hold: {', '.join(verdict.violated) or verdict.exit}")
    return text_of(verdict, dot), verdict


# ---- what differs, and why ----


def facts_of(node: Node) -> Facts:
    """The node without the model's own variable."""
    return Facts.from_dict({name: plain(value) for name, value in node.items() if name != "budget"})


def shown(action: str, node: Node) -> str:
    """`action` and what is not as in an undisturbed launch, for the reader of a difference."""
    try:
        place = conformance.Node(facts_of(node), 0)
    except ValueError as error:
        return f"{action}, where the model does not know {error},"
    return str(conformance.Edge(place, action, place))


def differences(committed: Graph, now: Graph) -> list[str]:
    """Where TLC's graph `now` is not the committed one: a line for each action, the guard that is the cause in it."""
    ours, theirs = _by_value(committed), _by_value(now)
    found = [
        f"{action} is never taken any more: is it still in Next, and can its guards hold?"
        for action in sorted(committed.actions - now.actions)
    ]
    found += [
        f"{action} is an action that graph.json does not know" for action in sorted(now.actions - committed.actions)
    ]
    common = {_key(node) for node in committed.nodes} & {_key(node) for node in now.nodes}
    for action in sorted(committed.actions & now.actions):
        more, fewer = (
            # What follows from a difference is none of its own: only steps from states that both have are told.
            sorted((s, t) for s, a, t in here.keys() - there.keys() if a == action and s in common)
            for here, there in ((theirs, ours), (ours, theirs))
        )
        elsewhere = sorted({s for s, _ in more} & {s for s, _ in fewer})
        if elsewhere:
            source = elsewhere[0]
            before, after = (next(t for s, t in part if s == source) for part in (fewer, more))
            found.append(f"{shown(action, json.loads(source))} leads elsewhere: {_changed(before, after)}")
            more, fewer = ([p for p in part if p[0] not in elsewhere] for part in (more, fewer))
        if more:
            node = theirs[more[0][0], action, more[0][1]]
            why = refused(action, node)
            found.append(
                f"{shown(action, node)} is a step of TLC's graph, and not of graph.json"
                f"{f': {why}' if why else ''} ({len(more)} such steps)"
            )
        if fewer:
            node = ours[fewer[0][0], action, fewer[0][1]]
            found.append(
                f"{shown(action, node)} is a step of graph.json, and not of TLC's graph: the specification asks more of"
                f" {action} than it did ({len(fewer)} such steps)"
            )
    if not found and set(map(_key, committed.nodes)) != set(map(_key, now.nodes)):
        found.append(f"{len(now.nodes)} states, and {len(committed.nodes)} in graph.json: launches begin otherwise")
    return found


def _by_value(graph: Graph) -> dict[tuple[str, str, str], Node]:
    """Each step by its ends' values, with the node that it leaves."""
    keys = [_key(node) for node in graph.nodes]
    return {(keys[s], action, keys[t]): graph.nodes[s] for s, action, t in graph.edges}


def refused(action: str, node: Node) -> str:
    """Which guards of the table's row do not hold in `node`, so that the specification cannot ask them any more."""
    if action not in ROWS:
        return ""
    try:
        facts, row = facts_of(node), ROWS[action]
    except ValueError:  # values that only the specification has
        return ""
    names = [guard.__name__ for guard in row.guards if not guard(facts)]
    names += [] if facts.state in row.sources else [f"state of {', '.join(row.sources)}"]
    return f"the specification no longer asks guard {' and '.join(names)} of {action}" if names else ""


def _changed(before: str, after: str) -> str:
    was, now = json.loads(before), json.loads(after)
    return ", ".join(f"{name} is {now[name]}, was {was[name]}" for name in was if was[name] != now.get(name))


def stale(text: str) -> list[str]:
    """What is not in graph.json as it is in `text`, which TLC has just given; empty when they are equal bytes."""
    committed = GRAPH.read_text()
    if committed == text:
        return []
    (ours, was), (theirs, now) = loads(committed), loads(text)
    if found := differences(ours, theirs):
        return found
    changed = ", ".join(name for name in now if now[name] != was.get(name)) or "its layout"
    return [f"graph.json: {changed} changed, the graph itself did not: `spec graph --write`"]


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: compare the committed graph with TLC's, write it, or draw it; 1 when they differ."""
    parser = argparse.ArgumentParser(prog="nucleus-gvisor spec graph", description="The specification's state graph.")
    parser.add_argument("--write", action="store_true", help="write graph.json; otherwise compare with it")
    parser.add_argument(
        "--draw", metavar="FILE", help="draw the committed graph by launch state: FILE.svg, FILE.mmd, or - for Mermaid"
    )
    parser.add_argument(
        "--where",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="draw only the steps that begin where this variable has this value",
    )
    options = parser.parse_args(arguments)
    if options.draw:
        return _draw(parser, options.draw, options.where)
    if options.where:
        parser.error("--where belongs to --draw")
    text, verdict = fresh()
    same = GRAPH.is_file() and GRAPH.read_text() == text
    wrong = stale(text) if GRAPH.is_file() and not same and not options.write else []
    if options.write and not same:
        GRAPH.write_text(text)
    graph, _ = loads(text)
    said = "as committed" if same else "written" if options.write else "NOT as committed: see --write"
    print(
        f"{len(graph.nodes)} states, {len(graph.edges)} steps, {len(graph.actions)} actions, "
        f"depth {verdict.depth}, {verdict.seconds:.1f} s: {said}"
    )
    for line in wrong:
        print(f"FAILED {line}")
    return 0 if same or options.write else 1


def _draw(parser: argparse.ArgumentParser, target: str, where: Sequence[str]) -> int:
    if target != "-" and not target.endswith((".svg", ".mmd")):
        parser.error(f"--draw {target}: not .svg, .mmd or -")
    graph = load()
    try:
        picture = draw.quotient(steps(graph, where), svg=target.endswith(".svg"))
    except GraphError as error:
        parser.error(str(error))
    if target == "-":
        print(picture, end="")
    else:
        Path(target).write_text(picture)
    return 0


def steps(graph: Graph, where: Iterable[str] = ()) -> list[tuple[str, str, str]]:
    """Launch state, action and launch state of each step that begins where all of `where` (`name=value`) hold."""
    chosen = set(range(len(graph.nodes)))
    for word in where:
        name, _, wanted = word.partition("=")
        if name not in graph.nodes[0]:
            raise GraphError(f"--where {word}: {name!r} is no variable of the specification")
        here = {n for n, node in enumerate(graph.nodes) if wanted.lower() == _written(node[name]).lower()}
        if not here:
            values = sorted({_written(node[name]) for node in graph.nodes})
            raise GraphError(f"--where {word}: {name} is one of {', '.join(values)}")
        chosen &= here
    found = [(str(graph.nodes[s]["state"]), a, str(graph.nodes[t]["state"])) for s, a, t in graph.edges if s in chosen]
    if not found:
        raise GraphError(f"no step begins where {' and '.join(where)}")
    return found


def _written(value: Value) -> str:
    """A value as it is given on the command line; a set is joined by `+`."""
    return "+".join(sorted(value)) if isinstance(value, frozenset) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
