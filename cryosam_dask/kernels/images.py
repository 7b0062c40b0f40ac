"""Plain image arithmetic on volumes and slices: resolution levels, statistics, resizing, 8-bit contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import interpolation
from cryosam_dask.types import Array, Float32

QUANTILES = 1025
_SAMPLE = 1 << 20


def halve(volume: Array) -> Array:
    """Mean of each 2×2×2 cell, ceil-sized, of the same type; cells at the end may be smaller."""
    precision = np.dtype("f8" if volume.dtype.kind in "iu" else "f4")
    out: Array = volume.astype(precision)
    for axis in range(3):
        starts = np.arange(0, out.shape[axis], 2)
        counts = np.diff(np.append(starts, out.shape[axis])).astype(precision)
        shape = [-1 if a == axis else 1 for a in range(3)]
        out = (np.add.reduceat(out, starts, axis=axis) / counts.reshape(shape)).astype(precision)
    if volume.dtype.kind in "iu":
        out = np.rint(out)
    return out.astype(volume.dtype)


def summarize(values: Array) -> NDArray[np.float64]:
    """One block's share of a volume's statistics: count, mean, sum of squared deviations, then quantiles.

    The quantiles are those of a regular sample of at most 2^20 voxels, so that one pass over a volume of any size and
    range is enough.
    """
    flat = values.reshape(-1)
    mean = float(flat.mean(dtype=np.float64))
    deviation = float(flat.var(dtype=np.float64)) * flat.size
    sample = flat[:: -(-flat.size // _SAMPLE)].astype(np.float64)
    quantiles = np.quantile(sample, np.linspace(0, 1, QUANTILES))
    quantiles[0], quantiles[-1] = flat.min(), flat.max()
    return np.concatenate([[flat.size, mean, deviation], quantiles])


@dataclass(frozen=True)
class Statistics:
    """A volume's mean, standard deviation, extremes, and the percentiles that contrast is stretched between."""

    mean: float
    std: float
    minimum: float
    maximum: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return dict(self.__dict__)


def merge_summaries(rows: NDArray[np.float64], low: float = 0.5, high: float = 99.5) -> Statistics:
    """Statistics of the whole from its blocks' summaries (blocks, 3 + QUANTILES), `low` and `high` in percent.

    Means and deviations merge exactly (Chan, Golub, LeVeque 1979); percentiles from the count-weighted mixture of the
    blocks' distribution functions.
    """
    counts, means, deviations, quantiles = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:]
    total = counts.sum()
    mean = float((counts * means).sum() / total)
    variance = float((deviations + counts * (means - mean) ** 2).sum() / total)
    grid = np.unique(quantiles)
    levels = np.linspace(0, 1, quantiles.shape[1])
    mixture = sum(c * np.interp(grid, q, levels) for c, q in zip(counts, quantiles, strict=True)) / total
    bounds = np.interp([low / 100, high / 100], mixture, grid)
    return Statistics(
        mean, variance**0.5, float(quantiles.min()), float(quantiles.max()), float(bounds[0]), float(bounds[1])
    )


def resize(slices: Float32, size: tuple[int, int]) -> Float32:
    """Bilinear resize of (N, A, B) to (N, *size), half-pixel centres; the slices themselves if they have that size."""
    if slices.shape[1:] == size:
        return slices
    rows, columns = (
        interpolation(np.arange(n, dtype=float), n, m) for n, m in zip(size, slices.shape[1:], strict=True)
    )
    part = slices[:, rows.start : rows.stop, columns.start : columns.stop]
    out: Float32 = np.matmul(np.matmul(rows.weights, part), columns.weights.T)
    return out


def average_neighbours(slices: Float32, first: int, stop: int, reach: int) -> Float32:
    """Each of slices[first:stop] averaged with up to `reach` neighbours on either side that exist in `slices`."""
    if reach == 0:
        return slices[first:stop]
    start = np.zeros((1, *slices.shape[1:]), np.float64)
    sums = np.concatenate([start, np.cumsum(slices, axis=0, dtype=np.float64)])
    index = np.arange(first, stop)
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(slices))
    out: Float32 = ((sums[high] - sums[low]) / (high - low)[:, None, None]).astype(np.float32)
    return out


def to_uint8(slices: Float32, low: float, high: float) -> NDArray[np.uint8]:
    """Stretch [low, high] to 0…255 and clip (never wrap)."""
    scaled = (slices - low) * (255 / (high - low))
    out: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return out
