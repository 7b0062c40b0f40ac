"""Particle densities from geometry: each shape is a signed distance, negative inside, with a fixed inner texture."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cryosam_dask.simulate.families import Float64, member, union_of_balls
from cryosam_dask.simulate.species import SHAPES, Species
from cryosam_dask.types import Float32

# (z, y, x, radius) in units of the particle's rough diameter
_RIBOSOME_LARGE = np.array([
    (0.0, 0.0, -0.12, 0.31), (0.16, 0.18, -0.10, 0.17), (-0.20, 0.12, -0.14, 0.16), (0.05, -0.24, -0.16, 0.15),
    (0.28, -0.08, -0.14, 0.10), (-0.05, 0.33, -0.16, 0.08),
])  # fmt: skip
_RIBOSOME_SMALL = np.array([
    (-0.16, 0.0, 0.27, 0.15), (0.0, 0.06, 0.29, 0.14), (0.17, 0.02, 0.28, 0.12), (0.28, -0.06, 0.24, 0.10),
    (-0.26, -0.10, 0.25, 0.09),
])  # fmt: skip
_TETRAMER = np.array([
    (0.16, 0.16, 0.16, 0.25), (0.16, -0.16, -0.16, 0.25), (-0.16, 0.16, -0.16, 0.25), (-0.16, -0.16, 0.16, 0.25),
])  # fmt: skip


@dataclass(frozen=True)
class Template:
    """One particle on a cubic grid of odd side, its mask's centre of mass at the middle voxel.

    density : (n, n, n) float32, 0 in the solvent, about `Species.density` inside
    occupancy : (n, n, n) float32, 0 outside to 1 inside of the outline that a person would draw (channels and
        clefts too narrow to see are inside); the outline is at 0.5
    radius : voxels, of the bounding sphere
    """

    density: Float32
    occupancy: Float32
    radius: float


def _barrel(points: Float64) -> tuple[Float64, Float64]:
    """Four rings stacked along z: length 1, width 0.74, a channel that widens inside and is narrow at the ends."""
    z, rho = points[0], np.hypot(points[1], points[2])
    groove = 0.035 * np.cos(8 * np.pi * z)  # the rings' outer profile
    outer = np.maximum(rho - (0.35 - groove), np.abs(z) - 0.5)
    channel = 0.10 + 0.05 * np.cos(4 * np.pi * z)
    return np.maximum(outer, channel - rho), outer


def _distances(shape: str, seed: int, points: Float64) -> tuple[Float64, Float64]:
    """Signed distance to the density's surface and to the visible outline, at points (3, …) in rough diameters."""
    if shape not in SHAPES:
        return member(shape, seed)(points)
    if shape == "ribosome":
        large, small = union_of_balls(points, _RIBOSOME_LARGE), union_of_balls(points, _RIBOSOME_SMALL)
        both = np.minimum(large, small)
        return both, both
    if shape == "barrel":
        return _barrel(points)
    if shape == "tetramer":
        surface = union_of_balls(points, _TETRAMER)
        return surface, np.minimum(surface, union_of_balls(points, np.array([(0.0, 0.0, 0.0, 0.28)])))
    scaled: Float64 = np.sqrt((points[0] / 0.5) ** 2 + (points[1] / 0.42) ** 2 + (points[2] / 0.36) ** 2)
    ellipsoid: Float64 = (scaled - 1) * 0.42
    return ellipsoid, ellipsoid


@lru_cache(maxsize=256)
def _frame(shape: str, seed: int) -> tuple[tuple[float, float, float], float]:
    """Centre of mass of the outline, and the bounding sphere's radius about it, in rough diameters."""
    if shape in SHAPES:
        axes = [np.linspace(-0.75, 0.75, 101)] * 3
    else:  # first coarse, to see how far it reaches
        axis = np.linspace(-1.8, 1.8, 46)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
        rough = points[:, _distances(shape, seed, points)[1] < 0.05]
        axes = [np.linspace(low, high, 61) for low, high in zip(rough.min(1) - 0.05, rough.max(1) + 0.05, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    inside = points[:, _distances(shape, seed, points)[1] < 0]
    centre = inside.mean(axis=1)
    radius = float(np.sqrt(((inside - centre[:, None]) ** 2).sum(axis=0)).max())
    return (float(centre[0]), float(centre[1]), float(centre[2])), radius


def _texture(name: str, nanometres: Float64) -> Float64:
    """A fixed, smooth variation of the density (deviation about 1) with features of 3 to 8 nm, as domains have."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    waves = rng.normal(size=(24, 3))
    waves *= (2 * np.pi / rng.uniform(3.0, 8.0, 24) / np.linalg.norm(waves, axis=1))[:, None]
    phases = rng.uniform(0, 2 * np.pi, 24)
    total: Float64 = np.zeros(nanometres.shape[1:])
    for wave, phase in zip(waves, phases, strict=True):
        total += np.cos(np.tensordot(wave, nanometres, axes=1) + phase)
    total /= np.sqrt(12.0)  # 24 cosines, each of variance 1/2
    return total


def template(species: Species, voxel_size: float) -> Template:
    """The species sampled at `voxel_size` ångström; not for density maps, see `maps.map_template`."""
    voxel = voxel_size / 10
    radius = species.diameter / 2 / voxel
    half = int(np.ceil(radius)) + 3  # room for the soft edge, and one voxel for a shift of the centre
    axis = np.arange(-half, half + 1) * voxel
    nanometres = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    centre, bound = _frame(species.shape, species.seed)
    unit = species.diameter / 2 / bound  # nanometres per rough diameter
    points = nanometres / unit + np.asarray(centre)[:, None, None, None]
    surface, outline = _distances(species.shape, species.seed, points)
    softness = max(0.3, 0.35 * voxel)
    density = species.density / (1 + np.exp(np.clip(surface * unit / softness, -30, 30)))
    name = species.shape if species.shape in SHAPES else f"{species.shape} {species.seed}"
    density *= 1 + 0.25 * np.clip(_texture(name, nanometres), -2, 2)
    occupancy = np.clip(0.5 - outline * unit / voxel, 0, 1)
    return Template(density.astype(np.float32), occupancy.astype(np.float32), radius)
