"""One command for all that joins specification, model, runtime and records: does everything hold, and if not, why.

A task is one thing to run; it speaks for one tie or for several, because one run of TLC shows invariants, liveness and
the state graph at once. Two tasks run at a time, the long ones first. Everything is here but the mutation of the code
and real runsc.

    nucleus-gvisor spec check [--json FILE] [--write] [NAME ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nucleus_gvisor.spec import bisimulation, check, correspondence, graph, mutants, records, tlc

HOLDS, FAILS, NOT_RUN = 0, 1, 2
"""Exit codes: all was run and holds; something does not hold; something could not be run."""
WORKERS = 2
SHOWN = 6
"""Findings of one tie that are printed; --json has all of them."""

TIES: Mapping[str, str] = {
    check.SAFETY: "no state or step breaks a property, and the reference's faults break one each",
    check.LIVENESS: "every launch ends as promised, and without each term of fairness it need not",
    check.REFINEMENT: "a launch is one of the abstract gVisor, and a guest that falls back to the host is none",
    "graph": "graph.json is the state graph that TLC goes through",
    "bisimulation": "the Python machine takes each of its steps, and refuses everything else",
    "mutants": "each guard, effect and term of fairness in the specification is missed where it is taken out",
    "replay": "each of its steps is taken by the real runtime around a stand-in for runsc, as the host shows",
    "records": "TLC and the offline verifier accept what a launch writes, and reject the same for the same reason",
    "correspondence": "each action, guard, property, error and citation has its counterpart",
}


class CannotRun(RuntimeError):
    """A task has not what it needs; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a task found out about a tie."""

    figures: Mapping[str, int | frozenset[str]] = field(default_factory=dict)
    """Counts, which add up over tasks, and names, which are counted once."""
    findings: tuple[str, ...] = ()
    """What does not hold, each with its cause."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to run, and the ties that it speaks for."""

    name: str
    ties: tuple[str, ...]
    weight: float
    """About how many seconds; the heaviest begin first."""
    do: Callable[[], Mapping[str, Found]]


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that was run, or could not be."""

    task: Task
    found: Mapping[str, Found]
    seconds: float
    missing: str = ""
    """Why it could not be run, and what to do."""

    @property
    def findings(self) -> list[str]:
        return [line for found in self.found.values() for line in found.findings]


# ---- the tasks ----


def configuration(one: check.Configuration, shown: dict[str, check.Expected], write: bool) -> Mapping[str, Found]:
    """TLC's answer to one configuration, for each kind of property that it is asked about."""
    seen, verdict, dot = check.observed(one)
    shown[one.name] = seen
    wrong = [] if write else [*check.findings(one, seen, verdict)]
    refuted, refutable = (frozenset(map(str, _violated(part))) for part in (seen, one.expected))
    found = {}
    # Written anew it may be asked about what nobody expected.
    asked = {check.kind(name) for name in check.checks(one.path)} if write else set[str]()
    for tie in _kinds(one) | asked | {tie for tie, _ in wrong}:
        ours = frozenset(name for name in check.checks(one.path) if check.kind(name) == tie)
        figures: dict[str, int | frozenset[str]] = {
            "configurations": 1,
            "states": verdict.distinct,
            # A search that was broken off says nothing of what it has not refuted.
            "properties hold": ours - refuted if verdict.exit == tlc.OK else frozenset[str](),
            "refuted where they must be": ours & refuted & refutable,
        }
        found[tie] = Found(figures, tuple(line for kind, line in wrong if kind == tie))
    if one.name == check.DUMPED:
        found["graph"] = _graph(verdict, dot, write)
    return found


def _violated(seen: check.Expected) -> Sequence[object]:
    names = seen["violated"]
    assert isinstance(names, list)
    return names


