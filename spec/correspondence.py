"""Which line of the code is which line of the specification: joined from both sides, and enforced.

One side is the syntax tree that SANY, the specification's own parser, exports; the other is Python's. `survey` joins
them, `Survey.problems` names all that has no counterpart, and CORRESPONDENCE.md shows the rest. A citation is
`Spec: Module!Name, Name` in a docstring, outside of backticks; in a comment of the specification it is
`file: function`. Nothing of what is judged is imported.

    python -m nucleus_gvisor.spec.correspondence [--write | --lines]
"""

import argparse
import ast
import fnmatch
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from xml.etree import ElementTree

from nucleus_gvisor.spec import check, tlc

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE / "CORRESPONDENCE.md"
MODULE, CONFIG = "GVisorRuntime", "MCGVisorRuntime.cfg"
PARSED: Mapping[str, tuple[str, ...]] = {MODULE: ("AbstractGVisor",), "Concurrent": (), "SandboxLife": ()}
"""Modules that SANY is asked about, with those that they need. Only their operators can be cited."""

TABLE, ENVIRONMENT, GUARDS = "model/table.py", "model/environment.py", "model/guards.py"
INVARIANTS, ERRORS, STATES = "model/invariants.py", "model/errors.py", "model/states.py"
MUTANTS = "spec/mutants.json"
TWINS = "tests/conformance/"
OWN = "tests/spec/test_correspondence.py"
"""Names actions, and exercises none."""
GROUPS = {"Forward": "FORWARD", "Failures": "FAILURES", "Afterwards": "AFTERWARDS"}
NOT_OURS = "by no function of ours"
"""What the comment of an action says for which no function of the runtime is to be looked for."""
UNCAUSED = {"left_behind"}
"""Causes that no error has: unwinding itself finds them."""
BASES = {"LaunchError", "GuardRefused", "RecordRejected"}
"""Errors that no step of a launch raises because of what it finds."""
BESIDE = re.compile(r"runtime/(?:cli|doctor|explain|rehearsal)\.py")
"""Files that take no part in a launch."""
MANY = 5
"""Tests of one file that are named; of more it is only said that there are more."""

Sources = Mapping[str, str]
"""The texts to judge, by their path in the project."""


class Unreadable(ValueError):
    """A row, or another piece of the model's data, that is not written in the form that can be read here."""


def read(root: Path = HERE.parent) -> Sources:
    """The texts of the checkout. FileNotFoundError where there is none: an installed package has no tests."""
    found = [path for part in ("model", "runtime", "spec", "tests") for path in sorted((root / part).rglob("*.py"))]
    found += [*sorted((root / "spec").glob("*.tla")), *sorted((root / "spec").glob("*.cfg")), root / MUTANTS]
    if not (root / "tests").is_dir():
        raise FileNotFoundError(f"{root} is no checkout: it has no tests")
    return {path.relative_to(root).as_posix(): path.read_text() for path in found}


# ---- the specification, as SANY has it ----


@dataclass(frozen=True, slots=True)
class Term:
    """An expression: an operator of ours (`use`), of TLA+ (its name), a `variable`, `parameter`, `string` or other."""

    op: str
    name: str
    args: tuple["Term", ...]
    level: int
    """0 constant, 1 state, 2 action, 3 temporal."""
    text: str
    bound: tuple[tuple[str, "Term"], ...] = ()

    def walk(self) -> Iterator["Term"]:
        yield self
        # Of [A]_v only A says something.
        args = self.args[:1] if self.op == "$SquareAct" else self.args
        for part in (*args, *(domain for _, domain in self.bound)):
            yield from part.walk()


@dataclass(frozen=True, slots=True)
class Definition:
    """An operator: where it is, what it is, and what the comments before and beside it say."""

    name: str
    first: int
    last: int
    level: int
    parameters: tuple[str, ...]
    body: Term
    comment: str


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module: its definitions in their order, and its comments by their first lines."""

    name: str
    definitions: Mapping[str, Definition]
    comments: tuple[tuple[int, str], ...]
    variables: frozenset[str]

    def closure(self, names: Iterable[str]) -> frozenset[str]:
        """Variables that the definitions mention, through whatever they use."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.definitions:
                continue
            seen.add(name)
            for term in self.definitions[name].body.walk():
                if term.op == "variable":
                    found.add(term.name)
                elif term.op == "use":
                    waiting.append(term.name)
        return frozenset(found & self.variables)


_COMMENT = re.compile(r"\(\*.*?\*\)|\\\*[^\n]*", re.DOTALL)


