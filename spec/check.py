"""Check a configuration of the specification against what `manifest.json` expects of it.

Pinned are the verdict, what is checked, and the size of what was searched: a deleted INVARIANT line, a shrunken
bound and a configuration that no longer fails are as much a failure as a violated property. `ties` runs all of them,
with everything else that joins specification and code.

    nucleus-gvisor spec check [--write] [NAME ...]
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.model import conformance
from nucleus_gvisor.model.facts import Facts
from nucleus_gvisor.spec import graph, tlc

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "manifest.json"
DUMPED = "MCGVisorRuntime"
"""The configuration whose graph is committed; the one run of it gives both."""
COVERED = (DUMPED, "ConcurrentCollects", "life-safety")
"""One configuration of each module in which every action must be taken: a small one, for counting takes long."""
SAFETY: str = "safety"
LIVENESS: str = "liveness"
REFINEMENT: str = "refinement"

Expected = Mapping[str, object]
"""What is pinned of one run; the names are those in `observed`."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A .cfg file, the module that it is for, and what TLC must answer."""

    name: str
    module: str
    says: str
    """What the run shows, for readers."""
    options: tuple[str, ...]
    expected: Expected

    @property
    def path(self) -> Path:
        return HERE / f"{self.name}.cfg"


def load(path: Path = MANIFEST) -> Mapping[str, Configuration]:
    """All configurations, by name."""
    return {
        name: Configuration(name, entry["module"], entry["says"], tuple(entry["options"]), entry["expected"])
        for name, entry in json.loads(path.read_text()).items()
    }


def checks(config: Path) -> list[str]:
    """Names of the invariants and properties that a .cfg file asks for, in its order."""
    found: list[str] = []
    asking = False
    for word in re.sub(r"\\\*.*", "", config.read_text()).split():
        if word.isupper():
            asking = word in {"INVARIANT", "INVARIANTS", "PROPERTY", "PROPERTIES"}
        elif asking:
            found.append(word)
    return found


def observed(configuration: Configuration) -> tuple[Expected, tlc.Verdict, str]:
    """Run TLC, and give what it showed in the manifest's form, its verdict, and the graph in dot of `DUMPED`."""
    dot = ""
    if configuration.name == DUMPED:
        verdict, dot = graph.dumped()
    else:
        verdict = tlc.run(
            HERE / f"{configuration.module}.tla",
            configuration.path,
            options=configuration.options,
            coverage=configuration.name in COVERED,
        )
    asked = checks(configuration.path)
    violated = list(verdict.violated)
    if verdict.exit == tlc.LIVENESS and not violated:
        violated = _temporal(configuration, asked)
    shown: dict[str, object] = {
        "exit": verdict.exit,
        "violated": violated,
        "checks": asked,
        "initial": verdict.initial,
        "generated": verdict.generated,
        "distinct": verdict.distinct,
        "depth": verdict.depth,
    }
    if verdict.exit != tlc.OK:
        shown["counterexample"] = [action for action, _ in verdict.trace[1:]]
    return shown, verdict, dot


def _temporal(configuration: Configuration, asked: Sequence[str]) -> list[str]:
    """Which temporal properties are violated. TLC does not say; each is asked alone, unless it is the only one."""
    names = [name for name in asked if kind(name) != SAFETY]
    if len(names) < 2:
        return names
    text = re.sub(r"(?ms)^(INVARIANTS?|PROPERT(Y|IES))\b.*?(?=^[A-Z]+\b|\Z)", "", configuration.path.read_text())
    found = []
    with tempfile.TemporaryDirectory(prefix="alone-") as scratch:
        for name in names:
            config = Path(scratch, f"{name}.cfg")
            config.write_text(f"{text}\nPROPERTY {name}\n")
            if tlc.run(HERE / f"{configuration.module}.tla", config).exit != tlc.OK:
                found.append(name)
    return found


