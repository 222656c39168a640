"""Specification and code name each other, and whatever has no counterpart is told by its name."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from nucleus_gvisor.spec import correspondence as c
from nucleus_gvisor.spec import tlc

SOURCES = c.read()
SPEC = "spec/GVisorRuntime.tla"
RESOLVE, CONFINE = "runtime/steps/resolve.py", "runtime/steps/confine.py"
CITED = "Spec: GVisorRuntime!"  # in a docstring it would be one


def changed(path: str, old: str, new: str) -> Mapping[str, str]:
    """The sources with one place of one file changed."""
    assert old in SOURCES[path], f"{path} has no {old!r}"
    return {**SOURCES, path: SOURCES[path].replace(old, new, 1)}


def told(sources: Mapping[str, str]) -> str:
    """What is wrong with `sources`."""
    return "\n".join(c.survey(sources).problems())


# ---- as it is ----


def test_nothing_is_without_a_counterpart() -> None:
    """Every action, row, guard, effect, property, error and citation has one on the other side."""
    assert told(SOURCES) == ""


def test_document_is_fresh() -> None:
    """CORRESPONDENCE.md is what follows from the code."""
    assert c.DOCUMENT.read_text() == c.document(c.survey(SOURCES)), "run spec.correspondence --write"


def test_the_join_is_not_empty() -> None:
    """Each action has what its kind has: guards, a function that does it and properties, or a twin."""
    found = c.survey(SOURCES)
    assert found.actions.keys() == found.rows.keys() and len(found.actions) >= 44
    assert found.sweeps("Forward") and found.sweeps("Environment")
    for action in found.actions.values():
        assert action.changes, action.name
        if action.group == "Environment":
            assert found.twins(action) and action.until, action.name
            continue
        assert action.guards and action.sources and found.properties(action), action.name
        assert bool(found.citing(action, "runtime/")) == (action.name != "GuestStarts"), action.name


def test_an_action_is_read_through_its_parts() -> None:
    """What an action shares with others, with parameters filled in, counts as its own."""
    actions = c.survey(SOURCES).actions
    dirty, copy = actions["FailDirty"], actions["StageCopy"]
    assert dirty.guards == {"Alive", "~CallsWork", "HasResidue"} and dirty.through == ["Fail"]
    assert dirty.sources == {"Unresolved", "Resolved", "Prepared", "Staged", "Confined"}
    assert (dirty.changes["cause"], dirty.changes["residue"]) == ('"left_behind"', "residue")
    assert copy.changes == {"state": '"Staged"', "staged": "Taken", "residue": 'residue \\union {"stage"}'}


# ---- the code changes ----

PYTHON = {
    "no row": ("model/table.py", '    _fail("FailPin", "pin_mismatch", S.PREPARED, Not(g.PinAgrees)),\n', "",
               r"GVisorRuntime.tla:\d+: action FailPin has no row in model/table.py"),
    "no entry": ("model/environment.py", '    Disturbance("FillDisk", "space", True, False, S.PREPARED),\n', "",
                 r"action FillDisk has no row in model/environment.py"),
    "no kill": ("model/environment.py", "def kill(", "def murder(", r"action Kill has no row in model/environment.py"),
    "no action": ("model/table.py", "FAILURES = (", 'FAILURES = (\n    _fail("FailMoon", "fault", S.STAGED, g.Fit),',
                  r"model/table.py:\d+: FailMoon has no action in spec/GVisorRuntime.tla: Failures"),
    "other group": ("model/table.py", "AFTERWARDS = (", 'AFTERWARDS = (\n    _fail("FailPin", "fault", S.STAGED),',
                    r"FailPin is in Afterwards, and in the specification it is in Failures"),
    "guard dropped": ("model/table.py", "g.BundleSound, g.LockFree)", "g.BundleSound)",
                      r"model/table.py:\d+: Prepare lacks the guard LockFree"),
    "guard added": ("model/table.py", "g.RequestSound, g.BinaryTrusted)", "g.RequestSound, g.BinaryTrusted, g.Fit)",
                    r"model/table.py:\d+: Resolve has the guard Fit, which the specification's action has not"),
    "guard turned": ("model/table.py", "Not(g.PinAgrees)", "g.PinAgrees", r"FailPin lacks the guard ~PinAgrees"),
    "guard renamed": ("model/guards.py", "def LockFree(", "def LockIsFree(",
                      r"guard LockFree has no function in model/guards.py(?s:.*)LockIsFree is no guard of spec/"
                      r"(?s:.*)Prepare names the guard LockFree, which is not in model/guards.py"),
    "guard unused": ("model/guards.py", "def Fit(", "def Spare(f: Facts) -> bool:\n    return True\n\n\ndef Fit(",
                     r"model/guards.py:\d+: guard Spare is used by no row"),
    "other source": ("model/table.py", '"bad_bundle", S.RESOLVED', '"bad_bundle", S.PREPARED',
                     r"FailBundle: begins in \['Prepared'\], and in the specification \['Resolved'\]"),
    "other end": ("model/table.py", "(S.CONFINED,), S.EXECD", "(S.CONFINED,), S.STAGED",
                  r"Exec: state' Staged, and in the specification Exec'd"),
    "other cause": ("model/table.py", '"busy", S.RESOLVED', '"changed", S.RESOLVED',
                    r"FailBusy: cause' changed, and in the specification busy"),
    "other effect": ("model/table.py", 'base="private", lock="ours", ', 'lock="ours", ',
                     r"Prepare: changes \['lock', 'residue', 'state'\], and in the specification \['base', 'lock',"),
    "strikes later": ("model/environment.py", '"trusted", "absent", S.PREPARED', '"trusted", "absent", S.STAGED',
                      r"RemoveBinary: strikes until Staged, and in the specification Prepared"),
    "strikes elsewhere": ("model/environment.py", '"path", "trusted", "absent"', '"path", "forged", "absent"',
                          r"RemoveBinary: asks \{'path': '\"forged\"'\}, and in the specification"),
    "row unreadable": ("model/table.py", "g.Alive, g.Evidenced,", "g.Alive, some(g.Evidenced),",
                       r"model/table.py:\d+: an entry of FORWARD that cannot be read: some\(g.Evidenced\) is no guard"),
    "row commented out": ("model/table.py", '    _fail("FailPin",', '    # _fail("FailPin",',
                          r"action FailPin has no row(?s:.*)model/table.py:\d+: FailPin is defined in a comment only"),
    "dangling": (RESOLVE, CITED + "Resolve.", CITED + "Resolved.",
                 r"runtime/steps/resolve.py:\d+: cites GVisorRuntime!Resolved, which does not exist"),
    "dangling in a list": (CONFINE, "ConfineLandlock, ConfineSkipped.", "ConfineLandlock, ConfineNever.",
                           r"runtime/steps/confine.py:\d+: cites GVisorRuntime!ConfineNever, which does not exist"),
    "dangling in a test": ("tests/conftest.py", '"""', '"""' + CITED + "Wish. ",
                           r"tests/conftest.py:1: cites GVisorRuntime!Wish, which does not exist"),
    "unparsed module": (RESOLVE, CITED + "Resolve.", CITED + "Resolve. Spec: Trace!Take.",
                        r"cites Trace!Take: only GVisorRuntime, Concurrent, SandboxLife can be cited"),
    "in a comment": (RESOLVE, "    search = Search()", f"    search = Search()  # {CITED}Resolve",
                     r"resolve.py:\d+: cites GVisorRuntime!Resolve in a comment: a citation belongs in a docstring"),
    "not cited": (RESOLVE, CITED + "Resolve.", "",
                  r"Resolve is cited by no function of the runtime(?s:.*)resolve.py: resolve is named by the"
                  r" comment on Resolve, and does not cite Resolve"),
    "file does not cite": ("runtime/_child.py", CITED + "ConfineLocked.", "",
                           r"runtime/_child.py is named by the comment on ConfineLocked, and nothing in it cites"),
    "not named": (CONFINE, "def canaries() -> list[list[bytes]]:\n    \"\"\"", f"def canaries() -> list[list[bytes]]:\n"
                  f"    \"\"\"{CITED}Exec. ", r"confine.py: canaries: cites Exec, whose comment does not name it"),
    "not ours": (CONFINE, "ConfineLandlock, ConfineSkipped.", "ConfineLandlock, ConfineSkipped, GuestStarts.",
                 r"confine.py: start: cites GuestStarts, which is done by no function of ours"),
    "function renamed": (RESOLVE, "def resolve(", "def look_up(",
                         r"GVisorRuntime.tla:\d+: a comment names runtime/steps/resolve.py: resolve, which does not"),
    "no twin": ("tests/conformance/world.py", "def _FillDisk(", "def _fill(",
                r"FillDisk has no twin in tests/conformance/ that really does it"),
    "not in a trace": ("spec/Trace.tla", '    \\/ action = "FailPin" /\\ FailPin\n', "",
                       r"spec/Trace.tla: Take does not have the action FailPin"),
    "property not checked": ("spec/MCGVisorRuntime.cfg", "PinHonoured ", "",
                             r"PinHonoured is not checked by spec/MCGVisorRuntime.cfg"),
    "property not in the model": ("model/invariants.py", "def PinHonoured(", "def pin_honoured(",
                                  r"PinHonoured is checked, and has no function in model/invariants.py"),
    "cause of no row": ("model/errors.py", 'cause = "busy"', 'cause = "bussy"',
                        r"Busy has the cause bussy, which no row has(?s:.*)no error has the cause busy of FailBusy"),
    "never raised": ("runtime/steps/stage.py", "NoSpace(", "StepFailed(",
                     r"no function of the runtime raises an error with the cause no_space of FailSpace"),
}  # fmt: skip


def says(sources: Mapping[str, str]) -> str:
    """What is wrong with `sources`, unreadable ones included."""
    try:
        return told(sources)
    except c.Unreadable as error:
        return str(error)


@pytest.mark.parametrize("case", PYTHON)
def test_a_fault_of_the_code_is_named(case: str) -> None:
    """What the code lacks, has too much or calls otherwise is told with file, line and name."""
    path, old, new, words = PYTHON[case]
    assert re.search(words, says(changed(path, old, new)))


def test_a_group_without_a_test_is_found() -> None:
    """When no test cites Next any more, the actions that no test names are told."""
    bare = {p: t.replace("GVisorRuntime!Next", "nothing") if p.startswith("tests/") else t for p, t in SOURCES.items()}
    assert re.search(r"model/environment.py:\d+: SpoilBundle is named by no test", told(bare))


# ---- the specification changes ----

TLA = {
    "action taken out": (" \\/ StageStore \\/", " \\/", r"table.py:\d+: StageStore has no action in spec"),
    "action put in": ("Afterwards == GuestStarts", "Rest == UNCHANGED vars\nAfterwards == Rest \\/ GuestStarts",
                      r"GVisorRuntime.tla:\d+: action Rest has no row in model/table.py"),
    "guard taken out": ("/\\ BundleSound /\\ LockFree\n", "/\\ BundleSound\n",
                        r"Prepare has the guard LockFree, which the specification's action has not"),
    "guard put in": ('state = "Unresolved" /\\ RequestSound', 'state = "Unresolved" /\\ Fit /\\ RequestSound',
                     r"Resolve lacks the guard Fit, which the specification's action has"),
    "guard unused": ("HasResidue      ==", "Spare == TRUE\nHasResidue      ==",
                     r"guard Spare has no function in model/guards.py\n.*:\d+: guard Spare is used by no action"),
    "guard without a name": ("/\\ BundleSound /\\ LockFree\n", '/\\ BundleSound /\\ LockFree /\\ space = TRUE\n',
                             r"Prepare asks `space = TRUE` without a guard's name"),
    "effect taken out": ('/\\ state\' = "Resolved" /\\ held\' = path', '/\\ state\' = "Resolved"',
                         r"Resolve: changes \['held', 'state'\], and in the specification \['state'\]"),
    "defined in a comment": ("Taken == held", "\\* Seized == held\nTaken == held",
                             r"GVisorRuntime.tla:\d+: Seized is defined in a comment only"),
    "word of a comment": ("(* A memfd, sealed", "(* See FailMoon. A memfd, sealed",
                          r"a comment speaks of FailMoon, which does not exist"),
    "file of a comment": ("runtime/steps/fail.py: unwind", "runtime/steps/fall.py: unwind",
                          r"GVisorRuntime.tla:\d+: a comment names runtime/steps/fall.py, which does not exist"),
    "module of a comment": ("MustFail.tla", "Elsewhere.tla", r"a comment names Elsewhere.tla, which does not exist"),
    "nameless disjunct": ("Afterwards == GuestStarts", "Afterwards == UNCHANGED vars \\/ GuestStarts",
                          r"Afterwards has a disjunct without a name: UNCHANGED vars"),
    "other Next": ("Next == System \\/", "Rest == UNCHANGED vars\nNext == Rest \\/ System \\/",
                   r"System and Next are made of Forward, Failures, Rest, System"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", TLA)
def test_a_fault_of_the_specification_is_named(case: str) -> None:
    """What the specification lacks, has too much or says only in prose is told with file, line and name."""
    old, new, words = TLA[case]
    assert re.search(words, says(changed(SPEC, old, new)))


def test_a_guard_renamed_in_the_specification_is_named() -> None:
    """The row that still has the old name, and the function, are both told."""
    renamed = {**SOURCES, SPEC: re.sub(r"\bLockFree\b", "LockIsFree", SOURCES[SPEC])}
    problems = told(renamed)
    assert re.search(r"model/table.py:\d+: Prepare lacks the guard LockIsFree", problems)
    assert re.search(r"model/guards.py:\d+: LockFree is no guard of spec/GVisorRuntime.tla", problems)


def test_what_does_not_parse_is_told_in_sany_s_words() -> None:
    """No verdict comes from a specification that is none."""
    with pytest.raises(tlc.TlcFailed, match="exited with"):
        told(changed(SPEC, "Taken == held", "Taken == == held"))


# ---- the guide ----

PLACES = {
    "operator": [(SPEC, "SpaceLeft       ==", 'Pinned          == pin # "none"\nSpaceLeft       ==')],
    "guard in the action": [(SPEC, "StageStore == UsesStore /\\", "StageStore == UsesStore /\\ Pinned /\\")],
    "failure": [
        (SPEC, "FailSpace   ==",
         'FailUnpinned == UsesStore /\\ ~Pinned /\\ Fail("Prepared", "unpinned", {})\nFailSpace   =='),
        (SPEC, "\\/ FailSpace \\/ FailCache\n", "\\/ FailSpace \\/ FailUnpinned \\/ FailCache\n"),
    ],
    "line in Take": [("spec/Trace.tla", "Take(action) ==\n",
                      'Take(action) ==\n    \\/ action = "FailUnpinned" /\\ FailUnpinned\n')],
    "function": [("model/guards.py", "def SpaceLeft(", 'def Pinned(f: Facts) -> bool:\n    return f.pin != "none"\n\n\n'
                  "def SpaceLeft(")],
    "guard in the row": [("model/table.py", "g.UsesStore,", "g.UsesStore, g.Pinned,")],
    "row of the failure": [("model/table.py", '    _fail("FailSpace"',
                            '    _fail("FailUnpinned", "unpinned", S.PREPARED, g.UsesStore, Not(g.Pinned)),\n'
                            '    _fail("FailSpace"')],
    "error": [("model/errors.py", "class NoSpace(", 'class Unpinned(LaunchError):\n    cause = "unpinned"\n\n\n'
               "class NoSpace(")],
    "raising it": [("runtime/launch.py", "    def _look_stage(self) -> None:\n",
                    '    def _look_stage(self) -> None:\n        raise Unpinned("a store needs a pin")\n')],
}  # fmt: skip
"""The example of ADDING_A_GUARD.md: each place, and what is changed there."""


def example(left_out: str) -> Mapping[str, str]:
    """The sources with the guide's guard added, but for one place."""
    sources = dict(SOURCES)
    for place, changes in PLACES.items():
        for path, old, new in changes if place != left_out else ():
            assert old in sources[path], f"{path} has no {old!r}"
            sources[path] = sources[path].replace(old, new, 1)
    return sources


