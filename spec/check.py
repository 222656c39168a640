"""Check every configuration of the specification against what `manifest.json` expects of it.

Pinned are the verdict, what is checked, and the size of what was searched: a deleted INVARIANT line, a shrunken
bound and a configuration that no longer fails are as much a failure as a violated property.

    python -m nucleus_gvisor.spec.check [--write] [NAME ...]
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nucleus_gvisor.spec import tlc

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "manifest.json"

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


def observed(configuration: Configuration) -> tuple[Expected, tlc.Verdict]:
    """Run TLC, and give what it showed in the manifest's form."""
    verdict = tlc.run(
        HERE / f"{configuration.module}.tla",
        configuration.path,
        options=configuration.options,
        coverage=configuration.expected.get("exit") == tlc.OK,  # of a search that is broken off it says nothing
    )
    asked = checks(configuration.path)
    violated = list(verdict.violated)
    if verdict.exit == tlc.LIVENESS and not violated and len(asked) == 1:
        violated = asked  # TLC does not name a temporal property; alone it can be no other
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
    return shown, verdict


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


def run_all(configurations: Iterable[Configuration], workers: int = 2) -> list[tuple[Expected, tlc.Verdict]]:
    """`observed` of each, in their order, `workers` at a time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(observed, configurations))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: one line for each configuration; 1 when one is not as expected."""
    parser = argparse.ArgumentParser(prog="nucleus-gvisor spec check", description="Model-check the specification.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="configurations; all when none is named")
    parser.add_argument("--write", action="store_true", help="take what TLC shows for what is expected")
    options = parser.parse_args(arguments)
    known = load()
    chosen = [known[name] for name in options.names or known]
    bad, shown = 0, {}
    for configuration, (seen, verdict) in zip(chosen, run_all(chosen), strict=True):
        wrong = [] if options.write else differences(configuration.expected, seen)
        bad += bool(wrong)
        shown[configuration.name] = seen
        violated = seen["violated"]
        answer = f"refuted: {', '.join(map(str, violated))}" if isinstance(violated, list) and violated else "holds"
        size = f"{verdict.distinct:6} states {verdict.seconds:5.1f} s"
        print(f"{'FAILED' if wrong else 'ok':6} {configuration.name:30} {size}  {answer}")
        for line in wrong:
            print(f"       {line}")
    if options.write:
        _write(known, shown)
    return 1 if bad else 0


def _write(known: Mapping[str, Configuration], shown: Mapping[str, Expected]) -> None:
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
    raise SystemExit(main())
