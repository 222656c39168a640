"""Judge a launcher against the specification: its state graph, walks over every step of it, and a verdict per step.

Any launcher can be judged. It is wrapped in a `Driver`, of some thirty lines, that can begin a launch, have it take an
action, do to it what the environment does, and say what the operating system shows. Then

    report = judge(driver, cover(explore()))
    print(report.table())

walks it through the graph and compares, after each step, what is seen with what the specification says. `examine` does
the same and finds ways around what failed. `state_machine` lets Hypothesis look for sequences that break it; they are
shortened and saved as ITF traces (the Informal Trace Format of Apalache), which `replay` takes a driver along again.

Pure: nothing here touches the host. Hypothesis is imported by `state_machine` alone (the extra `conformance`).
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nucleus_gvisor.model.environment import DISTURBANCES, kill
from nucleus_gvisor.model.errors import LaunchError, Rebuilt
from nucleus_gvisor.model.facts import NAMES, Facts
from nucleus_gvisor.model.invariants import violated
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS

ENVIRONMENT = (*(d.action for d in DISTURBANCES), "Kill")
"""What is done to a launch; everything in ROWS is what it, or somebody after it, does."""

# ---- the graph ----


class Node(NamedTuple):
    """A state of the specification: its variables, and how often the environment may still act."""

    facts: Facts
    budget: int


@dataclass(frozen=True, slots=True)
class Edge:
    """One step: `action` leads from `source` to `target`. Where it is not `offered`, it must lead nowhere."""

    source: Node
    action: str
    target: Node
    offered: bool = True

    def __str__(self) -> str:
        facts = self.source.facts
        usual = Facts(state=facts.state).as_dict()
        told = [f"{name}={_shown(value)}" for name, value in facts.as_dict().items() if value != usual[name]]
        place = f"{facts.state.value} ({', '.join(told)})" if told else facts.state.value
        return f"{self.action} at {place}" if self.offered else f"{self.action}, not offered at {place}"


@dataclass(frozen=True)
class Graph:
    """All states that can be reached, those that a launch may begin in, and every step."""

    nodes: tuple[Node, ...]
    initial: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Walk:
    """A launch from its beginning, step by step."""

    begin: Node
    edges: tuple[Edge, ...]

    @property
    def actions(self) -> tuple[str, ...]:
        return tuple(edge.action for edge in self.edges)


def ask(enforcement: str, confinement: str, method: str, program: str, pin: str, budget: int) -> Node:
    """A launch as it begins: what is asked for, and how often the environment may act."""
    facts = fresh(enforcement=enforcement, confinement=confinement, method=method, program=program, pin=pin)
    return Node(facts, budget)


def usual_launches() -> tuple[Node, ...]:
    """The launches of `spec/MCGVisorRuntime.tla`, with its bounds: `explore` then gives the committed graph."""
    enforcements = ("required", "best_effort", "off")
    confine = [ask(e, "mount-locked", "sealed", "runsc", "none", 1) for e in enforcements]
    confine += [ask(e, "landlock", "sealed", p, "none", 1) for e in enforcements for p in ("runsc", "plain")]
    confine += [ask("required", "mount-locked", "sealed", "plain", "none", 1)]
    stage = [
        ask("required", "mount-locked", method, "runsc", pin, 2 if (method, pin) == ("copy", "match") else 1)
        for method in ("sealed", "set", "copy", "store", "kept")
        for pin in ("none", "match")
    ]
    stage += [ask("best_effort", "mount-locked", "kept", "runsc", "none", 1)]
    return tuple(dict.fromkeys([*confine, *stage]))


def offered(facts: Facts) -> dict[str, Facts]:
    """What the launcher, or somebody after it, may do now, and where it leads. Spec: GVisorRuntime!System."""
    rows = (row for row in ROWS.values() if facts.state in row.sources and all(guard(facts) for guard in row.guards))
    return {row.action: row.after(facts) for row in rows}


def possible(facts: Facts) -> dict[str, Facts]:
    """What the environment may do now, and where it leads. Spec: GVisorRuntime!Environment."""
    found = {d.action: d.after(facts) for d in DISTURBANCES if d.possible(facts)}
    dead = kill(facts)
    return found if dead is None else {**found, "Kill": dead}


def successors(node: Node) -> tuple[Edge, ...]:
    """The steps that leave `node`."""
    edges = [Edge(node, action, Node(facts, node.budget)) for action, facts in offered(node.facts).items()]
    if node.budget:
        edges += [Edge(node, action, Node(facts, node.budget - 1)) for action, facts in possible(node.facts).items()]
    return tuple(edges)


def explore(launches: Iterable[Node] | None = None) -> Graph:
    """Everything that can happen to `launches`, by default to those of `usual_launches`."""
    return _explore(tuple(usual_launches() if launches is None else launches))


@lru_cache(4)
def _explore(initial: tuple[Node, ...]) -> Graph:
    edges: list[Edge] = []
    seen = dict.fromkeys(initial)
    queue = deque(initial)
    while queue:
        for edge in successors(queue.popleft()):
            edges.append(edge)
            if edge.target not in seen:
                seen[edge.target] = None
                queue.append(edge.target)
    return Graph(tuple(seen), initial, tuple(edges))


def refusals(node: Node) -> tuple[Edge, ...]:
    """Every action of the launcher that is not offered in `node`; it must be refused, and change nothing."""
    may = offered(node.facts)
    return tuple(Edge(node, action, node, offered=False) for action in ROWS if action not in may)


def cover(graph: Graph, wanted: Collection[Edge] | None = None, avoid: Collection[Edge] = ()) -> tuple[Walk, ...]:
    """Walks that together take every edge of `wanted` (default: all), none of `avoid`, as far as they can be reached.

    Each goes on to the nearest edge that no walk has taken yet, and ends where none is ahead: few beginnings, little
    trodden twice.
    """
    ways = _Ways(graph, graph.edges if wanted is None else wanted, avoid)
    walks = []
    for begin in graph.initial:
        while edges := ways.walk(begin):
            walks.append(Walk(begin, edges))
    return tuple(walks)


class _Ways:
    """The edges still wanted, and shortest ways to them. Nodes by number: to hash one is dear."""

    def __init__(self, graph: Graph, wanted: Collection[Edge], avoid: Collection[Edge]) -> None:
        self._number = {node: number for number, node in enumerate(graph.nodes)}
        self._out: list[list[tuple[int, Edge, int]]] = [[] for _ in graph.nodes]
        self._wanted: set[int] = set()
        chosen, shunned = set(wanted), set(avoid)
        for place, edge in enumerate(graph.edges):
            if edge not in shunned:
                self._out[self._number[edge.source]].append((place, edge, self._number[edge.target]))
                if edge in chosen:
                    self._wanted.add(place)

    def walk(self, begin: Node) -> tuple[Edge, ...]:
        here, taken = self._number[begin], []
        while way := self._nearest(here):
            for place, edge, target in way:
                self._wanted.discard(place)
                taken.append(edge)
                here = target
        return tuple(taken)

    def _nearest(self, here: int) -> list[tuple[int, Edge, int]]:
        """The way to the nearest wanted edge and over it; of several, over the one after which most can happen."""
        came: dict[int, tuple[int, tuple[int, Edge, int]]] = {}
        layer, seen = [here], {here}
        while layer:
            found = [(node, step) for node in layer for step in self._out[node] if step[0] in self._wanted]
            if found:
                node, step = max(found, key=lambda pair: len(self._out[pair[1][2]]))
                way = [step]
                while node != here:
                    node, step = came[node]
                    way.append(step)
                return way[::-1]
            following = []
            for node in layer:
                for step in self._out[node]:
                    if step[2] not in seen:
                        seen.add(step[2])
                        came[step[2]] = (node, step)
                        following.append(step[2])
            layer = following
        return []


def sample(graph: Graph, avoid: Collection[Edge] = ()) -> tuple[Walk, ...]:
    """Few walks, without `avoid`, that go through each launch undisturbed and take each action at least once."""
    shunned, first = set(avoid), dict[str, Edge]()
    edges = [edge for edge in graph.edges if edge not in shunned]
    for edge in edges:
        first.setdefault(edge.action, edge)
    ends = [edge for edge in edges if edge.action == "GuestStarts" and edge.source.budget == _most(graph, edge)]
    return cover(graph, [*ends, *first.values()], avoid)


def _most(graph: Graph, edge: Edge) -> int:
    """The budget of the launch that `edge` belongs to: what an undisturbed launch has still."""
    asked = _asked(edge.source.facts)
    return max((node.budget for node in graph.initial if _asked(node.facts) == asked), default=0)


def _asked(f: Facts) -> tuple[object, ...]:
    return f.enforcement, f.confinement, f.method, f.program, f.pin != "none"


# ---- drivers ----


class Refused(Exception):
    """Raised by a driver when its launcher does not take the action that it was asked for. So does any LaunchError."""


class Unsupported(Exception):
    """Raised by a driver for what it cannot do to its launcher or has no way to see; the text says why."""


@dataclass(frozen=True)
class OneOf:
    """An observation that tells values apart only so far: the variable has one of `values`."""

    values: frozenset[object]

    def __str__(self) -> str:
        return " or ".join(sorted(map(_shown, self.values)))


def one_of(*values: object) -> OneOf:
    """`OneOf` these."""
    return OneOf(frozenset(values))


class Driver(Protocol):
    """A launcher as it is judged. An object may be used for many launches, one after the other."""

    def reset(self, facts: Facts) -> None:
        """Forget the last launch, and begin one with the options of `facts` in a world where nothing is wrong."""
        ...

    def fire(self, action: str) -> None:
        """Have the launcher take `action`; Refused or a LaunchError when it does not, Unsupported when it cannot."""
        ...

    def disturb(self, action: str) -> None:
        """Do what the environment's `action` says, really; Unsupported where that cannot be done."""
        ...

    def observe(self) -> Mapping[str, object]:
        """Variables of the specification as the operating system shows them; leave out what it does not show.

        A value may be a `OneOf`. Nothing here may come from what the launcher believes of itself.
        """
        ...


