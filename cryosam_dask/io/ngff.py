"""The spatial metadata of an OME-Zarr image: axes, units, coordinate transformations.

Specification: https://ngff.openmicroscopy.org/0.5/. `where` names the array in errors. The type of every value in the
metadata is checked.
"""

from __future__ import annotations

import math
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, plausible_voxel, shown
from cryosam_dask.io.units import angstroms
from cryosam_dask.types import AXES, Point


def axes_and_units(where: str, multiscale: dict[str, Any], ndim: int) -> tuple[list[str], list[str | None]]:
    """Names and units of the array's axes; version 0.3 has names alone, earlier ones none (always t, c, z, y, x)."""
    if "coordinateSystems" in multiscale:
        raise InputError(f"{where}: its metadata has coordinate systems (OME-Zarr 0.6), expected version 0.5 or before")
    axes = multiscale.get("axes", list("tczyx"))
    if not isinstance(axes, list) or len(axes) != ndim:
        raise InputError(f"{where}: {ndim} dimensions, but its metadata describes the axes {shown(axes)}")
    entries = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    names = [str(entry.get("name")).lower() for entry in entries]
    units = [str(entry["unit"]).lower() if entry.get("unit") else None for entry in entries]
    return names, units


def spatial_axes(where: str, names: list[str], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Positions of z, y and x among the axes; every other axis must have length 1."""
    if any(names.count(axis) != 1 for axis in AXES):
        raise InputError(f"{where}: not 3D: axes {shown(', '.join(names))}, expected z, y, x")
    for name, n in zip(names, shape, strict=True):
        if name not in AXES and n != 1:
            raise InputError(
                f"{where}: {n} entries along axis {shown(name)!r}, expected one: save one of them as a volume"
            )
    return (names.index("z"), names.index("y"), names.index("x"))


def transform(
    where: str, multiscale: dict[str, Any], dataset: dict[str, Any], ndim: int
) -> tuple[list[float] | None, list[float]]:
    """Scale (None where none is given) and translation per axis: the dataset's transformations, then the image's."""
    scale, shift, scaled = [1.0] * ndim, [0.0] * ndim, False
    for owner in (dataset, multiscale):
        steps = owner.get("coordinateTransformations") or []
        if not isinstance(steps, list):
            raise InputError(f"{where}: coordinate transformations {shown(steps)}, expected a list")
        for step in steps:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "identity":
                continue
            factors = _numbers(step.get(kind), ndim) if kind in ("scale", "translation") else None
            if factors is None:
                raise InputError(
                    f"{where}: coordinate transformation {shown(step)}, "
                    f"expected a scale or translation of {ndim} numbers"
                )
            if kind == "scale":
                scaled = True
                scale = [a * f for a, f in zip(scale, factors, strict=True)]
                shift = [a * f for a, f in zip(shift, factors, strict=True)]
            else:
                shift = [a + f for a, f in zip(shift, factors, strict=True)]
    return scale if scaled else None, shift


def _numbers(values: Any, count: int) -> list[float] | None:
    """`values` if they are `count` finite numbers."""
    if not isinstance(values, list) or len(values) != count or any(type(v) not in (int, float) for v in values):
        return None
    try:
        numbers = list(map(float, values))
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def to_angstrom(
    where: str,
    spatial: tuple[int, int, int],
    scale: list[float] | None,
    shift: list[float],
    units: list[str | None],
    voxel_size: Point | None,
) -> tuple[Point, Point]:
    """Voxel size and origin in Å (z, y, x); a given `voxel_size` replaces the file's and leaves a known origin."""
    own = [units[axis] for axis in spatial]
    factors = [angstroms(unit) or math.nan for unit in own]
    steps = [scale[axis] if scale else math.nan for axis in spatial]
    sizes = [float(f"{step * factor:.9g}") for step, factor in zip(steps, factors, strict=True)]
    moved = [shift[axis] for axis in spatial]
    if all(map(plausible_voxel, sizes)):
        origin = [by * factor for by, factor in zip(moved, factors, strict=True)]
        z, y, x = sizes
    elif voxel_size is None:
        raise InputError(
            f"{where}: no usable voxel size (scale z, y, x: {steps if scale else 'missing'}; "
            f"units: {shown(', '.join(unit or 'missing' for unit in own))}); {ASK_VOXEL_SIZE}"
        )
    else:
        z, y, x = voxel_size
        # A translation has the unit of the scale, so it is known in voxels even where the unit is not.
        in_voxels = [by / step if step > 0 else 0.0 for by, step in zip(moved, steps, strict=True)]
        origin = [by * size for by, size in zip(in_voxels, voxel_size, strict=True)]
    if not all(map(math.isfinite, origin)):
        raise InputError(f"{where}: damaged OME-Zarr metadata: a translation of {origin} Å (z, y, x)")
    return voxel_size or (z, y, x), (origin[0], origin[1], origin[2])
