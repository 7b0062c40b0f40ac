"""True positions of a tomogram, in its voxels, checked to lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.points.files import ALL, read_points
from cryosam_dask.io.points.plausible import check_corner, in_a_corner
from cryosam_dask.published.data import Truth
from cryosam_dask.types import Point, Shape3

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = 0.05
"""Share of the positions that may lie outside of the tomogram, and are left out: what refinement has moved there."""


@dataclass(frozen=True)
class Positions:
    """points : (n, 3) voxels (z, y, x); notes : what a user should know of how they were read."""

    points: NDArray[np.float64]
    notes: tuple[str, ...] = ()


def read_positions(truth: Truth, source: TomogramSource, pixel_size: float | None = None) -> Positions:
    """The positions of one tomogram.

    Parameters
    ----------
    source : the tomogram, opened, for its shape and voxel size
    pixel_size : Å of the pixels that the file's coordinates count, where it does not say so itself and they are not
        the tomogram's voxels, as in STAR files of Warp and RELION 3 (unbinned)

    Raises InputError where more than `OUTSIDE` of them lie outside of the tomogram, or all at its corner, with what may
    be meant.
    """
    size = np.asarray(source.voxel_size, float)
    if pixel_size is None:
        points, assumed = _read(truth, source.voxel_size, source.shape)
    else:
        z, y, x = (int(n) for n in np.ceil(np.asarray(source.shape) * size / pixel_size))
        points, assumed = _read(truth, pixel_size, (z, y, x))
        points = points * pixel_size / size
    check_corner(str(truth.path), points)
    inside = ((points >= 0) & (points <= np.asarray(source.shape) - 1)).all(axis=1)
    left_out = int((~inside).sum())
    if left_out > OUTSIDE * len(points):
        raise InputError(_outside(truth, source, points, left_out))
    notes = list(assumed)
    if left_out:
        notes.append(f"{left_out} of {len(points)} positions lie outside of the tomogram and are left out")
    points = points[inside]
    if in_a_corner(points, source.shape):
        notes.append(
            f"all positions lie in the corner y < {points[:, 1].max():.0f}, x < {points[:, 2].max():.0f} of "
            f"{source.shape[1]} × {source.shape[2]}: if they are in larger pixels, give --truth-pixel-size"
        )
    return Positions(points, tuple(notes))


def _read(truth: Truth, voxel_size: float | Point, shape: Shape3) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """(n, 3) positions in voxels of that size, and what had to be assumed.

    All tomograms of a file are read: then refinement may have moved some positions to below 0.
    """
    named = truth.tomogram_name is not None
    try:
        stamp = truth.path.stat().st_mtime_ns
    except OSError:
        stamp = 0  # the reader says why
    table, notes = _table(truth.path, stamp, voxel_size, shape, truth.format, ALL if named else None)
    if named and "tomogram" in table.columns:
        table = table[table["tomogram"] == truth.tomogram_name]
    points: NDArray[np.float64] = table[["z", "y", "x"]].to_numpy(float)
    return points, notes


@lru_cache(maxsize=2)
def _table(
    path: Path, stamp: int, voxel_size: float | Point, shape: Shape3, format: str | None, name: str | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The points of a file as it was at `stamp`: one of all tomograms of a data set is read once, not for each."""
    notes: list[str] = []
    table = read_points(path, voxel_size=voxel_size, shape=shape, format=format, tomogram_name=name, notes=notes)
    return table, tuple(notes)


def _outside(truth: Truth, source: TomogramSource, points: NDArray[np.float64], count: int) -> str:
    reach = points.max(axis=0)
    shape = " × ".join(str(n) for n in source.shape)
    text = (
        f"{truth.path}{f' ({truth.tomogram_name})' if truth.tomogram_name else ''}: {count} of {len(points)} positions "
        f"lie outside of the tomogram of {shape} voxels; they reach z,y,x = {','.join(f'{v:.0f}' for v in reach)}"
    )
    factor = float((reach / np.asarray(source.shape)).max())
    if factor > 1.2:
        size = source.voxel_size[2] / factor
        text += f"; if they are in unbinned pixels, give these with --truth-pixel-size Å ({size:.2g} or less)"
    return text
