"""Radial profiles of the density around places of a tomogram, for `kernels.likeness`.

A cosine between features at a point says "texture like this"; it can't tell a 12 nm particle from a 15 nm one whose
middle looks alike, because it knows neither extent nor amplitude. A profile says what a particle is as a whole, in 3D
and independent of its orientation: the mean of the density in each spherical shell around its centre, and the deviation
of the (slightly smoothed) density within each shell. Averages over shells hold hundreds of voxels, so they stand where
single voxels drown in noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

_SAMPLES = 6.0  # a particle's radius in samples: larger particles are binned, so that the cost does not grow with size
_EXTENT = 1.6  # outermost shell, in radii: what lies just outside a particle tells its size
_SHIFT = 0.6  # how far a proposal moves in one refinement, in radii
_ROUNDS = 2
_SMOOTH = 1.0  # deviation in samples of the smoothing before deviations within shells are taken
_MIN_SHELL = 20  # samples; smaller shells are merged
_GATHERED = 250_000  # samples that are gathered for shells at a time
_SLAB_VOXELS = 2_000_000  # voxels that are read at a time where they are averaged to samples


class Volume(Protocol):
    """Anything three-dimensional that slices like an array: numpy, memory map, zarr."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Profile:
    """Geometry of the shells for one particle size; make it with `profile`.

    Attributes
    ----------
    radius : of the particle, in voxels; bin : voxels per sample; reach : of the outermost shell, in samples
    offsets : (n, 3) int, samples of all shells relative to the centre, shell by shell
    starts, counts : (S,) where each shell begins in `offsets` and how many samples it has
    """

    radius: float
    bin: int
    reach: int
    offsets: Int
    starts: Int
    counts: Int

    @property
    def shift(self) -> int:
        """Largest move of a centre in one round of refinement, in samples."""
        return max(1, round(_SHIFT * self.radius / self.bin))

    @property
    def halo(self) -> int:
        """Voxels around a centre that its refinement and description read."""
        return (self.reach + _ROUNDS * (self.shift + 1) + int(3 * _SMOOTH) + 2) * self.bin


