"""Replay the state graph on the real runtime around the stand-in: every edge, and the refusals beside it.

`spec check` runs this as a program of its own, because the driver is no part of the package. What it finds is written
to FILE as JSON: figures, and a line for each edge that is not as the specification has it.

    python -m tests.conformance.replay FILE [ACTION ...]
"""

import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.model.table import ROWS
from tests.conformance.edges import NOT_FOUND_OUT, askable, graph, known
from tests.conformance.real import RealDriver
from tests.conformance.world import site

FEW = 3
"""Walks over one action, when only some actions are asked for."""


def some(edge: c.Edge) -> bool:
    """Of the refusals that a machine makes by its state alone, every eighth; the bisimulation has them all."""
    here = edge.source.facts.state in ROWS[edge.action].sources
    return askable(edge) and (here or zlib.crc32(edge.action.encode(), _number(edge.source)) % 8 == 0)


@cache
def _number(node: c.Node) -> int:
    """The same for the same node, whichever process asks."""
    return zlib.crc32(json.dumps(node.facts.as_dict()).encode(), node.budget)


Judged = tuple[c.Report, list[str]]
"""The verdicts on edges, and what was wrong with records."""


def judged(walks: Sequence[c.Walk], *, told: bool = False) -> Judged:
    """The walks on the real runtime, in a place of their own; `told` as RealDriver has it."""
    with site() as place:
        driver = RealDriver(place, told=told)
        driver.robbed = True  # perhaps it is, and then its records are told beside its edges
        try:
            report = c.judge(driver, walks, refuse=None if told else some)
        finally:
            driver.close()
        return report, [f"a record is no behaviour: {words}" for words in driver.rejected]


def judged_by_two(walks: Sequence[c.Walk]) -> Judged:
    """The same in two processes: a driver and its launcher wait for each other all the time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer: object = judged(walks[1::2])
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            with open(writer, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        report, rejected = judged(walks[::2])
    finally:
        with open(reader, "rb") as file:
            theirs_or_why: Judged | str = pickle.load(file)
        os.waitpid(pid, 0)
    if isinstance(theirs_or_why, str):
        raise RuntimeError(theirs_or_why)
    other, also = theirs_or_why
    for mine, theirs in ((report.findings, other.findings), (report.refusals, other.refusals)):
        for edge, finding in theirs.items():
            if edge not in mine or mine[edge].verdict is c.Verdict.PASSED:
                mine[edge] = finding
    report.walks, report.steps = report.walks + other.walks, report.steps + other.steps
    return report, [*rejected, *also]


def everything() -> tuple[dict[str, int], list[str]]:
    """Figures and findings of the whole replay: the edges that the launcher finds out, and those that it is told."""
    edges = set(graph().edges)
    found, wrong = judged_by_two(c.cover(graph()))
    table = [edge for edge in graph().edges if known(edge) is not None]
    told, also = judged(c.cover(graph(), table), told=True)
    passed = {edge for edge, finding in found.findings.items() if finding.verdict is c.Verdict.PASSED}
    wrong += [*also, *_lines(f for f in found.of(*_NOT_PASSED) if known(f.edge) is None)]
    wrong += _lines(f for f in told.of(*_NOT_PASSED) if f.edge in table)
    wrong += [f"no walk takes {edge}" for edge in edges - found.findings.keys()]
    wrong += [f"{edge} is told to no launcher" for edge in table if edge not in told.findings]
    wrong += [
        f"the launcher finds out {entry.action} where {entry.where}: the entry in edges.py is no longer true"
        for entry in NOT_FOUND_OUT
        if any(entry.matches(edge) for edge in passed)
    ]
    wrong += [
        f"edges.py has an entry for {entry.action} where {entry.where}, which no edge is"
        for entry in NOT_FOUND_OUT
        if not any(entry.matches(edge) for edge in table)
    ]
    figures = {
        "edges found out": len(passed),
        "told": sum(told.findings[edge].verdict is c.Verdict.PASSED for edge in table if edge in told.findings),
        "of": len(edges),
        "refusals": found.counts(found.refusals)[c.Verdict.PASSED],
    }
    return figures, wrong


def only(actions: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The same for a few walks over the edges of `actions`, of launches with one disturbance."""
    if unknown := set(actions) - {*ROWS, *c.ENVIRONMENT}:
        raise SystemExit(f"no such action: {', '.join(sorted(unknown))}")
    whole = c.explore(node for node in c.usual_launches() if node.budget == 1)
    wanted = [edge for edge in whole.edges if edge.action in actions and known(edge) is None]
    found, wrong = judged(c.cover(whole, wanted)[: FEW * len(actions)])
    passed = found.counts()[c.Verdict.PASSED]
    return {"edges found out": passed, "of": len(found.findings)}, [*_lines(found.of(*_NOT_PASSED)), *wrong]


_NOT_PASSED = (c.Verdict.FAILED, c.Verdict.UNSUPPORTED, c.Verdict.UNREACHED)


def _lines(findings: Iterable[c.Finding]) -> list[str]:
    """A line for each; what could not be reached because of another is left out, when there is another."""
    found = list(findings)
    first = [finding for finding in found if finding.verdict is not c.Verdict.UNREACHED]
    return [f"{finding}{_asks(finding)}" for finding in first or found]


def _asks(finding: c.Finding) -> str:
    """Which guards the specification's action has: the launcher's own judgement is not theirs."""
    row = ROWS.get(finding.edge.action)
    if row is None or finding.verdict is not c.Verdict.FAILED:
        return ""
    asked = [guard.__name__ for guard in row.guards if guard.__name__ != "Alive"]
    return f"; what the runtime does not judge so: {', '.join(asked)} of {finding.edge.action}"


def main(arguments: Sequence[str]) -> int:
    """Write figures and findings to the first argument; of all edges, or of those of the actions that follow.

    2 when no world can be made here; the last line on standard error says why.
    """
    try:
        with site():
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    figures, findings = only(arguments[1:]) if arguments[1:] else everything()
    Path(arguments[0]).write_text(json.dumps({"figures": figures, "findings": findings}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
