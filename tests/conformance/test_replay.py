"""The real runtime on the specification's graph, seen through the operating system: each action and each launch once.

Every edge is taken by `spec check`, which tests/spec/test_check.py runs. Here it is shown that the replay can fail.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.model.errors import ChildDied
from nucleus_gvisor.model.table import ROWS
from nucleus_gvisor.runtime import _child, cleanup, kept, paths, runsc
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.steps import confine, resolve, stage
from tests.conformance.edges import NOT_FOUND_OUT, graph, known
from tests.conformance.real import RealDriver
from tests.conformance.world import Site
from tests.conftest import Release

Record = Callable[[str, object], None]


def found_out() -> c.Graph:
    """The graph without what the launcher does not come to by itself."""
    kept = tuple(edge for edge in graph().edges if known(edge) is None)
    return c.Graph(graph().nodes, graph().initial, kept)


def test_every_action_and_every_launch(driver: RealDriver) -> None:
    """Each launch undisturbed, and each action once, on the real runtime around the stand-in.

    Spec: GVisorRuntime!Next.
    """
    report = c.judge(driver, c.sample(found_out()))
    driver.close()
    assert report.conforms, report.table()
    assert driver.records > report.walks / 2
    assert {edge.action for edge in report.findings} == {*ROWS, *c.ENVIRONMENT}


def test_each_entry_of_the_table_is_about_something() -> None:
    """Every entry names edges of the graph, and no edge has two entries."""
    for entry in NOT_FOUND_OUT:
        assert any(entry.matches(edge) for edge in graph().edges), entry
    for edge in graph().edges:
        assert sum(entry.matches(edge) for entry in NOT_FOUND_OUT) < 2, edge


@pytest.mark.slow
@pytest.mark.real
def test_every_action_with_real_runsc(
    release: Release, runsc_old: Path, runsc_new: Path, large_place: Site, record_property: Record
) -> None:
    """The same sample with both releases of runsc; what is real once judged cannot turn into something else later."""
    launches = [node for node in c.usual_launches() if node.facts.program == "runsc"]
    whole = c.explore(launches)
    avoid = [edge for edge in whole.edges if known(edge) is not None]
    avoid += [
        edge
        for edge in whole.edges
        if edge.action == "Impostor" and (edge.source.facts.state != "Unresolved" or edge.source.facts.pin != "none")
    ]
    driver = RealDriver(large_place, release.path, runsc_old if release.path == runsc_new else runsc_new)
    try:
        report = c.judge(driver, c.sample(whole, avoid))
    finally:
        driver.close()
    # runsc says nothing of Landlock, and is never started under it.
    assert report.conforms, report.table()
    assert {edge.action for edge in report.findings} >= {*ROWS, *c.ENVIRONMENT} - {"ConfineLandlock"}
    record_property("edges", len(report.findings))


ENVIRONMENT = ["HOME", "LOGNAME", "PATH", "TMPDIR", "USER", "XDG_RUNTIME_DIR"]


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (
            c.ask("required", "mount-locked", "sealed", "runsc", "none", 0),
            {"no_new_privs": 1, "host_exec": errno.ENOENT, "undo": errno.EPERM, "mount": 0},
        ),
        (
            c.ask("required", "landlock", "sealed", "plain", "none", 0),
            {"no_new_privs": 0, "host_exec": errno.EACCES, "undo": 0, "mount": errno.EPERM},
        ),
        (
            c.ask("off", "mount-locked", "sealed", "runsc", "none", 0),
            {"no_new_privs": 0, "host_exec": 0, "undo": 0, "mount": 0},
        ),
    ],
    ids=["mount-locked", "landlock", "off"],
)
def test_what_the_image_itself_may_do(
    launch: c.Node, expected: dict[str, int], driver: RealDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proof of life agrees with what is seen from outside, and has nothing of the caller's environment in it."""
    monkeypatch.setenv("GVISOR_SIDECAR_BINARIES_DIR", "/tmp")
    report = c.judge(driver, c.cover(c.explore([launch])))
    assert report.conforms, report.table()
    assert {name: driver.proof[name] for name in expected} == expected
    assert sorted(driver.proof["env"]) == ENVIRONMENT
    executed = os.stat(f"/proc/{driver.child()}/exe")
    assert (driver.proof["device"], driver.proof["inode"]) == (executed.st_dev, executed.st_ino)


