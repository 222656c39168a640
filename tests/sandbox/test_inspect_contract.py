"""inspect_ai's own checks of a provider of sandboxes, through a thin adapter: all pass that need nothing but it."""

import asyncio
from typing import Any

import pytest
from inspect_ai.util._sandbox import self_check

from nucleus_gvisor.runtime import AsyncSandbox
from tests.sandbox.conftest import Options
from tests.support.inspect_provider import Provider

HOME = "/tmp"
NEEDS = {"test_exec_as_user": "users by name, and a program that adds them to a writable /etc"}
"""What a check needs that a sandbox of the host's own programs does not have."""


async def checked(name: str, options: dict[str, Any]) -> None:
    # As an ordinary user of the guest: its root may read and write whatever the modes say.
    mounts = ["/etc/passwd:/etc/passwd"]  # something that may not be executed
    async with AsyncSandbox(**options, working_dir=HOME, user=(1000, 1000), mounts=mounts) as box:
        await getattr(self_check, name)(Provider(box, HOME))


@pytest.mark.parametrize("name", [name for name in self_check.__all__ if name not in NEEDS])
def test_contract(options: Options, name: str) -> None:
    """Each in a sandbox of its own."""
    asyncio.run(checked(name, options))


def test_what_is_left_out_is_there() -> None:
    """And all the others are run."""
    assert set(NEEDS) < set(self_check.__all__) and len(self_check.__all__) - len(NEEDS) >= 40
