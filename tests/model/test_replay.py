"""Replay: only behaviours of the specification are accepted, and the first line that is none is named."""

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nucleus_gvisor.model import replay
from nucleus_gvisor.model.environment import DISTURBANCES, explains, kill
from nucleus_gvisor.model.errors import GuardRefused, LaunchError, RecordRejected
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.model.invariants import violated
from nucleus_gvisor.model.machine import LaunchMachine
from nucleus_gvisor.model.record import TransitionRecord, parse_all
from nucleus_gvisor.model.replay import by_launch, fold, initial
from nucleus_gvisor.model.states import PATH, LaunchState
from nucleus_gvisor.model.steps import NoSteps
from nucleus_gvisor.model.table import ROWS
from tests.model.launches import UNDER_WAY, can_run, every_option, launch, plain, sealed

S = LaunchState
FULL = launch(S.EXECD, launch="a" * 32, container="job", method="copy", pin="match").records


def why(lines: list[dict[str, Any]]) -> str:
    """The reason for which these lines, their chain whole, are rejected."""
    with pytest.raises(RecordRejected) as caught:
        fold(parse_all(sealed(lines)))
    return str(caught.value)


def renumbered(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**line, "seq": number} for number, line in enumerate(lines)]


@pytest.mark.parametrize("options", list(every_option()), ids=lambda o: " ".join(o.values()))
def test_real_launches_are_accepted(options: dict[str, Any]) -> None:
    """Whatever was asked for, the launch and its failure at every state replay to the machine's own facts."""
    states = PATH if can_run(options) else PATH[:4]
    for state in states:
        machine = launch(state, **options)
        assert fold(machine.records) == machine.facts
        if state is not S.EXECD:
            machine.fail(LaunchError("for a test"))
            assert fold(machine.records) == machine.facts


@pytest.mark.parametrize("place", range(1, 5))
def test_a_skipped_step_is_rejected(place: int) -> None:
    """A forger who leaves a step out and seals the rest again is told where."""
    lines = plain(FULL)
    del lines[place]
    assert f"line {place}: {FULL[place + 1].action} is not offered in {FULL[place - 1].dest}" in why(renumbered(lines))


@pytest.mark.parametrize("place", range(1, 5))
def test_steps_in_another_order_are_rejected(place: int) -> None:
    """Nor may two steps change places."""
    lines = plain(FULL)
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    assert f"line {place}: " in why(renumbered(lines))


def test_a_second_beginning_is_rejected() -> None:
    """Init is the first line and no other."""
    lines = plain(FULL)
    assert "Init is not an action" in why(renumbered([*lines[:2], lines[0], *lines[2:]]))


@pytest.mark.parametrize("state", UNDER_WAY[1:])
def test_a_beginning_midway_is_rejected(state: LaunchState) -> None:
    """A record begins where a launch begins, with nothing done yet."""
    begin = plain(launch(state).records)[-1]
    assert "does not begin as a launch begins" in why(
        [{**begin, "seq": 0, "action": "Init", "seen": {}, "source": begin["dest"]}]
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("held", "trusted"),
        ("lock", "ours"),
        ("confined", "mount-locked"),
        ("fit", False),
        ("pin", "mismatch"),
        ("alive", False),
        ("base", "private"),
    ],
)
def test_a_beginning_with_something_done_is_rejected(name: str, value: object) -> None:
    """The specification's Init leaves only the options free."""
    lines = plain(FULL)
    lines[0]["facts"][name] = value
    assert "does not begin as a launch begins" in why(lines)


def test_initial_is_exactly_what_a_launch_may_begin_with() -> None:
    """All options, pinned or not, are a beginning; nothing further along is."""
    for options in every_option():
        assert initial(launch(**options).facts)
        assert not any(initial(launch(state, **options).facts) for state in UNDER_WAY[1:4])


