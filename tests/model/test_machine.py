"""The machine: no way to Exec'd but the one way, and nothing half done."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_gvisor.model import machine as machine_module
from nucleus_gvisor.model.errors import GuardRefused, LaunchError, SafetyViolation
from nucleus_gvisor.model.facts import DOMAINS, Facts
from nucleus_gvisor.model.machine import LaunchMachine, fresh
from nucleus_gvisor.model.record import MAX_LINE, TransitionRecord, parse
from nucleus_gvisor.model.replay import complete, fold
from nucleus_gvisor.model.states import PATH, TERMINAL, LaunchState
from nucleus_gvisor.model.table import FORWARD, ROWS, TRANSITIONS, Guard, Row
from tests.model.launches import (
    UNDER_WAY,
    Counted,
    bring,
    can_run,
    every_option,
    launch,
    moment,
    text_of,
    way,
)

S = LaunchState
Attack = Callable[[LaunchMachine], object]


# ---- the one way ----


@pytest.mark.parametrize("options", [o for o in every_option() if can_run(o)], ids=lambda o: " ".join(o.values()))
def test_an_undisturbed_launch_reaches_execd(options: dict[str, str]) -> None:
    """Whatever was asked for and can be had is reached in five steps, each performed once and recorded."""
    steps = Counted()
    machine = launch(S.EXECD, steps, **options)
    assert steps.performed == list(way(machine.facts))
    assert [record.dest for record in machine.records] == list(PATH)
    assert complete(machine.records) and fold(machine.records) == machine.facts
    assert machine.facts.image == "trusted"
    assert (machine.facts.confined == machine.facts.confinement) == (options["enforcement"] != "off")


@pytest.mark.parametrize("state", [s for s in S if s not in TERMINAL])
@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.action)
def test_an_action_out_of_order_is_refused(row: Row, state: LaunchState) -> None:
    """What is not offered in a state is refused there, and says what it was, where, and where it belongs."""
    if state in row.sources:
        return
    steps = Counted()
    machine = launch(state, steps)
    before, performed = moment(machine), list(steps.performed)
    with pytest.raises(GuardRefused) as caught:
        machine.fire(row.action)
    assert (caught.value.action, caught.value.state, caught.value.guard) == (row.action, state, "source")
    assert caught.value.observed == state
    assert all(source in str(caught.value.expected) for source in row.sources)
    assert moment(machine) == before and steps.performed == performed


@pytest.mark.parametrize(
    "name", ["", "exec", "Exec ", "to_Exec'd", "to_EXECD", "Init", "Kill", "SwapBinary", "__init__"]
)
def test_what_is_no_action_is_refused(name: str) -> None:
    """Only the table's names can be fired: no trigger, no state, nothing of the environment's."""
    machine = launch(S.CONFINED)
    before = moment(machine)
    with pytest.raises(GuardRefused, match="no such action"):
        machine.fire(name)
    assert moment(machine) == before


@pytest.mark.parametrize("end", sorted(TERMINAL))
def test_terminal_states_are_final(end: LaunchState) -> None:
    """From Exec'd and Failed no action leads to another state, and fail() says so."""
    machine = launch(S.EXECD)
    if end is S.FAILED:
        machine = launch(S.STAGED)
        machine.fail(LaunchError("for a test"))
    before = moment(machine)
    for action, row in ROWS.items():
        if row.dest is not None:
            with pytest.raises(GuardRefused):
                machine.fire(action)
    with pytest.raises(GuardRefused):
        machine.fail(LaunchError("too late"))
    assert moment(machine) == before


# ---- other ways ----


def _confined(**changes: Any) -> Facts:
    """Facts as they stand before Exec, made up."""
    facts = Facts(
        state=S.CONFINED,
        held="trusted",
        staged="trusted",
        base="private",
        lock="ours",
        confined="mount-locked",
        proved=True,
        residue=frozenset({"directory"}),
    )
    return replace(facts, **changes)


def _jump(m: LaunchMachine) -> None:
    m._machine.add_transition("jump", "*", S.EXECD)
    m._machine.events["jump"].trigger(m._holder)


def _register(m: LaunchMachine) -> None:
    m._machine.add_model(m._holder, initial=S.EXECD)


