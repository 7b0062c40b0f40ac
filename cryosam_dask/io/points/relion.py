"""Particle positions as RELION's STAR files; Warp's own columns are read by `warp`.

The conventions are taken from RELION's sources (`particle_set.cpp`, `tomogram_set.cpp`, `reconstruct_tomogram`):

relion4: `rlnCoordinateX/Y/Z`, pixels, zero-based. RELION 4 adds 1 when it reads a position and places the first voxel
    of a reconstruction at 1; RELION 5 does neither, so in both the first voxel's centre is coordinate 0. What is
    written here are voxels of the picked tomogram: where that one is binned, give RELION's import the binning as its
    scale factor. Pixels of which a file states the size (`pixels`) are scaled to the tomogram's voxels when read.
relion5: `rlnCenteredCoordinateX/Y/ZAngst`, Å from the centre of the unbinned tomogram, D/2 pixels from its first voxel
    (`Tomogram::centre`), for odd D too: i · voxel size − D/2 · pixel size for index i of a tomogram of any binning.
    D and the pixel size are `rlnTomoSizeX/Y/Z` and `rlnTomoTiltSeriesPixelSize` of a tomograms.star. Without one,
    D · pixel size is taken to be shape · voxel size: right where the binning divides D.

Refined shifts are applied when read: position − Aᵀ · `rlnOriginX/Y/ZAngst`, A the ZYZ rotation of
`rlnTomoSubtomogramRot/Tilt/Psi` (the identity where these are missing); `rlnOriginX/Y/Z` are the same in pixels.

A particle's orientation is that of its subtomogram and, within it, `rlnAngleRot/Tilt/Psi` (`getMatrix3x3` in
`particle_set.cpp`): read are both as one (`orientation.combined`), written the latter alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import orientation, pixels, stopgap, warp
from cryosam_dask.io.points.base import (
    UNNAMED,
    Columns,
    Float64,
    Frame,
    Part,
    axes_of,
    choose,
    positions,
    rounded,
)
from cryosam_dask.io.points.names import matching
from cryosam_dask.io.star import Table, encode_table, read_tables
from cryosam_dask.io.text import numbers

if TYPE_CHECKING:
    import pandas as pd

Convention = Literal["any", "relion4", "relion5", "warp"]

PIXELS = ["rlnCoordinateZ", "rlnCoordinateY", "rlnCoordinateX"]
CENTRED = ["rlnCenteredCoordinateZAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateXAngst"]
SHIFTS = ["rlnOriginZAngst", "rlnOriginYAngst", "rlnOriginXAngst"]
PIXEL_SHIFTS = ["rlnOriginZ", "rlnOriginY", "rlnOriginX"]
ANGLES = ["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]
PARTICLE_ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
SIZES = ["rlnTomoSizeZ", "rlnTomoSizeY", "rlnTomoSizeX"]
SCORE, INSTANCE, CLASS = "rlnAutopickFigureOfMerit", "rlnTomoParticleId", "rlnClassNumber"
NAME, MICROGRAPH = "rlnTomoName", "rlnMicrographName"
PIXEL_SIZE = pixels.TILT_SERIES
PARTICLES_FILE, TOMOGRAMS_FILE = "rlnTomoParticlesFile", "rlnTomoTomogramsFile"
_WHAT = "points in RELION 5's convention"


def read(path: Path, frame: Frame, convention: Convention = "any") -> Columns:
    """The points of one tomogram in a particles file, or in the particles file that an optimisation set names.

    `convention` is needed if a file has the columns of several conventions. A class is a kind if a kind is asked for;
    otherwise all points are returned, with the column class, since classes are most often states of one particle.

    InputError for a file without coordinates, and for one whose convention needs a voxel size or a shape that isn't
    known.
    """
    tables = read_tables(path)
    sizes = frame.tomograms
    for table in tables:
        if table.has([PARTICLES_FILE]):
            if sizes is None and table.has([TOMOGRAMS_FILE]):
                sizes = _beside(path, table.columns[TOMOGRAMS_FILE][0])
            path = _beside(path, table.columns[PARTICLES_FILE][0])
            tables = read_tables(path)
            break
    if (points := warp.of_m(path, tables, frame, convention)) is not None:
        return points
    if convention == "any" and (points := stopgap.of_star(path, tables, frame)) is not None:
        return points
    table = _particles(path, tables, convention)
    columns: Columns = dict(table.columns)
    name = next((name for name in (NAME, MICROGRAPH) if name in columns), None)
    if name is not None:
        columns = choose(path, columns | {"tomogram": columns[name]}, "tomogram", frame.tomogram, frame.notes)
    if CLASS in columns and frame.kind is not None:
        columns = choose(path, columns | {"kind": columns[CLASS]}, "kind", frame.kind)
    table = Table({key: values for key, values in columns.items() if key not in ("tomogram", "kind")}, True)
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        points = axes_of(_positions(path, tables, table, frame, convention, sizes))
    for key, column in (("score", SCORE), ("instance", INSTANCE), ("class", CLASS)):
        if column in columns:
            points[key] = columns[column]
    points |= orientation.combined(_angles(path, table, PARTICLE_ANGLES), _angles(path, table, ANGLES))
    return points | {key: columns[key] for key in ("tomogram", "kind") if key in columns}


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """RELION 4's file of picks; the tomogram's name is `UNNAMED` if none is known."""
    return _encode([(table, frame.tomogram or UNNAMED, positions(table)) for table, frame in parts], PIXELS)


def encode_centred(parts: Sequence[Part], joint: bool) -> bytes:
    """RELION 5's file of picks; InputError for a frame without a name, voxel size, or the tomogram's extent.

    The tomogram is called as in the frame's tomograms.star, where there is one.
    """
    rows = []
    for table, frame in parts:
        name, extent = frame.name(_WHAT), None
        if frame.tomograms is not None:
            name, extent = _of(_extents(frame.tomograms), name, frame.tomograms)
        half = _half(_WHAT, frame, extent)
        rows.append((table, name, positions(table) * frame.angstrom(_WHAT) - half))
    return _encode(rows, CENTRED)


def listed_names(path: Path, names: Sequence[str]) -> list[str]:
    """The names of tomograms in a tomograms.star; InputError unless it has exactly one for each of them."""
    extents = _extents(path)
    listed = [_of(extents, name, path)[0] for name in names]
    for place, name in enumerate(listed):
        if (first := listed.index(name)) != place:
            both = f"{shown(names[first])} and {shown(names[place])}"
            raise InputError(f"{path}: {both} are both {shown(name)}: say with --tomogram what they are called there")
    return listed


def _encode(rows: Sequence[tuple[pd.DataFrame, str, Float64]], names: Sequence[str]) -> bytes:
    """A file of (picks, tomogram, positions z, y, x); `names` are the positions' columns, z, y, x."""
    import pandas as pd

    tables = []
    for picks, name, places in rows:
        table = pd.DataFrame({NAME: [name] * len(picks)}, dtype=object)
        for axis in (2, 1, 0):
            table[names[axis]] = places[:, axis]
        if orientation.has_angles(picks):
            table[PARTICLE_ANGLES] = orientation.angles_of(picks)
        table[SCORE] = picks["score"].to_numpy(dtype=float)
        table[INSTANCE] = picks["instance"].to_numpy(dtype=np.int64)
        tables.append(table)
    return encode_table(pd.concat(tables, ignore_index=True), NAME)


