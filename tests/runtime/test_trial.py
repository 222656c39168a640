"""A launch under KVM is tried first: whoever asks for it has a guest, or an error, and never waits for ever."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from nucleus_gvisor.model.errors import Unsupported
from nucleus_gvisor.runtime import (
    GVisorOciRunOptions,
    GVisorRuntime,
    OciBundle,
    Platform,
    StartFailed,
    answers,
    run,
    trial,
)
from nucleus_gvisor.runtime.identity import Identity
from nucleus_gvisor.runtime.steps.stage import Staged
from tests.conftest import release_of

pytestmark = pytest.mark.real
DEVICE = os.access("/dev/kvm", os.R_OK | os.W_OK)


@pytest.fixture
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a memory without anything of another test."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(base / "cache"))
    monkeypatch.setattr(trial, "_ends", set())
    answers.forget()
    return base / "cache"


@pytest.mark.parametrize("name", ["20250428", "20260831"])
def test_kvm_ends(base: Path, cache: Path, name: str) -> None:
    """With a device that runs guests it runs one; else it is refused, or runsc says why. It ends, whatever the host."""
    try:
        done = run(["echo", "hello"], runsc=release_of(name).path, runtime_dir=base, platform="kvm")
    except Unsupported as error:
        assert error.path == b"/dev/kvm" and (not DEVICE or "neither ran nor failed" in str(error))
    except StartFailed as error:
        assert DEVICE and "runsc did not start the guest" in str(error)
    else:
        assert DEVICE and done.stdout == "hello\n"


def _launch(base: Path) -> None:
    options = GVisorOciRunOptions(platform=Platform.AUTO, artifact_base=base)
    with GVisorRuntime.with_path(release_of("20260831").path).spawn("job", OciBundle.build(["true"]), options) as job:
        assert job.wait(60) == 0


def test_what_a_trial_shows(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that hangs is refused each time; one that ends is tried once a process, one that runs once a cache.

    The platform of a launch here is called kvm, for the host may have none; what runs is the release's own.
    """
    tried: list[float] = []
    outcome: list[bytes | BaseException] = []

    def launch(_: object, seconds: float) -> bytes:
        tried.append(seconds)
        if isinstance(said := outcome[0], BaseException):
            raise said
        return said

    def see() -> None:
        trial.see_that_kvm_answers(staged, Identity.current(), Identity.current())

    def start(self: trial.Trial, *_: object) -> None:
        assert self.options.platform is Platform.KVM

    staged = _staged()
    monkeypatch.setattr(trial.Trial, "run", start)
    monkeypatch.setattr(trial.Trial, "launch", launch)
    outcome[:] = [TimeoutError("no end of the guest within 10 s")]
    for _ in range(2):
        with pytest.raises(Unsupported, match="neither ran nor failed"):
            see()
    outcome[:] = [b"panic: no KVM for you"]
    see()
    see()
    assert tried == [trial.KVM_SECONDS] * 3
    trial._ends.clear()
    outcome[:] = [trial.STARTED]
    see()
    trial._ends.clear()
    see()
    assert len(tried) == 4


def _staged() -> Staged:
    return Staged({"runsc": -1}, {"runsc": "ab" * 32}, "sealed")


def test_a_launch_under_kvm_asks_for_it(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Confine refuses what the trial refuses, and the record says so; other platforms have none."""
    _launch(base)

    def refuse(*_: object) -> NoReturn:
        raise Unsupported("the host's KVM runs no guest of this runsc", step="Confine")

    monkeypatch.setattr(trial, "see_that_kvm_answers", refuse)
    _launch(base)
    monkeypatch.setattr("nucleus_gvisor.runtime.runsc.choose_platform", lambda *_: "kvm")
    with pytest.raises(Unsupported, match="runs no guest"):
        _launch(base)
