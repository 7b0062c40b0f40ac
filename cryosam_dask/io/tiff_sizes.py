"""The voxel size that a TIFF tells: by OME-XML, by ImageJ's description, or by its resolution tags."""

from __future__ import annotations

import math
from typing import Any

from cryosam_dask.io.units import angstroms
from cryosam_dask.types import Point

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_TAG_UNITS = {2: "inch", 3: "cm"}


def voxel_size_of(tiff: Any) -> tuple[Point | None, tuple[str, ...]]:
    """Å (z, y, x) of a `tifffile.TiffFile`, None where it does not tell them, with notes.

    OME (https://docs.openmicroscopy.org/ome-model/): PhysicalSizeX, Y, Z, in µm unless a unit is given. ImageJ
    (ij.io.FileSaver): pixels per `unit` in the resolution tags, and `spacing`, which it leaves out where it is 1, so
    that without it z is known only where x is 1, too; maybe units of y and z of their own.
    Else pixels per inch or centimetre; those of a screen are no voxel size, and z is taken to be as x and y.
    """
    try:
        if tiff.is_ome:
            return _of_ome(tiff.ome_metadata), ()
        if tiff.is_imagej:
            return _of_imagej(tiff)
        return _of_tags(tiff)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, SyntaxError):
        return None, ()


def _of_ome(text: str) -> Point | None:
    import tifffile

    image = tifffile.xml2dict(text)["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list | tuple) else image)["Pixels"]
    sizes = []
    for axis in "ZYX":
        factor = angstroms(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
        sizes.append(_rounded(float(pixels[f"PhysicalSize{axis}"]) * (factor or math.nan)))
    return (sizes[0], sizes[1], sizes[2])


def _of_imagej(tiff: Any) -> tuple[Point | None, tuple[str, ...]]:
    about = tiff.imagej_metadata
    units = [about.get("zunit") or about.get("unit"), about.get("yunit") or about.get("unit"), about.get("unit")]
    # signs beyond ASCII are written as Java's escapes
    names = [str(unit or "").encode("latin-1", "replace").decode("unicode_escape") for unit in units]
    factors = [angstroms(name) or math.nan for name in names]
    x, y = (_side(tiff, tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    z = abs(float(about.get("spacing", 1.0 if math.isclose(x, 1.0, rel_tol=1e-3) else math.nan)))
    sizes = [_rounded(side * factor) for side, factor in zip((z, y, x), factors, strict=True)]
    return (sizes[0], sizes[1], sizes[2]), ()


def _of_tags(tiff: Any) -> tuple[Point | None, tuple[str, ...]]:
    factor = angstroms(_TAG_UNITS.get(int(tiff.pages.first.tags[_RESOLUTION_UNIT].value)))
    if factor is None:
        return None, ()
    x, y = (_rounded(_side(tiff, tag) * factor) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    if x != y:
        return None, ()
    return (x, y, x), (f"voxels of {x:g} Å along x and y by its resolution tags; taken to be as large along z",)


def _side(tiff: Any, tag: int) -> float:
    """A pixel's side in the unit that the resolution tags are in; they hold pixels per unit, as a fraction."""
    pixels, units = tiff.pages.first.tags[tag].value
    return float(units) / float(pixels)


def _rounded(size: float) -> float:
    """Six digits, which is what fractions of 32-bit integers, and people, write."""
    return float(f"{size:.6g}")
