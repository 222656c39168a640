"""The variables of the specification as one frozen value: all that a guard may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from nucleus_gvisor.model.states import LaunchState

Value = str | bool | frozenset[str]

DOMAINS: Mapping[str, frozenset[Value]] = {
    "state": frozenset(LaunchState),
    "cause": frozenset(
        {
            "none", "bad_request", "not_found", "untrusted_binary", "untrusted_base", "busy", "bad_bundle", "changed",
            "pin_mismatch", "no_space", "untrusted_cache", "kept_changed", "incompatible", "cannot_confine",
            "not_proved", "unfit", "exec_refused", "fault", "left_behind",
        }
    ),
    "enforcement": frozenset({"required", "best_effort", "off"}),
    "confinement": frozenset({"mount-locked", "landlock"}),
    "method": frozenset({"sealed", "set", "copy", "store", "kept"}),
    "program": frozenset({"runsc", "plain"}),
    "alive": frozenset({True, False}),
    "request": frozenset({True, False}),
    "path": frozenset({"trusted", "absent", "forged"}),
    "held": frozenset({"nothing", "trusted", "rewritten"}),
    "pin": frozenset({"none", "match", "mismatch"}),
    "staged": frozenset({"nothing", "trusted", "rewritten"}),
    "fit": frozenset({True, False}),
    "base": frozenset({"absent", "private", "hostile"}),
    "bundle": frozenset({"sound", "hostile"}),
    "cache": frozenset({"private", "hostile", "changed"}),
    "lock": frozenset({"free", "ours", "theirs"}),
    "userns": frozenset({True, False}),
    "landlock": frozenset({True, False}),
    "holds": frozenset({True, False}),
    "space": frozenset({True, False}),
    "execve": frozenset({True, False}),
    "calls": frozenset({True, False}),
    "confined": frozenset({"none", "landlock", "mount-locked"}),
    "proved": frozenset({True, False}),
    "image": frozenset({"none", "trusted", "rewritten"}),
    "guest": frozenset({"none", "running", "stuck"}),
}  # fmt: skip
"""TypeOK, field by field; `residue` is a subset of RESIDUE."""

RESIDUE = frozenset({"directory", "stage"})

OPTIONS = frozenset({"enforcement", "confinement", "method", "program"})
"""What was asked for; never changes."""

WORLD = frozenset(
    {"request", "path", "held", "pin", "fit", "base", "bundle", "cache", "lock", "userns", "landlock", "holds",
     "space", "execve", "calls"}
)  # fmt: skip
"""What an observation may change between two steps: the host's and the adversary's part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One state of the specification (`vars` of GVisorRuntime.tla), each variable a field of the same name."""

    state: LaunchState = LaunchState.UNRESOLVED
    cause: str = "none"
    """Why it failed, or "none"."""
    enforcement: str = "required"
    confinement: str = "mount-locked"
    method: str = "sealed"
    program: str = "runsc"
    alive: bool = True
    """Is the launcher's process there."""
    request: bool = True
    """Can what was asked for be done at all."""
    path: str = "trusted"
    """What lies at runsc's path now."""
    held: str = "nothing"
    """What the judged descriptor refers to."""
    pin: str = "none"
    """How the held bytes compare with the pin."""
    staged: str = "nothing"
    """The bytes that would be executed."""
    fit: bool = True
    """Do the sealed bytes answer as a runsc that can do what was asked."""
    base: str = "absent"
    """The artifact base and the container's directory in it."""
    bundle: str = "sound"
    cache: str = "private"
    """The directory of what is kept, and what is kept in it."""
    lock: str = "free"
    """The lock of this container id."""
    residue: frozenset[str] = frozenset()
    """What would be left on disk if all stopped now."""
    userns: bool = True
    """Does the host permit what mount-locked needs."""
    landlock: bool = True
    holds: bool = True
    """Do the canaries stay inside."""
    space: bool = True
    execve: bool = True
    calls: bool = True
    """False once a system call that a step needs has failed."""
    confined: str = "none"
    """What was achieved."""
    proved: bool = False
    """Was it shown from inside."""
    image: str = "none"
    """What execve was given."""
    guest: str = "none"
    """What became of it."""

    def seen(self, world: Mapping[str, object]) -> "Facts":
        """These facts with what an observation has just shown; ValueError for a field that is not the world's.

        `available` stands for what the confinement asked for needs of the host: `landlock` or `userns`.
        """
        changes = dict(world)
        if "available" in changes:
            changes["landlock" if self.confinement == "landlock" else "userns"] = changes.pop("available")
        if strange := set(changes) - WORLD:
            raise ValueError(f"not observable: {', '.join(sorted(strange))}")
        for name, value in changes.items():
            if type(value) not in (str, bool) or value not in DOMAINS[name]:
                raise ValueError(f"not a value of {name}: {value!r}")
        return replace(self, **changes) if changes else self  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """JSON data with the specification's names and values."""
        return {name: getattr(self, name) for name in DOMAINS} | {"residue": sorted(self.residue)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Facts":
        """The facts that `as_dict` wrote; ValueError unless every field is there and in its domain."""
        if not isinstance(data, Mapping) or set(data) != NAMES:
            raise ValueError("facts: fields missing or unknown")
        values = dict(data)
        residue = values["residue"]
        if not isinstance(residue, list) or not all(isinstance(item, str) for item in residue):
            raise ValueError("facts: residue is not a list of names")
        if residue != sorted(set(residue)):
            raise ValueError("facts: residue is not written as a set is")
        values["residue"] = frozenset(residue)
        for name, domain in DOMAINS.items():
            # JSON's 1 equals True in Python; the specification's TRUE is not a number.
            if not isinstance(values[name], str | bool) or values[name] not in domain:
                raise ValueError(f"facts: {name} = {values[name]!r}")
        values["state"] = LaunchState(str(values["state"]))
        facts = cls(**values)  # type: ignore[arg-type]
        if not type_ok(facts):
            raise ValueError("facts: residue unknown")
        return facts


NAMES = frozenset(f.name for f in fields(Facts))


def type_ok(f: Facts) -> bool:
    """Spec: GVisorRuntime!TypeOK."""
    return f.residue <= RESIDUE and all(getattr(f, name) in domain for name, domain in DOMAINS.items())
