"""Particle positions as RELION's STAR files, read and written with the starfile library.

Two conventions, both taken from RELION's sources (`particle_set.cpp`, `tomogram_set.cpp`, `reconstruct_tomogram`):

relion4: `rlnCoordinateX/Y/Z`, pixels, zero-based. RELION 4 adds 1 when it reads a position and places the first voxel
    of a reconstruction at 1; RELION 5 does neither, so in both the first voxel's centre is coordinate 0. What is
    written here are voxels of the picked tomogram: where that one is binned, give RELION's import the binning as its
    scale factor. A file whose optics table has `rlnTomoTiltSeriesPixelSize` holds unbinned pixels; they are scaled to
    the tomogram's voxels when read.
relion5: `rlnCenteredCoordinateX/Y/ZAngst`, Å from the centre, (i − D/2) · voxel size for index i of D. D/2 is what
    RELION 5's extraction uses (`Tomogram::centre`), for odd D too; the same at every binning.

Refined shifts are applied when read: position − Aᵀ · `rlnOriginX/Y/ZAngst`, A the ZYZ rotation of
`rlnTomoSubtomogramRot/Tilt/Psi` (the identity where these are missing).
"""

from __future__ import annotations

import linecache
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import ASK_VOXEL_SIZE
from cryosam_dask.types import Point, Shape3

if TYPE_CHECKING:
    import pandas as pd

