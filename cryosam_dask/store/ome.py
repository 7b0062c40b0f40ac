"""OME-Zarr 0.5 metadata and ångström coordinates of what the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES


def multiscales(
    name: str,
    variable: str,
    levels: int,
    voxel_size: Sequence[float],
    origin: Sequence[float],
    *,
    sampled: bool = False,
) -> list[dict[str, Any]]:
    """The `multiscales` entry of an image whose level l is `scale{l}/{variable}`.

    A level's voxel is the mean of 2^l voxels along each axis, so its centre lies (2^l − 1)/2 voxels further on; where
    levels are `sampled`, it is the first of them.
    """
    datasets = []
    for level in range(levels):
        step = 1 << level
        scale = [v * step for v in voxel_size]
        shift = 0.0 if sampled else (step - 1) / 2
        translation = [o + v * shift for o, v in zip(origin, voxel_size, strict=True)]
        datasets.append(
            {
                "path": f"{layout.level_group(level)}/{variable}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": scale},
                    {"type": "translation", "translation": translation},
                ],
            }
        )
    axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in AXES]
    return [{"name": name, "axes": axes, "datasets": datasets}]


def put_coordinates(store: RunStore, group: str, ratio: int) -> None:
    """Write ångström coordinates z, y, x of voxels (ratio 1) or cells into a group, so that xarray finds them."""
    for axis, length, size, origin in zip(AXES, store.shape, store.voxel_size, store.origin, strict=True):
        values = geometry.axis_coordinates(length, size, origin, ratio)
        store.put(f"{group}/{axis}", values, (axis,), {"units": "angstrom", "long_name": f"{axis} position"})


def put_token_coordinates(store: RunStore, group: str, ratio: int, tokens: Sequence[int]) -> None:
    """As `put_coordinates`, with the positions of the token grid along each axis beside them.

    The views' arrays are called z, y and x too, so the slices' positions go by `slice_z` and so on.
    """
    for axis, length, size, origin, count in zip(
        AXES, store.shape, store.voxel_size, store.origin, tokens, strict=True
    ):
        units = {"units": "angstrom"}
        store.put(
            f"{group}/slice_{axis}",
            geometry.axis_coordinates(length, size, origin, ratio),
            (f"slice_{axis}",),
            units,
        )
        values = np.asarray(geometry.token_coordinates(length, count, size, origin))
        store.put(f"{group}/token_{axis}", values, (f"token_{axis}",), units)
