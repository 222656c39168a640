"""Weaken the specification in every place, and see which property notices.

A mutant is `GVisorRuntime.tla` with one change in one action of System or Afterwards, or in Fairness:

- a conjunct of its guard is dropped, wherever it stands: in the action, in what several actions share (`Stage`,
  `Confine`, `Fail`; one mutant for each action that uses it), or inside a guard's own definition;
- a primed assignment becomes UNCHANGED;
- a fairness term is dropped;
- one of the first two on the way to Exec, and Exec's Evidenced, which would hide it, is dropped as well.

All are judged by one module, MutantSchema, written from the specification's text. It walks the specification's own
graph, with `mutant = 0`, and at each state takes the steps that some mutant takes and the specification does not:
from there on the launch is that mutant's. This leaves nothing out. Up to the first such step a mutant with a weaker
guard behaves as the specification does; so does one without an effect, if it did not take the action before, and no
launch takes an action twice (`repeated`). A mutant without such a step has the specification's graph. To prove it,
TLC makes the graph of the specification with many such changes at once, and its hash must be the committed graph's.
That speaks for each alone: it has no more steps than all together, no fewer than the specification, and they lead to
the same states.

A mutant all of whose own steps leave every variable as it is stutters: no property can speak of these steps, because a
behaviour of TLA+ may stutter anywhere. The machine must refuse them all the same, so graph equality is what kills it.

Temporal properties are refuted by stuttering: in `owed` the module keeps what was promised and has not come about, and
where something is owed and no fair action is enabled, staying there for ever is a fair behaviour that breaks the
promise. A mutant that could be refuted only by a longer cycle would be said to survive, never the other way round.

    python -m nucleus_gvisor.spec.mutants [--json FILE] [--write]
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nucleus_gvisor.spec import check, graph, tlc

HERE = Path(__file__).resolve().parent
NAME = "GVisorRuntime"
CONFIGURATIONS = ("MCGVisorRuntime", "Undisturbed")
"""Whose invariants and properties may kill. The first one's graph is the committed one."""
ROOTS = ("System", "Afterwards")
MASKED, MASK = "Forward", ("Exec", "Evidenced")
"""Exec asks again for what every earlier step has made sure of. This hides what becomes of a launch when a step does
not, so the mutants of these actions are made a second time, without that guard of Exec. Where the launch stands, and
that it lives, Exec asks for elsewhere."""
WORKERS = 2


class RewriteError(ValueError):
    """The specification has a form that this file does not know how to weaken. The text names the place."""


# ---- the parts of TLA+ that guards and actions are written in ----


@dataclass(frozen=True, slots=True)
class Node:
    """An expression as far as logic goes: what is below an atom is text.

    `op` is `/\\`, `\\/`, `=>`, `~`, `atom`, `\\E` (`text` binds), or `name`: a defined operator (`text`) and its body.
    """

    op: str
    text: str = ""
    kids: tuple["Node", ...] = ()

    def __str__(self) -> str:
        """TLA+ on one line, with all parentheses that matter."""
        match self.op:
            case "atom" | "name":
                return self.text
            case "~":
                inner = str(self.kids[0])
                return f"~{inner}" if re.fullmatch(r"\w+|\(.*\)", inner) else f"~({inner})"
            case "\\E":
                return f"(\\E {self.text} : {self.kids[0]})"
        return "(" + f" {self.op} ".join(map(_closed, self.kids)) + ")"

    @property
    def acts(self) -> bool:
        """Does it say something about the next state?"""
        if self.op == "atom":
            return "'" in re.sub(r'"[^"]*"', "", self.text) or self.text.startswith("UNCHANGED")
        return any(kid.acts for kid in self.kids)