class ModelDriver:
    """The specification itself as a driver: the pure machine. What it is compared with must agree with it."""

    def reset(self, facts: Facts) -> None:
        self._machine = LaunchMachine(facts, NoSteps())
        self._told: dict[str, object] = {}

    def fire(self, action: str) -> None:
        self._machine.fire(action, self._told)
        self._told = {}

    def disturb(self, action: str) -> None:
        after = possible(self._facts).get(action)
        if after is None:
            raise Refused(f"{action} cannot happen here")
        if action == "Kill":
            self._machine, self._told = LaunchMachine(after, NoSteps()), {}
        else:
            event = next(d for d in DISTURBANCES if d.action == action)
            self._told[event.field] = event.new

    def observe(self) -> Mapping[str, object]:
        return self._facts.as_dict()

    @property
    def _facts(self) -> Facts:
        return self._machine.facts.seen(self._told)


# ---- verdicts ----


class Verdict(StrEnum):
    """What became of a step."""

    PASSED = "passed"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    """The driver cannot do it."""
    UNREACHED = "unreached"
    """An earlier step of every walk that leads there did not pass."""


@dataclass(frozen=True)
class Finding:
    """The verdict on one edge, and the first difference where there is one."""

    edge: Edge
    verdict: Verdict
    variable: str = ""
    expected: object = None
    observed: object = None
    breaks: tuple[str, ...] = ()
    """Properties of the specification that what was observed breaks, by name."""
    why: str = ""
    """What the driver or the launcher said."""
    path: tuple[str, ...] = ()
    """The actions before it."""

    def __str__(self) -> str:
        text = f"{self.verdict.value}: {self.edge}"
        if self.variable:
            text += f": {self.variable} is {_shown(self.observed)}, expected {_shown(self.expected)}"
        if self.breaks:
            text += f", breaks {', '.join(self.breaks)}"
        if self.why:
            text += f": {self.why}"
        return text + (f" (after {', '.join(self.path)})" if self.path else "")

    def as_dict(self) -> dict[str, object]:
        """Plain JSON data."""
        return {
            "action": self.edge.action,
            "source": self.edge.source.facts.as_dict(),
            "offered": self.edge.offered,
            "verdict": self.verdict.value,
            "variable": self.variable or None,
            "expected": _plain(self.expected),
            "observed": _plain(self.observed),
            "breaks": list(self.breaks),
            "why": self.why or None,
            "path": list(self.path),
        }


