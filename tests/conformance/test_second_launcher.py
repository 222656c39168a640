"""The worked example: a plain `subprocess` wrapper around runsc is judged, and this is what it fails."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus_gvisor.model import conformance as c
from nucleus_gvisor.spec.pytest_plugin import Conformance
from tests.conformance.second_launcher import PlainDriver
from tests.conformance.world import Site

CONFINED = c.ask("required", "mount-locked", "sealed", "runsc", "match", 1)
UNCONFINED = c.ask("off", "mount-locked", "sealed", "runsc", "match", 1)


@pytest.fixture
def plain(place: Site) -> Iterator[PlainDriver]:
    """The second launcher around the stand-in."""
    made = PlainDriver(place)
    yield made
    made.close()


def failed(report: c.Report, action: str, **facts: object) -> list[c.Finding]:
    """The edges of `action` that failed where the facts have these values."""
    return [
        finding
        for finding in report.faults
        if finding.edge.action == action
        and all(getattr(finding.edge.source.facts, name) == value for name, value in facts.items())
    ]


def test_it_runs_whatever_lies_at_the_path(plain: PlainDriver) -> None:
    """Once runsc is swapped after it was looked at, it runs the forged bytes."""
    report = c.examine(plain, c.explore([UNCONFINED]))
    found = failed(report, "Exec", path="forged")
    assert found and all("RunsVerifiedBytes" in finding.breaks for finding in found), report.table()
    assert {finding.variable for finding in found} == {"image"}
    gone = failed(report, "Exec", path="absent")
    assert gone and all("No such file" in finding.why for finding in gone)


def test_it_does_not_look_before_it_runs(plain: PlainDriver) -> None:
    """It knows no pin, judges neither binary nor bundle, and fails for none of it."""
    report = c.examine(plain, c.explore([UNCONFINED]))
    for action, cause in {
        "FailPin": "pin_mismatch",
        "FailUntrusted": "untrusted_binary",
        "FailBundle": "bad_bundle",
        "FailUnfit": "unfit",
    }.items():
        found = failed(report, action)
        assert found and all(f.variable == "cause" and f.expected == cause for f in found), report.table()


def test_it_runs_unconfined_what_was_to_be_confined(plain: PlainDriver) -> None:
    """Every launch for which confinement is required breaks that promise."""
    report = c.examine(plain, c.explore([CONFINED]))
    found = failed(report, "Exec", path="trusted")
    assert found and all("RequiredMeansConfined" in finding.breaks for finding in found), report.table()
    assert not failed(c.examine(plain, c.explore([UNCONFINED])), "Exec", path="trusted")


def test_it_refuses_nothing(plain: PlainDriver) -> None:
    """What is not offered, such as Exec before anything was judged, it does."""
    walk = next(w for w in c.cover(c.explore([CONFINED])) if w.actions[:1] == ("Resolve",))
    report = c.judge(plain, [walk], refuse=lambda edge: edge.action == "Exec")
    assert any(f.edge.action == "Exec" and f.why == "not refused" for f in report.refusals.values()), report.table()


def test_undisturbed_it_conforms_where_nothing_is_promised(
    plain: PlainDriver, launcher_conformance: Conformance
) -> None:
    """With enforcement off and nobody around, the fixture of the pytest plugin has nothing against it."""
    report = launcher_conformance(plain, launches=[UNCONFINED._replace(budget=0)])
    assert [edge.action for edge in report.findings][-1] == "GuestStarts"


def test_the_fixture_fails_with_a_table(tmp_path: Path) -> None:
    """A test of somebody else's that uses the plugin fails, and says in which edges its launcher does."""
    (tmp_path / "conftest.py").write_text(
        "from nucleus_gvisor.spec.pytest_plugin import launcher_conformance as launcher_conformance\n"
    )
    (tmp_path / "test_it.py").write_text(
        "from nucleus_gvisor.model.conformance import ModelDriver, ask\n"
        "LAUNCH = ask('required', 'mount-locked', 'sealed', 'runsc', 'none', 0)\n"
        "class Lax(ModelDriver):\n"
        "    def observe(self):\n"
        "        return {**super().observe(), 'proved': False}\n"
        "def test_sound(launcher_conformance):\n"
        "    assert launcher_conformance(ModelDriver(), launches=[LAUNCH]).conforms\n"
        "def test_lax(launcher_conformance):\n"
        "    launcher_conformance(Lax(), launches=[LAUNCH])\n"
        "def test_expected(launcher_conformance):\n"
        "    report = launcher_conformance(Lax(), launches=[LAUNCH], expect=lambda finding: True)\n"
        "    assert not report.conforms\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "Lax does not conform" in done.stdout
    assert "ConfineLocked at Staged" in done.stdout and "proved is false, expected true" in done.stdout
