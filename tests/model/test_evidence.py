"""Exec asks again for what every earlier step has made sure of, each piece by itself.

No launch comes to Confined without all of them, so that the graph cannot tell: these are facts that a defect makes, or
whoever bends our own data.
"""

from dataclasses import replace

import pytest

from nucleus_gvisor.model.errors import GuardRefused
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import ConfinedMeansHostCan, RequiredMeansConfined
from nucleus_gvisor.model.machine import LaunchMachine
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.steps import NoSteps

WHOLE = Facts(
    state=LaunchState.CONFINED, held="trusted", staged="trusted", base="private", lock="ours",
    residue=frozenset({"directory"}), confined="mount-locked", proved=True,
)  # fmt: skip


def refused(facts: Facts) -> str:
    """The guard that refuses Exec."""
    with pytest.raises(GuardRefused) as caught:
        LaunchMachine(facts, NoSteps()).fire("Exec")
    return caught.value.guard


@pytest.mark.parametrize(
    "lacking",
    [
        {"staged": "rewritten"}, {"staged": "nothing"}, {"lock": "free"}, {"lock": "theirs"}, {"fit": False},
        {"method": "kept", "cache": "changed"},
        {"proved": False}, {"confined": "none"}, {"confined": "landlock"},
    ],
    ids=str,
)  # fmt: skip
def test_exec_is_refused_without_each_piece_of_evidence(lacking: dict[str, object]) -> None:
    """With all of it Exec's guard holds up to the launch's records; without one piece it refuses."""
    assert refused(replace(WHOLE, **lacking)) == "Evidenced"  # type: ignore[arg-type]


@pytest.mark.parametrize("enforcement", ["best_effort", "off"])
@pytest.mark.parametrize("lacking", [{"staged": "rewritten"}, {"lock": "free"}, {"fit": False}], ids=str)
def test_so_it_is_where_confinement_is_not_required(lacking: dict[str, object], enforcement: str) -> None:
    """Only the confinement's own evidence may be missing then."""
    facts = replace(WHOLE, enforcement=enforcement, confined="none", proved=False, **lacking)  # type: ignore[arg-type]
    assert refused(facts) == "Evidenced"


@pytest.mark.parametrize("lacking", [{"proved": False}, {"confined": "none"}, {"confined": "landlock"}], ids=str)
def test_what_runs_is_confined_and_shown_to_be(lacking: dict[str, object]) -> None:
    """The invariant by itself tells it, also where another one would."""
    running = replace(WHOLE, state=LaunchState.EXECD, image="trusted")
    assert RequiredMeansConfined(running)
    assert not RequiredMeansConfined(replace(running, **lacking))  # type: ignore[arg-type]


def test_of_a_host_that_changed_its_mind_nothing_is_said_before_exec() -> None:
    """The invariant is about what runs: a confined launch may still fail."""
    assert ConfinedMeansHostCan(replace(WHOLE, userns=False))
    assert not ConfinedMeansHostCan(replace(WHOLE, userns=False, state=LaunchState.EXECD, image="trusted"))
