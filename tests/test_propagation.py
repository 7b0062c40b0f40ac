"""Cross-plane self-prompting: which planes are visited, where walkers stop, how planes merge, and that it resumes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from cryosam_dask.errors import InputError
from cryosam_dask.kernels.instance import Patch, iou, merge_patches, pack, squared_distance, unpack
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.kernels.walkers import contrast
from cryosam_dask.models.random_walker import RandomWalkerSegmenter
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import AXES, Prediction, Window, WindowedSegmenter

PLAIN = PropagationRules(rule="plain", merge="union")


class Thresholder:
    """A segmenter that knows the answer: the bright component at the point. Counts its calls and prompts."""

    name = identity = "thresholder"
    batch = 3
    embedding_dtype = np.dtype(np.uint8)

    def __init__(self, extra: Any = None) -> None:
        self.calls: list[tuple[int, bool]] = []
        self.extra = extra

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return plane

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return plane

    def embed(self, planes: np.ndarray) -> np.ndarray:
        return planes

    def predict(self, embedding, plane, points, logits) -> Prediction:
        self.calls.append((len(points), logits is not None))
        masks = []
        for row, col in np.round(points).astype(int):
            labels, _ = ndimage.label(embedding > 128)
            own = (labels == labels[row, col]) & (labels > 0)
            masks.append([own, *([] if self.extra is None else [self.extra(own)])])
        stack = np.array(masks)
        scores = np.tile(np.array([0.9, 0.95][: stack.shape[1]], np.float32), (len(points), 1))
        distance = np.array([[ndimage.distance_transform_edt(m) for m in ms] for ms in stack], np.float32)
        return Prediction(stack, scores, distance)

    def peak(self, logits, plane):
        at = np.unravel_index(logits.reshape(len(logits), -1).argmax(1), plane)
        return np.stack(at, 1).astype(np.float32)


def planes_of(volume: np.ndarray, axis: str, index: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(volume, index, AXES.index(axis)))


def drive(work: Propagation, volume: np.ndarray, segmenter: Any, steps: int | None = None, shuffle: int = 0) -> int:
    """Serve planes until done or for a number of steps; how many distinct planes were served."""
    served: set[tuple[str, int]] = set()
    chooser = random.Random(shuffle)
    taken = 0
    while need := work.needed():
        order = sorted(need)
        if shuffle:
            chooser.shuffle(order)
        for axis, index in order:
            if steps is not None and taken >= steps:
                return len(served)
            image = planes_of(volume, axis, index)
            work.step(segmenter, axis, index, segmenter.embed(image[None])[0], image)
            served.add((axis, index))
            taken += 1
    return len(served)


def ball(shape=(24, 30, 34), centre=(11, 14, 18), radius=6.5) -> np.ndarray:
    grid = np.indices(shape) - np.array(centre)[:, None, None, None]
    return (grid**2).sum(0) <= radius**2


def paste(instance, shape) -> np.ndarray:
    out = np.zeros(shape, bool)
    z0, y0, x0, z1, y1, x1 = instance.box
    out[z0:z1, y0:y1, x0:x1] = instance.mask
    return out


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("rule", [PLAIN, PropagationRules()])
def test_a_clean_ball_comes_back_whole(rule):
    truth = ball()
    volume = np.where(truth, 220, 40).astype(np.uint8)
    work = Propagation.start([(11, 14, 18), (8, 15, 20)], truth.shape, rule)
    drive(work, volume, Thresholder())
    for instance in work.instances():
        assert overlap(paste(instance, truth.shape), truth) > 0.97
        assert instance.mask.shape == tuple(b - a for a, b in zip(instance.box[:3], instance.box[3:], strict=True))
        assert all(instance.mask.any(axis=tuple({0, 1, 2} - {i}))[[0, -1]].all() for i in range(3)), "box is tight"
        assert 0.5 < instance.score <= 1
        assert instance.centre() == pytest.approx(ndimage.center_of_mass(truth), abs=0.2)


def test_start_planes_are_decoded_once_and_prompts_of_a_plane_together():
    truth = ball()
    volume = np.where(truth, 220, 40).astype(np.uint8)
    segmenter = Thresholder()
    points = [(11, 14, 18), (11, 14, 17), (11, 13, 18), (11, 14, 19)]  # four prompts, all on plane z = 11
    work = Propagation.start(points, truth.shape, PLAIN)
    need = work.needed()
    assert len(need["z", 11]) == 4
    work.step(segmenter, "z", 11, volume[11], volume[11])
    assert segmenter.calls == [(3, False), (1, False)], "four prompts in batches of three, no logits on the first plane"
    after = work.needed()
    assert ("z", 11) not in after
    assert len(after["z", 10]) == len(after["z", 12]) == 4
    work.step(segmenter, "z", 11, volume[11], volume[11])
    assert len(segmenter.calls) == 2, "a plane that nobody waits for decodes nothing"


def test_walkers_end_with_the_object_and_at_the_borders():
    truth = ball()
    volume = np.where(truth, 220, 40).astype(np.uint8)
    work = Propagation.start([(11, 14, 18)], truth.shape, PLAIN)
    served = drive(work, volume, Thresholder())
    assert served <= 3 * (13 + 2), "at most the object's planes and one beyond at each end"
    whole = np.full((5, 6, 7), 220, np.uint8)
    work = Propagation.start([(2, 3, 3)], whole.shape, PLAIN)
    assert drive(work, whole, Thresholder()) == 5 + 6 + 7
    assert {w.finished for w in work.walkers} == {"forked", "volume ends"}
    assert work.instances()[0].mask.all()


def test_one_plane_volume():
    flat = np.zeros((1, 9, 9), np.uint8)
    flat[0, 3:6, 3:6] = 200
    work = Propagation.start([(0, 4, 4)], flat.shape, PLAIN)
    drive(work, flat, Thresholder())
    assert work.instances()[0].size == 9


def test_nothing_under_the_point_gives_none():
    volume = np.full((8, 8, 8), 10, np.uint8)
    work = Propagation.start([(4, 4, 4)], volume.shape, PropagationRules())
    drive(work, volume, Thresholder())
    assert work.instances() == [None]
    assert {w.finished for w in work.walkers} == {"no candidate"}


def test_plain_rule_filters_by_area_and_by_iou_before_score():
    truth = ball()
    volume = np.where(truth, 220, 40).astype(np.uint8)
    segmenter = Thresholder(extra=np.ones_like)  # a second candidate, the whole plane, with the better score
    work = Propagation.start([(11, 14, 18)], truth.shape, PLAIN.model_copy(update={"max_area": 200}))
    drive(work, volume, segmenter)
    assert overlap(paste(work.instances()[0], truth.shape), truth) > 0.97, "max_area removes the whole plane"
    work = Propagation.start([(11, 14, 18)], truth.shape, PLAIN)
    drive(work, volume, segmenter)
    assert work.instances()[0].mask.all(), "without it the best score wins and nothing stops the union"
    work = Propagation.start([(11, 14, 18)], truth.shape, PLAIN.model_copy(update={"tau_iou": 1.0}))
    drive(work, volume, Thresholder())
    assert work.instances()[0].size < truth.sum() / 2, "no next mask has IoU > 1: only the start planes are left"


def test_guarded_rule_stops_a_leak_that_the_plain_rule_follows():
    """Below the ball stands a dim column, still above the segmenter's threshold: only the contrast tells."""
    truth = ball(shape=(40, 30, 34), centre=(11, 14, 18))
    column = np.zeros_like(truth)
    column[11:, 10:19, 14:23] = True
    volume = np.where(truth, 240, np.where(column, 140, 100)).astype(np.uint8)
    lowest = {}
    for name, rule in (("plain", PLAIN), ("guarded", PropagationRules())):
        work = Propagation.start([(11, 14, 18)], truth.shape, rule)
        drive(work, volume, Thresholder())
        (down,) = (w for w in work.walkers if w.axis == "z" and w.direction == 1)
        assert down.finished == ("volume ends" if name == "plain" else "contrast")
        lowest[name] = down.patches[-1].plane
    assert lowest["plain"] == 39
    assert 15 <= lowest["guarded"] <= 18, "the ball's lower end is at z = 17"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"max_area_ratio": 1.0, "min_contrast": 0.0}, "area"),
        ({"max_drift": 0.01, "min_contrast": 0.0, "max_area_ratio": 9}, "drift"),
        ({"max_reach": 0.01}, "reach"),
    ],
)
def test_each_guard_names_itself(rule, reason):
    grid = np.indices((40, 24, 24))
    cone = np.hypot(grid[1] - 11 - 0.2 * grid[0], grid[2] - 11) <= 3 + 0.15 * grid[0]
    volume = np.where(cone, 220, 40).astype(np.uint8)
    work = Propagation.start([(4, 12, 11)], volume.shape, PropagationRules(**rule))
    drive(work, volume, Thresholder())
    assert [w.finished for w in work.walkers if (w.axis, w.direction) == ("z", 1)] == [reason]


