"""Every part of the specification is needed: what is weakened somewhere is noticed, by what mutants.json names."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.spec import check, graph, mutants, tlc

TEXT = (mutants.HERE / "GVisorRuntime.tla").read_text()
MODULE = mutants.Module(TEXT)
MUTANTS = {mutant.name: mutant for mutant in mutants.mutants(MODULE)}
EXPECTED = mutants.load()


def copy(folder: Path, **edits: tuple[str, str]) -> Path:
    """The specification in `folder`, with text replaced in the modules and configurations that `edits` names."""
    for source in (*mutants.HERE.glob("*.tla"), *mutants.HERE.glob("*.cfg"), *mutants.HERE.glob("*.json")):
        shutil.copyfile(source, folder / source.name)
    for name, (old, new) in edits.items():
        path = folder / name.replace("__", ".")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return folder


def changed(name: str, text: str) -> list[str]:
    """Conjuncts of the action `name` in a module made of `text`."""
    module = mutants.Module(text)
    return [f"{kind} {conjunct}" for kind, conjunct, _, _ in mutants.weaker(module.tree(name))]


# ---- the kill matrix ----


@pytest.mark.campaign
def test_every_mutant_is_killed_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is killed by the properties in mutants.json, or proved equivalent; the matrix says so."""
    assert mutants.main(["--json", str(tmp_path / "matrix")]) == 0
    said = capsys.readouterr().out
    assert f"{len(MUTANTS)} mutants" in said
    assert "0 surviving" in said
    rows = json.loads((tmp_path / "matrix").read_text())
    assert [row["mutant"] for row in rows] == list(MUTANTS) == list(EXPECTED)
    assert all(row["killed_by"] or row["graph_differs"] or row["equivalent_graph"] for row in rows)


