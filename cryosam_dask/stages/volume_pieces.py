"""Pieces of an extended structure, as a segmenter of volumes sees them: tile by tile, by the likeness of each voxel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.models.info import VolumeInfo
from cryosam_dask.stages.boxes import Boxes, grown
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32, Shape3, VolumeSegmenter

TILE: Shape3 = (112, 192, 192)
"""Voxels of a tile, of its level, at most."""

LIKE = 0.5
"""Likeness from which a voxel belongs to the structure."""

SMALLEST = 40
"""Voxels of its level that a piece has at least."""


@dataclass(frozen=True)
class Pieces:
    """The pieces in a tile: their numbers from 1 in the tile, and the likeness of all its voxels."""

    tile: Box
    numbers: NDArray[np.int32]
    likeness: Float32
    count: int

    def seed(self, number: int) -> NDArray[np.int64]:
        """The voxel of the level where a piece is most like the query."""
        inside = np.where(self.numbers == number, self.likeness, -1)
        place = np.array(np.unravel_index(int(inside.argmax()), inside.shape), np.int64)
        return np.asarray(place + np.array([a for a, _ in self.tile]))

    def quality(self, number: int) -> float:
        """Mean likeness of a piece."""
        return float(self.likeness[self.numbers == number].mean())

    def size(self, number: int) -> int:
        """Voxels of the level."""
        return int((self.numbers == number).sum())

    def at(self, point: NDArray[np.float64]) -> tuple[NDArray[np.int64], Bool]:
        """The piece at a point of the level in the tile: the first voxel of the tile, and its mask there."""
        low = np.array([a for a, _ in self.tile])
        place = np.clip(np.round(point).astype(np.int64) - low, 0, np.array(self.numbers.shape) - 1)
        number = int(self.numbers[tuple(place)])
        return low, (self.numbers == number) & (number > 0)


def pieces(model: VolumeSegmenter, info: VolumeInfo, boxes: Boxes, tile: Box, query: tuple[Float32, Float32]) -> Pieces:
    """The pieces of a tile; query : its descriptor (D,) and its classes (K,)."""
    seen = grown(tile, info.halo, boxes.shape)
    likeness = model.look(boxes.read(seen)).likeness(*query)
    z, y, x = (slice(a - s, b - s) for (a, b), (s, _) in zip(tile, seen, strict=True))
    own = np.ascontiguousarray(likeness[z, y, x])
    numbers, count = ndimage.label(own >= LIKE, np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    kept = np.flatnonzero(sizes[1:] >= SMALLEST) + 1
    renumbered = np.zeros(count + 1, np.int32)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    return Pieces(tile, renumbered[numbers], own, len(kept))


def tiles(shape: Shape3, multiple: int) -> Iterator[Box]:
    """The tiles of a level; `multiple` : of the segmenter."""
    return geometry.even_boxes(shape, TILE, multiple)


def tile_of(shape: Shape3, multiple: int, point: NDArray[np.float64]) -> Box:
    """The tile of a level that a point lies in."""
    place = np.clip(np.round(point), 0, np.array(shape) - 1)
    every = tiles(shape, multiple)
    return next(tile for tile in every if all(a <= p < b for p, (a, b) in zip(place, tile, strict=True)))


def query_of(store: RunStore, descriptors: str) -> tuple[Float32, Float32]:
    """The mean descriptor (D,) of a query and its classes (K,), from the array of its descriptors."""
    mean = np.asarray(store.read(descriptors), float).sum(axis=0)
    classes: object = store.array(descriptors).attrs["classes"]
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9), np.float32), np.asarray(classes, np.float32)