def _closed(node: Node) -> str:
    """`node` so that an operator may follow."""
    return f"({node})" if node.op == "atom" and not _REST.isdisjoint(node.text.split()) else str(node)


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a sign of TLA+, and where it stands."""

    text: str
    column: int
    start: int


_TOKEN = re.compile(r'"[^"]*"|<=>|<<|>>|/\\|\\/|=>|~>|\\\w+|\w+|\S')
_COMMENT = re.compile(r"\(\*.*?\*\)|\\\*[^\n]*", re.DOTALL)
_DEFINITION = re.compile(r"^(?:ASSUME )?(\w+)(?:\(([\w, ]+)\))? *==(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_OPEN, _CLOSE = {"(", "[", "{", "<<"}, {")", "]", "}", ">>"}
_REST = {"IF", "CASE", "LET", "\\E", "\\A", "CHOOSE"}
"""What these begin goes on to the end of its expression."""


def _tokens(text: str) -> list[Token]:
    return [Token(m[0], m.start() - text.rfind("\n", 0, m.start()) - 1, m.start()) for m in _TOKEN.finditer(text)]


@dataclass(frozen=True, slots=True)
class Definition:
    """`Name(parameters) == body`, the body as it stands, without comments."""

    parameters: tuple[str, ...]
    body: str
    span: tuple[int, int]


class Module:
    """The definitions of a module, by name."""

    def __init__(self, text: str) -> None:
        self.text = text
        # A comment leaves blanks behind, so that columns still are what they were.
        bare = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        self.definitions = {
            m[1]: Definition(tuple(re.findall(r"\w+", m[2] or "")), " " * (m.start(3) - m.start()) + m[3], m.span())
            for m in _DEFINITION.finditer(bare)
        }

    def tree(self, name: str) -> Node:
        """The definition of `name`, and inside it the definitions of the operators that it is made of."""
        return self._unfold(self._parse(name))

    def leaves(self, name: str) -> Iterator[str]:
        """The actions that the disjunction `name` consists of; itself when it is none."""
        node = self._parse(name)
        if node.op == "atom" and node.text in self.definitions:
            yield from self.leaves(node.text)
        elif node.op == "\\/" and all(kid.op == "atom" and kid.text in self.definitions for kid in node.kids):
            for kid in node.kids:
                yield from self.leaves(kid.text)
        else:
            yield name

    def words(self, name: str) -> str:
        """The body of `name` on one line."""
        return " ".join(self._definition(name).body.split())

    def body(self, name: str) -> str:
        """The text of the definition of `name`."""
        return self._definition(name).body

    def _definition(self, name: str) -> Definition:
        if name not in self.definitions:
            raise RewriteError(f"{name} is not defined")
        return self.definitions[name]

    def _parse(self, name: str) -> Node:
        body = self._definition(name).body
        try:
            return _parse(body, _tokens(body))
        except RewriteError as error:
            raise RewriteError(f"{name}: {error}") from None

    def _unfold(self, node: Node) -> Node:
        if node.op != "atom":
            return Node(node.op, node.text, tuple(self._unfold(kid) for kid in node.kids))
        call = re.fullmatch(r"(\w+)(?:\((.*)\))?", node.text)
        if call is None or call[1] not in self.definitions:
            return node
        parameters = self.definitions[call[1]].parameters
        arguments = [part.strip() for part in _split(call[2] or "")]
        body = _substitute(self._parse(call[1]), dict(zip(parameters, arguments, strict=True)))
        return Node("name", node.text, (self._unfold(body),))


def _split(text: str) -> list[str]:
    """Arguments between commas."""
    parts, depth, begin = [], 0, 0
    for token in _tokens(text):
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if token.text == "," and not depth:
            parts.append(text[begin : token.start])
            begin = token.start + 1
    return [*parts, text[begin:]] if text else []


def _substitute(node: Node, values: Mapping[str, str]) -> Node:
    text = re.sub(r'"[^"]*"|\w+', lambda match: values.get(match[0], match[0]), node.text)
    return Node(node.op, text, tuple(_substitute(kid, values) for kid in node.kids))


def _parse(source: str, tokens: Sequence[Token]) -> Node:
    if not tokens:
        raise RewriteError("an empty expression")
    head, last = tokens[0], tokens[-1]
    if head.text in {"/\\", "\\/"}:
        return _bullets(source, tokens)
    for operators in ({"=>", "<=>", "~>"}, {"/\\", "\\/"}):
        if places := _places(tokens, operators):
            return _infix(source, tokens, places)
    if head.text == "~":
        return Node("~", kids=(_parse(source, tokens[1:]),))
    if head.text == "(" and _matching(tokens) == len(tokens) - 1:
        return _parse(source, tokens[1:-1])
    if head.text == "\\E":
        colon = next(n for n, token in enumerate(tokens) if token.text == ":")
        bound = source[tokens[1].start : tokens[colon].start]
        return Node("\\E", " ".join(bound.split()), (_parse(source, tokens[colon + 1 :]),))
    return Node("atom", " ".join(source[head.start : last.start + len(last.text)].split()))


def _bullets(source: str, tokens: Sequence[Token]) -> Node:
    """A list of conjuncts or disjuncts below each other."""
    head = tokens[0]
    begins = [n for n, token in enumerate(tokens) if token.column <= head.column]
    if any((tokens[n].text, tokens[n].column) != (head.text, head.column) for n in begins):
        raise RewriteError(f"a list that is not aligned at {source[head.start :][:40]!r}")
    ends = [*begins[1:], len(tokens)]
    return _flat(head.text, (_parse(source, tokens[b + 1 : e]) for b, e in zip(begins, ends, strict=True)))


def _infix(source: str, tokens: Sequence[Token], places: Sequence[int]) -> Node:
    found = {tokens[n].text for n in places}
    if len(found) > 1 or (found == {"=>"} and len(places) > 1) or found & {"<=>", "~>"}:
        raise RewriteError(f"{' and '.join(sorted(found))} at {source[tokens[0].start :][:40]!r}")
    parts = zip([-1, *places], [*places, len(tokens)], strict=True)
    return _flat(found.pop(), (_parse(source, tokens[b + 1 : e]) for b, e in parts))


def _flat(op: str, kids: Iterable[Node]) -> Node:
    """A conjunct that is itself a list of conjuncts adds them to the list; the same for disjuncts."""
    if op == "=>":
        return Node(op, kids=tuple(kids))
    return Node(op, kids=tuple(part for kid in kids for part in (kid.kids if kid.op == op else (kid,))))


def _places(tokens: Sequence[Token], operators: set[str]) -> list[int]:
    """Where `operators` stand outside all brackets."""
    found, depth = [], 0
    for n, token in enumerate(tokens):
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if not depth and token.text in _REST:
            break
        if not depth and token.text in operators:
            found.append(n)
    return found


def _matching(tokens: Sequence[Token]) -> int:
    depth = 0
    for n, token in enumerate(tokens):
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if not depth:
            return n
    raise RewriteError("a bracket that is not closed")


# ---- what can be weakened ----


Place = tuple[int, ...]
"""A place in an expression: which kid of which kid."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: in which action, at which place, and what stands there instead."""

    action: str
    """`Fairness` for a fairness term."""
    kind: str
    """guard, effect or fairness."""
    conjunct: str
    """The text that is gone; of a conjunct inside a guard's definition, `Guard: text`."""
    place: Place = ()
    instead: str = ""
    beside: "Mutant | None" = None
    """Another change that is made as well, of another action."""

    @property
    def name(self) -> str:
        """`Action: without conjunct`, unique."""
        also = f", nor {self.beside.action}'s {self.beside.conjunct}" if self.beside else ""
        return f"{self.action}: without {self.conjunct}{also}"


