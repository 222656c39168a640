"""What can happen to a launch: the specification's `Environment`, pure.

Each disturbance changes one variable of the world; its executable twin (a real rename, chmod, full file system,
SIGKILL) lives in the tests.
"""

from dataclasses import dataclass, replace

from nucleus_gvisor.model.facts import Facts, Value
from nucleus_gvisor.model.states import PATH, TERMINAL, LaunchState

S = LaunchState


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`field` goes from `old` to `new`, in any state up to `last`."""

    action: str
    field: str
    old: Value
    new: Value
    last: LaunchState
    program: str = ""
    """The only program that it can happen to; any when empty."""
    method: str = ""
    """The only way of staging, likewise."""

    def possible(self, f: Facts) -> bool:
        """May it happen now: the launcher is alive, under way, and not past `last`."""
        here = (
            f.alive and during(f.state, self.last) and self.program in ("", f.program) and self.method in ("", f.method)
        )
        return here and getattr(f, self.field) == self.old

    def after(self, f: Facts) -> Facts:
        return replace(f, **{self.field: self.new})  # type: ignore[arg-type]


def during(state: LaunchState, last: LaunchState) -> bool:
    """Is `state` a state of a launch under way, not past `last`."""
    return state not in TERMINAL and PATH.index(state) <= PATH.index(last)


DISTURBANCES = (
    Disturbance("MalformRequest", "request", True, False, S.UNRESOLVED),
    Disturbance("SwapBinary", "path", "trusted", "forged", S.PREPARED),
    Disturbance("RemoveBinary", "path", "trusted", "absent", S.PREPARED),
    Disturbance("RewriteInPlace", "held", "trusted", "rewritten", S.PREPARED),
    Disturbance("OtherRelease", "pin", "match", "mismatch", S.PREPARED),
    Disturbance("Impostor", "fit", True, False, S.STAGED, program="runsc"),
    Disturbance("SpoilBase", "base", "absent", "hostile", S.RESOLVED),
    Disturbance("SpoilBundle", "bundle", "sound", "hostile", S.RESOLVED),
    Disturbance("OtherTakesLock", "lock", "free", "theirs", S.RESOLVED),
    Disturbance("FillDisk", "space", True, False, S.PREPARED),
    Disturbance("OpenCache", "cache", "private", "hostile", S.PREPARED, method="kept"),
    Disturbance("SwapKept", "cache", "private", "changed", S.STAGED, method="kept"),
    Disturbance("DenyUserns", "userns", True, False, S.STAGED),
    Disturbance("DenyLandlock", "landlock", True, False, S.STAGED),
    Disturbance("LeakConfinement", "holds", True, False, S.STAGED),
    Disturbance("RefuseExecve", "execve", True, False, S.CONFINED),
    Disturbance("BreakCall", "calls", True, False, S.CONFINED),
)


def kill(f: Facts) -> Facts | None:
    """SIGKILL of the launcher: the kernel drops its lock and its memory; None where it cannot happen."""
    if not f.alive or f.state in TERMINAL:
        return None
    lock = "free" if f.lock == "ours" else f.lock
    return replace(f, alive=False, held="nothing", staged="nothing", lock=lock, confined="none", proved=False)


def explains(before: Facts, after: Facts) -> list[str] | None:
    """The disturbances that turn `before` into `after`, or None when no sequence of them does."""
    found, facts = [], before
    for d in DISTURBANCES:
        if getattr(after, d.field) == d.new and d.possible(facts):
            facts = d.after(facts)
            found.append(d.action)
    return found if facts == after else None
