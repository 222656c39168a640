"""The specification and the model speak of the same things under the same names, and their citations lead somewhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from nucleus_gvisor.model import environment, guards, invariants
from nucleus_gvisor.model.facts import DOMAINS, RESIDUE, Facts
from nucleus_gvisor.model.states import PATH, TERMINAL
from nucleus_gvisor.model.table import AFTERWARDS, FAILURES, FORWARD, ROWS
from nucleus_gvisor.spec import graph

ROOT = Path(graph.HERE).resolve().parent
TEXT = (graph.HERE / "GVisorRuntime.tla").read_text()
CODE = re.sub(r"\(\*.*?\*\)|\\\*[^\n]*", "", TEXT, flags=re.DOTALL)
OPERATORS = set(re.findall(r"^(?:ASSUME )?(\w+)(?:\([\w, ]+\))?\s*==", CODE, re.MULTILINE))


def body(name: str) -> str:
    """The right-hand side of a definition."""
    found = re.search(rf"^{name}(?:\([\w, ]+\))?\s*==(.*?)(?=^\S|\Z)", CODE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name} is not defined"
    return found[1]


def words(name: str) -> set[str]:
    """The names in a definition's right-hand side."""
    return set(re.findall(r"\w+", body(name)))


def functions(module: object) -> set[str]:
    """Names of a module's own functions that are spelled as the specification spells operators."""
    return {name for name, f in vars(module).items() if inspect.isfunction(f) and name[0].isupper()}


def test_variables_are_the_facts() -> None:
    """Every variable is a field of Facts, `budget` apart, and in the same order."""
    declared = re.search(r"^VARIABLES(.*?)^\S", CODE, re.MULTILINE | re.DOTALL)
    assert declared is not None
    names = re.findall(r"\w+", declared[1])
    assert names == [*Facts.__dataclass_fields__, "budget"]
    assert set(graph.load().nodes[0]) == set(names)


def test_actions_are_the_rows() -> None:
    """Each group of actions has the names of its rows, in the order of the table."""
    for group, rows in (("Forward", FORWARD), ("Failures", FAILURES), ("Afterwards", AFTERWARDS)):
        assert re.findall(r"\w+", body(group)) == [row.action for row in rows]
    events = [d.action for d in environment.DISTURBANCES]
    assert sorted(re.findall(r"\w+", body("Environment"))) == sorted([*events, "Kill"])


def test_guards_have_their_names() -> None:
    """Each guard of the model is an operator of the specification."""
    unknown = functions(guards) - OPERATORS
    assert unknown == set()


def test_rows_have_their_guards() -> None:
    """An action's text names the guards of its row, itself or through what its kind has in common."""
    shared = {"Stage", "Confine", "Fail"}
    for row in ROWS.values():
        named = words(row.action)
        named |= {word for common in named & shared for word in words(common)}
        expected = {guard.__name__.removeprefix("~") for guard in row.guards}
        assert expected <= named, row.action


def test_properties_have_their_names() -> None:
    """Each invariant and action property of the model is one of the specification."""
    assert functions(invariants) <= OPERATORS


def test_domains_are_the_same() -> None:
    """TypeOK admits the values that the model admits."""
    sets = {name: set(re.findall(r'"([^"]+)"', body(name))) for name in
            ("States", "Terminal", "Causes", "Enforcements", "Confinements", "Methods", "Programs")}  # fmt: skip
    assert sets["Terminal"] == set(TERMINAL)
    assert re.findall(r"(\w+) \|->", body("Rank")) == list(PATH[:-1])
    for name, said in re.findall(r"(\w+) (?:\\in|\\subseteq) (BOOLEAN|\{[^}]*\}|\w+)", body("TypeOK")):
        if name == "budget":
            continue
        values = {True, False} if said == "BOOLEAN" else sets.get(said) or set(re.findall(r'"([^"]+)"', said))
        assert values == set(DOMAINS.get(name, RESIDUE)), name


@pytest.mark.parametrize("directory", ["model", "runtime"])
def test_citations_of_the_specification_lead_somewhere(directory: str) -> None:
    """`Spec: GVisorRuntime!X` in a docstring names an operator of the specification."""
    for path in sorted((ROOT / directory).rglob("*.py")):
        for cited in re.findall(r"GVisorRuntime!(\w+(?:, \w+)*)", path.read_text()):
            assert set(cited.split(", ")) <= OPERATORS, f"{path.name} cites {cited}"


def test_citations_of_the_code_lead_somewhere() -> None:
    """A file that a comment of the specification names is there, and has the functions that it names."""
    cited = re.findall(r"((?:runtime|model|tests)/[\w/]+\.py)(?:: ((?:\w+, )*\w+))?", TEXT)
    assert {path for path, _ in cited} >= {f"runtime/steps/{n}.py" for n in ("resolve", "prepare", "stage", "confine")}
    for path, names in cited:
        tree = ast.parse((ROOT / path).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if names and path.startswith("runtime/"):
            assert set(re.findall(r"\w+", names)) - {"and"} <= defined, path
