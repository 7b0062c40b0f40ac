"""The size of a pixel in the `rlnCoordinateX/Y/Z` of a STAR file.

The first of these that a file states is the scale, for each particle its own (`rlnOpticsGroup`):

1. `rlnImagePixelSize`, in Warp's export of 2D stacks alone (`warp.wrote_stacks`);
2. `rlnTomoTiltSeriesPixelSize`, RELION 4's unbinned pixels;
3. `rlnPixelSize`, as Warp and RELION 3 write it at the particles;
4. `rlnDetectorPixelSize`: Å alone (pytom-match-pick's `extract.py` writes the tomogram's voxel size there), µm with
   `rlnMagnification` (RELION's `metadata_label.h`, Warp 1): Å = detector · 10⁴ / magnification.

A file that states none counts the tomogram's voxels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import SAME_SIZE, same_voxels
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, plausible_voxel, shown
from cryosam_dask.io.points import warp
from cryosam_dask.io.points.base import Float64, Frame
from cryosam_dask.io.star import Table
from cryosam_dask.io.text import numbers

TILT_SERIES, OWN, IMAGE = "rlnTomoTiltSeriesPixelSize", "rlnPixelSize", "rlnImagePixelSize"
DETECTOR, MAGNIFICATION = "rlnDetectorPixelSize", "rlnMagnification"
_GROUP = "rlnOpticsGroup"
_MICROMETRE = 1e4  # Å


def voxels_per_pixel(
    path: Path, tables: Sequence[Table], particles: Table, frame: Frame, convention: str
) -> Float64 | None:
    """Voxels per pixel, (1, 3) or (n, 3) z, y, x of n particles; None where the file does not say what its pixels are.

    tables : of the file; particles : the rows that are read; convention : asked for by the user, or "any"

    `frame.notes` gets a sentence for each doubt. InputError if a size is not plausible, or the tomogram's voxel size is
    not known.
    """
    if not particles.rows():
        return None
    sizes = _sizes(path, tables, particles, frame, convention)
    if sizes is None:
        return None
    for size in np.unique(sizes):
        if not plausible_voxel(size):
            raise InputError(f"{path}: a pixel size of {size:g} Å, which no camera's pixels are")
    if frame.voxel_size is None:
        raise InputError(
            f"{path}: coordinates in pixels of {sizes.min():g} Å: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}"
        )
    known, which = np.unique(sizes, return_inverse=True)  # sizes in files have few decimals
    same = np.array([same_voxels(size, frame.voxel_size, frame.shape) for size in known])[which]
    return np.where(same[:, None], 1.0, sizes[:, None] / np.asarray(frame.voxel_size, dtype=float))


def _sizes(path: Path, tables: Sequence[Table], particles: Table, frame: Frame, convention: str) -> Float64 | None:
    """Å, (1,) or (n,), by what comes first; contradictions are noted."""
    by_warp = warp.wrote_stacks(tables, particles, convention)
    readers: list[tuple[str, Callable[[], Float64 | None]]] = [
        (IMAGE, lambda: None if by_warp == "no" else _of_export(path, tables, particles, frame.notes)),
        (TILT_SERIES, lambda: _stated(path, tables, particles, TILT_SERIES)),
        (OWN, lambda: _stated(path, tables, particles, OWN)),
        (DETECTOR, lambda: _detector(path, tables, particles)),
    ]
    first, chosen = "", None
    for name, read in readers:
        if chosen is None:
            first, chosen = name, read()
            continue
        if first == IMAGE and name == TILT_SERIES and by_warp == "yes":
            continue  # Warp states the unbinned pixel besides
        with contextlib.suppress(InputError):  # what is not taken need not be right
            other = read()
            if other is not None and (np.abs(chosen - other) > SAME_SIZE * chosen).any():
                frame.notes.append(_contradiction(path, first, chosen, name, other))
    return chosen


def _contradiction(path: Path, first: str, chosen: Float64, second: str, other: Float64) -> str:
    """Both readings, and which one is taken."""
    if (first, second) == (IMAGE, TILT_SERIES):
        return (
            f"{path}: read as Warp's export of 2D stacks, in pixels of {_words(chosen)} ({IMAGE}); if RELION wrote the "
            f"coordinates, their pixels are of {_words(other)} ({TILT_SERIES}): then name the format relion4"
        )
    return f"{path}: pixels of {_words(chosen)} by {first}, of {_words(other)} by {second}: the first is taken"


def _stated(path: Path, tables: Sequence[Table], particles: Table, column: str) -> Float64 | None:
    """A column's numbers, (n,) of the particles or (1,) of all; None where no table has it.

    It stands at the particles, or at their optics groups. InputError where it differs between groups, and the
    particles' group is not known.
    """
    if column in particles.columns:
        return numbers(path, column, particles.columns[column])
    groups: dict[str, float] = {}
    values: list[float] = []
    for table in tables:
        if column in table.columns:
            each = numbers(path, column, table.columns[column]).tolist()
            groups |= dict(zip(table.columns.get(_GROUP, []), each, strict=False))
            values += each
    if not values:
        return None
    if max(values) - min(values) <= SAME_SIZE * max(values):  # what differs less is one number, rounded
        return np.array(values[:1])
    own = particles.columns.get(_GROUP)
    if own is None:
        what = "tilt series pixel sizes" if column == TILT_SERIES else f"values of {column}"
        listed = shown(", ".join(f"{value:g}" for value in sorted(set(values))))
        raise InputError(f"{path}: several {what} ({listed}), and particles without {_GROUP}: split the file")
    if strange := sorted(set(own) - set(groups)):
        raise InputError(f"{path}: particles of the optics group {shown(strange[0])}, which has no {column}")
    return np.array([groups[group] for group in own])


def _detector(path: Path, tables: Sequence[Table], particles: Table) -> Float64 | None:
    """Å by the detector's pixels, in µm where there is a magnification."""
    detector = _stated(path, tables, particles, DETECTOR)
    magnification = None if detector is None else _stated(path, tables, particles, MAGNIFICATION)
    if detector is None or magnification is None:
        return detector
    if (magnification <= 0).any():
        raise InputError(f"{path}: {MAGNIFICATION} is {magnification.min():g}, expected a number above 0")
    return np.asarray(detector * _MICROMETRE / magnification)


def _of_export(path: Path, tables: Sequence[Table], particles: Table, notes: list[str]) -> Float64 | None:
    """Å of the images of Warp's 2D stacks, (1,) or (n,); None where neither a column nor their names tell."""
    sizes, named = _stated(path, tables, particles, IMAGE), warp.pixels_of_stacks(particles)
    if sizes is None and named is not None:
        notes.append(f"{path}: Warp's 2D stacks without {IMAGE}: pixels of {_words(named)} by the stacks' names")
        return named
    if sizes is not None and named is not None and (np.abs(named - sizes) > 0.006 + SAME_SIZE * sizes).any():
        notes.append(
            f"{path}: pixels of {_words(sizes)} by {IMAGE}, of {_words(named)} by the names of Warp's stacks: the "
            "first is taken"
        )
    return sizes


def _words(sizes: Float64) -> str:
    least, most = float(sizes.min()), float(sizes.max())
    return f"{least:g} Å" if least == most else f"{least:g} to {most:g} Å"
