"""Which of the places that a segmenter of volumes saw are of the clicked kind, by their descriptors.

A descriptor is a unit vector; two particles of a kind have similar ones whatever their orientation, noise and
neighbours. One click's is uncertain. So the nearest places, as long as they are surely of the kind, join the query as
examples, round by round, and average its noise away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels.peaks import non_maximum_suppression

Float64 = NDArray[np.float64]

_ROUNDS = (2, 4, 8, 16)
"""Places that join the query, round by round."""

_SURELY = 0.6
"""Probability from which a place may join."""

_WEIGHTS = (-9.42, 9.67, 0.93, 1.27, -1.48)
"""Of a constant, the similarity, the logits of quality and centrality, and the logarithm of the sizes' ratio."""


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


def probabilities(places: Places, queries: Float64, size: float, radius: float, negatives: Float64) -> Float64:
    """How probably each place is of the kind, (n,) 0 to 1.

    queries : (m, D) descriptors of the clicks; size : voxels of the clicked ones; radius : voxels, places nearer than
    this count as one when examples join; negatives : (k, D) descriptors of what is not of the kind: a place that is
    more similar to one of these has probability 0
    """
    query = learned(places, queries, size, radius, negatives)
    result = _probability(places, query, size)
    result[_rejected(places, query, negatives)] = 0.0
    return result


def learned(places: Places, queries: Float64, size: float, radius: float, negatives: Float64) -> Float64:
    """The query (D,) of the clicks and of the places that surely are of their kind."""
    clicked = queries.sum(axis=0)
    query = _unit(clicked)
    for count in _ROUNDS:
        likely = _probability(places, query, size)
        likely[_rejected(places, query, negatives)] = 0.0
        sure = np.flatnonzero(likely >= _SURELY)
        sure = sure[non_maximum_suppression(places.centres[sure], likely[sure], radius, count)]
        if len(sure):
            query = _unit(clicked + places.descriptors[sure].sum(axis=0))
        if len(sure) < count:
            break
    return query


def terms_of(places: Places, queries: Float64, size: float, radius: float) -> Float64:
    """What `_WEIGHTS` weigh, (n, 5), after learning from the places: for fitting them."""
    return _terms(places, learned(places, queries, size, radius, np.empty((0, queries.shape[1]))), size)


def _terms(places: Places, query: Float64, size: float) -> Float64:
    ratio = np.abs(np.log(np.maximum(places.sizes, 1) / max(size, 1.0)))
    terms = (np.ones(len(places)), places.descriptors @ query, _logit(places.quality), _logit(places.centrality), ratio)
    return np.stack(terms, axis=1)


def _probability(places: Places, query: Float64, size: float) -> Float64:
    total = _terms(places, query, size) @ np.array(_WEIGHTS)
    return np.asarray(1 / (1 + np.exp(-np.clip(total, -30, 30))))


def _rejected(places: Places, query: Float64, negatives: Float64) -> NDArray[np.bool_]:
    if not len(negatives):
        return np.zeros(len(places), bool)
    nearest = (places.descriptors @ negatives.T).max(axis=1)
    return np.asarray(nearest > places.descriptors @ query)


def _logit(values: Float64) -> Float64:
    inside = np.clip(values, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(inside / (1 - inside)))


def _unit(vector: Float64) -> Float64:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))
