"""The cut in similarities: two groups or one, probabilities that are right, and what is done where none stands out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cryosam_dask.kernels.mixture import groups
from cryosam_dask.kernels.standing_out import Standing, alike_cut

Float64 = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Float64]

BACKGROUNDS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "maxima of noise": lambda rng, n: rng.gumbel(scale=0.78, size=n),
    "skewed to low": lambda rng, n: -rng.gumbel(scale=0.78, size=n),
    "heavy tails": lambda rng, n: rng.logistic(scale=0.55, size=n),
    "cut by the threshold": lambda rng, n: rng.exponential(size=n),
}
FLOOR = 0.4


def cosines(values: Float64) -> Float64:
    """Values in deviations of the background as similarities; 0 is `FLOOR`."""
    return np.tanh(np.arctanh(FLOOR) + 0.08 * values)


def scene(background: str, rng: np.random.Generator, count: int, share: float, apart: float) -> tuple[Float64, Float64]:
    """Similarities of background and kind, and which are of the kind."""
    of_kind = round(count * share)
    lower = BACKGROUNDS[background](rng, count - of_kind)
    upper = rng.normal(lower.mean() + apart, 0.9, of_kind)
    return cosines(np.concatenate([lower, upper])), np.repeat([0.0, 1.0], [count - of_kind, of_kind])


def lowest(background: str) -> float | None:
    return FLOOR if background == "cut by the threshold" else None


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("count", [5, 30, 300, 3000])
def test_background_alone_gives_a_handful_at_most_and_says_so(background: str, count: int) -> None:
    scores = cosines(BACKGROUNDS[background](np.random.default_rng(0), count))
    cut = alike_cut(scores, Standing(own=0.9, lowest=lowest(background)))
    assert cut.kept <= 3
    assert cut.kept == (scores >= cut.threshold).sum()
    assert not cut.clear
    assert cut.reason.startswith("nothing stands out from the background")


@pytest.mark.parametrize(
    ("count", "share"), [(20, 0.4), (100, 0.1), (100, 0.5), (100, 0.9), (1000, 0.03), (1000, 0.9), (5000, 0.01)]
)
@pytest.mark.parametrize("background", ["normal", "maxima of noise"])
def test_the_kind_is_kept_whatever_its_share(background: str, count: int, share: float) -> None:
    scores, truth = scene(background, np.random.default_rng(3), count, share, 6.0)
    cut = alike_cut(scores, Standing())
    kept = scores >= cut.threshold
    assert cut.clear
    assert cut.kept == kept.sum()
    assert 2 * truth[kept].sum() / (kept.sum() + truth.sum()) > 0.85


def test_probabilities_are_right() -> None:
    """Of places with a probability of about p, a share of about p is of the kind."""
    rng, told, truth = np.random.default_rng(0), [], []
    for background in BACKGROUNDS:
        for count, share in ((200, 0.3), (200, 0.7), (1000, 0.1), (1000, 0.4), (3000, 0.05)):
            scores, of_kind = scene(background, rng, count, share, 4.0)
            seen = groups(scores, lowest(background))
            if seen.upper is not None:
                told.append(seen.probability)
                truth.append(of_kind)
    probability, right = np.concatenate(told), np.concatenate(truth)
    assert len(told) > 20
    bins = np.minimum((probability * 10).astype(int), 9)
    for number in range(10):
        inside = bins == number
        assert inside.sum() > 20
        assert abs(probability[inside].mean() - right[inside].mean()) < 0.15


def test_others_that_stand_out_are_not_the_kind_if_the_clicked_ones_are_far_more_alike() -> None:
    scores, _ = scene("normal", np.random.default_rng(0), 300, 0.3, 6.0)
    assert alike_cut(scores, Standing(own=float(cosines(np.array(7.0))))).kept > 80
    cut = alike_cut(scores, Standing(own=float(cosines(np.array(20.0)))))
    assert cut.kept <= 3
    assert not cut.clear
    assert "far less like the query than what was clicked" in cut.reason


def test_the_kind_is_found_above_others_that_stand_out() -> None:
    """A part of the background may lie lower than the rest, and another kind higher."""
    rng = np.random.default_rng(0)
    for lower, upper in ((150, 300), (400, 60)):
        parts = [rng.normal(0, 1, lower), rng.normal(7, 1, upper), rng.normal(14, 1, 40)]
        scores = cosines(np.concatenate(parts))
        cut = alike_cut(scores, Standing(own=float(cosines(np.array(14.5)))))
        assert cut.clear
        assert 36 <= cut.kept <= 44


def test_where_the_threshold_left_the_kind_alone_all_of_it_stays() -> None:
    rng = np.random.default_rng(0)
    for count in (5, 40, 400):
        scores = np.tanh(rng.normal(1.2, 0.08, count))
        assert alike_cut(scores, Standing(own=0.85, reached=0.02, lowest=0.5)).kept == count
        # of a whole tomogram that is alike, nothing stands out
        assert alike_cut(scores, Standing(own=0.85, reached=0.9, lowest=0.5)).kept <= 3
    # noise that reaches the threshold crowds there
    noise = np.tanh(np.arctanh(0.5) + rng.exponential(0.1, 300))
    assert alike_cut(noise, Standing(own=0.6, reached=0.02, lowest=0.5)).kept <= 3


@given(
    hnp.arrays(np.float64, st.integers(0, 60), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.5001, 0.9, 1.0])),
    st.sampled_from([None, -1.0, 0.0, 0.5, 1.0]),
    st.sampled_from([None, -1.0, 0.25]),
)
@settings(max_examples=12, deadline=None)
def test_ties_and_odd_scores_have_a_cut(scores: Float64, own: float | None, threshold: float | None) -> None:
    kept = scores if threshold is None else scores[scores >= threshold]
    cut = alike_cut(kept, Standing(own, 0.1, threshold))
    assert np.isfinite(cut.threshold)
    assert cut.kept == (kept >= cut.threshold).sum()


@given(hnp.arrays(np.float64, st.integers(8, 80), elements=st.floats(-0.99, 0.99)))
@settings(max_examples=8, deadline=None)
def test_probability_never_falls_with_the_score(scores: Float64) -> None:
    seen = groups(scores)
    assert ((seen.probability >= 0) & (seen.probability <= 1)).all()
    assert (np.diff(seen.probability[np.argsort(scores, kind="stable")]) >= 0).all()
