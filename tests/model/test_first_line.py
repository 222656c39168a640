"""What a record may begin with, and what is no step where it stands."""

from typing import Any

import pytest

from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import Follower, fold
from nucleus_gvisor.model.states import LaunchState
from tests.model.launches import launch, plain, sealed

RUN = launch(LaunchState.PREPARED).records


def rejected(lines: list[dict[str, Any]]) -> RecordRejected:
    """The rejection of these lines, their chain whole."""
    with pytest.raises(RecordRejected) as caught:
        fold(parse_all(sealed(lines)))
    return caught.value


@pytest.mark.parametrize("other", [{"action": "Resolve"}, {"action": "Kill"}, {"seen": {"path": "trusted"}}], ids=str)
def test_a_first_line_is_nothing_but_a_beginning(other: dict[str, object]) -> None:
    """With the facts of a beginning, but as another action, or with something seen before, it is none."""
    first, *_ = plain(RUN)
    assert fold(parse_all(sealed([first]))).state == LaunchState.UNRESOLVED
    assert rejected([{**first, **other}]).reason == "begin"


@pytest.mark.parametrize("action", ["Prepare", "StageSealed", "Exec", "GuestStarts"])
def test_an_action_of_another_state_is_rejected_as_not_offered(action: str) -> None:
    """Also where the line names the state in which the launch stands, and leaves all as it was."""
    first, second, *_ = plain(RUN)
    error = rejected([first, {**second, "action": action, "dest": first["dest"], "facts": first["facts"]}])
    assert (error.reason, f"{action} is not offered in Unresolved" in str(error)) == ("guard", True)


def test_nothing_is_not_complete() -> None:
    """A follower that has read no line has come to no end."""
    assert not Follower().complete
