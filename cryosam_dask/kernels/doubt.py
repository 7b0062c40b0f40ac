"""Why a mask may not be one particle: from its shape, and from the density on both sides of its outline.

This needs no model: masks of all segmenters are looked at alike. The limits were chosen on simulated particles of
random shapes, apart and in crowds, at SNR 0.2 to 2: of 621 true masks 2 % look like two and none lacks a border; of 258
masks of two particles that touch 69 % look like two; of 621 masks that were displaced by two thirds of their diameter
83 % lack a border.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask import geometry
from cryosam_dask.types import Bool, Float32

SIDE = 40
"""Voxels of the longest side at which the shape of a mask is looked at."""

MARGIN = 4
"""Voxels around an outline whose density is looked at."""

SMALLEST = 64
"""Voxels of the smallest mask whose shape says anything."""

_NECK = 0.65  # a neck so thin, relative to the thinner of two bodies, separates them
_SECOND = 0.5  # radius of the thinner of two bodies relative to the other, at least
_SOLID = 0.55  # of one body's convex hull the mask fills this share, at least
_STEPS = 20
_CLEAR = 0.9  # share of displaced outlines that a border is clearer than


def two_bodies(mask: Bool) -> bool:
    """Whether a mask in its box has a neck that is much thinner than what it joins, or fills too little of its hull.

    Holes are filled first, those of slices too, so that shells and tubes are as thick as what they enclose. The neck:
    where the mask falls into two when all that is less deep than some depth is cut away; depth is the distance to the
    outline, a little smoothed.
    """
    step = -(-max(mask.shape) // SIDE)
    shape = _filled(np.pad(mask[::step, ::step, ::step], 2))
    if np.count_nonzero(shape) < SMALLEST:
        return False
    return _necked(shape) or _solidity(shape) < _SOLID


def _filled(mask: Bool) -> Bool:
    out: Bool = ndimage.binary_fill_holes(mask)
    for axis in range(3):
        for plane in np.moveaxis(out, axis, 0):
            plane[...] = ndimage.binary_fill_holes(plane)
    return out


def _necked(shape: Bool) -> bool:
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(shape), 0.7) * shape
    deepest = float(depth.max())
    for cut in np.linspace(0, _NECK * deepest, _STEPS):
        parts, count = ndimage.label(depth > cut)
        if count > 1:
            reached = float(np.sort(ndimage.maximum(depth, parts, np.arange(1, count + 1)))[-2])
            if reached >= _SECOND * deepest and cut <= _NECK * reached:
                return True
    return False


def _solidity(shape: Bool) -> float:
    """Share of the convex hull's volume; 1 for a shape that is too flat for a hull."""
    from scipy.spatial import ConvexHull, QhullError

    rim = np.argwhere(shape & ~ndimage.binary_erosion(shape))
    corners = (rim[:, None] + np.array(list(product((-0.5, 0.5), repeat=3)))).reshape(-1, 3)
    try:
        return float(np.count_nonzero(shape) / ConvexHull(corners).volume)
    except QhullError:
        return 1.0


def _displacement(voxels: int) -> int:
    """Voxels by which `has_border` displaces a mask: the diameter of a sphere of its volume."""
    return max(MARGIN, round(2 * geometry.equivalent_radius(voxels)))


def reach_of(voxels: int) -> int:
    """How far around the box of a mask of so many voxels `has_border` looks."""
    return _displacement(voxels) + MARGIN


def has_border(mask: Bool, density: Float32) -> bool:
    """Whether the density changes at a mask's outline more than at the same outline elsewhere around it.

    The change is the mean of two voxels inside less that of two outside. Outlines elsewhere, displaced in 26
    directions, say how much is chance and neighbours: no scale of densities or noise is needed.

    mask : in its box; density : of the box and `reach_of` voxels around it, NaN where nothing is
    known
    """
    padded = np.pad(mask, MARGIN)
    inside = np.argwhere(padded & (ndimage.distance_transform_edt(padded) <= 2))
    away = ndimage.distance_transform_edt(~padded)
    outside = np.argwhere((away > 1) & (away <= 3))
    distance = _displacement(int(mask.sum()))
    ways = [np.array(way) / np.linalg.norm(way) for way in product((-1, 0, 1), repeat=3) if any(way)]

    def change(shift: NDArray[np.float64]) -> float:
        at = distance + np.rint(shift).astype(np.int64)
        return abs(_mean(density, inside + at) - _mean(density, outside + at))

    others = np.array([change(distance * way) for way in ways])
    known = others[np.isfinite(others)]
    own = change(np.zeros(3))
    # an outline that is mostly beyond the tomogram, or has nothing to be compared with, tells nothing
    return not len(known) or not np.isfinite(own) or bool(own > np.quantile(known, _CLEAR))


def _mean(density: Float32, places: NDArray[np.int64]) -> float:
    values = density[tuple(places.T)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if 2 * len(known) > len(values) else np.nan
