"""Whether a mask is that of a particle, or of a part of a structure that goes on: a membrane, a filament, a tube."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.types import Bool

LONG_NM = 40.0
"""Extent in nanometres below which a mask may always be a particle's."""

SLENDER = 5.5
"""How many times as long as thick a mask must be. Rods and hollow bodies that are particles reach five."""

WIDE = 3.0
"""A mask is flat, as of a sheet, if its second extent too is so many times its thickness; else it is a thread."""

SAMPLE = 20_000
"""Voxels of a mask that its axes are found from, at most."""


class Extent(NamedTuple):
    """How far a mask goes, in nanometres.

    length, width : along its first and second principal axis; thickness : diameter of the largest ball inside
    """

    length: float
    width: float
    thickness: float

    @property
    def form(self) -> Literal["compact", "thread", "sheet"]:
        """Whether it is longer and more slender than particles are, and if so whether it is flat."""
        if self.length < LONG_NM or self.length < SLENDER * self.thickness:
            return "compact"
        return "sheet" if self.width >= WIDE * self.thickness else "thread"


def extent(mask: Bool, voxel_size: tuple[float, float, float]) -> Extent:
    """Measure a mask (z, y, x) that is not empty; voxel_size : ångström.

    The length and width are those of the mask along the principal axes of its voxels. The thickness follows from the
    distance transform of the mask with its cavities filled: a shell that is closed, or has small windows, is not thin.
    """
    mask = _filled(mask)
    spacing = np.asarray(voxel_size, float) / 10
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)
    step = float(spacing.mean())
    # the distance is to the centre of the nearest voxel outside, half a voxel beyond the surface
    thickness = max(2 * float(inside.max()) - step, step)
    every = np.flatnonzero(mask)
    places = np.stack(np.unravel_index(every[:: 1 + len(every) // SAMPLE], mask.shape), 1) * spacing
    length, width, _ = _extents(places) + step
    return Extent(float(length), float(width), thickness)


def _filled(mask: Bool) -> Bool:
    """The mask with the voxels that it surrounds in the planes of at least two axes. A tube's are so in one."""
    surrounded = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        for plane, out in zip(np.moveaxis(mask, axis, 0), np.moveaxis(surrounded, axis, 0), strict=True):
            out += ndimage.binary_fill_holes(plane)
    filled: Bool = mask | (surrounded >= 2)
    return filled


def _extents(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) how far places (n, 3) reach along their principal axes, the one of the largest variance first."""
    centred = places - places.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    along: NDArray[np.float64] = np.ptp(centred @ axes[:, ::-1], axis=0)
    return along
