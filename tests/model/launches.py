"""Launches for tests: steps that keep count, ways to each state, and records that can be bent and sealed again."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nucleus_gvisor.model import errors
from nucleus_gvisor.model.errors import LaunchError
from nucleus_gvisor.model.facts import DOMAINS, Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import GENESIS, TransitionRecord, parse_all
from nucleus_gvisor.model.states import PATH, LaunchState

UNDER_WAY = PATH[:-1]
STAGING = {"sealed": "StageSealed", "set": "StageSet", "copy": "StageCopy", "store": "StageStore",
           "kept": "StageKept"}  # fmt: skip
CONFINING = {"mount-locked": "ConfineLocked", "landlock": "ConfineLandlock"}
Hook = Callable[[str], Mapping[str, object] | None]
Moment = tuple[LaunchState, Facts, tuple[TransitionRecord, ...]]


class Counted:
    """Steps without a world that note what was performed; `look` and `act` may answer, or raise, in their stead."""

    def __init__(self, look: Hook = lambda _: None, act: Hook = lambda _: None) -> None:
        self.look, self.act = look, act
        self.performed: list[str] = []

    def observe(self, action: str, facts: Facts) -> Mapping[str, object]:
        return self.look(action) or {}

    def perform(self, action: str, before: Facts, after: Facts) -> Mapping[str, object]:
        evidence = self.act(action)
        self.performed.append(action)
        return evidence or {}


def way(facts: Facts) -> tuple[str, ...]:
    """The actions of a launch with these options that nothing disturbs."""
    confine = "ConfineSkipped" if facts.enforcement == "off" else CONFINING[facts.confinement]
    return ("Resolve", "Prepare", STAGING[facts.method], confine, "Exec")


def bring(machine: LaunchMachine, state: LaunchState) -> LaunchMachine:
    """The machine, taken to `state` by the actions that lead there."""
    for action in way(machine.facts)[: PATH.index(state)]:
        machine.fire(action)
    assert machine.state is state
    return machine


def launch(state: LaunchState = LaunchState.UNRESOLVED, steps: Counted | None = None, **options: Any) -> LaunchMachine:
    """A machine in `state` that came there by itself."""
    identity = {name: options.pop(name) for name in ("launch", "container", "sink") if name in options}
    return bring(LaunchMachine(fresh(**options), steps or Counted(), **identity), state)


def moment(machine: LaunchMachine) -> Moment:
    """All of a machine that may not change when it refuses."""
    return machine.state, machine.facts, machine.records


def every_option() -> Iterator[dict[str, Any]]:
    """All that can be asked for: what is kept, by launches that must be locked."""
    names = ("enforcement", "confinement", "method", "program")
    domains = [sorted(str(value) for value in DOMAINS[name]) for name in names]
    for values in itertools.product(*domains, ("none", "match")):
        options = dict(zip((*names, "pin"), values, strict=True))
        locked = (options["enforcement"], options["confinement"]) == ("required", "mount-locked")
        if locked or options["method"] != "kept":
            yield options


def can_run(options: Mapping[str, str]) -> bool:
    """runsc under Landlock cannot; with best effort it is not confined either, but by another action."""
    landlocked = options["confinement"] == "landlock" and options["program"] == "runsc"
    return options["enforcement"] == "off" or not landlocked


def all_errors() -> list[type[LaunchError]]:
    """Every class below LaunchError."""
    found: list[type[LaunchError]] = []
    pending = [LaunchError]
    while pending:
        below = pending.pop().__subclasses__()
        found += below
        pending += below
    return sorted((kind for kind in found if kind.__module__ == errors.__name__), key=lambda kind: kind.__name__)


def made(kind: type[LaunchError]) -> LaunchError:
    """An error of this class, whatever its constructor wants."""
    if kind is errors.GuardRefused:
        return errors.GuardRefused("Exec", "Staged", "Evidenced")
    return kind("for a test", step="test")


FITTING: dict[str, dict[str, Any]] = {
    "incompatible": {"confinement": "landlock", "program": "runsc"},
    "pin_mismatch": {"pin": "match"},
    "no_space": {"method": "copy"},
    "untrusted_cache": {"method": "kept"},
    "kept_changed": {"method": "kept"},
}
"""Options without which a cause cannot come about."""


def text_of(records: tuple[TransitionRecord, ...]) -> bytes:
    """The record file."""
    return b"".join(record.line() + b"\n" for record in records)


def sealed(lines: list[dict[str, Any]]) -> bytes:
    """The record file with these lines, whose chain is whole: whoever forges a file can hash."""
    text, prev = b"", GENESIS
    for line in lines:
        record = TransitionRecord(**{**line, "prev": prev})
        text, prev = text + record.line() + b"\n", record.digest()
    return text


def plain(records: tuple[TransitionRecord, ...]) -> list[dict[str, Any]]:
    """The lines as data that a test may bend."""
    return [json.loads(record.line()) for record in records]


def reread(text: bytes) -> tuple[TransitionRecord, ...]:
    """The records in `text`."""
    return parse_all(text)
