"""Density maps of particles from files, for the simulator."""

from __future__ import annotations

from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import one_side
from cryosam_dask.io.frame import in_angstrom
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.simulate.maps import LARGEST_SIDE, DensityMap, density_map


def read_density_map(path: str | Path, *, voxel_size: float | None = None, level: float | None = None) -> DensityMap:
    """A particle's density from a file of any format of tomograms, as `simulate.density_map` takes it.

    voxel_size : Å, instead of the file's own; level : of the outline, in the file's own units, else found

    Raises InputError, one line, for a file that can't be read, is too large, tells no voxel size or has voxels that are
    no cubes, and for what `density_map` refuses.
    """
    source = open_tomogram(path, voxel_size=voxel_size)
    side = one_side(source.voxel_size, source.shape)
    if side is None:
        found = in_angstrom(source.voxel_size)
        raise InputError(f"{path}: expected a density map with voxels that are cubes, found {found}")
    if max(source.shape) > LARGEST_SIDE:
        raise InputError(
            f"{path}: expected a density map of {LARGEST_SIDE} voxels or fewer a side, "
            f"found {source.shape}; bin or cut it"
        )
    depth, height, width = source.shape
    values = source.read((slice(0, depth), slice(0, height), slice(0, width)))
    try:
        return density_map(values, side, level)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