def _graph(verdict: tlc.Verdict, dot: str, write: bool) -> Found:
    if verdict.exit != tlc.OK and (verdict.exit != tlc.LIVENESS or verdict.violated):
        # TLC breaks off where a state or a step violates something; what is about time it asks at the end.
        return Found({}, ("TLC did not go through the whole graph, because a property is violated",))
    text = graph.text_of(verdict, dot)
    now, _ = graph.loads(text)
    figures = {"states": len(now.nodes), "edges": len(now.edges), "actions": len(now.actions)}
    return Found(figures, () if write else tuple(graph.stale(text)))


def _bisimulation() -> Mapping[str, Found]:
    committed = graph.load()
    walk = bisimulation.judge(committed)
    figures = {"edges": walk.taken + walk.events, "of": len(committed.edges), "refusals": walk.refusals}
    return {"bisimulation": Found(figures, tuple(walk.differences))}


def _mutants() -> Mapping[str, Found]:
    judged = mutants.judge()
    counts = mutants.summary(judged)
    equivalent = counts["equivalent"]
    figures = {
        "killed": counts["mutants"] - equivalent - counts["surviving"],
        "of": counts["mutants"] - equivalent,
        "by graph equality only": counts["killed by graph equality only"],
        "equivalent": equivalent,
    }
    return {"mutants": Found(figures, tuple(mutants.differences(mutants.load(), judged)))}


def _records() -> Mapping[str, Found]:
    judged = records.judge(graph.load())
    return {"records": Found({"accepted": judged.accepted, "rejected": judged.rejected}, judged.findings)}


def _correspondence() -> Mapping[str, Found]:
    try:
        sources = correspondence.read()
    except FileNotFoundError as error:
        raise CannotRun(f"{error}: run it in a checkout") from None
    survey = correspondence.survey(sources)
    wrong = survey.problems()
    if not wrong and correspondence.DOCUMENT.read_text() != correspondence.document(survey):
        wrong.append("CORRESPONDENCE.md is not what follows from the code: `spec correspondence --write`")
    figures = {"actions": len(survey.actions), "guards": len(survey.spec_guards()), "citations": len(survey.citations)}
    return {"correspondence": Found(figures, tuple(wrong))}


REPLAY = "tests/conformance/replay.py"


def _replay(actions: Sequence[str]) -> Mapping[str, Found]:
    """The driver of the real runtime is no part of the package: it lies among the tests, and runs by itself."""
    root = check.HERE.parent
    if not (root / REPLAY).is_file():
        raise CannotRun(f"{root} is no checkout, it has no {REPLAY}: run it in one, or name the ties to check")
    if os.geteuid():
        raise CannotRun("what the environment does to a launch (mounts, owners, file flags) needs root: run it as root")
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        report = Path(scratch, "report")
        command = [sys.executable, "-m", "tests.conformance.replay", str(report), *actions]
        done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == NOT_RUN:
            raise CannotRun(f"{last}: `make setup-test` brings what is needed")
        if not report.is_file():
            return {"replay": Found({}, (f"the replay broke off: {last}",))}
        told = json.loads(report.read_text())
    return {"replay": Found(told["figures"], tuple(told["findings"]))}


# The ties that are not TLC's own answer to a configuration.
OTHERS: Mapping[str, tuple[float, Callable[[], Mapping[str, Found]]]] = {
    "mutants": (13, _mutants),
    "bisimulation": (4, _bisimulation),
    "records": (5, _records),
    "correspondence": (2, _correspondence),
}


def tasks(
    names: Sequence[str] = (), *, write: bool = False, shown: dict[str, check.Expected] | None = None
) -> list[Task]:
    """What `names` (ties, configurations, or `replay:ACTION`) mean, all without any; the heaviest first.

    ValueError for a name that is none.
    """
    found = [
        Task(
            one.name,
            (*sorted(_kinds(one)), *(["graph"] if one.name == check.DUMPED else [])),
            0.7 + float(str(one.expected.get("generated", 0))) / 30_000,
            partial(configuration, one, {} if shown is None else shown, write),
        )
        for one in check.load().values()
    ]
    found += [Task(tie, (tie,), weight, do) for tie, (weight, do) in OTHERS.items()]
    actions = [name.partition(":")[2] for name in names if name.startswith("replay:")]
    found.append(Task("replay", ("replay",), 20, partial(_replay, actions)))
    chosen = {name.partition(":")[0] if name.startswith("replay:") else name for name in names}
    known = {*TIES, *(task.name for task in found)}
    if unknown := sorted(chosen - known):
        raise ValueError(f"no tie and no configuration: {', '.join(unknown)} (there are {', '.join(sorted(known))})")
    found = [task for task in found if not chosen or chosen & {task.name, *task.ties}]
    return sorted(found, key=lambda task: -task.weight)


