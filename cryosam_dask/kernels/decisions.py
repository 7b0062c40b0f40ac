"""What a person accepted and rejected, and how it changes what is believed of all other places.

Each place has a probability of being of the kind. Decisions correct its logit: places that are like accepted ones rise,
places that are like rejected ones fall, and others stay as they were. With no decisions nothing changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_REACH = 0.05
"""By how much the cosine of two places may fall short of 1 for one to tell of the other."""

_SPREAD = 3.0
"""Variance of what decisions may add to a logit: with more the first few promise too much, and too much is found."""

_MORE_LIKELY_THAN_NOT = 0.5
_MANY = 20
"""Decisions after which nothing is proposed that is less likely than that."""

_LEAST = 1e-4
_STEPS = 50
_ENOUGH = 1e-6


def corrected(prior: Float64, descriptors: Float64, decided: Float64, accepted: NDArray[np.bool_]) -> Float64:
    """Probabilities (n,) of places after decisions; `prior` where there are none.

    Logistic regression with a Gaussian process: the correction of a logit has zero mean and the covariance
    `_SPREAD` exp((s − 1) / `_REACH`) between places of cosine s; it is the most likely one, by Newton's
    steps (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 3.1).

    Parameters
    ----------
    prior : (n,) probabilities before
    descriptors : (n, D) of the places, unit vectors; decided : (k, D) of what was decided on
    accepted : (k,) how
    """
    if not len(decided) or not len(prior):
        return prior
    # what the prior says of what was decided: that of the place which is most like it
    here = descriptors @ decided.T
    before = _logit(prior)
    told = before[here.argmax(axis=0)]
    among = _covariance(decided @ decided.T)
    weights = _most_likely(told, among, accepted.astype(float))
    return np.asarray(_probability(before + _covariance(here) @ weights))


def agreed(threshold: float, scores: Float64, accepted: NDArray[np.bool_]) -> float:
    """The threshold that least of (k,) decisions contradict, being nearest to one that was found without them.

    A decision contradicts it if a place was accepted whose score is below, or rejected whose score reaches it. Nothing
    is said of scores lower than that of any accepted place, nor higher than that of any rejected one.
    """
    if not len(scores):
        return threshold
    candidates = np.concatenate([[threshold], scores[accepted], np.nextafter(scores[~accepted], np.inf)])
    wrong = [int((scores[accepted] < t).sum() + (scores[~accepted] >= t).sum()) for t in candidates]
    return float(min(zip(wrong, np.abs(candidates - threshold), candidates, strict=True))[2])


def least_likely(count: int) -> float:
    """The probability that a place must have at least to be proposed after so many decisions.

    A cut at the highest expected F1 takes places of lower probability, too, where few are to be lost. It is lowest for
    a query that was wrong, whose probabilities can be believed least, and it would add to what was corrected.
    """
    return min(_MORE_LIKELY_THAN_NOT, _MORE_LIKELY_THAN_NOT * count / _MANY)


def _most_likely(logits: Float64, covariance: Float64, truth: Float64) -> Float64:
    """Weights (k,) of the decided places; covariance @ weights corrects their logits."""
    weights = np.zeros(len(logits))
    for _ in range(_STEPS):
        likely = _probability(logits + covariance @ weights)
        slope = np.maximum(likely * (1 - likely), _LEAST)
        step = np.linalg.solve(slope[:, None] * covariance + np.eye(len(logits)), truth - likely - weights)
        weights += step
        if np.abs(step).max() < _ENOUGH:
            break
    return weights


def _covariance(cosine: Float64) -> Float64:
    return np.asarray(_SPREAD * np.exp((cosine - 1) / _REACH))


def _logit(probability: Float64) -> Float64:
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(inside / (1 - inside)))


def _probability(logit: Float64) -> Float64:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -30, 30))))