def _positions(
    path: Path, tables: Sequence[Table], table: Table, frame: Frame, convention: Convention, sizes: Path | None
) -> Float64:
    """(n, 3) z, y, x in voxels."""
    known = frame.voxel_size is not None and (frame.shape is not None or sizes is not None)
    in_pixels = table.has(PIXELS)
    centred = table.has(CENTRED) and (convention == "relion5" or not in_pixels or (known and convention == "any"))
    if centred:
        what = f"{path}: centred coordinates"
        if sizes is None:
            half = _half(what, frame, None)
        else:
            extents = _extents(sizes)
            names = table.columns.get(NAME, [frame.tomogram or ""] * table.rows())
            halves = {name: _half(what, frame, _of(extents, name, sizes)[1]) for name in set(names)}
            half = np.array([halves[name] for name in names]).reshape(-1, 3)
        places = (_numbers(path, table, CENTRED) + half) / frame.angstrom(what)
    else:
        scale = _scale(path, tables, table, frame, convention)
        places = _numbers(path, table, PIXELS)
        if table.has(PIXEL_SHIFTS) and not table.has(SHIFTS):
            places = places - _numbers(path, table, PIXEL_SHIFTS)
        places = places * scale
    return rounded(places - _shifts(path, table, frame))


def _half(what: str, frame: Frame, extent: Float64 | None) -> Float64:
    """Å from the first voxel to the centre (z, y, x); `extent` is the unbinned tomogram's, if known."""
    if extent is not None:
        return np.asarray(extent / 2)
    if frame.voxel_size is None or frame.shape is None:
        raise InputError(f"{what}: in Å from the tomogram's centre, so they need its voxel size and shape")
    half: Float64 = np.asarray(frame.shape, dtype=float) * np.asarray(frame.voxel_size) / 2
    return half


