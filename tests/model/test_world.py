"""Hypothesis drives the machine over a small world of its own, in which files have bytes and locks have owners.

The world is the judge: what ran, under what, and what is left is read from it, never from the machine's facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nucleus_gvisor.model import machine as machine_module
from nucleus_gvisor.model import replay as replay_module
from nucleus_gvisor.model.environment import kill
from nucleus_gvisor.model.errors import LaunchError, StepFailed
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import INVARIANTS
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.model.table import ROWS
from tests.model.launches import FITTING, all_errors, every_option, made, text_of, way

GOOD, EVIL, NEWER = b"runsc", b"evil", b"newer runsc"
OPTIONS = list(every_option())


@dataclass
class Inode:
    """A file's bytes; whoever holds it sees what is written to it."""

    content: bytes
    trusted: bool = True


@dataclass
class World:
    """What the launch's steps act on, and what an adversary changes. It judges nothing by itself."""

    options: Mapping[str, str]
    file: Inode | None = field(default_factory=lambda: Inode(GOOD))
    request: bool = True
    base_hostile: bool = False
    bundle_hostile: bool = False
    locked_by: str | None = None
    space: bool = True
    userns: bool = True
    landlock: bool = True
    tight: bool = True
    answers: bool = True
    execve: bool = True
    held: Inode | None = None
    judged: bytes | None = None
    staged: bytes | None = None
    on_disk: set[str] = field(default_factory=set)
    confined: str | None = None
    proved_tight: bool = False
    ran: list[dict[str, Any]] = field(default_factory=list)
    breaks: bool = False
    """The next thing done fails."""

    # ---- the machine's steps ----

    def observe(self, action: str, facts: Facts) -> Mapping[str, object]:
        seen: dict[str, object] = {}
        if action == "Resolve":
            seen["request"] = self.request
            seen["path"] = "absent" if self.file is None else "trusted" if self.file.trusted else "forged"
        elif action == "Prepare":
            seen |= {"base": "hostile"} if self.base_hostile else {}
            seen |= {"bundle": "hostile"} if self.bundle_hostile else {}
            seen |= {"lock": "theirs"} if self.locked_by == "others" else {}
        elif action.startswith("Stage") and self.held is not None:
            seen |= {"held": "rewritten"} if self.held.content != self.judged else {}
            seen |= {"pin": "mismatch"} if facts.pin == "match" and self.judged != GOOD else {}
            seen["space"] = self.space
        elif action.startswith("Confine"):
            seen |= {"fit": self.answers, "holds": self.tight}
            seen["available"] = self.landlock if facts.confinement == "landlock" else self.userns
        elif action == "Exec":
            seen["execve"] = self.execve
        return seen

    def perform(self, action: str, before: Facts, after: Facts) -> Mapping[str, object]:
        if self.breaks:
            self.breaks = False
            raise StepFailed("input/output error")
        if action == "Resolve":
            assert self.file is not None
            self.held, self.judged = self.file, self.file.content
        elif action == "Prepare":
            assert self.locked_by is None
            self.locked_by = "us"
            self.on_disk.add("directory")
        elif action.startswith("Stage"):
            assert self.held is not None
            self.staged = self.held.content
            self.on_disk |= {"stage"} if action == "StageCopy" else set()
        elif action.startswith("Confine"):
            self.proved_tight = self.tight
            self.confined = {"ConfineLocked": "mount-locked", "ConfineLandlock": "landlock"}.get(action)
        elif action == "Exec":
            assert self.execve, "the kernel would have refused"
            self.ran.append(
                {
                    "bytes": self.staged,
                    "confined": self.confined,
                    "locked": self.locked_by == "us",
                    "tight": self.proved_tight,
                }
            )
        elif action.startswith("Fail"):
            self.unmake(keep=action == "FailDirty")
        elif action == "Collect":
            self.on_disk.clear()
        return {"did": action}

    def unmake(self, *, keep: bool = False) -> None:
        self.held = self.staged = self.confined = None
        self.locked_by = None if self.locked_by == "us" else self.locked_by
        self.on_disk = self.on_disk if keep else set()


