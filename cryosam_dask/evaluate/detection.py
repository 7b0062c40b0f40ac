"""Picks against true positions: one-to-one matching, precision, recall, F-beta, average precision and the curve.

Sources
-------
precision, recall, F-beta : C. J. van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7
average precision : M. Everingham et al., The PASCAL Visual Object Classes Challenge, as from 2010 on: the area under
    the precision-recall curve, with the precision at each recall replaced by the largest at that recall or more
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError

Float64 = NDArray[np.float64]

_ROUNDING = 1e-9
"""Share of the radius that a distance may be longer by: 10 voxels of 13.48 Å are 134.8 Å, whatever the last bit."""


class CurvePoint(NamedTuple):
    """Precision and recall of the picks that score `threshold` or more."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return f_beta(self.precision, self.recall)


@dataclass(frozen=True)
class Evaluation:
    """How well picks agree with the truth.

    true_positives, false_positives, false_negatives : of the largest possible one-to-one matching within `radius`
    precision, recall, f1 : from these counts
    average_precision : area under the interpolated precision-recall curve (see `evaluate_picks`)
    best_f1, best_threshold : the largest F1 on the curve, and the score from which on picks are kept there; None where
        there is no curve
    curve : one point for each distinct score, best first
    radius : voxels, or Å where `unit` is "angstrom"
    """

    precision: float
    recall: float
    f1: float
    average_precision: float
    true_positives: int
    false_positives: int
    false_negatives: int
    curve: tuple[CurvePoint, ...]
    radius: float
    best_f1: float
    best_threshold: float | None
    unit: str = "voxel"

    def f_beta(self, beta: float) -> float:
        """F-beta of all picks."""
        return f_beta(self.precision, self.recall, beta)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve as a list of {threshold, precision, recall}."""
        return asdict(self) | {"curve": [p._asdict() for p in self.curve]}


class Ranked(NamedTuple):
    """Picks with whether each is a hit, from which all figures follow; `pooled` joins those of many tomograms.

    scores : (N,) float; hits : (N,) bool, such that those of the picks that score t or more are, for every t, as many
        as the largest one-to-one matching of these picks has pairs
    truth : number of true positions
    """

    scores: Float64
    hits: NDArray[np.bool_]
    truth: int


def f_beta(precision: float, recall: float, beta: float = 1.0) -> float:
    """(1 + β²) · P · R / (β² · P + R): recall counts β times as much as precision; 0 where both are 0.

    Raises InputError for a β that is not above 0.
    """
    if not (np.isfinite(beta) and beta > 0):
        raise InputError(f"beta: expected a number above 0, found {beta!r}")
    if not precision + recall > 0:
        return 0.0
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def evaluate_picks(
    found: ArrayLike,
    scores: ArrayLike | None,
    truth: ArrayLike,
    radius: float,
    *,
    voxel_size: float | Sequence[float] | None = None,
) -> Evaluation:
    """Compare picks with true positions.

    Parameters
    ----------
    found : (N, 3) voxels (z, y, x); scores : (N,), larger is better, None where there are none
    truth : (M, 3) voxels (z, y, x)
    radius : a pick and a true position this far apart or nearer can be partners, one to one. Voxels, or Å where a
        voxel size is given
    voxel_size : Å, one number or (z, y, x)

    The counts at each threshold, and those of all picks, are of a maximum matching of the picks that score as much
    or more: they don't depend on the order of the picks, and a second pick on one particle is a false positive.
    Average precision is Σ (R_k - R_{k-1}) · max_{j ≥ k} P_j over the distinct scores, best first.

    With neither picks nor truth everything is 1; with one of them missing, everything is 0. Raises InputError
    on shapes that don't fit, values that aren't finite, or a radius that isn't above 0.
    """
    ranked = rank_picks(found, scores, truth, radius, voxel_size=voxel_size)
    return figures_of(ranked, radius, "voxel" if voxel_size is None else "angstrom")


def rank_picks(
    found: ArrayLike,
    scores: ArrayLike | None,
    truth: ArrayLike,
    radius: float,
    *,
    voxel_size: float | Sequence[float] | None = None,
) -> Ranked:
    """Which picks are hits; arguments and errors are those of `evaluate_picks`."""
    places, targets = positions(found, "picks"), positions(truth, "truth")
    values = np.zeros(len(places)) if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(values) != len(places):
        raise InputError(f"picks: expected one score for each of {len(places)} picks, found {len(values)}")
    if not np.isfinite(values).all():
        raise InputError("picks: expected finite scores, found NaN or infinite ones")
    if not (np.isfinite(radius) and radius > 0):
        raise InputError(f"radius: expected {'voxels' if voxel_size is None else 'Å'} above 0, found {radius!r}")
    if voxel_size is not None:
        scale = np.broadcast_to(np.asarray(voxel_size, dtype=np.float64), 3)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise InputError(f"voxel size: expected Å above 0, found {voxel_size!r}")
        places, targets = places * scale, targets * scale
    return Ranked(values, _hits(places, values, targets, radius * (1 + _ROUNDING)), len(targets))


def pooled(parts: Sequence[Ranked]) -> Ranked:
    """The picks of many tomograms as if they were one: what is matched in one of them has no say in another."""
    scores = np.concatenate([p.scores for p in parts]) if parts else np.zeros(0)
    hits = np.concatenate([p.hits for p in parts]) if parts else np.zeros(0, dtype=bool)
    return Ranked(scores, hits, sum(p.truth for p in parts))


def figures_of(ranked: Ranked, radius: float, unit: str = "voxel") -> Evaluation:
    """All figures of ranked picks; `radius` and `unit` are written down as they are."""
    picks, hits = len(ranked.scores), int(ranked.hits.sum())
    if picks == 0 or ranked.truth == 0:
        value = float(picks == ranked.truth)
        return Evaluation(value, value, value, value, 0, picks, ranked.truth, (), float(radius), value, None, unit)
    curve = _curve(ranked)
    best = max(curve, key=lambda p: p.f1)  # the first of equals: the highest threshold
    return Evaluation(
        precision=hits / picks,
        recall=hits / ranked.truth,
        f1=2 * hits / (picks + ranked.truth),
        average_precision=_area(curve),
        true_positives=hits,
        false_positives=picks - hits,
        false_negatives=ranked.truth - hits,
        curve=curve,
        radius=float(radius),
        best_f1=best.f1,
        best_threshold=best.threshold,
        unit=unit,
    )


def positions(values: ArrayLike, what: str) -> Float64:
    """(N, 3) float64 of anything of that shape; InputError, which calls it `what`, for anything else."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what}: expected positions of shape (N, 3) as z, y, x") from None
    if array.size == 0:
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"{what}: expected positions of shape (N, 3) as z, y, x, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{what}: expected finite positions, found NaN or infinite ones")
    return array


