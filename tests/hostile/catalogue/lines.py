"""An exception at every Python line of a launch: text that driver.py runs, so that every kind of caller can run it.

`strike` forks for each line, has the launch reach it, and raises there. The lines that the launch's child executes
count as well: it inherits the tracing. What a strike leaves in its process, on disk or running is what it answers.
"""

import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import nucleus_gvisor.runtime.launch
from nucleus_gvisor.model.errors import RecordRejected
from nucleus_gvisor.model.record import parse
from nucleus_gvisor.model.replay import fold
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, SandboxProcess, answers
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.retention import MARK
from nucleus_gvisor.runtime.steps import stage

Line = tuple[bool, str, int]
"""Is it the child that executes it, file below the package, number."""

PACKAGE = str(Path(nucleus_gvisor.runtime.launch.__file__).parents[1]) + "/"
ERRORS: dict[str, type[BaseException]] = {"KeyboardInterrupt": KeyboardInterrupt, "MemoryError": MemoryError}
ROOM = 1 << 22
PATIENCE = 40
"""Seconds for a strike, which takes a tenth of one; a launcher that hangs is killed by SIGALRM."""


class Tracer:
    """Sees each line of the package that this process and its forks execute; memory that they share tells of it."""

    def __init__(self, wanted: Line | None, error: type[BaseException]) -> None:
        self.wanted, self.error, self.caller = wanted, error, os.getpid()
        self.told = mmap.mmap(-1, ROOM)  # a pipe would be closed in the child, as all that it inherits
        self._seen: set[Line] = set()

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        if event == "line":
            line = (os.getpid() != self.caller, frame.f_code.co_filename[len(PACKAGE) :], frame.f_lineno)
            if self.wanted is None and line not in self._seen:
                self._seen.add(line)
                # What the child writes must not be written over by us: each has a half. It may begin in a hook of ours,
                # before any that is registered here.
                if line[0] and self.told.tell() < ROOM // 2:
                    self.told.seek(ROOM // 2)
                self.told.write(json.dumps(line).encode() + b"\n")
            elif line == self.wanted:
                sys.settrace(None)
                self.told[0] = 1
                raise self.error
        return self._line


def spawn(given: dict[str, Any]) -> SandboxProcess:
    """The launch itself, to the moment its caller has the handle."""
    options = GVisorOciRunOptions(artifact_base=Path(given["artifacts"]), **given["options"])
    bundle = OciBundle.build(["true"]) if given["bundle"] is None else Path(given["bundle"])
    return GVisorRuntime.with_path(given["runsc"]).spawn(given["id"], bundle, options)


def traced(given: dict[str, Any], tracer: Tracer | None) -> str:
    """How a launch ended: "0", or the error's name."""
    stage.forget()
    answers.forget(Identity.current())
    Path(given["artifacts"], "records", MARK).unlink(missing_ok=True)  # each makes room for its record, as few do
    process = None
    sys.settrace(tracer)
    try:
        process = spawn(given)
    except BaseException as error:
        sys.settrace(None)
        return type(error).__name__
    finally:
        sys.settrace(None)
    return str(process.wait(timeout=60))


def apart(work: Callable[[], object]) -> Any:
    """What `work` answers in a fork of this process, as JSON data."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"crash": traceback.format_exc()})
        while answer:
            answer = answer[os.write(writer, answer.encode()) :]
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text or '{"crash": "killed"}')


def lines(given: dict[str, Any]) -> list[Line]:
    """Every line that a launch executes, once, in the order in which the first came; the child's own among them."""

    def look() -> object:
        tracer = Tracer(None, KeyboardInterrupt)
        ended = traced(given | {"id": "look"}, tracer)
        assert ended == "0", ended
        halves = (tracer.told[: ROOM // 2], tracer.told[ROOM // 2 :])
        return [json.loads(line) for half in halves for line in half.rstrip(b"\0").splitlines()]

    found = apart(look)
    assert isinstance(found, list), found
    return [(child, file, number) for child, file, number in found]


def left(base: str) -> list[str]:
    """What lies below the artifact base that is not there to stay."""
    found = [os.path.relpath(os.path.join(d, n), base) for d, names, plain in os.walk(base) for n in (*names, *plain)]
    return sorted(name for name in found if name != "locks" and name.split("/")[0] != "records")


def strike(given: dict[str, Any], state: Callable[[], dict[str, Any]], line: Line, error: str, id: str) -> object:
    """The outcome of one launch with `error` raised at `line`, and all that is not as it should be after it."""
    signal.alarm(PATIENCE)
    before = state()
    tracer = Tracer(line, ERRORS[error])
    ended = traced(given | {"id": id}, tracer)
    after = state()
    wrong = [f"{name}: {before[name]} became {after[name]}" for name in before if before[name] != after[name]]
    wrong += [f"left {name}" for name in left(given["artifacts"])]
    for path in Path(given["artifacts"], "records").glob(f"{id}.*"):
        try:
            if text := path.read_bytes():  # as a kill there leaves it
                fold([parse(line, number) for number, line in enumerate(text.splitlines())])
        except RecordRejected as rejected:
            wrong.append(f"record: {rejected}")
    if (again := traced(given | {"id": "brief-again"}, None)) != "0":
        wrong.append(f"the launch after it ended with {again}")
    return {"ended": ended, "wrong": wrong, "reached": bool(tracer.told[0])}


def strikes(
    given: dict[str, Any], state: Callable[[], dict[str, Any]], chosen: Sequence[Line], errors: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each of the lines struck with each of the errors."""
    for number, line in enumerate(chosen):
        for error in errors:
            id = f"struck-{number}-{error}"
            answer = apart(partial(strike, given, state, line, error, id))
            yield {"line": line, "error": error, "id": id, **answer}