DISTURBANCES = (
    "swap",
    "remove",
    "rewrite",
    "upgrade",
    "malform",
    "base",
    "bundle",
    "lock",
    "disk",
    "userns",
    "landlock",
    "leak",
    "impostor",
    "execve",
    "break",
)


class Launches(RuleBasedStateMachine):
    """One launch, an adversary, and callers who do not keep to the order."""

    @initialize(options=st.sampled_from(OPTIONS))
    def first(self, options: dict[str, str]) -> None:
        self.begin(options)

    @precondition(lambda self: self.dead or self.machine.state not in PATH[:-1])
    @rule(options=st.sampled_from(OPTIONS))
    def again(self, options: dict[str, str]) -> None:
        """Another launch, in a new world."""
        self.begin(options)

    def begin(self, options: dict[str, str]) -> None:
        self.world = World(options)
        self.machine = LaunchMachine(fresh(**options), self.world)
        self.dead = False
        self.recorded = 0

    def disturb(self, what: str) -> None:
        world, state = self.world, self.machine.state
        match what:
            case "swap":
                world.file = Inode(EVIL, trusted=False)
            case "remove":
                world.file = None
            case "rewrite" if world.held is not None:
                world.held.content = EVIL
            case "upgrade" if state is LaunchState.UNRESOLVED and world.file is not None and world.file.trusted:
                world.file = Inode(NEWER)
            case "malform" if state is LaunchState.UNRESOLVED:
                world.request = False
            case "base":
                world.base_hostile = True
            case "bundle":
                world.bundle_hostile = True
            case "lock" if world.locked_by is None:
                world.locked_by = "others"
            case "disk":
                world.space = False
            case "userns":
                world.userns = False
            case "landlock":
                world.landlock = False
            case "leak":
                world.tight = False
            case "impostor":
                world.answers = False
            case "execve":
                world.execve = False
            case "break":
                world.breaks = True
            case _:
                pass

    @rule(times=st.integers(1, 5), what=st.none() | st.sampled_from(DISTURBANCES), when=st.integers(0, 4))
    def go_on(self, times: int, what: str | None, when: int) -> None:
        """The next actions of the way, with perhaps something happening before one of them."""
        for number in range(times):
            if number == when and what is not None:
                self.disturb(what)
            self.step()

    def step(self) -> None:
        """The next action, or what best effort does in its place."""
        if self.machine.state in PATH[:-1]:
            before = self.everything()
            action = way(self.machine.facts)[PATH.index(self.machine.state)]
            try:
                self.machine.fire(action)
            except LaunchError:
                assert self.everything() == before
                self.skip(action)

    def skip(self, action: str) -> None:
        if action.startswith("Confine"):
            try:
                self.machine.fire("ConfineSkipped")
            except LaunchError:
                pass

    @rule(action=st.sampled_from(sorted(ROWS)))
    def fire(self, action: str) -> None:
        before = self.everything()
        try:
            self.machine.fire(action)
        except LaunchError:
            assert self.everything() == before

    @rule(told=st.sampled_from([{"held": "trusted"}, {"lock": "ours"}, {"base": "private"}, {"pin": "match"}]),
          action=st.sampled_from(sorted(ROWS)))  # fmt: skip
    def lie(self, told: dict[str, object], action: str) -> None:
        """A caller who claims that all is well. Where it is not so, that is refused; where it is, nothing is new."""
        name, value = next(iter(told.items()))
        if getattr(self.machine.facts, name) != value:
            before = self.everything()
            try:
                self.machine.fire(action, told)
            except LaunchError:
                assert self.everything() == before
            else:
                raise AssertionError(f"{action} was done on the word of {told}")

    @precondition(lambda self: self.machine.state in PATH[:-1] and not self.dead)
    @rule(kind=st.sampled_from(all_errors()))
    def fail(self, kind: type[LaunchError]) -> None:
        if all(self.world.options.get(name) == value for name, value in FITTING.get(kind.cause, {}).items()):
            self.machine.fail(made(kind))
            assert self.machine.state is LaunchState.FAILED

    @precondition(lambda self: self.machine.state in PATH[:-1] and not self.dead)
    @rule()
    def killed(self) -> None:
        """The launcher dies, the kernel drops what it held; whoever finds its facts can only collect."""
        facts = kill(self.machine.facts)
        assert facts is not None
        self.dead = True
        self.world.unmake(keep=True)
        self.machine = LaunchMachine(facts, self.world)

    def everything(self) -> tuple[object, ...]:
        world = self.world
        return (self.machine.state, self.machine.facts, self.machine.records, world.held, world.staged, world.confined,
                world.locked_by, frozenset(world.on_disk), len(world.ran))  # fmt: skip

    @invariant()
    def only_what_may_runs(self) -> None:
        """At most one thing has run: the judged bytes, under the lock, pinned and confined as was asked for."""
        world, options = self.world, self.world.options
        assert len(world.ran) <= 1
        assert (self.machine.state is LaunchState.EXECD) == bool(world.ran)
        for run in world.ran:
            assert run["bytes"] == world.judged != EVIL and run["locked"]
            assert options["pin"] == "none" or run["bytes"] == GOOD
            assert options["enforcement"] != "required" or (run["confined"] == options["confinement"] and run["tight"])
            assert not (run["confined"] == "landlock" and options["program"] == "runsc")

    @invariant()
    def failing_unmakes(self) -> None:
        """After Failed nothing is held, and nothing is on disk unless the cause says so."""
        if self.machine.state is LaunchState.FAILED:
            world = self.world
            assert world.held is None and world.staged is None and world.confined is None and world.locked_by != "us"
            assert not world.on_disk or self.machine.facts.cause == "left_behind"

    @invariant()
    def facts_are_true(self) -> None:
        """What the machine says that it made is what the world has, and every invariant holds."""
        facts, world = self.machine.facts, self.world
        assert set(facts.residue) == world.on_disk
        assert (facts.lock == "ours") == (world.locked_by == "us")
        assert facts.confined == (world.confined or "none")
        assert all(holds(facts) for holds in INVARIANTS)

    @invariant()
    def the_record_shows_it(self) -> None:
        """The record of a launch that lives replays to the machine's own facts."""
        if not self.dead and self.recorded != len(self.machine.records):
            self.recorded = len(self.machine.records)
            records = parse_all(text_of(self.machine.records))
            assert fold(records) == self.machine.facts
            assert complete(records) == (self.machine.state not in PATH[:-1])


