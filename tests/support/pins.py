"""What a pin names, as whoever reads the documentation makes it."""

import hashlib
import os
from pathlib import Path

from tests.conformance.world import digest


def pin_of(runsc: str | os.PathLike[str]) -> str:
    """SHA-256 of runsc; with side binaries, of what `sha256sum` prints of them all, by name."""
    folder = Path(runsc).parent
    names = sorted(["runsc", *(f"gvisor-bin/{path.name}" for path in folder.glob("gvisor-bin/*"))])
    if len(names) == 1:
        return digest(runsc)
    lines = "".join(f"{digest(runsc if name == 'runsc' else folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()
