"""Shape of one mask: size, moments, surface. Pure functions of a mask in its box.

Masks are (z, y, x) bool; `spacing` is the voxel's sides along z, y, x in any unit of length, which results then have.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import SphericalVoronoi

from cryosam_dask.types import Bool, Point

Float64 = NDArray[np.float64]
Step = tuple[int, int, int]


class Moments(NamedTuple):
    """Moments of a mask: voxels, centre of mass (z, y, x) in voxels of its box, covariance (3, 3) in length²."""

    voxels: int
    centre: Float64
    covariance: Float64


def moments(mask: Bool, spacing: Point) -> Moments:
    """Zeroth to second moments; a voxel counts as the box that it is, not as a point.

    All of them follow from the mask's three projections, so that no list of its voxels is made.
    """
    flat = [mask.sum(axis=axis, dtype=np.int64) for axis in range(3)]
    lines = [flat[1].sum(1), flat[0].sum(1), flat[0].sum(0)]
    count = int(lines[0].sum())
    places = [np.arange(n) for n in mask.shape]
    centre = np.array([line @ at for line, at in zip(lines, places, strict=True)]) / count
    off = [(at - c) * s for at, c, s in zip(places, centre, spacing, strict=True)]
    covariance = np.diag([line @ o**2 / count + s**2 / 12 for line, o, s in zip(lines, off, spacing, strict=True)])
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        covariance[a, b] = covariance[b, a] = off[a] @ flat[axis] @ off[b] / count
    return Moments(count, centre, covariance)


def principal_axes(covariance: Float64) -> Float64:
    """Full lengths of the three axes, longest first, of the solid ellipsoid that has this covariance.

    A solid ellipsoid of half axis a has the variance a²/5 along it.
    """
    return np.asarray(2 * np.sqrt(5 * np.clip(np.linalg.eigvalsh(covariance)[::-1], 0, None)), np.float64)


@lru_cache(maxsize=16)
def _directions(spacing: Point) -> tuple[tuple[Step, float], ...]:
    """The 13 directions to neighbouring voxels, and of each its weight per length of a step.

    A direction weighs as much as the part of the sphere that is nearer to it, or to its opposite, than to any other.
    """
    near = (-1, 0, 1)
    steps = [(z, y, x) for z, y, x in itertools.product(near, near, near) if any((z, y, x))]
    vectors = np.array(steps) * np.array(spacing)
    lengths = np.linalg.norm(vectors, axis=1)
    shares = SphericalVoronoi(vectors / lengths[:, None]).calculate_areas() / (4 * math.pi)
    return tuple(
        (step, float(2 * share / length))
        for step, share, length in zip(steps, shares, lengths, strict=True)
        if step > (0, 0, 0)
    )


def surface_area(mask: Bool, spacing: Point) -> float:
    """Surface area by Crofton's formula: how often lines of 13 directions cross the surface.

    A = 2 V Σ_d w_d n_d / l_d, with V a voxel's volume, n_d the pairs of voxels one step along d of which one is in the
    mask, l_d the step's length, and w_d the direction's weight. After Lang, Ohser and Hilfer, J. Microsc. 203 (2001).
    On balls of radius 5 voxels and more it is right within 1 %, and 2 % low at radius 3; marching cubes on a mask
    of 0 and 1 gives 8 % too much at radius 7 and 9 % at 25. What the tomogram's border cuts off counts as surface.
    """
    padded = np.pad(mask, 1)
    total = 0.0
    for step, weight in _directions(spacing):
        here = tuple(slice(max(k, 0), n + min(k, 0)) for k, n in zip(step, padded.shape, strict=True))
        there = tuple(slice(max(-k, 0), n + min(-k, 0)) for k, n in zip(step, padded.shape, strict=True))
        total += weight * np.count_nonzero(padded[here] != padded[there])
    return 2 * math.prod(spacing) * total


def sphericity(volume: float, area: float) -> float:
    """π^(1/3) (6 V)^(2/3) / A: 1 for a ball, less for anything else (Wadell, 1935)."""
    return math.pi * equivalent_diameter(volume) ** 2 / area


def equivalent_diameter(volume: float) -> float:
    """Diameter of the ball of this volume."""
    return float((6 * volume / math.pi) ** (1 / 3))


def boundary(mask: Bool) -> NDArray[np.int32]:
    """(n, 3) voxels of the mask, in its box, of which a face looks at a voxel outside of it or out of the box."""
    inner = np.zeros_like(mask)
    if min(mask.shape) > 2:
        core = mask[1:-1, 1:-1, 1:-1].copy()
        for axis in range(3):
            for step in (-1, 1):
                core &= mask[tuple(slice(1 + step * (i == axis), n - 1 + step * (i == axis))
                                   for i, n in enumerate(mask.shape))]  # fmt: skip
        inner[1:-1, 1:-1, 1:-1] = core
    return np.argwhere(mask & ~inner).astype(np.int32)
