"""The drawings are of the committed graph, and a slice of it shows what happens there."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from nucleus_gvisor.model.conformance import ENVIRONMENT
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import draw, graph

GRAPH = graph.load()


@pytest.mark.parametrize("name", ["states.mmd", "states.svg"])
def test_committed_drawings_are_current(name: str, tmp_path: Path) -> None:
    """What is committed is what is drawn now: `spec graph --draw` writes it anew."""
    assert graph.main(["--draw", str(tmp_path / name)]) == 0
    assert (graph.HERE / name).read_text() == (tmp_path / name).read_text()


@pytest.mark.parametrize("svg", [False, True])
def test_every_state_and_action_is_drawn(svg: bool) -> None:
    """Each launch state has a box, and each action of the graph is named; the environment apart from the system."""
    picture = draw.quotient(graph.steps(GRAPH), svg=svg)
    for word in (*LaunchState, *ROWS, *ENVIRONMENT):
        assert str(word) in picture
    if svg:
        texts = [e for e in ElementTree.fromstring(picture).iter() if e.tag.endswith("text")]
        told = " ".join(e.text or "" for e in texts if e.get("class") == "environment").replace(",", " ").split()
    else:
        told = [word for line in picture.splitlines() if "Environment:" in line for word in _names(line)]
    assert {*told} - {"Environment"} == set(ENVIRONMENT)


def _names(line: str) -> list[str]:
    return line.partition(": ")[2].replace("<br/>", ", ").split(", ")


def test_arrows_are_the_graphs_own() -> None:
    """An arrow says exactly the actions that lead from one launch state to the other."""
    shown = {
        (line.split()[0], line.split(" --> ")[1].partition(":")[0]): set(_names(line))
        for line in draw.quotient(graph.steps(GRAPH)).splitlines()
        if " --> " in line and "[*]" not in line
    }
    expected: dict[tuple[str, str], set[str]] = {}
    for source, action, target in graph.steps(GRAPH):
        if action in ROWS:
            expected.setdefault((source.replace("'", ""), target.replace("'", "")), set()).add(action)
    assert shown == expected


def test_a_slice_shows_what_happens_there(capsys: pytest.CaptureFixture[str]) -> None:
    """`--where` leaves out the steps that begin where the variable has another value."""
    assert graph.main(["--draw", "-", "--where", "method=copy", "--where", "space=false"]) == 0
    shown = capsys.readouterr().out
    assert "FailSpace" in shown and "Staged" not in shown and "StageCopy" not in shown and "StageSealed" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--draw", "x.png"], "not .svg, .mmd or -"),
        (["--draw", "-", "--where", "metod=copy"], "'metod' is no variable"),
        (["--draw", "-", "--where", "method=memfd"], "method is one of copy, kept, sealed, set, store"),
        (["--where", "method=copy"], "--where belongs to --draw"),
    ],
)
def test_what_cannot_be_drawn_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the arguments is answered with what there is."""
    with pytest.raises(SystemExit):
        graph.main(arguments)
    assert words in capsys.readouterr().err
