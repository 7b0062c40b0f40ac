"""Voxel size and origin from an MRC header.

MRC2014 (Cheng et al., J. Struct. Biol. 192, 146, 2015): `cella` is the cell and `mx`, `my`, `mz` its sampling, both
along x, y, z; `nx`, `ny`, `nz` and the starts are those of columns, rows, sections, and `mapc`, `mapr`, `maps` say
which of x, y, z these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import SAME_SIZE
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, in_angstrom, plausible_voxel, unset_voxel_size
from cryosam_dask.types import Point

Order = tuple[int, int, int]
_Number = TypeVar("_Number", int, float)
_FARTHEST, _FARTHEST_START = 1e9, 10  # Å, and the longest side: beyond that an origin was never set
_ODD_RATIO = 10  # between voxel sides; a sampling of 1 left in the header multiplies one side by the number of slices


def header_voxel_size(path: Path | str, header: Any, order: Order) -> tuple[Point, tuple[str, ...]]:
    """Å (z, y, x), the cell divided by its sampling, with notes; `order` as of `FlatSource`.

    Some programs that write another order of axes leave the sampling, or the cell, in the order of columns, rows,
    sections. That is assumed if the standard's reading gives unequal voxel sides and this one gives equal sides.
    Raises InputError if no size is plausible.
    """
    cell = [float(header["cella"][axis]) for axis in "zyx"]
    samples = [int(header[f"m{axis}"]) for axis in "zyx"]
    sizes = _divided(cell, samples)
    notes: tuple[str, ...] = ()
    if order != (0, 1, 2) and not _equal(sizes):
        sizes, notes = _of_permuted(header, order, cell, samples)
    if not all(map(plausible_voxel, sizes)):
        given = ", ".join(f"{size:g}" for size in sizes)
        raise InputError(f"{path}: the header gives no usable voxel size (z, y, x: {given}); {ASK_VOXEL_SIZE}")
    notes += unset_voxel_size(sizes)
    if max(sizes) > _ODD_RATIO * min(sizes):
        notes += (f"voxels of {in_angstrom(sizes)} (z, y, x): if the header is wrong, {ASK_VOXEL_SIZE}",)
    return sizes, notes


def _of_permuted(header: Any, order: Order, cell: list[float], samples: list[int]) -> tuple[Point, tuple[str, ...]]:
    """The voxel size where the axes are permuted and the standard's reading gives unequal ones."""
    counts = [int(header[name]) for name in ("nz", "ny", "nx")]
    by_standard = _divided(cell, samples)
    of_samples, of_cell = _divided(cell, _turned(samples, order)), _divided(_turned(cell, order), samples)
    readings = [("sampling (mx, my, mz)", of_samples), ("cell", of_cell)]
    if samples == _turned(counts, order):  # the sampling is as the standard has it
        readings.reverse()
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    what = f"the axes are permuted (mapc, mapr, maps = {axes[0]}, {axes[1]}, {axes[2]})"
    for name, sizes in readings:
        if _equal(sizes):
            return sizes, (
                f"{what} and the {name} is in the file's order: voxels of {in_angstrom(sizes)}; by the standard they "
                f"would be {in_angstrom(by_standard)} (z, y, x); if they are, {ASK_VOXEL_SIZE}",
            )
    if samples == counts != _turned(counts, order) and all(map(plausible_voxel, of_samples)):
        return by_standard, (
            f"{what}: voxels of {in_angstrom(by_standard)} (z, y, x), as the standard has it; its sampling (mx, my, "
            f"mz) looks like the file's order, by which they would be {in_angstrom(of_samples)}; if they are, "
            f"{ASK_VOXEL_SIZE}",
        )
    return by_standard, ()


def _turned(values: Sequence[_Number], order: Order) -> list[_Number]:
    """Values given for sections, rows, columns, as z, y, x."""
    return [values[axis] for axis in order]


def _divided(cell: Sequence[float], samples: Sequence[int]) -> Point:
    """Six digits, which is what the header's float32 can tell."""
    z, y, x = (float(f"{a / n:.6g}") if n > 0 else 0.0 for a, n in zip(cell, samples, strict=True))
    return (z, y, x)


def _equal(sizes: Point) -> bool:
    """Whether these are plausible sides of a cube."""
    return all(map(plausible_voxel, sizes)) and max(sizes) - min(sizes) <= SAME_SIZE * min(sizes)


def header_origin(header: Any, voxel_size: Point, order: Order) -> Point:
    """Å (z, y, x): the header's `origin`; if that is zero or not plausible, its start indices times the voxel size, if
    those are plausible. As ChimeraX does, IMOD's sign of the origin (flag 4) is not looked at."""
    z, y, x = (float(header["origin"][axis]) for axis in "zyx")
    if (z, y, x) == (0.0, 0.0, 0.0) or not all(abs(place) < _FARTHEST for place in (z, y, x)):
        starts = [int(header[name]) for name in ("nzstart", "nystart", "nxstart")]
        sides = [int(header[name]) for name in ("nx", "ny", "nz", "mx", "my", "mz")]
        if max(map(abs, starts)) > _FARTHEST_START * max(sides):  # never set
            starts = [0, 0, 0]
        z, y, x = (starts[axis] * size for axis, size in zip(order, voxel_size, strict=True))
    return (z, y, x)
