"""Proposals from scores: order, non-maximum suppression, the best K, and a cut found from the scores themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Index = NDArray[np.int64]

_FIRST_CHUNK = 1024
_SLACK = 1.0 + 1e-9  # the tree's own rounding must not lose a pair; the exact test follows

_LEAST_LIKELY = 0.25
"""Probability below which no place is kept."""


def best_first(coords: NDArray[np.floating], scores: NDArray[np.floating]) -> Index:
    """Indices that sort (N, 3) `coords` (z, y, x) by falling score, ties by (z, y, x)."""
    points = np.asarray(coords)
    return np.lexsort((points[:, 2], points[:, 1], points[:, 0], -np.asarray(scores, np.float64)))


def top_k(coords: NDArray[np.floating], scores: NDArray[np.floating], k: int) -> Index:
    """Indices of the `k` best of N, best first, ties by (z, y, x); all N when there are fewer."""
    values = np.asarray(scores, np.float64)
    if 0 < k < len(values):  # a partition first: sorting everything costs more than the search did
        bound = np.partition(values, len(values) - k)[len(values) - k]
        candidates = np.flatnonzero(values >= bound)
    else:
        candidates = np.arange(len(values))
    order: Index = candidates[best_first(np.asarray(coords)[candidates], values[candidates])]
    return order[: max(k, 0)]


def non_maximum_suppression(
    coords: NDArray[np.floating],
    scores: NDArray[np.floating],
    radius: float,
    limit: int | None = None,
    better: NDArray[np.float64] | None = None,
) -> Index:
    """Greedy suppression: best first, a point goes when a kept one lies within `radius` (inclusive).

    Parameters
    ----------
    coords : (N, 3) positions (z, y, x), in the unit of `radius`
    scores : (N,), larger is better, finite
    radius : 0 drops exact duplicates only
    limit : the first so many kept points are enough
    better : (M, 3) points that are kept already, of higher scores than all of these; points come in portions so

    Returns
    -------
    Indices of the kept points, best first, ties by (z, y, x). Any two kept points are farther apart than `radius`;
    each dropped one has a kept one that precedes it within `radius`.

    Raises
    ------
    ValueError : a negative radius, non-finite scores or coordinates, or shapes that do not agree

    Notes
    -----
    Points are taken in chunks of growing size: those near an already kept point go by one tree query, and only the
    survivors of a chunk are settled one by one. A million candidates of a dense similarity map take seconds.
    """
    points = np.asarray(coords, np.float64).reshape(-1, 3)
    values = np.asarray(scores, np.float64)
    if values.shape != (len(points),):
        raise ValueError(f"scores have shape {values.shape}, expected ({len(points)},)")
    if not (radius >= 0 and np.isfinite(values).all() and np.isfinite(points).all()):
        raise ValueError(f"radius ({radius}) must be at least 0, scores and coordinates finite")
    order = best_first(points, values)
    before = np.empty((0, 3)) if better is None else np.asarray(better, np.float64)
    kept: Index = np.empty(0, np.int64)
    start, size = 0, _FIRST_CHUNK
    while start < len(order) and (limit is None or len(kept) < limit):
        chunk = order[start : start + size]
        chunk = chunk[~_near(points[chunk], np.concatenate([before, points[kept]]), radius)]
        kept = np.concatenate([kept, chunk[_settle(points[chunk], radius)]])
        start, size = start + size, 2 * size
    return kept[:limit]


def _near(points: NDArray[np.float64], kept: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Which of `points` have one of `kept` within `radius`."""
    if not len(points) or not len(kept):
        return np.zeros(len(points), bool)
    _, nearest = cKDTree(kept).query(points, distance_upper_bound=radius * _SLACK + 1e-300)
    within = nearest < len(kept)
    near = np.zeros(len(points), bool)
    near[within] = _squared(points[within] - kept[nearest[within]]) <= radius * radius
    return near


