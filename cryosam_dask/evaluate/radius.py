"""How far a pick may be from the particle that it is a hit of: a number of voxels, or a length."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from cryosam_dask.errors import InputError

Unit = Literal["voxel", "angstrom"]

_LENGTH = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([^\d\s.]*)\s*")
_UNITS: dict[str, tuple[Unit, float]] = {
    "": ("voxel", 1.0),
    "voxel": ("voxel", 1.0),
    "voxels": ("voxel", 1.0),
    "vx": ("voxel", 1.0),
    "a": ("angstrom", 1.0),
    "å": ("angstrom", 1.0),
    "angstrom": ("angstrom", 1.0),
    "ångström": ("angstrom", 1.0),
    "nm": ("angstrom", 10.0),
}


class Radius(NamedTuple):
    """A radius in voxels or Å."""

    value: float
    unit: Unit = "voxel"

    def scaled(self, share: float) -> Radius:
        """`share` of it."""
        return Radius(self.value * share, self.unit)

    def __str__(self) -> str:
        return f"{self.value:g} {'voxels' if self.unit == 'voxel' else 'Å'}"


def parse_radius(value: float | str | Radius) -> Radius:
    """`10` or `"10"` as voxels, `"120A"`, `"120Å"`, `"12nm"` as Å.

    Raises InputError for anything else, and for what isn't above 0.
    """
    if isinstance(value, Radius):
        radius = value
    elif isinstance(value, str):
        match = _LENGTH.fullmatch(value.replace("\u212b", "Å"))  # the sign for ångström, beside the letter
        unit = None if match is None else _UNITS.get(match[2].casefold())
        if match is None or unit is None:
            raise InputError(f"radius {value[:80]!r}: expected voxels, or a length as in 120A or 12nm")
        radius = Radius(float(match[1]) * unit[1], unit[0])
    else:
        radius = Radius(float(value))
    if not (math.isfinite(radius.value) and radius.value > 0):
        raise InputError(f"radius: expected voxels above 0, found {radius.value!r}")
    return radius


def parse_radii(text: str) -> Radius | dict[str, Radius]:
    """`120A` as one radius, `ribosome=120A,proteasome=70A` as one for each kind."""
    if "=" not in text:
        return parse_radius(text)
    radii: dict[str, Radius] = {}
    for part in text.split(","):
        kind, equals, value = (piece.strip() for piece in part.partition("="))
        if not kind or not equals or kind in radii:
            raise InputError(f"radius {part.strip()!r}: expected KIND=RADIUS, each kind once, separated by commas")
        radii[kind] = parse_radius(value)
    return radii


def radii_of(document: object, where: str) -> dict[str, Radius]:
    """Radii by kind of a parsed YAML or JSON document.

    Parameters
    ----------
    document : {kind: radius}, written as on the command line (a plain number is voxels), or a copick configuration:
        {"pickable_objects": [{"name": …, "radius": Å}, …]}, those without a radius left out
    where : what errors call it
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{where}: expected kinds with their radii, or a copick configuration")
    if "pickable_objects" not in document:
        radii = {str(kind): parse_radius(_checked(value, f"{where}: {kind}")) for kind, value in document.items()}
    else:
        objects = document["pickable_objects"]
        if not isinstance(objects, list) or not all(isinstance(o, Mapping) and "name" in o for o in objects):
            raise InputError(f"{where}: pickable_objects: expected a list of objects with names")
        radii = {
            str(o["name"]): Radius(_number(o["radius"], f"{where}: {o['name']}"), "angstrom")
            for o in objects
            if o.get("radius") is not None
        }
    if not radii:
        raise InputError(f"{where}: no radii in it")
    return radii


def _checked(value: object, where: str) -> float | str:
    return value if isinstance(value, str) else _number(value, where)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}: expected a radius above 0, found {repr(value)[:80]}")
    return float(value)
