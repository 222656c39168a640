"""The kill matrix is that of the present code, and mutants are made, held and judged as it says."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutation.__main__ import OTHER, Entry, differences, kind, load, table
from tests.mutation.mutants import DONE, FILES, OPERATORS, Mutant, accounted, mutants, of_file
from tests.mutation.nest import Nest
from tests.support.places import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mutants are held by namespaces")

PRESENT = mutants(ROOT)
MATRIX = load()
SAMPLE = 8


def changes(source: str, name: str = "runtime/x.py") -> list[str]:
    """What the mutants of `source` are, by operator."""
    return [f"{mutant.id.split(':')[2]} {mutant.what}" for mutant in of_file(name, source.encode())]


# ---- the matrix ----


def test_the_matrix_is_of_the_present_code() -> None:
    """Each mutant that is to be accounted for has a killer or a reason, and no other stands in the matrix for it."""
    ours = [mutant for mutant in PRESENT if accounted(mutant.id)]
    assert {mutant.file for mutant in ours} == set(DONE)
    assert differences({id: entry for id, entry in MATRIX.items() if accounted(id)}, ours) == []


def test_each_kill_is_by_a_test_that_is_there() -> None:
    """The kind is the test's own; the file and the function exist."""
    for id, entry in MATRIX.items():
        if "test" in entry:
            test = str(entry["test"])
            file, _, name = test.partition("::")
            assert entry["kind"] == kind(test), id
            assert (ROOT / file).exists(), id
            assert not name or name.split("[")[0].split("::")[-1] in (ROOT / file).read_text(), id


def test_reasons_are_sentences() -> None:
    """Whoever says that a mutant is equivalent says why."""
    for id, entry in MATRIX.items():
        if "equivalent" in entry:
            assert len(str(entry["equivalent"]).split()) > 4, id


def test_every_file_of_a_launch_is_mutated() -> None:
    """What a launch runs, and what judges it, is in the list of files."""
    steps = {path.relative_to(ROOT).as_posix() for path in (ROOT / "runtime/steps").glob("[!_]*.py")}
    assert steps <= set(FILES)
    assert {mutant.file for mutant in PRESENT} == set(FILES)


@needs_root
def test_some_kills_still_happen() -> None:
    """A sample of the matrix, spread over it, is killed by the tests that it names."""
    killed = [
        mutant.id for mutant in PRESENT if "test" in MATRIX.get(mutant.id, {}) and "hung" not in MATRIX[mutant.id]
    ]
    sample = killed[:: max(1, len(killed) // SAMPLE)][:SAMPLE]
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--jobs", "1", *(word for id in sample for word in ("--only", id))],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=250,
    )  # fmt: skip
    assert f"{len(sample)} of them asked for, 0 problems" in done.stdout, done.stdout


def test_what_the_matrix_lacks_is_told() -> None:
    """A new mutant, one that has become another, one that is gone and one that survives are told by name."""
    first, second, third = PRESENT[:3]
    entries: dict[str, Entry] = {
        first.id: {"what": "something else", "kind": OTHER, "test": "t"},
        second.id: {"what": second.what, "survives": "3 tests"},
        "gone": {"what": "", "equivalent": "why"},
    }
    told = differences(entries, [first, second, third])
    assert [line.split()[0].rstrip(":") for line in told] == ["gone", first.id, second.id, third.id]
    assert "surviving" in table(entries, [first, second, third])


# ---- mutants ----


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if a:\n    raise B\n", ["check never: if a"]),
        ("if a and b:\n    c = 1\n", ["check never: if a and b", "operand without: a, in: a and b",
                                      "operand without: b, in: a and b"]),
        ("while not (a or b):\n    c = 1\n", ["operand without: a, in: a or b", "operand without: b, in: a or b"]),
        ("os.close(fd)\n", ["call not: os.close(fd)"]),
        ("try:\n    a = 1\nfinally:\n    b()\n    c()\n",
         ["finally not, finally: b(); c()", "call not: b()", "call not: c()"]),
        ("F = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC\n",
         ["flag without os.O_PATH, in: os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC",
          "flag without os.O_NOFOLLOW, in: os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC"]),
        ("x: int | None = 1\n", []),
        ("s = stat(p, follow_symlinks=False)\n", ["keyword without follow_symlinks=False, in: "
                                                  "stat(p, follow_symlinks=False)"]),
        ("def f() -> bool:\n    return a == b\n", ["verdict True for: a == b", "verdict False for: a == b"]),
        ("def f() -> int:\n    return a == b\n", []),
        ("assert a and b\n", []),
    ],
)  # fmt: skip
def test_operators(source: str, expected: list[str]) -> None:
    """Each operator finds its places, and no others."""
    assert changes(source) == expected


