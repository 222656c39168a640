"""Take one check, guard, flag or cleanup out of the code at a time. Nothing is executed here.

An operator of mutation looks for what keeps a launch sound, not for arithmetic:

- `check`: an `if` never finds anything (its condition is still evaluated);
- `operand`: one side of `and` or `or` in a condition is dropped;
- `verdict`: a function that answers yes or no answers yes, or no, whatever it found; a guard or invariant of the model
  always holds;
- `call`: a call that stands alone is dropped: closing, removing, killing, sealing, locking, judging;
- `finally`: all that a `finally` does is dropped;
- `flag`: one of the flags joined by `|` is dropped;
- `keyword`: an argument that hardens a call is dropped;
- `row`: a row of the transition table loses a guard, a part of its effect, or has another source, end or cause.

A mutant's id is `file:function:operator:ordinal`: lines that move do not change it.
"""

import ast
import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

MODEL = ("guards", "table", "invariants", "machine", "replay", "record", "environment", "facts")
RUNTIME = (
    "steps/resolve", "steps/prepare", "steps/stage", "steps/confine", "steps/exec_", "steps/fail", "paths", "_child",
    "cleanup", "_linux", "supervisor", "audit", "elf", "identity", "options", "runsc", "streams", "bundle", "launch",
    "fields",
)  # fmt: skip
OPERATORS = ("check", "operand", "verdict", "call", "finally", "flag", "keyword", "row")
FILES = (*(f"model/{name}.py" for name in MODEL), *(f"runtime/{name}.py" for name in RUNTIME))
STEPS = ("check", "verdict", "call")
DONE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((f"model/{name}.py" for name in MODEL), OPERATORS),
    **dict.fromkeys((f"runtime/{name}.py" for name in ("audit", "elf", "identity", "options", "runsc")), OPERATORS),
    **dict.fromkeys((f"runtime/{name}.py" for name in RUNTIME if name.startswith("steps/")), STEPS),
    "runtime/cleanup.py": STEPS,
}
"""File -> operators of whose mutants none may be without a killer or a reason: each guard, each check in a step, each
clean-up. For the others `--find` has not been through yet."""
HARDENING = frozenset(
    {
        "auto_transitions", "queued", "allow_nan", "object_pairs_hook", "follow_symlinks", "strict", "recursive", "set",
        "clear", "propagation", "mode", "size",
    }
)  # fmt: skip
"""Keywords that a call could do without, and ought not to."""
NO_GUARD = frozenset({"O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_CLOEXEC"})
"""Flags that say what a call is for; and one that `os.open` sets by itself (PEP 446)."""