class _Reader:
    """One module out of SANY's XML."""

    def __init__(self, name: str, text: str, xml: str) -> None:
        self.name, self.lines = name, text.split("\n")
        self.entries = {entry.findtext("UID", ""): entry[1] for entry in ElementTree.fromstring(xml).iter("entry")}
        self.comments = tuple((text.count("\n", 0, m.start()) + 1, m[0]) for m in _COMMENT.finditer(text))

    def module(self) -> Module:
        own = [e for e in self.entries.values() if e.findtext("location/filename") == self.name]
        operators = [e for e in own if e.tag == "UserDefinedOpKind" and e.find("body") is not None]
        definitions: dict[str, Definition] = {}
        last, comment = 0, ""
        for element in sorted(operators, key=lambda e: int(e.findtext("location/line/begin", "0"))):
            definition = self._definition(element, last, comment)
            last, comment = definition.last, definition.comment
            definitions[definition.name] = definition
        variables = {e.findtext("uniquename", "") for e in own if e.tag == "OpDeclNode" and e.findtext("kind") == "3"}
        return Module(self.name, definitions, self.comments, frozenset(variables))

    def _definition(self, element: ElementTree.Element, last: int, before: str) -> Definition:
        first, end = (int(element.findtext(f"location/line/{n}", "0")) for n in ("begin", "end"))
        told = [comment for line, comment in self.comments if last < line <= end]
        # Definitions without an empty line between them share the comment above the first.
        if not told and all(line.strip() for line in self.lines[last : first - 1]):
            told = [before]
        body = element.find("body")
        assert body is not None
        parameters = element.findall("params/leibnizparam/FormalParamNodeRef/UID")
        return Definition(
            element.findtext("uniquename", ""),
            first,
            end,
            int(element.findtext("level", "0")),
            tuple(p.text or "" for p in parameters),
            self._term(body[0]),
            "\n".join(told),
        )

    def _term(self, element: ElementTree.Element) -> Term:
        level, text = int(element.findtext("level", "0")), self._text(element)
        if element.tag == "StringNode":
            return Term("string", element.findtext("StringValue", ""), (), level, text)
        if element.tag != "OpApplNode":
            parts = [self._term(part) for part in element.iter() if part.tag == "OpApplNode"]
            return Term("other", element.tag, tuple(parts), level, text)
        operator = element.find("operator")
        assert operator is not None
        kind, uid = operator[0].tag, operator[0].findtext("UID", "")
        name, home = (self.entries[uid].findtext(path, "") for path in ("uniquename", "location/filename"))
        operands = element.find("operands")
        args = tuple(self._term(part) for part in operands) if operands is not None else ()
        if kind == "FormalParamNodeRef":
            return Term("parameter", uid, args, level, text)
        if kind == "BuiltInKindRef":
            return Term(name, name, args, level, text, tuple(self._bounds(element)))
        if kind == "OpDeclNodeRef":
            return Term("variable", name, args, level, text)
        return Term("use", name if home == self.name else f"{home}!{name}", args, level, text)

    def _bounds(self, element: ElementTree.Element) -> Iterator[tuple[str, Term]]:
        for bound in element.findall("boundSymbols/bound"):
            domain = self._term([part for part in bound if part.tag != "FormalParamNodeRef"][-1])
            for parameter in bound.findall("FormalParamNodeRef/UID"):
                yield parameter.text or "", domain

    def _text(self, element: ElementTree.Element) -> str:
        if element.findtext("location/filename") != self.name:
            return ""
        (top, bottom), (left, right) = (
            [int(element.findtext(f"location/{what}/{end}", "0")) for end in ("begin", "end")]
            for what in ("line", "column")
        )
        lines = self.lines[top - 1 : bottom]
        lines[-1] = lines[-1][:right]
        lines[0] = lines[0][left - 1 :]
        return " ".join(" ".join(lines).split())


_STACK = re.compile(r"\s*$|\s+at |failed for | with error|java\.|Exception in ")
"""Of a module with errors the exporter adds its own stack, many times."""


@lru_cache(maxsize=64)
def parse(name: str, texts: tuple[str, ...]) -> Module:
    """The module `name`, whose text and those of the modules that it needs are `texts`.

    Raises ToolMissing, and TlcFailed with SANY's words when a module does not parse.
    """
    with tempfile.TemporaryDirectory(prefix="sany-") as scratch:
        for each, text in zip((name, *PARSED[name]), texts, strict=True):
            Path(scratch, f"{each}.tla").write_text(text)
        command = [tlc.java(), f"-Djava.io.tmpdir={scratch}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        done = subprocess.run(
            [*command, "-cp", str(tlc.jar()), "tla2sany.xml.XMLExporter", "-o", f"{name}.tla"],
            cwd=scratch,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},  # nothing of JAVA_TOOL_OPTIONS
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
        )
    xml = done.stdout[max(done.stdout.find("<?xml"), 0) :]
    if done.returncode != 0 or not xml.startswith("<?xml"):
        words = "\n".join(line for line in (done.stdout + done.stderr).split("\n") if not _STACK.match(line))
        raise tlc.TlcFailed(f"SANY exited with {done.returncode} on {name}.tla:\n{words[:2000]}")
    return _Reader(name, texts[0], xml).module()


def _parse_all(sources: Sources) -> Mapping[str, Module]:
    texts = {name: tuple(sources[f"spec/{each}.tla"] for each in (name, *needed)) for name, needed in PARSED.items()}
    with ThreadPoolExecutor() as pool:
        return dict(zip(texts, pool.map(parse, texts.keys(), texts.values()), strict=True))


def _checked(sources: Sources) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory(prefix="cfg-") as scratch:
        path = Path(scratch, CONFIG)
        path.write_text(sources[f"spec/{CONFIG}"])
        return tuple(check.checks(path))


@dataclass(slots=True)
class Action:
    """What one action of the specification says, whatever operators it says it through."""

    name: str
    group: str
    first: int
    last: int
    guards: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    asks: dict[str, str] = field(default_factory=dict)
    """Variables that it compares with a constant itself, as only the environment may."""
    changes: dict[str, str] = field(default_factory=dict)
    """Variable -> its new value, as written."""
    through: list[str] = field(default_factory=list)
    until: str | None = None
    """The last state in which it strikes."""
    nameless: list[str] = field(default_factory=list)


