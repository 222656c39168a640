"""Every release, caller, network, stage, confinement and enforcement with every other: each pair of them occurs.

What can run together is seen to run together, and what cannot is refused by name. The whole product is a campaign.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nucleus_gvisor.runtime import (
    GVisorOciRunOptions,
    GVisorRuntime,
    OciBundle,
    Platform,
    StageMethod,
    Unsupported,
    run,
)
from tests.conftest import OLD, PLACES, release_of
from tests.e2e.launching import STATES, Caller, digest, guest_output, summary
from tests.setup.releases import ALONE, SIDE, TODAY
from tests.support import places
from tests.support.modes import NAMES, Mode, private_base

pytestmark = pytest.mark.real
NAMED = "import socket; print(*(name for _, name in socket.if_nameindex()))"
GUEST = f"dmesg | grep -c Starting.gVisor; python3 -c '{NAMED}'; exit 7"


class Cell(NamedTuple):
    """One launch, by the words of the command line."""

    release: str
    caller: str
    network: str
    stage: str
    confinement: str
    enforcement: str

    @property
    def locked(self) -> bool:
        return (self.confinement, self.enforcement != "off") == ("mount-locked", True)

    @property
    def refusal(self) -> str | None:
        """The error's name and what it says, where this cannot be; None where it runs."""
        whole = self.release == TODAY
        if self.stage == "kept" and not (self.locked and self.enforcement == "required"):
            return "BadArgument: what is kept is executed by launches alone that cannot write it"
        if self.stage == "set" and self.confinement == "landlock":
            return "BadArgument: the set is staged on a tmpfs that only mount-locked makes"
        if self.stage == "sealed" and whole:
            return "BadArgument: side binaries"
        if self.network == "sandbox" and not self.locked:
            return "BadBundle: the sandbox network needs a network namespace"
        if self.confinement == "landlock" and self.enforcement == "required":
            return "Incompatible: runsc cannot start under Landlock"
        if not self.locked and self.stage == "set":
            return "Unsupported: the set is staged on a tmpfs that only mount-locked makes"
        if self.network == "sandbox" and self.release == OLD:
            return "Unsupported: no sandbox network in a locked user namespace"
        return None

    @property
    def pairs(self) -> set[tuple[object, ...]]:
        return set(itertools.combinations(enumerate(self), 2))


VALUES = (
    tuple(PLACES),
    NAMES,
    ("none", "sandbox", "host"),
    ("auto", "kept", "sealed", "set", "copy"),
    ("mount-locked", "landlock"),
    ("required", "best_effort", "off"),
)
PRODUCT = [Cell(*values) for values in itertools.product(*VALUES)]


def chosen() -> list[Cell]:
    """Few cells with every pair, in one that runs where there is any."""
    runs = [cell for cell in PRODUCT if cell.refusal is None]
    refused = [cell for cell in PRODUCT if cell.refusal is not None]
    found = list(_cover(runs, set().union(*(cell.pairs for cell in runs))))
    seen = set().union(*(cell.pairs for cell in found))
    found += _cover(refused, set().union(*(cell.pairs for cell in refused)) - seen)
    kinds = {cell.refusal for cell in found}
    return found + [next(cell for cell in refused if cell.refusal == kind) for kind in _kinds() if kind not in kinds]


def _kinds() -> list[str | None]:
    return sorted({cell.refusal for cell in PRODUCT if cell.refusal is not None}, key=str)


def _cover(cells: list[Cell], wanted: set[tuple[object, ...]]) -> Iterator[Cell]:
    """Cells that have all `wanted` pairs, at each step the one with the most that are still missing."""
    while wanted:
        best = max(cells, key=lambda cell: len(cell.pairs & wanted))
        wanted = wanted - best.pairs
        yield best


CELLS = chosen()


