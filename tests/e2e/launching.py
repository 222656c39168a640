"""Launches as a user makes them: the command line, in one mode, with one runsc; and who is still running afterwards."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.setup.provision import RUNSC_PLACES
from tests.support.modes import NAMESPACE_MODE, Mode
from tests.support.pins import pin_of

STATES = ["Unresolved", "Resolved", "Prepared", "Staged", "Confined", "Exec'd"]
READY = "ready"
"""What a guest prints once it runs."""
COMMAND = ("-m", "nucleus_gvisor.runtime.cli")


@cache
def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Caller:
    """Who launches, and which runsc."""

    mode: Mode
    runsc: Path

    def chosen(self) -> list[str]:
        """The arguments that name the runsc; in a user namespace its owner has no id, and a pin stands for it."""
        pin = ["--pin", pin_of(self.runsc)] if self.needs_pin else []
        return ["--runsc", os.fspath(self.runsc), *pin]

    @property
    def needs_pin(self) -> bool:
        return self.mode.name == NAMESPACE_MODE and self.runsc not in RUNSC_PLACES

    @property
    def pin(self) -> str | None:
        return pin_of(self.runsc) if self.needs_pin else None

    def arguments(self, *flags: str | os.PathLike[str], command: Sequence[str] = ()) -> list[str]:
        """What follows the interpreter for `nucleus-gvisor run FLAGS -- COMMAND`."""
        words = [os.fspath(flag) for flag in flags]
        return [*COMMAND, "run", *self.chosen(), *words, *(["--", *command] if command else [])]

    def run(
        self, *flags: str | os.PathLike[str], command: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Launch `command`, and wait for the end."""
        return self.mode.run([self.mode.python, *self.arguments(*flags, command=command)], **options)

    def popen(
        self, *flags: str | os.PathLike[str], command: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[Any]:
        """Launch `command`, and do not wait."""
        return self.mode.popen([self.mode.python, *self.arguments(*flags, command=command)], **options)

    def script(self, source: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a Python program in this mode; its first arguments are the runsc and its pin ("" for none)."""
        given = [os.fspath(self.runsc), self.pin or "", *map(str, arguments)]
        return self.mode.run([self.mode.python, "-W", "error", "-c", source, *given], **options)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that `--json` put last on standard output."""
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    data: dict[str, Any] = json.loads(lines[-1])
    return data


def guest_output(done: subprocess.CompletedProcess[str]) -> str:
    """Standard output before the JSON object."""
    return "".join(done.stdout.splitlines(keepends=True)[:-1])


# ---- processes ----


def _processes() -> Iterator[tuple[int, int, str, str]]:
    """(pid, parent, state, name and start time) of every process, proc(5)."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                text = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue  # it has ended meanwhile
            command, _, rest = text.rpartition(")")
            fields = rest.split()
            yield int(name), int(fields[1]), fields[0], f"{command.partition('(')[2]} since {fields[19]}"


def descendants(ancestor: int) -> dict[int, str]:
    """Every living process below `ancestor`: pid -> its name and start time."""
    children: dict[int, list[tuple[int, str, str]]] = {}
    for pid, parent, state, what in _processes():
        children.setdefault(parent, []).append((pid, state, what))
    found, pending = dict[int, str](), [ancestor]
    while pending:
        for pid, state, what in children.get(pending.pop(), ()):
            pending.append(pid)
            if state not in "ZX":
                found[pid] = what
    return found


def still(found: dict[int, str]) -> dict[int, str]:
    """Those of `found` that live."""
    now = {pid: what for pid, _, state, what in _processes() if state not in "ZX"}
    return {pid: what for pid, what in found.items() if now.get(pid) == what}


def reap() -> None:
    """Take the status of the orphans that this process, as a subreaper, was given."""
    for pid, parent, state, _ in _processes():
        if parent == os.getpid() and state == "Z":
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass  # it belongs to a thread that has waited for it meanwhile


def gone(found: dict[int, str], seconds: float = 20) -> dict[int, str]:
    """Those of `found` that still live after `seconds`; the answer comes as soon as there is none."""
    end = time.monotonic() + seconds
    while (left := still(found)) and time.monotonic() < end:
        time.sleep(0.02)
    return {pid: f"{what}: {_portrait(pid)}" for pid, what in left.items()}


def _portrait(pid: int) -> str:
    """What a process is and waits for, proc(5), for the reader of a failed test."""
    told = []
    for name in ("cmdline", "wchan", "status", "stack"):
        try:
            told.append(" ".join(Path("/proc", str(pid), name).read_text(errors="replace").replace("\0", " ").split()))
        except OSError as error:
            told.append(str(error.strerror))
    return "; ".join(told)


@contextmanager
def started(process: subprocess.Popen[Any]) -> Iterator[dict[int, str]]:
    """Wait until the guest prints READY; yields the launch's processes. In the end nothing of them is left."""
    below = dict[int, str]()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.strip() == READY, (line, process.communicate(timeout=30))
        below = descendants(process.pid)
        yield below
    finally:
        process.kill()
        process.communicate(timeout=30)
        assert gone(below) == {}
