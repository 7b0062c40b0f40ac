"""Warp's and M's particle positions in STAR files, which share columns with RELION's.

Taken from their sources (`ExportParticlesTiltseries.cs`, `TiltSeries.MatchFull.cs`, `TiltSeries.ReconstructFull.cs`,
`Species.cs`): a voxel with index i of a reconstruction stands at i · pixel size, Å from the first voxel.

Warp, pixels: `rlnCoordinateX/Y/Z`, zero-based, `rlnMicrographName` NAME.tomostar; pixels are the tomogram's unless
    `rlnPixelSize` gives theirs. This is what is written; give `ts_export_particles` the voxel size as --coords_angpix.
Warp, template matching: the same columns as a fraction of the volume's extent, 0 to 1 (`--normalized_coords`).
M: `wrpCoordinateX1/Y1/Z1`, `…X2/…`: Å from the first voxel along a particle's trajectory, of which the mean is read,
    as M does for RELION; `wrpSourceName`, `wrpAngleRot1/Tilt1/Psi1`. M's own tables are not written: they need hashes
    of M's sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.points import orientation
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part, axes_of, choose, positions, rounded
from cryosam_dask.io.star import Table, encode_table
from cryosam_dask.io.text import numbers

_ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
_M_ANGLES = ["wrpAngleRot1", "wrpAngleTilt1", "wrpAnglePsi1"]
_SCORE, _INSTANCE = "rlnAutopickFigureOfMerit", "rlnTomoParticleId"
_WHAT = "points in Warp's convention"


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """Warp's file of picks; InputError for a frame without a name, or without one voxel size."""
    import pandas as pd

    tables = []
    for picks, frame in parts:
        name = frame.name(_WHAT).removesuffix(".tomostar") + ".tomostar"
        size, places = frame.cubic(_WHAT), positions(picks)
        table = pd.DataFrame({f"rlnCoordinate{axis}": places[:, 2 - i] for i, axis in enumerate("XYZ")})
        table["rlnMicrographName"] = pd.Series([name] * len(picks), dtype=object)
        table["rlnPixelSize"] = np.full(len(picks), size)  # also tells these pixels from fractions
        if orientation.has_angles(picks):
            table[_ANGLES] = orientation.angles_of(picks)
        table[_SCORE] = picks["score"].to_numpy(dtype=float)
        table[_INSTANCE] = picks["instance"].to_numpy(dtype=np.int64)
        tables.append(table)
    return encode_table(pd.concat(tables, ignore_index=True))


def of_m(path: Path, tables: Sequence[Table], frame: Frame, convention: str) -> Columns | None:
    """The points of M's table, None where there is none or another convention is asked for."""
    table = next((one for one in tables if one.has([f"wrpCoordinate{axis}1" for axis in "XYZ"])), None)
    if table is None or convention not in ("any", "warp"):
        return None
    columns: Columns = dict(table.columns)
    if "wrpSourceName" in columns:
        columns = choose(path, columns | {"tomogram": columns["wrpSourceName"]}, "tomogram", frame.tomogram)
    steps = 1
    while table.has([f"wrpCoordinate{axis}{steps + 1}" for axis in "XYZ"]):
        steps += 1
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        angstrom = [
            np.mean([numbers(path, name, columns[name]) for name in names], axis=0)
            for names in ([f"wrpCoordinate{axis}{i + 1}" for i in range(steps)] for axis in "ZYX")
        ]
        voxels = rounded(np.stack(angstrom, axis=1) / frame.angstrom(f"{path}: M's coordinates in Å"))
    found = axes_of(voxels)
    if all(name in columns for name in _M_ANGLES):  # along a trajectory, at its beginning
        found |= orientation.columns(np.stack([numbers(path, name, columns[name]) for name in _M_ANGLES], axis=1))
    for key, column in (("score", _SCORE), ("instance", _INSTANCE)):
        if column in columns:
            found[key] = columns[column]
    return found | ({"tomogram": columns["tomogram"]} if "tomogram" in columns else {})


def per_unit(path: Path, values: Float64, frame: Frame) -> Float64:
    """Voxels per unit (z, y, x): 1 for pixels, the shape where all coordinates lie from 0 to 1, as fractions do."""
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        return np.ones(3)
    if frame.shape is None:
        raise InputError(f"{path}: coordinates from 0 to 1, fractions of the tomogram: its shape is needed")
    return np.asarray(frame.shape, dtype=float)