# ---- a check that is taken away is missed ----


def walks_over(*actions: str) -> Sequence[c.Walk]:
    """Walks over the edges of these actions, of launches with one disturbance."""
    launches = [node for node in c.usual_launches() if node.budget == 1]
    whole = c.explore(launches)
    wanted = [e for e in whole.edges if e.action in actions and known(e) is None]
    return c.cover(whole, wanted)[:8]


def without_times(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stage, "_untouched", lambda file: True)


def without_pin(patch: pytest.MonkeyPatch) -> None:
    seal_all = stage.seal_all
    patch.setattr(stage, "seal_all", lambda j: seal_all(SimpleNamespace(files=j.files, runsc=j.runsc, pin=None)))  # type: ignore[arg-type]


def without_judgement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "_judge_file", lambda *_, **__: None)
    patch.setattr(resolve, "_judge_program", lambda *_: None)


def without_private_base(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(paths, "make_private", lambda *_: None)


def without_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cleanup, "owner_lives", lambda _: False)
    patch.setattr(cleanup, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0))


def without_proof(patch: pytest.MonkeyPatch) -> None:
    def said(_: object) -> dict[str, object]:
        spaces = {f"{name}_namespace": os.readlink(f"/proc/self/ns/{kind}") for kind, name in NAMESPACES.items()}
        return {"confined": "mount-locked", "canaries": [{"path": "/bin/true", "answer": "EACCES"}], **spaces}

    patch.setattr(_child, "_prove", said)
    patch.setattr(_child, "_scope", lambda plan: [])  # which tries by itself what it forbids


def without_questions(patch: pytest.MonkeyPatch) -> None:
    release = runsc.Release("20240729.0", "runsc version 20240729.0", ("systrap",), "systrap")
    patch.setattr(runsc, "read_answers", lambda _: release)


def without_compatibility(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(confine, "refuse_incompatible", lambda _: None)


def without_removal(patch: pytest.MonkeyPatch) -> None:
    def nothing(place: cleanup.Place) -> list[OSError]:
        place.close()
        return []

    patch.setattr(cleanup.Place, "remove", nothing)


def without_comparison(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_child, "_compare", lambda *_: None)
    patch.setattr(_child, "_reopen", lambda path, _: os.open(path, os.O_PATH | os.O_CLOEXEC))


def without_private_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "open_cache", lambda path, _, **__: linux.open(path, os.O_RDONLY))


def without_manifest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "_is_plain", lambda *_: True)
    patch.setattr(resolve.Snapshot, "__eq__", lambda *_: True)


NAMESPACES = {"user": "user", "mnt": "mount"}


@pytest.mark.parametrize(
    ("take_away", "action"),
    [
        (without_times, "FailChanged"),
        (without_pin, "FailPin"),
        (without_judgement, "FailUntrusted"),
        (without_private_base, "FailBase"),
        (without_lock, "FailBusy"),
        (without_proof, "FailUnproved"),
        (without_questions, "FailUnfit"),
        (without_compatibility, "FailIncompatible"),
        (without_removal, "FailExec"),
        (without_comparison, "FailKept"),
        (without_private_cache, "FailCache"),
        (without_manifest, "StageKept"),
    ],
)
def test_a_missing_check_is_found(
    take_away: Callable[[pytest.MonkeyPatch], None], action: str, driver: RealDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a check taken out of the runtime, the edge that it is for fails; with it, the same walks pass."""
    walks = walks_over(action)
    sound = c.judge(driver, walks)
    assert sound.conforms, sound.table()
    take_away(monkeypatch)
    driver.robbed = True
    report = c.judge(driver, walks)
    driver.close()
    driver.robbed = False
    assert any(finding.edge.action == action for finding in report.faults), report.table()


def test_a_child_killed_at_the_last_moment_is_told_as_such(driver: RealDriver) -> None:
    """SIGKILL between the word to execute and its being heard: the answer is ChildDied, as FailExec has it."""
    driver.reset(c.usual_launches()[0].facts)
    for action in ("Resolve", "Prepare", "StageSealed", "ConfineLocked"):
        driver.fire(action)
    child = driver.child()
    os.kill(child, signal.SIGSTOP)
    timer = threading.Timer(0.2, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        driver.disturb("RefuseExecve")
        assert driver.next_fails() == ChildDied.cause
    finally:
        timer.join()