def _slots(m: LaunchMachine) -> None:
    for name, value in _confined().as_dict().items():
        object.__setattr__(m.facts, name, frozenset({"directory"}) if name == "residue" else value)
    object.__setattr__(m.facts, "state", S.CONFINED)


def _swap_facts(m: LaunchMachine) -> None:
    m._holder.facts = _confined()


def _no_records(m: LaunchMachine) -> None:
    m._holder.facts, m._records = _confined(), ()


def _own_init(m: LaunchMachine) -> None:
    m._holder.facts, m._records = _confined(), LaunchMachine(_confined(), Counted()).records


def _others_records(m: LaunchMachine) -> None:
    other = launch(S.CONFINED, launch="b" * 32)
    m._holder.facts, m._records = other.facts, other.records


def _pending(m: LaunchMachine) -> None:
    m._holder.pending = _confined(state=S.EXECD, image="trusted")
    m._holder.state = S.EXECD


def _end(m: LaunchMachine) -> None:
    m._holder.facts = _confined(state=S.EXECD, image="trusted")


def _trigger(m: LaunchMachine) -> None:
    m._machine.events["exec"].trigger(m._holder)


ATTACKS: dict[str, Attack] = {
    "state attribute": lambda m: setattr(m, "state", S.EXECD),
    "facts attribute": lambda m: setattr(m, "facts", _confined()),
    "records attribute": lambda m: setattr(m, "records", ()),
    "frozen facts": lambda m: setattr(m.facts, "state", S.EXECD),
    "set_state": lambda m: m._machine.set_state(S.EXECD, m._holder),
    "set_state by name": lambda m: m._machine.set_state("EXECD", m._holder),
    "set_state by value": lambda m: m._machine.set_state("Exec'd", m._holder),
    "to_EXECD": lambda m: m._machine.events["to_EXECD"].trigger(m._holder),
    "to_ on the machine": lambda m: m.to_EXECD(),  # type: ignore[attr-defined]
    "to_ on the holder": lambda m: m._holder.to_EXECD(),  # type: ignore[attr-defined]
    "trigger on the holder": lambda m: m._holder.trigger("exec"),  # type: ignore[attr-defined]
    "holder.state": lambda m: setattr(m._holder, "state", S.EXECD),
    "event": _trigger,
    "new transition": _jump,
    "new model": _register,
    "dispatch": lambda m: m._machine.dispatch("exec"),
    "object.__setattr__": _slots,
    "facts replaced": _swap_facts,
    "facts replaced, no records": _no_records,
    "facts replaced, a record of one's own": _own_init,
    "facts and records of another launch": _others_records,
    "pending by hand": _pending,
    "facts at the end": _end,
}


@pytest.mark.parametrize("state", UNDER_WAY[:-1])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_other_way_to_exec(attack: str, state: LaunchState) -> None:
    """Whatever is done to the machine's inside, Exec is not performed before every earlier step was, nor recorded."""
    steps = Counted()
    machine = launch(state, steps, launch="a" * 32)
    for _ in range(2):  # once more from where the first try has led
        try:
            ATTACKS[attack](machine)
        except Exception:
            pass
        try:
            machine.fire("Exec")
        except LaunchError:
            pass
    assert steps.performed == list(way(machine.facts)[: PATH.index(state)])
    assert all(record.action != "Exec" for record in machine.records)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in ("pending by hand", "facts at the end")])
