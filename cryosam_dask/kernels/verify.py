"""Is this place the same particle? Radial profiles of the tomogram around proposals, compared with the clicked one's.

A cosine between features at a point says "texture like this"; it can't tell a 12 nm particle from a 15 nm one whose
middle looks alike, because it knows neither extent nor amplitude. So proposals are ranked by what a particle is as a
whole, in 3D and independent of its orientation: the mean of the density in each spherical shell around its centre, and
the deviation of the (slightly smoothed) density within each shell. Averages over shells hold hundreds of voxels, so
they stand where single voxels drown in noise.

Two profiles are compared by their distance in units of what noise and the species' own variety would do, the covariance
of the former measured on the tomogram's background. A distance near 1 is "as different as two of a kind are".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cryosam_dask.kernels.peaks import TYPICAL, non_maximum_suppression

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

_SAMPLES = 6.0  # a particle's radius in samples: larger particles are binned, so that the cost does not grow with size
_EXTENT = 1.6  # outermost shell, in radii: what lies just outside a particle tells its size
_SHIFT = 0.6  # how far a proposal moves in one refinement, in radii
_ROUNDS = 2
_SMOOTH = 1.0  # deviation in samples of the smoothing before deviations within shells are taken
_MIN_SHELL = 20  # samples; smaller shells are merged
_VARIETY = 0.1  # two of a kind differ by this share of their own signal, besides noise
_VARIETY_FLOOR = 0.3  # … where the signal is at least this share of the profile's largest
_FEEDBACK = (2, 4, 8, 16, 32)  # proposals that join the clicked particles as examples, round by round
_FEEDBACK_LIMIT = 1.3  # … only when they are this near
_CLEARLY = 0.8  # … and, where there are negative examples, nearer than this share of the distance to those
_LEAST = 3  # … and then so many together: a few may well be look-alikes
_NULL_SHARE = 0.6  # a particle is nearer than this share of the distance that places without one have
_SUPPORT = 4  # nearest proposals that tell which description of the query has more of its like
_LIKELY = 0.1  # by how much, in log distance, a contrast twice or half the donor's must bring its like nearer
_CALM = 0.5  # share of the random places, the calmest, that surely hold no particle
_GATHERED = 250_000  # samples that are gathered for shells at a time
_COMPARED = 4096  # profiles that are compared at a time
_SLAB_VOXELS = 2_000_000  # voxels that are read at a time where they are averaged to samples
_PRIOR = 0.5  # weight of the assumed variety against the examples' own, in examples per number of the profile


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


def equivalent_radius(voxels: float) -> float:
    """Radius of the ball of that many voxels."""
    return float((3 * voxels / (4 * np.pi)) ** (1 / 3))


def profile(radius: float) -> Profile:
    """Shells for particles of `radius` voxels (`equivalent_radius` of the clicked particle's mask)."""
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
    found, profiles = [], []
    for centre in np.asarray(centres, np.float64).reshape(-1, 1, 3):
        _, first = describe(volume, centre, shells)
        moved, _ = describe(volume, centre, _near_only(shells), first[0], rounds=1)
        moved, values = describe(volume, moved, shells)
        found.append(moved[0])
        profiles.append(values[0])
    return np.stack(found), np.mean(profiles, axis=0)


def distances(
    centres: Float64,
    profiles: Float64,
    queries: Float64,
    background: Float64,
    radius: float,
    fitted: Float64 | None = None,
    negatives: Float64 | None = None,
) -> Float64:
    """How unlike the clicked particles each proposal is: about 1 for one of a kind, larger for others.

    Parameters
    ----------
    centres, profiles : (n, 3) voxels and (n, P), from `describe`
    queries : (m, P) profiles of the clicked particles
    background : (b, P) profiles at random places; up to a fifth of them may lie on particles
    radius : proposals nearer than this count as one when examples are chosen
    fitted : (b, P) profiles at the same random places moved as proposals are, to the best fit of the query's profile;
        None if there are none, and then distances are not calibrated by what noise attains
    negatives : (k, P) profiles of what is not of the kind, described as proposals are; a proposal that is nearer to
        one of them than to the clicked particles and their like is at infinity

    Notes
    -----
    d² = (x − q)ᵀ A⁻¹ (x − q) / P with A = S + S/m + V: S the background's covariance (the noise of the proposal and of
    the mean query), V a diagonal of (0.1 × the query's own signal)². Then come rounds of relevance feedback: the 2, 4,
    8 … nearest proposals join the query as examples, which averages its noise away, and their own covariance takes
    the place of S + V by degrees. A proposal joins only at a distance within 1.3 from the examples so far and from the
    clicked particles, and a round that can't be filled so is the last: where a species has few particles, the examples
    must not drift to another.

    Where the signal is weak, noise that was moved to its best fit lies hardly farther off than two of a kind. Its
    typical distance n is measured at random places that look like nothing. Examples must be nearer than 0.6 n, and if
    0.6 n is less than `TYPICAL`, all distances are stretched so that it comes to lie there.

    Distances to negatives are in units of the same covariance, so that the border lies midway, as between two normal
    distributions of equal covariance. A proposal joins as an example only where it is clearly on the query's side, for
    in a tomogram without the kind the nearest proposals are look-alikes, and from these the query would learn them.
    Where none joins, one example stands against many, and only what is clearly on the query's side is left in.
    """
    query = queries.mean(axis=0)
    middle, noise = _background(background)
    null = np.empty((0, len(query))) if fitted is None else fitted[_calm(background, _CALM)]
    variety = _variety(query, middle)
    covariance = noise * (1 + 1 / len(queries)) + variety
    result, bound = _distance(profiles, query, covariance), _bound(null, query, covariance)
    like_clicked = result <= min(_FEEDBACK_LIMIT, bound)
    unlike = np.empty((0, len(query))) if negatives is None else negatives
    if len(unlike):
        like_clicked &= result <= _CLEARLY * _nearest(profiles, unlike, covariance)
    learned = False
    for count in _FEEDBACK if _are_enough(centres, result, like_clicked & (result <= bound), radius, unlike) else ():
        near = np.flatnonzero(like_clicked & (result <= min(_FEEDBACK_LIMIT, bound)))
        near = near[non_maximum_suppression(centres[near], -result[near], radius, count)]
        if not len(near):
            break
        examples = np.concatenate([queries, profiles[near]])
        mean = examples.mean(axis=0)
        spread = (profiles[near] - mean).T @ (profiles[near] - mean) / len(near)
        trust = len(near) / (len(near) + _PRIOR * len(query))
        inner = (1 - trust) * (noise + variety) + trust * spread
        covariance = noise / len(examples) + inner
        result, bound = _distance(profiles, mean, covariance), _bound(null, mean, covariance)
        learned = True
        if len(near) < count:
            break
    stretched = result * max(1.0, TYPICAL / bound)
    if len(unlike):
        stretched[result > (1.0 if learned else _CLEARLY) * _nearest(profiles, unlike, covariance)] = np.inf
    return stretched


def best_described(
    centres: Float64,
    profiles: Float64,
    options: list[Float64],
    background: Float64,
    radius: float,
    fitted: Float64,
) -> Float64:
    """Of several descriptions (m, P) of the clicked particles, the one with the nearest like among the proposals.

    A few voxels decide at which of two equal fits a particle is described, and only one may be where its like are.
    Nearness is the mean distance of the 2nd to 5th proposals (the 1st may be the clicked one) in units of what noise
    attains, so that a description of noise is not preferred. The other arguments are those of `distances`.
    """
    middle, noise = _background(background)
    null = fitted[_calm(background, _CALM)]

    def nearness(queries: Float64) -> float:
        query = queries.mean(axis=0)
        covariance = noise * (1 + 1 / len(queries)) + _variety(query, middle)
        distance = _distance(profiles, query, covariance)
        order = non_maximum_suppression(centres, -distance, radius, 1 + _SUPPORT)[1:]
        return float(distance[order].mean()) / _bound(null, query, covariance) if len(order) else 0.0

    return min(options, key=nearness)


def best_contrasted(
    centres: Float64,
    profiles: Float64,
    options: list[Float64],
    contrasts: list[float],
    mean: float,
    background: Float64,
    radius: float,
    fitted: Float64,
) -> tuple[Float64, float]:
    """The description (m, P) of particles clicked in another tomogram, at the contrast that they have in this one.

    Parameters
    ----------
    options : descriptions in this tomogram's grey values, as if its particles stood out as much as the donor's
    contrasts : factors to try, of shell means about `mean`, the tomogram's, and of deviations within shells
    The other arguments are those of `distances`.

    Returns them and the factor that was chosen.

    Notes
    -----
    Grey values in units of their deviation differ between tomograms: most of the deviation is noise, and where there
    is less of it the same particle stands out more. The contrast is that at which the particle's like is nearest, by
    the geometric mean of the four nearest distances in units of what noise attains: one or two of a kind are enough
    to decide. None at all must not make a likeness of something else, so contrasts near 1 are preferred a little.
    """
    middle, noise = _background(background)
    null = fitted[_calm(background, _CALM)]

    def unlikeness(contrast: float, queries: Float64) -> float:
        query = queries.mean(axis=0)
        covariance = noise * (1 + 1 / len(queries)) + _variety(query, middle)
        distance = _distance(profiles, query, covariance)
        nearest = distance[non_maximum_suppression(centres, -distance, radius, _SUPPORT)]
        logs = np.log(np.maximum(nearest / _bound(null, query, covariance), 1e-3))
        return float(logs.mean()) + _LIKELY * abs(math.log2(contrast)) if len(logs) else 0.0

    tried = [(contrast, contrasted(queries, contrast, mean)) for queries in options for contrast in contrasts]
    contrast, best = min(tried, key=lambda one: unlikeness(*one))
    return best, contrast


def contrasted(profiles: Float64, contrast: float, mean: float) -> Float64:
    """Profiles (m, P) whose shell means stand `contrast` times as far from `mean`, and whose deviations are so too."""
    level = np.repeat([mean, 0.0], profiles.shape[1] // 2)
    return np.asarray(level + contrast * (profiles - level))


def similarity(distance: Float64) -> Float64:
    """Scores in (0, 1], 1 / (1 + d²): a half for a typical one of a kind."""
    return 1 / (1 + np.asarray(distance) ** 2)


def _variety(query: Float64, middle: Float64) -> Float64:
    """Covariance (P, P) of what two of a kind differ by, besides noise."""
    signal = np.abs(query - middle).reshape(2, -1)
    floor = _VARIETY_FLOOR * signal.max(axis=1, keepdims=True)
    return np.diag((_VARIETY * np.maximum(signal, floor)).ravel() ** 2 + 1e-12)


def _bound(null: Float64, query: Float64, covariance: Float64) -> float:
    """Distance within which a proposal is not just noise at its best fit; infinite where noise was not fitted."""
    return _NULL_SHARE * float(np.median(_distance(null, query, covariance))) if len(null) else np.inf


def _calm(profiles: Float64, share: float) -> NDArray[np.bool_]:
    """Which of (b, P) profiles are the `share` that lies nearest to their median."""
    middle = np.median(profiles, axis=0)
    deviation = 1.4826 * np.median(np.abs(profiles - middle), axis=0) + 1e-9
    unlike = (((profiles - middle) / deviation) ** 2).sum(axis=1)
    calm: NDArray[np.bool_] = unlike <= np.quantile(unlike, share)
    return calm


def _background(profiles: Float64) -> tuple[Float64, Float64]:
    """Mean and covariance of the four fifths of (b, P) profiles that lie nearest to their median."""
    calm = profiles[_calm(profiles, 0.8)]
    covariance = np.cov(calm.T)
    return calm.mean(axis=0), 0.9 * covariance + 0.1 * np.diag(np.diag(covariance)) + 1e-12 * np.eye(profiles.shape[1])


def _distance(profiles: Float64, query: Float64, covariance: Float64) -> Float64:
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    result = np.empty(len(profiles))
    for first in range(0, len(profiles), _COMPARED):
        part = slice(first, first + _COMPARED)
        result[part] = np.sqrt((((profiles[part] - query) @ root) ** 2).mean(axis=1))
    return result


def _are_enough(centres: Float64, distance: Float64, like: NDArray[np.bool_], radius: float, unlike: Float64) -> bool:
    """Whether there are proposals to learn from: any, or where there are negatives, several at places of their own."""
    least, near = _LEAST if len(unlike) else 1, np.flatnonzero(like)
    return len(non_maximum_suppression(centres[near], -distance[near], radius, least)) >= least


def _nearest(profiles: Float64, examples: Float64, covariance: Float64) -> Float64:
    """Distance of each (n, P) profile to the nearest of (k, P) examples."""
    nearest = np.full(len(profiles), np.inf)
    for example in examples:
        np.minimum(nearest, _distance(profiles, example, covariance), out=nearest)
    return nearest


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
