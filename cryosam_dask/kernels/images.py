"""Plain image arithmetic on volumes and slices: resolution levels, statistics, resizing, 8-bit contrast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Interpolation, interpolation
from cryosam_dask.types import Array, Float32

QUANTILES = 1025
_SAMPLE = 1 << 18
_ROWS = 64


def halve(volume: Array) -> Array:
    """Mean of each 2×2×2 cell, ceil-sized, of the same type; cells at the end may be smaller."""
    exact = volume.dtype.kind == "f" or volume.dtype.itemsize <= 2  # sums of eight 16-bit integers are exact in float32
    out: Array = volume
    for axis in range(3):
        pairs = np.moveaxis(out, axis, 0)
        first, second = pairs[::2], pairs[1::2]
        half = first.astype("f4" if exact else "f8", order="K")
        half[: len(second)] += second
        half[: len(second)] *= 0.5
        out = np.moveaxis(half, 0, axis)
    if volume.dtype.kind in "iu":
        np.rint(out, out=out)
    return out.astype(volume.dtype, copy=False)


def summarize(values: Array) -> NDArray[np.float64]:
    """One block's share of a volume's statistics: count, mean, sum of squared deviations, then quantiles.

    The quantiles are those of a regular sample of at most 2^18 voxels, so that one pass over a volume of any size and
    range is enough. Works slice by slice: no copy of the block is made.
    """
    mean = sum(float(part.sum(dtype=np.float64)) for part in values) / values.size
    deviation = 0.0
    for part in values:
        off = part.reshape(-1) - np.float64(mean)
        deviation += float(off @ off)
    flat = values.reshape(-1)
    sample = flat[:: -(-flat.size // _SAMPLE)].astype(np.float64)
    quantiles = np.quantile(sample, np.linspace(0, 1, QUANTILES))
    quantiles[0], quantiles[-1] = flat.min(), flat.max()
    return np.concatenate([[values.size, mean, deviation], quantiles])


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

    def below(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of voxels up to each value."""
        shares = (c * np.interp(values, q, levels) for c, q in zip(counts, quantiles, strict=True))
        return np.asarray(sum(shares) / total)

    bounds = [_crossing(below, grid, share / 100) for share in (low, high)]
    return Statistics(mean, variance**0.5, float(quantiles.min()), float(quantiles.max()), bounds[0], bounds[1])


def _crossing(
    rising: Callable[[NDArray[np.float64]], NDArray[np.float64]], grid: NDArray[np.float64], level: float
) -> float:
    """Where a function that is linear between the points of `grid` reaches `level`, by bisection."""
    first, last = 0, len(grid) - 1
    while last - first > 1:
        middle = (first + last) // 2
        if rising(grid[middle : middle + 1])[0] <= level:
            first = middle
        else:
            last = middle
    ends = grid[[first, last]]
    return float(np.interp(level, rising(ends), ends))


def resize(slices: Float32, size: tuple[int, int]) -> Float32:
    """Bilinear resize of (N, A, B) to (N, *size), half-pixel centres; the slices themselves if they have that size."""
    if slices.shape[1:] == size:
        return slices
    rows, columns = (
        interpolation(np.arange(n, dtype=float), n, m) for n, m in zip(size, slices.shape[1:], strict=True)
    )
    return resample(slices[:, rows.start : rows.stop, columns.start : columns.stop], rows, columns)


def resample(slices: Float32, rows: Interpolation, columns: Interpolation) -> Float32:
    """Bilinear (n, len(rows), len(columns)) of the pixels (n, A, B) that the interpolations touch."""
    up, down = rows.lower, columns.lower
    # the far neighbour of a position on the last pixel has no weight
    next_up, next_down = np.minimum(up + 1, slices.shape[1] - 1), np.minimum(down + 1, slices.shape[2] - 1)
    across, along = rows.fraction.astype(np.float32)[:, None], columns.fraction.astype(np.float32)
    out = np.empty((len(slices), len(up), len(down)), np.float32)
    for image, resized in zip(slices, out, strict=True):
        for first in range(0, len(up), _ROWS):  # so many rows stay in the processor's cache
            part = slice(first, first + _ROWS)
            near = _lerp(image[up[part]], image[next_up[part]], across[part])
            resized[part] = _lerp(np.take(near, down, axis=1), np.take(near, next_down, axis=1), along)
    return out


def _lerp(near: Float32, far: Float32, fraction: Float32) -> Float32:
    """near + (far − near) · fraction, in `far`'s memory."""
    far -= near
    far *= fraction
    far += near
    return far


def mean_slices(slices: Array, windows: Sequence[tuple[int, int]], shift: float = 0.0, scale: float = 1.0) -> Float32:
    """Mean of slices[low:high] for each window (low, high), less `shift`, times `scale`: (len(windows), A, B) float32.

    Slices may be of any type and lie in memory in any order; one at a time is converted.
    """
    out = np.empty((len(windows), *slices.shape[1:]), np.float32)
    for image, (low, high) in zip(out, windows, strict=True):
        np.copyto(image, slices[low])
        for other in slices[low + 1 : high]:
            image += other
        if high - low > 1:
            image *= np.float32(1 / (high - low))
        if shift:
            image -= np.float32(shift)
        if scale != 1:
            image *= np.float32(scale)
    return out


def to_uint8(slices: Float32, low: float, high: float) -> NDArray[np.uint8]:
    """Stretch [low, high] to 0…255 and clip (never wrap). Works slice by slice."""
    out = np.empty(slices.shape, np.uint8)
    for image, stretched in zip(slices, out, strict=True):
        scaled = (image - np.float32(low)) * np.float32(255 / (high - low))
        np.clip(scaled, 0, 255, out=scaled)
        np.copyto(stretched, np.rint(scaled, out=scaled), casting="unsafe")
    return out