def test_state_is_not_set(attack: str) -> None:
    """No attribute, method or setter makes the machine say that it is in Exec'd."""
    machine = launch(S.PREPARED)
    try:
        ATTACKS[attack](machine)
    except Exception:
        pass
    assert machine.state is not S.EXECD


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_machine_made_midway_does_not_exec(state: LaunchState) -> None:
    """Facts that no launch begins with may be judged, but lead to no execution: their evidence is nowhere."""
    steps = Counted()
    machine = LaunchMachine(launch(state).facts, steps)
    with_evidence = state is S.UNRESOLVED
    try:
        for action in way(machine.facts)[PATH.index(state) :]:
            machine.fire(action)
    except LaunchError:
        pass
    assert ("Exec" in steps.performed) == with_evidence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enforcement", "off"),
        ("enforcement", "best_effort"),
        ("confinement", "landlock"),
        ("pin", "none"),
        ("method", "copy"),
    ],
)
@pytest.mark.parametrize("state", UNDER_WAY)
def test_options_bent_under_way_do_not_exec(state: LaunchState, name: str, value: str) -> None:
    """What was asked for cannot be lowered in memory afterwards, frozen or not."""
    steps = Counted()
    machine = launch(state, steps, pin="match", program="plain")
    object.__setattr__(machine.facts, name, value)
    try:
        for action in way(machine.facts)[PATH.index(state) :]:
            machine.fire(action)
    except LaunchError:
        pass
    assert "Exec" not in steps.performed


# ---- what steps tell ----

FORGED: list[dict[str, object]] = [
    {"held": "trusted"},
    {"lock": "ours"},
    {"base": "private"},
    {"pin": "match"},
    {"pin": "none"},
    {"path": "trusted"},
    {"request": True},
    {"calls": True},
    {"holds": True},
    {"fit": True},
    {"bundle": "sound"},
    {"held": "verified"},
    {"lock": None},
]


@pytest.mark.parametrize("told", FORGED, ids=str)
@pytest.mark.parametrize("by", ["steps", "caller"])
def test_observations_do_not_make_things_better(told: dict[str, object], by: str) -> None:
    """Nobody can tell the machine that the world has become what a guard wants."""
    (name,) = told
    if name in ("held", "lock"):
        machine = launch(S.UNRESOLVED)
        action = "Resolve"
    else:
        machine = LaunchMachine(_spoilt(name), Counted())
        action = way(machine.facts)[PATH.index(machine.state)]
    machine._steps = Counted(look=lambda _: told) if by == "steps" else Counted()
    before = moment(machine)
    with pytest.raises(LaunchError):
        machine.fire(action, told if by == "caller" else None)
    assert moment(machine) == before


