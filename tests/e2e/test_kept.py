"""What is kept, with real runsc and each kind of caller: who executes what from where, and what no guest gets."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from nucleus_gvisor.runtime import kept
from tests.conftest import Release
from tests.e2e.launching import Caller, guest_output, summary
from tests.setup.provision import RUNSC_PLACES
from tests.support.modes import ROOT_MODE, Mode


def evidence(data: dict[str, object]) -> dict[str, object]:
    """What the record of a launch tells of its stage."""
    lines = [json.loads(line) for line in Path(str(data["record"])).read_text().splitlines()]
    [found] = [line["evidence"] for line in lines if line["action"].startswith("Stage")]
    assert isinstance(found, dict)
    return found


@pytest.mark.real
def test_who_executes_what(modes: dict[str, Mode], release: Release) -> None:
    """Root keeps it; an ordinary caller takes what root keeps, or root's own file where root keeps none of it."""
    kind = "in place"
    for name in sorted(modes, key=lambda name: name != ROOT_MODE):
        caller = Caller(modes[name], release.path)
        done = caller.run("--json", "--platform", release.platform, command=["true"])
        assert done.returncode == 0, done.stderr
        word = evidence(summary(done))["kept"]
        if name == ROOT_MODE:
            assert word in ("made", "found", "replaced")
            kind = "root's"
        elif name == "user":
            assert word == kind
        else:  # in a namespace nobody can tell who root is, but for the system's own directories
            assert word == "in place" or release.path not in RUNSC_PLACES


@pytest.mark.real
def test_no_guest_writes_what_is_ours(mode: Mode, runsc_new: Path) -> None:
    """A bind that is, has in it or lies in a base or a cache is refused writable, and is hidden read-only."""
    caller = Caller(mode, runsc_new)
    assert caller.run(command=["true"]).returncode == 0
    listed = 'ls -A /seen; ls -A "/seen/$1"; true'
    for source, below in ((mode.base, "records"), (mode.base.parent, mode.base.name), (mode.base / "records", ".")):
        done = caller.run("--mount", f"{source}:/seen:rw", command=["true"])
        assert done.returncode == 125 and "directory of ours" in done.stderr, done.stderr
        done = caller.run("--mount", f"{source}:/seen:ro", command=["sh", "-c", listed, "-", below])
        assert done.returncode == 0, done.stderr
        told = guest_output(done)
        assert "ndjson" not in told and "locks" not in told


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has root's cache")
def test_the_cache_is_hidden(modes: dict[str, Mode], runsc_new: Path) -> None:
    """Nobody may write above root's cache, there or not; and who reads there sees nothing of it."""
    caller = Caller(modes[ROOT_MODE], runsc_new)
    assert caller.run(command=["true"]).returncode == 0
    above = os.path.dirname(os.fsdecode(kept.ROOTS))
    cache = os.path.basename(os.fsdecode(kept.ROOTS))
    done = caller.run("--mount", f"{above}:/seen:ro", command=["ls", "-A", f"/seen/{cache}"])
    assert (done.returncode, guest_output(done)) == (0, ""), done.stderr
    done = caller.run("--mount", f"{above}:/seen:rw", command=["true"])
    assert done.returncode == 125 and "directory of ours" in done.stderr
    assert subprocess.run(["ls", above], check=True, capture_output=True).stdout