def test_dark_objects_are_guarded_like_bright_ones():
    image = np.full((30, 30), 100, np.uint8)
    image[10:20, 10:20] = 60
    patch = Patch.crop(image == 60, 0, 1.0)
    assert contrast(image, patch) == -40
    assert contrast(image[10:20, 10:20], Patch.crop(np.ones((10, 10), bool), 0, 1.0)) == 0, "no ring, no contrast"


def segmenters():
    return [Thresholder(), RandomWalkerSegmenter()]


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    rng = np.random.default_rng(3)
    truth = ball(shape=(32, 40, 44), centre=(15, 19, 22), radius=7)
    return np.clip(ndimage.uniform_filter(truth * 90.0 + 80 + rng.normal(0, 60, truth.shape), 3), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("segmenter", segmenters(), ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 3, 4, 9, 17])
def test_stored_and_continued_is_bit_identical(segmenter, steps, noisy, tmp_path):
    points, rule = [(15, 19, 22), (13, 20, 24), (3, 3, 3)], PropagationRules()
    whole = Propagation.start(points, noisy.shape, rule)
    drive(whole, noisy, segmenter)
    parts = Propagation.start(points, noisy.shape, rule)
    while parts.needed():
        drive(parts, noisy, segmenter, steps=steps, shuffle=steps)  # in another order of planes, too
        np.savez(tmp_path / "state.npz", **parts.to_arrays())
        with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
            parts = Propagation.from_arrays(stored, rule)
    for a, b in zip(whole.instances(), parts.instances(), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a.box, a.score, a.planes) == (b.box, b.score, b.planes)
            np.testing.assert_array_equal(a.mask, b.mask)


