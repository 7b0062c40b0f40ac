"""Instances as the store keeps them: bounding boxes, packed bits and scores, one group of arrays per unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box
from cryosam_dask.kernels.instance import pack, unpack
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Bool, Float32


@dataclass(frozen=True)
class StoredInstances:
    """The instances of one group.

    Attributes
    ----------
    prompt : (n,) index of each one's prompt; box : (n, 6) z0 y0 x0 z1 y1 x1, the last ones excluded
    bits : packed masks one after another; offset : (n + 1,) where each begins
    size : (n,) voxels; quality : (n,) the segmenter's score; similarity : (n,) of its mean feature to the query
    """

    prompt: NDArray[np.int64]
    box: NDArray[np.int64]
    bits: NDArray[np.uint8]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    quality: Float32
    similarity: Float32

    def mask(self, index: int) -> Bool:
        """The mask of one instance in its box."""
        shape = tuple(int(n) for n in self.box[index, 3:] - self.box[index, :3])
        return unpack(self.bits[self.offset[index] : self.offset[index + 1]], [shape])[0]


_DIMS = {
    "prompt": ("instance",),
    "box": ("instance", "bound"),
    "bits": ("byte",),
    "offset": ("edge",),
    "size": ("instance",),
    "quality": ("instance",),
    "similarity": ("instance",),
}


def as_box(box: Array) -> Box:
    """(6,) bounds as (start, stop) per axis."""
    z0, y0, x0, z1, y1, x1 = (int(v) for v in box)
    return (z0, z1), (y0, y1), (x0, x1)


def collect(
    prompts: Sequence[int],
    boxes: Sequence[Sequence[int]],
    masks: Sequence[Bool],
    quality: Sequence[float],
    similarity: Sequence[float],
) -> StoredInstances:
    """Pack instances given one by one."""
    return StoredInstances(
        np.asarray(prompts, np.int64),
        np.asarray(boxes, np.int64).reshape(-1, 6),
        pack(masks),
        np.cumsum([0, *(-(-m.size // 8) for m in masks)]).astype(np.int64),
        np.asarray([int(m.sum()) for m in masks], np.int64),
        np.asarray(quality, np.float32),
        np.asarray(similarity, np.float32),
    )


def write(store: RunStore, path: str, instances: StoredInstances) -> None:
    for name, dims in _DIMS.items():
        store.put(f"{path}/{name}", getattr(instances, name), dims)


def read(store: RunStore, path: str) -> StoredInstances:
    return StoredInstances(**{name: store.read(f"{path}/{name}") for name in _DIMS})