def _kinds(one: check.Configuration) -> set[str]:
    """What a configuration is about: of one that must fail, what it refutes."""
    wanted = one.expected.get("violated") or one.expected.get("checks")
    return {check.kind(str(name)) for name in wanted} if isinstance(wanted, list) else {check.SAFETY}


# ---- running them ----


def run(chosen: Sequence[Task]) -> Iterator[Ended]:
    """Run all, two at a time, and give each as it ends."""
    with tlc.many(), ThreadPoolExecutor(WORKERS) as pool:
        running: list[Future[Ended]] = [pool.submit(_end, task) for task in chosen]
        for done in as_completed(running):
            yield done.result()


def _end(task: Task) -> Ended:
    began = time.perf_counter()
    found: Mapping[str, Found] = {}
    missing = ""
    try:
        found = task.do()
    except (tlc.ToolMissing, CannotRun) as error:
        missing = str(error)
    except Exception as error:  # whatever it is, nothing was shown, and the other ties still are to be
        found = {tie: Found({}, (f"{task.name}: {type(error).__name__}: {error}",)) for tie in task.ties[:1]}
    return Ended(task, found, time.perf_counter() - began, missing)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one tie."""

    tie: str
    verdict: int
    figures: Mapping[str, int]
    findings: tuple[str, ...]
    missing: tuple[str, ...]
    seconds: float

    @property
    def said(self) -> str:
        return ("holds", "FAILS", "NOT RUN")[self.verdict]

    @property
    def told(self) -> str:
        """The figures in words."""
        return _in_words(self.figures)


def _in_words(figures: Mapping[str, int]) -> str:
    parts = [f"of {number:,}" if name == "of" else f"{number:,} {name}" for name, number in figures.items() if number]
    return ", ".join(parts).replace(", of ", " of ")


def rows(ended: Sequence[Ended], *, whole: bool) -> list[Row]:
    """A row for each tie that a task spoke for; `whole` when all tasks of all ties were run."""
    found = []
    for tie in TIES:
        ours = [one for one in ended if tie in one.task.ties or tie in one.found]
        if not ours:
            continue
        parts = [one.found[tie] for one in ours if tie in one.found]
        figures: dict[str, int | frozenset[str]] = {}
        for part in parts:
            for name, value in part.figures.items():
                before = figures.get(name)
                if isinstance(value, frozenset):
                    figures[name] = value | (before if isinstance(before, frozenset) else frozenset())
                else:
                    figures[name] = value + (before if isinstance(before, int) else 0)
        findings = [line for part in parts for line in part.findings]
        if whole and tie in (check.LIVENESS, check.REFINEMENT):
            findings += _vacuous(figures)
        missing = tuple(dict.fromkeys(one.missing for one in ours if one.missing))
        found.append(
            Row(
                tie,
                FAILS if findings else NOT_RUN if missing else HOLDS,
                {name: len(v) if isinstance(v, frozenset) else v for name, v in figures.items()},
                tuple(findings),
                missing,
                sum(one.seconds for one in ours),
            )
        )
    return found


def _vacuous(figures: Mapping[str, int | frozenset[str]]) -> list[str]:
    """What holds and is refuted nowhere may hold of everything."""
    hold, refuted = (figures.get(n, frozenset()) for n in ("properties hold", "refuted where they must be"))
    assert isinstance(hold, frozenset) and isinstance(refuted, frozenset)
    return [f"{name} is refuted by no configuration: it may hold of everything" for name in sorted(hold - refuted)]


def verdict(found: Sequence[Row]) -> int:
    """The exit code that the rows mean; what fails outweighs what could not be run."""
    codes = {row.verdict for row in found}
    return FAILS if FAILS in codes else NOT_RUN if NOT_RUN in codes or not codes else HOLDS


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: a line as each task ends, a table of the ties, and what does not hold, each with its cause."""
    parser = argparse.ArgumentParser(
        prog="nucleus-gvisor spec check",
        description="Check all that joins specification, model, runtime and records.",
        epilog="Exit code 0: all was run and holds; 1: something does not hold; 2: something could not be run.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"ties ({', '.join(TIES)}), configurations, or replay:ACTION for the steps of one action; default: all",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to FILE as well")
    parser.add_argument(
        "--write", action="store_true", help="take what TLC shows for what is expected; configurations only"
    )
    options = parser.parse_args(arguments)
    shown: dict[str, check.Expected] = {}
    try:
        chosen = tasks(options.names, write=options.write, shown=shown)
    except ValueError as error:
        parser.error(str(error))
    if options.write:
        known = check.load()
        if options.names and any(task.name not in known for task in chosen):
            parser.error("--write is for configurations")
        chosen = [task for task in chosen if task.name in known]
    began = time.perf_counter()
    ended = []
    for one in run(chosen):
        ended.append(one)
        _progress(one, len(ended), len(chosen))
    found = rows(ended, whole=not options.names and not options.write)
    code, seconds = verdict(found), time.perf_counter() - began
    _show(found, code, seconds)
    if options.json:
        options.json.write_text(json.dumps(as_dict(found, ended, code, seconds), indent=1) + "\n")
    if options.write and code == HOLDS:
        check.write(check.load(), shown)
    return code