@dataclass
class Report:
    """What `judge` found, edge by edge; refusals apart, because they are no edges."""

    findings: dict[Edge, Finding] = field(default_factory=dict)
    refusals: dict[Edge, Finding] = field(default_factory=dict)
    asked: set[Node] = field(default_factory=set)
    """Nodes whose refusals have been asked for."""
    walks: int = 0
    steps: int = 0
    seconds: float = 0.0

    def of(self, *verdicts: Verdict) -> tuple[Finding, ...]:
        """The findings on edges and refusals with one of these verdicts, in the order in which they were made."""
        return tuple(f for f in (*self.findings.values(), *self.refusals.values()) if f.verdict in verdicts)

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What the launcher does otherwise than the specification."""
        return self.of(Verdict.FAILED)

    @property
    def conforms(self) -> bool:
        """Did every edge and refusal pass; what is unsupported or unreached has not."""
        return bool(self.findings) and not self.of(Verdict.FAILED, Verdict.UNSUPPORTED, Verdict.UNREACHED)

    def counts(self, findings: Mapping[Edge, Finding] | None = None) -> Counter[Verdict]:
        """How many edges got which verdict."""
        return Counter(f.verdict for f in (self.findings if findings is None else findings).values())

    def table(self, limit: int = 20) -> str:
        """For reading: a line for each action with its counts, then the first `limit` differences."""
        by_action: dict[str, Counter[Verdict]] = {}
        for edge, finding in self.findings.items():
            by_action.setdefault(edge.action, Counter())[finding.verdict] += 1
        rows = [(action, *(str(by_action[action][v] or "") for v in Verdict)) for action in sorted(by_action)]
        totals, refused = self.counts(), self.counts(self.refusals)
        rows.append(("all edges", *(str(totals[v]) for v in Verdict)))
        if self.refusals:
            rows.append(("refusals", *(str(refused[v]) for v in Verdict)))
        head = ("action", *(v.value for v in Verdict))
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        rest = [str(f) for f in self.of(Verdict.FAILED, Verdict.UNSUPPORTED)]
        more = [f"... and {len(rest) - limit} more"] if len(rest) > limit else []
        said = f"{self.walks} walks, {self.steps} steps, {self.seconds:.1f} s"
        return "\n".join(line.rstrip() for line in [*lines, said, *rest[:limit], *more])

    def as_dict(self) -> dict[str, object]:
        """Plain JSON data: counts, and every finding that did not pass."""
        return {
            "conforms": self.conforms,
            "edges": {v.value: n for v, n in self.counts().items()},
            "refusals": {v.value: n for v, n in self.counts(self.refusals).items()},
            "walks": self.walks,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "findings": [f.as_dict() for f in self.of(Verdict.FAILED, Verdict.UNSUPPORTED, Verdict.UNREACHED)],
        }

    def json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1)


# ---- judging ----

Chooser = Callable[[Edge], bool]


def everything(_: Edge) -> bool:
    """The chooser for every refusal."""
    return True


def judge(
    driver: Driver, walks: Iterable[Walk], *, refuse: Chooser | None = None, into: Report | None = None
) -> Report:
    """Take `driver` along `walks`, and say of each edge whether it does and shows what the specification says.

    An edge that has passed once and fails in another walk has failed. After a step that did not pass, the rest of its
    walk is left out. `refuse` chooses the refusals to ask for, once in each node (`everything` for all of them).
    """
    report = Report() if into is None else into
    began = time.perf_counter()
    for walk in walks:
        report.walks += 1
        _Judgement(driver, walk, report, refuse).go()
    report.seconds += time.perf_counter() - began
    return report


def examine(driver: Driver, graph: Graph, *, refuse: Chooser | None = None) -> Report:
    """`judge` over the whole graph; what lies behind an edge that did not pass is reached by other ways if there are.

    Each edge of the graph has a finding afterwards.
    """
    report = Report()
    while True:
        settled = [e for e, f in report.findings.items() if f.verdict is not Verdict.UNREACHED]
        barred = [e for e in settled if report.findings[e].verdict is not Verdict.PASSED]
        walks = cover(graph, set(graph.edges) - set(settled), avoid=barred)
        if not walks:
            break
        judge(driver, walks, refuse=refuse, into=report)
    for edge in graph.edges:
        report.findings.setdefault(edge, Finding(edge, Verdict.UNREACHED))
    return report


class _Judgement:
    """One walk."""

    def __init__(self, driver: Driver, walk: Walk, report: Report, refuse: Chooser | None) -> None:
        self._driver, self._walk, self._report, self._refuse = driver, walk, report, refuse
        self._path: list[str] = []

    def go(self) -> None:
        self._driver.reset(self._walk.begin.facts)
        if not self._look_at(self._walk.begin):
            self._give_up(self._walk.edges)
            return
        for number, edge in enumerate(self._walk.edges):
            self._report.steps += 1
            finding = self._take(edge)
            into = self._report.findings if edge.offered else self._report.refusals
            known = into.get(edge)
            if known is None or known.verdict in (Verdict.PASSED, Verdict.UNREACHED):
                into[edge] = finding
            self._path.append(edge.action)
            if finding.verdict is not Verdict.PASSED or not self._look_at(edge.target):
                self._give_up(self._walk.edges[number + 1 :])
                return

    def _give_up(self, edges: Iterable[Edge]) -> None:
        for edge in edges:
            into = self._report.findings if edge.offered else self._report.refusals
            into.setdefault(edge, Finding(edge, Verdict.UNREACHED, path=tuple(self._path)))

    def _take(self, edge: Edge) -> Finding:
        """Take one step and compare."""
        if not edge.offered:
            finding = self._asked(edge)
            return self._compared(edge) if finding.verdict is Verdict.PASSED else finding
        try:
            take = self._driver.disturb if edge.action in ENVIRONMENT else self._driver.fire
            take(edge.action)
        except Unsupported as error:
            return self._finding(edge, Verdict.UNSUPPORTED, why=str(error))
        except (Refused, LaunchError) as error:
            return self._finding(edge, Verdict.FAILED, why=f"refused: {error}")
        return self._compared(edge)

    def _asked(self, edge: Edge) -> Finding:
        """Ask for what is not offered; whether anything changed is for the caller to see."""
        try:
            self._driver.fire(edge.action)
        except Unsupported as error:
            return self._finding(edge, Verdict.UNSUPPORTED, why=str(error))
        except (Refused, LaunchError):
            return self._finding(edge, Verdict.PASSED)
        return self._finding(edge, Verdict.FAILED, why="not refused", seen=self._driver.observe())

    def _compared(self, edge: Edge) -> Finding:
        seen = self._driver.observe()
        verdict = Verdict.PASSED if difference(edge.target.facts, seen) is None else Verdict.FAILED
        return self._finding(edge, verdict, seen=seen)

    def _finding(
        self, edge: Edge, verdict: Verdict, *, why: str = "", seen: Mapping[str, object] | None = None
    ) -> Finding:
        facts, path = edge.target.facts, tuple(self._path)
        if verdict is not Verdict.FAILED or seen is None:
            return Finding(edge, verdict, why=why, path=path)
        variable, expected, observed = difference(facts, seen) or ("", None, None)
        return Finding(edge, verdict, variable, expected, observed, _broken(edge, seen), why, path)

    def _look_at(self, node: Node) -> bool:
        """Ask for the refusals in `node` that no walk has asked for; False when the launch cannot go on."""
        if self._refuse is None or node in self._report.asked:
            return True
        self._report.asked.add(node)
        findings = [self._asked(edge) for edge in refusals(node) if self._refuse(edge)]
        passed = [finding.edge for finding in findings if finding.verdict is Verdict.PASSED]
        if passed and difference(node.facts, seen := self._driver.observe()) is not None:
            why = "refused, and something changed all the same; by this action or another that was asked for here"
            findings = [self._finding(edge, Verdict.FAILED, why=why, seen=seen) for edge in passed]
        self._report.refusals |= {finding.edge: finding for finding in findings}
        return all(finding.verdict is not Verdict.FAILED for finding in findings)


def difference(facts: Facts, seen: Mapping[str, object]) -> tuple[str, object, object] | None:
    """The first variable that is seen otherwise than `facts` have it: its name, expected, observed."""
    if strange := set(seen) - NAMES:
        raise ValueError(f"not variables of the specification: {', '.join(sorted(strange))}")
    for name, expected in facts.as_dict().items():
        if name in seen and not _agrees(expected, seen[name]):
            return name, expected, seen[name]
    return None


def _agrees(expected: object, seen: object) -> bool:
    if isinstance(seen, OneOf):
        return expected in seen.values
    if isinstance(expected, list):
        return isinstance(seen, Collection) and sorted(seen) == expected
    return type(seen) is not int and seen == expected


def _broken(edge: Edge, seen: Mapping[str, object]) -> tuple[str, ...]:
    """Properties that do not hold once what was seen is put in place of what was expected."""
    certain = {name: value for name, value in seen.items() if not isinstance(value, OneOf)}
    if "residue" in certain:
        certain["residue"] = frozenset(certain["residue"])  # type: ignore[call-overload]
    return tuple(violated(edge.source.facts, replace(edge.target.facts, **certain)))  # type: ignore[arg-type]


def _shown(value: object) -> str:
    return str(value) if isinstance(value, str | OneOf) else json.dumps(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, OneOf):
        return {"one_of": sorted(map(_shown, value.values))}
    if isinstance(value, frozenset | set | tuple):
        return sorted(value)
    return value if value is None or isinstance(value, str | bool | int | list) else str(value)


# ---- traces (ITF) ----


def as_itf(walk: Walk) -> dict[str, object]:
    """`walk` in the Informal Trace Format: the specification's variables, the action in each state's `#meta`."""
    nodes = [walk.begin, *(edge.target for edge in walk.edges)]
    told: list[dict[str, object]] = [{"action": "Init"}]
    told += [{"action": edge.action, "offered": edge.offered} for edge in walk.edges]
    states = [
        {"#meta": {"index": index, **meta}, **_itf_state(node)}
        for index, (node, meta) in enumerate(zip(nodes, told, strict=True))
    ]
    return {
        "#meta": {"format": "ITF", "description": "a launch, as nucleus_gvisor.model.conformance took it"},
        "vars": [*Facts().as_dict(), "budget"],
        "states": states,
    }


def _itf_state(node: Node) -> dict[str, object]:
    values = {**node.facts.as_dict(), "residue": {"#set": sorted(node.facts.residue)}}
    return {**values, "budget": {"#bigint": str(node.budget)}}


def save(walk: Walk, path: Path) -> None:
    """Write `walk` to `path` as ITF JSON."""
    path.write_text(json.dumps(as_itf(walk), indent=1) + "\n")


def load(path: Path) -> Walk:
    """The walk that `save` wrote, to be replayed: `judge(driver, [load(path)])`. ValueError when it is none."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or not isinstance(data.get("states"), list) or not data["states"]:
        raise ValueError(f"{path}: not an ITF trace")
    nodes, told = [], []
    for state in data["states"]:
        values = {name: value for name, value in state.items() if not name.startswith("#")}
        budget = int(_itf_value(values.pop("budget", "0")))
        nodes.append(Node(Facts.from_dict({name: _itf_value(value) for name, value in values.items()}), budget))
        told.append(state.get("#meta", {}))
    edges = [
        Edge(source, str(meta["action"]), target, bool(meta.get("offered", True)))
        for source, target, meta in zip(nodes, nodes[1:], told[1:], strict=False)
    ]
    return Walk(nodes[0], tuple(edges))


