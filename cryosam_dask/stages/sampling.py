"""Slices and planes as models get them, read from the store's tomogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import images
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Float32


def read_slices(store: RunStore, axis: Axis, start: int, stop: int, thickness: int) -> Float32:
    """Slices [start, stop) of an axis, (n, rows, columns), each averaged over `thickness` slices around it."""
    reach = thickness // 2
    length = store.shape[geometry.axis_index(axis)]
    low, high = max(start - reach, 0), min(stop + reach, length)
    part: list[slice] = [slice(None)] * 3
    part[geometry.axis_index(axis)] = slice(low, high)
    block = store.read(layout.tomogram(), tuple(part))
    slices = np.ascontiguousarray(geometry.to_view(block, axis), dtype=np.float32)
    return images.average_neighbours(slices, start - low, stop - low, reach)


def standard_slices(store: RunStore, axis: Axis, start: int, stop: int, thickness: int) -> Float32:
    """`read_slices` with the tomogram's mean taken off and divided by its standard deviation."""
    statistics = store.info["statistics"]
    slices = read_slices(store, axis, start, stop, thickness)
    return (slices - np.float32(statistics["mean"])) / np.float32(statistics["std"])


def grey_planes(store: RunStore, axis: Axis, start: int, stop: int, thickness: int) -> NDArray[np.uint8]:
    """Planes [start, stop) of an axis as 8-bit images, stretched between the tomogram's percentiles."""
    statistics = store.info["statistics"]
    planes = read_slices(store, axis, start, stop, thickness)
    return images.to_uint8(planes, statistics["low"], statistics["high"])