def kind(name: str) -> str:
    """What sort of property the specification defines under `name`."""
    for module in sorted(HERE.glob("*.tla")):
        if found := re.search(rf"(?ms)^{name} *==(.*?)(?=^\S|\Z)", module.read_text()):
            body = re.sub(r"\(\*.*?\*\)|\\\*[^\n]*", "", found[1], flags=re.DOTALL)
            return REFINEMENT if "!Spec" in body else LIVENESS if re.search(r"<>|~>", body) else SAFETY
    return SAFETY


def differences(expected: Expected, shown: Expected) -> list[str]:
    """What is not as expected, a line for each field."""
    return [
        f"{field}: {shown.get(field)!r}, expected {expected.get(field)!r}"
        for field in sorted({*expected, *shown})
        if expected.get(field) != shown.get(field)
    ]


def dead(verdict: tlc.Verdict) -> list[str]:
    """Actions that are never taken."""
    return sorted(name for name, steps in verdict.coverage.items() if not steps)


# ---- why ----


def findings(configuration: Configuration, shown: Expected, verdict: tlc.Verdict) -> Iterator[tuple[str, str]]:
    """What is not as expected: the kind of property that it is about, and the cause as far as it can be named."""
    expected = configuration.expected
    config = configuration.path.name
    asked, wanted = ([*_names(part["checks"])] for part in (shown, expected))
    for name in wanted:
        if name not in asked:
            yield kind(name), f"{config} no longer asks for {name}: its line below INVARIANTS or PROPERTIES is gone"
    for name in asked:
        if name not in wanted:
            yield kind(name), f"{config} asks for {name}, which manifest.json does not know: `spec check --write`"
    refuted, refutable = set(_names(shown["violated"])), set(_names(expected["violated"]))
    for name in sorted(refuted - refutable):
        yield kind(name), f"{name} is violated in {config}: {_way(verdict)}"
    for name in sorted(refutable - refuted):
        yield kind(name), f"{name} must be refuted in {config}, and TLC finds nothing against it"
    first = kind(asked[0]) if asked else SAFETY
    for name in dead(verdict) if verdict.exit == tlc.OK else ():  # a search that was broken off shows nothing of it
        yield first, f"action {name} is never taken in {config}: can its guards hold?"
    if asked != wanted or refuted != refutable:
        return  # what TLC searched differs for that reason
    for line in differences(expected, shown):
        yield first, f"{config}: {line}: the specification or its bounds changed: look, and `spec check --write`"


def _names(value: object) -> Sequence[str]:
    assert isinstance(value, list)
    return value


def _way(verdict: tlc.Verdict) -> str:
    """The counterexample's actions, and where the launch does what the model would not, or stays for ever."""
    steps = [step for step in verdict.trace if step[1]]
    told = f"after {', '.join(action for action, _ in steps[1:]) or 'nothing'}"
    if not steps or set(steps[-1][1]) != {*Facts().as_dict(), "budget"}:
        return told  # another module's
    nodes = [{name: graph.value(text) for name, text in state.items()} for _, state in steps]
    for (action, _), before in zip(steps[1:], nodes, strict=False):
        if why := graph.refused(action, before):
            return f"{told}: {why}"
    if verdict.exit != tlc.LIVENESS or verdict.violated:
        return told
    try:
        may = sorted(conformance.offered(graph.facts_of(nodes[-1])))
    except ValueError as error:
        return f"{told}, where the model does not know {error}"
    goes_on = f", where the model goes on with {' or '.join(may)}: in Next, not guarded, in Fairness?" if may else ""
    return f"{told} the launch may stay for ever{goes_on}"


def write(known: Mapping[str, Configuration], shown: Mapping[str, Expected]) -> None:
    """Take what was shown for what is expected."""
    entries = {
        c.name: {
            "module": c.module,
            "says": c.says,
            "options": list(c.options),
            "expected": shown.get(c.name, c.expected),
        }
        for c in known.values()
    }
    MANIFEST.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    from nucleus_gvisor.spec import ties

    raise SystemExit(ties.main())
