"""The seam between the machine and the world: what a launcher must be able to see and to do.

The runtime implements it with system calls; a stand-in or another launcher implements it to be judged by the
conformance harness. The machine calls nothing else.
"""

from collections.abc import Mapping
from typing import Protocol

from nucleus_gvisor.model.facts import Facts

Evidence = Mapping[str, object]
"""JSON data that an auditor can check again: digests, inode numbers, canaries' answers."""


class Steps(Protocol):
    """Effects of a launch. `action` is always a name of the specification."""

    def observe(self, action: str, facts: Facts) -> Mapping[str, object]:
        """World variables as they are now, before `action`'s guards judge; only what was really looked at."""
        ...

    def perform(self, action: str, before: Facts, after: Facts) -> Evidence:
        """Do the action's work so that `after` is true, check it through a second channel, and return the evidence.

        Raises a LaunchError when the world refuses; then nothing is committed and the launch is still in `before`.
        """
        ...


class NoSteps:
    """Steps without a world: every observation finds nothing new and every action succeeds."""

    def observe(self, action: str, facts: Facts) -> Mapping[str, object]:
        return {}

    def perform(self, action: str, before: Facts, after: Facts) -> Evidence:
        return {}