def _extents(path: Path) -> dict[str, Float64]:
    """Name → size in Å (z, y, x) of the unbinned tomograms of a tomograms.star."""
    for table in read_tables(path):
        if table.has([NAME, PIXEL_SIZE, *SIZES]):
            sides = _numbers(path, table, SIZES) * _numbers(path, table, [PIXEL_SIZE])
            if not (np.isfinite(sides).all() and (sides > 0).all()):
                raise InputError(f"{path}: a tomogram of no size")
            return dict(zip(table.columns[NAME], list(sides), strict=True))
    raise InputError(f"{path}: no tomograms: expected a table with {NAME}, {PIXEL_SIZE} and rlnTomoSizeX/Y/Z")


def _of(extents: dict[str, Float64], name: str, path: Path) -> tuple[str, Float64]:
    """The name and the size that a tomograms.star has for a tomogram."""
    matches = matching(name, extents)
    if len(matches) != 1:
        listed = ", ".join(map(shown, list(extents)[:5])) + (", …" if len(extents) > 5 else "")
        several = "several tomograms that could be" if matches else "no tomogram"
        raise InputError(f"{path}: {several} {shown(repr(name))}, there are: {listed or 'none'}")
    return matches[0], extents[matches[0]]


def _beside(path: Path, named: str) -> Path:
    """A file that another names, relative to the folder that RELION ran in: that of `path`, or one above it."""
    folders = list(path.absolute().parents)
    with contextlib.suppress(OSError, ValueError):  # what can't be a path is no file either
        for folder in folders:
            if named and (folder / named).is_file():
                return folder / named
    raise InputError(f"{path}: it names {shown(named)}, which is not there; give the particles file itself")


def _particles(path: Path, tables: Sequence[Table], convention: Convention) -> Table:
    """The first table with positions."""
    wanted = {"relion4": [PIXELS], "relion5": [CENTRED], "warp": [PIXELS]}.get(convention, [PIXELS, CENTRED])
    seen: list[str] = []
    for table in tables:
        if any(table.has(names) for names in wanted):
            return table
        seen += table.columns
    meant = " or ".join(
        "rlnCoordinateX/Y/Z" if names is PIXELS else "rlnCenteredCoordinateX/Y/ZAngst" for names in wanted
    )
    raise InputError(
        f"{path}: no particle coordinates: expected {meant}, found {shown(', '.join(seen)) or 'no columns'}"
    )


def _numbers(path: Path, table: Table, columns: Sequence[str]) -> Float64:
    return np.stack([numbers(path, column, table.columns[column]) for column in columns], axis=1)


def _angles(path: Path, table: Table, names: Sequence[str]) -> Float64:
    """(n, 3) rot, tilt, psi; 0 where the file does not have all three."""
    return _numbers(path, table, names) if table.has(names) else np.zeros((table.rows(), 3))


def _scale(path: Path, tables: Sequence[Table], table: Table, frame: Frame, convention: Convention) -> Float64:
    """Voxels per unit of the file, (3,), (1, 3) or (n, 3) z, y, x: 1 unless the file says what its pixels are."""
    ratio = pixels.voxels_per_pixel(path, tables, table, frame, convention)
    if ratio is not None:
        return ratio
    named = table.columns.get(MICROGRAPH, [])
    if convention == "warp" or (convention == "any" and named and all(name.endswith(".tomostar") for name in named)):
        return warp.per_unit(path, _numbers(path, table, PIXELS), frame)
    return np.ones(3)


def _shifts(path: Path, table: Table, frame: Frame) -> Float64:
    """The refined shifts in voxels (z, y, x), to be subtracted."""
    if not table.has(SHIFTS):
        return np.zeros((table.rows(), 3))
    shifts = _numbers(path, table, SHIFTS)
    if not shifts.any():
        return shifts
    voxel = frame.angstrom(f"{path}: refined shifts in Å")
    if table.has(ANGLES):
        from scipy.spatial.transform import Rotation

        rotation = Rotation.from_euler("ZYZ", _numbers(path, table, ANGLES), degrees=True)
        shifts = rotation.inv().apply(shifts[:, ::-1].copy())[:, ::-1]
    rotated: Float64 = shifts / voxel
    return rotated