Change = tuple[str, str, Place, str]
"""Kind, conjunct, its place, and what stands there instead."""


def weaker(node: Node, positive: bool = True) -> Iterator[Change]:
    """Each way to make `node` (or its negation, if not `positive`) true more often, or to lose an effect of it."""
    for n, kid in enumerate(node.kids):
        instead = _instead(node.op, n, kid, positive)
        if instead is not None:
            yield "effect" if kid.acts else "guard", str(kid), (n,), instead
        below = positive != (node.op == "~" or (node.op == "=>" and n == 0))
        # An action's own parts are its user's; a guard's are told apart by its name.
        prefix = f"{node.text}: " if node.op == "name" and not node.acts else ""
        for kind, conjunct, place, gone in weaker(kid, below):
            yield kind, prefix + conjunct, (n, *place), gone


def rewritten(node: Node, changes: Mapping[Place, str]) -> Node:
    """`node` with each place in `changes` replaced. The definitions in which they lie are written out."""
    if () in changes:
        return Node("atom", changes[()])
    if not changes:
        return node
    kids = tuple(
        rewritten(kid, {place[1:]: text for place, text in changes.items() if place[0] == n})
        for n, kid in enumerate(node.kids)
    )
    return kids[0] if node.op == "name" else Node(node.op, node.text, kids)


