"""Check that points are plausible positions in a tomogram: errors and doubts for prompts and ground truth alike.

Voxels (z, y, x) of the tomogram are expected. Common mistakes: x, y, z order; voxels of another binning; positions in
another tomogram, or from a tomogram's centre; fractions of its size, 0 to 1, as template matchers write them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import one_line_errors, shown
from cryosam_dask.types import AXES, Point, Shape3

Float64 = NDArray[np.float64]

FAR = 0.1
"""Share of a side, or of a file's largest coordinate: a particle less than this outside may be cut by the border."""

CORNER = 2.0
"""Voxels: no two particles are this near to the corner 0,0,0, and all fractions of a size are."""

_MANY, _FEW = 5, 3
"""Points that are hardly ever by chance all in the first half of each side, and in the first quarter."""


@one_line_errors()
def check_points(points: ArrayLike, shape: Shape3, what: str = "prompts") -> Float64:
    """`points` as (N, 3) float64 (z, y, x), all in the tomogram of `shape`: 0 ≤ coordinate ≤ size − 1.

    points : positions, or a table with the columns z, y, x; what : they are called in errors

    Raises InputError that names the first point outside, the valid range of each axis, and notices x,y,z order; and as
    `check_corner`.
    """
    if hasattr(points, "columns"):  # a table of pandas, which is not imported for this
        table: Any = points
        points = table[list(AXES)].to_numpy()
    try:
        array = np.array(points, dtype=np.float64, ndmin=2)
    except (TypeError, ValueError) as err:
        raise InputError(f"points {shown(points)}: expected numbers Z,Y,X") from err
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise InputError(f"points of shape {array.shape}: expected three numbers Z,Y,X for each of one or more points")
    top = np.asarray(shape) - 1
    inside = _inside(array, top)
    if not inside.all():
        raise InputError(_outside(array, inside, top))
    check_corner(what, array)
    return array


def _outside(points: Float64, inside: NDArray[np.bool_], top: NDArray[Any]) -> str:
    """What is wrong with points that are not all inside of 0 to `top`, and what they may be instead."""
    worst, count = int(np.flatnonzero(~inside)[0]), int((~inside).sum())
    ranges = ", ".join(f"{axis} 0 to {limit}" for axis, limit in zip(AXES, top, strict=True))
    message = f"point {_show(points[worst])} is outside the tomogram (valid: {ranges})"
    if len(points) > 1:
        message += f"; {count} of {len(points)} points are"
    if _inside(points[:, ::-1], top).all():
        swapped = _show(points[worst][::-1])
        return f"{message}; it looks like x,y,z order, cryosam takes Z,Y,X: try {swapped}"
    if len(points) > 1 and 2 * count > len(points):
        message += ": are they in voxels of another size, or another tomogram's?"
    return message


@one_line_errors()
def check_corner(what: str, points: Float64, *, alone: bool = False) -> None:
    """InputError where all points (n, 3) lie within `CORNER` voxels of the corner, which particles' centres do not.

    what : begins the error; alone : a single point is refused, too, since it comes from a file and may be given by hand
    """
    if len(points) < (1 if alone else 2) or not (np.abs(points) <= CORNER).all():
        return
    said = f"all {len(points)} points lie" if len(points) > 1 else "its only point lies"
    raise InputError(
        f"{what}: {said} within {CORNER:g} voxels of the corner 0,0,0 (the first: {_show(points[0])}): are they "
        "fractions of the tomogram's size, or in another unit? Expected voxels Z,Y,X; a particle that is there is "
        "given as one --point"
    )


def check_origin(path: Path, points: Float64, shape: Shape3 | None) -> None:
    """Refuse points (n, 3) most of which lie far below the first voxel, as those that count from a centre do."""
    far = points < -FAR * np.asarray(np.abs(points).max() if shape is None else shape, dtype=float)
    if 2 * int(far.any(axis=1).sum()) > len(points):
        row, axis = (int(i) for i in np.argwhere(far)[0])
        raise InputError(
            f"{path}: row {row + 1}: {AXES[axis]} is {points[row, axis]:g}, outside the tomogram, as most points are: "
            "voxels count from the first one, which is 0; do these count from the tomogram's centre?"
        )


def check_place(path: Path, points: Float64, tomogram: str, shape: Shape3, voxel_size: Point) -> None:
    """InputError if most points (n, 3) are far outside of the tomogram; points just beyond its border are allowed."""
    far = int(_are_far(points, shape).sum())
    if 2 * far > len(points):
        turned = 2 * int(_are_far(points[:, ::-1], shape).sum()) <= len(points)
        raise InputError(
            f"{path}: {far} of {len(points)} points are outside of {tomogram} ({' x '.join(map(str, shape))} voxels "
            f"z, y, x, of {voxel_size[0]:g} Å): are they in {'x,y,z order' if turned else 'voxels of another size'}, "
            "or another tomogram's?"
        )


def in_a_corner(points: Float64, shape: Shape3) -> bool:
    """Whether points (n, 3), and not too few of them, are all in the first half of each side (z, y, x), or in the first
    quarter: those in voxels of twice the size, or four times, are."""
    if len(points) < _FEW:
        return False
    reach = float((points.max(axis=0) / np.asarray(shape)).max())
    return reach < 0.25 or (reach < 0.5 and len(points) >= _MANY)


def doubts(points: Float64, shape: Shape3, what: str = "points") -> list[str]:
    """Sentences about points (n, 3) in the tomogram that may be in another frame, although they are valid.

    what : the points' name in the sentences, as "points that are not wanted"
    """
    if len(points) == 1 and (np.abs(points) <= CORNER).all():
        place = f"{_show(points[0])}, lies within {CORNER:g} voxels of the corner 0,0,0"
        return [f"the only one of the {what}, {place}: is it a fraction of the tomogram's size?"]
    if in_a_corner(points, shape):
        return [
            f"all {len(points)} {what} are in the first half of each side: are they in larger voxels, as of a tomogram "
            "binned more?"
        ]
    return []


def _inside(points: Float64, top: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.all((points >= 0) & (points <= top), axis=1), dtype=np.bool_)


def _are_far(points: Float64, shape: Shape3) -> NDArray[np.bool_]:
    """Which points are farther outside of a tomogram than a particle at its border."""
    size = np.asarray(shape)
    return np.asarray(((points < -FAR * size) | (points > (1 + FAR) * size)).any(axis=1))


def _show(point: Iterable[float]) -> str:
    return ",".join(f"{v:g}" for v in point)
