"""The specification's invariants and action properties, each a function of facts under its own name."""

from collections.abc import Callable

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


STEPS: tuple[Callable[[Facts, Facts], bool], ...] = (OnlyForward, OptionsAreFixed, NeverLessConfined, DeadDoNothing)


def violated(before: Facts, after: Facts) -> list[str]:
    """Names of the properties that the step `before` -> `after` breaks; empty when all hold."""
    return [p.__name__ for p in INVARIANTS if not p(after)] + [p.__name__ for p in STEPS if not p(before, after)]
