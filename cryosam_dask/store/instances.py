"""Instances as the store keeps them: bounding boxes, packed bits and scores, one group of arrays per unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box
from cryosam_dask.kernels.instance import pack, unpack
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Bool, Float32

_READERS = 8

KEPT_BYTES = 16 << 20
"""Packed masks that `Masks` keeps."""

RIVAL = "rival"
"""Array of a group, where a query has negatives: (n,) similarity of each instance to the most similar of them."""


@dataclass(frozen=True)
class Measured:
    """The instances of one group, without their masks.

    Attributes
    ----------
    prompt : (n,) index of each one's prompt; box : (n, 6) z0 y0 x0 z1 y1 x1, the last ones excluded
    size : (n,) voxels; quality : (n,) the segmenter's score; similarity : (n,) of its mean feature to the query
    """

    prompt: NDArray[np.int64]
    box: NDArray[np.int64]
    size: NDArray[np.int64]
    quality: Float32
    similarity: Float32


@dataclass(frozen=True)
class StoredInstances(Measured):
    """The instances of one group with their masks.

    Attributes
    ----------
    bits : packed masks one after another; offset : (n + 1,) where each begins
    """

    bits: NDArray[np.uint8]
    offset: NDArray[np.int64]

    def mask(self, index: int) -> Bool:
        """The mask of one instance in its box."""
        return _unpacked(self.bits, self.offset, self.box, index)


class Masks:
    """Masks of the instances under a place of the store, read when asked for.

    All boxes are kept, and the packed masks of the groups that were asked for last, `kept` bytes of them.
    """

    def __init__(self, store: RunStore, where: str, kept: int = KEPT_BYTES) -> None:
        self._store, self._where, self._kept = store, where, kept
        self._places: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0

    def box(self, group: int, index: int) -> Box:
        """The box of an instance."""
        return as_box(self._place(group)[0][index])

    def mask(self, group: int, index: int) -> Bool:
        """The mask of an instance in its box."""
        boxes, offset = self._place(group)
        bits = self._bits.pop(group, None)
        if bits is None:
            bits = self._store.read(layout.instance_array(self._where, group, "bits"))
            self._bytes += bits.nbytes
            while self._bits and self._bytes > self._kept:
                self._bytes -= self._bits.pop(next(iter(self._bits))).nbytes
        self._bits[group] = bits  # the last in the order that they are given up in
        return _unpacked(bits, offset, boxes, index)

    def union(self, places: NDArray[np.int64]) -> tuple[Bool, Box]:
        """The union of instances in its box; places : (n > 0, 2) group and index of each."""
        rows = places.tolist()
        if len(rows) == 1:
            return self.mask(*rows[0]), self.box(*rows[0])
        boxes = [self.box(*row) for row in rows]
        z, y, x = ((min(box[i][0] for box in boxes), max(box[i][1] for box in boxes)) for i in range(3))
        out = np.zeros([b - a for a, b in (z, y, x)], bool)
        for row, box in zip(rows, boxes, strict=True):
            there = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(box, (z, y, x), strict=True))
            out[there] |= self.mask(*row)
        return out, (z, y, x)

    def _place(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if group not in self._places:
            box, offset = (layout.instance_array(self._where, group, array) for array in ("box", "offset"))
            self._places[group] = (self._store.read(box), self._store.read(offset))
        return self._places[group]


def _unpacked(bits: NDArray[np.uint8], offset: NDArray[np.int64], boxes: NDArray[np.int64], index: int) -> Bool:
    shape = tuple(int(n) for n in boxes[index, 3:] - boxes[index, :3])
    return unpack(bits[offset[index] : offset[index + 1]], [shape])[0]


_DIMS = {
    "prompt": ("instance",),
    "box": ("instance", "bound"),
    "bits": ("byte",),
    "offset": ("edge",),
    "size": ("instance",),
    "quality": ("instance",),
    "similarity": ("instance",),
}


ARRAYS = tuple(_DIMS)
"""The arrays of a group."""


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
        prompt=np.asarray(prompts, np.int64),
        box=np.asarray(boxes, np.int64).reshape(-1, 6),
        bits=pack(masks),
        offset=np.cumsum([0, *(-(-m.size // 8) for m in masks)]).astype(np.int64),
        size=np.asarray([int(m.sum()) for m in masks], np.int64),
        quality=np.asarray(quality, np.float32),
        similarity=np.asarray(similarity, np.float32),
    )


def write(store: RunStore, path: str, instances: StoredInstances) -> None:
    for name, dims in _DIMS.items():
        store.put(layout.member(path, name), getattr(instances, name), dims)


def read(store: RunStore, path: str) -> StoredInstances:
    return StoredInstances(**{name: store.read(layout.member(path, name)) for name in _DIMS})


def read_rows(
    store: RunStore, where: str, rows: Iterable[tuple[int, int, int]]
) -> Iterator[tuple[int, StoredInstances, int]]:
    """The group of each of some instances under a place of the store, read once; rows : prompt, group, index in it."""
    groups: dict[int, StoredInstances] = {}
    for prompt, number, index in rows:
        if number not in groups:
            groups[number] = read(store, layout.group(where, number))
        yield prompt, groups[number], index


def read_measured(store: RunStore, path: str) -> Measured:
    return Measured(**{field.name: store.read(layout.member(path, field.name)) for field in fields(Measured)})


def read_all_measured(store: RunStore, paths: Sequence[str]) -> list[Measured]:
    """`read_measured` of several groups: a few at a time, since each of their small arrays is waited for."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="instances") as pool:
        return list(pool.map(lambda path: read_measured(store, path), paths))