class _Unfolder:
    """Follows an action into the operators that it is made of, its parameters filled in."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.states = self._strings(module.definitions["States"].body, {})

    def unfold(self, name: str, group: str) -> Action:
        definition = self.module.definitions[name]
        action = Action(name, group, definition.first, definition.last, sources=set(self.states))
        self._conjunct(definition.body, {}, action)
        return action

    def _conjunct(self, term: Term, given: Mapping[str, Term], action: Action) -> None:
        match term:
            case Term(op="$ConjList" | "\\land"):
                for part in term.args:
                    self._conjunct(part, given, action)
            case Term(op="use", name="Strikes"):
                action.through.append("Strikes")
                action.until = term.args[0].name
            case Term(op="use", level=2) if term.name in self.module.definitions:
                inner = self.module.definitions[term.name]
                action.through.append(term.name)
                filled = [given.get(arg.name, arg) if arg.op == "parameter" else arg for arg in term.args]
                self._conjunct(inner.body, dict(zip(inner.parameters, filled, strict=True)), action)
            case Term(op="$BoundedExists"):
                self._conjunct(term.args[0], {**given, **dict(term.bound)}, action)
            case Term(op="=", args=(Term(op="'", args=(variable,)), value)):
                value = given.get(value.name, value) if value.op == "parameter" else value
                action.changes[variable.name] = value.text
            case Term(op="UNCHANGED"):
                pass
            case Term(op="use", args=(), level=0 | 1):
                action.guards.add(term.name)
            case Term(op="\\lnot", args=(Term(op="use", args=(), level=0 | 1) as guard,)):
                action.guards.add(f"~{guard.name}")
            case Term(op="=" | "/=", args=(Term(op="variable", name="state"), value)):
                named = self._strings(value, given)
                action.sources &= named if term.op == "=" else self.states - named
            case Term(op="=", args=(Term(op="variable") as variable, Term(level=0) as value)) if (
                action.group == "Environment"
            ):
                action.asks[variable.name] = value.text
            case _:
                action.nameless.append(term.text)

    def _strings(self, term: Term, given: Mapping[str, Term]) -> set[str]:
        """The states that a constant, or a set of constants, stands for."""
        match term:
            case Term(op="string"):
                return {term.name}
            case Term(op="parameter") if term.name in given:
                return self._strings(given[term.name], given)
            case Term(op="$SetEnumerate"):
                return {name for part in term.args for name in self._strings(part, given)}
            case Term(op="\\", args=(whole, part)):
                return self._strings(whole, given) - self._strings(part, given)
            case Term(op="use") if term.name in self.module.definitions:
                return self._strings(self.module.definitions[term.name].body, given)
        raise Unreadable(f"spec/{MODULE}.tla: {term.text} is no set of states that can be read here")


def disjuncts(module: Module, name: str) -> Iterator[str]:
    """Names of the actions that `name` is a disjunction of."""

    def parts(term: Term) -> Iterator[Term]:
        if term.op in {"$DisjList", "\\lor"}:
            for part in term.args:
                yield from parts(part)
        else:
            yield term

    if name not in module.definitions:
        raise Unreadable(f"spec/{MODULE}.tla: {name} is not defined")
    for part in parts(module.definitions[name].body):
        if part.op != "use":
            raise Unreadable(f"spec/{MODULE}.tla: {name} has a disjunct without a name: {part.text}")
        yield part.name


# ---- the code ----


@dataclass(frozen=True, slots=True)
class Function:
    """A function, class or module: where it is, and what can be seen of it from outside."""

    path: str
    name: str
    line: int
    doc: str
    words: frozenset[str]
    """Strings and names in it, its decorators and the module's constants that it uses."""
    makes: frozenset[str]
    """Names in it, those that it only catches left out."""

    def __str__(self) -> str:
        return f"{self.path}: {self.name}" if self.name else self.path


