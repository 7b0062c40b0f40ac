"""Cut: how the number of proposals is found from their scores, for each way in which candidates are ranked.

The one place that knows it; proposals are chosen by it, and reports say it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import peaks
from cryosam_dask.kernels.peaks import Cut
from cryosam_dask.kernels.standing_out import Standing, alike_cut
from cryosam_dask.settings import MatchSettings

Float64 = NDArray[np.float64]

EXTENDED = "every place that is like what was clicked"


@dataclass(frozen=True)
class Way:
    """A way to find a cut.

    Attributes
    ----------
    find : the cut of (n,) scores; what is known besides them is used by some
    words : what the cut is made by, for a methods section; reference : the publication to cite
    clicked : whether the scores of places that were clicked are among them
    """

    find: Callable[[Float64, Standing], Cut]
    words: str
    reference: str | None = None
    clicked: bool = True


WAYS: dict[str, Way] = {
    "similarity": Way(
        alike_cut,
        "probabilities from a mixture of two groups of similarities",
        "Efron B. Large-scale simultaneous hypothesis testing: the choice of a null hypothesis. "
        "Journal of the American Statistical Association 99, 2004.",
        clicked=False,
    ),
    "profile": Way(lambda scores, _: peaks.auto_cut(scores), "the gap in their scores"),
    "descriptor": Way(
        lambda scores, _: peaks.likely_cut(scores),
        "the highest expected F1",
        "Lipton ZC, Elkan C, Naryanaswamy B. Optimal thresholding of classifiers to maximize F1 measure. "
        "ECML PKDD 2014.",
    ),
}
"""By `match.rank`."""


def find(scores: Float64, settings: MatchSettings, standing: Standing) -> Cut:
    """The cut of scores (n,) of candidates where `match.count` is "auto"."""
    if settings.structure == "extended":
        return Cut(float(scores.min()) if len(scores) else 0.0, len(scores), EXTENDED)
    return WAYS[settings.rank].find(scores, standing)


def counts_clicked(settings: MatchSettings) -> bool:
    """Whether the scores of clicked places belong to those that a cut is found from."""
    return settings.structure == "extended" or WAYS[settings.rank].clicked
