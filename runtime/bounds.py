"""How many records an artifact base keeps."""

import re
from dataclasses import dataclass
from typing import Any, Self

from nucleus_gvisor.model.errors import BadArgument

_BOUND = re.compile(r"(count|days|size)=([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMGkmg]?)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RecordBounds:
    """How many records an artifact base keeps; 0 means no bound."""

    count: int = 10_000
    days: float = 30
    """None is older, by its last line."""
    size: int = 256 << 20
    """Bytes of all together; never more than a quarter of their file system."""

    def __post_init__(self) -> None:
        for name, kind in (("count", int), ("days", int | float), ("size", int)):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not 0 <= value < 1 << 50:
                raise BadArgument(
                    f"keep_records: {name} refused",
                    step="Resolve",
                    observed=repr(value),
                    expected="a number; 0: no bound",
                    hint="0 keeps all",
                )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The bounds in `count=N,days=N,size=BYTES`, of which any can be left out; ValueError for anything else."""
        found: dict[str, Any] = {}
        for part in text.split(","):
            match = _BOUND.fullmatch(part.strip())
            if match is None or match[1] in found or (match[3] and match[1] != "size"):
                raise ValueError(f"{part!r}: expected count=N, days=N or size=BYTES (suffixes: K, M, G), with commas")
            unit = 1 << {"": 0, "K": 10, "M": 20, "G": 30}[match[3].upper()]
            found[match[1]] = float(match[2]) if "." in match[2] else int(match[2]) * unit
        return cls(**found)

    def __str__(self) -> str:
        parts = {"records": self.count, "days": f"{self.days:g}" if self.days else "", "bytes": self.size}
        return ", ".join(f"{value} {name}" for name, value in parts.items() if value) or "any number"

    @property
    def slack(self) -> int:
        """How many more than need be are removed at once, so that the next launches need not look."""
        return min(self.count // 20 if self.count else 500, self.size >> 20 if self.size else 500, 500)


KEPT = RecordBounds()
"""What a service can live with."""
