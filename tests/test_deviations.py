"""spec/DEVIATIONS.md names tests that exist, and has a row for each weakness."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "spec/DEVIATIONS.md").read_text().splitlines() if re.match(r"\| [\d-]", line)]


def _tests() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_named_exists() -> None:
    """A row that names a test which is not there shows nothing."""
    names = _tests()
    missing = [
        cited
        for row in ROWS
        for cited in re.findall(r"`(test_\w+)`", row)
        if not any(name == cited or name.startswith(f"{cited}_") for name in names)
    ]
    # Two weaknesses may share one test, whose name then carries both numbers.
    shared = {"test_weakness_18": "test_weakness_15_18"}
    assert [name for name in missing if shared.get(name, name) not in {n[:19] for n in names}] == []


def test_every_row_cites_a_test() -> None:
    """A difference without a test is a claim."""
    assert [row for row in ROWS if "`test_" not in row] == []


def test_every_weakness_has_a_row() -> None:
    """The rows of the first table are numbered 1 to 43, without a gap."""
    numbered = [row for row in ROWS if re.search(r"`test_weakness_\d\d`", row) and row.count("|") == 7]
    assert [int(row.split("|")[1]) for row in numbered] == list(range(1, 44))


def test_the_reference_configurations_exist() -> None:
    """A configuration that refutes the reference's fault is named only where it is there."""
    cited = re.findall(r"`(reference-\w+\.cfg)`", "\n".join(ROWS))
    assert len(cited) == 4 and all((ROOT / "spec" / name).is_file() for name in cited)
