"""What the tests of the runtime's parts share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


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
