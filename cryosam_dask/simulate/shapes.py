"""Densities of particles, computed from signed distances (negative inside) and a fixed inner texture."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.simulate.settings import Species
from cryosam_dask.types import Float32

Float64 = NDArray[np.float64]

# (z, y, x, radius) in units of the particle's rough diameter
_RIBOSOME_LARGE = (
    (0.0, 0.0, -0.12, 0.31), (0.16, 0.18, -0.10, 0.17), (-0.20, 0.12, -0.14, 0.16), (0.05, -0.24, -0.16, 0.15),
    (0.28, -0.08, -0.14, 0.10), (-0.05, 0.33, -0.16, 0.08),
)  # fmt: skip
_RIBOSOME_SMALL = (
    (-0.16, 0.0, 0.27, 0.15), (0.0, 0.06, 0.29, 0.14), (0.17, 0.02, 0.28, 0.12), (0.28, -0.06, 0.24, 0.10),
    (-0.26, -0.10, 0.25, 0.09),
)  # fmt: skip
_TETRAMER = (
    (0.16, 0.16, 0.16, 0.25), (0.16, -0.16, -0.16, 0.25), (-0.16, 0.16, -0.16, 0.25), (-0.16, -0.16, 0.16, 0.25),
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """One particle on a cubic grid of odd side, its mask's centre of mass at the middle voxel.

    density : (n, n, n) float32, 0 in the solvent, about `Species.density` inside
    occupancy : (n, n, n) float32, 0 outside and 1 inside of the outline that an annotator would draw, and 0.5 on it;
        channels and clefts that are too narrow to see count as inside
    radius : voxels, of the bounding sphere
    """

    density: Float32
    occupancy: Float32
    radius: float


def _balls(points: Float64, balls: tuple[tuple[float, float, float, float], ...]) -> Float64:
    distance: Float64 = np.full(points.shape[1:], np.inf)
    for z, y, x, radius in balls:
        d = np.sqrt((points[0] - z) ** 2 + (points[1] - y) ** 2 + (points[2] - x) ** 2) - radius
        np.minimum(distance, d, out=distance)
    return distance


def _barrel(points: Float64) -> tuple[Float64, Float64]:
    """Four rings stacked along z: length 1, width 0.74, a channel that widens inside and is narrow at the ends."""
    z, rho = points[0], np.hypot(points[1], points[2])
    groove = 0.035 * np.cos(8 * np.pi * z)  # the rings' outer profile
    outer = np.maximum(rho - (0.35 - groove), np.abs(z) - 0.5)
    channel = 0.10 + 0.05 * np.cos(4 * np.pi * z)
    return np.maximum(outer, channel - rho), outer


def _distances(shape: str, points: Float64) -> tuple[Float64, Float64]:
    """Signed distance to the density's surface and to the visible outline, at points (3, …) in rough diameters."""
    if shape == "ribosome":
        large, small = _balls(points, _RIBOSOME_LARGE), _balls(points, _RIBOSOME_SMALL)
        both = np.minimum(large, small)
        return both, both
    if shape == "barrel":
        return _barrel(points)
    if shape == "tetramer":
        surface = _balls(points, _TETRAMER)
        return surface, np.minimum(surface, _balls(points, ((0.0, 0.0, 0.0, 0.28),)))
    scaled: Float64 = np.sqrt((points[0] / 0.5) ** 2 + (points[1] / 0.42) ** 2 + (points[2] / 0.36) ** 2)
    ellipsoid: Float64 = (scaled - 1) * 0.42
    return ellipsoid, ellipsoid


@lru_cache(maxsize=16)
def _frame(shape: str) -> tuple[tuple[float, float, float], float]:
    """Centre of mass of the outline, and the bounding sphere's radius about it, in rough diameters."""
    axis = np.linspace(-0.75, 0.75, 101)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    inside = points[:, _distances(shape, points)[1] < 0]
    centre = inside.mean(axis=1)
    radius = float(np.sqrt(((inside - centre[:, None]) ** 2).sum(axis=0)).max())
    return (float(centre[0]), float(centre[1]), float(centre[2])), radius


def _texture(shape: str, nanometres: Float64) -> Float64:
    """A fixed, smooth variation of the density (deviation about 1) with features of 3 to 8 nm, as domains have."""
    rng = np.random.default_rng(zlib.crc32(shape.encode()))
    waves = rng.normal(size=(24, 3))
    waves *= (2 * np.pi / rng.uniform(3.0, 8.0, 24) / np.linalg.norm(waves, axis=1))[:, None]
    phases = rng.uniform(0, 2 * np.pi, 24)
    total: Float64 = np.zeros(nanometres.shape[1:])
    for wave, phase in zip(waves, phases, strict=True):
        total += np.cos(np.tensordot(wave, nanometres, axes=1) + phase)
    total /= np.sqrt(12.0)  # 24 cosines, each of variance 1/2
    return total


def template(species: Species, voxel_size: float) -> Template:
    """Sample the density and the mask of a species on voxels of `voxel_size` ångström."""
    voxel = voxel_size / 10
    radius = species.diameter / 2 / voxel
    half = int(np.ceil(radius)) + 3  # room for the soft edge, and one voxel for a shift of the centre
    axis = np.arange(-half, half + 1) * voxel
    nanometres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    centre, bound = _frame(species.shape)
    unit = species.diameter / 2 / bound  # nanometres per rough diameter
    surface, outline = _distances(species.shape, nanometres / unit + np.asarray(centre)[:, None, None, None])
    softness = max(0.3, 0.35 * voxel)
    density = species.density / (1 + np.exp(np.clip(surface * unit / softness, -30, 30)))
    density *= 1 + 0.25 * np.clip(_texture(species.shape, nanometres), -2, 2)
    occupancy = np.clip(0.5 - outline * unit / voxel, 0, 1)
    return Template(density.astype(np.float32), occupancy.astype(np.float32), radius)
