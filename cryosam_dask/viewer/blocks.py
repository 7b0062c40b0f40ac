"""The tomogram as bytes: what the viewer shows, read in stored chunks and kept a while.

A stored chunk serves many chunks of the viewer: those of other planes, of the slices beside, of slab averages. So what
was decoded is kept as bytes, a quarter of what is stored, up to a bound.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box, box_slices
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

KEPT_BYTES = 96 << 20
Bytes = NDArray[np.uint8]
Index = tuple[int, ...]


class Kept:
    """Arrays that were asked for last, by their keys, `limit` bytes of them; used by several threads."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._arrays: OrderedDict[Hashable, Bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Bytes | None:
        """The array, which then counts as asked for last."""
        with self._lock:
            if (array := self._arrays.get(key)) is not None:
                self._arrays.move_to_end(key)
            return array

    def put(self, key: Hashable, array: Bytes) -> None:
        """Keep an array, and give up the oldest beyond the limit."""
        with self._lock:
            if (old := self._arrays.pop(key, None)) is not None:
                self._bytes -= old.nbytes
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes


class Turns:
    """Lets one thread at a time work on each of several things, so that what one reads is there for the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, list[int]]] = {}

    @contextmanager
    def of(self, key: Hashable) -> Iterator[None]:
        """A context that other threads with this key wait for."""
        with self._lock:
            lock, users = self._locks.setdefault(key, (threading.Lock(), [0]))
            users[0] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users[0] -= 1
                if not users[0]:
                    del self._locks[key]


@dataclass(frozen=True)
class Blocks:
    """The levels of a run's tomogram as bytes.

    store : the run; limits : densities that become 0 and 255; version : of what the store and the limits say
    """

    store: RunStore
    limits: tuple[float, float]
    version: str
    kept: Kept
    turns: Turns = field(default_factory=Turns)

    def read(self, level: int, box: Box) -> Bytes:
        """Voxels of a level as bytes (z, y, x).

        `StoreError` for a chunk that is missing or damaged; `MissingChunkError` in particular for the former.
        """
        array = self.store.array(layout.tomogram(level))
        chunks = array.chunks
        first: Index = tuple(a // c for (a, _), c in zip(box, chunks, strict=True))
        last: Index = tuple(-(-b // c) for (_, b), c in zip(box, chunks, strict=True))
        with self.turns.of((level, first, last)):
            blocks = self._blocks(level, array, first, last)
        out = np.empty([b - a for a, b in box], np.uint8)
        for index, block in blocks.items():
            low = [i * c for i, c in zip(index, chunks, strict=True)]
            common = [(max(a, o), min(b, o + n)) for (a, b), o, n in zip(box, low, block.shape, strict=True)]
            there = tuple(slice(p - a, q - a) for (p, q), (a, _) in zip(common, box, strict=True))
            out[there] = block[tuple(slice(p - o, q - o) for (p, q), o in zip(common, low, strict=True))]
        return out

    def _blocks(self, level: int, array: RunArray, first: Index, last: Index) -> dict[Index, Bytes]:
        """Stored chunks as bytes: those kept, and the others, read together."""
        indices = list(itertools.product(*(range(a, b) for a, b in zip(first, last, strict=True))))
        blocks = {index: self.kept.get((self.version, level, index)) for index in indices}
        missing = [index for index, block in blocks.items() if block is None]
        if missing:
            chunks = array.chunks
            low = [min(axis) for axis in zip(*missing, strict=True)]
            high = [max(axis) + 1 for axis in zip(*missing, strict=True)]
            z, y, x = ((a * c, min(b * c, n)) for a, b, c, n in zip(low, high, chunks, array.shape, strict=True))
            values = self.bytes_of(np.asarray(array[box_slices((z, y, x))]))
            for index in missing:
                starts = [(i - a) * c for i, a, c in zip(index, low, chunks, strict=True)]
                block = values[tuple(slice(s, s + c) for s, c in zip(starts, chunks, strict=True))].copy()
                self.kept.put((self.version, level, index), block)
                blocks[index] = block
        return {index: block for index, block in blocks.items() if block is not None}

    def bytes_of(self, values: Array) -> Bytes:
        """Densities as bytes: 0 and 255 at the limits, and beyond them."""
        low, high = self.limits
        scaled = np.subtract(values, np.float32(low), dtype=np.float32)
        scaled *= np.float32(255 / max(high - low, 1e-30))
        scaled += np.float32(0.5)
        np.clip(scaled, 0, 255, out=scaled)
        return scaled.astype(np.uint8)


def slab_half(half: int, level: int) -> int:
    """Slices on both sides of one of a level that stand for `half` on both sides of one of level 0.

    The odd number of slices is taken whose thickness is nearest to 2 · half + 1 slices of level 0.
    """
    return max(0, round(((2 * half + 1) / (1 << level) - 1) / 2))


def slab_mean(blocks: Blocks, level: int, box: Box, half: int) -> Bytes:
    """The mean of each slice and `slab_half` slices of the level on both sides of it, fewer at the ends."""
    reach = slab_half(half, level)
    if not reach:
        return blocks.read(level, box)
    (z0, z1), rows, columns = box
    depth = layout.level_shape(blocks.store.shape, level)[0]
    low, high = max(0, z0 - reach), min(depth, z1 + reach)
    values = blocks.read(level, ((low, high), rows, columns))
    sums = np.zeros((high - low + 1, *values.shape[1:]), np.uint32)
    np.cumsum(values, axis=0, out=sums[1:])
    centres = np.arange(z0, z1)
    starts = np.maximum(centres - reach, 0) - low
    stops = np.minimum(centres + reach + 1, depth) - low
    counts = (stops - starts).astype(np.uint32)[:, None, None]
    return np.asarray((sums[stops] - sums[starts] + counts // 2) // counts, np.uint8)