PIXELS = ["rlnCoordinateZ", "rlnCoordinateY", "rlnCoordinateX"]
CENTRED = ["rlnCenteredCoordinateZAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateXAngst"]
SHIFTS = ["rlnOriginZAngst", "rlnOriginYAngst", "rlnOriginXAngst"]
ANGLES = ["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]
SCORE, INSTANCE = "rlnAutopickFigureOfMerit", "rlnTomoParticleId"
NAMES = ["rlnTomoName", "rlnMicrographName"]
PIXEL_SIZE = "rlnTomoTiltSeriesPixelSize"
_DIGITS = 6  # decimals in the file, RELION's own number

Float64 = NDArray[np.float64]


def star_text(
    picks: pd.DataFrame, *, centred: bool, tomogram_name: str, voxel_size: Point | None, shape: Shape3 | None
) -> str:
    """The text of a STAR file of `picks` (z, y, x, score, instance), in voxels; `centred` is RELION 5's convention.

    One table alone, because RELION's coordinate import reads a file's first one.
    """
    import pandas as pd

    positions = picks[["z", "y", "x"]].to_numpy(dtype=float)
    columns = PIXELS
    if centred:
        size, half = _centring(voxel_size, shape, "STAR in RELION 5's convention")
        positions, columns = (positions - half) * size, CENTRED
    table = pd.DataFrame({NAMES[0]: [tomogram_name] * len(picks)})
    for axis in (2, 1, 0):
        table[columns[axis]] = positions[:, axis]
    table[SCORE] = picks["score"].to_numpy(dtype=float)
    table[INSTANCE] = picks["instance"].to_numpy(dtype=np.int64)
    import starfile

    text: str = starfile.to_string({"particles": table}, float_format=f"%.{_DIGITS}f")
    return text


def read_star(
    path: Path, *, voxel_size: Point | None, shape: Shape3 | None, tomogram_name: str | None
) -> dict[str, list[Any]]:
    """Columns z, y, x in voxels, and score and instance where the file has them, unchecked.

    Of several tomograms in one file, `tomogram_name` says which. Raises InputError for a file that is no STAR, has no
    coordinates, or whose convention needs a `voxel_size` or `shape` that is None.
    """
    blocks = _parse(path)
    table = _particles(path, blocks)
    table = _one_tomogram(path, table, tomogram_name)
    known = voxel_size is not None and shape is not None
    if set(CENTRED) <= set(table.columns) and (known or not set(PIXELS) <= set(table.columns)):
        size, half = _centring(voxel_size, shape, f"{path}: centred coordinates")
        positions = _numbers(path, table, CENTRED) / size + half
    else:
        positions = _numbers(path, table, PIXELS) * _binning(path, blocks, table, voxel_size)
    positions = np.round(positions - _shifts(path, table, voxel_size), _DIGITS) + 0.0
    columns: dict[str, list[Any]] = {axis: positions[:, i].tolist() for i, axis in enumerate("zyx")}
    for name, column in (("score", SCORE), ("instance", INSTANCE)):
        if column in table.columns:
            columns[name] = table[column].tolist()
    return columns


def _centring(voxel_size: Point | None, shape: Shape3 | None, what: str) -> tuple[Float64, Float64]:
    if voxel_size is None or shape is None:
        raise InputError(f"{what}: in Å from the tomogram's centre, so they need its voxel size and shape")
    return np.asarray(voxel_size, dtype=float), np.asarray(shape, dtype=float) / 2


def _parse(path: Path) -> dict[str, Any]:
    import starfile

    # The parser reads through linecache, which would serve a stale copy of a file that was rewritten.
    linecache.checkcache(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocks: dict[str, Any] = starfile.read(path, always_dict=True, parse_as_string=NAMES)
    except Exception as err:
        raise InputError(f"{path}: not a readable STAR file: {' '.join(str(err).split())}") from err
    if not blocks:
        raise InputError(f"{path}: not a STAR file: no data block in it")
    return blocks


def _particles(path: Path, blocks: dict[str, Any]) -> pd.DataFrame:
    """The first table with positions; a block of single values is a table of one row."""
    import pandas as pd

    found: list[str] = []
    for block in blocks.values():
        table = pd.DataFrame([block]) if isinstance(block, dict) else block
        if not isinstance(table, pd.DataFrame):
            continue
        columns = set(table.columns)
        if set(PIXELS) <= columns or set(CENTRED) <= columns:
            return table
        found += [str(column) for column in table.columns]
    raise InputError(
        f"{path}: no particle coordinates: expected rlnCoordinateX/Y/Z or rlnCenteredCoordinateX/Y/ZAngst, "
        f"found {', '.join(found) or 'no columns'}"
    )


def _one_tomogram(path: Path, table: pd.DataFrame, tomogram_name: str | None) -> pd.DataFrame:
    column = next((name for name in NAMES if name in table.columns), None)
    names = sorted(set(table[column].astype(str))) if column else []
    if column is None or len(names) < 2:
        return table
    if tomogram_name not in names:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        asked = "say which one" if tomogram_name is None else f"none of them {tomogram_name!r}"
        raise InputError(f"{path}: points of {len(names)} tomograms ({shown}), {asked}")
    return table[table[column].astype(str) == tomogram_name]


def _numbers(path: Path, table: pd.DataFrame, columns: list[str]) -> Float64:
    import pandas as pd

    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(f"{path}: row {bad[0] + 1}: {column} is '{table[column].iloc[bad[0]]}', expected a number")
    return np.stack([pd.to_numeric(table[column]).to_numpy(dtype=np.float64) for column in columns], axis=1)


def _binning(path: Path, blocks: dict[str, Any], table: pd.DataFrame, voxel_size: Point | None) -> Float64:
    """Voxels per pixel of the file (z, y, x): 1 unless the file says that its pixels are the tilt series'."""
    import pandas as pd

    sizes: set[float] = set()
    for block in (table, *blocks.values()):
        if PIXEL_SIZE in block:
            values = block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
            sizes.update(_numbers(path, values, [PIXEL_SIZE]).ravel().tolist())
    if not sizes:
        return np.ones(3)
    if len(sizes) > 1:
        raise InputError(f"{path}: several tilt series pixel sizes ({sorted(sizes)} Å), expected one: split the file")
    if voxel_size is None:
        raise InputError(
            f"{path}: coordinates in pixels of {sizes.pop():g} Å: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}"
        )
    return sizes.pop() / np.asarray(voxel_size, dtype=float)


def _shifts(path: Path, table: pd.DataFrame, voxel_size: Point | None) -> Float64:
    """The refined shifts in voxels (z, y, x), to be subtracted."""
    if not set(SHIFTS) <= set(table.columns):
        return np.zeros((len(table), 3))
    shifts = _numbers(path, table, SHIFTS)
    if not shifts.any():
        return shifts
    if voxel_size is None:
        raise InputError(f"{path}: refined shifts in Å: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}")
    if set(ANGLES) <= set(table.columns):
        from scipy.spatial.transform import Rotation

        rotation = Rotation.from_euler("ZYZ", _numbers(path, table, ANGLES), degrees=True)
        shifts = rotation.inv().apply(shifts[:, ::-1].copy())[:, ::-1]
    rotated: Float64 = shifts / np.asarray(voxel_size, dtype=float)
    return rotated
