"""The probe, the witness and the bench."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.bench import Bench, Witness, compiled, forget_answers
from tests.support.modes import ROOT_MODE, USER_MODE, Mode
from tests.support.places import private_directory


@pytest.fixture(scope="session")
def witness() -> Iterator[Witness]:
    """Where executions of the probe are told."""
    witness = Witness()
    yield witness
    witness.close()


@pytest.fixture(scope="session")
def probe(witness: Witness) -> Iterator[Path]:
    """A static program that answers as runsc does, and tells the witness what it sees."""
    with private_directory() as folder:
        yield compiled("probe", folder, f"-DWITNESS={witness.port}")


@pytest.fixture
def own_mode(app: Path, base: Path) -> Mode:
    """The kind of caller that this process is."""
    return Mode(USER_MODE if os.geteuid() else ROOT_MODE, app, base)


@pytest.fixture
def bench(base: Path, probe: Path, witness: Witness, own_mode: Mode) -> Bench:
    """A probe in runsc's place below a private directory of the caller."""
    forget_answers()
    witness.reports()
    return Bench(base, probe, witness, own_mode)


@pytest.fixture
def mode_bench(mode: Mode, probe: Path, witness: Witness) -> Bench:
    """The same for each kind of caller in turn; launches are driven in processes of their own."""
    witness.reports()
    return Bench(mode.base, probe, witness, mode)
