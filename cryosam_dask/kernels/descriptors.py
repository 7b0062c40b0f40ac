"""Which of the places that a segmenter of volumes saw are of the clicked kind, by their descriptors.

A descriptor is a unit vector; two particles of a kind have similar ones whatever their orientation, noise and
neighbours. One click's is uncertain. So the nearest places, as long as they are surely of the kind, join the query as
examples, round by round, and average its noise away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels.peaks import non_maximum_suppression

Float64 = NDArray[np.float64]

_ROUNDS = (2, 4, 8, 16)
"""Places that join the query, round by round."""

_SURELY = 0.65
"""Probability from which a place may join."""

WEIGHTS = (2.12, 30.79, -0.98, 1.61, -1.45, -8.68, 0.12)
"""Of `terms`, where the click is in this tomogram; from `training/evaluate.py`, on tomograms that have more of the kind
and such that have not."""

STRICT = (-4.72, 32.21, -0.93, 1.42, -1.55, -2.48, 0.11)
"""The same for a query of another tomogram: that this one has the kind at all is not known."""

_UNLIKE = 0.5
"""Similarity below which places are not told apart."""

_NEXT = 5
"""The place, counted by falling similarity from 0, whose similarity says what two of the kind may have here."""


@dataclass(frozen=True)
class Places:
    """What was seen at n places.

    centres : (n, 3) voxels; descriptors : (n, D); quality, centrality : (n,) 0 to 1; sizes : (n,) voxels
    """

    centres: Float64
    descriptors: Float64
    quality: Float64
    centrality: Float64
    sizes: Float64

    def __len__(self) -> int:
        return len(self.centres)


@dataclass(frozen=True)
class Query:
    """What was clicked.

    descriptors : (m, D) of the clicks; quality : 0 to 1, of their masks; size : voxels of their masks
    radius : voxels; of places that are nearer to each other than this one may join
    negatives : (k, D) descriptors of what is not of the kind
    """

    descriptors: Float64
    quality: float
    size: float
    radius: float
    negatives: Float64


def probabilities(places: Places, query: Query, weights: Sequence[float] = WEIGHTS) -> Float64:
    """How probably each place is of the kind, (n,) 0 to 1; 0 for one that is more similar to a negative.

    weights : `WEIGHTS`, or `STRICT` for a query of another tomogram
    """
    if not len(places):
        return np.empty(0)
    return probability(places, query, learned(places, query, weights), weights)


def learned(places: Places, query: Query, weights: Sequence[float] = WEIGHTS) -> Float64:
    """The descriptor (D,) of the clicks and of the places that surely are of their kind."""
    clicked = query.descriptors.sum(axis=0)
    mean = _unit(clicked)
    for count in _ROUNDS:
        likely = probability(places, query, mean, weights)
        sure = np.flatnonzero(likely >= _SURELY)
        sure = sure[non_maximum_suppression(places.centres[sure], likely[sure], query.radius, count)]
        if len(sure):
            mean = _unit(clicked + places.descriptors[sure].sum(axis=0))
        if len(sure) < count:
            break
    return mean


def terms(places: Places, query: Query, mean: Float64) -> Float64:
    """What `WEIGHTS` weigh, (n, 7).

    A constant; the square of the similarity to `mean` above `_UNLIKE`; logits of quality and centrality; the
    logarithm of the sizes' ratio, unsigned; the similarity that others of the kind have here, for clicks in noise are
    less like any; the logit of the clicks' quality.
    """
    similarity = places.descriptors @ mean
    there = np.sort(similarity)[::-1][min(_NEXT, len(places) - 1)]
    columns = (
        np.ones(len(places)),
        np.maximum(similarity - _UNLIKE, 0) ** 2,
        _logit(places.quality),
        _logit(places.centrality),
        np.abs(np.log(np.maximum(places.sizes, 1) / max(query.size, 1.0))),
        np.full(len(places), there),
        np.full(len(places), _logit(np.array([query.quality]))[0]),
    )
    return np.stack(columns, axis=1)


def probability(places: Places, query: Query, mean: Float64, weights: Sequence[float]) -> Float64:
    """`probabilities` by the descriptor `mean` (D,), which no place joins."""
    total = terms(places, query, mean) @ np.asarray(weights, float)
    likely = np.asarray(1 / (1 + np.exp(-np.clip(total, -30, 30))))
    likely[_rejected(places, mean, query.negatives)] = 0.0
    return likely


def _rejected(places: Places, mean: Float64, negatives: Float64) -> NDArray[np.bool_]:
    if not len(negatives):
        return np.zeros(len(places), bool)
    nearest = (places.descriptors @ negatives.T).max(axis=1)
    return np.asarray(nearest > places.descriptors @ mean)


def _logit(values: Float64) -> Float64:
    inside = np.clip(values, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(inside / (1 - inside)))


def _unit(vector: Float64) -> Float64:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))