def plain(text: str) -> str:
    return re.sub(r":\d+:", ":", text)


@pytest.mark.slow
def test_the_guides_example_is_complete() -> None:
    """With all its places changed, the example has a counterpart for everything."""
    assert told(example("")) == ""


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_guide_quotes_what_is_told(place: str) -> None:
    """Whatever place of the example is forgotten, the answer is one that the guide shows for it."""
    guide = (c.HERE / "ADDING_A_GUARD.md").read_text()
    if place == "operator":
        with pytest.raises(tlc.TlcFailed, match="Unknown operator: `Pinned'") as caught:
            told(example(place))
        answer = [line for line in str(caught.value).split("\n") if "Unknown" in line]
    else:
        answer = told(example(place)).split("\n")
    assert any(plain(line) and plain(line) in plain(guide) for line in answer), answer


def test_the_guide_names_what_is_there() -> None:
    """Files and commands of the guide exist."""
    guide = (c.HERE / "ADDING_A_GUARD.md").read_text()
    assert set(re.findall(r"`([\w/]+/\w+\.(?:py|tla))`", guide)) <= SOURCES.keys()
    for module in re.findall(r"-m nucleus_gvisor\.([\w.]+)", guide):
        assert f"{module.replace('.', '/')}.py" in SOURCES


# ---- the command ----


def test_command_compares_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stale document fails until it is written again."""
    monkeypatch.setattr(c, "DOCUMENT", tmp_path / "CORRESPONDENCE.md")
    assert c.main([]) == 1
    assert "CORRESPONDENCE.md is not what follows from the code" in capsys.readouterr().err
    assert c.main(["--write"]) == 0 and c.main([]) == 0
    assert re.search(r"\d\d actions, .*; 0 problems", capsys.readouterr().out)


def test_command_shows_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """`--lines` says where both sides of an action are."""
    c.main(["--lines"])
    shown = capsys.readouterr().out
    assert re.search(r"(?s)Resolve  spec/GVisorRuntime.tla:\d+-\d+\n    row +model/table.py:\d+\n    guard", shown)
    assert re.search(r"    done by +runtime/steps/resolve.py:\d+ resolve\n", shown)


def test_command_needs_a_checkout(tmp_path: Path) -> None:
    """An installed package has no tests, and says so."""
    with pytest.raises(FileNotFoundError, match="is no checkout"):
        c.read(tmp_path)