def _instead(op: str, n: int, kid: Node, positive: bool) -> str | None:
    """What stands in the place of a conjunct that is dropped; None when `kid` is none."""
    if kid.acts:
        assigned = re.match(r"(\w+)' =", kid.text) if kid.op == "atom" and op == "/\\" else None
        return f"UNCHANGED {assigned[1]}" if assigned else None
    # ~(a \/ b) and ~(a => b) are conjunctions as well.
    if (op == "/\\" and positive) or (op == "=>" and not positive and n == 0):
        return "TRUE"
    if (op == "\\/" or (op == "=>" and n == 1)) and not positive:
        return "FALSE"
    return None


def fairness(module: Module) -> dict[str, str]:
    """Each term of Fairness, and the action that it is about."""
    terms = module.words("Fairness").split(" /\\ ")
    found = {term: match[1] for term in terms if (match := re.fullmatch(r"WF_vars\((\w+)\)", term))}
    if len(found) != len(terms):
        raise RewriteError(f"Fairness: a term other than WF_vars(Action) in {terms}")
    return found


def mutants(module: Module) -> list[Mutant]:
    """All mutants, in the specification's order."""
    found = [
        Mutant(action, *change)
        for root in ROOTS
        for action in module.leaves(root)
        for change in weaker(module.tree(action))
    ]
    masks = [mutant for mutant in found if (mutant.action, mutant.conjunct) == MASK]
    hidden = [
        mutant
        for mutant in found
        if mutant.action in {*module.leaves(MASKED)} - {MASK[0]} and not re.match(r"(state|Alive)\b", mutant.conjunct)
    ]
    found += [replace(mutant, beside=mask) for mask in masks for mutant in hidden]
    found += [Mutant("Fairness", "fairness", term) for term in fairness(module)]
    names = [mutant.name for mutant in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RewriteError(f"conjuncts that cannot be told apart: {', '.join(twice)}")
    return found


# ---- the schema ----


@dataclass(frozen=True, slots=True)
class Properties:
    """What the configurations ask for, taken apart so that one state or one step can be asked."""

    invariants: tuple[str, ...]
    steps: Mapping[str, str]
    """Name and the action formula that each step must satisfy."""
    promises: Mapping[str, tuple[str, str, bool]]
    """Name, premise, conclusion; and is the premise asked in every state, or in the first only."""

    @property
    def names(self) -> set[str]:
        return {*self.invariants, *self.steps, *self.promises}


def properties(module: Module, folder: Path) -> Properties:
    """The properties of `CONFIGURATIONS`. RewriteError for one of an unknown form."""
    invariants, steps, promises = [], {}, {}
    for name in dict.fromkeys(name for c in CONFIGURATIONS for name in check.checks(folder / f"{c}.cfg")):
        body = module.body(name)
        if match := re.fullmatch(r"\s*\[\]\[(.*)\]_vars\s*", body, re.DOTALL):
            steps[name] = _line(body, *match.span(1))
        elif match := re.fullmatch(r"\s*(\w+)!Spec\s*", body):
            inner = match[1]
            steps[name] = f"{inner}!Next \\/ ({inner}!vars)' = {inner}!vars"
        elif match := re.fullmatch(r"\s*(\(.*\))\s*~>\s*(\(.*\))\s*", body, re.DOTALL):
            promises[name] = (_line(body, *match.span(1)), _line(body, *match.span(2)), True)
        elif match := re.fullmatch(r"\s*(?:(\(.*\))\s*=>\s*)?<>(\(.*\))\s*", body, re.DOTALL):
            promises[name] = (_line(body, *match.span(1)) if match[1] else "TRUE", _line(body, *match.span(2)), False)
        elif "[]" in body or "<>" in body or "~>" in body:
            raise RewriteError(f"{name} is a temporal property of an unknown form")
        else:
            invariants.append(name)
    return Properties(tuple(invariants), steps, promises)


def _line(body: str, begin: int, end: int) -> str:
    """A part of a definition on one line."""
    return str(_parse(body, [token for token in _tokens(body) if begin <= token.start < end]))


def schema(module: Module, given: Mapping[int, Mutant], asked: Properties) -> str:
    """MutantSchema.tla for the mutants `given` under their numbers, which are not 0."""
    actions = [action for root in ROOTS for action in module.leaves(root)]
    terms = fairness(module)
    changed = {n: mutant for n, mutant in given.items() if mutant.kind != "fairness"}
    unfair = {n: mutant.conjunct for n, mutant in given.items() if mutant.kind == "fairness"}
    return "\n".join(
        [
            "---- MODULE MutantSchema ----",
            "EXTENDS MCGVisorRuntime, TLC",
            "VARIABLES mutant, owed, quiet",
            "Both == MCLaunches \\union Undisturbed",
            *(f"M{n} == {_body(module, [mutant])}" for n, mutant in changed.items()),
            *(f"M{n}b == {_body(module, [m.beside])}" for n, m in changed.items() if m.beside),
            *(_choice(action, changed) for action in actions),
            *(_group(module, name) for name in sorted({*ROOTS, *terms.values()} - set(actions))),
            *_says("State", {name: name for name in asked.invariants}),
            *_says("Step", asked.steps),
            *_owing(asked),
            # What is fair once a term is gone, and what is fair always.
            *(_stuck(f"Stuck{n}", [terms[term] for term in terms if term != gone]) for n, gone in unfair.items()),
            _stuck("Stuck", terms.values()),
            "SchemaInit == Init /\\ mutant = 0 /\\ quiet = (budget = 0) /\\ owed = FirstOwed",
            "Strange == mutant = 0 /\\ (",
            "  \\/ FALSE",
            *(f"  \\/ M{n} /\\ ~{m.action} /\\ mutant' = {n}" for n, m in changed.items()),
            "  )",
            "Usual == (" + " \\/ ".join(f"X{root}" for root in ROOTS) + " \\/ Environment) /\\ UNCHANGED mutant",
            "SchemaNext == (Usual \\/ Strange) /\\ UNCHANGED quiet /\\ owed' = NextOwed",
            'Killed(m, names) == names = {} \\/ PrintT(<<"killed", m, names>>)',
            "StatesJudged ==",
            "  /\\ StateIsSound \\/ Killed(mutant, BrokenInState)",
            "  /\\ owed = {} \\/ ~Stuck \\/ Killed(mutant, owed)",
            *(f"  /\\ mutant # 0 \\/ owed = {{}} \\/ ~Stuck{n} \\/ Killed({n}, owed)" for n in unfair),
            "StepsJudged ==",
            "  /\\ StepIsSound \\/ Killed(mutant', BrokenInStep)",
            '  /\\ mutant = mutant\' \\/ PrintT(<<IF vars\' = vars THEN "stutters" ELSE "differs", mutant\', quiet>>)',
            "====",
            "",
        ]
    )


SCHEMA_CONFIG = """\
INIT SchemaInit
NEXT SchemaNext
CONSTANT Launches <- Both
INVARIANT StatesJudged
ACTION_CONSTRAINT StepsJudged
"""


def _body(module: Module, its: Iterable[Mutant]) -> str:
    """An action with the changes of `its`, all mutants of that action."""
    changes = {(m.action, m.place): m.instead for m in its}
    (action,) = {action for action, _ in changes}
    return str(rewritten(module.tree(action), {place: text for (_, place), text in changes.items()}))


def _choice(action: str, given: Mapping[int, Mutant]) -> str:
    arms = {n: f"M{n}" for n, m in given.items() if m.action == action}
    arms |= {n: f"M{n}b" for n, m in given.items() if m.beside and m.beside.action == action}
    if not arms:
        return f"X{action} == {action}"
    # One look into a set rather than at each arm: of most mutants this is no action that they change.
    cases = " [] ".join(f"mutant = {n} -> {body}" for n, body in arms.items())
    return f"X{action} == IF mutant \\in {{{', '.join(map(str, arms))}}} THEN CASE {cases} ELSE {action}"


def _group(module: Module, name: str) -> str:
    return f"X{name} == " + " \\/ ".join(f"X{action}" for action in module.leaves(name))


def _says(what: str, formulas: Mapping[str, str]) -> Iterator[str]:
    """Do all `formulas` hold, which is cheap to ask of the many states and steps of which they do; and which do not."""
    yield from (f"{what}{name} == {formula}" for name, formula in formulas.items())
    yield f"{what}IsSound == TRUE" + "".join(f" /\\ {what}{name}" for name in formulas)
    broken = (f' \\union (IF {what}{name} THEN {{}} ELSE {{"{name}"}})' for name in formulas)
    yield f"BrokenIn{what} == {{}}" + "".join(broken)


def _owing(asked: Properties) -> Iterator[str]:
    """What is promised in the first state, and after a step: new promises, without those that came about."""
    yield "FirstOwed == {}"
    for name, (premise, conclusion, _) in asked.promises.items():
        yield f'  \\union (IF ({premise}) /\\ ~({conclusion}) THEN {{"{name}"}} ELSE {{}})'
    yield "NextOwed == {}"
    for name, (premise, conclusion, always) in asked.promises.items():
        anew = f" \\/ ({premise})'" if always else ""
        yield f'  \\union (IF ("{name}" \\in owed{anew}) /\\ ~({conclusion})\' THEN {{"{name}"}} ELSE {{}})'


def _stuck(name: str, fair: Iterable[str]) -> str:
    return f"{name} == TRUE" + "".join(f" /\\ ~ENABLED <<X{action}>>_vars" for action in fair)


# ---- a mutant, or several at once, as a specification of its own ----


def write_out(module: Module, chosen: Iterable[Mutant]) -> str:
    """The text of the specification with all changes of `chosen`."""
    by_action: dict[str, list[Mutant]] = {}
    for mutant in chosen:
        for one in (mutant, *([mutant.beside] if mutant.beside else [])):
            by_action.setdefault(one.action, []).append(one)
    new = {action: _body(module, its) for action, its in by_action.items() if action != "Fairness"}
    if gone := {mutant.conjunct for mutant in by_action.get("Fairness", ())}:
        new["Fairness"] = " /\\ ".join(term for term in fairness(module) if term not in gone) or "TRUE"
    text = module.text
    for name in sorted(new, key=lambda name: module.definitions[name].span, reverse=True):
        begin, end = module.definitions[name].span
        text = f"{text[:begin]}{name} == {new[name]}\n\n{text[end:]}"
    return text


def run_alone(
    chosen: Iterable[Mutant], configuration: str = CONFIGURATIONS[0], folder: Path = HERE, *, dump: Path | None = None
) -> tlc.Verdict:
    """TLC's verdict on the specification with all changes of `chosen`, under one of `CONFIGURATIONS`."""
    module = Module((folder / f"{NAME}.tla").read_text())
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        for source in folder.glob("*.tla"):
            shutil.copyfile(source, Path(scratch, source.name))
        Path(scratch, f"{NAME}.tla").write_text(write_out(module, chosen))
        config = folder / f"{configuration}.cfg"
        return tlc.run(Path(scratch, "MCGVisorRuntime.tla"), config, library=Path(scratch), dump=dump)


def graph_of(chosen: Iterable[Mutant], folder: Path = HERE) -> graph.Graph:
    """The state graph of the specification with all changes of `chosen`."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        dot = Path(scratch, "graph.dot")
        run_alone(chosen, folder=folder, dump=dot)
        return graph.parse(dot.read_text())


# ---- the judgement ----

EQUALITY = "graph equality"
"""Stands for a killer when no property is one."""
STUTTERS = f"{EQUALITY}: only stutters"
"""The same, where no property could be one."""
EQUIVALENT = "equivalent"


@dataclass(frozen=True, slots=True)
class Judged:
    """A mutant and what became of it."""

    mutant: Mutant
    killers: tuple[str, ...]
    """Names of violated properties, sorted."""
    differs: bool
    """Has it another graph than the committed one."""
    digest: str = ""
    """Of its graph, if that is the committed one."""
    stutters: bool = False
    """Does none of the steps in which the graphs differ change anything."""

    @property
    def verdict(self) -> list[str]:
        """What mutants.json says of it; empty for one that survives."""
        if self.killers:
            return list(self.killers)
        if self.differs:
            return [STUTTERS if self.stutters else EQUALITY]
        return [f"{EQUIVALENT} {self.digest}"] if self.digest else []


_REPORT = re.compile(r'<<\s*"(killed|differs|stutters)",\s*(\d+),\s*(?:\{([^}]*)\}|(TRUE|FALSE))\s*>>')


def judge(folder: Path = HERE) -> list[Judged]:
    """Make all mutants of the specification in `folder`, and have TLC judge them on two cores."""
    module = Module((folder / f"{NAME}.tla").read_text())
    asked, found = properties(module, folder), dict(enumerate(mutants(module), 1))
    parts = [{n: m for n, m in found.items() if n % WORKERS == rest} for rest in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        kills, moving, differing = _reports(pool.map(lambda part: _walk(schema(module, part, asked), folder), parts))
        silent = [m for n, m in found.items() if n not in kills and n not in differing and m.kind != "fairness"]
        _, hashes = graph.loads((folder / "graph.json").read_text())
        layers = _layers(silent)
        proved = {m for part in pool.map(lambda layer: _prove(layer, hashes["graph"], folder), layers) for m in part}
    return [
        Judged(
            m,
            tuple(sorted(kills.get(n, ()))),
            n in differing,
            hashes["graph"] if m in proved else "",
            n in differing - moving,
        )
        for n, m in found.items()
    ]


def _walk(text: str, folder: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        module, config = Path(scratch, "MutantSchema.tla"), Path(scratch, "MutantSchema.cfg")
        module.write_text(text)
        config.write_text(SCHEMA_CONFIG)
        verdict = tlc.run(module, config, library=folder)
    if verdict.exit != tlc.OK:
        raise tlc.TlcFailed(f"the mutants were not walked through: TLC exited with {verdict.exit}\n{verdict.text}")
    return verdict.text


def _reports(texts: Iterable[str]) -> tuple[dict[int, set[str]], set[int], set[int]]:
    """Who is killed by what, who has a step of its own that changes something, and who has one at all."""
    kills: dict[int, set[str]] = {}
    moving, differing = set(), set()
    for text in texts:
        for what, number, names, quiet in _REPORT.findall(text):
            if what == "killed":
                kills.setdefault(int(number), set()).update(re.findall(r"\w+", names))
                continue
            if what == "differs":
                moving.add(int(number))
            if quiet == "FALSE":  # the committed graph has no undisturbed launches
                differing.add(int(number))
    if 0 in kills:
        raise RewriteError(f"the specification itself, without a change, violates {', '.join(sorted(kills[0]))}")
    return kills, moving, differing


def _layers(silent: Iterable[Mutant]) -> list[list[Mutant]]:
    """Groups to be proved together: all but guards of one action, because either might do what the other does."""
    layers: list[list[Mutant]] = []
    guards: dict[str, list[Place]] = {}
    for mutant in silent:
        layer = max(_layer(one, guards.setdefault(one.action, [])) for one in (mutant, mutant.beside) if one)
        layers += [[] for _ in range(layer + 1 - len(layers))]
        layers[layer].append(mutant)
    return layers


def _layer(mutant: Mutant, its: list[Place]) -> int:
    # What is inside a guard that is dropped anyway goes with it.
    within = [n for n, place in enumerate(its) if mutant.place[: len(place)] == place]
    if within or mutant.kind != "guard":
        return within[0] if within else 0
    its.append(mutant.place)
    return len(its) - 1


def _prove(silent: Sequence[Mutant], committed: str, folder: Path) -> set[Mutant]:
    """Those of `silent` whose graph is the committed one: all at once if possible, otherwise by halves."""
    found = graph_of(silent, folder)
    if graph.digest(found) == committed:
        if twice := repeated(found):
            raise RewriteError(f"taken twice in one launch, which the schema does not allow for: {', '.join(twice)}")
        return set(silent)
    if len(silent) < 2:
        return set()
    half = len(silent) // 2
    return _prove(silent[:half], committed, folder) | _prove(silent[half:], committed, folder)


def repeated(found: graph.Graph) -> list[str]:
    """Actions that some launch can take twice."""
    later: dict[int, set[str]] = {node: set() for node in range(len(found.nodes))}
    size = -1
    while size != (size := sum(map(len, later.values()))):
        for source, action, target in found.edges:
            later[source] |= {action} | later[target]
    return sorted({action for _, action, target in found.edges if action in later[target]})


# ---- the command line ----


def load(folder: Path = HERE) -> dict[str, list[str]]:
    """What is expected of each mutant, by name."""
    return {name: list(verdict) for name, verdict in json.loads((folder / "mutants.json").read_text()).items()}


def differences(expected: Mapping[str, Sequence[str]], found: Iterable[Judged]) -> list[str]:
    """What is not as expected, a line for each mutant."""
    shown = {judged.mutant.name: judged.verdict for judged in found}
    lines = []
    for name, verdict in shown.items():
        wanted = list(expected.get(name, ()))
        if verdict == wanted and verdict:
            continue
        now = ", ".join(verdict)
        if not verdict:
            lines.append(f"{name} survives, and is not proved equivalent")
        elif not wanted:
            lines.append(f"{name} is not in mutants.json: {now}")
        elif _named(wanted) and not _named(verdict):
            lines.append(f"{name} survives every property: {now}, expected {', '.join(wanted)}")
        else:
            lines.append(f"{name}: {now}, expected {', '.join(wanted)}")
    return [*lines, *(f"{name} is in mutants.json, and was not made" for name in expected if name not in shown)]


def _named(verdict: Sequence[str]) -> bool:
    """Is it the verdict of a property."""
    return bool(verdict) and verdict[0].split()[0] not in {EQUIVALENT, EQUALITY.split()[0]}


def summary(found: Sequence[Judged]) -> dict[str, int]:
    """How many there are of each kind."""
    return {
        "mutants": len(found),
        "killed by a property": sum(bool(judged.killers) for judged in found),
        "killed by graph equality only": sum(judged.verdict == [EQUALITY] for judged in found),
        "that only stutter": sum(judged.verdict == [STUTTERS] for judged in found),
        "equivalent": sum(bool(judged.digest) and not judged.killers for judged in found),
        "surviving": sum(not judged.verdict for judged in found),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: the kill matrix, a line for each mutant, and a summary; 1 when a mutant is not as expected."""
    parser = argparse.ArgumentParser(
        prog="nucleus-gvisor spec mutants", description="Weaken the specification everywhere; each must be noticed."
    )
    parser.add_argument("--folder", type=Path, default=HERE, help="where the specification lies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the kill matrix to FILE as well")
    parser.add_argument("--write", action="store_true", help="take what is found for what is expected")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    found = judge(options.folder)
    for judged in found:
        killed = f"killed by {', '.join(judged.verdict)}" if judged.killers or judged.differs else ""
        print(f"{judged.mutant.name:70} {killed or (EQUIVALENT if judged.digest else 'SURVIVES')}")
    if options.json:
        options.json.write_text(json.dumps([_row(judged) for judged in found], indent=1) + "\n")
    if options.write:
        _write(options.folder, found)
    wrong = differences(load(options.folder), found)
    for line in wrong:
        print(f"FAILED {line}")
    counts = ", ".join(f"{count} {what}" for what, count in summary(found).items())
    print(f"{counts}; {time.perf_counter() - began:.1f} s: {'NOT as expected' if wrong else 'as expected'}")
    return 1 if wrong else 0


def _row(judged: Judged) -> dict[str, object]:
    mutant = judged.mutant
    return {
        "mutant": mutant.name,
        "action": mutant.action,
        "kind": mutant.kind,
        "conjunct": mutant.conjunct,
        "killed_by": list(judged.killers),
        "graph_differs": judged.differs,
        "equivalent_graph": judged.digest,
    }


def _write(folder: Path, found: Iterable[Judged]) -> None:
    lines = [f" {json.dumps(judged.mutant.name)}: {json.dumps(judged.verdict)}" for judged in found if judged.verdict]
    (folder / "mutants.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    raise SystemExit(main())
