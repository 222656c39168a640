"""The same faults by strace: evidence that does not rest on our own supervisor.

strace costs several times as much for each fault, and cannot tell a child's calls from its parent's: it counts for each
process from its beginning, but injects in all. So it is given one point for each call by each process, the first that
it can single out: no other process makes so many calls of that name. There it has to come to the same end as the trap.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.hostile.bench import Bench
from tests.hostile.sweep.faults import ERRORS
from tests.hostile.sweep.judge import Seen
from tests.hostile.sweep.trap import CALLER, CHILD, MARK, Fault, Traced
from tests.support.modes import Mode

_CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed)")
UNSTEADY = ("brk", "mmap", "munmap", "mremap", "clock_nanosleep", "wait4")
"""How often an interpreter makes these is another number each time."""
LAUNCHED = "import sys; sys.path.append(sys.argv[2]); exec(sys.argv[3])"


class Strace:
    """Launches under strace, on a worker's bench."""

    def __init__(self, bench: Bench, mode: Mode, given: Mapping[str, Any], driver: str) -> None:
        self._bench, self._mode, self._driver = bench, mode, driver
        self._given = json.dumps(given)
        self._log = mode.base / "strace.log"

    def command(self, *options: str) -> list[str]:
        python = [self._mode.python, "-s", "-S", "-P", "-c", LAUNCHED, self._given, str(self._mode.app), self._driver]
        return ["strace", "-f", "-qq", "-o", str(self._log), *options, *python]

    def calls(self) -> list[tuple[str, str]]:
        """(process, call) in order, of a launch without a fault."""
        self._run("-e", "trace=all")
        found = [match for line in self._log.read_text().splitlines() if (match := _CALL.match(line))]
        return [(match[1], match[2]) for match in found if " resumed" not in match[0]]

    def inject(self, fault: Fault, number: int) -> Seen:
        """A launch with the fault at the process's `number`-th call of that name since it began."""
        what = f"signal={fault.what}" if fault.what.startswith("SIG") else f"error={fault.what}"
        if self._bench.artifacts.exists():
            shutil.rmtree(self._bench.artifacts)
        before = self._world()
        # With a filter only that call stops; but signals are not delivered at a filter's stops.
        fast = [] if fault.what.startswith("SIG") else ["--seccomp-bpf"]
        output = self._run(*fast, "-e", f"trace={fault.call}", "-e", f"inject={fault.call}:{what}:when={number}")
        log = self._log.read_text()
        hit = "(INJECTED)" in log or "+++ killed by" in log
        reports = self._bench.witness.reports()
        records = [(path.name, path.read_bytes()) for path in sorted(self._bench.artifacts.glob("records/*"))]
        after = self._world()
        return Seen(fault, Traced(hit=hit), output, reports, before, after, after, records, retried=False)

    def _run(self, *options: str) -> str:
        self._bench.witness.reports()
        env = {**self._mode.unmeasured(), "PYTHONHASHSEED": "0"}
        return str(self._mode.run(self.command(*options), env=env, timeout=300).stderr)

    def _world(self) -> dict[str, object]:
        return {
            str(path.relative_to(self._bench.artifacts)): path.lstat().st_mode
            for path in self._bench.artifacts.rglob("*")
            if path.name != "locks" and "records" not in path.parts
        }


def chosen(calls: Sequence[tuple[str, str]]) -> Iterator[tuple[Fault, int]]:
    """The points that strace can single out: the fault as the trap names it, and strace's own number for it."""
    processes = list(dict.fromkeys(process for process, _ in calls))
    roles = dict(zip(processes, (CALLER, CHILD), strict=False))
    totals = Counter(calls)
    counts: Counter[tuple[str, str]] = Counter()
    launched: Counter[tuple[str, str]] = Counter()
    seen, gone = set[tuple[str, str]](), set[str]()
    for process, call in calls:
        counts[process, call] += 1
        # Between a launch's marks; and not between the child's own, where it waits.
        within = counts[processes[0], MARK] == 1 and (roles.get(process) == CALLER or counts[process, MARK] % 2 == 0)
        if not within or process not in roles or process in gone or call in (MARK, *UNSTEADY):
            continue
        if call == "execveat":  # after it, the calls are the image's
            gone.add(process)
        launched[process, call] += 1
        number = counts[process, call]
        if (process, call) in seen or any(totals[p, call] >= number for p in processes if p != process):
            continue
        seen.add((process, call))
        # strace keeps a failed close from closing, which no kernel does.
        what = ERRORS[call][0] if call in ERRORS and call != "close" else "SIGKILL"
        yield Fault(roles[process], call, launched[process, call], what), number