@dataclass(frozen=True, slots=True)
class File:
    """What is read of one Python file."""

    functions: tuple[Function, ...]
    constants: Mapping[str, int]
    """Names that the module assigns, and where."""
    comments: tuple[tuple[int, str], ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset({f.name for f in self.functions} | self.constants.keys())


@lru_cache(maxsize=1024)
def parse_file(path: str, text: str) -> File:
    """Functions, constants and comments of a Python file."""
    tree = ast.parse(text)
    constants = dict(_assigned(tree))
    words = {name: _words(node) for name, node in constants.items()}
    found = [Function(path, "", 1, ast.get_docstring(tree) or "", frozenset(), frozenset())]

    def visit(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name, own, doc = prefix + node.name, _words(node), ast.get_docstring(node) or ""
                own |= {word for constant in own & words.keys() for word in words[constant]}
                makes = frozenset(_words(node, caught=False))
                found.append(Function(path, name, node.lineno, doc, frozenset(own), makes))
                visit(node, f"{name}.")
            else:
                visit(node, prefix)

    visit(tree, "")
    lines = io.StringIO(text).readline
    comments = [(t.start[0], t.string) for t in tokenize.generate_tokens(lines) if t.type == tokenize.COMMENT]
    return File(tuple(found), {name: node.lineno for name, node in constants.items()}, tuple(comments))


def _assigned(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names that a module or a class assigns itself, and what."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets, value=value):
                yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _words(node: ast.AST | None, *, caught: bool = True) -> set[str]:
    """Strings and names in `node`; those that an `except` names only if `caught`."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        match part := waiting.pop():
            case ast.Constant(value=str() as word) | ast.Name(id=word) | ast.Attribute(attr=word):
                found.add(word)
            case ast.ExceptHandler(body=body) if not caught:
                waiting += body
                continue
        waiting += ast.iter_child_nodes(part) if part is not None else ()
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table, or an entry of the environment, as it is written."""

    action: str
    group: str
    line: int
    guards: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    cause: str = "none"
    changes: Mapping[str, str | None] = field(default_factory=dict)
    """Fields that the effect sets; to what, where that is a constant."""
    asks: Mapping[str, str] = field(default_factory=dict)
    until: str | None = None


class _Model:
    """Reads the model's data from its syntax trees."""

    def __init__(self, sources: Sources) -> None:
        trees = {path: ast.parse(sources[path]) for path in (TABLE, ENVIRONMENT, STATES)}
        self.values: dict[str, object] = {}
        for node in trees[STATES].body:
            if isinstance(node, ast.ClassDef):
                self.values |= {f"S.{name}": self._value(value) for name, value in _assigned(node)}
        for name, value in _assigned(trees[STATES]):
            self.values[name] = self._value(value, "LaunchState")
        self.functions = {
            node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        self.rows = [
            row
            for group, name in GROUPS.items()
            for row in self._entries(trees[TABLE], TABLE, name, partial(self._row, group=group))
        ]
        self.rows += self._entries(trees[ENVIRONMENT], ENVIRONMENT, "DISTURBANCES", self._disturbance)
        if "kill" in self.functions:
            kill = self.functions["kill"]
            changes = {name: None for name in self._effect(kill)}
            until = str(_list(self.values["PATH"])[-2])  # whatever is not terminal
            self.rows.append(Row("Kill", "Environment", kill.lineno, changes=changes, until=until))

    def _entries(self, tree: ast.Module, path: str, name: str, read: Callable[[ast.Call], Row]) -> Iterator[Row]:
        found = dict(_assigned(tree)).get(name)
        if not isinstance(found, ast.Tuple):
            raise Unreadable(f"{path}: {name} is not a tuple of entries")
        for entry in found.elts:
            try:
                if not isinstance(entry, ast.Call):
                    raise Unreadable("not a call")
                yield read(entry)
            except (Unreadable, KeyError, TypeError, ValueError, IndexError) as error:
                raise Unreadable(f"{path}:{entry.lineno}: an entry of {name} that cannot be read: {error}") from error

    def _row(self, call: ast.Call, group: str) -> Row:
        named = {word.arg: word.value for word in call.keywords}
        if isinstance(call.func, ast.Name) and call.func.id == "_fail":
            action, cause, source, *guards = call.args
            sources: ast.expr = ast.Tuple([source])
            effect: ast.expr = ast.Name("_unwind")
            dest: object = self.values["S.FAILED"]
            words = {"Alive", *map(self._guard, guards)}
        else:
            action, sources, end, judges, effect, *rest = call.args
            if not isinstance(judges, ast.Tuple):
                raise Unreadable("its guards are no tuple")
            dest = self._value(end)
            words = {self._guard(guard) for guard in judges.elts}
            cause = rest[0] if rest else named.get("cause", ast.Constant("none"))
        changes: dict[str, str | None] = {name: None for name in self._effect(effect)}
        if dest is not None:
            changes["state"] = str(dest)
        if (why := str(self._value(cause))) != "none":
            changes["cause"] = why
        states = frozenset(map(str, _list(self._value(sources))))
        return Row(str(self._value(action)), group, call.lineno, frozenset(words), states, why, changes)

    def _disturbance(self, call: ast.Call) -> Row:
        action, name, old, new, last = (self._value(argument) for argument in call.args)
        return Row(
            str(action),
            "Environment",
            call.lineno,
            asks={str(name): _tla(old), **{str(k.arg): _tla(self._value(k.value)) for k in call.keywords}},
            changes={str(name): _tla(new)},
            until=str(last),
        )

    def _guard(self, node: ast.expr) -> str:
        match node:
            case ast.Attribute(value=ast.Name(id="g"), attr=name):
                return name
            case ast.Call(func=ast.Name(id="Not"), args=[inner]):
                return f"~{self._guard(inner)}"
        raise Unreadable(f"{ast.unparse(node)} is no guard of the form g.Name or Not(g.Name)")

    def _effect(self, node: ast.AST) -> set[str]:
        """Fields that an effect's `replace` sets."""
        match node:
            case ast.Name(id=name) if name in self.functions:
                return self._effect(self.functions[name])
            case ast.Lambda(body=body):
                return self._effect(body)
            case ast.FunctionDef(body=[*_, ast.Return(value=ast.expr() as value)]):
                return self._effect(value)
            case ast.Name():
                return set()
            case ast.Call(func=ast.Name(id="replace"), args=[first], keywords=words):
                return self._effect(first) | {word.arg or "**" for word in words}
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                return self._effect(self.functions[name])
        raise Unreadable(f"{ast.unparse(node)} is no effect of the form replace(f, name=value)")

    def _value(self, node: ast.expr, states: str = "S") -> object:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.values[name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == states:
                return self.values[f"S.{name}"]
            case ast.Tuple(elts=parts) | ast.Set(elts=parts):
                found: list[object] = []
                for part in parts:
                    if isinstance(part, ast.Starred):
                        found += _list(self._value(part.value, states))
                    else:
                        found.append(self._value(part, states))
                return found
            case ast.Subscript(value=inner, slice=ast.Slice(upper=ast.UnaryOp(operand=ast.Constant(value=int(less))))):
                return _list(self._value(inner, states))[:-less]
            case ast.Call(func=ast.Name(id="frozenset"), args=[inner]):
                return self._value(inner, states)
        raise Unreadable(f"{ast.unparse(node)} is no constant of the model")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Unreadable(f"{value!r} is no tuple")
    return value


def _tla(value: object) -> str:
    return str(value).upper() if isinstance(value, bool) else f'"{value}"'


# ---- the two sides joined ----

_CITED = re.compile(r"\b(\w+)!(\w+(?:,\s+\w+\b(?!!))*)")
_NAME = r"(?!and\b)\w+(?:\.\w+)*(?![\w/])"
_CODE = re.compile(rf"\b((?:model|runtime|spec|tests)/[\w/]+\.py)(?::\s+({_NAME}(?:,\s+{_NAME})*))?")
_MODULE_FILE = re.compile(r"(?<![\w/.-])[\w*-]+\.(?:tla|cfg)\b")
_DEFINES = re.compile(r"^\W*(\w+)(?:\([\w, ]*\))?\s*==", re.MULTILINE)
_ENTRY = re.compile(r"""\b(?:(?:Row|_fail|Disturbance)\(["'](\w+)|def ([A-Z]\w+)\()""")
_TAKEN = re.compile(r'\\/ action = "(\w+)" /\\ (\w+)$', re.MULTILINE)
_HUMPS = re.compile(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b")


@dataclass(frozen=True, slots=True)
class Survey:
    """Both sides, and what joins them."""

    sources: Sources
    modules: Mapping[str, Module]
    checked: tuple[str, ...]
    actions: Mapping[str, Action]
    rows: Mapping[str, Row]
    files: Mapping[str, File]
    citations: tuple[tuple[Function, str, str], ...]
    """Who cites, in a docstring, which operator of which module."""
    causes: Mapping[str, str]
    """For each class of error the cause that it has, its own or its parent's."""

    @property
    def module(self) -> Module:
        return self.modules[MODULE]

    # ---- what is cited ----

    def parts(self, action: Action) -> set[str]:
        """Names under which an action can be cited: its own, and those of the operators that it is made of."""
        return {action.name, *action.through} - {"Strikes"}

    def citing(self, action: Action, below: str) -> list[Function]:
        """Functions in the folder `below` that cite an action."""
        names = self.parts(action)
        return [f for f, module, name in self.citations if module == MODULE and name in names and below in f.path]

    def mutants(self, action: Action) -> dict[str, list[str]]:
        """What was taken out of an action, and the properties that miss it; `spec mutants` has the rest."""
        judged = {name.partition(": "): verdict for name, verdict in json.loads(self.sources[MUTANTS]).items()}
        mine = {what: by for (of, _, what), by in judged.items() if of == action.name}
        return {what: by for what, by in mine.items() if not by[0].startswith("equivalent")}

    def named(self, action: Action) -> list[tuple[str, str]]:
        """File and function, or "" for all of the file, that the comments on an action and on its parts name."""
        found = []
        for part in (action.name, *action.through):
            for path, names in _CODE.findall(self.module.definitions[part].comment):
                found += [(path, name) for name in re.findall(r"[\w.]+", names)] or [(path, "")]
        return [(path, name) for path, name in dict.fromkeys(found) if path.startswith("runtime/")]

    def raising(self, action: Action) -> list[Function]:
        """Functions of the runtime, innermost only, that make an error with an action's cause."""
        row = self.rows.get(action.name)
        if row is None or action.group != "Failures":
            return []
        classes = {name for name, cause in self.causes.items() if cause == row.cause}
        found = []
        for path, file in self.files.items():
            if path.startswith("runtime/") and not BESIDE.fullmatch(path):
                # A class of the same name may be the file's own.
                found += [f for f in file.functions if f.makes & (classes - file.names)]
        return [f for f in found if not any(o.name.startswith(f"{f.name}.") and o.path == f.path for o in found)]

    def tests(self, action: Action) -> list[Function]:
        """Tests that cite an action, name it, or expect an error which has its cause."""
        names = {action.name}
        if action.name in self.rows and (cause := self.rows[action.name].cause) != "none":
            names |= {name for name, has in self.causes.items() if has == cause}
        cited = {f for f, module, name in self.citations if module == MODULE and name in self.parts(action)}
        return [
            f
            for path, file in self.files.items()
            if path.startswith("tests/") and path != OWN
            for f in file.functions
            if f.name.rpartition(".")[2].startswith("test_") and (f in cited or f.words & names)
        ]

    def sweeps(self, group: str = "") -> list[Function]:
        """Tests that exercise every action of a group, and say so: they cite Next, or what `group` is in."""
        above = {"Forward": "System", "Failures": "System"}
        names = {"Next", group, above.get(group, group)} if group else {"Next", "System", "Afterwards", "Environment"}
        return [f for f in dict.fromkeys(f for f, module, name in self.citations if module == MODULE and name in names)
                if f.path.startswith("tests/")]  # fmt: skip

    def twins(self, action: Action) -> list[Function]:
        """What in the conformance tests really does what the environment's action says: a method of its name, or else
        the driver's `disturb`, which names it."""
        there = [f for path, file in self.files.items() if path.startswith(TWINS) for f in file.functions
                 if not path.rpartition("/")[2].startswith("test_")]  # fmt: skip
        own = [f for f in there if f.name.endswith(f"._{action.name}")]
        return own or [f for f in there if f.name.endswith(".disturb") and action.name in f.words]

    def properties(self, action: Action) -> list[str]:
        """Checked properties that mention a variable which an action changes. (TypeOK mentions all.)"""
        changed = action.changes.keys()
        return [name for name in self.checked if name != "TypeOK" and self.module.closure([name]) & changed]

    # ---- guards ----

    def spec_guards(self) -> dict[str, Definition]:
        """Definitions of the section whose comment begins with `Guards.`"""
        comments = self.module.comments
        start = next((line for line, text in comments if text.startswith("(* Guards.")), None)
        if start is None:
            raise Unreadable(f"spec/{MODULE}.tla: no section begins with a comment `Guards.`")
        lines = self.sources[f"spec/{MODULE}.tla"].split("\n")
        end = next(n for n, line in enumerate(lines, 1) if n > start and line.startswith("----"))
        return {name: d for name, d in self.module.definitions.items() if start < d.first < end}

    def guard_functions(self) -> dict[str, Function]:
        return {f.name: f for f in self.files[GUARDS].functions if f.name[:1].isupper() and "." not in f.name}

    def users(self, guard: str) -> list[str]:
        """Actions that a guard is in, itself or through another one."""
        inside = {guard}
        definitions = self.spec_guards()
        for _ in definitions:
            inside |= {n for n, d in definitions.items() if inside & {t.name for t in d.body.walk() if t.op == "use"}}
        return [a.name for a in self.actions.values() if inside & {word.lstrip("~") for word in a.guards}]

    # ---- what is wrong ----

    def problems(self) -> list[str]:
        """All that has no counterpart on the other side, a line for each; empty when everything has."""
        found = [*self._actions(), *self._guards(), *self._cited(), *self._comments(), *self._properties()]
        return list(dict.fromkeys([*found, *self._errors()]))

    def _actions(self) -> Iterator[str]:
        for name, action in self.actions.items():
            path = ENVIRONMENT if action.group == "Environment" else TABLE
            if name not in self.rows:
                yield f"spec/{MODULE}.tla:{action.first}: action {name} has no row in {path}"
                continue
            row, where = self.rows[name], f"{path}:{self.rows[name].line}: {name}"
            if row.group != action.group:
                yield f"{where} is in {row.group}, and in the specification it is in {action.group}"
            for guard in sorted(action.guards - row.guards - ({"Alive"} if action.until else set())):
                yield f"{where} lacks the guard {guard}, which the specification's action has"
            for guard in sorted(row.guards - action.guards):
                yield f"{where} has the guard {guard}, which the specification's action has not"
            for text in action.nameless:
                yield f"spec/{MODULE}.tla:{action.first}: {name} asks `{text}` without a guard's name"
            yield from self._effects(where, row, action)
            if action.group == "Environment":
                if not self.twins(action):
                    yield f"{where} has no twin in {TWINS} that really does it"
            else:
                yield from self._functions(action)
            if not self.tests(action) and not self.sweeps(action.group):
                yield f"{where} is named by no test"
        taken = dict(_TAKEN.findall(self.sources["spec/Trace.tla"]))
        for name, action in self.actions.items():
            if action.group != "Environment" and taken.get(name) != name:
                yield f"spec/Trace.tla: Take does not have the action {name}"
        for name, row in self.rows.items():
            if name not in self.actions:
                path = ENVIRONMENT if row.group == "Environment" else TABLE
                yield f"{path}:{row.line}: {name} has no action in spec/{MODULE}.tla: {row.group}"

    def _effects(self, where: str, row: Row, action: Action) -> Iterator[str]:
        compared: list[tuple[str, object, object]] = [
            ("changes", sorted(row.changes), sorted(action.changes)),
            ("strikes until", row.until, action.until),
        ]
        if action.group != "Environment":
            compared.append(("begins in", sorted(row.sources), sorted(action.sources)))
        if row.asks:
            compared.append(("asks", dict(row.asks), action.asks))
        for name, value in row.changes.items():
            if value is not None and name in action.changes:
                compared.append((f"{name}'", value.strip('"'), action.changes[name].strip('"')))
        for what, ours, theirs in compared:
            if ours != theirs:
                yield f"{where}: {what} {ours}, and in the specification {theirs}"

    def _functions(self, action: Action) -> Iterator[str]:
        """The functions that the comment names are those that cite, and there is one."""
        cited, named = self.citing(action, "runtime/"), self.named(action)
        where = f"spec/{MODULE}.tla:{action.first}: {action.name}"
        if NOT_OURS in self.module.definitions[action.name].comment:
            yield from (f"{f}: cites {action.name}, which is done {NOT_OURS}" for f in cited)
            return
        if not cited:
            yield f"{where} is cited by no function of the runtime"
        for path, name in named:
            if not name and path in self.files and not any(f.path == path for f in cited):
                yield f"{path} is named by the comment on {action.name}, and nothing in it cites {action.name}"
            there = name and path in self.files and name in self.files[path].names
            if there and not any((f.path, f.name) == (path, name) for f in cited):
                names = " or ".join(sorted(self.parts(action)))
                yield f"{path}: {name} is named by the comment on {action.name}, and does not cite {names}"
        for f in cited:
            if (f.path, f.name) not in named and (f.path, "") not in named:
                yield f"{f}: cites {action.name}, whose comment does not name it"

    def _guards(self) -> Iterator[str]:
        definitions, functions = self.spec_guards(), self.guard_functions()
        for name, d in definitions.items():
            if name not in functions:
                yield f"spec/{MODULE}.tla:{d.first}: guard {name} has no function in {GUARDS}"
            if not self.users(name):
                yield f"spec/{MODULE}.tla:{d.first}: guard {name} is used by no action"
        used = {guard.lstrip("~") for row in self.rows.values() for guard in row.guards}
        for _ in functions:
            used |= {word for name in used & functions.keys() for word in functions[name].words & functions.keys()}
        for name, f in functions.items():
            if name not in definitions:
                yield f"{GUARDS}:{f.line}: {name} is no guard of spec/{MODULE}.tla"
            if name not in used:
                yield f"{GUARDS}:{f.line}: guard {name} is used by no row"
        for row in self.rows.values():
            for guard in sorted({word.lstrip("~") for word in row.guards} - functions.keys()):
                yield f"{TABLE}:{row.line}: {row.action} names the guard {guard}, which is not in {GUARDS}"

    def _cited(self) -> Iterator[str]:
        for function, module, name in self.citations:
            if module not in self.modules:
                yield f"{function.path}:{function.line}: cites {module}!{name}: only {', '.join(PARSED)} can be cited"
            elif name not in self.modules[module].definitions:
                yield f"{function.path}:{function.line}: cites {module}!{name}, which does not exist"
        for path, file in self.files.items():
            for line, comment in file.comments:
                for module, name in _CITED.findall(comment):
                    if f"spec/{module}.tla" in self.sources:
                        yield f"{path}:{line}: cites {module}!{name} in a comment: a citation belongs in a docstring"

    def _comments(self) -> Iterator[str]:
        """What comments name is there, and nothing is defined in them alone."""
        for path, text in self.sources.items():
            if path.endswith(".tla"):
                for match in _COMMENT.finditer(text):
                    where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
                    yield from (f"{where}: {wrong}" for wrong in self._comment(match[0]))
        for name, module in self.modules.items():
            known = {d for m in self.modules.values() for d in m.definitions}
            known |= {path[5:-4] for path in self.sources if path.endswith(".tla")}
            for line, comment in module.comments:
                for defined in _DEFINES.findall(comment):
                    if defined not in module.definitions:
                        yield f"spec/{name}.tla:{line}: {defined} is defined in a comment only"
                for word in sorted(set(_HUMPS.findall(comment)) - known):
                    yield f"spec/{name}.tla:{line}: a comment speaks of {word}, which does not exist"
        for path, file in self.files.items():
            if path.startswith("model/"):
                for line, comment in file.comments:
                    for one, other in _ENTRY.findall(comment):
                        yield f"{path}:{line}: {one or other} is defined in a comment only"

    def _comment(self, comment: str) -> Iterator[str]:
        for path, names in _CODE.findall(comment):
            if path not in self.files:
                yield f"a comment names {path}, which does not exist"
                continue
            for name in re.findall(r"[\w.]+", names):
                if name not in self.files[path].names:
                    yield f"a comment names {path}: {name}, which does not exist"
        for name in _MODULE_FILE.findall(comment):
            if not fnmatch.filter(self.sources, f"spec/{name}"):
                yield f"a comment names {name}, which does not exist"

    def _properties(self) -> Iterator[str]:
        functions = {f.name: f for f in self.files[INVARIANTS].functions if f.name[:1].isupper()}
        for name in self.checked:
            definition = self.module.definitions.get(name)
            if definition is not None and definition.body.op != "[]" and definition.level == 3:
                continue  # about time: no function of one state, or of two, can say it
            if name not in functions:
                yield f"spec/{CONFIG}: {name} is checked, and has no function in {INVARIANTS}"
        for name, f in functions.items():
            if name not in self.checked:
                yield f"{INVARIANTS}:{f.line}: {name} is not checked by spec/{CONFIG}"

    def _errors(self) -> Iterator[str]:
        causes = {row.cause: row.action for row in self.rows.values() if row.group == "Failures"}
        for name, cause in self.causes.items():
            if cause not in causes:
                yield f"{ERRORS}: {name} has the cause {cause}, which no row has"
        for cause, action in causes.items():
            if cause in UNCAUSED or action not in self.actions:
                continue
            if cause not in self.causes.values():
                yield f"{ERRORS}: no error has the cause {cause} of {action}"
            elif not self.raising(self.actions[action]):
                yield f"{ERRORS}: no function of the runtime raises an error with the cause {cause} of {action}"


def _citations(sources: Sources, files: Mapping[str, File]) -> Iterator[tuple[Function, str, str]]:
    for file in files.values():
        for function in file.functions:
            for module, names in _CITED.findall(re.sub(r"`[^`]*`", "", function.doc)):
                if f"spec/{module}.tla" in sources:
                    yield from ((function, module, name) for name in re.findall(r"\w+", names))


def _causes(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            inherited = [found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found]
            for name, value in _assigned(node):
                if name == "cause" and isinstance(value, ast.Constant):
                    inherited.insert(0, str(value.value))
            if inherited:
                found[node.name] = inherited[0]
    return {name: cause for name, cause in found.items() if name not in BASES}


def survey(sources: Sources) -> Survey:
    """Both sides of `sources`. Raises Unreadable, ToolMissing, TlcFailed, and SyntaxError for Python that is none."""
    modules, checked = _parse_all(sources), _checked(sources)
    module, files = modules[MODULE], {path: parse_file(path, t) for path, t in sources.items() if path.endswith(".py")}
    unfolder = _Unfolder(module)
    actions = {}
    system = [*disjuncts(module, "System"), *disjuncts(module, "Next")]
    if sorted(system) != sorted(["Forward", "Failures", "System", "Afterwards", "Environment"]):
        raise Unreadable(f"spec/{MODULE}.tla: System and Next are made of {', '.join(system)}")
    for group in (*GROUPS, "Environment"):
        for name in disjuncts(module, group):
            actions[name] = unfolder.unfold(name, group)
    rows = {row.action: row for row in _Model(sources).rows}
    cited = tuple(_citations(sources, files))
    return Survey(sources, modules, checked, actions, rows, files, cited, _causes(sources[ERRORS]))


# ---- shown ----


def _few(functions: Sequence[Function]) -> str:
    """Each file with its functions, of which only a few are named."""
    by_file: dict[str, list[str]] = {}
    for f in functions:
        by_file.setdefault(f.path, []).append(f.name)
    return "; ".join(
        f"`{path}`: " + (", ".join(f"`{n}`" for n in names) if len(names) <= MANY else f"more than {MANY}")
        for path, names in by_file.items()
    )


def _ticks(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def document(found: Survey) -> str:
    """CORRESPONDENCE.md."""
    lines = [
        "# Correspondence",
        "",
        "Generated by `python -m nucleus_gvisor.spec.correspondence --write` from the syntax trees of both sides; a",
        "test compares. `--lines` prints the same with line numbers. What is here is enforced: an action without a",
        "row, a row without an action, a guard, source, effect or cause that differs, a citation that leads nowhere,",
        "and a guard that nothing uses each fail the build. *Mutants* is what was taken out of the action in turn, and",
        "which properties TLC then finds violated (`spec mutants`; those that change no state are left out here).",
        "",
        f"*Properties* are those that mention a variable which the action changes; `TypeOK` mentions all. Of more than"
        f" {MANY}",
        "tests in one file no names are given. These tests exercise every action of a group: "
        f"{_few(found.sweeps()) or 'none'}.",
        "",
    ]
    for group, title in (
        ("Forward", "System, on the way to a running guest"),
        ("Failures", "System, when a step fails"),
        ("Afterwards", "Afterwards"),
        ("Environment", "Environment"),
    ):
        lines += [f"## {title}", ""]
        for action in found.actions.values():
            if action.group == group:
                lines += [f"### {action.name}", "", *_shown(found, action), ""]
    lines += ["## Guards", "", f"Each is an operator of `{MODULE}.tla` and a function of `{GUARDS}`.", ""]
    lines += ["| guard | actions |", "|---|---|"]
    lines += [f"| `{name}` | {_ticks(found.users(name))} |" for name in found.spec_guards()]
    lines += ["", "## Properties", "", f"As `{CONFIG}` has them checked.", ""]
    lines += ["| property | variables | function |", "|---|---|---|"]
    functions = found.files[INVARIANTS].names
    for name in found.checked:
        variables = "all" if name == "TypeOK" else _ticks(sorted(found.module.closure([name])))
        where = f"`{INVARIANTS}: {name}`" if name in functions else "none: it is about time"
        lines.append(f"| `{name}` | {variables} | {where} |")
    return "\n".join(lines) + "\n"


def _shown(found: Survey, action: Action) -> Iterator[str]:
    environment = action.group == "Environment"
    row = found.rows.get(action.name)
    if environment:
        yield f"- until {action.until}: " + "; ".join(f"`{n}' = {v}`" for n, v in action.changes.items())
        entry = "kill" if action.name == "Kill" else "DISTURBANCES"
        yield f"- entry: `{ENVIRONMENT}: {entry}`" if row else "- entry: none"
        yield f"- twin: {_ticks(map(str, found.twins(action)))}"
    else:
        order = list(found.spec_guards())
        guards = sorted(action.guards, key=lambda g: order.index(g.lstrip("~")) if g.lstrip("~") in order else -1)
        sources = [s for s in _rank(found) if s in action.sources]
        yield f"- in {', '.join(sources)}: " + "; ".join(f"`{n}' = {v}`" for n, v in action.changes.items())
        yield f"- row: `{TABLE}: {GROUPS[action.group]}`" if row else "- row: none"
        yield f"- guards: {_ticks(guards)}"
        cited = found.citing(action, "runtime/")
        yield f"- done by: {_ticks(map(str, cited)) or 'no function of ours'}"
        if raising := found.raising(action):
            classes = [name for name, cause in found.causes.items() if row and cause == row.cause]
            yield f"- raised as {_ticks(classes)} in {_few(raising)}"
    yield f"- properties: {_ticks(found.properties(action)) or 'no other'}"
    yield f"- tests: {_few(found.tests(action)) or 'those of its group'}"
    if killed := found.mutants(action):
        told = (f"`{mutant}` ({', '.join(by)})" for mutant, by in killed.items())
        yield f"- mutants: {len(killed)}, each found out: {'; '.join(told)}"


def _rank(found: Survey) -> list[str]:
    return [t.name for t in found.module.definitions["States"].body.args]


def with_lines(found: Survey) -> Iterator[str]:
    """For each action where it is on both sides, as file:line."""
    functions = found.guard_functions()
    for action in found.actions.values():
        path = ENVIRONMENT if action.group == "Environment" else TABLE
        yield f"{action.name}  spec/{MODULE}.tla:{action.first}-{action.last}"
        if action.name in found.rows:
            yield f"    {'row':10} {path}:{found.rows[action.name].line}"
        for guard in sorted(action.guards):
            if (name := guard.lstrip("~")) in functions:
                yield f"    {'guard':10} {GUARDS}:{functions[name].line} {guard}"
        for f in found.citing(action, "runtime/"):
            yield f"    {'done by':10} {f.path}:{f.line} {f.name}"
        for f in found.raising(action):
            yield f"    {'raised in':10} {f.path}:{f.line} {f.name}"
        for name in found.properties(action):
            yield f"    {'property':10} spec/{MODULE}.tla:{found.module.definitions[name].first} {name}"
        for f in found.tests(action):
            yield f"    {'test':10} {f.path}:{f.line} {f.name}"
        for mutant, by in found.mutants(action).items():
            yield f"    {'mutant':10} {mutant}: {', '.join(by)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: a line for each problem, and 1 when there is one or CORRESPONDENCE.md is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="nucleus-gvisor spec correspondence", description="Join the specification with the code."
    )
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--lines", action="store_true", help="print where everything is, as file:line")
    options = parser.parse_args(arguments)
    try:
        found = survey(read())
        wrong, text = found.problems(), document(found)
    except (Unreadable, FileNotFoundError, tlc.TlcFailed, tlc.ToolMissing) as error:
        print(error, file=sys.stderr)
        return 1
    if options.lines:
        print(*with_lines(found), sep="\n")
    if options.write:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.is_file() or DOCUMENT.read_text() != text:
        wrong.append(f"spec/{DOCUMENT.name} is not what follows from the code: run again with --write")
    for line in wrong:
        print(line, file=sys.stderr)
    cited = len({(f, name) for f, _, name in found.citations})
    print(f"{len(found.actions)} actions, {len(found.spec_guards())} guards, {len(found.checked)} properties, "
          f"{cited} citations; {len(wrong)} problems")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