def _settle(points: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Greedy suppression among points that are already in order."""
    alive = np.ones(len(points), bool)
    if len(points) < 2:
        return alive
    pairs = cKDTree(points).query_pairs(radius * _SLACK, output_type="ndarray")
    pairs = pairs[_squared(points[pairs[:, 0]] - points[pairs[:, 1]]) <= radius * radius]
    pairs.sort(axis=1)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    ends = np.searchsorted(pairs[:, 0], np.arange(len(points) + 1))
    for i in np.flatnonzero(np.diff(ends)):
        if alive[i]:
            alive[pairs[ends[i] : ends[i + 1], 1]] = False
    return alive


def _squared(offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.einsum("ij,ij->i", offsets, offsets)
    return total


class Cut(NamedTuple):
    """A threshold (scores at or above it stay), how many stay, and why it lies there, in words.

    clear : whether anything stands out from the background; if not, what stays are a few at most
    """

    threshold: float
    kept: int
    reason: str
    clear: bool = True


NOTHING = "nothing stands out from the background"
"""How the reason of a cut begins that is not clear."""

TYPICAL = 1.8  # distance at which a proposal is as likely of the kind as not, if the scores show no gap
_TYPICAL_SPREAD = 0.15  # how far, in log distance, a gap may pull the cut away from it
_BANDWIDTH = 0.08
_RANGE = (0.9, 3.0)  # the cut never leaves these distances


def auto_cut(scores: NDArray[np.floating]) -> Cut:
    """Where the particles of the kind end among ranked proposals.

    Parameters
    ----------
    scores : (N,) in (0, 1], from `likeness.similarity`: 1 / (1 + d²), d about 1 for two of a kind

    Notes
    -----
    Distances are calibrated by the tomogram's own noise, so that a fixed distance would already serve. The cut is the
    emptiest place near it: the minimum over log d of log(density + ¼) + ((log d − log 1.8) / 0.15)² / 2, the density a
    Gaussian kernel estimate of the number of proposals. So it falls into a gap where there is one, and stays close
    to 1.8 where proposals fade out evenly, also when all of them, or none, are of the kind.
    """
    values = np.asarray(scores, np.float64).ravel()
    if not ((values > 0) & (values <= 1)).all():
        raise ValueError("scores must lie in (0, 1]")
    logs = 0.5 * np.log(np.maximum(1 / values - 1, 1e-6)) if len(values) else np.empty(0)
    grid = np.linspace(np.log(_RANGE[0]), np.log(_RANGE[1]), 121)
    logs_near = logs[np.abs(logs - grid.mean()) < np.ptp(grid)]
    density = np.array([np.exp(-0.5 * ((place - logs_near) / _BANDWIDTH) ** 2).sum() for place in grid])
    cost = np.log(density + 0.25) + 0.5 * ((grid - np.log(TYPICAL)) / _TYPICAL_SPREAD) ** 2
    best = int(np.argmin(cost))
    threshold = float(1 / (1 + np.exp(2 * grid[best])))
    kept = int((values >= threshold).sum())
    if not kept:
        return Cut(
            threshold, 0, f"{NOTHING}: none of {len(values)} places is near the distance of two of a kind", False
        )
    reason = (
        f"{kept} of {len(values)} proposals score at least {threshold:.3f} (distance {np.exp(grid[best]):.2f}), "
        f"{'a gap in the scores' if density[best] < 1 else 'the emptiest place in the scores'} near the distance "
        f"of two of a kind"
    )
    return Cut(threshold, kept, reason)


def likely_cut(scores: NDArray[np.floating]) -> Cut:
    """The cut of (N,) probabilities at which F1 is to be expected highest, but none of them below `_LEAST_LIKELY`.

    Expected F1 of the K best is 2 Σ p of these / (K + Σ p of all): Lipton et al., Optimal thresholding of classifiers
    to maximize F1 measure, ECML 2014.
    """
    best = np.sort(np.asarray(scores, np.float64))[::-1]
    if not len(best) or best[0] < _LEAST_LIKELY:
        return Cut(_LEAST_LIKELY, 0, f"{NOTHING}: {len(best)} places, none likely", False)
    total = np.cumsum(best)
    count = int(np.argmax(2 * total / (np.arange(1, len(best) + 1) + total[-1])))
    threshold = max(float(best[count]), _LEAST_LIKELY)
    kept = int((best >= threshold).sum())
    return Cut(
        threshold, kept, f"{kept} of {len(best)} places are of the kind with a probability of {threshold:.2f} or more"
    )
