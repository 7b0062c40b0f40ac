"""Which similarities are of the kind: a mixture of two groups of scores, and probabilities from it.

Cosines have no scale of their own: what counts as alike depends on the encoder, the noise and the tomogram. So the
scores of the candidates are modelled themselves, as for local false discovery rates (Efron, Large-scale simultaneous
hypothesis testing, JASA 2004): the background, and on its high side the kind. The probability of the kind at a score is
the share that the second group has in the density there.

Whether there are two groups depends on the shapes that one may have, since two symmetrical ones describe any skewed one
well. The background is a log-F distribution (Jones, Families of distributions arising from distributions of order
statistics, TEST 2004): its log density is concave, and its tails lie between those of a normal and of an exponential
distribution, each side by itself. So maxima of noise, normal and skewed scores are all one group. The density of two
normal groups of deviation σ is not log-concave from a distance of 2 σ on, whatever their shares: there telling them
apart begins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Float64 = NDArray[np.float64]

LEAST = 8
"""Scores below which no groups are sought."""

LARGEST = 0.9999
"""Cosines are taken for no more than this, or less than minus this."""

_FINE = 64  # groups of equal rank that scores are pooled in: the k-th from either end with k / 64 others
_STARTS = (0.02, 0.1, 0.3, 0.6, 0.9)  # shares of the kind that fits begin at
_APART = 1.7  # least distance of two groups' means, in their mean deviation
_FIRST, _PROMISING, _MOST = 8, 2, 50  # steps of all fits, how many go on, and their steps at most
_EVIDENCE = 2.0  # by how much log-likelihood must exceed what BIC asks for …
_MISFIT = 1e-3  # … and by how much more for each score, since no background is quite as the model has it


class Groups(NamedTuple):
    """Two groups of scores, or one.

    Attributes
    ----------
    probability : (N,) of each score, that it is of the upper group; never falls with the score. 0 where there is one
        group
    share : of the upper group
    lower, upper : (mean, deviation) of the groups as Fisher transforms of the scores; `upper` is None for one group
    evidence : by how much two groups are more likely than one, as a difference of log-likelihoods less what BIC, and
        some caution, ask for; there are two where it is above 0
    tail : (N,) share of the lower group that lies above each score
    """

    probability: Float64
    share: float
    lower: tuple[float, float]
    upper: tuple[float, float] | None
    evidence: float
    tail: Float64


def fisher(scores: Float64) -> Float64:
    """Fisher's transform of cosines, artanh, by which their spread depends little on where they lie."""
    return np.asarray(np.arctanh(np.clip(scores, -LARGEST, LARGEST)))


def groups(scores: Float64, lowest: float | None = None, placed: bool = False) -> Groups:
    """Part (N,) cosines in background and kind, N from `LEAST` on.

    lowest : below which scores were left out, if they were; groups are then cut there
    placed : whether it is known where the upper group should lie, so that BIC asks for one number less
    """
    values = fisher(np.asarray(scores, float))
    middle, unit = float(np.median(values)), max(float(values.std()), 1e-4)
    scaled = (values - middle) / unit
    floor = -np.inf if lowest is None else (float(fisher(np.asarray(lowest))) - middle) / unit - 1e-6
    points, weights = _pooled(np.sort(scaled))
    one = _fit(_One(points, weights, floor), [_start_of_one(points, weights)])
    model = _Two(points, weights, floor)
    two = _fit(model, _starts_of_two(points, weights))
    caution = _EVIDENCE + _MISFIT * len(values)
    numbers = 2 if placed else 3
    evidence = one.value - two.value - 0.5 * numbers * math.log(len(values)) - caution
    lower, upper, share = model.read(two.where)
    if evidence <= 0:
        mean, deviation = float(one.where[0]), math.exp(one.where[1])
        told = (middle + unit * mean, unit * deviation)
        return Groups(np.zeros(len(values)), 0.0, told, None, evidence, _log_f_above(scaled, one.where[:4], floor))
    probability = _monotone(model, two.where, scaled)
    return Groups(
        probability,
        share,
        (middle + unit * lower[0], unit * lower[1]),
        (middle + unit * upper[0], unit * upper[1]),
        evidence,
        _log_f_above(scaled, two.where[:4], floor),
    )


