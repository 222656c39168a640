"""The specification's invariants and action properties, each a function of facts under its own name."""

from collections.abc import Callable, Mapping

from nucleus_gvisor.model import guards
from nucleus_gvisor.model.facts import OPTIONS, Facts, type_ok
from nucleus_gvisor.model.states import PATH, TERMINAL, LaunchState

S = LaunchState


def TypeOK(f: Facts) -> bool:
    """Every variable is in its domain."""
    return type_ok(f)


def RunsVerifiedBytes(f: Facts) -> bool:
    """What runs is what was judged, whatever happened at the path."""
    return f.image in {"none", "trusted"}


def PinHonoured(f: Facts) -> bool:
    """Nothing runs that the pin does not name."""
    return f.image == "none" or f.pin != "mismatch"


def RequiredMeansConfined(f: Facts) -> bool:
    """With enforcement `required`, what runs is confined as asked, and that was shown from inside."""
    return f.state != S.EXECD or f.enforcement != "required" or (f.confined == f.confinement and f.proved)


def NothingRunsUnlessExecd(f: Facts) -> bool:
    """No image without Exec'd, and no guest without an image."""
    return (f.image == "none" or f.state == S.EXECD) and (f.guest == "none" or f.image != "none")


def FailedLeavesNothing(f: Facts) -> bool:
    """A failed launch holds nothing, and leaves nothing on disk unless it says so."""
    if f.state != S.FAILED:
        return True
    empty = f.lock != "ours" and f.held == "nothing" and f.staged == "nothing" and f.confined == "none"
    return empty and (f.residue == frozenset() or f.cause == "left_behind")


def CauseIffFailed(f: Facts) -> bool:
    """A cause is named exactly when the launch has failed."""
    return (f.cause != "none") == (f.state == S.FAILED)


def ConfinedCanMount(f: Facts) -> bool:
    """runsc is never started under a confinement in which it would hang."""
    return f.guest != "stuck"


def ProofIsOfConfinement(f: Facts) -> bool:
    """There is proof exactly of what was achieved."""
    return f.proved == (f.confined != "none")


def ExecMeansAllWasWell(f: Facts) -> bool:
    """What runs had everything that each step asks for."""
    if f.image == "none":
        return True
    place = f.base == "private" and f.bundle == "sound" and f.lock == "ours" and "directory" in f.residue
    copied = "stage" in f.residue and f.space if f.method == "copy" else "stage" not in f.residue
    kept = f.method != "kept" or (f.cache == "private" and f.confined == "mount-locked")
    return f.request and f.fit and f.execve and place and copied and kept


def ConfinedMeansHostCan(f: Facts) -> bool:
    """A confinement that is shown is the one asked for, on a host that has it and where the canaries stayed inside."""
    if f.state != S.EXECD or f.confined == "none":
        return True
    has = f.landlock if f.confined == "landlock" else f.userns
    return f.enforcement != "off" and f.confined == f.confinement and f.holds and has


def SkippedMeansCannot(f: Facts) -> bool:
    """With best effort it runs unconfined only where it could not be had."""
    skipped = f.state == S.EXECD and f.confined == "none" and f.enforcement == "best_effort"
    return not (skipped and guards.CanConfine(f))


_TRUTHS: Mapping[str, Callable[[Facts], bool]] = {
    "bad_request": lambda f: not guards.RequestSound(f),
    "not_found": lambda f: f.path == "absent",
    "untrusted_binary": lambda f: f.path == "forged",
    "untrusted_base": lambda f: f.base == "hostile",
    "bad_bundle": lambda f: f.bundle == "hostile",
    "busy": lambda f: f.lock == "theirs",
    "pin_mismatch": lambda f: f.pin == "mismatch",
    "no_space": lambda f: f.method == "copy" and not f.space,
    "untrusted_cache": lambda f: f.method == "kept" and f.cache == "hostile",
    "kept_changed": lambda f: f.method == "kept" and f.cache == "changed",
    "unfit": lambda f: f.program == "runsc" and not f.fit,
    "incompatible": lambda f: guards.Required(f) and f.confinement == "landlock" and f.program == "runsc",
    "cannot_confine": lambda f: guards.Required(f) and guards.Compatible(f) and not guards.Available(f),
    "not_proved": lambda f: guards.Required(f) and guards.Compatible(f) and guards.Available(f) and not f.holds,
    "exec_refused": lambda f: not f.execve,
    "fault": lambda f: not f.calls,
    "left_behind": lambda f: not f.calls,
}


