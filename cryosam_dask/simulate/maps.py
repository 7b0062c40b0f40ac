"""Density maps as species: normalised, resampled to the tomogram's voxel size, and centred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.errors import InputError
from cryosam_dask.simulate.shapes import Template
from cryosam_dask.simulate.species import MAP, Species
from cryosam_dask.types import Bool, Float32

LARGEST_SIDE = 512
"""Voxels of a map's side; larger ones are refused, as memory goes with the cube."""


@dataclass(frozen=True)
class DensityMap:
    """A particle's density, (z, y, x).

    data : float32, 0 in the solvent, 1 on average inside the outline
    voxel_size : ångström
    outline : bool, the particle, with cavities that it closes on all sides
    centre : (3,) the outline's centre of mass, voxels
    diameter : nanometres, of the sphere about the centre that holds the outline
    """

    data: Float32
    voxel_size: float
    outline: Bool
    centre: tuple[float, float, float]
    diameter: float


def density_map(data: NDArray[Any], voxel_size: float, level: float | None = None) -> DensityMap:
    """A density map from an array (z, y, x) of a particle that is brighter than its solvent.

    The solvent is the median of the map's faces. The outline is the largest connected part above `level` (in the units
    of `data`), by default a quarter of the way from the solvent to the 99.9th percentile; what is darker than the
    solvent or apart from that part is dropped.

    Raises InputError for an array that is no volume, too large, not finite or constant, whose density is dark, or whose
    particle reaches the faces.
    """
    if data.ndim != 3 or min(data.shape) < 8:
        raise InputError(f"density map: expected (z, y, x) of 8 voxels or more, found {data.shape}")
    if max(data.shape) > LARGEST_SIDE:
        raise InputError(
            f"density map: expected {LARGEST_SIDE} voxels or fewer a side, found {data.shape}; bin or cut it"
        )
    if not np.isfinite(data).all():
        raise InputError("density map: expected finite voxels, found NaN or infinite ones")
    values = np.asarray(data, dtype=np.float32)
    faces = np.concatenate([np.take(values, i, axis=axis).ravel() for axis in range(3) for i in (0, -1)])
    solvent = float(np.median(faces))
    peak, pit = float(np.percentile(values, 99.9)) - solvent, solvent - float(np.percentile(values, 0.1))
    if peak <= 0 and pit <= 0:
        raise InputError("density map: expected a particle, found the same value everywhere")
    if pit > peak:
        raise InputError("density map: expected density brighter than the solvent, found it darker; invert the map")
    height = 0.25 * peak if level is None else level - solvent
    if not 0 < height < peak:
        raise InputError(f"density map: expected a level from {solvent:g} to {solvent + peak:g}, found {level:g}")
    body = _largest_part(values - solvent > height)
    if any(np.take(body, i, axis=axis).any() for axis in range(3) for i in (0, -1)):
        raise InputError(
            "density map: expected solvent around the particle, found it at the map's faces; give a larger box"
        )
    return _normalised(values - solvent, body, voxel_size)


def _largest_part(mask: Bool) -> Bool:
    parts, count = ndimage.label(mask)
    if count == 0:
        raise InputError("density map: expected a particle above the level, found none")
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def _normalised(values: Float32, body: Bool, voxel_size: float) -> DensityMap:
    near = ndimage.binary_dilation(body, iterations=2)
    scale = float(values[body].mean())
    data = (np.where(near, np.maximum(values, 0), 0) / scale).astype(np.float32)
    outline = np.asarray(ndimage.binary_fill_holes(body))
    places = np.argwhere(outline)
    centre = places.mean(axis=0)
    reach = float(np.sqrt(((places - centre) ** 2).sum(axis=1)).max()) + 0.5
    middle = (float(centre[0]), float(centre[1]), float(centre[2]))
    return DensityMap(data, voxel_size, outline, middle, 2 * reach * voxel_size / 10)


def map_species(name: str, source: DensityMap, count: int, density: float = 1.0) -> Species:
    """The species of a density map, for `SimulationSettings.species`."""
    return Species(name, MAP, source.diameter, count, density)


def map_template(species: Species, source: DensityMap, voxel_size: float) -> Template:
    """A density map sampled at `voxel_size` ångström."""
    ratio = voxel_size / source.voxel_size
    radius = source.diameter * 10 / 2 / voxel_size
    half = int(np.ceil(radius)) + 3
    axis = np.arange(-half, half + 1) * ratio
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")) + np.asarray(source.centre)[:, None, None, None]

    def sampled(values: Float32) -> Float32:
        if ratio > 1:  # what is finer than the new voxels would show as noise
            values = ndimage.gaussian_filter(values, 0.5 * np.sqrt(ratio**2 - 1), mode="constant")
        return np.asarray(ndimage.map_coordinates(values, grid, order=1, mode="constant", output=np.float32))

    return Template(species.density * sampled(source.data), sampled(source.outline.astype(np.float32)), radius)