def profile(radius: float) -> Profile:
    """Shells for particles of `radius` voxels (`geometry.equivalent_radius` of the clicked particle's mask)."""
    if not radius > 0:
        raise ValueError(f"radius is {radius}, expected a positive number of voxels")
    step = max(1, int(radius // _SAMPLES))
    scaled = radius / step
    extent = _EXTENT * scaled + 1.5
    reach = int(np.ceil(extent))
    axis = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.sqrt((offsets**2).sum(axis=1))
    inside = distance <= extent
    offsets, distance = offsets[inside], distance[inside]
    shell = (distance / max(1.0, scaled / 8)).astype(np.int64)
    order = np.argsort(shell, kind="stable")
    starts = [0]
    sizes = np.bincount(shell)
    for end, remaining in zip(np.cumsum(sizes), sizes[::-1].cumsum()[::-1] - sizes, strict=True):
        if end - starts[-1] >= _MIN_SHELL and remaining >= _MIN_SHELL:
            starts.append(int(end))
    counts = np.diff([*starts, len(offsets)])
    return Profile(radius, step, reach, offsets[order], np.array(starts), counts)


def describe(
    volume: Volume,
    centres: NDArray[np.floating],
    shells: Profile,
    template: Float64 | None = None,
    rounds: int = _ROUNDS,
) -> tuple[Float64, Float64]:
    """Profiles around places of a tomogram.

    Reads one box that holds all `centres` and a halo, so pass places that lie together.

    Parameters
    ----------
    volume : (D, H, W); only the box is read
    centres : (n, 3) voxels (z, y, x) inside the volume
    template : (2 S,) a profile; given, each centre first moves to where the volume correlates best with it
    rounds : how often it moves (at most 2 times), each time by `shells.shift` samples at most

    Returns
    -------
    centres (n, 3), moved; profiles (n, 2 S): means, then deviations, of the S shells. Samples outside the tomogram
    are left out of the shells.
    """
    places = np.asarray(centres, np.float64).reshape(-1, 3)
    if not len(places):
        return places, np.empty((0, 2 * len(shells.starts)))
    low, high = reached(places, volume.shape, shells)
    samples = _read(volume, low, high, shells.bin)
    grid = np.rint((places - low + 0.5) / shells.bin - 0.5).astype(np.int64)
    grid = np.clip(grid, 0, np.array(samples.shape) - 1)
    if template is not None:
        grid = _fit(samples, grid, shells, np.asarray(template)[: len(shells.starts)], rounds)
    moved = np.asarray((grid + 0.5) * shells.bin - 0.5 + low, np.float64)
    return moved, _profiles(samples, grid, shells)


def reached(places: Float64, shape: tuple[int, ...], shells: Profile) -> tuple[Int, Int]:
    """Start and stop (3,) of the box that `describe` reads for places (n, 3) of a volume of `shape`."""
    low = np.maximum(np.floor(places.min(axis=0)).astype(np.int64) - shells.halo, 0) // shells.bin * shells.bin
    high = np.minimum(np.ceil(places.max(axis=0)).astype(np.int64) + shells.halo + 1, np.array(shape))
    return low, high


def working_bytes(sides: Int, count: int, shells: Profile) -> int:
    """Bytes that `describe` takes, with a template, for `count` places in a box of these sides (`reached`)."""
    samples = [max(1, int(side) // shells.bin) for side in sides]
    padded = [side + 2 * shells.reach for side in samples]
    kept = 4 * math.prod(samples)
    # the transforms of samples and template, and the copy that each of the two makes of what it transforms
    correlating = 12 * math.prod(scipy.fft.next_fast_len(side, real=True) for side in padded)
    describing = 9 * math.prod(padded) + 40 * min(_GATHERED, count * len(shells.offsets))
    # a slab as read and as cut into samples
    slab = min(int(sides[0]), _slab(sides, shells.bin))
    reading = 0 if shells.bin == 1 else 8 * slab * int(sides[1]) * int(sides[2])
    return int(kept + max(correlating, describing, reading))


def working_bytes_at(radius: float) -> int:
    """Bytes that `describe` takes for one place of a particle of `radius` voxels."""
    shells = profile(radius)
    return working_bytes(np.full(3, 2 * shells.halo + 1), 1, shells)


def query_template(volume: Volume, centres: NDArray[np.floating], shells: Profile) -> tuple[Float64, Float64]:
    """Centres (n, 3) and mean profile (2 S,) of clicked particles, each where its own profile fits best.

    The mask's centre of mass is nearly right, but proposals stand where a template fits best. So each centre moves
    once, by little, to the best fit of the profile around it. More rounds only wander.
    """
    places, profiles = [], []
    for centre in np.asarray(centres, np.float64).reshape(-1, 1, 3):
        _, first = describe(volume, centre, shells)
        moved, _ = describe(volume, centre, _near_only(shells), first[0], rounds=1)
        moved, values = describe(volume, moved, shells)
        places.append(moved[0])
        profiles.append(values[0])
    return np.stack(places), np.mean(profiles, axis=0)


def _near_only(shells: Profile) -> Profile:
    """The same shells, for a centre that is nearly right: half the shift, and the template's core alone."""
    return Profile(shells.radius / 2, shells.bin, shells.reach, shells.offsets, shells.starts, shells.counts)


def _read(volume: Volume, low: Int, high: Int, step: int) -> Float32:
    """A box of the volume in samples of `step` voxels, read slab by slab where they are averaged."""
    _, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
    if step == 1:
        return np.asarray(volume[low[0] : high[0], y, x], np.float32)
    thick = _slab(high - low, step)
    # what is left at the end is less than a sample, and dropped with the rest of its slab's samples
    starts = range(low[0], max(high[0] - step, low[0]) + 1, thick)
    return np.concatenate(
        [_binned(np.asarray(volume[a : min(a + thick, high[0]), y, x], np.float32), step) for a in starts]
    )


def _slab(sides: Int, step: int) -> int:
    """Slices of a box that are read at a time: whole samples, about `_SLAB_VOXELS`."""
    return max(1, _SLAB_VOXELS // (int(sides[1]) * int(sides[2]) * step)) * step


def _binned(box: Float32, step: int) -> Float32:
    """Means over cubes of `step` voxels; what is left at the ends is dropped."""
    shape = [max(1, side // step) for side in box.shape]
    if any(side < step for side in box.shape):
        box = np.pad(box, [(0, max(0, step - side)) for side in box.shape], mode="edge")
    cut = box[tuple(slice(0, side * step) for side in shape)]
    binned: Float32 = cut.reshape(shape[0], step, shape[1], step, shape[2], step).mean(axis=(1, 3, 5))
    return binned


def _fit(samples: Float32, grid: Int, shells: Profile, means: Float64, rounds: int) -> Int:
    """Move each (n, 3) position to where the samples correlate best with the shell means (S,) near it."""
    correlation = _correlate(samples, shells, means)
    for _ in range(rounds):
        grid = _climb(correlation, grid, shells.shift)
    return grid


def _correlate(samples: Float32, shells: Profile, means: Float64) -> Float32:
    """Correlation of the samples with the spherical template that has these shell means, its own mean removed."""
    reach = shells.reach
    within = (shells.offsets**2).sum(axis=1) <= (1.3 * shells.radius / shells.bin) ** 2
    weights = np.repeat(means, shells.counts)
    weights = np.where(within, weights - weights[within].mean(), 0.0) if within.any() else weights
    kernel = np.zeros((2 * reach + 1,) * 3, np.float32)
    kernel[tuple((shells.offsets + reach).T)] = weights / (np.linalg.norm(weights) + 1e-12)
    shape = [scipy.fft.next_fast_len(side + 2 * reach, real=True) for side in samples.shape]
    # in place where it can be: these arrays are most of what a unit of ranking holds
    product = scipy.fft.rfftn(np.pad(samples, reach, mode="edge"), shape)
    template = scipy.fft.rfftn(kernel, shape)
    np.multiply(product, np.conjugate(template, out=template), out=product)
    del template
    correlation: Float32 = scipy.fft.irfftn(product, shape)[tuple(slice(0, side) for side in samples.shape)]
    return correlation


def _climb(values: Float32, grid: Int, shift: int) -> Int:
    """Move each (n, 3) position to the largest value within `shift`; of equals, to the nearest."""
    axis = np.arange(-shift, shift + 1)
    steps = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    length = (steps**2).sum(axis=1)
    steps = steps[np.argsort(length, kind="stable")][: int((length <= (shift + 0.5) ** 2).sum())]
    best = np.empty_like(grid)
    for i, place in enumerate(grid):
        reached = np.clip(place + steps, 0, np.array(values.shape) - 1)
        best[i] = reached[np.argmax(values[reached[:, 0], reached[:, 1], reached[:, 2]])]
    return best


def _profiles(samples: Float32, grid: Int, shells: Profile) -> Float64:
    """Means and deviations (n, 2 S) of the shells around integer positions (n, 3)."""
    reach = shells.reach
    smooth = np.pad(gaussian_filter(samples, _SMOOTH, mode="nearest", truncate=3.0), reach)
    plain = np.pad(samples, reach)
    present = np.pad(np.ones(samples.shape, bool), reach)
    strides = np.array([plain.shape[1] * plain.shape[2], plain.shape[2], 1])
    steps = (shells.offsets + reach) @ strides
    result = np.empty((len(grid), 2 * len(shells.starts)))
    count = max(1, _GATHERED // len(steps))
    for first in range(0, len(grid), count):
        index = (grid[first : first + count] @ strides)[:, None] + steps
        weight = present.ravel()[index].astype(np.float32)
        total = np.maximum(np.add.reduceat(weight, shells.starts, axis=1), 1)
        mean = np.add.reduceat(plain.ravel()[index], shells.starts, axis=1) / total
        off = (smooth.ravel()[index] - np.repeat(mean, shells.counts, axis=1)) * weight
        spread = np.sqrt(np.add.reduceat(off * off, shells.starts, axis=1) / total)
        result[first : first + count] = np.concatenate([mean, spread], axis=1)
    return result
