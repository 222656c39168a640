"""The seven states of a launch, spelled as the specification spells them."""

from enum import StrEnum


class LaunchState(StrEnum):
    """Where a launch stands. Values are the strings of `spec/GVisorRuntime.tla`."""

    UNRESOLVED = "Unresolved"
    RESOLVED = "Resolved"
    PREPARED = "Prepared"
    STAGED = "Staged"
    CONFINED = "Confined"
    EXECD = "Exec'd"
    FAILED = "Failed"


PATH = (
    LaunchState.UNRESOLVED,
    LaunchState.RESOLVED,
    LaunchState.PREPARED,
    LaunchState.STAGED,
    LaunchState.CONFINED,
    LaunchState.EXECD,
)
"""The one way to a running guest, in order."""

TERMINAL = frozenset({LaunchState.EXECD, LaunchState.FAILED})
"""States that are never left."""
