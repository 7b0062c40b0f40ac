"""Boxes of the tomogram as a segmenter of volumes gets them, at the resolution that suits the size of what is clicked.

Level k has voxels of 2^k voxels a side, their means. Levels that the store has are read; a coarser one is averaged from
the coarsest of them. Densities have zero mean and unit deviation over the level, and particles are bright.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Bool, Float32, Shape3

LEVELS = 4
"""Levels that are looked at, at most: particles from 5 to 240 voxels."""

SMALLEST = 16
"""Voxels that the shortest side of a level must have to be looked at, unless it is level 0."""

_SAMPLES = 3  # boxes a side from which a level's deviation is taken
_SAMPLE = 32  # voxels of their side


def levels_of(shape: Shape3) -> range:
    """The levels that a tomogram of a shape is looked at on."""
    count = 1
    while count < LEVELS and min(layout.level_shape(shape, count)) >= SMALLEST:
        count += 1
    return range(count)


DEVIATIONS = "deviations"
"""In the run's description: of the levels that are looked at."""

_deviations: dict[tuple[str, int, float, float], float] = {}
"""By run, level, and the mean and deviation that the run's tomogram has."""


@dataclass(frozen=True)
class Boxes:
    """One level of a run's tomogram, in standard units; all boxes and points are in its voxels.

    bright : whether particles are brighter than the solvent in the tomogram; boxes are turned so that they are
    """

    store: RunStore
    level: int
    bright: bool = True

    @property
    def shape(self) -> Shape3:
        return layout.level_shape(self.store.shape, self.level)

    def read(self, box: Box) -> Float32:
        """The density (z, y, x) in a box within the level."""
        values = (self._means(box) - self._mean) / self.deviation
        return np.asarray(values if self.bright else -values, np.float32)

    def around(self, point: Array, margin: int, multiple: int) -> Box:
        """The box that reaches `margin` voxels beyond a point and begins at multiples of `multiple`, in the level."""
        sides = []
        for p, n in zip(np.asarray(point).tolist(), self.shape, strict=True):
            low = max(0, math.floor(p - margin) // multiple * multiple)
            high = min(n, -(-math.ceil(p + margin + 1) // multiple) * multiple)
            sides.append((low, high))
        return sides[0], sides[1], sides[2]

    def from_voxels(self, points: Array) -> NDArray[np.float64]:
        """Points (n, 3) of the tomogram in this level's voxels."""
        return np.asarray((np.asarray(points, float) + 0.5) / 2**self.level - 0.5)

    def to_voxels(self, points: Array) -> NDArray[np.float64]:
        """The inverse of `from_voxels`."""
        return np.asarray((np.asarray(points, float) + 0.5) * 2**self.level - 0.5)

    def mask_to_voxels(self, low: NDArray[np.int64], mask: Bool) -> tuple[NDArray[np.int64], Bool]:
        """A mask whose window begins at `low`, in the tomogram's voxels; cut at the volume's end."""
        step = 2**self.level
        if step > 1:
            from scipy import ndimage

            soft = np.pad(mask.astype(np.float32), 1)
            fine = ndimage.zoom(soft, step, order=1, mode="nearest", grid_mode=True) >= 0.5
            mask = fine[step:-step, step:-step, step:-step]
        low = low * step
        room = np.array(self.store.shape) - low
        return low, mask[: room[0], : room[1], : room[2]]

    @cached_property
    def deviation(self) -> float:
        """Of level 0 from the ingest; of others from boxes all over the tomogram, since noise is what averages away.

        It is kept, as one click is looked at on every level twice, and many clicks follow: in the run, or else in this
        process.
        """
        info = self.store.info
        std = float(info["statistics"]["std"])
        if self.level == 0:
            return std
        if (written := info.get(DEVIATIONS)) is not None:
            return float(written[self.level])
        key = (self.store.url, self.level, self._mean, std)
        if key not in _deviations:
            _deviations[key] = self._sampled()
        return _deviations[key]

    @property
    def _mean(self) -> float:
        return float(self.store.info["statistics"]["mean"])

    def _sampled(self) -> float:
        variances = []
        for index in np.ndindex((_SAMPLES,) * 3):
            sides = []
            for i, n in zip(index, self.shape, strict=True):
                low = max(0, min(n - _SAMPLE, round((i + 0.5) * n / _SAMPLES - _SAMPLE / 2)))
                sides.append((low, min(n, low + _SAMPLE)))
            part = self._means((sides[0], sides[1], sides[2])) - self._mean
            variances.append(float((part * part).mean()))
        return max(math.sqrt(float(np.mean(variances))), 1e-12)

    def _means(self, box: Box) -> Float32:
        there = self.level
        while there and layout.tomogram(there) not in self.store:
            there -= 1
        step, shape = 2 ** (self.level - there), layout.level_shape(self.store.shape, there)
        fine = tuple(slice(a * step, min(b * step, n)) for (a, b), n in zip(box, shape, strict=True))
        values = np.asarray(self.store.array(layout.tomogram(there))[fine], np.float32)
        return _averaged(values, step) if step > 1 else values


def write_deviations(store: RunStore) -> None:
    """Write the deviations of all levels into the run, unless they are there: else each worker would find them itself.

    Only the driver does that.
    """
    if DEVIATIONS in store.info:
        return
    levels = [Boxes(store, level) for level in levels_of(store.shape)]
    with ThreadPoolExecutor(len(levels)) as pool:
        store.update_info(**{DEVIATIONS: list(pool.map(lambda boxes: boxes.deviation, levels))})


def _averaged(values: Float32, step: int) -> Float32:
    """Means of `step`³ voxels; those at the end of fewer."""
    for axis in range(3):
        starts = np.arange(0, values.shape[axis], step)
        counts = np.diff([*starts, values.shape[axis]]).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(counts)
        values = np.asarray(np.add.reduceat(values, starts, axis=axis) / counts.reshape(shape), np.float32)
    return values


def grown(box: Box, by: int, shape: Shape3) -> Box:
    """A box with a margin of `by` voxels, cut at the level's ends."""
    z, y, x = ((max(0, a - by), min(n, b + by)) for (a, b), n in zip(box, shape, strict=True))
    return z, y, x
