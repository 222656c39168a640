"""Pure predicates over facts, each named as in the specification. A guard looks; it never touches the world."""

from nucleus_gvisor.model.facts import Facts


def Alive(f: Facts) -> bool:
    """The launcher's process is there."""
    return f.alive


def RequestSound(f: Facts) -> bool:
    """Id, options, arguments and limits can be passed on, and what is kept is asked for by a launch that is locked."""
    return f.request and (not UsesKept(f) or (Required(f) and WantsLocked(f)))


def BinaryTrusted(f: Facts) -> bool:
    """What lies at the path passed the judgement."""
    return f.path == "trusted"


def BinaryAbsent(f: Facts) -> bool:
    return f.path == "absent"


def BinaryForged(f: Facts) -> bool:
    return f.path == "forged"


def BaseSound(f: Facts) -> bool:
    """The artifact base and all above it are the caller's or root's alone."""
    return f.base != "hostile"


def BundleSound(f: Facts) -> bool:
    return f.bundle == "sound"


def LockFree(f: Facts) -> bool:
    return f.lock == "free"


def LockTheirs(f: Facts) -> bool:
    return f.lock == "theirs"


def SourceUnchanged(f: Facts) -> bool:
    """The descriptor still refers to the bytes that were judged."""
    return f.held == "trusted"


def PinAgrees(f: Facts) -> bool:
    return f.pin != "mismatch"


def SpaceLeft(f: Facts) -> bool:
    """Only the private copy needs room of its size; where there is room for nothing, calls fail (CallsWork)."""
    return f.method != "copy" or f.space


def UsesSealed(f: Facts) -> bool:
    return f.method == "sealed"


def UsesSet(f: Facts) -> bool:
    return f.method == "set"


def UsesCopy(f: Facts) -> bool:
    return f.method == "copy"


def UsesStore(f: Facts) -> bool:
    return f.method == "store"


def UsesKept(f: Facts) -> bool:
    return f.method == "kept"


def CacheSound(f: Facts) -> bool:
    """Nobody else can write the cache."""
    return not UsesKept(f) or f.cache != "hostile"


def KeptUnchanged(f: Facts) -> bool:
    """What is kept is as it was when it was hashed."""
    return not UsesKept(f) or f.cache != "changed"


def Fit(f: Facts) -> bool:
    """The sealed binary answered as what was asked for."""
    return f.fit


def Asked(f: Facts) -> bool:
    """Confinement was asked for: rootless or not (the reference asks only when rootless, gvisor.rs:363)."""
    return f.enforcement != "off"


def Required(f: Facts) -> bool:
    return f.enforcement == "required"


def WantsLocked(f: Facts) -> bool:
    return f.confinement == "mount-locked"


def WantsLandlock(f: Facts) -> bool:
    return f.confinement == "landlock"


def Compatible(f: Facts) -> bool:
    """A process under Landlock cannot mount, and runsc must: that launch would hang."""
    return not (f.confinement == "landlock" and f.program == "runsc")


def Available(f: Facts) -> bool:
    """The host permits what the confinement needs."""
    return f.landlock if f.confinement == "landlock" else f.userns


def Holds(f: Facts) -> bool:
    """The canaries stay inside."""
    return f.holds


def CanConfine(f: Facts) -> bool:
    return Compatible(f) and Available(f) and Holds(f)


def MaySkip(f: Facts) -> bool:
    """Confinement was not asked for, or only as far as it can be had."""
    return not Asked(f) or (f.enforcement == "best_effort" and not CanConfine(f))


def ConfinedAsAsked(f: Facts) -> bool:
    """What was asked for is in force, and was shown from inside."""
    return f.confined == f.confinement and f.proved


def Evidenced(f: Facts) -> bool:
    """The evidence of every earlier step is there."""
    staged = f.staged == "trusted" and KeptUnchanged(f)
    return staged and f.lock == "ours" and f.fit and (ConfinedAsAsked(f) or not Required(f))


def ExecvePermitted(f: Facts) -> bool:
    return f.execve


def CallsWork(f: Facts) -> bool:
    return f.calls


def GuestNotYet(f: Facts) -> bool:
    return f.guest == "none"


def HasResidue(f: Facts) -> bool:
    return bool(f.residue)
