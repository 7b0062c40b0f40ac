"""Order, non-maximum suppression, top K and the automatic cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryosam_dask.kernels.likeness import similarity
from cryosam_dask.kernels.peaks import auto_cut, best_first, non_maximum_suppression, top_k

# Few distinct values on purpose: ties and exact distances are where suppression goes wrong.
CANDIDATES = st.integers(0, 60).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int64, (n, 3), elements=st.integers(0, 9)),
        hnp.arrays(np.float64, n, elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])),
        st.sampled_from([0.0, 1.0, np.sqrt(2), 2.0, 2.5, 5.0, 40.0]),
    )
)


def squared_distance(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(-1)


@given(CANDIDATES)
@settings(max_examples=150, deadline=None)
def test_suppression_keeps_separate_points_and_drops_only_what_a_better_one_covers(case):
    coords, scores, radius = case
    kept = non_maximum_suppression(coords, scores, radius)
    rank = np.empty(len(coords), int)
    rank[best_first(coords, scores)] = np.arange(len(coords))
    assert (np.diff(rank[kept]) > 0).all()
    between = squared_distance(coords[kept], coords[kept]).astype(float)
    np.fill_diagonal(between, np.inf)
    assert not len(kept) or between.min() > radius * radius
    for i in set(range(len(coords))) - set(kept.tolist()):
        covers = squared_distance(coords[[i]], coords[kept])[0] <= radius * radius
        assert (covers & (rank[kept] < rank[i])).any()


@given(CANDIDATES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_suppression_does_not_depend_on_the_order_of_its_input(case, random):
    coords, scores, radius = case
    shuffled = list(range(len(coords)))
    random.shuffle(shuffled)
    first = non_maximum_suppression(coords, scores, radius)
    second = non_maximum_suppression(coords[shuffled], scores[shuffled], radius)
    assert coords[first].tolist() == coords[shuffled][second].tolist()


def test_suppression_across_chunks_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    coords, scores = rng.uniform(0, 30, (5000, 3)), rng.uniform(size=5000)
    plain: list[int] = []
    for i in np.argsort(-scores):
        if not plain or squared_distance(coords[[i]], coords[plain]).min() > 9:
            plain.append(i)
    assert non_maximum_suppression(coords, scores, 3.0).tolist() == plain


def test_ties_go_to_the_smallest_position():
    coords = np.array([[0, 1, 1], [0, 0, 2], [0, 0, 1]])
    assert non_maximum_suppression(coords, np.ones(3), 1.0).tolist() == [2]
    assert top_k(coords, np.ones(3), 2).tolist() == [2, 1]
    assert top_k(coords, np.array([1.0, 0.0, 1.0]), 2).tolist() == [2, 0]


@pytest.mark.parametrize("k", [0, 1, 7, 40, 50])
def test_top_k_is_the_head_of_the_order(k):
    rng = np.random.default_rng(k)
    coords, scores = rng.integers(0, 9, (40, 3)), rng.integers(0, 5, 40) / 4
    assert top_k(coords, scores, k).tolist() == best_first(coords, scores)[:k].tolist()


@pytest.mark.parametrize(
    ("scores", "radius"), [(np.array([1.0, np.nan]), 1.0), (np.ones(2), -1.0), (np.ones(3), 1.0), (np.ones(2), np.nan)]
)
def test_suppression_refuses_what_it_cannot_order(scores, radius):
    with pytest.raises(ValueError):
        non_maximum_suppression(np.zeros((2, 3)), scores, radius)


@pytest.mark.parametrize(("alike", "others"), [(20, 400), (3, 500), (300, 30), (50, 0)])
def test_auto_cut_falls_between_two_groups(alike, others):
    rng = np.random.default_rng(1)
    near = np.clip(rng.normal(1.0, 0.15, alike), 0.1, 1.45)
    far = np.clip(rng.normal(3.5, 0.4, others), 2.3, None)
    cut = auto_cut(similarity(np.concatenate([near, far])))
    assert cut.kept == alike
    assert str(alike) in cut.reason


def test_auto_cut_with_none_of_the_kind_or_nothing_at_all():
    none = auto_cut(similarity(np.full(50, 6.0)))
    assert none.kept == 0
    assert not none.clear
    assert none.reason.startswith("nothing stands out from the background")
    empty = auto_cut(np.empty(0))
    assert empty.kept == 0
    assert 0 < empty.threshold < 1


def test_auto_cut_stays_near_its_distance_when_scores_fade_out_evenly():
    cut = auto_cut(similarity(np.linspace(0.5, 5, 400)))
    assert 1.4 < np.sqrt(1 / cut.threshold - 1) < 2.3


def test_auto_cut_refuses_cosines():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        auto_cut(np.array([-0.5, 0.5]))