def _progress(one: Ended, number: int, of: int) -> None:
    said = "FAILED" if one.findings else "NOT RUN" if one.missing else "ok"
    told: dict[str, int] = {}
    for row in rows([one], whole=False):
        for name, count in row.figures.items():
            # The states are the same for each tie that they speak for, the properties are not.
            told[name] = max(told.get(name, 0), count) if name in ("states", "edges") else told.get(name, 0) + count
    figures = _in_words({name: count for name, count in told.items() if name != "configurations"})
    print(f"{number:2}/{of} {said:8} {one.task.name:32} {one.seconds:5.1f} s  {figures}", flush=True)


def _show(found: Sequence[Row], code: int, seconds: float) -> None:
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("tie", "verdict", "figures", "what it shows"):
        table.add_column(heading, no_wrap=heading in ("tie", "verdict"))
    for row in found:
        style = ("green", "red", "yellow")[row.verdict]
        table.add_row(row.tie, f"[{style}]{row.said}[/]", row.told, TIES[row.tie])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for row in found:
        for line in row.findings[:SHOWN]:
            print(f"FAILED {row.tie}: {line}")
        if len(row.findings) > SHOWN:
            print(f"       {row.tie}: and {len(row.findings) - SHOWN} more; --json has all")
        for line in row.missing:
            print(f"NOT RUN {row.tie}: {line}")
    said = ("all holds", "something does not hold", "not all could be run")[code]
    print(f"{len(found)} of {len(TIES)} ties, {seconds:.1f} s: {said}")


def as_dict(found: Sequence[Row], ended: Sequence[Ended], code: int, seconds: float) -> dict[str, object]:
    """Plain JSON data."""
    return {
        "exit": code,
        "seconds": round(seconds, 1),
        "ties": {
            row.tie: {
                "verdict": row.said,
                "shows": TIES[row.tie],
                "figures": dict(row.figures),
                "findings": list(row.findings),
                "missing": list(row.missing),
            }
            for row in found
        },
        "tasks": {
            one.task.name: {
                "seconds": round(one.seconds, 1),
                "ties": list(one.task.ties),
                "findings": one.findings,
                "missing": one.missing,
            }
            for one in ended
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
