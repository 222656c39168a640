"""Launches on a kernel that lacks something, and runtime/KERNEL.md: what it says is so, and it says all."""

import ast
import errno
import platform
import re
from typing import Any

import pytest

from tests.hostile.bench import Bench, files, opened, runs
from tests.hostile.catalogue.table import Case, Observe, case
from tests.hostile.test_weaknesses import LEAKS
from tests.support.places import ROOT

KERNEL = (ROOT / "tests/conformance/kernel.py").read_text()
NUMBERS = {
    "x86_64": {"memfd_create": 319, "execveat": 322, "waitid": 247, "setns": 308, "unshare": 272, "sendfile": 40},
    "aarch64": {"memfd_create": 279, "execveat": 281, "waitid": 95, "setns": 268, "unshare": 97, "sendfile": 71},
}[platform.machine()] | {
    "openat2": 437, "pidfd_open": 434, "pidfd_send_signal": 424, "close_range": 436, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip
ABSENT = {
    "openat2": "OK", "execveat": "OK", "close_range": "OK", "setns": "OK",
    "landlock_create_ruleset": "OK", "landlock_add_rule": "OK", "landlock_restrict_self": "OK",
    "memfd_create": "StepFailed", "sendfile": "StepFailed", "pidfd_open": "StepFailed",
    "pidfd_send_signal": "StepFailed", "waitid": "StepFailed",
    "unshare": "ConfineFailed", "mount_setattr": "ConfineFailed", "open_tree": "ConfineFailed",
    "move_mount": "ConfineFailed", "fsopen": "ConfineFailed", "fsconfig": "ConfineFailed", "fsmount": "ConfineFailed",
}  # fmt: skip
"""What comes of a launch that seals its runsc without the call."""
PLAIN = {"confinement": "landlock", "program": "plain", "stage": "copy"}
OTHERWISE: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "threads": ({"threads": True}, ABSENT),
    "kept": ({"options": {"stage": "kept"}}, ABSENT | {"memfd_create": "StepFailed", "sendfile": "OK"}),
    "in place": ({"in_place": True}, ABSENT | {"setns": "ExecFailed"}),
    "landlock": (
        {"options": PLAIN},
        {call: "OK" for call in ABSENT}
        | {call: end for call, end in ABSENT.items() if end == "StepFailed"}
        | dict.fromkeys(("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"), "ConfineFailed"),
    ),
}
"""The same for other launches: how they are asked for, and what comes of them."""


def without(*calls: str, error: int = errno.ENOSYS) -> str:
    """Text that hides system calls from a process, and from all that it makes."""
    hide = "".join(f"answer({NUMBERS[call]}, {error})\n" for call in calls)
    # Whoever may not filter otherwise can under no_new_privs.
    return f"{KERNEL}\n_libc.prctl(38, 1, 0, 0, 0)\n{hide}"


def ended(bench: Bench, before: str, **how: Any) -> str:
    """How a launch ended, "OK" or the error's name, with nothing left and nothing unconfined executed."""
    driven = bench.drive(before=before, **{"options": {"stage": "sealed"}, **how})
    if driven["driver"] is None:  # in place, and executed
        [report] = runs(driven["reports"])
        assert set(opened(report)) == {"0", "1", "2"}
        bench.spawn(id="collects").wait()  # what it left is the next launch's to remove
        assert files(bench.artifacts) == []
        return "OK"
    assert driven["before"] == driven["after"] and files(bench.artifacts) == []
    if "error" in driven["driver"]:
        assert runs(driven["reports"]) == [] and driven["driver"]["states"][-1] == "Failed"
        assert driven["driver"]["errno"] in ("ENOSYS", None), driven["driver"]
        told = driven["driver"]
        assert told["hint"] or told["expected"] or "Function not implemented" in told["observed"], told
        return str(driven["driver"]["error"])
    [report] = runs(driven["reports"])
    assert set(opened(report)) == {"0", "1", "2"} and driven["driver"]["code"] == 0
    return "OK"


