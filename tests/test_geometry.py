"""Frames: cells, views, interpolation, tilings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask import geometry
from cryosam_dask.types import AXES, Axis

lengths = st.integers(1, 70)


@given(length=lengths, ratio=st.sampled_from([1, 2, 4, 8, 16]))
def test_cells_cover_each_voxel_once_and_centres_lie_in_their_middle(length: int, ratio: int) -> None:
    centers = geometry.cell_centers(length, ratio)
    covered = [np.arange(k * ratio, min((k + 1) * ratio, length)) for k in range(len(centers))]
    assert np.concatenate(covered).tolist() == list(range(length))
    assert centers == pytest.approx([c.mean() for c in covered])


@given(shape=st.tuples(lengths, lengths, lengths), size=st.tuples(lengths, lengths, lengths))
@settings(max_examples=30)
def test_boxes_tile_a_volume(shape: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    count = np.zeros(shape, int)
    for box in geometry.boxes(shape, size):
        count[geometry.box_slices(box)] += 1
    assert (count == 1).all()


@given(shape=st.tuples(lengths, lengths, lengths), most=st.sampled_from([(16, 16, 16), (32, 16, 48)]))
@settings(max_examples=30)
def test_even_boxes_tile_a_volume_without_thin_rests(shape: tuple[int, int, int], most: tuple[int, int, int]) -> None:
    count = np.zeros(shape, int)
    for box in geometry.even_boxes(shape, most, 8):
        count[geometry.box_slices(box)] += 1
        for (start, stop), longest, length in zip(box, most, shape, strict=True):
            assert start % 8 == 0
            assert stop - start <= longest
            assert stop - start >= min(length, longest // 2 - 8)
    assert (count == 1).all()


@given(tokens=st.integers(1, 300), size=st.integers(8, 64), halo=st.integers(0, 3))
def test_tiles_keep_each_token_once_with_its_halo(tokens: int, size: int, halo: int) -> None:
    kept: list[int] = []
    for tile in geometry.tiles(tokens, size, halo):
        assert 0 <= tile.first <= tile.start < tile.stop <= tile.last <= tokens
        assert tile.last - tile.first <= size
        assert tile.start - tile.first >= halo or tile.first == 0
        assert tile.last - tile.stop >= halo or tile.last == tokens
        own = np.arange(tile.first, tile.last)
        assert own[tile.crop].tolist() == list(range(tile.start, tile.stop))
        kept += list(range(tokens))[tile.keep]
    assert kept == list(range(tokens))


@pytest.mark.parametrize("axis", AXES)
def test_views_and_planes_go_there_and_back(axis: Axis) -> None:
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    slices = geometry.to_view(volume, axis)
    assert (geometry.from_view(slices, axis) == volume).all()
    assert slices.shape[1:] == geometry.plane_shape((2, 3, 4), axis)
    point = (1, 2, 3)
    index, row, column = (int(v) for v in geometry.to_plane(point, axis))
    assert slices[index, row, column] == volume[point]
    assert geometry.from_plane(index, row, column, axis) == point


@given(length=lengths, tokens=st.integers(1, 30), data=st.data())
def test_interpolation_of_a_part_is_the_part_of_the_whole(length: int, tokens: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    values = np.random.default_rng(0).normal(size=tokens).astype(np.float32)
    every = np.arange(length, dtype=float)
    whole, part = (geometry.interpolation(p, length, tokens) for p in (every, every[start:stop]))
    expected = whole.weights @ values[whole.start : whole.stop]
    assert part.weights @ values[part.start : part.stop] == pytest.approx(expected[start:stop], abs=1e-6)
    assert part.weights.sum(1) == pytest.approx(1, abs=1e-6)
    assert 0 <= part.start < part.stop <= tokens


def test_interpolation_is_pytorchs() -> None:
    import torch

    values = np.random.default_rng(1).normal(size=7).astype(np.float32)
    for length in (3, 7, 20, 29):
        ours = geometry.interpolation(np.arange(length, dtype=float), length, 7)
        theirs = torch.nn.functional.interpolate(torch.tensor(values)[None, None], length, mode="linear")[0, 0]
        assert ours.weights @ values[ours.start : ours.stop] == pytest.approx(theirs.numpy(), abs=1e-5)


def test_angstrom_positions_of_voxels_cells_and_tokens_agree() -> None:
    voxels = geometry.axis_coordinates(16, 10.0, 5.0)
    assert voxels[[0, 1]].tolist() == [5.0, 15.0]
    assert geometry.axis_coordinates(16, 10.0, 5.0, 4) == pytest.approx(voxels.reshape(4, 4).mean(1))
    assert geometry.token_coordinates(16, 4, 10.0, 5.0) == pytest.approx(voxels.reshape(4, 4).mean(1))


def test_boxes_intersect() -> None:
    assert geometry.intersect(((0, 4), (0, 4), (0, 4)), ((2, 9), (1, 3), (0, 1))) == ((2, 4), (1, 3), (0, 1))
    assert geometry.intersect(((0, 4), (0, 4), (0, 4)), ((4, 9), (1, 3), (0, 1))) is None


def test_voxel_sizes_are_the_same_up_to_rounding_and_half_a_voxel() -> None:
    assert geometry.same_voxels(10.0, (10.0, 10.009, 9.991))
    assert not geometry.same_voxels(10.0, (10.0, 10.011, 10.0))
    assert geometry.same_voxels((10.0, 10.0, 10.009), 10.0, (8000, 8000, 500))
    assert not geometry.same_voxels((10.0, 10.0, 10.009), 10.0, (500, 500, 600))
    assert geometry.one_side((10.52, 10.52, 10.52), (9, 9, 10**6)) == 10.52
    assert geometry.one_side((13.2812, 13.2813, 13.2812)) == pytest.approx(13.28123333)
    assert geometry.one_side((13.2812, 13.2813, 13.2812), (10**6, 9, 9)) is None
    assert geometry.one_side((9.992, 10.0, 10.008)) is None  # by more than 0.1 % from one another
