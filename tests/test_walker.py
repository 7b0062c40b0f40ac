"""The random walker: its system of equations, its candidates, and what it makes of noisy objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryosam_dask.kernels import walker
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.kernels.quality import quality
from cryosam_dask.models.random_walker import RandomWalkerSegmenter
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import AXES, PromptedSegmenter


def dense_solution(target, strength, down, right):
    """The same system, written out pixel by pixel."""
    h, w = target.shape
    matrix = np.zeros((h * w, h * w))
    index = np.arange(h * w).reshape(h, w)
    edges = [(index[:-1], index[1:], down), (index[:, :-1], index[:, 1:], right)]
    for one, two, weight in edges:
        for i, j, v in zip(one.ravel(), two.ravel(), weight.ravel(), strict=True):
            matrix[[i, j], [i, j]] += v
            matrix[i, j] -= v
            matrix[j, i] -= v
    matrix += np.diag(strength.ravel())
    return np.linalg.solve(matrix, (strength * target).ravel()).reshape(h, w)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31))
def test_banded_solution_is_the_dense_one(h, w, seed):
    rng = np.random.default_rng(seed)
    target, strength = rng.random((2, h, w)).astype(np.float32)
    strength += 0.1
    down, right = rng.random((h - 1, w)).astype(np.float32), rng.random((h, w - 1)).astype(np.float32)
    found = walker.solve(target, strength, down, right)
    np.testing.assert_allclose(found, dense_solution(target, strength, down, right), atol=2e-4)
    assert found.min() >= target.min() - 1e-4, "a probability stays between its priors (maximum principle)"
    assert found.max() <= target.max() + 1e-4


def test_a_system_is_solved_for_one_prior_after_another():
    rng = np.random.default_rng(0)
    for h, w in ((9, 6), (6, 9)):
        strength, *targets = rng.random((4, h, w)).astype(np.float32) + 0.1
        down, right = rng.random((h - 1, w)).astype(np.float32), rng.random((h, w - 1)).astype(np.float32)
        system = walker.System(strength, down, right)
        for target in targets:
            np.testing.assert_array_equal(system.solve(target), walker.solve(target, strength, down, right))


def test_a_walk_stops_at_an_edge():
    image = np.zeros((9, 20), np.float32)
    image[:, 10:] = 100
    strength = np.full(image.shape, 1e-6, np.float32)
    target = np.zeros(image.shape, np.float32)
    strength[4, 2] = strength[4, 17] = 1e3
    target[4, 2] = 1
    inside = walker.solve(target, strength, *walker.edge_weights(image, 0.5))
    assert (inside[:, :10] > 0.9).all()
    assert (inside[:, 10:] < 0.1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 5))
def test_shrinking_and_enlarging_keep_a_ramp(h, w, step):
    ramp = np.add.outer(np.arange(h), 2 * np.arange(w)).astype(np.float32)
    small = walker.shrink(ramp, step)
    assert small.shape == (-(-h // step), -(-w // step))
    back = walker.enlarge(small, step, (h, w))
    assert back.shape == (h, w)
    if h % step == w % step == 0 and min(h, w) > 2 * step:
        inner = (slice(step, -step), slice(step, -step))
        np.testing.assert_allclose(back[inner], ramp[inner], atol=1e-3)


def disc(shape=(80, 90), centre=(40.0, 45.0), radius=8.0):
    rows, cols = np.indices(shape)
    return np.hypot(rows - centre[0], cols - centre[1]) <= radius


def noisy(truth, contrast, noise, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(128 + contrast * truth + rng.normal(0, noise, truth.shape), 0, 255).astype(np.uint8)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def best(segmenter, image, point, logits=None):
    embedding = segmenter.embed(image[None])[0]
    p = segmenter.predict(embedding, image.shape, np.array([point], np.float32), logits)
    m = int(p.scores[0].argmax())
    return p.masks[0, m], float(p.scores[0, m]), p.logits[0, m]


def one_piece(seed, density):
    """A random mask of one component, often with holes, that may touch the border."""
    noise = np.random.default_rng(seed).random((11, 14)) < density
    labels, count = ndimage.label(noise)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else noise


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.5, 0.7, 0.95]))
def test_a_component_is_filled_as_by_scipy(seed, density):
    mask = one_piece(seed, density)
    if mask.any():
        filled = ndimage.binary_fill_holes(mask)
        assert walker._has_holes(mask) == (filled != mask).any()
        np.testing.assert_array_equal(walker._component(mask, 5, 7), filled)


def plain_quality(image, mask):
    """`quality` as its docstring has it, with nothing but scipy's and numpy's own functions."""
    distance, area = ndimage.distance_transform_edt(~mask), mask.sum()
    width = max(4.0, 0.42 * np.sqrt(area / np.pi) + 2)
    inside, ring = image[mask], image[(distance >= 2) & (distance <= width)]
    rim, beside = (
        image[mask & ~ndimage.binary_erosion(mask, border_value=1)],
        image[(distance > 1.2) & (distance <= 2.5)],
    )
    ground = image[distance > 3]
    noise = 1.4826 * np.median(np.abs(ground - np.median(ground)))
    n, m, gap = inside.size, ring.size, inside.mean() - ring.mean()
    between = n * m / (n + m) ** 2 * gap**2
    explained = between / (between + (n * inside.var() + m * ring.var()) / (n + m) + 1e-9)
    step = max((rim.mean() - beside.mean()) * np.sign(gap), 0)
    rows, cols = np.nonzero(mask)
    compact = min(1, area / (2 * np.pi) / (rows.var() + cols.var() + 1 / 6))
    return area / (area + 12) * explained * np.sqrt(step / (step + 3 * noise + 1e-6)) * compact**0.25


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(2, 14))
def test_quality_is_what_it_says(seed, radius):
    rng = np.random.default_rng(seed)
    truth = disc(shape=(50, 54), centre=(25.0, 26.0), radius=radius)
    image = ndimage.gaussian_filter(noisy(truth, 60, 30, seed).astype(np.float32), 1.5)
    mask = truth & (rng.random(truth.shape) < 0.9)
    assert quality(image, mask) == pytest.approx(plain_quality(image, mask), rel=1e-4)
    assert quality(image, mask) > 0


def test_quality_prefers_the_object_to_its_part_and_to_more_than_it():
    truth = disc()
    image = ndimage.gaussian_filter(noisy(truth, 60, 20).astype(np.float32), 1)
    score = {r: quality(image, disc(radius=r)) for r in (4.0, 8.0, 14.0)}
    assert score[8.0] > 1.3 * max(score[4.0], score[14.0])
    assert 0 <= quality(image, disc(centre=(15.0, 15.0))) < 0.2, "ground is no object"
    assert quality(image, np.zeros_like(truth)) == quality(image, np.ones_like(truth)) == 0
    assert quality(255 - image, truth) == pytest.approx(score[8.0], abs=1e-4), "dark objects count as bright ones"


@pytest.mark.parametrize("contrast", [45, -45], ids=["bright", "dark"])
@pytest.mark.parametrize("radius", [3.5, 6.0, 10.0, 18.0])
def test_a_point_finds_objects_of_any_size_in_noise(contrast, radius):
    truth = disc(radius=radius)
    found = []
    for seed in range(3):
        image = noisy(truth, contrast, 40, seed)
        found.append(iou(best(RandomWalkerSegmenter(), image, (41, 44))[0], truth))
    assert np.mean(found) > (0.55 if radius < 5 else 0.75)


def test_a_point_off_the_middle_finds_the_same_object():
    truth = disc(radius=7)
    for point in ((40, 49), (36, 43), (43, 48)):
        assert iou(best(RandomWalkerSegmenter(), noisy(truth, 60, 30), point)[0], truth) > 0.7


def test_ground_scores_below_objects():
    truth = disc(radius=7)
    for seed in range(3):
        image = noisy(truth, 60, 40, seed)
        on = best(RandomWalkerSegmenter(), image, (40, 45))[1]
        off = [best(RandomWalkerSegmenter(), image, p)[1] for p in ((12, 12), (65, 20), (12, 75))]
        assert on > 1.3 * max(off)


def test_logits_carry_the_object_to_the_next_plane_where_it_is_smaller_and_moved():
    segmenter = RandomWalkerSegmenter()
    _, _, logits = best(segmenter, noisy(disc(radius=9), 60, 30, 1), (40, 45))
    following = disc(centre=(41.0, 46.0), radius=7.5)
    point = segmenter.peak(logits[None], (80, 90))[0]
    mask, score, after = best(segmenter, noisy(following, 60, 30, 2), point, logits[None])
    assert iou(mask, following) > 0.75
    assert score > 0.2
    assert ((after > 0) == mask).all(), "logits are positive exactly inside"


def test_logits_with_no_inside_give_an_empty_mask():
    empty = np.zeros((1, 80, 90), np.float32)
    mask, score, _ = best(RandomWalkerSegmenter(), noisy(disc(), 60, 30), (40, 45), empty)
    assert not mask.any()
    assert score == 0


@pytest.mark.parametrize("point", [(0, 0), (79, 89), (0, 45), (40, 0)])
def test_prompts_at_the_border(point):
    segmenter = RandomWalkerSegmenter()
    image = noisy(disc(centre=point, radius=8), 70, 20)
    mask, _, logits = best(segmenter, image, point)
    assert iou(mask, disc(centre=point, radius=8)) > 0.6
    following, _, _ = best(segmenter, image, point, logits[None])
    assert iou(following, disc(centre=point, radius=8)) > 0.6


@pytest.mark.parametrize("shape", [(1, 1), (1, 12), (12, 2), (3, 3)])
def test_tiny_planes(shape):
    segmenter = RandomWalkerSegmenter()
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    embedding = segmenter.embed(image[None])[0]
    p = segmenter.predict(embedding, shape, np.zeros((1, 2), np.float32), None)
    assert np.isfinite(p.logits).all()
    assert np.isfinite(p.scores).all()
    again = segmenter.predict(embedding, shape, np.zeros((1, 2), np.float32), p.logits[:, 0])
    assert again.masks.shape == (1, 1, *shape)


def test_a_flat_plane_is_no_object():
    mask_score = best(RandomWalkerSegmenter(), np.full((60, 60), 128, np.uint8), (30, 30))[1]
    assert mask_score < 0.01


def test_prompts_of_a_batch_do_not_see_each_other():
    segmenter: PromptedSegmenter = RandomWalkerSegmenter()
    image = noisy(disc() | disc(centre=(20.0, 20.0), radius=5), 60, 30)
    embedding = segmenter.embed(image[None])[0]
    points = np.array([[40, 45], [20, 20]], np.float32)
    both = segmenter.predict(embedding, image.shape, points, None)
    for b in range(2):
        alone = segmenter.predict(embedding, image.shape, points[b : b + 1], None)
        np.testing.assert_array_equal(both.masks[b], alone.masks[0])
        np.testing.assert_array_equal(both.logits[b], alone.logits[0])
    assert isinstance(segmenter, PromptedSegmenter)


def lumps(shape, centre, radius, rng):
    """An irregular particle: a few balls within a sphere."""
    grid = np.indices(shape) - np.array(centre)[:, None, None, None]
    mask = np.zeros(shape, bool)
    for _ in range(9):
        direction = rng.normal(size=3)
        offset = 0.5 * radius * direction / np.linalg.norm(direction)
        mask |= ((grid - offset[:, None, None, None]) ** 2).sum(0) <= (0.55 * radius) ** 2
    return mask


def test_noisy_particles_are_segmented_in_three_dimensions():
    """Per voxel the noise has twice the deviation of the contrast; planes are means of five slices."""
    rng = np.random.default_rng(11)
    shape, found, ground = (40, 60, 60), [], []
    for radius in (6.0, 8.0, 11.0):
        truth = lumps(shape, (20, 30, 30), radius, rng)
        volume = 128 + 30 * truth + rng.normal(0, 60, shape)
        slabs = [np.clip(ndimage.uniform_filter1d(volume, 5, axis=a), 0, 255).astype(np.uint8) for a in range(3)]
        segmenter = RandomWalkerSegmenter()
        work = Propagation.start([(21, 29, 31), (8, 8, 8)], shape, PropagationRules())
        while need := work.needed():
            for axis, index in sorted(need):
                image = np.take(slabs[AXES.index(axis)], index, AXES.index(axis))
                work.step(segmenter, axis, index, segmenter.embed(image[None])[0], image)
        particle, empty = work.instances()
        z0, y0, x0, z1, y1, x1 = particle.box
        mask = np.zeros(shape, bool)
        mask[z0:z1, y0:y1, x0:x1] = particle.mask
        found.append(iou(mask, truth))
        ground.append((0.0 if empty is None else empty.score) < particle.score)
    assert np.mean(found) > 0.5
    assert all(ground)
