"""What a child's word means, and what is asked of a binary only once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import ConfineFailed, LaunchError, NotProved, SafetyViolation, StepFailed
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, answers
from nucleus_gvisor.runtime import _linux as linux
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps import confine, stage
from nucleus_gvisor.runtime.supervisor import Supervisor
from tests.conftest import Release


@pytest.mark.parametrize(
    ("told", "kind", "words", "hint"),
    [
        (("proof", "undo", 0, "noexec of / could be cleared"), NotProved, "the confinement does not hold", ""),
        (("changed", "/x", 0, "another file"), SafetyViolation, "changed after it was judged", ""),
        (("bind", "/x", errno.EPERM, "locked flags"), StepFailed, "cannot be shown to the guest", "copy it"),
        (("defect", "start", 0, "TypeError: x"), StepFailed, "the child failed", ""),
        (("call", "fsopen", errno.EPERM, "fsopen: no"), ConfineFailed, "cannot confine: fsopen", "see `nucleus-gvisor"),
        (("call", "mount", errno.EPERM, "unshare(USER): no"), ConfineFailed, "cannot confine", "user namespaces are"),
        (("call", "mount", errno.ENOSYS, "unshare(USER): no"), ConfineFailed, "cannot confine", "the kernel is too"),
    ],
)
def test_what_a_refusal_means(told: tuple[Any, ...], kind: type[LaunchError], words: str, hint: str) -> None:
    """Each word of the child's has its error, with what it observed, and a hint where there is one to give."""
    error = confine._refusal(Supervisor(), {"canaries": []}, "refused", list(told))
    assert type(error) is kind and words in str(error)
    assert error.observed == told[3] and (error.hint or "").startswith(hint)
    assert isinstance(error.__cause__, OSError) is (told[0] == "call")


def sockets() -> list[str]:
    """The sockets that this process has."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if target.startswith("socket:")]


@pytest.mark.real
def test_equal_bytes_are_asked_once(base: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second launch of a process takes the first one's answers; whoever asks for a platform still gets its own."""
    asked: list[int] = []
    start = Supervisor.start

    def seen(plan: dict[str, Any], **how: Any) -> Supervisor:
        asked.append(len(plan["questions"]))
        return start(plan, **how)

    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    answers.forget()
    monkeypatch.setattr(Supervisor, "start", staticmethod(seen))
    runtime, bundle = GVisorRuntime.with_path(release.path), OciBundle.build(["true"])
    for number in range(2):
        options = GVisorOciRunOptions(platform="auto", artifact_base=base)  # type: ignore[arg-type]
        before = sockets()
        with runtime.spawn(f"job-{number}", bundle, options) as job:
            assert sockets() == before  # the link to the child is of no use once it has executed
            assert job.wait(timeout=60) == 0
    assert asked == [2, 0]
    [told] = answers._known.values()
    rootless = "--rootless" in map(os.fsdecode, job.command)
    # On a busy machine the trial may have ended each time before it was seen.
    assert told.lasts is not rootless or b"waiting for sandbox to start" in told.answers[-1][1]
    answers.forget()  # as another process
    with runtime.spawn("job-2", bundle, options) as job:
        assert job.wait(timeout=60) == 0
    # What needs --rootless, as the older release does in a locked namespace, is tried again by each process.
    assert asked[2:] == [0 if told.lasts else 2]
    stage.forget()


@pytest.mark.real
def test_of_other_ids_it_is_asked_again(base: Path, runsc_new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered where a namespace had other ids is no answer here, and the child that was made for it goes."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    answers.forget()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    runtime, bundle = GVisorRuntime.with_path(runsc_new), OciBundle.build(["true"])
    options = GVisorOciRunOptions(platform="auto", artifact_base=base)  # type: ignore[arg-type]
    for number in range(2):
        with runtime.spawn(f"job-{number}", bundle, options) as job:
            assert job.wait(timeout=60) == 0
        [(question, told)] = answers._known.items()
        assert told.ids != "of another"
        answers.remember(question, replace(told, ids="of another"), Identity.current())
    assert children.read_text() == before
    stage.forget()


@contextmanager
def in_a_new_user_namespace(*written: str) -> Iterator[int]:
    """A child in a user namespace of its own, which has written these of its id maps itself."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    waits, ends = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ends)
            uid, gid = os.geteuid(), os.getegid()
            linux.unshare(linux.CLONE_NEWUSER)
            for kind in written:
                if kind == "gid":
                    Path("/proc/self/setgroups").write_text("deny")
                Path(f"/proc/self/{kind}_map").write_text(f"0 {uid if kind == 'uid' else gid} 1")
            os.write(writer, b"x")
            os.read(waits, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(reader, 1) == b"x"
        yield pid
    finally:
        for fd in (reader, writer, waits, ends):
            os.close(fd)
        os.waitpid(pid, 0)


def test_a_map_is_whole_or_not_there() -> None:
    """Who may not write one has written none, and is told; one that is there in part fails the launch."""
    with in_a_new_user_namespace() as pid:
        assert confine.map_all_ids(pid) is (os.geteuid() == 0)
    with in_a_new_user_namespace("uid") as pid:
        assert confine.map_all_ids(pid) is False
    if os.geteuid() == 0:
        with in_a_new_user_namespace("gid") as pid, pytest.raises(StepFailed, match="ids cannot be mapped"):
            confine.map_all_ids(pid)
