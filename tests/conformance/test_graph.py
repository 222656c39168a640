"""The harness itself: its graph is the specification's, its walks cover it, and its verdicts can be bad."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from itf_py import trace_from_json

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import graph as spec
from tests.conformance.edges import graph


def small() -> c.Graph:
    """What can happen to one launch."""
    return c.explore([c.ask("required", "mount-locked", "copy", "runsc", "match", 1)])


def test_explored_graph_is_the_specification_s() -> None:
    """The same states, beginnings and steps as TLC's, though it was explored from the table and the environment."""
    committed, ours = spec.load(), graph()
    nodes = [
        c.Node(Facts.from_dict({k: spec.plain(v) for k, v in node.items() if k != "budget"}), int(str(node["budget"])))
        for node in committed.nodes
    ]
    assert set(nodes) == set(ours.nodes) and len(nodes) == len(ours.nodes)
    assert {nodes[n] for n in committed.initial} == set(ours.initial)
    theirs = {(nodes[s], action, nodes[t]) for s, action, t in committed.edges}
    assert theirs == {(edge.source, edge.action, edge.target) for edge in ours.edges}


def test_walks_cover_every_edge() -> None:
    """Each walk is one, and together they leave no edge out and tread few twice."""
    walks = c.cover(graph())
    for walk in walks:
        assert walk.begin in graph().initial
        assert all(before.target == after.source for before, after in zip(walk.edges, walk.edges[1:], strict=False))
    assert {edge for walk in walks for edge in walk.edges} == set(graph().edges)
    assert sum(len(walk.edges) for walk in walks) < 2 * len(graph().edges)


def test_sample_has_every_launch_and_every_action() -> None:
    """The few walks of a sample begin in every launch and take every action of the graph."""
    walks = c.sample(graph())
    assert {walk.begin for walk in walks} == set(graph().initial)
    assert {a for walk in walks for a in walk.actions} == {*ROWS, *c.ENVIRONMENT}
    assert len(walks) < 60


def test_model_conforms_to_itself() -> None:
    """The pure machine takes every edge, and refuses everything else."""
    whole = c.examine(c.ModelDriver(), graph())
    assert whole.conforms and len(whole.findings) == len(graph().edges), whole.table()
    one = c.examine(c.ModelDriver(), small(), refuse=c.everything)
    offered = sum(edge.action in ROWS for edge in small().edges)
    assert one.conforms, one.table()
    assert len(one.refusals) == len(small().nodes) * len(ROWS) - offered


class Liar(c.ModelDriver):
    """Shows a variable otherwise than it is, where `lie` says so."""

    def __init__(self, **lie: object) -> None:
        self.lie = lie

    def observe(self) -> Mapping[str, object]:
        seen = dict(super().observe())
        return {**seen, **self.lie} if seen["state"] == "Failed" else seen


@pytest.mark.parametrize(
    ("lie", "breaks"),
    [
        ({"lock": "ours"}, {"FailedLeavesNothing"}),
        ({"residue": {"directory"}}, {"FailedLeavesNothing"}),
        ({"cause": "fault"}, set()),
        ({"image": "rewritten"}, {"RunsVerifiedBytes"}),
        ({"alive": 1}, set()),
    ],
)
def test_a_lie_is_found(lie: dict[str, object], breaks: set[str]) -> None:
    """A launcher that shows something else fails each edge where it does, with the variable and what that breaks."""
    report = c.examine(Liar(**lie), small())
    assert report.faults and not report.conforms
    for finding in report.faults:
        assert finding.edge.target.facts.state == "Failed"
        assert finding.variable == next(iter(lie)) and finding.observed == next(iter(lie.values()))
        if finding.edge.target.facts.cause != "left_behind":
            assert breaks <= set(finding.breaks)
    assert report.counts()[c.Verdict.UNREACHED]  # what comes after FailDirty


class Obliging(c.ModelDriver):
    """Takes whatever it is asked for, unless a machine would have to be forced."""

    def fire(self, action: str) -> None:
        if action in c.offered(self._facts):
            super().fire(action)


def test_a_missing_refusal_is_found() -> None:
    """A launcher that does not refuse what is not offered fails there."""
    report = c.judge(Obliging(), c.cover(small()), refuse=c.everything)
    assert not report.counts()[c.Verdict.FAILED]
    assert {f.why for f in report.refusals.values()} == {"not refused"}


def test_an_unknown_variable_is_an_error() -> None:
    """A driver's spelling mistake does not pass for an observation."""
    with pytest.raises(ValueError, match="stagd"):
        c.difference(Facts(), {"stagd": "nothing"})


def test_what_is_seen_only_so_far() -> None:
    """`one_of` agrees with each of its values and no other."""
    assert c.difference(Facts(), {"base": c.one_of("absent", "private")}) is None
    assert c.difference(Facts(), {"base": c.one_of("hostile", "private")}) is not None


class Timid(c.ModelDriver):
    """Cannot do one thing of the environment."""

    def disturb(self, action: str) -> None:
        if action == "FillDisk":
            raise c.Unsupported("no disk to fill")
        super().disturb(action)


def test_what_cannot_be_done_is_no_pass() -> None:
    """An unsupported edge is reported with its reason, and what only it leads to as unreached."""
    report = c.examine(Timid(), small())
    assert not report.faults and not report.conforms
    assert {f.why for f in report.of(c.Verdict.UNSUPPORTED)} == {"no disk to fill"}
    assert all(not f.edge.source.facts.space for f in report.of(c.Verdict.UNREACHED))


def test_report_for_people_and_programs() -> None:
    """The table names the first differences, and the JSON has them all."""
    report = c.examine(Liar(cause="fault"), small())
    text, data = report.table(limit=3), json.loads(report.json())
    assert "FailSpace" in text and "cause is fault, expected" in text and "more" in text
    assert data["conforms"] is False and data["edges"]["failed"] == len(report.faults)
    found = next(f for f in data["findings"] if f["action"] == "FailSpace")
    assert (found["variable"], found["expected"], found["observed"]) == ("cause", "no_space", "fault")
    assert found["path"] and found["source"]["space"] is False


def test_a_trace_is_saved_and_read_again(tmp_path: Path) -> None:
    """A walk written as ITF is the same walk when it is read, refusals included, and can be replayed."""
    walk = next(w for w in c.cover(small()) if "FailDirty" in w.actions)
    last = walk.edges[-1].target
    walk = c.Walk(walk.begin, (*walk.edges, c.refusals(last)[0]))
    path = tmp_path / "trace.itf.json"
    c.save(walk, path)
    assert c.load(path) == walk
    data = json.loads(path.read_text())
    assert data["#meta"]["format"] == "ITF" and set(data["states"][0]) - {"#meta"} == set(data["vars"])
    theirs = trace_from_json(data)  # by the format's own library
    assert [state.meta["action"] for state in theirs.states[1:]] == list(walk.actions)
    for state, node in zip(theirs.states, [walk.begin, *(edge.target for edge in walk.edges)], strict=True):
        assert state.values == {**node.facts.as_dict(), "residue": node.facts.residue, "budget": node.budget}
    assert c.replay(path, c.ModelDriver()).conforms
    path.write_text("[]")
    with pytest.raises(ValueError, match="not an ITF trace"):
        c.load(path)
