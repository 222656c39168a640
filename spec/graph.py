"""The specification's state graph: taken from TLC, made canonical, committed, and read again without Java.

`graph.json` is the graph of `MCGVisorRuntime` with the hashes of all that it follows from. Nodes are sorted by their
values and edges by their ends, so equal specifications give equal bytes, whatever order TLC went in. It is a
multigraph: two actions between the same two states are two edges.

    python -m nucleus_gvisor.spec.graph --write
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

from nucleus_gvisor.spec import tlc

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


def fresh() -> tuple[str, tlc.Verdict]:
    """The text of graph.json as TLC has it now, and TLC's verdict on the way."""
    with tempfile.TemporaryDirectory(prefix="graph-") as folder:
        dot = Path(folder, "graph.dot")
        verdict = tlc.run(HERE / "MCGVisorRuntime.tla", HERE / "MCGVisorRuntime.cfg", dump=dot, coverage=True)
        if verdict.exit != tlc.OK:
            raise GraphError(f"the specification does not hold: {', '.join(verdict.violated) or verdict.exit}")
        graph = parse(dot.read_text())
    # What was dumped must be all that was checked, or the graph is not the specification's.
    counts = (len(graph.nodes), len(graph.initial))
    if counts != (verdict.distinct, verdict.initial):
        raise GraphError(f"the dump has {counts} states and beginnings, TLC {verdict.distinct, verdict.initial}")
    return dumps(graph, {**source_hashes(), "tla2tools.jar": tlc.sha256(tlc.jar())}), verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: compare the committed graph with TLC's, or write it; 1 when they differ."""
    parser = argparse.ArgumentParser(prog="nucleus-gvisor spec graph", description="The specification's state graph.")
    parser.add_argument("--write", action="store_true", help="write graph.json; otherwise compare with it")
    options = parser.parse_args(arguments)
    text, verdict = fresh()
    same = GRAPH.is_file() and GRAPH.read_text() == text
    if options.write and not same:
        GRAPH.write_text(text)
    graph, _ = loads(text)
    said = "as committed" if same else "written" if options.write else "NOT as committed: see --write"
    print(
        f"{len(graph.nodes)} states, {len(graph.edges)} steps, {len(graph.actions)} actions, "
        f"depth {verdict.depth}, {verdict.seconds:.1f} s: {said}"
    )
    return 0 if same or options.write else 1


if __name__ == "__main__":
    raise SystemExit(main())
