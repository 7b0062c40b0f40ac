"""What particles there are: a shape, a size, a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cryosam_dask.simulate.checks import is_count, is_number, require
from cryosam_dask.simulate.families import FAMILIES

SHAPES: tuple[str, ...] = ("ribosome", "barrel", "tetramer", "globule")
"""Shapes that are always the same."""
MAP = "map"
"""The shape of a species that is a density map; see `maps`."""


@dataclass(frozen=True)
class Species:
    """One kind of particle.

    Attributes
    ----------
    name : what the particle table calls it
    shape : "ribosome" (two irregular lobes), "barrel" (four stacked rings with a channel), "tetramer" (four
        compact lobes), "globule" (one ellipsoid); a family of `families`, drawn at random from `seed`; or "map"
    diameter : nanometres, of the sphere about its centre of mass that just holds it
    count : how many are placed
    density : its contrast to the solvent, relative to that of a protein
    seed : of a random shape; it says nothing of where particles stand
    """

    name: str
    shape: str
    diameter: float
    count: int
    density: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), "species.name", "a word", self.name)
        shapes = (*SHAPES, *FAMILIES, MAP)
        require(self.shape in shapes, f"{self.name}.shape", f"one of {', '.join(shapes)}", self.shape)
        positive = is_number(self.diameter) and self.diameter > 0
        require(positive, f"{self.name}.diameter", "nanometres above 0", self.diameter)
        require(is_count(self.count), f"{self.name}.count", "a whole number from 0", self.count)
        positive = is_number(self.density) and self.density > 0
        require(positive, f"{self.name}.density", "a number above 0", self.density)
        require(is_count(self.seed), f"{self.name}.seed", "a whole number from 0", self.seed)

    @classmethod
    def of(cls, value: Species | Mapping[str, Any]) -> Species:
        """A species from plain values. Raises SettingsError for values that are missing or unknown."""
        if isinstance(value, cls):
            return value
        names = [f.name for f in fields(cls)]
        ok = isinstance(value, Mapping) and {"name", "shape", "diameter", "count"} <= set(value) <= set(names)
        require(ok, "species", f"entries with {', '.join(names)}", value)
        return cls(**dict(value))  # type: ignore[arg-type]


TARGETS: tuple[Species, ...] = (
    Species("ribosome", "ribosome", 25.0, 18, 1.2),
    Species("proteasome", "barrel", 15.0, 30),
    Species("tetramer", "tetramer", 12.0, 40),
)
DISTRACTORS: tuple[Species, ...] = (Species("small", "globule", 7.0, 120),)