def _itf_value(value: Any) -> Any:
    if isinstance(value, dict) and "#set" in value:
        return sorted(value["#set"])
    return value["#bigint"] if isinstance(value, dict) and "#bigint" in value else value


def replay(path: Path, driver: Driver) -> Report:
    """Take `driver` along a saved trace."""
    return judge(driver, [load(path)])


# ---- Hypothesis ----


class Disagreement(Rebuilt, AssertionError):
    """A driver that does otherwise than the specification: `who`, by name, does `what`. `walk` leads there."""

    def __init__(self, who: str, what: str, walk: Walk) -> None:
        told = ", ".join(e.action if e.offered else f"~{e.action}" for e in walk.edges) or "nothing"
        super().__init__(f"{who}: {what}; after {told}")
        self.walk = walk


class Lockstep:
    """The specification and drivers, taken through the same steps of one launch. What `state_machine` runs."""

    def __init__(self, drivers: Sequence[Driver], begin: Node) -> None:
        self.node: Node = begin
        self.drivers: Sequence[Driver] = drivers
        self.over: bool = False
        self._begin, self._edges = begin, list[Edge]()
        for driver in drivers:
            driver.reset(begin.facts)

    def ahead(self) -> tuple[Edge, ...]:
        """The steps that leave the present node."""
        return successors(self.node)

    def take(self, edge: Edge) -> bool:
        """Have every driver take `edge`; Disagreement when one does or shows otherwise.

        False when a driver cannot take it. Others may have taken it by then, so that nothing can be compared any more:
        this run is over, and the specification has not moved.
        """
        if self.over:
            raise ValueError("a driver could not take the last step: nothing follows it")
        if broken := violated(edge.source.facts, edge.target.facts):
            raise self._disagreement("the specification", f"{edge.action} breaks {', '.join(broken)}", edge)
        for driver in self.drivers:
            try:
                (driver.disturb if edge.action in ENVIRONMENT else driver.fire)(edge.action)
            except Unsupported:
                self.over = True
                return False
            except (Refused, LaunchError) as error:
                if edge.offered:
                    raise self._disagreement(driver, f"refuses {edge.action}: {error}", edge) from error
            else:
                if not edge.offered:
                    raise self._disagreement(driver, f"does not refuse {edge.action}", edge)
        self._edges.append(edge)
        self.node = edge.target
        self.compare()
        return True

    def compare(self) -> None:
        """Do all drivers show what the specification has; Disagreement when one does not."""
        for driver in self.drivers:
            if (found := difference(self.node.facts, driver.observe())) is not None:
                name, expected, seen = found
                raise self._disagreement(driver, f"{name} is {_shown(seen)}, expected {_shown(expected)}")

    def _disagreement(self, who: object, what: str, *last: Edge) -> Disagreement:
        name = who if isinstance(who, str) else type(who).__name__
        return Disagreement(name, what, Walk(self._begin, (*self._edges, *last)))