@pytest.mark.parametrize(
    ("place", "seen", "reason"),
    [
        (1, {"path": "forged"}, "guard BinaryTrusted of Resolve"),
        (2, {"lock": "theirs"}, "guard LockFree of Prepare"),
        (2, {"bundle": "hostile"}, "guard BundleSound of Prepare"),
        (3, {"held": "rewritten"}, "guard SourceUnchanged of StageCopy"),
        (3, {"pin": "mismatch"}, "guard PinAgrees of StageCopy"),
        (3, {"space": False}, "guard SpaceLeft of StageCopy"),
        (4, {"fit": False}, "guard Fit of ConfineLocked"),
        (4, {"holds": False}, "guard Holds of ConfineLocked"),
        (5, {"execve": False}, "guard ExecvePermitted of Exec"),
        (3, {"held": "trusted", "lock": "theirs"}, "nothing in the environment"),
        (4, {"path": "forged"}, "nothing in the environment"),
        (5, {"held": "rewritten"}, "nothing in the environment"),
        (3, {"staged": "trusted"}, "not observable"),
        (4, {"confined": "mount-locked"}, "not observable"),
        (1, {"nonsense": 1}, "not observable"),
    ],
    ids=str,
)
def test_what_was_seen_must_allow_the_step(place: int, seen: dict[str, object], reason: str) -> None:
    """A line whose own observation forbids it is rejected for that reason."""
    lines = plain(FULL)
    lines[place]["seen"] = seen
    assert f"line {place}: " in (told := why(lines)) and reason in told


@pytest.mark.parametrize(
    "seen",
    [{"userns": 0}, {"fit": 0}, {"landlock": 0.0}, {"available": False}, {"userns": False, "available": False}],
    ids=str,
)
def test_what_was_seen_is_in_the_variables_own_terms(seen: dict[str, object]) -> None:
    """Numbers are no booleans and `available` is no variable, though Python would take them; TLC would not."""
    lines = plain(launch(S.STAGED).records)
    facts = lines[-1]["facts"]
    facts |= {name: False for name in ("userns" if n == "available" else n for n in seen)}
    facts |= {
        "state": "Failed",
        "cause": "fault",
        "held": "nothing",
        "staged": "nothing",
        "lock": "free",
        "residue": [],
        "calls": False,
    }
    made = {**lines[-1], "action": "FailFault", "source": "Staged", "dest": "Failed", "seq": 4,
            "seen": {"calls": False, **seen}, "facts": facts}  # fmt: skip
    lines = plain(launch(S.STAGED).records)
    honest = {
        **made,
        "seen": {name: False for name in facts if name in ("calls", "userns", "fit", "landlock") and not facts[name]},
    }
    assert fold(parse_all(sealed([*lines, honest]))).cause == "fault", "the honest form of this line is to be accepted"
    with pytest.raises(RecordRejected, match="line 4"):
        fold(parse_all(sealed([*lines, made])))


@pytest.mark.parametrize("name", ["source", "dest"])
@pytest.mark.parametrize("value", [*S, "Nowhere"])
@pytest.mark.parametrize("place", range(1, 6))
def test_states_of_a_line_are_those_of_the_step(place: int, value: str, name: str) -> None:
    """Source and dest are what the facts before and after say."""
    lines = plain(FULL)
    if lines[place][name] != value:
        lines[place][name] = str(value)
        assert f"line {place}: " in why(lines)


@pytest.mark.parametrize("place", range(6))
def test_dest_of_each_line_is_its_own_state(place: int) -> None:
    """Also of the first line, which is no step: `complete` and every reader go by dest."""
    lines = plain(FULL[: place + 1])
    lines[place]["dest"] = "Failed"
    assert f"line {place}: " in why(lines)


def test_source_of_the_first_line_is_its_own_state() -> None:
    """The first line comes from nowhere else."""
    lines = plain(FULL[:1])
    lines[0]["source"] = "Confined"
    assert "line 0: " in why(lines)


