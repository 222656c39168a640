"""How much is tried: little and always the same in `make test`, a lot and never the same in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

LONG = "NUCLEUS_GVISOR_FUZZ_ROUND"
"""Set by `python -m tests.fuzz`."""
FACTOR = 10


def budget(examples: int) -> settings:
    """Settings for a property of which `examples` are tried in `make test`."""
    long = LONG in os.environ
    return settings(
        max_examples=examples * (FACTOR if long else 1),
        derandomize=not long,
        deadline=None,
        # Each example leaves what it uses as it found it.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
