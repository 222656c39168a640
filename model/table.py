"""The transition table: one frozen row for each action of the specification's `System`. Data, nothing else.

The machine, the documentation, the graph and the tests are derived from it. `effect` is the action's primed
assignments; the state and the cause are filled in from the row itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nucleus_gvisor.model import guards as g
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.states import PATH, LaunchState

Guard = Callable[[Facts], bool]
Effect = Callable[[Facts], Facts]
S = LaunchState


@dataclass(frozen=True, slots=True)
class Not:
    """The negation of a guard, under the name that the specification writes it with."""

    guard: Guard

    @property
    def __name__(self) -> str:
        return f"~{self.guard.__name__}"

    def __call__(self, f: Facts) -> bool:
        return not self.guard(f)


@dataclass(frozen=True, slots=True)
class Row:
    """One action: where it may happen, what must hold, what it changes."""

    action: str
    sources: tuple[LaunchState, ...]
    dest: LaunchState | None
    """None: the launch state stays."""
    guards: tuple[Guard, ...]
    effect: Effect
    cause: str = "none"

    @property
    def trigger(self) -> str:
        """The machine's event for this action: `StageSealed` is `stage_sealed`."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in self.action).removeprefix("_")

    def after(self, f: Facts) -> Facts:
        """The facts once the action has happened."""
        changed = self.effect(f)
        return changed if self.dest is None else replace(changed, state=self.dest, cause=self.cause)


def _stage(f: Facts) -> Facts:
    return replace(f, staged=f.held)


def _stage_copy(f: Facts) -> Facts:
    return replace(f, staged=f.held, residue=f.residue | {"stage"})


def _stage_kept(f: Facts) -> Facts:
    return replace(f, staged=f.held, cache="private")


def _execute(f: Facts) -> Facts:
    """Spec: GVisorRuntime!Executed."""
    return replace(f, image="rewritten" if f.method == "kept" and f.cache == "changed" else f.staged)


def _confine(f: Facts) -> Facts:
    return replace(f, confined=f.confinement, proved=True)


def _guest(f: Facts) -> Facts:
    """The world's rule, not the guard's: a process under Landlock cannot mount, and runsc must."""
    return replace(f, guest="stuck" if f.program == "runsc" and f.confined == "landlock" else "running")


def _unwind(f: Facts) -> Facts:
    """All that was made is unmade; the child that confined itself is gone, and the parent never was confined."""
    lock = "free" if f.lock == "ours" else f.lock
    return replace(f, held="nothing", staged="nothing", lock=lock, residue=frozenset(), confined="none", proved=False)


def _unwind_dirty(f: Facts) -> Facts:
    return replace(_unwind(f), residue=f.residue)


def _same(f: Facts) -> Facts:
    return f


def _fail(action: str, cause: str, source: LaunchState, *guards: Guard) -> Row:
    return Row(action, (source,), S.FAILED, (g.Alive, *guards), _unwind, cause)


FORWARD = (
    Row("Resolve", (S.UNRESOLVED,), S.RESOLVED, (g.Alive, g.RequestSound, g.BinaryTrusted),
        lambda f: replace(f, held=f.path)),
    Row("Prepare", (S.RESOLVED,), S.PREPARED, (g.Alive, g.BaseSound, g.BundleSound, g.LockFree),
        lambda f: replace(f, base="private", lock="ours", residue=f.residue | {"directory"})),
    Row("StageSealed", (S.PREPARED,), S.STAGED, (g.Alive, g.UsesSealed, g.SourceUnchanged, g.PinAgrees), _stage),
    Row("StageSet", (S.PREPARED,), S.STAGED, (g.Alive, g.UsesSet, g.SourceUnchanged, g.PinAgrees), _stage),
    Row("StageCopy", (S.PREPARED,), S.STAGED,
        (g.Alive, g.UsesCopy, g.SourceUnchanged, g.PinAgrees, g.SpaceLeft), _stage_copy),
    Row("StageStore", (S.PREPARED,), S.STAGED, (g.Alive, g.UsesStore, g.SourceUnchanged, g.PinAgrees), _stage),
    Row("StageKept", (S.PREPARED,), S.STAGED,
        (g.Alive, g.UsesKept, g.CacheSound, g.SourceUnchanged, g.PinAgrees), _stage_kept),
    Row("ConfineLocked", (S.STAGED,), S.CONFINED,
        (g.Alive, g.Fit, g.Asked, g.WantsLocked, g.KeptUnchanged, g.Available, g.Holds), _confine),
    Row("ConfineLandlock", (S.STAGED,), S.CONFINED,
        (g.Alive, g.Fit, g.Asked, g.WantsLandlock, g.Compatible, g.Available, g.Holds), _confine),
    Row("ConfineSkipped", (S.STAGED,), S.CONFINED, (g.Alive, g.Fit, g.MaySkip), _same),
    Row("Exec", (S.CONFINED,), S.EXECD, (g.Alive, g.Evidenced, g.ExecvePermitted), _execute),
)  # fmt: skip