def _pooled(ordered: Float64) -> tuple[Float64, Float64]:
    """Scores pooled with their neighbours in rank, the fewer the nearer to an end: values and how many each is of."""
    n = len(ordered)
    ends: list[int] = []
    k = 0
    while k < n // 2:
        k += 1 + k // _FINE
        ends.append(min(k, n // 2))
    edges = np.unique([0, *ends, *(n - np.array(ends, int)), n])
    counts = np.diff(edges).astype(float)
    return np.add.reduceat(ordered, edges[:-1]) / counts, counts


class _Fit(NamedTuple):
    where: Float64
    value: float


class _One:
    """Minus the log-likelihood of one group, with weak priors: mean, log deviation, log of both tails' rates."""

    def __init__(self, points: Float64, weights: Float64, floor: float) -> None:
        self.points, self.weights, self.floor = points, weights, floor
        self.bounds = [(-6.0, 6.0), (-5.0, 1.5), (-1.0, 4.0), (-1.0, 4.0)]

    def cost(self, where: Float64) -> float:
        return _prior(where) - float(self.weights @ _log_f(self.points, where, self.floor))


class _Two:
    """The same of two groups: besides distance in deviations, log ratio of deviations, and log odds of the upper."""

    def __init__(self, points: Float64, weights: Float64, floor: float) -> None:
        self.points, self.weights, self.floor = points, weights, floor
        self.bounds = [*_One(points, weights, floor).bounds, (_APART, 40.0), (-2.0, 1.5), (-9.0, 4.0)]

    def parts(self, points: Float64, where: Float64) -> tuple[Float64, Float64]:
        """Log densities of the groups, each times its share."""
        (mean, deviation), share = self.read(where)[1], special.expit(where[6])
        low = _log_f(points, where[:4], self.floor) + math.log1p(-share)
        inside = special.log_ndtr((mean - self.floor) / deviation) if np.isfinite(self.floor) else 0.0
        high = -0.5 * ((points - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi)) - inside
        return low, high + math.log(share)

    def cost(self, where: Float64) -> float:
        low, high = self.parts(self.points, where)
        prior = _prior(where) + 0.5 * (where[5] / 0.7) ** 2
        return float(prior - self.weights @ np.logaddexp(low, high))

    def read(self, where: Float64) -> tuple[tuple[float, float], tuple[float, float], float]:
        """(mean, deviation) of both groups, and the share of the upper one."""
        low = math.exp(where[1])
        high = math.exp(where[1] + where[5])
        distance = where[4] * math.sqrt((low**2 + high**2) / 2)
        return (where[0], low), (where[0] + distance, high), float(special.expit(where[6]))


def _prior(where: Float64) -> float:
    """Tails are a little heavier than a normal distribution's unless scores say otherwise."""
    return float(0.5 * ((where[2:4] - 1.5) ** 2).sum() + 0.02 * where[0] ** 2)


def _fit(model: _One | _Two, starts: list[Float64]) -> _Fit:
    """The best fit: a few steps from each start, then on from the most promising ones."""
    tried = sorted((_steps(model, start, _FIRST) for start in starts), key=lambda fit: fit.value)
    return min((_steps(model, fit.where, _MOST) for fit in tried[:_PROMISING]), key=lambda fit: fit.value)


def _steps(model: _One | _Two, start: Float64, steps: int) -> _Fit:
    options = {"maxiter": steps, "maxfun": 10 * steps}
    got = optimize.minimize(model.cost, start, method="L-BFGS-B", bounds=model.bounds, options=options)
    return _Fit(np.asarray(got.x), float(got.fun))


def _start_of_one(points: Float64, weights: Float64) -> Float64:
    mean = float(weights @ points / weights.sum())
    deviation = math.sqrt(float(weights @ (points - mean) ** 2 / weights.sum()))
    return np.array([mean, math.log(max(deviation, 0.02)), 1.5, 1.5])


def _starts_of_two(points: Float64, weights: Float64) -> list[Float64]:
    """From the best so many scores as the upper group."""
    below = np.cumsum(weights) / weights.sum()
    starts = []
    for share in _STARTS:
        top = below > 1 - share
        top[-1], top[0] = True, False
        low, high = (_start_of_one(points[part], weights[part]) for part in (~top, top))
        between = math.sqrt((math.exp(2 * low[1]) + math.exp(2 * high[1])) / 2)
        distance = float(np.clip((high[0] - low[0]) / between, _APART + 0.1, 39))
        starts.append(np.array([*low, distance, np.clip(high[1] - low[1], -1.5, 1), special.logit(share)]))
    return starts


def _standard(points: Float64, where: Float64) -> tuple[Float64, float, float, float]:
    """Points on the log-F distribution's own scale, its two rates, and that scale in units of the points."""
    mean, deviation, a, b = where[0], math.exp(where[1]), math.exp(where[2]), math.exp(where[3])
    scale = deviation / math.sqrt(special.zeta(2, a) + special.zeta(2, b))
    return (points - mean) / scale + special.digamma(a) - special.digamma(b), a, b, scale


def _log_f(points: Float64, where: Float64, floor: float) -> Float64:
    """Log density of the log-F distribution cut at `floor`: of log(g₁ / g₂), gamma variates of shapes a and b."""
    t, a, b, scale = _standard(points, where)
    out = a * t - (a + b) * np.logaddexp(0, t) - special.betaln(a, b) - math.log(scale)
    return np.asarray(out - math.log(_kept_above(where, floor)))


def _log_f_above(points: Float64, where: Float64, floor: float) -> Float64:
    """Share of the cut log-F distribution that lies above each point."""
    t, a, b, _ = _standard(points, where)
    above = special.betainc(b, a, special.expit(-t)) / _kept_above(where, floor)
    return np.asarray(np.minimum(above, 1.0))


def _kept_above(where: Float64, floor: float) -> float:
    """Share of the whole log-F distribution that a cut at `floor` leaves; 1 where there is none."""
    if not np.isfinite(floor):
        return 1.0
    at, a, b, _ = _standard(np.array([floor]), where)
    return max(float(special.betainc(b, a, special.expit(-at[0]))), 1e-12)


def _monotone(model: _Two, where: Float64, points: Float64) -> Float64:
    """Probability of the upper group, which falls nowhere: outside of both groups their tails decide nothing."""
    start = model.read(where)[0][0]
    order = np.argsort(points, kind="stable")
    low, high = model.parts(np.maximum(points[order], start), where)
    out = np.empty(len(points))
    out[order] = np.maximum.accumulate(special.expit(high - low))
    return out