@pytest.mark.slow
def test_a_deleted_invariant_leaves_a_survivor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the line that asks for it, what only this invariant notices is named, and the check fails."""
    gone = "ProofIsOfConfinement"
    alone = [name for name, killers in EXPECTED.items() if killers == [gone]]
    assert alone
    folder = copy(tmp_path, MCGVisorRuntime__cfg=(gone, ""), Undisturbed__cfg=(gone, ""))
    assert mutants.main(["--folder", str(folder)]) == 1
    said = capsys.readouterr().out
    for name in alone:
        assert f"FAILED {name} survives every property" in said


@pytest.mark.slow
def test_what_the_specification_violates_kills_nothing(tmp_path: Path) -> None:
    """A property that is false without any change would kill every mutant; it is an error instead."""
    folder = copy(tmp_path, GVisorRuntime__tla=('ConfinedCanMount == guest # "stuck"', "ConfinedCanMount == alive"))
    with pytest.raises(mutants.RewriteError, match="itself, without a change, violates ConfinedCanMount"):
        mutants.judge(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("Exec: without image' = Executed", "Undisturbed"),
        ("StageCopy: without SourceUnchanged", "MCGVisorRuntime"),
        ("StageSealed: without staged' = Taken", "Undisturbed"),
        ('Prepare: without lock\' = "ours"', "Undisturbed"),
        ('FailFault: without lock\' = IF lock = "ours" THEN "free" ELSE lock', "MCGVisorRuntime"),
        ("FailPin: without ~PinAgrees", "Undisturbed"),
        ("Collect: without residue' = {}", "MCGVisorRuntime"),
        ("Fairness: without WF_vars(GuestStarts)", "MCGVisorRuntime"),
    ],
)
def test_a_mutant_alone_is_refuted_likewise(name: str, configuration: str) -> None:
    """TLC refutes the mutant as a specification of its own, with the real configuration, by one of its killers."""
    verdict = mutants.run_alone([MUTANTS[name]], configuration)
    assert verdict.exit in {tlc.INVARIANT, tlc.LIVENESS}
    assert set(verdict.violated) <= set(EXPECTED[name])
    if not verdict.violated:  # a temporal property, which TLC does not name
        assert set(EXPECTED[name]) & set(mutants.properties(MODULE, mutants.HERE).promises)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, killers in EXPECTED.items() if killers == [mutants.STUTTERS]])
def test_what_only_stutters_is_told_by_the_graph(name: str) -> None:
    """Such a mutant has steps that the specification has not, and none of them leads to another state."""
    found, committed = mutants.graph_of([MUTANTS[name]]), graph.load()
    assert (found.nodes, found.initial) == (committed.nodes, committed.initial)
    assert set(found.edges) > set(committed.edges)
    assert all(source == target for source, _, target in set(found.edges) - set(committed.edges))


@pytest.mark.slow
def test_an_equivalent_alone_has_the_committed_graph() -> None:
    """What is proved for many at once holds for one of them by itself."""
    name = next(name for name, killers in reversed(EXPECTED.items()) if killers[0].startswith(mutants.EQUIVALENT))
    assert EXPECTED[name] == [f"{mutants.EQUIVALENT} {graph.digest(mutants.graph_of([MUTANTS[name]]))}"]
    assert mutants.graph_of([MUTANTS[name]]) == graph.load()


# ---- mutants.json ----


def test_each_mutant_has_a_verdict() -> None:
    """No mutant is missing and none too many; killers are properties, and proofs name the committed graph."""
    assert list(EXPECTED) == list(MUTANTS)
    known = mutants.properties(MODULE, mutants.HERE).names
    proof = [f"{mutants.EQUIVALENT} {graph.digest(graph.load())}"]
    for name, verdict in EXPECTED.items():
        assert verdict, name
        assert verdict in (proof, [mutants.STUTTERS]) or set(verdict) <= known, name


def test_a_property_kills_whatever_one_can() -> None:
    """No mutant that has a step to another state is left to graph equality; two only stutter."""
    left = [name for name, verdict in EXPECTED.items() if verdict[0].startswith(mutants.EQUALITY)]
    assert left == ["GuestStarts: without GuestNotYet", "Collect: without HasResidue"]
    assert all(EXPECTED[name] == [mutants.STUTTERS] for name in left)


def test_nearly_every_property_kills() -> None:
    """A property that kills nothing would not be missed. OptionsAreFixed is against actions that nobody wrote."""
    killers = {killer for verdict in EXPECTED.values() for killer in verdict}
    idle = mutants.properties(MODULE, mutants.HERE).names - killers
    assert idle == {"OptionsAreFixed"}


def test_differences_are_told() -> None:
    """A survivor, a verdict that changed, a mutant that is new and one that is gone are told apart."""
    first, second, third, fourth, fifth = list(MUTANTS.values())[:5]
    found = [
        mutants.Judged(first, (), False),
        mutants.Judged(second, (), True),
        mutants.Judged(third, ("TypeOK",), True),
        mutants.Judged(fourth, (), False, "0123"),
        mutants.Judged(fifth, ("TypeOK",), True),
    ]
    expected: dict[str, Sequence[str]] = {
        first.name: ["TypeOK"],
        second.name: ["TypeOK"],
        fourth.name: ["TypeOK"],
        fifth.name: ["TypeOK"],
        "Gone": ["TypeOK"],
    }
    assert mutants.differences(expected, found) == [
        f"{first.name} survives, and is not proved equivalent",
        f"{second.name} survives every property: graph equality, expected TypeOK",
        f"{third.name} is not in mutants.json: TypeOK",
        f"{fourth.name} survives every property: equivalent 0123, expected TypeOK",
        "Gone is in mutants.json, and was not made",
    ]


# ---- the mutants themselves ----


def test_every_action_is_weakened() -> None:
    """Each row of the table has a guard and an effect that are weakened, and each fairness term is dropped."""
    for kind in ("guard", "effect"):
        assert {mutant.action for mutant in MUTANTS.values() if mutant.kind == kind} == ROWS.keys()
    dropped = {mutant.conjunct for mutant in MUTANTS.values() if mutant.kind == "fairness"}
    assert dropped == set(re.findall(r"WF_vars\(\w+\)", MODULE.body("Fairness")))


def test_every_guard_of_the_table_is_dropped() -> None:
    """What the model calls a guard of a row is a conjunct that some mutant of the action lacks."""
    for row in ROWS.values():
        gone = {m.conjunct for m in MUTANTS.values() if m.action == row.action}
        assert {guard.__name__ for guard in row.guards} <= gone, row.action


def test_what_exec_would_hide_is_shown() -> None:
    """Each weakened step on the way to Exec is judged once more without Exec's own look at the evidence."""
    doubled = {(m.action, m.conjunct) for m in MUTANTS.values() if m.beside}
    assert all((m.beside.action, m.beside.conjunct) == mutants.MASK for m in MUTANTS.values() if m.beside)
    assert {action for action, _ in doubled} == set(MODULE.leaves("Forward")) - {"Exec"}
    for conjunct in ("SourceUnchanged", "PinAgrees", "staged' = Taken"):
        assert ("StageCopy", conjunct) in doubled


