"""`make fuzz MINUTES=n`: the properties of this directory with fresh examples, again and again, until time is up.

Stops at the first round that fails. Hypothesis prints the smallest example and keeps it in .hypothesis; make it an
`@example` of its property.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.budget import LONG


def main(arguments: list[str]) -> int:
    """Fuzz for as many minutes as the first argument says; the exit code of the round that failed, or 0."""
    minutes = float(arguments[0]) if arguments else 10.0
    end, rounds = time.monotonic() + 60 * minutes, 0
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=0", str(Path(__file__).parent)]
    while time.monotonic() < end:
        rounds += 1
        done = subprocess.run(command, env={**os.environ, LONG: str(rounds)})
        if done.returncode:
            return done.returncode
    print(f"fuzz: {rounds} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