@pytest.mark.parametrize("place", range(1, 6))
def test_another_action_of_the_same_step_is_rejected(place: int) -> None:
    """No other action could have led from this line to the next."""
    for action in ROWS:
        lines = plain(FULL)
        if lines[place]["action"] != action:
            lines[place]["action"] = action
            assert f"line {place}: " in why(lines)


@given(place=st.integers(1, 5), data=st.data())
def test_any_other_fact_is_rejected(place: int, data: st.DataObject) -> None:
    """A variable that the step does not lead to is named, with the line; options and what is past alike."""
    from nucleus_gvisor.model.facts import DOMAINS

    lines = plain(FULL)
    name = data.draw(st.sampled_from(sorted(DOMAINS)))
    value = data.draw(st.sampled_from(sorted(DOMAINS[name], key=str)))
    assume(lines[place]["facts"][name] != value)
    lines[place]["facts"][name] = value
    told = why(lines)
    assert f"line {place}: " in told and name in told


@pytest.mark.parametrize("image", ["none", "rewritten"])
def test_what_ran_is_what_was_staged(image: str) -> None:
    """A forger cannot say that something else was executed, nor that nothing was."""
    lines = plain(FULL)
    lines[-1]["facts"]["image"] = image
    assert "image" in why(lines)


def test_the_evidence_of_a_beginning_is_believed_or_not() -> None:
    """What was asked for is said there twice, and is one thing."""
    lines = plain(FULL)
    asked = lines[0]["facts"]["confinement"]
    lines[0]["evidence"] = {"requested": asked}
    assert fold(parse_all(sealed(lines))).state is S.EXECD
    lines[0]["evidence"] = {"requested": "landlock" if asked != "landlock" else "mount-locked"}
    assert "line 0: the evidence says otherwise of confinement" in why(lines)


@pytest.mark.parametrize("action", ["FailConfine", "FailExec", "FailBase", "FailDirty", "FailIncompatible"])
def test_a_wrong_cause_is_rejected(action: str) -> None:
    """A launch that failed for one reason cannot be recorded as failed for another."""
    machine = launch(S.STAGED, launch="a" * 32)
    machine.fail(LaunchError("for a test"))
    lines = plain(machine.records)
    lines[-1]["action"] = action
    lines[-1]["facts"]["cause"] = ROWS[action].cause
    assert "line 4: " in why(lines)


