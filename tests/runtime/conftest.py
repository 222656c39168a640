"""What the tests of the runtime's parts share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from nucleus_gvisor.runtime import _linux as linux


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """After the block no descriptor is open that was not before; what a failure left is closed, and reported by it."""
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield
        assert len(os.listdir("/proc/self/fd")) <= len(before), "descriptors were left open"
    finally:
        for name in set(os.listdir("/proc/self/fd")) - before:
            with suppress(OSError):
                os.close(int(name))


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    """Whatever comes of the test, nothing stays open."""
    with nothing_left_open():
        yield


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    """Each child that this thread's ledger knows has no link to us any more: it would be dropped by a later launch's
    ledger, unclosed, and a test that has nothing to do with it would be blamed.
    """
    yield
    left = [end for child in linux.ledger().processes for end in child._ends if end.fileno() >= 0]
    for end in left:
        end.close()
    assert left == [], "a child's link was left open"
