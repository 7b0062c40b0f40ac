"""What the viewer shows of a run, as volumes: tomogram, slab averages, similarity, labels, and the masks of clicks."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryosam_dask.geometry import Box, box_slices, cell_grid
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import MissingChunkError
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Bool, Float32, Point, Shape3
from cryosam_dask.viewer import precomputed
from cryosam_dask.viewer.blocks import Blocks, slab_mean
from cryosam_dask.viewer.precomputed import Encoding, Scale
from cryosam_dask.viewer.segments import Segments
from cryosam_dask.viewer.status import NotThereError

CHUNKS: tuple[Shape3, ...] = ((8, 128, 128), (128, 8, 128), (128, 128, 8))
"""Chunks z, y, x that the viewer may ask for, 128 KiB of bytes: flat ones, since it shows planes, and a plane of flat
chunks is an eighth of one of cubes."""

RATIOS = (1, 2, 4, 8, 16)
"""Sides of cells that similarity may be stored for, in voxels."""

COARSEST = 256
"""Cells along the longest side, of a similarity map's coarsest scale about."""


class Volume(ABC):
    """A volume that the viewer reads in chunks.

    scales : finest first; dtype : of its values; segments : whether these are labels, which have meshes
    """

    scales: tuple[Scale, ...]
    dtype = "uint8"
    segments = False
    encoding: Encoding = "raw"

    @abstractmethod
    def read(self, scale: Scale, box: Box) -> Array:
        """The values (z, y, x) of one of the chunks of a scale."""

    def mask(self, label: int) -> tuple[Bool, Box]:
        """The mask of a label in its box, for its mesh."""
        raise NotThereError(f"this volume has no instance {label}")

    def info(self) -> dict[str, Any]:
        """The volume's description."""
        return precomputed.info(self.scales, self.dtype, segments=self.segments, encoding=self.encoding)

    def chunk(self, key: str, name: str) -> bytes:
        """A chunk by its scale and name, encoded; `InputError` if there is none of that name."""
        scale = next((scale for scale in self.scales if scale.key == key), None)
        if scale is None:
            raise NotThereError(f"no scale {key[:20]!r}")
        return precomputed.chunk(self.read(scale, scale.box(name)), self.encoding)


def image_scales(store: RunStore) -> tuple[Scale, ...]:
    """The levels of a run's images."""
    return tuple(
        Scale(str(level), layout.level_shape(store.shape, level), _nm(store, 1 << level), CHUNKS)
        for level in range(layout.level_count(store.shape))
    )


def _nm(store: RunStore, voxels: int = 1) -> Point:
    z, y, x = (size * voxels / 10 for size in store.voxel_size)
    return z, y, x


class Tomogram(Volume):
    """The tomogram as bytes, each slice averaged with `half` others on both sides."""

    def __init__(self, blocks: Blocks, half: int = 0, encoding: Encoding = "raw") -> None:
        self.scales = image_scales(blocks.store)
        self.encoding = encoding
        self._blocks, self._half = blocks, half

    def read(self, scale: Scale, box: Box) -> Array:
        return slab_mean(self._blocks, int(scale.key), box, self._half)


class Labels(Volume):
    """The instances of a query, as its label image has them."""

    dtype, segments = "uint32", True

    def __init__(self, store: RunStore, name: str, segments: Segments) -> None:
        self.scales = image_scales(store)
        self._store, self._name, self._segments = store, name, segments

    def read(self, scale: Scale, box: Box) -> Array:
        return np.asarray(self._store.array(layout.labels(self._name, int(scale.key)))[box_slices(box)], np.uint32)

    def mask(self, label: int) -> tuple[Bool, Box]:
        return self._segments.mask(label)


class Unfinished(Volume):
    """The instances that are segmented so far, while there is no label image; where they overlap, the last is seen."""

    dtype, segments = "uint32", True

    def __init__(self, store: RunStore, segments: Segments) -> None:
        self.scales = image_scales(store)
        self._segments = segments

    def read(self, scale: Scale, box: Box) -> Array:
        return self._segments.paint(box, 1 << int(scale.key))

    def mask(self, label: int) -> tuple[Bool, Box]:
        return self._segments.mask(label)


