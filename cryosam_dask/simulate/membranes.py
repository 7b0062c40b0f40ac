"""Membranes as surfaces: two leaflets at a fixed distance from a middle that is a vesicle, a sheet, or two sheets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate.placement import LEAFLET_NM, MEMBRANE_HALF_NM
from cryosam_dask.simulate.scene import TRIES, Float64, Scene
from cryosam_dask.simulate.structures import Structure
from cryosam_dask.types import Bool, Float32

LEAFLET_DENSITY = np.float32(0.7)  # to the solvent, relative to that of a protein
_COARSE = 3  # voxels of the blocks by which it is checked that two structures don't touch
_REACH_NM = 8.0  # from a membrane's middle, beyond which its density is nothing


@dataclass(frozen=True)
class Surface:
    """The middle of a membrane.

    distance : open grids z, y, x in nanometres → distance to it in nanometres, float32
    low, high : (3,) the box in nanometres that holds it
    """

    distance: Callable[[Float32, Float32, Float32], Float32]
    low: Float64
    high: Float64


def leaflets(distance: Float32, voxel: float) -> Float32:
    """Density at a distance (nm) from the middle of a bilayer: a Gaussian for each leaflet's head groups."""
    width = np.float32(max(0.8, 0.5 * voxel))
    both: Float32 = np.exp(-0.5 * np.square((distance - np.float32(LEAFLET_NM)) / width))
    both += np.exp(-0.5 * np.square((distance + np.float32(LEAFLET_NM)) / width))
    return LEAFLET_DENSITY * both


def _waves(rng: np.random.Generator, shortest: float, longest: float) -> tuple[Float32, Float32]:
    """Three random wave vectors (3, 3), radians per unit of length, and their phases."""
    vectors = rng.normal(size=(3, 3))
    vectors *= (2 * np.pi / rng.uniform(shortest, longest, 3) / np.linalg.norm(vectors, axis=1))[:, None]
    return vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, 3).astype(np.float32)


def vesicle(structure: Structure, extent: Float64, rng: np.random.Generator) -> Surface:
    """A closed surface about a sphere, whose radius varies by a few percent with the direction."""
    radius = np.float32(rng.uniform(*structure.sizes))
    centre = rng.uniform(-0.3 * radius, extent + 0.3 * radius).astype(np.float32)
    vectors, phases = _waves(rng, 2.0, 4.0)  # the directions are points of the unit sphere
    height = np.float32(rng.uniform(0.0, 0.04))

    def distance(z: Float32, y: Float32, x: Float32) -> Float32:
        z, y, x = z - centre[0], y - centre[1], x - centre[2]
        length = np.sqrt(z * z + y * y + x * x) + np.float32(1e-3)
        bumps = sum(np.sin((v[0] * z + v[1] * y + v[2] * x) / length + p) for v, p in zip(vectors, phases, strict=True))
        return np.asarray(length - radius * (1 + height * bumps))

    reach = 1.15 * float(radius) + _REACH_NM
    return Surface(distance, centre.astype(np.float64) - reach, centre.astype(np.float64) + reach)


def sheet(height: float, extent: Float64, rng: np.random.Generator, *, spacing: float = 0.0) -> Surface:
    """A wavy plane through the volume, at 45° or more to the plane of y and x, where the missing wedge leaves it
    visible; or two of them, `spacing` nanometres apart. The waves' slopes are so small that a vertical distance
    differs from the shortest by some percent."""
    elevation, azimuth = rng.uniform(-np.pi / 4, np.pi / 4), rng.uniform(0, 2 * np.pi)
    normal = np.array([np.sin(elevation), np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)])
    normal = normal.astype(np.float32)
    through = (rng.uniform(0.2, 0.8, 3) * extent).astype(np.float32)
    vectors, phases = _waves(rng, 25 * height, 60 * height)
    vectors -= np.outer(vectors @ normal, normal)

    def distance(z: Float32, y: Float32, x: Float32) -> Float32:
        z, y, x = z - through[0], y - through[1], x - through[2]
        away = normal[0] * z + normal[1] * y + normal[2] * x
        for v, p in zip(vectors, phases, strict=True):
            away += np.float32(height / 3) * np.sin(v[0] * z + v[1] * y + v[2] * x + p)
        return np.asarray(np.abs(away) - np.float32(spacing / 2) if spacing else away)

    return Surface(distance, np.full(3, -np.inf), np.full(3, np.inf))


def _draw(scene: Scene, surface: Surface, kind: str) -> None:
    padded, inner, outer = scene.window(surface.low, surface.high)
    distance = surface.distance(*scene.grid(padded))
    near = np.abs(distance) < _REACH_NM
    scene.density[padded][near] += leaflets(distance[near], scene.voxel)
    scene.number(kind, np.abs(distance[inner]) <= MEMBRANE_HALF_NM, outer)


def _is_free(scene: Scene, surface: Surface) -> bool:
    """Whether the surface crosses the volume and is apart from all structures there, by blocks of voxels."""
    _, _, outer = scene.window(surface.low, surface.high)
    z, y, x = (slice(s.start + o, s.stop + o) for s, o in zip(outer, scene.offset, strict=True))
    grid = scene.grid((z, y, x))
    if any(g.size == 0 for g in grid):
        return False
    half = np.float32((_COARSE - 1) / 2 * scene.voxel)  # distances are of the middles of blocks
    distance = surface.distance(grid[0][::_COARSE] + half, grid[1][::_COARSE] + half, grid[2][::_COARSE] + half)
    near = np.abs(distance) < MEMBRANE_HALF_NM + (_COARSE + 0.5) * scene.voxel
    taken: Bool = np.logical_or(scene.labels[outer] > 0, scene.lumens[outer])
    taken = np.pad(taken, [(0, -n % _COARSE) for n in taken.shape])
    (d, h, w), n = near.shape, _COARSE
    taken = np.any(taken.reshape(d, n, h, n, w, n), axis=(1, 3, 5))
    return bool(near.sum() >= 20 and not (near & taken).any())


def add_membranes(scene: Scene, structure: Structure, rng: np.random.Generator) -> None:
    """Draw the membranes, apart from what has been drawn. Raises SettingsError when they don't fit."""
    for i in range(structure.count):
        for _ in range(TRIES):
            if structure.kind == "vesicle":
                surface = vesicle(structure, scene.extent, rng)
            elif structure.kind == "sheet":
                surface = sheet(rng.uniform(*structure.sizes), scene.extent, rng)
            else:
                surface = sheet(5.0, scene.extent, rng, spacing=rng.uniform(*structure.sizes))
            if _is_free(scene, surface):
                _draw(scene, surface, structure.kind)
                break
        else:
            raise does_not_fit(scene, structure, i)


def does_not_fit(scene: Scene, structure: Structure, placed: int) -> SettingsError:
    """The error for structures that there is no room for."""
    return SettingsError(
        f"simulation: only {placed} of {structure.count} structures of kind {structure.kind} fit in "
        f"{scene.settings.shape} voxels; ask for fewer structures or a larger shape"
    )
