"""Sets of runsc and its side binaries that are not what Google publishes: mixed, in part, and without a date."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.model.errors import LaunchError, Unsupported
from nucleus_gvisor.runtime import GVisorOciRunOptions, GVisorRuntime, OciBundle, Record, Sandbox, run, runsc
from nucleus_gvisor.runtime.doctor import examine
from tests.conftest import PLACES, release_of
from tests.support import places

pytestmark = pytest.mark.real
SAYS = b"release-20260831.0"
SENTRY = "gvisor-bin/gvisor_sentry"


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a set is put together, with nobody above it who could change it."""
    with places.private_directory() as path:
        yield path


def the_set(place: Path, says: dict[str, bytes], release: str = "20260831") -> Path:
    """A copy of that release's set, in which the files `says` call themselves something of the same length."""
    source = release_of(release).path.parent
    shutil.copytree(source, place / "set")
    for name, word in says.items():
        file = place / "set" / name
        content = file.read_bytes()
        assert SAYS in content and len(word) == len(SAYS)
        file.write_bytes(content.replace(SAYS, word))
    return place / "set/runsc"


@pytest.mark.parametrize("stage", ["kept", "set", "copy"])
def test_a_side_binary_of_another_release(place: Path, stage: str) -> None:
    """The launch is refused with both releases, whatever the stage, before runsc is told to start anything."""
    path = the_set(place, {SENTRY: b"release-20260824.0"})
    options = GVisorOciRunOptions(stage=stage, artifact_base=place)  # type: ignore[arg-type]
    with pytest.raises(Unsupported) as caught:
        GVisorRuntime.with_path(path).spawn("mixed", OciBundle.build(["true"]), options)
    error = caught.value
    assert error.path == SENTRY.encode() and "20260831.0" in str(error) and "20260824.0" in str(error)
    assert isinstance(error.record, Record) and "Exec" not in [line.action for line in error.record.lines]


def test_a_side_binary_that_does_not_answer(place: Path) -> None:
    """It is of no release, and so not of runsc's."""
    path = the_set(place, {})
    shutil.copy2("/bin/false", path.parent / SENTRY)
    with pytest.raises(LaunchError, match="not of runsc's release") as caught:
        run(["true"], runsc=path, runtime_dir=place)
    assert "wait status" in str(caught.value)


def test_doctor_tells_of_a_mixed_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says no, and which file is of which release."""
    monkeypatch.setenv("NUCLEUS_GVISOR_CACHE", os.fspath(place / "cache"))
    report = examine(runsc_path=the_set(place, {SENTRY: b"release-20260824.0"}))
    assert not report.launch
    assert any(SENTRY in check.cause and "20260824.0" in check.cause for check in report.checks)


@pytest.mark.parametrize("word", [b"nightly-2026-09-29", b"google-71485963300"])
def test_a_set_without_a_date(place: Path, word: bytes) -> None:
    """What it can do is asked and tried, and it does all that the same files do with their date."""
    path = the_set(place, {"runsc": word, SENTRY: word})
    done = run(["sh", "-c", "echo $((6 * 7))"], runsc=path, runtime_dir=place)
    assert done.stdout == "42\n"
    evidence = done.record.evidence("ConfineLocked")
    assert word.decode() in str(evidence["release"]) and "warning" not in evidence
    with Sandbox(runsc=path, runtime_dir=place) as box:
        assert box.exec("echo", "lives").stdout == "lives\n"
        assert box.stats() and box.ps()


def test_an_undated_runsc_alone(place: Path) -> None:
    """That it starts guests without its side binaries is tried, where no date says so; the record warns."""
    shutil.copytree(PLACES["20260831-alone"].parent, place / "alone")
    path = place / "alone/runsc"
    path.write_bytes(path.read_bytes().replace(SAYS, b"nightly-2026-08-29"))
    done = run(["true"], runsc=path, runtime_dir=place)
    assert done.returncode == 0 and "warning" in done.record.evidence("ConfineLocked")
    assert runsc.ALONE_REFUSED > 20260831