def CauseIsTrue(f: Facts) -> bool:
    """The error names what is so. Of `changed` nothing can be seen any more: the descriptor is let go of."""
    return f.cause not in _TRUTHS or _TRUTHS[f.cause](f)


INVARIANTS: tuple[Callable[[Facts], bool], ...] = (
    TypeOK,
    RunsVerifiedBytes,
    PinHonoured,
    RequiredMeansConfined,
    NothingRunsUnlessExecd,
    FailedLeavesNothing,
    CauseIffFailed,
    ConfinedCanMount,
    ProofIsOfConfinement,
    ExecMeansAllWasWell,
    ConfinedMeansHostCan,
    SkippedMeansCannot,
    CauseIsTrue,
)


def OnlyForward(f: Facts, g: Facts) -> bool:
    """The launch state moves one step along the path, or to Failed, or stays; terminal states are stable."""
    if f.state == g.state:
        return True
    if f.state in TERMINAL:
        return False
    return g.state == S.FAILED or PATH.index(g.state) == PATH.index(f.state) + 1


def OptionsAreFixed(f: Facts, g: Facts) -> bool:
    """What was asked for does not change under way."""
    return all(getattr(f, name) == getattr(g, name) for name in OPTIONS)


def NeverLessConfined(f: Facts, g: Facts) -> bool:
    """Once confined, never less, except that a failed or killed launch has no process left to confine."""
    return f.confined == "none" or g.confined == f.confined or g.state == S.FAILED or not g.alive


def DeadDoNothing(f: Facts, g: Facts) -> bool:
    """A killed launcher changes no state and starts nothing."""
    return f.alive or (g.state == f.state and g.image == f.image)


def CauseIsFinal(f: Facts, g: Facts) -> bool:
    """The first reason is the one that is told."""
    return f.cause in ("none", g.cause)


def LeftMeansResidue(f: Facts, g: Facts) -> bool:
    """Said to be left behind is only what is there, and by the step that leaves it."""
    left = f.cause == "none" and g.cause == "left_behind"
    return not left or (f.residue != frozenset() and g.residue == f.residue)


def LockIsRespected(f: Facts, g: Facts) -> bool:
    """While another launch has the id, its lock and the container's directory are let alone."""
    return f.lock != "theirs" or (g.lock == f.lock and g.residue == f.residue)


def BaseIsRespected(f: Facts, g: Facts) -> bool:
    """A base or a cache that others could have prepared is not mended and not built upon."""
    staged = f.state == S.PREPARED and g.state == S.STAGED and f.method == "kept"
    base = (f.base != "hostile" or (g.base == f.base and g.residue == f.residue)) and (
        not staged or g.cache == "private"
    )
    return base and (f.cache != "hostile" or g.cache == f.cache)


STEPS: tuple[Callable[[Facts, Facts], bool], ...] = (
    OnlyForward,
    OptionsAreFixed,
    NeverLessConfined,
    DeadDoNothing,
    CauseIsFinal,
    LeftMeansResidue,
    LockIsRespected,
    BaseIsRespected,
)


def violated(before: Facts, after: Facts) -> list[str]:
    """Names of the properties that the step `before` -> `after` breaks; empty when all hold."""
    return [p.__name__ for p in INVARIANTS if not p(after)] + [p.__name__ for p in STEPS if not p(before, after)]
