"""Places and drivers for the conformance tests. The twins mount file systems and change owners: they need root."""

import os
from collections.abc import Iterator

import pytest

from nucleus_gvisor.spec.pytest_plugin import launcher_conformance as launcher_conformance
from tests.conformance.real import RealDriver
from tests.conformance.world import Site, site


@pytest.fixture(scope="session")
def place() -> Iterator[Site]:
    """Where worlds are made, with the stand-in compiled."""
    if os.geteuid():
        pytest.skip("needs root: the environment's twins mount file systems and change owners")
    with site() as made:
        yield made


@pytest.fixture(scope="session")
def large_place() -> Iterator[Site]:
    """The same with room for real runsc."""
    if os.geteuid():
        pytest.skip("needs root: the environment's twins mount file systems and change owners")
    with site("768m") as made:
        yield made


@pytest.fixture
def driver(place: Site) -> Iterator[RealDriver]:
    """The real runtime around the stand-in."""
    made = RealDriver(place)
    yield made
    made.close()
