"""The invariant of the sweep, judged from outside: what a launch with one fault in it may look like.

It ends in a typed error or as if there had been no fault. Nothing but the verified image is executed, and only where it
is confined. Nothing is left: neither in the process that launched, nor on disk, nor as a process. It can be launched
again at once, by the same process and by another. And the record is a beginning of a behaviour of the specification.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nucleus_gvisor.model import errors
from nucleus_gvisor.model.errors import LaunchError, RecordRejected
from nucleus_gvisor.model.record import parse_all
from nucleus_gvisor.model.replay import complete, fold
from tests.hostile.sweep.trap import CHILD, CLOSED, Fault, Traced
from tests.hostile.witness import Report, is_run

World = Mapping[str, object]
LEFT = "left behind"


@dataclass
class Seen:
    """One launch with a fault, and what was there before and after it."""

    fault: Fault | None
    traced: Traced
    output: str
    """What the launching process wrote to its standard streams."""
    reports: list[Report]
    before: World
    after: World
    """When it had ended, and no other had begun."""
    last: World
    """When all had ended."""
    records: list[tuple[str, bytes]] = field(default_factory=list)
    retried: bool = True
    """Was the process to launch again after a failure."""
    fresh: "Seen | None" = None
    """The launch by another process that followed, where there was anything to collect."""

    @property
    def driver(self) -> Report | None:
        """The launching process's own word."""
        return next((report for report in self.reports if "driver" in report), None)

    @property
    def ran(self) -> int:
        """How many sandboxes the launch itself ran."""
        again = None if self.driver is None else self.driver.get("again")
        runs = sum(map(is_run, self.reports))
        return runs - (again is not None and again.get("code") == 0)

    @property
    def outcome(self) -> str:
        """How it ended, in one word or two."""
        if self.driver is None:
            return "killed"
        told = self.driver["driver"]
        return f"{told['error']} in {told.get('step') or '-'}" if "error" in told else f"exit {told['code']}"


@dataclass(frozen=True)
class Expected:
    """What holds for all launches of a sweep."""

    digest: str
    """SHA-256 of the installed image."""
    canaries: frozenset[str]
    """SHA-256 of host programs that a confined process tries to execute, by descriptor, and must not be able to."""


def violations(seen: Seen, expected: Expected) -> list[str]:
    """What is wrong with it; nothing when the invariant holds."""
    found = [*_executed(seen, expected), *_ended(seen), *_recorded(seen), *_clean(seen)]
    if seen.fresh is not None:
        found += [f"then, by another process: {text}" for text in _again(seen.fresh, expected)]
    return found


def _again(fresh: Seen, expected: Expected) -> list[str]:
    found = violations(fresh, expected)
    if fresh.outcome != "exit 0":
        found.append(f"it cannot be launched: {fresh.outcome}: {_why(fresh.driver)} {fresh.output}")
    return found


def _why(driver: Report | None) -> str:
    told = {} if driver is None else driver["driver"]
    return "; ".join(str(told[name]) for name in ("message", "observed") if told.get(name))


def _killed(seen: Seen) -> bool:
    """Did the fault end the launching process itself, which then could neither say nor clean anything."""
    struck = seen.fault is not None and seen.fault.what.startswith("SIG") and seen.traced.hit
    return struck and seen.driver is None


def _executed(seen: Seen, expected: Expected) -> list[str]:
    found = []
    for look in seen.traced.looks:
        if look.role == CHILD and look.digest in expected.canaries:
            continue  # whether it is refused shows in what the child says next
        if look.digest != expected.digest:
            found.append(f"{look.role} executes {look.path}, which was not verified")
        elif not look.sealed:
            found.append(f"{look.role} executes an image that can be changed")
        if look.open_because is not None:
            found.append(f"{look.role} executes {look.path} unconfined: {look.open_because}")
    for report in seen.reports:
        if "argv" in report and "NoNewPrivs:\t1" not in report["status"]:
            found.append(f"ran unconfined: {report['argv']}")
    return found


def _ended(seen: Seen) -> list[str]:
    if seen.traced.hung:
        return [f"hangs, or leaves a process behind; until then: {seen.outcome}"]
    if seen.driver is None:
        return [] if _killed(seen) else [f"no typed error: {seen.output}"]
    told = seen.driver["driver"]
    if "error" not in told:
        problems = [] if told["code"] == 0 else [f"the guest's exit code is {told['code']}"]
        if told["achieved"] != "mount-locked":
            problems.append(f"confined by {told['achieved']} only")
        return problems + ([] if seen.ran == 1 else [f"{seen.ran} sandboxes ran instead of one"])
    kind = getattr(errors, told["error"], None)
    typed = isinstance(kind, type) and issubclass(kind, LaunchError)
    memory = told["error"] == "MemoryError" and seen.fault is not None and seen.fault.what == "ENOMEM"
    found = [] if typed or memory else [f"no typed error: {told['error']}"]
    if typed and told["begun"] and told["states"][-1:] != ["Failed"] and not told["record"]:
        found.append(f"the launch does not end in Failed: {told['states']}: {told['message']}")
    if told["restricted"]:
        found.append("the caller is restricted")
    again = seen.driver.get("again")
    if not seen.retried:
        return found
    if again is None or again.get("code") != 0:
        found.append(f"the same process cannot launch again: {again and {**again, 'evidence': None}}")
    return found


def _recorded(seen: Seen) -> list[str]:
    found = []
    for name, text in seen.records:
        try:
            lines = parse_all(text)
            if not lines and _killed(seen):
                continue  # made, and nothing written yet
            fold(lines)
            if not complete(lines) and not _killed(seen) and not _said(seen, "record"):
                found.append(f"the record {name} ends in {lines[-1].dest}")
        except RecordRejected as error:
            found.append(f"the record {name} is no behaviour: {error}")
    return found


def _said(seen: Seen, word: str) -> bool:
    """Does the launch's error, or a note to it, speak of this."""
    told = {} if seen.driver is None else seen.driver["driver"]
    texts = [told.get(name) for name in ("message", "hint", "record")]
    return any(word in str(text) for text in (*texts, *told.get("notes", ())))


def _clean(seen: Seen) -> list[str]:
    found = []
    if seen.driver is not None:
        for moment in ("after", "after_again"):
            if moment in seen.driver:
                found += [f"{moment}: {text}" for text in _changed(seen.driver["before"], seen.driver[moment])]
    if seen.after != seen.before and not _killed(seen) and not _said(seen, LEFT):
        found.append(f"left behind: {_difference(seen.before, seen.after)}")
    if seen.last != seen.before and not _killed(seen) and (seen.retried or not _said(seen, LEFT)):
        found.append(f"still there after another launch: {_difference(seen.before, seen.last)}")
    return found


def _changed(before: Report, after: Report) -> list[str]:
    changed = []
    for name in before:
        old, new = before[name], after[name]
        if name == "descriptors":
            new = {fd: link for fd, link in new.items() if f"/memfd:{CLOSED}" not in link}
        if old != new:
            changed.append(f"{name} was {old}, is {new}")
    return changed


def _difference(before: World, after: World) -> str:
    return "; ".join(
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )
