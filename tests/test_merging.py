"""Distinct instances and their centres, against whole volumes and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.kernels import merging

SHAPE = (12, 11, 13)
Bool = NDArray[np.bool_]


def random_instances(seed: int, count: int) -> tuple[NDArray[np.int64], list[Bool], NDArray[np.float32]]:
    """Boxes, masks in them (not always tight), and scores with ties."""
    rng = np.random.default_rng(seed)
    low = np.stack([rng.integers(0, n - 4, count) for n in SHAPE], 1)
    high = low + rng.integers(1, 5, (count, 3))
    masks = []
    for a, b in zip(low, high, strict=True):
        mask = rng.random(tuple(b - a)) < 0.8
        mask.flat[rng.integers(mask.size)] = True
        masks.append(mask)
    scores = rng.choice(np.array([0.25, 0.5, 1.0], np.float32), count)
    return np.concatenate([low, high], 1), masks, scores


def whole(box: NDArray[np.int64], mask: Bool) -> Bool:
    out = np.zeros(SHAPE, bool)
    out[tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))] = mask
    return out


def distinct_by_loops(
    boxes: NDArray[np.int64], masks: list[Bool], scores: NDArray[np.float32], overlap: float
) -> list[int]:
    volumes = [whole(box, mask) for box, mask in zip(boxes, masks, strict=True)]
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], -volumes[i].sum(), *boxes[i, :3]))
    kept: list[int] = []
    for i in order:
        if all((volumes[i] & volumes[j]).sum() <= overlap * volumes[i].sum() for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 14), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_distinct_equals_a_loop_over_whole_volumes(seed: int, count: int, overlap: float) -> None:
    boxes, masks, scores = random_instances(seed, count)
    sizes = np.array([m.sum() for m in masks], np.int64)
    kept = merging.distinct(boxes, sizes, scores, lambda i: masks[i], overlap)
    assert kept.tolist() == distinct_by_loops(boxes, masks, scores, overlap)


def test_two_equal_instances_become_one_unless_everything_may_overlap() -> None:
    boxes = np.array([[0, 0, 0, 2, 2, 2]] * 2)
    masks, sizes = [np.ones((2, 2, 2), bool)] * 2, np.array([8, 8])
    scores = np.array([0.5, 0.6], np.float32)
    assert merging.distinct(boxes, sizes, scores, lambda i: masks[i], 0.8).tolist() == [1]
    assert merging.distinct(boxes, sizes, scores, lambda i: masks[i], 1.0).tolist() == [1, 0]


def test_the_larger_of_two_equal_scores_stays() -> None:
    boxes = np.array([[0, 0, 0, 1, 2, 2], [0, 0, 0, 2, 2, 2]])
    masks = [np.ones((1, 2, 2), bool), np.ones((2, 2, 2), bool)]
    sizes, scores = np.array([4, 8]), np.array([0.5, 0.5], np.float32)
    assert merging.distinct(boxes, sizes, scores, lambda i: masks[i], 0.8).tolist() == [1]


def test_a_large_instance_around_a_better_small_one_stays() -> None:
    """What counts is the share of the worse one's own voxels."""
    boxes = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 4, 4, 4]])
    masks = [np.ones((1, 1, 1), bool), np.ones((4, 4, 4), bool)]
    sizes, scores = np.array([1, 64]), np.array([0.9, 0.5], np.float32)
    assert merging.distinct(boxes, sizes, scores, lambda i: masks[i], 0.5).tolist() == [0, 1]


def test_masks_of_instances_that_touch_no_other_are_never_read() -> None:
    boxes = np.array([[0, 0, 4 * i, 2, 2, 4 * i + 4] for i in range(5)])

    def mask(i: int) -> Bool:
        raise AssertionError(f"mask {i} was read")

    kept = merging.distinct(boxes, np.full(5, 16), np.arange(5, dtype=np.float32), mask, 0.5)
    assert kept.tolist() == [4, 3, 2, 1, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_the_centre_of_mass_is_that_of_the_whole_volume(seed: int) -> None:
    boxes, masks, _ = random_instances(seed, 1)
    found = merging.center_of_mass(boxes[0], masks[0])
    assert found == pytest.approx(ndimage.center_of_mass(whole(boxes[0], masks[0])))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_pieces_are_joined_where_a_whole_volume_connects_them(seed: int, count: int) -> None:
    boxes, masks, _ = random_instances(seed, count)
    masks = [connected(mask) for mask in masks]
    bodies = merging.joined(boxes, lambda i: masks[i])
    labels, _ = ndimage.label(np.any([whole(box, mask) for box, mask in zip(boxes, masks, strict=True)], axis=0))
    places = [labels[whole(box, mask)][0] for box, mask in zip(boxes, masks, strict=True)]
    assert [[a == b for b in bodies] for a in bodies] == [[a == b for b in places] for a in places]
    assert bodies[0] == 0
    assert set(bodies.tolist()) == set(range(bodies.max() + 1))


def connected(mask: Bool) -> Bool:
    labels, _ = ndimage.label(mask)
    return np.asarray(labels == labels[tuple(np.argwhere(mask)[0])], bool)


def test_pieces_of_one_structure_far_apart_are_joined_through_those_between() -> None:
    boxes = np.array([[0, 0, 60 * i, 2, 2, 60 * i + 62] for i in range(5)] + [[10, 0, 0, 12, 2, 2]])
    bodies = merging.joined(boxes[[0, 4, 2, 5, 1, 3]], lambda i: np.ones((2, 2, 2 if i == 3 else 62), bool))
    assert bodies.tolist() == [0, 0, 0, 1, 0, 0]


def test_bodies_that_meet_only_at_an_edge_stay_apart() -> None:
    boxes = np.array([[0, 0, 0, 2, 2, 2], [2, 2, 0, 4, 4, 2], [0, 0, 2, 2, 2, 4]])
    assert merging.joined(boxes, lambda _: np.ones((2, 2, 2), bool)).tolist() == [0, 1, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_size_and_centre_of_a_union_are_those_of_the_whole(seed: int, count: int) -> None:
    boxes, masks, _ = random_instances(seed, count)
    everything = np.any([whole(box, mask) for box, mask in zip(boxes, masks, strict=True)], axis=0)
    far = np.array([60, 62, 127] * 2)  # so that cubes cut it
    size, centre = merging.union(boxes + far, lambda i: masks[i])
    assert size == everything.sum()
    np.testing.assert_allclose(centre, np.argwhere(everything).mean(0) + far[:3])