class Plain:
    """A segmenter's own contract and nothing more: whole planes."""

    def __init__(self, segmenter: Any) -> None:
        for name in ("name", "identity", "batch", "embedding_shape", "embedding_dtype", "logits_shape", "embed"):
            setattr(self, name, getattr(segmenter, name))
        self.predict, self.peak = segmenter.predict, segmenter.peak


@pytest.mark.parametrize("rule", [PLAIN, PropagationRules(), PropagationRules(tau_iou=0.3, merge="union")])
def test_windows_and_whole_planes_give_the_same_propagation(rule, noisy):
    assert isinstance(RandomWalkerSegmenter(), WindowedSegmenter)
    assert not isinstance(Plain(RandomWalkerSegmenter()), WindowedSegmenter)
    states = []
    for segmenter in (RandomWalkerSegmenter(), Plain(RandomWalkerSegmenter())):
        work = Propagation.start([(15, 19, 22), (13, 20, 24), (3, 3, 3), (31, 39, 0)], noisy.shape, rule)
        drive(work, noisy, segmenter)
        states.append(work.to_arrays())
    for key, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][key], err_msg=key)
    assert len(states[0]["patches"]) > 60


def test_arrays_round_trip_exactly(noisy):
    work = Propagation.start([(15, 19, 22)], noisy.shape, PropagationRules())
    drive(work, noisy, RandomWalkerSegmenter(), steps=8)
    arrays = work.to_arrays()
    again = Propagation.from_arrays(arrays, work.settings).to_arrays()
    assert arrays.keys() == again.keys()
    for key, value in arrays.items():
        assert value.dtype == again[key].dtype
        assert value.dtype != object
        np.testing.assert_array_equal(value, again[key], err_msg=key)


def test_empty_group():
    work = Propagation.start([], (4, 5, 6), PLAIN)
    assert work.needed() == {}
    assert work.instances() == []
    assert Propagation.from_arrays(work.to_arrays(), PLAIN).instances() == []


@pytest.mark.parametrize("point", [(-1, 2, 2), (2, 9, 2), (2, 2, 99.0)])
def test_a_point_outside_is_an_error_that_gives_the_range(point):
    with pytest.raises(InputError, match=r"lies outside the volume; expected 0 to"):
        Propagation.start([point], (8, 8, 8), PLAIN)


def test_a_plane_of_another_shape_is_refused():
    work = Propagation.start([(2, 2, 2)], (4, 5, 6), PLAIN)
    with pytest.raises(ValueError, match=r"expected an image of shape \(5, 6\), found \(6, 5\)"):
        work.step(Thresholder(), "z", 2, np.zeros((6, 5), np.uint8), np.zeros((6, 5), np.uint8))