def shortest(found: Disagreement, drivers: Sequence[Driver]) -> Disagreement:
    """The same, or another, disagreement after as few of these actions as do it: none can be left out."""
    edges = list(found.walk.edges)
    place = len(edges) - 1
    while place >= 0:
        fewer = edges[:place] + edges[place + 1 :]
        again = _again(found.walk.begin, fewer, drivers)
        if again is not None and len(again.walk.edges) < len(edges):
            found, edges = again, list(again.walk.edges)
            place = len(edges)
        place -= 1
    return found


def _again(begin: Node, edges: Iterable[Edge], drivers: Sequence[Driver]) -> Disagreement | None:
    """What these actions lead to from `begin`, as far as they are possible one after the other."""
    try:
        run = Lockstep(drivers, begin)
        run.compare()
        for edge in edges:
            choice = run.ahead() if edge.offered else refusals(run.node)
            following = next((e for e in choice if e.action == edge.action), None)
            if following is None:
                return None
            if not run.take(following):
                return None
    except Disagreement as error:
        return error
    return None


class _Goals:
    """The edges that a driver may be asked for, each with the shortest way to it. Immutable: shared by all examples."""

    def __init__(self, launches: Iterable[Node], leave_out: Chooser) -> None:
        graph = explore(launches)
        self.begins = graph.initial
        self.edges = tuple(edge for edge in graph.edges if not leave_out(edge))
        """Those that can be reached over others of them."""
        came: dict[Node, Edge | None] = dict.fromkeys(self.begins)
        out: dict[Node, list[Edge]] = {}
        for edge in self.edges:
            out.setdefault(edge.source, []).append(edge)
        queue = deque(self.begins)
        while queue:
            for edge in out.get(queue.popleft(), ()):
                if edge.target not in came:
                    came[edge.target] = edge
                    queue.append(edge.target)
        self.edges = tuple(edge for edge in self.edges if edge.source in came)
        self._came = came

    def way(self, goal: Edge) -> Walk:
        """From the beginning of its launch over `goal`."""
        edges = [goal]
        while (before := self._came[edges[-1].source]) is not None:
            edges.append(before)
        return Walk(edges[-1].source, tuple(reversed(edges)))