FAILURES = (
    _fail("FailRequest", "bad_request", S.UNRESOLVED, Not(g.RequestSound)),
    _fail("FailNotFound", "not_found", S.UNRESOLVED, g.BinaryAbsent),
    _fail("FailUntrusted", "untrusted_binary", S.UNRESOLVED, g.BinaryForged),
    _fail("FailBase", "untrusted_base", S.RESOLVED, Not(g.BaseSound)),
    _fail("FailBundle", "bad_bundle", S.RESOLVED, Not(g.BundleSound)),
    _fail("FailBusy", "busy", S.RESOLVED, g.LockTheirs),
    _fail("FailChanged", "changed", S.PREPARED, Not(g.SourceUnchanged)),
    _fail("FailPin", "pin_mismatch", S.PREPARED, Not(g.PinAgrees)),
    _fail("FailSpace", "no_space", S.PREPARED, Not(g.SpaceLeft)),
    _fail("FailCache", "untrusted_cache", S.PREPARED, Not(g.CacheSound)),
    _fail("FailUnfit", "unfit", S.STAGED, Not(g.Fit)),
    _fail("FailIncompatible", "incompatible", S.STAGED, g.Required, Not(g.Compatible)),
    _fail("FailConfine", "cannot_confine", S.STAGED, g.Required, g.Compatible, Not(g.Available)),
    _fail("FailUnproved", "not_proved", S.STAGED, g.Required, g.Compatible, g.Available, Not(g.Holds)),
    _fail("FailKept", "kept_changed", S.STAGED, Not(g.KeptUnchanged)),
    _fail("FailExec", "exec_refused", S.CONFINED, Not(g.ExecvePermitted)),
    Row("FailFault", PATH[:-1], S.FAILED, (g.Alive, Not(g.CallsWork)), _unwind, "fault"),
    Row("FailDirty", PATH[:-1], S.FAILED, (g.Alive, Not(g.CallsWork), g.HasResidue), _unwind_dirty, "left_behind"),
)

AFTERWARDS = (
    Row("GuestStarts", (S.EXECD,), None, (g.GuestNotYet,), _guest),
    Row("Collect", (*PATH[:-1], S.FAILED), None, (g.HasResidue, g.LockFree),
        lambda f: replace(f, residue=frozenset())),
)  # fmt: skip
"""What happens once the launcher is done or dead: runsc's own start, and the collection of leftovers."""

TRANSITIONS = FORWARD + FAILURES + AFTERWARDS
ROWS = {row.action: row for row in TRANSITIONS}
STAGE = {"sealed": "StageSealed", "set": "StageSet", "copy": "StageCopy", "store": "StageStore",
         "kept": "StageKept"}  # fmt: skip
CONFINE = {"mount-locked": "ConfineLocked", "landlock": "ConfineLandlock"}


def failure_row(state: LaunchState, cause: str) -> Row:
    """The failure that `cause` is in `state`; a cause that belongs to another state is a fault here."""
    for row in FAILURES:
        if row.cause == cause and state in row.sources:
            return row
    return ROWS["FailFault"]