class Preview(Volume):
    """The mask of a click, as label 1; the volume is its box alone."""

    dtype, segments = "uint32", True

    def __init__(self, mask: Bool, box: Box, voxel_size: Point) -> None:
        z, y, x = (a for a, _ in box)
        depth, rows, columns = mask.shape
        self.scales = (Scale("0", (depth, rows, columns), voxel_size, CHUNKS, (z, y, x)),)
        self._mask, self._box = mask, box

    def read(self, scale: Scale, box: Box) -> Array:
        z, y, x = (slice(a - start, b - start) for (a, b), start in zip(box, scale.start, strict=True))
        return self._mask[z, y, x].astype(np.uint32)

    def mask(self, label: int) -> tuple[Bool, Box]:
        if label != 1:
            raise NotThereError(f"a click's mask is instance 1, not {label}")
        return self._mask, self._box


@dataclass(frozen=True)
class _Map:
    """Similarity on cells of one ratio, NaN where it was not evaluated."""

    ratio: int
    array: Any


class Similarity(Volume):
    """Similarity to a query: 0 to 255 for 0 to 1, 0 where nothing was evaluated.

    Finer maps are evaluated only where coarser ones promised something; elsewhere the coarser one is shown. Further
    scales keep the highest of 2³ and 4³ cells, so that a peak is seen from afar.

    finest : side in voxels of the smallest cells that are shown; finer maps may be left of an earlier search
    """

    def __init__(self, store: RunStore, name: str, finest: int = 1) -> None:
        self._maps = _maps(store, name, finest)
        if not self._maps:
            raise NotThereError(f"{name} has no similarity map")
        ratio, grid = self._maps[0].ratio, cell_grid(store.shape, self._maps[0].ratio)
        factors = [f for f in (1, 2, 4) if f == 1 or max(grid) > COARSEST * f / 2]
        self.scales = tuple(Scale(str(f), cell_grid(grid, f), _nm(store, ratio * f), CHUNKS) for f in factors)
        self._grid = grid

    def read(self, scale: Scale, box: Box) -> Array:
        factor = int(scale.key)
        z, y, x = ((a * factor, min(b * factor, n)) for (a, b), n in zip(box, self._grid, strict=True))
        values = self._finest((z, y, x))
        return np.asarray(np.floor(np.clip(_highest(values, factor), 0, 1) * 255 + 0.5), np.uint8)

    def _finest(self, box: Box) -> Float32:
        """Similarity of cells of the finest ratio, from the finest map that has it; 0 where none has."""
        values = np.full([b - a for a, b in box], np.nan, np.float32)
        for this in self._maps:
            unknown = np.isnan(values)
            if not unknown.any():
                break
            step = this.ratio // self._maps[0].ratio
            z, y, x = ((a // step, -(-b // step)) for a, b in box)
            try:
                coarse = np.asarray(this.array[box_slices((z, y, x))], np.float32)
            except MissingChunkError:  # not evaluated yet
                continue
            for axis in range(3):
                coarse = np.repeat(coarse, step, axis)
            starts = [a - low * step for (a, _), (low, _) in zip(box, (z, y, x), strict=True)]
            part = coarse[tuple(slice(s, s + n) for s, n in zip(starts, values.shape, strict=True))]
            values[unknown] = part[unknown]
        return np.nan_to_num(values, copy=False, nan=0.0)


def _maps(store: RunStore, name: str, finest: int) -> list[_Map]:
    """The maps of a query, finest first, of which each ratio is a multiple of the one before."""
    maps: list[_Map] = []
    for ratio in (ratio for ratio in RATIOS if ratio >= finest):
        path = layout.similarity(name, ratio)
        if path in store and (not maps or ratio % maps[0].ratio == 0):
            array = store.array(path)
            if tuple(array.shape) == cell_grid(store.shape, ratio):
                maps.append(_Map(ratio, array))
    return maps


def _highest(values: Float32, factor: int) -> Float32:
    """The greatest of factor³ cells; those at the ends may be fewer."""
    if factor == 1:
        return values
    around = [(0, -n % factor) for n in values.shape]
    padded = np.pad(values, around)
    sides = itertools.chain.from_iterable((n // factor, factor) for n in padded.shape)
    out: Float32 = padded.reshape(tuple(sides)).max((1, 3, 5))
    return out


def voxels(chunks: Sequence[Shape3] = CHUNKS) -> int:
    """Voxels of the largest chunk."""
    return max(math.prod(chunk) for chunk in chunks)
