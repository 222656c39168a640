"""Which edges of the graph the launcher does not come to by itself, and why; each by name, none twice."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from nucleus_gvisor.model.conformance import Edge, Graph, explore
from nucleus_gvisor.model.states import LaunchState
from nucleus_gvisor.model.table import ROWS


@dataclass(frozen=True)
class Known:
    """`action` where the facts have these values."""

    action: str
    why: str
    where: dict[str, object] = field(default_factory=dict)

    def matches(self, edge: Edge) -> bool:
        facts = edge.source.facts.as_dict()
        return edge.action == self.action and all(facts[name] == value for name, value in self.where.items())


LIMITS_FIRST = "limits and options are judged before any path is touched"
BASE_FIRST = "the lock and the bundle are looked at in a sound base only"
CHANGED_FIRST = "the file's times are compared before a byte of it is read"
CONFINED_FIRST = "the binary is asked where it is confined, so the confinement comes first"

NOT_FOUND_OUT = (
    Known("FailNotFound", LIMITS_FIRST, {"request": False}),
    Known("FailUntrusted", LIMITS_FIRST, {"request": False}),
    *(
        Known(action, LIMITS_FIRST, {"request": True, "enforcement": "best_effort", "method": "kept"})
        for action in ("FailNotFound", "FailUntrusted")
    ),
    Known("FailBusy", BASE_FIRST, {"base": "hostile"}),
    Known("FailBundle", BASE_FIRST, {"base": "hostile"}),
    Known("FailBundle", "the lock is taken before the bundle is read", {"lock": "theirs"}),
    Known("FailPin", CHANGED_FIRST, {"held": "rewritten"}),
    Known("FailSpace", CHANGED_FIRST, {"held": "rewritten"}),
    Known("FailSpace", "the pin is compared before anything is written", {"pin": "mismatch"}),
    Known("FailUnfit", CONFINED_FIRST, {"userns": False}),
    Known("FailUnfit", CONFINED_FIRST, {"holds": False}),
    Known(
        "FailUnfit",
        "runsc under Landlock is refused before anything is started",
        {"enforcement": "required", "confinement": "landlock", "program": "runsc"},
    ),
)
"""Failures that the specification allows beside another one that the launcher meets first: it looks in a fixed order.

They are replayed all the same, with the reason given to the launcher instead of found by it: what is then real is that
everything is unmade (test_replay.py)."""


@cache
def graph() -> Graph:
    """All of it."""
    return explore()


def known(edge: Edge, table: Iterable[Known] = NOT_FOUND_OUT) -> Known | None:
    """The entry for `edge`, when it has one."""
    return next((entry for entry in table if entry.matches(edge)), None)


def askable(edge: Edge) -> bool:
    """Can a launcher that really runs be asked for this refusal, and then go on.

    Not before its launch has begun, for beginning is looking, and not for its next step: a step that is refused and the
    unwinding after it are one, seen in the edges Fail*. Nor for what is none of its doing: runsc's start, and anything
    at all once it is dead.
    """
    facts, row = edge.source.facts, ROWS[edge.action]
    if edge.action == "Collect":
        return True
    if edge.action == "GuestStarts" or not facts.alive or facts.state is LaunchState.UNRESOLVED:
        return False
    return facts.state not in row.sources or edge.action.startswith("Fail")