def state_machine(
    drivers: Callable[[], Sequence[Driver]],
    launches: Iterable[Node] | None = None,
    *,
    refuse: Chooser = everything,
    leave_out: Chooser = lambda _: False,
    wanted: Collection[Edge] | None = None,
    trace: Path | None = None,
    taken: set[Edge] | None = None,
) -> type[Any]:
    """A Hypothesis RuleBasedStateMachine that takes the specification and all `drivers` through the same steps.

    An example is a series of launches. One rule draws the next step: one that the specification offers, one of the
    environment's while it may act, or a refusal of what is not offered. When a launch can go no further another begins.
    Half of them go straight to a step that this example has not taken, and wander from there; the others wander from
    the beginning, to new steps rather than to those that were taken. So an example comes far however it is drawn. What
    every driver shows is compared after each step, and where nothing can happen any more a second time.

    `refuse` chooses the refusals, `leave_out` steps that no driver can take, `wanted` the steps that launches are bound
    for (default: all). A step that a driver finds to be `Unsupported` ends its launch: the specification does not go on
    alone. A failure is shortened to a list of actions of which none can be left out, printed, and saved in `trace` as
    ITF; Hypothesis's own phase `shrink` is slower and ends with more of them: leave it out of the settings. `taken`
    collects the edges that all drivers took; nothing is drawn by it. Run it by its `TestCase`, or with
    `hypothesis.stateful.run_state_machine_as_test`; `stateful_step_count` is the steps of an example, over all its
    launches.
    """
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, rule

    goals = _Goals(usual_launches() if launches is None else launches, leave_out)
    shortened: dict[Walk, Disagreement] = {}
    """What was shortened already. A walk alone decides what it is shortened to, so no example depends on another."""

    class Launches(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.run: Lockstep | None = None
            self.new = dict.fromkeys(goals.edges if wanted is None else wanted)
            """The steps that this example has not taken, in a fixed order."""
            self.actions = set[str]()
            """Those that it has."""
            self.way: dict[Node, Edge] = {}
            self.straight = False

        @rule(data=st.data())
        def step(self, data: Any) -> None:
            try:
                return self._step(data)
            except Disagreement as error:
                found = error
            # Outside of the handler and on one line: Hypothesis tells failures apart by where they were raised, and by
            # the exceptions that they come from.
            raise self._shortest(found)

        def _step(self, data: Any) -> None:
            ahead: dict[str, Edge] = {}
            if self.run is not None and not self.run.over:
                ahead = {edge.action: edge for edge in self.run.ahead() if not leave_out(edge)}
                if not ahead:
                    self.run.compare()
            if self.run is None or not ahead:
                self._begin(data)
                return
            denied = {f"~{edge.action}": edge for edge in refusals(self.run.node) if refuse(edge)}
            onward = self.way.get(self.run.node)
            new = [action for action, edge in ahead.items() if edge in self.new]
            if onward is not None and self.straight:
                edge = onward
            else:
                choice = [*new * 2, *ahead, *(["refusal"] * (denied != {}))]
                action = data.draw(st.sampled_from(choice), label="next")
                edge = ahead.get(action) or denied[data.draw(st.sampled_from(list(denied)), label="refused")]
            if self.run.take(edge) and edge.offered:
                self._seen(edge)
                if taken is not None:
                    taken.add(edge)

        def _seen(self, edge: Edge) -> None:
            self.new.pop(edge, None)
            self.actions.add(edge.action)

        def _begin(self, data: Any) -> None:
            rare = [edge for edge in self.new if edge.action not in self.actions]
            choice = rare or list(self.new) or goals.edges
            goal = choice[data.draw(st.sampled_from(range(len(choice))), label="bound for edge")]
            walk = goals.way(goal)
            self._seen(goal)  # where a driver cannot take it, another launch is not bound for it again
            self.way = {edge.source: edge for edge in walk.edges}
            self.straight = data.draw(st.sampled_from((True, False)), label="straight")
            self.run = Lockstep(drivers(), walk.begin)
            self.run.compare()

        def _shortest(self, error: Disagreement) -> Disagreement:
            assert self.run is not None
            if error.walk not in shortened:
                shortened[error.walk] = shortest(error, self.run.drivers)
            found = copy(shortened[error.walk])
            if trace is not None:
                save(found.walk, trace)
                found.add_note(f"saved in {trace}")
            return found

    return Launches