@case("C-enosys")
def test_without_each_call(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """Each call that a kernel may lack has a fallback that is not weaker, or ends the launch with a typed error."""
    found = {call: ended(mode_bench, without(call)) for call in ABSENT}
    assert found == ABSENT
    observe(", ".join(f"{end}: {list(found.values()).count(end)}" for end in sorted(set(found.values()))))


@pytest.mark.parametrize("way", OTHERWISE)
def test_without_each_call_otherwise(bench: Bench, way: str) -> None:
    """So it is for callers with threads, in place, and under Landlock."""
    how, expected = OTHERWISE[way]
    asked = {call: {**how, **({"options": dict(how["options"])} if "options" in how else {})} for call in ABSENT}
    assert {call: ended(bench, without(call), **asked[call]) for call in ABSENT} == expected


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("how", [{}, {"threads": True}, {"in_place": True}], ids=["fork", "fresh", "in place"])
def test_no_descriptor_leaks_without_close_range(bench: Bench, how: dict[str, Any], error: int) -> None:
    """The fallback closes what the call would: of the caller's open files none reaches runsc."""
    report = bench.drive_run(before=LEAKS + without("close_range", error=error), **how)
    assert set(opened(report)) == {"0", "1", "2"}


NO_FLAG = "answer(436, errno.EINVAL, (2, EQUAL, 4))  # CLOSE_RANGE_CLOEXEC\n"


@case("C-no-scope")
def test_a_kernel_without_the_scope(case: Case, mode_bench: Bench, observe: Observe) -> None:
    """Before Linux 6.12 the rest of the confinement is in force, and the record says that the scope is not; a launch
    that requires it is refused."""
    for error in (errno.EOPNOTSUPP, errno.E2BIG, errno.ENOSYS):
        old = without("landlock_create_ruleset", error=error)
        driven = mode_bench.drive(before=old)
        [shown] = [evidence for evidence in driven["driver"]["evidence"] if "scope" in evidence]
        assert (driven["driver"]["achieved"], shown["scope"]) == ("mount-locked", "none") and runs(driven["reports"])
        driven = mode_bench.drive(before=old, options={"signal_scope": "required"})
        assert driven["driver"]["error"] == "ConfineFailed" and "Linux 6.12" in driven["driver"]["hint"]
        assert runs(driven["reports"]) == [] and driven["before"] == driven["after"]
    driven = mode_bench.drive(options={"signal_scope": "required"})
    assert driven["driver"]["achieved"] == "mount-locked" and runs(driven["reports"])
    observe("best_effort: scope none; required: F:ConfineFailed")


def test_linux_5_10(bench: Bench) -> None:
    """Without mount_setattr, Landlock and CLOSE_RANGE_CLOEXEC a required launch fails; one without confinement runs."""
    old = LEAKS + without("mount_setattr", "landlock_create_ruleset") + NO_FLAG
    driven = bench.drive(before=old)
    assert driven["driver"]["error"] == "ConfineFailed" and runs(driven["reports"]) == []
    assert "mount_setattr" in driven["driver"]["observed"] and "doctor" in driven["driver"]["hint"]
    for how in ({}, {"in_place": True}):
        report = bench.drive_run(before=old, options={"enforcement": "off"}, **how)
        assert set(opened(report)) == {"0", "1", "2"}
        bench.spawn(id="collects").wait()


# ---- the document ----

TABLE = [line for line in (ROOT / "runtime/KERNEL.md").read_text().splitlines() if line.startswith("| ")][1:]
CITATION = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def used() -> set[str]:
    """System calls and constants of `_linux.py`, and what else of recent kernels runtime/ calls."""
    tree = ast.parse((ROOT / "runtime/_linux.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_libc":
            names.add(node.attr)
    for statement in tree.body:
        if not isinstance(statement, ast.Assign):
            continue
        for target in ast.walk(statement):
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store) and target.id.isupper():
                names.add(target.id)
        if isinstance(statement.targets[0], ast.Name) and statement.targets[0].id == "_NUMBERS":
            assert isinstance(statement.value, ast.Dict)
            names |= {str(key.value) for key in statement.value.keys if isinstance(key, ast.Constant)}
    recent = (
        r"\b(?:os|signal|linux)\.(memfd_create|pidfd_open|pidfd_send_signal|sendfile|waitid|P_PIDFD|copy_file_range)\b"
    )
    for path in (ROOT / "runtime").rglob("*.py"):
        names |= set(re.findall(recent, path.read_text()))
    return {
        name
        for name in names
        if name not in ("syscall", "_NUMBERS", "_RT_SIGACTION", "_CLONE", "_PIVOT_ROOT", "_PIDFD_INFO")
    }


def test_the_table_is_complete() -> None:
    """Every system call and constant that `_linux.py` uses stands in a row, and every call that is hidden above."""
    named = set(re.findall(r"[A-Za-z_0-9]+", "\n".join(row.split("|")[1] for row in TABLE)))
    assert {"mount_setattr", "AT_SECURE", "P_PIDFD", "F_SEAL_WRITE"} <= used()
    assert used() - named == {"TYPE_CHECKING"}  # which is Python's
    assert set(ABSENT) <= named | {"setns", "unshare"}


def test_the_table_cites_what_is_there() -> None:
    """Each row has a version and a place, and the place exists."""
    for row in TABLE:
        feature, since, purpose, absent, cost = (cell.strip() for cell in row.strip("|").split("|"))
        assert re.match(r"\d", since) and purpose and absent and cost, feature
        cited = CITATION.findall(row)
        assert cited, feature
        for file, name in cited:
            tree = ast.parse((ROOT / "runtime" / file).read_text())
            *owners, last = name.split(".")
            scope: list[ast.AST] = [tree]
            for owner in owners:
                scope = [n for s in scope for n in ast.walk(s) if isinstance(n, ast.ClassDef) and n.name == owner]
            kinds = (ast.FunctionDef, ast.ClassDef)
            assert [n for s in scope for n in ast.walk(s) if isinstance(n, kinds) and n.name == last], (file, name)


def test_the_table_says_what_was_seen() -> None:
    """A call without which a launch fails stands in the row of that error, and the others do not."""
    for call, end in ABSENT.items():
        [row] = [row for row in TABLE if re.search(rf"`{call}`", row.split("|")[1])]
        absent = row.split("|")[4]
        if call.startswith("landlock") or call == "setns":  # not part of a default launch
            continue
        assert (end in absent) if end != "OK" else ("Failed" not in absent), (call, absent)