@given(data=st.data())
def test_the_shortest_bad_prefix_is_named(data: st.DataObject) -> None:
    """The line that is named is the first that cannot be: everything before it is accepted, it is not."""
    records = list(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        match data.draw(st.sampled_from(["drop", "swap", "double", "bend"])):
            case "drop" if len(records) > 1:
                del records[data.draw(st.integers(0, len(records) - 1))]
            case "swap":
                a, b = (data.draw(st.integers(0, len(records) - 1)) for _ in range(2))
                records[a], records[b] = records[b], records[a]
            case "double":
                place = data.draw(st.integers(0, len(records) - 1))
                records.insert(place, records[place])
            case _:
                place = data.draw(st.integers(0, len(records) - 1))
                records[place] = _bent(
                    records[place], data.draw(st.sampled_from(["time", "container", "seen", "evidence"]))
                )
    try:
        fold(records)
    except RecordRejected as error:
        found = re.match(r"record: line (\d+): ", str(error))
        assert found is not None
        number = int(found[1])
        if number:
            fold(records[:number])
        with pytest.raises(RecordRejected):
            fold(records[: number + 1])


def _bent(record: TransitionRecord, name: str) -> TransitionRecord:
    from dataclasses import replace

    value = {
        "time": "2000-01-01T00:00:00.000Z",
        "container": "other",
        "seen": {"fit": False},
        "evidence": {"other": 1},
    }[name]
    return replace(record, **{name: value})  # type: ignore[arg-type]


# ---- the environment ----


@given(state=st.sampled_from(UNDER_WAY), options=st.sampled_from(list(every_option())), data=st.data())
def test_what_the_environment_did_is_explained(
    state: LaunchState, options: dict[str, Any], data: st.DataObject
) -> None:
    """Any disturbances that are possible now are found again from what they changed, in an order that leads there."""
    assume(can_run(options) or state is not S.CONFINED)
    before = facts = launch(state, **options).facts
    done = set()
    for disturbance in data.draw(st.permutations(DISTURBANCES))[: data.draw(st.integers(0, 6))]:
        if disturbance.possible(facts):
            facts = disturbance.after(facts)
            done.add(disturbance.action)
    found = explains(before, facts)
    assert found is not None and set(found) == done


@given(facts=st.sampled_from([launch(state).facts for state in UNDER_WAY]), data=st.data())
def test_nothing_but_the_environment_is_explained(facts: Facts, data: st.DataObject) -> None:
    """A variable that no disturbance changes, or not so, or no longer, has no explanation."""
    from dataclasses import replace

    from nucleus_gvisor.model.facts import DOMAINS

    name = data.draw(st.sampled_from(sorted(set(DOMAINS) - {"state"})))
    value = data.draw(st.sampled_from(sorted(DOMAINS[name], key=str)))
    assume(getattr(facts, name) != value)
    after = replace(facts, **{name: value})  # type: ignore[arg-type]
    able = [d for d in DISTURBANCES if d.field == name and d.new == value and d.old == getattr(facts, name)]
    able = [d for d in able if d.method in ("", facts.method)]
    in_time = [d for d in able if PATH.index(facts.state) <= PATH.index(d.last)]
    assert explains(facts, after) == ([in_time[0].action] if in_time else None)


# ---- a file of several launches, the dead, and steps without a world ----


@given(data=st.data())
def test_launches_that_share_a_file_are_told_apart(data: st.DataObject) -> None:
    """However the lines of several launches were mixed, those of each are accepted in their own order."""
    launches = [
        launch(state, launch=name * 32).records for state, name in ((S.EXECD, "a"), (S.STAGED, "b"), (S.PREPARED, "c"))
    ]
    left = [list(records) for records in launches]
    mixed: list[TransitionRecord] = []
    while any(left):
        mixed.append(data.draw(st.sampled_from([records for records in left if records])).pop(0))
    apart = by_launch(mixed)
    assert list(apart) == list(dict.fromkeys(record.launch for record in mixed))
    assert sorted(map(tuple, apart.values()), key=lambda r: r[0].launch) == launches
    for records in apart.values():
        fold(records)


def test_an_invariant_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should table and invariants ever disagree, replay names the broken one and the line."""
    monkeypatch.setattr(
        replay, "violated", lambda before, after: ["RunsVerifiedBytes"] if after.image != "none" else []
    )
    with pytest.raises(RecordRejected, match="line 5: RunsVerifiedBytes violated"):
        fold(FULL)


@pytest.mark.parametrize("state", PATH)
def test_the_dead_hold_and_do_nothing(state: LaunchState) -> None:
    """What a killed launcher held is gone but for what lies on disk; the dead, and what has ended, are not killed."""
    facts = launch(state, method="copy").facts
    dead = kill(facts)
    if state is S.EXECD:
        assert dead is None
        return
    assert dead is not None and not dead.alive and dead.state is state
    assert (dead.held, dead.staged, dead.confined, dead.lock) == ("nothing", "nothing", "none", "free")
    assert dead.residue == facts.residue and not violated(facts, dead)
    assert kill(dead) is None
    found = LaunchMachine(dead, NoSteps())
    for action in ROWS:
        if action == "Collect" and dead.residue:
            continue
        with pytest.raises(GuardRefused):
            found.fire(action)
    if dead.residue:
        found.fire("Collect")
        assert found.facts.residue == frozenset() and found.records[-1].evidence == {}


def test_a_lock_of_others_outlives_a_kill() -> None:
    """The kernel drops the dead launcher's own lock, and nobody else's."""
    dead = kill(Facts(lock="theirs"))
    assert dead is not None and dead.lock == "theirs"