@dataclass(frozen=True)
class Mutant:
    """The file `file` with one change: `text` instead of what stands from `begin` to `end` (offsets in bytes)."""

    id: str
    file: str
    what: str
    """The change, on one line."""
    lines: range
    scope: range
    """Lines of the function that it is in."""
    begin: int
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        """The file's bytes with the change."""
        return source[: self.begin] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The change as a unified diff."""
        old, new = (text.decode().splitlines(keepends=True) for text in (source, self.apply(source)))
        return "".join(difflib.unified_diff(old, new, f"a/{self.file}", f"b/{self.file}"))


Change = tuple[str, ast.AST, str, str]
"""Operator, the node that is replaced, what stands there instead, and what is said of it."""


def accounted(id: str) -> bool:
    """Is the mutant one of those that are all accounted for."""
    file, _, operator, _ = id.split(":")
    return operator in DONE.get(file, ())


def mutants(root: Path, files: Sequence[str] = FILES) -> list[Mutant]:
    """All mutants of the code below `root`, in the order of files and lines."""
    return list(chain.from_iterable(of_file(name, (root / name).read_bytes()) for name in files))


def of_file(name: str, source: bytes) -> list[Mutant]:
    """All mutants of one file."""
    found: list[Mutant] = []
    ordinals: Counter[tuple[str, str]] = Counter()
    seen: set[bytes] = set()
    finder = _Finder(source, name)
    for function, (operator, node, text, what) in finder.changes():
        begin, end = finder.span(node)
        assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno is not None
        ordinals[function, operator] += 1
        id = f"{name}:{function}:{operator}:{ordinals[function, operator]}"
        lines = range(node.lineno, node.end_lineno + 1)
        mutant = Mutant(id, name, what, lines, finder.scopes.get(function, range(0)), begin, end, text)
        if (changed := mutant.apply(source)) not in seen:  # two operators may make one change
            seen.add(changed)
            found.append(mutant)
    return found


class _Finder:
    """The changes in one file, with the function that each is in."""

    def __init__(self, source: bytes, name: str) -> None:
        self._begins = [0]
        for line in source.splitlines(keepends=True):
            self._begins.append(self._begins[-1] + len(line))
        self._source, self._table, self._model = source, name == "model/table.py", name.startswith("model/")
        self._tree = ast.parse(source)
        self._answers = False
        """Does the function that is looked at answer yes or no."""
        self.scopes: dict[str, range] = {}
        self._inner: set[ast.AST] = set()
        """Parts of a chain of flags, which is done as a whole."""

    def changes(self) -> Iterator[tuple[str, Change]]:
        yield from self._below(self._tree, "module")

    def _below(self, node: ast.AST, function: str) -> Iterator[tuple[str, Change]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = child.name if function == "module" else f"{function}.{child.name}"
                self.scopes[name] = range(child.lineno + 1, (child.end_lineno or 0) + 1)
                kept = self._answers
                if isinstance(child, ast.FunctionDef):
                    self._answers = isinstance(child.returns, ast.Name) and child.returns.id == "bool"
                for part in child.body:
                    yield from self._at(part, name)
                self._answers = kept
            else:
                yield from self._at(child, function)

    def _at(self, node: ast.AST, function: str) -> Iterator[tuple[str, Change]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from self._below(ast.Module([node], []), function)
            return
        if isinstance(node, ast.Assert):  # for the type checker alone
            return
        for change in self._here(node):
            yield function, change
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self._at(node.value, function)
            return
        yield from self._below(node, function)

    # ---- the operators ----

    def _here(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.If(test=test):
                yield "check", test, f"({self._text(test)}) and False", f"never: if {self._line(test)}"
                yield from self._operands(test)
            case ast.While(test=test) | ast.IfExp(test=test):
                yield from self._operands(test)
            case ast.comprehension(ifs=tests):
                for test in tests:
                    yield from self._operands(test)
            case ast.Return(value=ast.expr() as value) if self._answers:
                yield from self._verdicts(value)
                yield from self._operands(value)
            case ast.Expr(value=ast.Call() as call):
                yield "call", node, "pass", f"not: {self._line(call)}"
            case ast.Try(finalbody=[_, _, *_]):
                yield self._finally(node)
            case ast.AugAssign(op=ast.BitOr()):
                yield "flag", node, "pass", f"not: {self._line(node)}"
            case ast.BinOp(op=ast.BitOr()) if node not in self._inner:
                yield from self._flags(node)
            case ast.Call():
                yield from self._keywords(node)
                if isinstance(node.func, ast.Name) and node.func.id in ("any", "all"):
                    for argument in node.args:
                        if isinstance(argument, ast.GeneratorExp):
                            yield from self._operands(argument.elt)
        if self._table and isinstance(node, ast.Call):
            yield from self._row(node)

    def _operands(self, test: ast.expr) -> Iterator[Change]:
        """Each operand of each `and` and `or` that `test` is made of."""
        if isinstance(test, ast.UnaryOp):
            yield from self._operands(test.operand)
        elif isinstance(test, ast.BoolOp):
            word = " and " if isinstance(test.op, ast.And) else " or "
            for gone in test.values:
                kept = [f"({self._text(value)})" for value in test.values if value is not gone]
                yield "operand", test, word.join(kept), f"without: {self._line(gone)}, in: {self._line(test)}"
                yield from self._operands(gone)

    def _verdicts(self, value: ast.expr) -> Iterator[Change]:
        for answer in ("True",) if self._model else ("True", "False"):
            if self._text(value) != answer:
                yield "verdict", value, answer, f"{answer} for: {self._line(value)}"

    def _finally(self, node: ast.Try) -> Change:
        whole = ast.Expr(node.finalbody[0])  # type: ignore[arg-type]  # a span from the first to the last statement
        first, last = node.finalbody[0], node.finalbody[-1]
        whole.lineno, whole.col_offset = first.lineno, first.col_offset
        whole.end_lineno, whole.end_col_offset = last.end_lineno, last.end_col_offset
        said = "; ".join(self._line(part) for part in node.finalbody)
        return "finally", whole, "pass", f"not, finally: {said}"

    def _flags(self, node: ast.BinOp) -> Iterator[Change]:
        """Each of several flags, which have capital names."""
        flags: list[ast.expr] = []
        left: ast.expr = node
        while isinstance(left, ast.BinOp) and isinstance(left.op, ast.BitOr):
            flags.insert(0, left.right)
            left = left.left
            self._inner.add(left)
        flags.insert(0, left)
        if not any(self._text(flag).rpartition(".")[2].isupper() for flag in flags):
            return
        for gone in flags:
            if self._text(gone).rpartition(".")[2] in NO_GUARD:
                continue
            kept = [f"({self._text(flag)})" for flag in flags if flag is not gone]
            yield "flag", node, " | ".join(kept), f"without {self._line(gone)}, in: {self._line(node)}"

    def _keywords(self, call: ast.Call) -> Iterator[Change]:
        name = self._text(call.func).rpartition(".")[2]
        for keyword in call.keywords:
            effect = self._table and name == "replace"
            if keyword.arg is None or not (effect or keyword.arg in HARDENING):
                continue
            kept = [self._text(part) for part in (*call.args, *(k for k in call.keywords if k is not keyword))]
            text = f"{self._text(call.func)}({', '.join(kept)})"
            yield "keyword", call, text, f"without {self._line(keyword)}, in: {self._line(call)}"

    def _row(self, call: ast.Call) -> Iterator[Change]:
        match call:
            case ast.Call(func=ast.Name("Row"), args=[_, sources, dest, ast.Tuple(elts=guards) as judged, *_]):
                for gone in guards:
                    kept = [self._text(guard) for guard in guards if guard is not gone]
                    yield "row", judged, f"({', '.join([*kept, ''])})", self._said(call, f"without {self._line(gone)}")
                if isinstance(sources, ast.Tuple) and self._text(sources) != "(source,)":
                    yield "row", sources, "PATH[:-1]", self._said(call, "from every state on the way")
                other = "S.EXECD" if self._text(dest) == "S.FAILED" else "S.FAILED"
                yield "row", dest, other, self._said(call, f"to {other}")
            case ast.Call(func=ast.Name("_fail"), args=[_, cause, source, *guards]):
                for gone in guards:
                    kept = [self._text(part) for part in call.args if part is not gone]
                    yield "row", call, f"_fail({', '.join(kept)})", self._said(call, f"without {self._line(gone)}")
                yield "row", cause, '"fault"', self._said(call, 'cause "fault"')
                other = "S.STAGED" if self._text(source) != "S.STAGED" else "S.CONFINED"
                yield "row", source, other, self._said(call, f"from {other}")

    def _said(self, call: ast.Call, what: str) -> str:
        return f"{self._text(call.args[0])}: {what}"

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where the node's text begins and ends, in bytes."""
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword)
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin = self._begins[node.lineno - 1] + node.col_offset
        return begin, self._begins[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.AST) -> str:
        begin, end = self.span(node)
        return self._source[begin:end].decode()

    def _line(self, node: ast.AST) -> str:
        line = " ".join(self._text(node).split())
        return line if len(line) <= 100 else f"{line[:97]}..."
