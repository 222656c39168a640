"""One launch in a process of its own; run as `python -c SOURCE JSON`, so that every user can run it.

`before` is Python that spoils the process first. How the launch ended, and what the process is like afterwards, goes
to the witness's socket: standard output may be part of what was spoilt. `again`, where it is given, launches once more
after a failure, in this same process.

sched_yield(2) marks for who traces the process where a launch begins, and where it has become a sandbox or an error.
In the child it marks where it waits for its trial: how often it looks there is chance.
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from nucleus_gvisor.model.errors import ExecFailed, LaunchError
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, _child, answers
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import stage

given = json.loads(sys.argv[1])
answers.forget(Identity.current())  # each asks for itself
end_the_trial = _child._end_with_its_sandbox


def marked(pid: int, _reader: int, end: float) -> bytes | None:
    """The child's wait for its trial, between two marks."""
    os.sched_yield()
    try:
        return end_the_trial(pid, _reader, end)
    finally:
        os.sched_yield()


_child._end_with_its_sandbox = marked


def launch() -> dict[str, object]:
    """What became of it, as JSON data."""
    base = given["artifacts"]
    begun = False
    os.sched_yield()
    try:
        options = GVisorOciRunOptions(artifact_base=None if base is None else Path(base), **given["options"])
        runtime = GVisorRuntime.with_path(given["runsc"]) if given["runsc"] else GVisorRuntime.searching()
        bundle = OciBundle.build(["true"]) if given["bundle"] is None else Path(given["bundle"])
        begun = True
        if given["in_place"]:
            runtime.exec_with_oci_bundle_options(given["id"], bundle, options)
        process = runtime.spawn(given["id"], bundle, options)
        os.sched_yield()
        evidence = [line.evidence for line in process.record.lines]
        return {"code": process.wait(), "achieved": process.achieved, "evidence": evidence}
    except LaunchError as error:
        os.sched_yield()
        restricted = isinstance(error, ExecFailed) and error.restricted
        states = list(getattr(error.record, "states", ()))
        notes = getattr(error, "__notes__", [])
        problem = getattr(error.record, "problem", None)
        told = {"notes": notes, "restricted": restricted, "states": states, "record": problem, "begun": begun}
        return {**error.as_dict(), **told}
    except MemoryError as error:
        os.sched_yield()
        return {"error": "MemoryError", "notes": getattr(error, "__notes__", []), "restricted": False}


def mounts() -> list[str]:
    """The mounts but those of other tests, which come and go meanwhile."""
    own = str(Path(given["artifacts"] or "/nonexistent").parent)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if own in line or not ("gvisor-tests/" in line or " /run/netns" in line)]


def state() -> dict[str, object]:
    """What a launch could have changed in its caller."""
    children = [Path(task, "children").read_text() for task in Path("/proc/self/task").iterdir()]
    mask = os.umask(0)
    os.umask(mask)
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = ""
    stage.forget()  # what a process keeps from one launch to the next
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    return {
        "children": "".join(children).split(),
        "cwd": cwd,
        "descriptors": descriptors,
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "mounts": mounts(),
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid", "user")},
        "no_new_privs": "NoNewPrivs:\t1" in Path("/proc/self/status").read_text(),
        "umask": mask,
    }


exec(given["before"])
if given["threads"]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
before = state()
outcome = launch()
after = state()
retried = {}
if given.get("again") and "error" in outcome:
    retried = {"again": launch(), "after_again": state()}
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:  # which needs no module: there may be no file any more
    link.connect(("127.0.0.1", given["witness"]))
    link.sendall(json.dumps({"driver": outcome, "before": before, "after": after, **retried}).encode())
