"""Model and specification agree as functions, not only where a launch can come.

Where graph equality follows reachable states, this takes states at random: a guard that is only right because
something else keeps its wrong cases away is found here. One run of TLC.
"""

import random
import re
from pathlib import Path

import pytest

from nucleus_gvisor.model.environment import DISTURBANCES, kill
from nucleus_gvisor.model.facts import DOMAINS, RESIDUE, Facts
from nucleus_gvisor.model.invariants import INVARIANTS, STEPS, CauseIffFailed
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import graph, tlc, trace

COUNT = 1000
EACH = 5
Steps = dict[str, Facts]


def near(chance: random.Random, launches: list[Facts]) -> Facts:
    """A state that a launch comes to, with some variables at random: never far from where guards are judged."""
    values = chance.choice(launches).as_dict()
    for name in chance.sample(sorted(DOMAINS), chance.randint(1, 6)):
        values[name] = chance.choice(sorted(DOMAINS[name], key=str))
    if chance.random() < 0.3:
        values["residue"] = sorted(item for item in RESIDUE if chance.random() < 0.5)
    return Facts.from_dict(values)


def given() -> list[Facts]:
    """The states that are asked about, none twice."""
    chance, committed = random.Random(2), graph.load()
    launches = [
        Facts.from_dict({name: graph.plain(value) for name, value in node.items() if name != "budget"})
        for node in committed.nodes
    ]
    found: dict[Facts, None] = {}
    for row in ROWS.values():  # what few launches come to as well
        possible = [f for f in launches if f.state in row.sources and all(guard(f) for guard in row.guards)]
        found |= dict.fromkeys(chance.sample(possible, min(EACH, len(possible))))
    while len(found) < COUNT:
        found[near(chance, launches)] = None
    return list(found)


def steps_of(facts: Facts) -> Steps:
    """What the model does in a state, the environment included."""
    found = {
        name: row.after(facts)
        for name, row in ROWS.items()
        if facts.state in row.sources and all(guard(facts) for guard in row.guards)
    }
    found |= {d.action: d.after(facts) for d in DISTURBANCES if d.possible(facts)}
    dead = kill(facts)
    return found if dead is None else {**found, "Kill": dead}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Facts], dict[Facts, Steps], dict[int, set[str]]]:
    """The states, the steps that TLC takes from each, and the names of the properties that it says each breaks."""
    folder, states = tmp_path_factory.mktemp("anystate"), given()
    records = (trace.tla_record((n, trace.tla_value(v)) for n, v in facts.as_dict().items()) for facts in states)
    data = ",\n".join(records)
    (folder / "StateData.tla").write_text(f"---- MODULE StateData ----\nGiven == <<\n{data}\n>>\n====\n")
    dot = folder / "graph.dot"
    verdict = tlc.run(graph.HERE / "AnyState.tla", graph.HERE / "AnyState.cfg", library=folder, dump=dot)
    said = re.findall(r'<<\s*"says",\s*(\d+),\s*\{([^}]*)\}\s*>>', verdict.text)
    # The given states come first; those that their steps lead to bear numbers of given ones as well.
    return states, _taken(dot), {int(n) - 1: set(re.findall(r"\w+", names)) for n, names in said[COUNT - 1 :: -1]}


def _taken(dot: Path) -> dict[Facts, Steps]:
    found = graph.parse(dot.read_text())
    facts = [
        Facts.from_dict({name: graph.plain(value) for name, value in node.items() if name != "budget"})
        for node in found.nodes
    ]
    steps = found.steps()
    return {facts[n]: {action: facts[target] for action, target in steps[n]} for n in found.initial}


@pytest.mark.slow
def test_steps_are_the_same_everywhere(asked: tuple[list[Facts], dict[Facts, Steps], dict[int, set[str]]]) -> None:
    """The same actions are possible, and lead to the same states."""
    # A row writes the cause "none" where the specification leaves the cause alone: the same unless there is one.
    states = [facts for facts in asked[0] if CauseIffFailed(facts)]
    assert len(states) > COUNT / 2
    differ = [(facts, asked[1][facts], steps_of(facts)) for facts in states if asked[1][facts] != steps_of(facts)]
    assert not differ, differ[0]


@pytest.mark.slow
def test_invariants_are_the_same_everywhere(
    asked: tuple[list[Facts], dict[Facts, Steps], dict[int, set[str]]],
) -> None:
    """The same invariants are broken, and each is by some of the states."""
    states, _, said = asked
    mine = {n: {p.__name__ for p in INVARIANTS if not p(facts)} for n, facts in enumerate(states)}
    differ = [(states[n], said[n], mine[n]) for n in mine if said[n] != mine[n]]
    assert not differ, differ[0]
    # The random values are all of their domains; that TypeOK has the same domains is in test_names.py.
    assert set.union(*mine.values()) == {p.__name__ for p in INVARIANTS} - {"TypeOK"}


@pytest.mark.slow
def test_every_action_is_asked_about(asked: tuple[list[Facts], dict[Facts, Steps], dict[int, set[str]]]) -> None:
    """Each action is possible in many of the states, and impossible in many where its launch state is right."""
    taken = asked[1]
    for name, row in ROWS.items():
        right = [name in steps for facts, steps in taken.items() if facts.state in row.sources]
        assert right.count(True) > 2, name
        assert right.count(False) > 2, name


def test_no_step_of_the_graph_breaks_an_action_property() -> None:
    """The model's action properties hold of every edge that TLC found them to hold of."""
    committed = graph.load()
    facts = [
        Facts.from_dict({name: graph.plain(value) for name, value in node.items() if name != "budget"})
        for node in committed.nodes
    ]
    assert all(holds(facts[s], facts[t]) for s, _, t in committed.edges for holds in STEPS)
    assert all(holds(f) for f in facts for holds in INVARIANTS)
