"""What structures there are besides particles: membranes, filaments and gold; their settings and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cryosam_dask.simulate.checks import is_count, require, require_range

CLASS_OF = {
    "vesicle": "membrane",
    "sheet": "membrane",
    "double-membrane": "membrane",
    "filament": "filament",
    "microtubule": "microtubule",
    "gold": "gold",
}
"""Kind of structure → its class in the semantic image."""
CLASSES: tuple[str, ...] = ("membrane", "filament", "microtubule", "gold", "cytosol")
"""Classes of the semantic image that are no species, in the order of their numbers."""

_SIZES: dict[str, tuple[float, float]] = {
    "vesicle": (20.0, 45.0),
    "sheet": (4.0, 10.0),
    "double-membrane": (15.0, 30.0),
    "filament": (100.0, 400.0),
    "microtubule": (200.0, 800.0),
    "gold": (8.0, 12.0),
}


@dataclass(frozen=True)
class Structure:
    """Structures of one kind.

    Attributes
    ----------
    kind : "vesicle" (a closed membrane, about a sphere), "sheet" (an open membrane across the volume),
        "double-membrane" (two sheets side by side), "filament" (actin-like, two strands, 8 nm wide), "microtubule" (13
        protofilaments, 25 nm wide), "gold" (beads, whose streaks come from the missing wedge)
    count : how many are placed
    size : nanometres, smallest and largest, of a vesicle's radius, the height of a sheet's waves, the distance between
        a double membrane's middles, the length of a filament or microtubule, a bead's diameter; None takes the
        kind's own
    """

    kind: str
    count: int
    size: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require(self.kind in CLASS_OF, "structures.kind", f"one of {', '.join(CLASS_OF)}", self.kind)
        require(is_count(self.count), f"{self.kind}.count", "a whole number from 0", self.count)
        if self.size is not None:
            require_range(f"{self.kind}.size", self.size, 1.0, 5000.0)
            object.__setattr__(self, "size", tuple(self.size))

    @property
    def sizes(self) -> tuple[float, float]:
        """`size`, or the kind's own."""
        return self.size or _SIZES[self.kind]

    @classmethod
    def of(cls, value: Structure | Mapping[str, Any]) -> Structure:
        """A structure from plain values. Raises SettingsError for values that are missing or unknown."""
        if isinstance(value, cls):
            return value
        names = [f.name for f in fields(cls)]
        ok = isinstance(value, Mapping) and {"kind", "count"} <= set(value) <= set(names)
        require(ok, "structures", f"entries with {', '.join(names)}", value)
        return cls(**dict(value))  # type: ignore[arg-type]
