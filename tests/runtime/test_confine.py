"""What a child's word means, and what is asked of a binary only once."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nucleus_gvisor.model.errors import ConfineFailed, LaunchError, NotProved, SafetyViolation, StepFailed
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle
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

    monkeypatch.setattr(confine, "_answered", {})
    monkeypatch.setattr(Supervisor, "start", staticmethod(seen))
    runtime, bundle = GVisorRuntime.with_path(release.path), OciBundle.build(["true"])
    for number in range(2):
        options = GVisorOciRunOptions(platform="auto", artifact_base=base)  # type: ignore[arg-type]
        before = sockets()
        with runtime.spawn(f"job-{number}", bundle, options) as job:
            assert sockets() == before  # the link to the child is of no use once it has executed
            assert job.wait(timeout=60) == 0
    assert asked == [2, 0]
    stage.forget()