@pytest.mark.slow  # how long until a random walk comes upon it is chance
@pytest.mark.parametrize(
    ("action", "guard", "what", "options"),
    [
        ("Resolve", "BinaryTrusted", "swap", {}),
        ("Prepare", "LockFree", "lock", {}),
        ("StageSealed", "PinAgrees", "upgrade", {"method": "sealed", "pin": "match", "enforcement": "off"}),
        ("ConfineLocked", "Holds", "leak", {"enforcement": "required", "confinement": "mount-locked"}),
        ("Exec", "ExecvePermitted", "execve", {"enforcement": "off"}),
    ],
)
def test_the_world_notices_a_missing_guard(
    action: str, guard: str, what: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test below can fail: without one guard, and with no other invariant to help, the world shows it."""

    class Chosen(Launches):
        def begin(self, drawn: dict[str, str]) -> None:
            super().begin({**drawn, **options})

        def disturb(self, _: str) -> None:
            super().disturb(what)

    row = ROWS[action]
    rows = {**ROWS, action: replace(row, guards=tuple(held for held in row.guards if held.__name__ != guard))}
    for module in (machine_module, replay_module):
        monkeypatch.setattr(module, "ROWS", rows)
        monkeypatch.setattr(module, "violated", lambda before, after: [])
    monkeypatch.setattr(machine_module, "TRANSITIONS", tuple(rows.values()))
    quiet = settings(max_examples=1000, derandomize=True, database=None, print_blob=False, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Chosen, settings=quiet)


TestLaunches = Launches.TestCase
TestLaunches.settings = settings(max_examples=120, stateful_step_count=25)
