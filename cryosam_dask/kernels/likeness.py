"""How like the clicked particle a place is, by comparing their profiles (`kernels.radial_profiles`).

The distance of two profiles is in units of the differences that noise and the variety of a species cause. The
covariance of the noise is measured on the tomogram's background. Two particles of a kind have a distance near 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels.peaks import TYPICAL, non_maximum_suppression

Float64 = NDArray[np.float64]

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
_COMPARED = 4096  # profiles that are compared at a time
_PRIOR = 0.5  # weight of the assumed variety against the examples' own, in examples per number of the profile


@dataclass(frozen=True)
class _Noise:
    """The distribution of profiles of the background, and how near noise comes at its best fit.

    middle : (P,) mean; covariance : (P, P), of the four fifths of the places that lie nearest to their median
    null : (k, P) profiles of the calmest places, moved to the best fit of the query's profile; there may be none
    """

    middle: Float64
    covariance: Float64
    null: Float64

    @classmethod
    def of(cls, background: Float64, fitted: Float64 | None) -> _Noise:
        """The arguments are those of `distances`."""
        calm = background[_calm(background, 0.8)]
        spread, count = np.cov(calm.T), background.shape[1]
        covariance = 0.9 * spread + 0.1 * np.diag(np.diag(spread)) + 1e-12 * np.eye(count)
        null = np.empty((0, count)) if fitted is None else fitted[_calm(background, _CALM)]
        return cls(calm.mean(axis=0), covariance, null)

    def variety(self, query: Float64) -> Float64:
        """Covariance (P, P) of the difference of two particles of a kind, besides noise."""
        signal = np.abs(query - self.middle).reshape(2, -1)
        floor = _VARIETY_FLOOR * signal.max(axis=1, keepdims=True)
        return np.diag((_VARIETY * np.maximum(signal, floor)).ravel() ** 2 + 1e-12)

    def around(self, queries: Float64) -> tuple[Float64, Float64]:
        """The mean (P,) of (m, P) profiles of one kind, and the covariance of another one's difference from it."""
        query = queries.mean(axis=0)
        return query, self.covariance * (1 + 1 / len(queries)) + self.variety(query)

    def bound(self, query: Float64, covariance: Float64) -> float:
        """Distance within which a proposal is not just noise at its best fit; infinite where noise was not fitted."""
        if not len(self.null):
            return np.inf
        return _NULL_SHARE * float(np.median(_distance(self.null, query, covariance)))


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
    centres, profiles : (n, 3) voxels and (n, P), from `radial_profiles.describe`
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
    noise = _Noise.of(background, fitted)
    query, covariance = noise.around(queries)
    result, bound = _distance(profiles, query, covariance), noise.bound(query, covariance)
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
        inner = (1 - trust) * (noise.covariance + noise.variety(query)) + trust * spread
        covariance = noise.covariance / len(examples) + inner
        result, bound = _distance(profiles, mean, covariance), noise.bound(mean, covariance)
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
    noise = _Noise.of(background, fitted)

    def nearness(queries: Float64) -> float:
        query, covariance = noise.around(queries)
        distance = _distance(profiles, query, covariance)
        order = non_maximum_suppression(centres, -distance, radius, 1 + _SUPPORT)[1:]
        return float(distance[order].mean()) / noise.bound(query, covariance) if len(order) else 0.0

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
    noise = _Noise.of(background, fitted)

    def unlikeness(contrast: float, queries: Float64) -> float:
        query, covariance = noise.around(queries)
        distance = _distance(profiles, query, covariance)
        nearest = distance[non_maximum_suppression(centres, -distance, radius, _SUPPORT)]
        logs = np.log(np.maximum(nearest / noise.bound(query, covariance), 1e-3))
        return float(logs.mean()) + _LIKELY * abs(math.log2(contrast)) if len(logs) else 0.0

    tried = [(contrast, contrasted(queries, contrast, mean)) for queries in options for contrast in contrasts]
    contrast, best = min(tried, key=lambda trial: unlikeness(*trial))
    return best, contrast


def contrasted(profiles: Float64, contrast: float, mean: float) -> Float64:
    """Profiles (m, P) whose shell means stand `contrast` times as far from `mean`, and whose deviations are so too."""
    level = np.repeat([mean, 0.0], profiles.shape[1] // 2)
    return np.asarray(level + contrast * (profiles - level))


def similarity(distance: Float64) -> Float64:
    """Scores in (0, 1], 1 / (1 + d²): a half for a typical one of a kind."""
    return 1 / (1 + np.asarray(distance) ** 2)


def _calm(profiles: Float64, share: float) -> NDArray[np.bool_]:
    """Which of (b, P) profiles are the `share` that lies nearest to their median."""
    middle = np.median(profiles, axis=0)
    deviation = 1.4826 * np.median(np.abs(profiles - middle), axis=0) + 1e-9
    unlike = (((profiles - middle) / deviation) ** 2).sum(axis=1)
    calm: NDArray[np.bool_] = unlike <= np.quantile(unlike, share)
    return calm


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
