"""Evaluation against cases counted by hand and against slow, plain computations."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, sparse
from scipy.sparse import csgraph

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import dice, evaluate_masks, evaluate_picks, evaluate_semantic, f_beta, masks

coordinates = st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=6)


def plain_matching(found: NDArray[np.float64], truth: NDArray[np.float64], radius: float) -> int:
    """The largest number of one-to-one pairs within the radius, by trying all ways."""
    near = np.linalg.norm(found[:, None] - truth[None], axis=-1) <= radius
    if near.shape[0] > near.shape[1]:
        near = near.T
    rows = range(near.shape[0])
    return max(sum(near[r, c] for r, c in zip(rows, p, strict=True)) for p in
               itertools.permutations(range(near.shape[1]), near.shape[0]))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(coordinates, coordinates, st.sampled_from([1.0, 2.0, 3.5]))
def test_counts_are_those_of_the_best_matching(
    a: list[tuple[int, ...]], b: list[tuple[int, ...]], radius: float
) -> None:
    found, truth = np.array(a, dtype=float), np.array(b, dtype=float)
    result = evaluate_picks(found, np.arange(len(found)), truth, radius)
    hits = plain_matching(found, truth, radius)
    assert (result.true_positives, result.false_positives, result.false_negatives) == (
        hits, len(found) - hits, len(truth) - hits,
    )  # fmt: skip
    assert result.precision == hits / len(found)
    assert result.recall == hits / len(truth)
    if hits:
        assert result.f1 == pytest.approx(2 / (1 / result.precision + 1 / result.recall))
    else:
        assert result.f1 == 0
    assert 0 <= result.average_precision <= 1


@settings(max_examples=20, deadline=None)
@given(coordinates, coordinates, st.randoms())
def test_the_order_of_picks_does_not_matter(a: list[tuple[int, ...]], b: list[tuple[int, ...]], random: Random) -> None:
    a = list(dict.fromkeys(a))
    scores = {p: (sum(p) % 4) / 4 for p in a}
    first = evaluate_picks(a, [scores[p] for p in a], b, 2.0)
    random.shuffle(a)
    again = evaluate_picks(a, [scores[p] for p in a], b, 2.0)
    assert again == first


def test_two_picks_on_one_particle_are_one_hit() -> None:
    result = evaluate_picks([[5, 5, 5], [5, 5, 6]], [0.9, 0.8], [[5, 5, 5]], 3)
    assert (result.true_positives, result.false_positives, result.false_negatives) == (1, 1, 0)


def test_a_pick_at_the_radius_counts_and_one_beyond_does_not() -> None:
    assert evaluate_picks([[0, 0, 3]], [1], [[0, 0, 0]], 3.0).f1 == 1
    assert evaluate_picks([[0, 0, 3.001]], [1], [[0, 0, 0]], 3.0).f1 == 0
    assert evaluate_picks([[4, 4, 4]], [1], [[4, 4, 4]], 3.0).f1 == 1  # at distance zero


def test_matching_is_not_greedy() -> None:
    # the left pick is nearer to the right particle, which is the only one the right pick can have
    result = evaluate_picks([[0, 0, 2.1], [0, 0, 6.0]], [0.9, 0.1], [[0, 0, 0], [0, 0, 4.0]], 2.2)
    assert result.true_positives == 2


@settings(max_examples=40, deadline=None)
@given(coordinates, coordinates, st.sampled_from([1.0, 2.0, 3.5]), st.integers(0, 999))
def test_each_point_of_the_curve_has_the_counts_of_the_best_matching(
    a: list[tuple[int, ...]], b: list[tuple[int, ...]], radius: float, seed: int
) -> None:
    found, truth = np.array(a, dtype=float), np.array(b, dtype=float)
    scores = np.random.default_rng(seed).integers(0, 4, len(found)) / 4
    result = evaluate_picks(found, scores, truth, radius)
    assert [p.threshold for p in result.curve] == sorted(set(scores.tolist()), reverse=True)
    for point in result.curve:
        kept = found[scores >= point.threshold]
        hits = plain_matching(kept, truth, radius)
        assert (point.precision, point.recall) == (hits / len(kept), hits / len(truth))
    best = max(result.curve, key=lambda p: p.f1)
    assert result.best_f1 == best.f1
    assert evaluate_picks(found[scores >= best.threshold], None, truth, radius).f1 == pytest.approx(result.best_f1)
    assert result.best_f1 >= result.f1 - 1e-12
    assert (result.curve[-1].precision, result.curve[-1].recall) == (result.precision, result.recall)


def test_crowded_picks_are_matched_as_scipy_does() -> None:
    """Many picks to a particle and a radius over several: long augmenting paths, and searches without success."""
    rng = np.random.default_rng(3)
    for n, m, radius in ((600, 200, 9.0), (200, 600, 9.0), (400, 400, 4.0)):
        found, truth = rng.uniform(0, 30, (n, 3)), rng.uniform(0, 30, (m, 3))
        near = sparse.csr_matrix(np.linalg.norm(found[:, None] - truth[None], axis=-1) <= radius)
        expected = (csgraph.maximum_bipartite_matching(near, perm_type="column") >= 0).sum()
        assert evaluate_picks(found, rng.random(n), truth, radius).true_positives == expected


def test_a_radius_in_ångström_goes_by_the_voxels_sides() -> None:
    found, truth = [[0, 0, 4]], [[0, 0, 0]]
    assert evaluate_picks(found, None, truth, 40, voxel_size=10).recall == 1
    assert evaluate_picks(found, None, truth, 39.9, voxel_size=(10, 10, 10)).recall == 0
    assert evaluate_picks(found, None, truth, 20, voxel_size=(10, 10, 5)).recall == 1
    assert evaluate_picks([[0, 0, 10]], None, truth, 134.8, voxel_size=13.48).recall == 1
    assert evaluate_picks([[0, 0, 3]], None, truth, 0.3, voxel_size=0.1).recall == 1  # 3 * 0.1 > 0.3 in floats
    assert evaluate_picks(found, None, truth, 40, voxel_size=10).unit == "angstrom"
    for wrong in (0, -1, np.nan, (1, 0, 1)):
        with pytest.raises(InputError, match="voxel size"):
            evaluate_picks(found, None, truth, 40, voxel_size=wrong)


def test_f_beta_by_hand() -> None:
    assert f_beta(0.5, 1.0) == pytest.approx(2 / 3)
    assert f_beta(0.5, 1.0, 4) == pytest.approx(17 * 0.5 / (16 * 0.5 + 1))
    assert f_beta(1.0, 0.5, 1e6) == pytest.approx(0.5)  # recall alone
    assert f_beta(1.0, 0.5, 1e-6) == pytest.approx(1.0)  # precision alone
    assert f_beta(0, 0) == 0
    for wrong in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="beta"):
            f_beta(0.5, 0.5, wrong)


def test_average_precision_by_hand() -> None:
    truth = [[0, 0, 0], [0, 0, 10], [0, 0, 20], [0, 0, 30]]
    found = [[0, 0, 0], [9, 9, 9], [0, 0, 10], [9, 9, 0], [0, 0, 20]]
    result = evaluate_picks(found, [5, 4, 3, 2, 1], truth, 1)
    assert [(p.precision, p.recall) for p in result.curve] == [
        (1, 0.25), (0.5, 0.25), (2 / 3, 0.5), (0.5, 0.5), (0.6, 0.75),
    ]  # fmt: skip
    assert result.average_precision == pytest.approx(0.25 * 1 + 0.25 * 2 / 3 + 0.25 * 0.6)
    tied = evaluate_picks(found, [1, 1, 1, 1, 1], truth, 1)
    assert len(tied.curve) == 1
    assert tied.average_precision == pytest.approx(0.75 * 0.6)


def test_average_precision_of_a_perfect_and_of_a_reversed_ranking() -> None:
    truth = np.arange(10)[:, None] * np.array([[0, 0, 10.0]])
    wrong = truth + np.array([0, 5, 5])
    both = np.vstack([truth, wrong])
    assert evaluate_picks(both, -np.arange(20.0), truth, 2).average_precision == 1
    assert evaluate_picks(both, np.arange(20.0), truth, 2).average_precision == 0.5


def test_empty_sides_have_values() -> None:
    none = np.zeros((0, 3))
    both = evaluate_picks(none, [], none, 1)
    assert (both.precision, both.recall, both.f1, both.average_precision) == (1, 1, 1, 1)
    missed = evaluate_picks([], [], [[1, 2, 3]], 1)
    assert (missed.precision, missed.recall, missed.f1, missed.false_negatives) == (0, 0, 0, 1)
    extra = evaluate_picks([[1, 2, 3]], [0.1], none, 1)
    assert (extra.precision, extra.recall, extra.average_precision, extra.false_positives) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("found", "scores", "truth", "radius", "message"),
    [
        ([[1, 2]], [1], [[1, 2, 3]], 1, r"shape \(N, 3\)"),
        ([[1, 2, 3]], [1, 2], [[1, 2, 3]], 1, "one score for each of 1"),
        ([[1, 2, np.nan]], [1], [[1, 2, 3]], 1, "finite positions"),
        ([[1, 2, 3]], [np.nan], [[1, 2, 3]], 1, "finite scores"),
        ([[1, 2, 3]], [1], [[1, 2, 3]], 0, "radius"),
        ([[1, 2, 3]], [1], [[1, 2, 3]], np.inf, "radius"),
        ([[1, 2, 3]], [1], [1, 2, 3], 1, "truth"),
    ],
)
def test_bad_picks_are_refused(found: object, scores: object, truth: object, radius: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_picks(found, scores, truth, radius)  # type: ignore[arg-type]


def test_ten_thousand_picks_take_seconds() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 500, (10_000, 3))
    found = truth + rng.normal(0, 1, truth.shape)
    start = time.process_time()
    result = evaluate_picks(found, rng.random(10_000), truth, 8)
    assert time.process_time() - start < 10
    assert result.recall > 0.99


def test_results_are_json() -> None:
    picks = evaluate_picks([[1, 2, 3]], np.float32([0.5]), [[1, 2, 3]], np.int64(2))  # type: ignore[arg-type]
    assert json.loads(json.dumps(picks.to_dict()))["curve"] == [{"threshold": 0.5, "precision": 1.0, "recall": 1.0}]
    labels = np.ones((2, 2, 2), dtype=np.int32)
    assert json.loads(json.dumps(evaluate_masks(labels, labels).to_dict()))["ious"] == [[1, 1, 1.0]]


def blocks(*spans: tuple[int, int, int]) -> NDArray[np.int32]:
    """A (3, 4, 40) volume with instances given as (id, from x, to x)."""
    labels = np.zeros((3, 4, 40), dtype=np.int32)
    for instance, start, stop in spans:
        labels[:, :, start:stop] = instance
    return labels


def test_mask_iou_by_hand() -> None:
    truth = blocks((1, 0, 10), (2, 12, 22), (3, 30, 40))
    found = blocks((7, 0, 10), (900, 14, 24), (5, 26, 28))
    result = evaluate_masks(found, truth)
    assert result.ious == ((1, 7, 1.0), (2, 900, pytest.approx(8 / 12)))
    assert result.mean_iou == pytest.approx((1 + 8 / 12) / 2)
    assert result.mean_iou_truth == pytest.approx((1 + 8 / 12) / 3)
    assert (result.matched, result.found, result.truth) == (2, 3, 3)


def test_masks_are_matched_for_the_largest_sum() -> None:
    # instance 5 overlaps 2 best of all, but 2 has another partner and 1 has none
    truth = blocks((1, 0, 9), (2, 9, 20))
    found = blocks((5, 1, 17), (6, 17, 20))
    a15, a25, a26 = 8 / 17, 8 / 19, 3 / 11
    result = evaluate_masks(found, truth)
    assert a15 + a26 > a25
    assert result.mean_iou == pytest.approx((a15 + a26) / 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0.1, 0.5, 1.0]))
def test_pairs_are_those_of_the_best_assignment(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, 6, (4, 4, 3)), 2, axis=2)
    found = np.where(rng.random(truth.shape) < noise, rng.integers(0, 7, truth.shape), truth)
    ids = [np.unique(volume[volume > 0]) for volume in (truth, found)]
    iou = np.array([[((truth == t) & (found == f)).sum() / ((truth == t) | (found == f)).sum() for f in ids[1]]
                    for t in ids[0]])  # fmt: skip
    best = iou[optimize.linear_sum_assignment(iou, maximize=True)].sum()
    result = evaluate_masks(found, truth)
    assert sum(one[2] for one in result.ious) == pytest.approx(best)
    assert len({one[0] for one in result.ious}) == len({one[1] for one in result.ious}) == result.matched


def test_thousands_of_instances_that_all_touch_take_little_memory() -> None:
    count = 3000
    x = np.arange(1, 2 * count + 1).reshape(1, 1, -1)
    tracemalloc.start()
    result = evaluate_masks(x // 2 + 1, (x + 1) // 2)  # each true one is half of two found ones: one chain of all
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (result.matched, result.found) == (count, count + 1)
    assert result.mean_iou == pytest.approx(((count - 2) / 3 + 1) / count)  # a half at each end
    assert peak < 20e6  # all pairs would be 72 MB


def test_masks_read_slab_by_slab_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 6, (9, 8, 7))
    found = rng.integers(0, 5, (9, 8, 7)).astype(np.uint16)
    whole, whole_dice = evaluate_masks(found, truth), dice(found, truth)
    monkeypatch.setattr(masks, "_BOX", (4, 3, 5))
    assert evaluate_masks(found, truth) == whole
    assert dice(found, truth) == whole_dice
    for true_id, found_id, iou in whole.ious:
        a, b = truth == true_id, found == found_id
        assert iou == pytest.approx((a & b).sum() / (a | b).sum())


def test_ids_are_only_names() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 8, (6, 6, 6))
    names = np.concatenate([[0], rng.permutation(np.arange(1, 8)) * 1_000_003])
    assert evaluate_masks(names[labels], labels).mean_iou == 1


def test_empty_masks() -> None:
    empty, some = np.zeros((2, 2, 2), int), np.ones((2, 2, 2), int)
    for found, truth, value in ((empty, empty, 1), (some, empty, 0), (empty, some, 0)):
        result = evaluate_masks(found, truth)
        assert (result.mean_iou, result.mean_iou_truth, result.pq, result.sq, result.rq) == (value,) * 3 + (
            value, value,
        )  # fmt: skip
        assert (result.iou, result.dice, result.matched, result.pairs) == (value, value, 0, 0)
    assert dice(empty, empty) == 1
    assert dice(some, empty) == 0


def test_dice_by_hand() -> None:
    assert dice(blocks((1, 0, 10)), blocks((3, 5, 20)) > 0) == pytest.approx(2 * 5 / (10 + 15))


def plain_panoptic(found: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, float, float]:
    """PQ, SQ and RQ as they are defined, mask by mask."""
    ious = []
    for t in set(truth.ravel().tolist()) - {0}:
        for f in set(found.ravel().tolist()) - {0}:
            both, either = ((truth == t) & (found == f)).sum(), ((truth == t) | (found == f)).sum()
            if both / either > 0.5:
                ious.append(both / either)
    tp = len(ious)
    fp, fn = len(set(found.ravel().tolist()) - {0}) - tp, len(set(truth.ravel().tolist()) - {0}) - tp
    return sum(ious) / (tp + fp / 2 + fn / 2), sum(ious) / tp if tp else 0.0, tp / (tp + fp / 2 + fn / 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.floats(0, 0.6))
def test_panoptic_quality_is_as_defined(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, 4, (4, 3, 3)), 2, axis=2)
    found = np.where(rng.random(truth.shape) < noise, rng.integers(0, 5, truth.shape), truth)
    if not truth.any() and not found.any():
        return
    result = evaluate_masks(found, truth)
    assert (result.pq, result.sq, result.rq) == pytest.approx(plain_panoptic(found, truth))
    assert result.pq == pytest.approx(result.sq * result.rq)
    a, b = found > 0, truth > 0
    assert result.iou == pytest.approx((a & b).sum() / (a | b).sum())
    assert result.dice == pytest.approx(dice(found, truth))


def test_half_is_no_match_for_panoptic_quality() -> None:
    half = evaluate_masks(blocks((1, 0, 10)), blocks((1, 0, 20)))
    assert (half.mean_iou, half.pairs, half.pq) == (0.5, 0, 0)
    # the pairs above one half count, although another assignment has the larger sum of IoU
    truth, found = blocks((1, 0, 20), (2, 20, 40)), blocks((5, 0, 13), (6, 13, 40))
    assert evaluate_masks(found, truth).pairs == 2


def test_classes_of_voxels_by_hand() -> None:
    truth, found = blocks((1, 0, 10), (2, 20, 30)), blocks((1, 5, 10), (2, 20, 25), (3, 30, 40))
    result = evaluate_semantic(found, truth)
    assert [(c.label, c.iou) for c in result.classes] == [(1, 0.5), (2, 0.5), (3, 0.0)]
    assert [c.dice for c in result.classes] == pytest.approx([2 / 3, 2 / 3, 0])
    assert [c.both for c in result.classes] == [60, 60, 0]
    assert result.mean_iou == pytest.approx(1 / 3)
    empty = evaluate_semantic(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), np.uint8))
    assert (empty.mean_iou, empty.mean_dice, empty.classes) == (1, 1, ())
    assert json.loads(json.dumps(result.to_dict()))["classes"][0]["label"] == 1


def test_masks_are_read_box_by_box(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched:
        shape, largest = (40, 50, 60), 0

        def __getitem__(self, place: tuple[slice, ...]) -> NDArray[np.int64]:
            size = [s.stop - s.start for s in place]
            self.largest = max(self.largest, int(np.prod(size)))
            return np.ones(size, np.int64)

    monkeypatch.setattr(masks, "_BOX", (8, 16, 16))
    a, b = Watched(), Watched()
    assert evaluate_masks(a, b).mean_iou == 1
    assert evaluate_semantic(a, b).mean_iou == 1
    assert a.largest == b.largest == 8 * 16 * 16


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_labels_that_are_no_whole_numbers_are_refused(wrong: float) -> None:
    whole = np.ones((2, 2, 2), np.float32)
    assert evaluate_masks(whole, whole.astype(int)).pq == 1
    with pytest.raises(InputError, match="aren't whole"):
        evaluate_masks(np.full((2, 2, 2), wrong), whole)


def test_bad_masks_are_refused() -> None:
    with pytest.raises(InputError, match="same shape"):
        evaluate_masks(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int))
    with pytest.raises(InputError, match="same shape"):
        dice(np.zeros((2, 2), int), np.zeros((2, 2), int))
    for wrong in (-1, 2**31):
        with pytest.raises(InputError, match="instance ids from 0"):
            evaluate_masks(np.full((2, 2, 2), wrong), np.ones((2, 2, 2), int))
