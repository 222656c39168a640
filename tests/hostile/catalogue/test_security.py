"""SECURITY.md: each promise is numbered, and names tests that exist."""

import ast
import re

from tests.support.places import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()
PROMISES = TEXT.partition("## What is promised")[2].partition("## What is not promised")[0]


def test_each_promise_names_tests_that_exist() -> None:
    """A promise that no test shows is none; a name stands for all tests that begin with it."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    tests = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    promises = re.findall(r"(?ms)^(\d+)\. \*\*(.*?)(?=^\d+\. \*\*|\Z)", PROMISES)
    assert [int(number) for number, _ in promises] == list(range(1, len(promises) + 1)) and len(promises) >= 9
    for number, text in promises:
        cited = re.findall(r"`(test_\w+)`", text)
        assert cited, number
        missing = [name for name in cited if not any(test == name or test.startswith(f"{name}_") for test in tests)]
        assert missing == [], number


def test_every_file_named_exists() -> None:
    """What the document refers to is there."""
    named = re.findall(r"`((?:tests|spec|runtime)/[\w./]+)`", TEXT)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