def _spoilt(name: str) -> Facts:
    """Facts in which `name` is as an adversary left it."""
    bad: dict[str, object] = {"pin": "mismatch", "path": "forged", "bundle": "hostile", "base": "hostile"}
    state = {"pin": S.PREPARED, "bundle": S.RESOLVED, "base": S.RESOLVED, "holds": S.STAGED, "fit": S.STAGED}
    return replace(launch(state.get(name, S.UNRESOLVED)).facts, **{name: bad.get(name, False)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "told",
    [
        {"fit": 1},
        {"request": 0},
        {"calls": 0},
        {"request": 0.0},
        {"path": b"forged"},
        {"path": ["forged"]},
        {"lock": None},
        {"userns": "no"},
        {"holds": ()},
        {"held": 7},
    ],
    ids=str,
)
def test_observations_are_of_the_variables_own_type(told: Mapping[str, object]) -> None:
    """A 0 for FALSE would give a record that nobody accepts; such an observation is a defect and refused as one."""
    steps = Counted()
    machine = launch(S.UNRESOLVED, steps)
    before = moment(machine)
    with pytest.raises(LaunchError):
        machine.fire("Resolve", told)
    with pytest.raises(LaunchError):
        machine.fire("FailRequest", told)
    assert moment(machine) == before
    assert steps.performed == [], "what cannot be recorded is refused before it is done"


@pytest.mark.parametrize("name", ["state", "alive", "confined", "proved", "staged", "image", "enforcement", "nonsense"])
def test_only_the_world_can_be_observed(name: str) -> None:
    """An observation of what is the machine's own, or of nothing known, is refused with a LaunchError."""
    machine = launch(S.STAGED)
    before = moment(machine)
    with pytest.raises(LaunchError):
        machine.fire("ConfineLocked", {name: "trusted"})
    assert moment(machine) == before


@given(
    state=st.sampled_from(UNDER_WAY),
    told=st.dictionaries(
        st.sampled_from(sorted(DOMAINS)),
        st.one_of(st.booleans(), st.sampled_from(sorted({str(v) for d in DOMAINS.values() for v in d})), st.integers()),
        max_size=3,
    ),
    action=st.sampled_from(sorted(ROWS)),
)
def test_any_observation_is_refused_or_leaves_a_sound_record(
    state: LaunchState, told: dict[str, object], action: str
) -> None:
    """Whatever is told for whatever action: refused without a trace, or done with a record that replays."""
    machine = launch(state)
    before = moment(machine)
    try:
        machine.fire(action, told)
    except (LaunchError, ValueError):
        assert moment(machine) == before
    else:
        assert fold(tuple(parse(record.line()) for record in machine.records)) == machine.facts


# ---- guards ----


def _only_false(row: Row, guard: Guard) -> Facts | None:
    """Facts in which `guard` alone of the row's guards does not hold, one variable away from those in which all do."""
    sound = [
        facts
        for options in every_option()
        for facts in [_before(row, options)]
        if facts is not None and all(held(facts) for held in row.guards)
    ]
    for facts in sound:
        for name, domain in DOMAINS.items():
            for value in sorted(domain, key=str):
                other = replace(facts, **{name: value})  # type: ignore[arg-type]
                if name != "state" and [held for held in row.guards if not held(other)] == [guard]:
                    return other
    return None


def _before(row: Row, options: dict[str, str]) -> Facts | None:
    (state,) = row.sources
    before = replace(fresh(**options), state=state)
    reached = {
        S.UNRESOLVED: {},
        S.RESOLVED: {"held": "trusted"},
        S.PREPARED: {"held": "trusted", "base": "private", "lock": "ours"},
        S.STAGED: {"held": "trusted", "base": "private", "lock": "ours", "staged": "trusted"},
        S.CONFINED: {"lock": "ours", "staged": "trusted", "confined": options["confinement"], "proved": True},
    }
    return replace(before, **reached[state])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "guard"),
    [(row, guard) for row in FORWARD for guard in row.guards],
    ids=lambda x: x.action if isinstance(x, Row) else x.__name__,
)
def test_each_guard_refuses_by_itself(row: Row, guard: Guard) -> None:
    """Where one guard alone does not hold, the action is refused in its name and nothing has changed."""
    facts = _only_false(row, guard)
    assert facts is not None, "no facts in which this guard alone decides"
    steps = Counted()
    machine = LaunchMachine(facts, steps)
    before = moment(machine)
    with pytest.raises(GuardRefused) as caught:
        machine.fire(row.action)
    assert (caught.value.action, caught.value.state, caught.value.guard) == (row.action, facts.state, guard.__name__)
    assert moment(machine) == before and steps.performed == []


def test_a_refusal_says_what_was_seen() -> None:
    """A guard that a fresh observation makes false is refused with that observation."""
    machine = launch(S.RESOLVED)
    with pytest.raises(GuardRefused) as caught:
        machine.fire("Prepare", {"lock": "theirs"})
    assert (caught.value.guard, caught.value.observed) == ("LockFree", {"lock": "theirs"})
    assert machine.facts.lock == "free"