@pytest.mark.parametrize("bad", [{"tau_iou": 1.5}, {"rule": "other"}, {"min_votes": 4}, {"unknown": 1}])
def test_settings_are_checked(bad):
    with pytest.raises(ValidationError):
        PropagationRules(**bad)


def stack_of(volume: np.ndarray) -> dict:
    return {
        axis: [p for i in range(volume.shape[a]) if (p := Patch.crop(np.take(volume, i, a), i, 0.8)) is not None]
        for a, axis in enumerate(AXES)
    }


def test_merging_votes_keeps_the_prompts_component_and_fills_holes():
    body = ball(shape=(20, 20, 20), centre=(9, 9, 9), radius=5)
    hollow = body & ~ball(shape=(20, 20, 20), centre=(9, 9, 9), radius=2)
    apart = np.zeros_like(body)
    apart[:3, :3, :3] = True
    patches = stack_of(hollow | apart)
    merged = merge_patches(7, (9, 9, 5), patches, 2)
    assert merged.prompt == 7
    np.testing.assert_array_equal(paste(merged, body.shape), body)
    only_z = {**stack_of(np.zeros_like(body)), "z": patches["z"]}
    assert merge_patches(0, (9, 9, 5), only_z, 2) is None, "one axis agrees with nobody"
    assert merge_patches(0, (9, 9, 5), only_z, 1).size == body.sum()
    assert merge_patches(0, (9, 9, 5), stack_of(np.zeros_like(body)), 1) is None


def test_a_leak_of_one_axis_is_outvoted_and_costs_score():
    body = ball(shape=(30, 20, 20), centre=(9, 9, 9), radius=5)
    leak = body.copy()
    leak[9:, 6:13, 6:13] = True
    clean, leaky = stack_of(body), {**stack_of(body), "z": stack_of(leak)["z"]}
    merged = merge_patches(0, (9, 9, 9), leaky, 2)
    np.testing.assert_array_equal(paste(merged, body.shape), body)
    assert merged.score < 0.8 * merge_patches(0, (9, 9, 9), clean, 2).score
    assert merge_patches(0, (9, 9, 9), leaky, 1).size > 1.5 * body.sum()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31)), max_size=6))
def test_packing_round_trips(shapes):
    masks = [np.random.default_rng(s).random((a, b)) < 0.5 for a, b, s in shapes]
    bits = pack(masks)
    for mask, back in zip(masks, unpack(bits, [m.shape for m in masks]), strict=True):
        np.testing.assert_array_equal(mask, back)
    with pytest.raises(ValueError, match=r"expected \d+ bytes"):
        unpack(np.append(bits, np.uint8(0)), [m.shape for m in masks])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_patches_and_logits_stand_for_whole_planes(seed, density):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 9, 11)) < density
    one, two = Patch.crop(a, 0, 1.0), Patch.crop(b, 0, 1.0)
    if one is None or two is None:
        assert not (a.any() and b.any())
    else:
        assert iou(one, two) == pytest.approx((a & b).sum() / (a | b).sum())
        assert one.centre() == pytest.approx(ndimage.center_of_mass(a))
    full = np.where(a, rng.normal(size=a.shape), 0).astype(np.float32)
    np.testing.assert_array_equal(Window.crop(full).full(), full)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(-4, 12), st.integers(-4, 14), st.integers(0, 12), st.integers(0, 12))
def test_a_part_of_a_window_is_that_part_of_the_whole(seed, row, col, h, w):
    rng = np.random.default_rng(seed)
    window = Window((9, 11), int(rng.integers(0, 5)), int(rng.integers(0, 6)), rng.random((4, 5)) < 0.5)
    padded = np.pad(window.full(), 30)
    np.testing.assert_array_equal(window.cut(row, col, (h, w)), padded[30 + row :, 30 + col :][:h, :w])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.001, 1), st.sampled_from([(1, 1), (3, 17), (20, 4), (24, 26)]))
def test_distances_to_a_mask_are_exact_as_far_as_they_go(seed, density, shape):
    mask = np.random.default_rng(seed).random(shape) < density
    mask[0, 0] = True
    exact = np.round(ndimage.distance_transform_edt(~mask) ** 2)
    found = squared_distance(mask, 5)
    np.testing.assert_array_equal(found[exact <= 25], exact[exact <= 25])
    assert (found[exact > 25] > 25).all()
    np.testing.assert_array_equal(squared_distance(mask, 10)[exact <= 100], exact[exact <= 100])
