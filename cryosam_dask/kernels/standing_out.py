"""Where the kind ends among similarities of candidates: what stands out, if anything does, and if it is the kind.

Two groups of similarities come from `kernels.mixture`. Whether the upper one is of the kind, what was clicked tells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels.mixture import LARGEST, LEAST, Groups, groups
from cryosam_dask.kernels.peaks import NOTHING, Cut, likely_cut

Float64 = NDArray[np.float64]

NEAR = 0.7
"""A group is of the kind if it lies at least so much of the way from the background to what was clicked. Where all are
one group the threshold of similarity stands for the background; besides, …"""

MOST_OF_IT = 0.25
"""… what reaches the threshold must be at most this share of the tomogram, …"""

CLEAR_OF_IT = 0.5
"""… and nine in ten of the group must be farther from it than so much of their median distance: noise that reaches it
crowds there (0.15 of the median for an exponential tail)."""

_HANDFUL = 3
_BY_CHANCE = 0.05


class Standing(NamedTuple):
    """What is known of similarities besides the candidates' own.

    Attributes
    ----------
    own : similarity of what was clicked with the query, which is its mean; None where that is not known
    reached : share of the tomogram that reaches `lowest`, the threshold of candidates
    """

    own: float | None = None
    reached: float = 1.0
    lowest: float | None = None


UNKNOWN = Standing()


def alike_cut(scores: NDArray[np.floating], standing: Standing) -> Cut:
    """Where the kind ends among (N,) similarities of candidates, those of clicked places left out.

    Notes
    -----
    Two groups: the cut follows from the probabilities (`peaks.likely_cut`), unless the upper group is so much less
    like the query than what was clicked that it must be something else; then the kind is sought in that group alone.

    One group is the background, of which the few stay that are too far out for it; or it is all of the kind, where the
    threshold of similarity has removed the rest already. This it is if it is about as like the query as what was
    clicked, if little of the tomogram reaches the threshold, and if scores do not crowd there. Less than `LEAST` scores
    are judged one by one, like one group.
    """
    values = np.asarray(scores, float).ravel()
    alike = _alike(values, standing)
    if len(values) < LEAST:
        if alike.any():
            return _kept(values, float(values[alike].min()), "are about as like the query as what was clicked")
        none = f"none of {len(values)} places is surely as like the query as what was clicked"
        return Cut(_above(values), 0, f"{NOTHING}: {none}", False)
    inside, seen, near = _settled(values, standing)
    if seen.upper is None and 2 * alike.sum() >= len(values) and _is_clear_of(values, standing.lowest):
        return _kept(values, float(values.min()), "are one group, about as like the query as what was clicked")
    likely = likely_cut(seen.probability)
    if near and likely.kept:
        threshold = float(values[inside][seen.probability >= likely.threshold].min())
        return _kept(values, threshold, f"are of the kind with a probability of {likely.threshold:.2f} or more")
    return _outliers(values, inside, seen, standing.own)


def _settled(values: Float64, standing: Standing) -> tuple[NDArray[np.bool_], Groups, bool]:
    """The groups that the kind is told from: which scores they are of, and whether the upper one may be the kind.

    An upper group that is too little like what was clicked, or of which a part is, is not of the kind, or not all of
    it: it may be another kind, or most of the background, of which a part lies lower. Then it is parted itself.
    """
    own, inside = standing.own, np.ones(len(values), bool)
    seen = groups(values, standing.lowest, own is not None)
    while True:
        near = seen.upper is not None and _is_near(seen.upper, seen.lower, own)
        above = np.zeros(len(values), bool)
        above[inside] = seen.probability >= 0.5
        if not LEAST <= above.sum() < inside.sum():
            return inside, seen, near
        further = groups(values[above], float(values[above].min()), own is not None)
        if near and (further.upper is None or _is_near(further.lower, seen.lower, own)):
            return inside, seen, near
        inside, seen = above, further


def _alike(values: Float64, standing: Standing) -> NDArray[np.bool_]:
    """Which scores are about those of what was clicked, where the threshold left little of the tomogram."""
    own, lowest = standing.own, standing.lowest
    if own is None or lowest is None or own <= lowest or standing.reached > MOST_OF_IT:
        return np.zeros(len(values), bool)
    return np.asarray(values - lowest >= NEAR * (own - lowest))


def _is_near(group: tuple[float, float], lower: tuple[float, float], own: float | None) -> bool:
    """Whether a group may be of the kind, as far as what was clicked tells; (mean, deviation) as in `Groups`."""
    similarity, background = math.tanh(group[0]), math.tanh(lower[0])
    return own is None or own <= background or similarity - background >= NEAR * (own - background)


def _is_clear_of(values: Float64, lowest: float | None) -> bool:
    """Whether scores do not crowd at the threshold below which others were left out."""
    if lowest is None:
        return False
    first, middle = np.quantile(values, (0.1, 0.5))
    return bool(first - lowest >= CLEAR_OF_IT * (middle - lowest))


def _outliers(values: Float64, inside: NDArray[np.bool_], seen: Groups, own: float | None) -> Cut:
    """A handful at most, of those that are farther out than chance takes any of the background."""
    some = values[inside]
    far = np.sort(some[(seen.tail * len(some) < _BY_CHANCE)])[::-1]
    far = np.array([value for value in far if _is_near((math.atanh(min(value, LARGEST)), 0.0), seen.lower, own)])
    why = f"the similarities of {len(values)} places are one group"
    if seen.upper is not None or not inside.all():
        why = f"the best group of {len(values)} places is far less like the query than what was clicked"
    if not 0 < len(far) <= _HANDFUL:
        return Cut(_above(values), 0, f"{NOTHING}: {why}", False)
    return Cut(float(far[-1]), len(far), f"{NOTHING} but {len(far)} places: {why}", False)


def _kept(values: Float64, threshold: float, why: str) -> Cut:
    kept = int((values >= threshold).sum())
    return Cut(threshold, kept, f"{kept} of {len(values)} places {why} (similarity {threshold:.3f})")


def _above(values: Float64) -> float:
    """A threshold that none reaches."""
    return float(np.nextafter(values.max(), 2.0)) if len(values) else 1.0
