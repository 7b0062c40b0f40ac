"""The voxel size that a TIFF states, in OME-XML, in ImageJ's description, or in its resolution tags."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryosam_dask.io.frame import plausible_voxel, shown
from cryosam_dask.io.units import angstroms
from cryosam_dask.types import Point

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_TAG_UNITS = {2: "inch", 3: "cm"}


@dataclass(frozen=True)
class Told:
    """What a TIFF states: the voxel size in Å (z, y, x) with notes, or None and the reason."""

    sizes: Point | None
    notes: tuple[str, ...] = ()
    why: str = ""


def voxel_size_of(tiff: Any) -> Told:
    """The voxel size of a `tifffile.TiffFile`.

    OME (https://docs.openmicroscopy.org/ome-model/): PhysicalSizeX, Y, Z, in µm unless a unit is given. ImageJ
    (ij.io.FileSaver): pixels per `unit` in the resolution tags, and `spacing`, which it leaves out where it is 1, so
    that without it z is known only where x is 1, too; maybe units of y and z of their own. Without a `unit` ImageJ
    goes by that of the tags (ij.io.TiffDecoder): `inch`, which it writes itself then, is as a rule a screen's dots.
    Else pixels per inch or centimetre; those of a screen are no voxel size, and z is taken to be as x and y.
    """
    try:
        if tiff.is_ome:
            return _of_ome(tiff.ome_metadata)
        if tiff.is_imagej:
            return _of_imagej(tiff)
        return _of_tags(tiff)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, SyntaxError):
        return Told(None)


def _of_ome(text: str) -> Told:
    import tifffile

    image = tifffile.xml2dict(text)["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list | tuple) else image)["Pixels"]
    units = [str(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"]
    return _in_angstrom([float(pixels.get(f"PhysicalSize{axis}", math.nan)) for axis in "ZYX"], units)


def _of_imagej(tiff: Any) -> Told:
    about = tiff.imagej_metadata
    unit = about.get("unit") or _TAG_UNITS.get(_tag_unit(tiff), "")
    units = [_plain(str(name or "")) for name in (about.get("zunit") or unit, about.get("yunit") or unit, unit)]
    x, y = (_side(tiff, tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    z = abs(float(about.get("spacing", 1.0 if math.isclose(x, 1.0, rel_tol=1e-3) else math.nan)))
    return _in_angstrom((z, y, x), units)


def _of_tags(tiff: Any) -> Told:
    unit = _TAG_UNITS.get(_tag_unit(tiff), "")
    x, y = (_side(tiff, tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    told = _in_angstrom((x, y, x), [unit] * 3)
    if told.sizes is None:
        return told
    if told.sizes[1] != told.sizes[2]:
        return Told(None, why="voxels of two lengths along y and x by its resolution tags, and none along z")
    note = f"voxels of {told.sizes[2]:g} Å along x and y by its resolution tags; taken to be as large along z"
    return Told(told.sizes, (note,))


def _in_angstrom(sides: Sequence[float], units: Sequence[str]) -> Told:
    """Sides (z, y, x) in their units."""
    if not any(unit.strip() for unit in units) or all(map(math.isnan, sides)):
        return Told(None)
    unknown = [f"{shown(unit)!r}" for unit in dict.fromkeys(units) if angstroms(unit) is None]
    if unknown:
        return Told(None, why=f"its unit {' and '.join(unknown)} is none of length that is known")
    z, y, x = (_rounded(side * (angstroms(unit) or math.nan)) for side, unit in zip(sides, units, strict=True))
    if all(map(plausible_voxel, (z, y, x))):
        return Told((z, y, x))
    given = ", ".join("none" if math.isnan(side) else f"{side:g}" for side in sides)
    return Told(None, why=f"it says z, y, x: {given} in {shown(', '.join(dict.fromkeys(units)))}")


def _plain(name: str) -> str:
    """ImageJ writes signs beyond ASCII as Java's escapes."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), name)


def _tag_unit(tiff: Any) -> int:
    tag = tiff.pages.first.tags.get(_RESOLUTION_UNIT)
    return 0 if tag is None else int(tag.value)


def _side(tiff: Any, tag: int) -> float:
    """A pixel's side in the unit that the resolution tags are in; they hold pixels per unit, as a fraction."""
    pixels, units = tiff.pages.first.tags[tag].value
    return float(units) / float(pixels)


def _rounded(size: float) -> float:
    """Six digits, which is what fractions of 32-bit integers, and people, write."""
    return float(f"{size:.6g}")