def _hits(places: Float64, scores: Float64, targets: Float64, radius: float) -> NDArray[np.bool_]:
    """Whether each pick makes the maximum matching larger when picks come in order of score.

    A pick takes the nearest free partner, or one that is freed along an augmenting path (C. Berge, 1957); to prefer the
    nearest makes paths short and changes no count. What a search without
    success has seen holds no free partner and never will: later searches leave it out, so all of them together look at
    each pair once. Partners are looked up when they are needed, as a radius over a whole tomogram makes many pairs.
    """
    from scipy.spatial import cKDTree

    hit = np.zeros(len(places), dtype=bool)
    if len(places) == 0 or len(targets) == 0:
        return hit
    tree = cKDTree(targets)
    owner = np.full(len(targets), -1, dtype=np.int64)
    closed = np.zeros(len(targets), dtype=bool)

    def partners(pick: int) -> NDArray[np.int64]:
        near = np.array(tree.query_ball_point(places[pick], radius), dtype=np.int64)
        near = near[~closed[near]]
        return near[np.argsort(((targets[near] - places[pick]) ** 2).sum(axis=1))]

    for pick in np.argsort(-scores, kind="stable").tolist():
        hit[pick] = _augment(pick, partners, owner, closed)
    return hit


def _augment(
    pick: int, partners: Callable[[int], NDArray[np.int64]], owner: NDArray[np.int64], closed: NDArray[np.bool_]
) -> bool:
    """Give `pick` a partner, moving others to another of theirs where that takes it; False where it can't be."""
    came_from: dict[int, int] = {}
    waiting = [pick]
    for holder in waiting:
        near = partners(holder)
        free = near[owner[near] < 0]
        if len(free):
            target = int(free[0])
            came_from[target] = holder
            _move(target, pick, owner, came_from)
            return True
        for target in near.tolist():
            if target not in came_from:
                came_from[target] = holder
                waiting.append(int(owner[target]))
    closed[list(came_from)] = True
    return False


def _move(target: int, pick: int, owner: NDArray[np.int64], came_from: dict[int, int]) -> None:
    """Along the path that ends at the free `target`, each pick takes the target that it reached."""
    held = {int(owner[seen]): seen for seen in came_from}
    while True:
        taker = came_from[target]
        owner[target] = taker
        if taker == pick:
            return
        target = held[taker]


def _curve(ranked: Ranked) -> tuple[CurvePoint, ...]:
    order = np.argsort(-ranked.scores, kind="stable")
    scores = ranked.scores[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores pass a threshold together
    hits = np.cumsum(ranked.hits[order])[last]
    return tuple(
        CurvePoint(float(scores[k]), float(h / (k + 1)), float(h / ranked.truth))
        for k, h in zip(last, hits, strict=True)
    )


def _area(curve: tuple[CurvePoint, ...]) -> float:
    precision = np.array([p.precision for p in curve])
    recall = np.array([p.recall for p in curve])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))