def test_every_assignment_is_dropped() -> None:
    """What an action's text assigns, itself or through what it shares, is left unchanged by some mutant."""
    shared = {"Stage", "Confine", "Fail"}
    for name in ROWS:
        words = MODULE.body(name)
        words += "".join(MODULE.body(part) for part in shared & set(re.findall(r"\w+", words)))
        assigned = sorted(re.findall(r"(\w+)' =", words))
        its = [m for m in MUTANTS.values() if (m.action, m.kind) == (name, "effect") and not m.beside]
        unchanged = sorted(m.instead.split()[1] for m in its)
        assert unchanged == assigned, name


def test_an_unchanged_action_is_what_it_was() -> None:
    """Without changes, nothing is rewritten."""
    assert mutants.write_out(MODULE, []) == TEXT
    for name in ROWS:
        tree = MODULE.tree(name)
        assert mutants.rewritten(tree, {}) is tree


@pytest.mark.parametrize(
    ("body", "conjuncts"),
    [
        ("p /\\ q", ["p", "q"]),
        ("/\\ p /\\ q\n     /\\ x' = 1 /\\ UNCHANGED y", ["p", "q", "x' = 1"]),
        ("p /\\ (q \\/ (r /\\ s))", ["p", "(q \\/ (r /\\ s))", "r", "s"]),
        ("~(p \\/ q)", ["p", "q"]),
        ("~(p => q)", ["p", "q"]),
        ("~(p /\\ ~(q /\\ r))", ["q", "r"]),
        ("p /\\ (q => (r /\\ s))", ["p", "(q => (r /\\ s))", "r", "s"]),
        ("\\E n \\in S : p /\\ x' = n", ["p", "x' = n"]),
        ("p /\\ x' = IF q /\\ r THEN 1 ELSE 2", ["p", "x' = IF q /\\ r THEN 1 ELSE 2"]),
        ('p /\\ x\' = "/\\\\ q"', ["p", 'x\' = "/\\\\ q"']),
    ],
)
def test_conjuncts_are_found(body: str, conjuncts: list[str]) -> None:
    """A conjunct is found wherever dropping it makes the whole true more often, and nowhere else."""
    found = changed("A", f"A == {body}\n")
    assert [line.split(" ", 1)[1] for line in found] == conjuncts


def test_definitions_are_opened() -> None:
    """Conjuncts of a guard's definition are weakened for each action that uses it, with arguments put in."""
    text = 'A == Ready /\\ Go("here")\nReady == p /\\ q\nGo(to) ==\n    /\\ at = "to"\n    /\\ at\' = to\n'
    assert changed("A", text) == [
        "guard Ready",
        "guard Ready: p",
        "guard Ready: q",
        'guard at = "to"',
        'effect at\' = "here"',
    ]


@pytest.mark.parametrize("body", ["p /\\ q \\/ r", "p => q => r", "p <=> q", "/\\ p\n  /\\ q"])
def test_what_cannot_be_read_is_refused(body: str) -> None:
    """A form that this rewriter does not know is an error that names the action, never a mutant left out."""
    with pytest.raises(mutants.RewriteError, match=r"^A: "):
        mutants.Module(f"A == {body}\n").tree("A")


def test_an_unknown_property_is_refused(tmp_path: Path) -> None:
    """A temporal property of a form that the schema cannot ask is an error, never a property that is not asked."""
    text = TEXT.replace("GuestRuns == ", "GuestRuns == []")
    folder = copy(tmp_path)
    with pytest.raises(mutants.RewriteError, match="GuestRuns"):
        mutants.properties(mutants.Module(text), folder)


def test_every_property_is_asked() -> None:
    """The schema asks what the configurations ask."""
    asked = {name for c in mutants.CONFIGURATIONS for name in check.checks(mutants.HERE / f"{c}.cfg")}
    assert mutants.properties(MODULE, mutants.HERE).names == asked


def test_no_action_is_taken_twice() -> None:
    """The schema leaves nothing out as long as no launch takes an action twice, and what does is found."""
    assert mutants.repeated(graph.load()) == []
    ring = graph.Graph(({}, {}), (0,), ((0, "There", 1), (1, "Back", 0)))
    assert mutants.repeated(ring) == ["Back", "There"]
