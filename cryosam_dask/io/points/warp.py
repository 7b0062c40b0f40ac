"""Warp's and M's particle positions in STAR files, which share columns with RELION's.

Taken from their sources (`ExportParticlesTiltseries.cs`, `TiltSeries.MatchFull.cs`, `TiltSeries.ReconstructFull.cs`,
`TiltSeries.ReconstructParticleSeries.cs`, `Species.cs`): a voxel with index i of a reconstruction stands at
i · pixel size, Å from the first voxel.

Warp, pixels: `rlnCoordinateX/Y/Z`, zero-based, `rlnMicrographName` NAME.tomostar; pixels are the tomogram's unless
    `pixels` finds theirs. This is what is written; give `ts_export_particles` the voxel size as --coords_angpix.
Warp, template matching: the same columns as a fraction of the volume's extent, 0 to 1 (`--normalized_coords`).
Warp, 2D stacks (`ts_export_particles --2d`): `rlnCoordinateX/Y/Z` in pixels of the export, which is the image pixel
    size of the particle's optics group. Until July 2026 that table stated the unbinned pixel as
    `rlnTomoTiltSeriesPixelSize`, now the export's. RELION 5's own 2D stacks have the same columns, in unbinned pixels.
M: `wrpCoordinateX1/Y1/Z1`, `…X2/…`: Å from the first voxel along a particle's trajectory, of which the mean is read,
    as M does for RELION; `wrpSourceName`, `wrpAngleRot1/Tilt1/Psi1`. M's own tables are not written: they need hashes
    of M's sources.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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

_NAME, _PARTICLE, _IMAGE, _FLAT = "rlnTomoName", "rlnTomoParticleName", "rlnImageName", "rlnTomoSubTomosAre2DStacks"
_ITEM = ".tomostar"
_STACK = re.compile(r"_(\d+)[.,](\d\d)A_\d{6,}\.mrcs$")
"""What Warp calls a particle's stack: NAME_12.00A_000001.mrcs, with the export's pixel."""


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """Warp's file of picks; InputError for a frame without a name, or without one voxel size.

    Warp splits rows at spaces (`Star.cs`), so names are not quoted.
    """
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
    return encode_table(pd.concat(tables, ignore_index=True), "rlnMicrographName", quotes=False)


def of_m(path: Path, tables: Sequence[Table], frame: Frame, convention: str) -> Columns | None:
    """The points of M's table; None if there is no such table or another convention is asked for."""
    table = next((table for table in tables if table.has([f"wrpCoordinate{axis}1" for axis in "XYZ"])), None)
    if table is None or convention not in ("any", "warp"):
        return None
    columns: Columns = dict(table.columns)
    if "wrpSourceName" in columns:
        columns = choose(
            path, columns | {"tomogram": columns["wrpSourceName"]}, "tomogram", frame.tomogram, frame.notes
        )
    steps = 1
    while table.has([f"wrpCoordinate{axis}{steps + 1}" for axis in "XYZ"]):
        steps += 1
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        angstrom = [
            np.mean([numbers(path, name, columns[name]) for name in names], axis=0)
            for names in ([f"wrpCoordinate{axis}{i + 1}" for i in range(steps)] for axis in "ZYX")
        ]
        voxels = rounded(np.stack(angstrom, axis=1) / frame.angstrom(f"{path}: M's coordinates in Å"))
    points = axes_of(voxels)
    if all(name in columns for name in _M_ANGLES):  # along a trajectory, at its beginning
        points |= orientation.columns(np.stack([numbers(path, name, columns[name]) for name in _M_ANGLES], axis=1))
    for key, column in (("score", _SCORE), ("instance", _INSTANCE)):
        if column in columns:
            points[key] = columns[column]
    return points | ({"tomogram": columns["tomogram"]} if "tomogram" in columns else {})


def wrote_stacks(tables: Sequence[Table], particles: Table, convention: str) -> Literal["yes", "no", "maybe"]:
    """Whether the coordinates are those of Warp's export of 2D stacks.

    Warp's own marks are the stacks' names, and tomograms called NAME.tomostar whose particles are called NAME/1: RELION
    calls a stack 1_stack2d.mrcs, and a particle as the tomogram with the number behind. The answer is "maybe" if the
    marks of both programs are there, or if tomograms of 2D stacks have Warp's names and nothing else decides it.
    """
    if convention not in ("any", "warp"):
        return "no"
    tomograms, images = particles.columns.get(_NAME, []), particles.columns.get(_IMAGE, [])
    names = particles.columns.get(_PARTICLE, [])
    flat = any(table.columns.get(_FLAT, [""])[:1] == ["1"] for table in tables)
    if convention == "warp":
        return "yes" if flat or pixels_of_stacks(particles) is not None else "no"
    items = bool(tomograms) and all(name.endswith(_ITEM) for name in tomograms)
    pairs = list(zip(tomograms, names, strict=False))
    by_warp = items and bool(pairs) and all(_is_of(name, tomogram.removesuffix(_ITEM)) for tomogram, name in pairs)
    by_relion = bool(images) and all(image.endswith(("_stack2d.mrcs", "_data.mrc")) for image in images)
    if by_warp or pixels_of_stacks(particles) is not None:
        return "maybe" if by_relion else "yes"
    by_relion = by_relion or (bool(pairs) and all(_is_of(name, tomogram) for tomogram, name in pairs))
    return "maybe" if items and flat and not by_relion else "no"


def pixels_of_stacks(particles: Table) -> Float64 | None:
    """Å (n,), with two decimals, by which Warp calls the particles' stacks; None unless it calls all of them so."""
    named = [_STACK.search(image) for image in particles.columns.get(_IMAGE, [])]
    if not named or None in named:
        return None
    return np.array([float(f"{match[1]}.{match[2]}") for match in named if match is not None])


def _is_of(particle: str, tomogram: str) -> bool:
    """Whether a particle is called by the tomogram's name and a number."""
    name, _, number = particle.rpartition("/")
    return name == tomogram and number.isdigit()


def per_unit(path: Path, values: Float64, frame: Frame) -> Float64:
    """Voxels per unit (z, y, x): 1 for pixels, the shape where all coordinates lie from 0 to 1, as fractions do."""
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        return np.ones(3)
    if frame.shape is None:
        raise InputError(f"{path}: coordinates from 0 to 1, fractions of the tomogram: its shape is needed")
    return np.asarray(frame.shape, dtype=float)