@pytest.mark.parametrize(
    ("answer", "passes"), [(True, True), (1, True), ("yes", True), ([0], True), (0, False), ("", False), (None, False)]
)
def test_a_guard_that_is_no_bool_is_not_silent(answer: object, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would call a truthy answer false and say nothing: here it is done, or refused aloud."""
    row = replace(ROWS["Resolve"], guards=(_answers(answer),))
    monkeypatch.setattr(machine_module, "ROWS", {**ROWS, "Resolve": row})
    monkeypatch.setattr(machine_module, "TRANSITIONS", (row, *TRANSITIONS[1:]))
    machine = launch()
    if passes:
        machine.fire("Resolve")
    else:
        with pytest.raises(GuardRefused):
            machine.fire("Resolve")
    assert machine.state is (S.RESOLVED if passes else S.UNRESOLVED)


def _answers(answer: Any) -> Guard:
    def guard(_: Facts) -> bool:
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    return guard


# ---- nothing half done ----

INTERRUPTIONS: list[BaseException] = [
    LaunchError("refused"),
    OSError(5, "Input/output error"),
    KeyboardInterrupt(),
    SystemExit(3),
    MemoryError(),
    RecursionError(),
    GeneratorExit(),
]


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("where", ["observe", "guard", "perform", "sink"])
@pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("state", UNDER_WAY)
def test_an_exception_changes_nothing(
    state: LaunchState, error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a step, a guard or the sink raises comes out as it is; the machine is as before, and can go on."""
    arm: list[BaseException] = []
    written: list[TransitionRecord] = []

    def strike(_: object) -> None:
        if arm:
            raise arm.pop()

    def sink(record: TransitionRecord) -> None:
        if where == "sink":
            strike(record)
        written.append(record)

    def armed_guard(_: Facts) -> bool:
        if where == "guard":
            strike(_)
        return True

    rows = tuple(replace(row, guards=(*row.guards, armed_guard)) for row in TRANSITIONS)
    monkeypatch.setattr(machine_module, "TRANSITIONS", rows)
    monkeypatch.setattr(machine_module, "ROWS", {row.action: row for row in rows})
    steps = Counted(
        look=strike if where == "observe" else lambda _: None, act=strike if where == "perform" else lambda _: None
    )
    machine = launch(state, steps, sink=sink)
    action = way(machine.facts)[PATH.index(state)]
    before, kept = moment(machine), list(written)
    arm.append(error)
    with pytest.raises(type(error)) as caught:
        machine.fire(action)
    assert caught.value is error and not arm
    assert moment(machine) == before and written == kept
    bring_on(machine)
    assert machine.state is S.EXECD and fold(machine.records) == machine.facts
    assert tuple(written) == machine.records


def bring_on(machine: LaunchMachine) -> None:
    """Take the machine from where it stands to Exec'd."""
    for action in way(machine.facts)[PATH.index(machine.state) :]:
        machine.fire(action)


@pytest.mark.parametrize("where", ["observe", "perform", "sink"])
@pytest.mark.parametrize("inner", sorted(ROWS))
def test_an_action_within_an_action_is_refused(inner: str, where: str) -> None:
    """A step that fires by itself is refused, and what was under way goes on to its own end."""
    refused: list[GuardRefused] = []
    machines: list[LaunchMachine] = []

    def fire_again(_: object) -> None:
        if machines:
            try:
                machines[0].fire(inner)
            except GuardRefused as error:
                refused.append(error)

    steps = Counted(
        look=fire_again if where == "observe" else lambda _: None,
        act=fire_again if where == "perform" else lambda _: None,
    )
    machine = launch(S.RESOLVED, steps, sink=fire_again if where == "sink" else lambda _: None)
    machines.append(machine)
    machine.fire("Prepare")
    assert machine.state is S.PREPARED and [error.action for error in refused] == [inner]
    assert [record.action for record in machine.records] == ["Init", "Resolve", "Prepare"]


def test_failing_within_an_action_is_refused() -> None:
    """A step cannot end the launch behind the back of the action that it is part of."""
    machines: list[LaunchMachine] = []

    def give_up(_: str) -> None:
        if machines:
            machines[0].fail(LaunchError("from within"))

    machine = launch(S.RESOLVED, Counted(act=give_up))
    machines.append(machine)
    before = moment(machine)
    with pytest.raises(GuardRefused):
        machine.fire("Prepare")
    assert moment(machine) == before


def test_two_threads_do_not_fire_at_once() -> None:
    """While one thread's action is under way, another's is refused."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        inside.set()
        assert go_on.wait(20)

    machine = launch(S.UNRESOLVED, Counted(act=wait))
    thread = threading.Thread(target=machine.fire, args=("Resolve",))
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(GuardRefused, match="under way"):
            machine.fire("Resolve")
    finally:
        go_on.set()
        thread.join(20)
    assert machine.state is S.RESOLVED and len(machine.records) == 2


# ---- records that the machine makes ----


def _ring() -> dict[str, object]:
    ring: dict[str, object] = {}
    ring["self"] = ring
    return ring


@pytest.mark.parametrize(
    "evidence",
    [{"digest": b"bytes"}, {"load": float("nan")}, {"load": float("inf")}, {"names": {"a", "b"}}, {"file": object()},
     _ring(), {"argv": "x" * MAX_LINE}, {1: "one", "1": "uno"}],
    ids=["bytes", "nan", "infinity", "set", "object", "ring", "too long", "names that meet"],
)  # fmt: skip
@pytest.mark.parametrize("action", ["Resolve", "FailRequest"])
def test_evidence_that_no_record_can_hold_is_refused(action: str, evidence: Mapping[str, object]) -> None:
    """It is found when it is given, not by the step after; and the launch can still end in Failed."""
    machine = launch(S.UNRESOLVED, Counted(act=lambda done: evidence if done == action else None))
    told = {"request": False} if action == "FailRequest" else {}
    before = moment(machine)
    with pytest.raises(LaunchError):
        machine.fire(action, told)
    assert moment(machine) == before
    machine.fail(LaunchError("evidence cannot be recorded"))
    assert machine.state is S.FAILED and fold(machine.records) == machine.facts


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(evidence=st.dictionaries(st.text(max_size=6), json_values, max_size=4), container=st.text(max_size=70))
def test_whatever_json_the_evidence_is_the_record_replays(evidence: dict[str, object], container: str) -> None:
    """Lines written with any evidence and any id are read back as they were, and are accepted."""
    machine = launch(S.EXECD, Counted(act=lambda _: evidence), container=container)
    lines = tuple(parse(record.line(), n) for n, record in enumerate(machine.records))
    assert lines == machine.records and fold(lines) == machine.facts


def test_evidence_is_kept_as_it_was_given() -> None:
    """A step that goes on using its data afterwards does not change what has been recorded."""
    answers = ["refused"]
    machine = launch(S.UNRESOLVED, Counted(act=lambda _: {"canaries": answers}))
    machine.fire("Resolve")
    answers.append("allowed")
    bring_on(machine)
    assert machine.records[1].evidence == {"canaries": ["refused"]}
    assert fold(machine.records) == machine.facts


@pytest.mark.parametrize("name", ["facts", "seen", "evidence"])
def test_records_cannot_be_bent_through_what_is_handed_out(name: str) -> None:
    """What a caller does to the mappings of a record that it was given is noticed, at the latest by Exec."""
    steps = Counted(act=lambda _: {"digest": "00"})
    machine = launch(S.CONFINED, steps)
    data = getattr(machine.records[2], name)
    try:
        data["enforcement"] = "off"
    except TypeError:
        return  # it cannot be changed at all
    with pytest.raises(LaunchError):
        machine.fire("Exec")
    assert steps.performed[-1] != "Exec"


def test_the_sink_has_each_record_before_it_counts() -> None:
    """When the sink sees a record, the machine has not moved yet: a record that is not kept never happened."""
    machines: list[LaunchMachine] = []
    seen: list[tuple[str, LaunchState]] = []

    def sink(record: TransitionRecord) -> None:
        if machines:
            seen.append((record.dest, machines[0].state))
            assert record not in machines[0].records

    machine = launch(S.UNRESOLVED, sink=sink)
    machines.append(machine)
    bring(machine, S.EXECD)
    assert seen == list(zip(PATH[1:], PATH, strict=False))


def test_records_of_a_launch_bear_its_names() -> None:
    """Each line names the launch and the container, and numbers itself."""
    machine = launch(S.EXECD, launch="c" * 32, container="job-1")
    assert {(record.launch, record.container) for record in machine.records} == {("c" * 32, "job-1")}
    assert [record.seq for record in machine.records] == list(range(6))
    assert len(set(text_of(machine.records).splitlines())) == 6


def test_a_bad_effect_is_stopped_before_it_is_performed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that would break an invariant is stopped by the invariant, with nothing performed."""
    row = replace(ROWS["ConfineLocked"], effect=lambda f: replace(f, confined="mount-locked", proved=False))
    monkeypatch.setattr(machine_module, "ROWS", {**ROWS, row.action: row})
    monkeypatch.setattr(
        machine_module, "TRANSITIONS", tuple(row if other.action == row.action else other for other in TRANSITIONS)
    )
    steps = Counted()
    machine = launch(S.STAGED, steps)
    before = moment(machine)
    with pytest.raises(SafetyViolation, match="ProofIsOfConfinement"):
        machine.fire("ConfineLocked")
    assert moment(machine) == before and "ConfineLocked" not in steps.performed