def test_rows() -> None:
    """A row of the table loses each guard and each part of its effect, its source and its end."""
    source = 'T = Row("A", (S.RESOLVED,), S.PREPARED, (g.Alive,), lambda f: replace(f, held="x"))\n'
    source += 'T = _fail("B", "busy", S.STAGED, g.Fit)\n'
    assert changes(source, "model/table.py") == [
        'row "A": without g.Alive',
        'row "A": from every state on the way',
        'row "A": to S.FAILED',
        'keyword without held="x", in: replace(f, held="x")',
        'row "B": without g.Fit',
        'row "B": cause "fault"',
        'row "B": from S.CONFINED',
    ]


def test_every_operator_is_known_by_its_name() -> None:
    """What is to be accounted for names operators that there are."""
    assert {mutant.id.split(":")[2] for mutant in PRESENT} == set(OPERATORS)


def test_ids_do_not_move_with_lines() -> None:
    """Lines above, and checks in other functions, leave a mutant's id as it is."""
    before = of_file("runtime/x.py", b"def f():\n    if a:\n        raise B\n")
    after = of_file("runtime/x.py", b'"""Doc."""\n\ndef e():\n    c()\n\ndef f():\n    if a:\n        raise B\n')
    assert [mutant.id for mutant in before] == ["runtime/x.py:f:check:1"]
    assert "runtime/x.py:f:check:1" in {mutant.id for mutant in after}


def test_each_mutant_is_a_program_and_not_the_original() -> None:
    """Every mutant compiles and differs; ids and texts are unique in a file."""
    assert len({mutant.id for mutant in PRESENT}) == len(PRESENT)
    for mutant in PRESENT:
        source = (ROOT / mutant.file).read_bytes()
        changed = mutant.apply(source)
        compile(changed, mutant.file, "exec")
        assert changed != source
        assert "\n@@" in mutant.diff(source)


# ---- the nest ----


@pytest.fixture(scope="module")
def nest() -> Iterator[Nest]:
    """A copy of the tree."""
    made = Nest()
    yield made
    made.close()


def harmless() -> Mutant:
    """A change that changes nothing."""
    mutant = next(mutant for mutant in PRESENT if mutant.file == "model/guards.py")
    text = (ROOT / mutant.file).read_bytes()[mutant.begin : mutant.end].decode()
    return replace(mutant, text=f"({text})")


@needs_root
def test_a_harmless_change_survives(nest: Nest) -> None:
    """A test fails because of the mutant, and for nothing else in the nest."""
    with nest.with_mutant(harmless()):
        assert nest.run(["tests/model/test_facts.py"], seconds=120).passed


@needs_root
def test_a_mutant_is_what_the_tests_run(nest: Nest) -> None:
    """The same test fails with a mutant and passes without it, in one nest, from one second to the next."""
    mutant = next(m for m in PRESENT if m.id == "model/facts.py:type_ok:verdict:1")
    test = "tests/model/test_facts.py"
    assert nest.run([test], seconds=120).passed
    with nest.with_mutant(mutant):
        outcome = nest.run([test], seconds=120)
    assert (outcome.passed, outcome.test.startswith(test), outcome.hung) == (False, True, False)
    assert nest.run([test], seconds=120).passed


@needs_root
def test_a_mutant_that_cannot_be_imported_is_killed(nest: Nest) -> None:
    """No test can begin; that is a kill as well."""
    with nest.with_mutant(replace(harmless(), text="nothing", begin=0, end=1)):
        assert not nest.run(["tests/model/test_facts.py"], seconds=120).passed


@needs_root
def test_a_test_that_hangs_is_a_kill_and_said_to_be_one(nest: Nest) -> None:
    """Whether the test can be interrupted or not."""
    path = nest.tree / "tests/model/test_hang.py"
    try:
        path.write_text('import time\n\n\ndef test_a() -> None:\n    """Hangs."""\n    time.sleep(600)\n')
        outcome = nest.run(["tests/model/test_hang.py"], seconds=60, test_seconds=1)
        assert (outcome.passed, outcome.hung) == (False, True)
        outcome = nest.run(["tests/model/test_hang.py"], seconds=3)
        assert (outcome.passed, outcome.hung, outcome.test) == (False, True, "tests/model/test_hang.py::test_a")
    finally:
        path.unlink()


@needs_root
def test_the_checkout_cannot_be_written_from_the_nest(nest: Nest) -> None:
    """Nor the system's programs, nor can mounts be seen outside; what was started is gone."""

    def attack() -> int:
        for path in (ROOT / "pyproject.toml", Path("/usr/bin/env"), Path("/etc/passwd")):
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError as error:
                if error.errno != errno.EROFS:
                    return 1
            else:
                return 2
        child = os.fork()
        if child == 0:
            os.setsid()
            while True:
                pass
        (nest.home / "child").write_text(os.readlink("/proc/self/ns/pid"))
        return 7

    assert nest.apart(attack, 60) == 7
    space = (nest.home / "child").read_text()
    assert space != os.readlink("/proc/self/ns/pid")
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            left += [entry.name] if os.readlink(entry / "ns/pid") == space else []
        except OSError:
            pass  # it has ended meanwhile
    assert left == []