def test_every_pair_occurs() -> None:
    """All that the product has, in few launches, and every kind of refusal."""
    every = set().union(*(cell.pairs for cell in PRODUCT))
    assert set().union(*(cell.pairs for cell in CELLS)) == every
    assert {cell.refusal for cell in CELLS} == {None, *_kinds()}
    assert len(CELLS) < 60


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_pair(cell: Cell, app: Path) -> None:
    """The guest runs under gVisor as asked for, and nothing is left; or nothing runs, and the reader is told why."""
    look_at(cell, app)


@pytest.mark.campaign
@pytest.mark.parametrize("cell", [cell for cell in PRODUCT if cell not in CELLS], ids="-".join)
def test_product(cell: Cell, app: Path) -> None:
    """The rest of the product."""
    look_at(cell, app)


def test_a_later_one_is_refused_alone(base: Path) -> None:
    """Before anything of it is launched, and with what to install: today's under the label of a later release."""
    content = PLACES[ALONE].read_bytes()
    label = b"release-20260831.0"
    assert label in content
    other = base / "runsc"
    other.write_bytes(content.replace(label, b"release-20260921.0"))
    other.chmod(0o755)
    with pytest.raises(Unsupported, match="starts no guest without its side binaries") as caught:
        run(["true"], runsc=other, runtime_dir=base)
    assert caught.value.step == "Confine" and "release 20260921.0" in str(caught.value.observed)
    assert "whole archive" in str(caught.value.hint)
    words = ["doctor", "--runsc", os.fspath(other), "--artifact-base", os.fspath(base)]
    command = [sys.executable, "-m", "nucleus_gvisor.runtime", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1 and "starts no guest without its side binaries" in done.stdout


def test_a_whole_set_is_run_strictly(base: Path) -> None:
    """runsc is told to take its own side binaries and no others; what those say of themselves was asked before."""
    options = GVisorOciRunOptions(stage=StageMethod.SET, artifact_base=base, platform=Platform.AUTO)
    with GVisorRuntime.with_path(PLACES[TODAY]).spawn("job", OciBundle.build(["true"]), options) as process:
        assert process.wait(60) == 0 and process.failure() is None
        for word in (b"--sidecar-usage-policy=STRICT", b"--sidecar-release-enforcement-policy=ALWAYS"):
            assert word in process.command


def look_at(cell: Cell, app: Path) -> None:
    with private_base(cell.caller) as base:
        caller = Caller(Mode(cell.caller, app, base), release_of(cell.release).path)
        flags = ["--json", "--network", cell.network, "--stage", cell.stage, "--confinement", cell.confinement]
        flags += ["--enforcement", cell.enforcement, *(() if cell.locked else ("--rootless", "--ignore-cgroups"))]
        done = caller.run(*flags, command=["/bin/sh", "-c", GUEST])
        data = summary(done)
        if cell.refusal is not None:
            kind, _, text = cell.refusal.partition(": ")
            assert (done.returncode, data["error"] and data["error"]["error"]) == (125, kind), done.stderr
            assert text in done.stderr and "Exec'd" not in data["states"]
        else:
            assert (done.returncode, data["exit"]) == (7, 7), done.stderr
            began, *interfaces = guest_output(done).split()
            host = set(os.listdir("/sys/class/net"))
            assert began == "1" and (set(interfaces) == (host if cell.network == "host" else {"lo"}))
            proved = {"confinement": "mount-locked", "proved": True, "scope": "signals+abstract"}
            assert data["achieved"] == {
                **(proved if cell.locked else {"confinement": "none", "proved": False, "scope": None}),
                "audit": "file",
            }
            requested = {"confinement": cell.confinement, "enforcement": cell.enforcement}
            assert data["requested"] == {**requested, "scope": "best_effort", "audit": "required"}
            assert data["states"] == STATES and set(data["ms"]) == set(data["actions"])
            beside = [caller.runsc, *(caller.runsc.parent / SIDE).glob("*")]
            names = {os.fspath(path.relative_to(caller.runsc.parent)): digest(path) for path in beside}
            assert data["digests"] == names
            assert cell.stage in ("auto", data["stage"])
        assert places.mounts_below(base) == [] and set(os.listdir(base)) <= {"locks", "records"}
