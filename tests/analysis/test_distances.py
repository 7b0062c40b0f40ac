"""Distances against SciPy's transform of the whole volume."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from cryosam_dask import geometry
from cryosam_dask.analysis import distances
from cryosam_dask.analysis.distances import MaskPieces, point_distance, surface_distance
from cryosam_dask.analysis.instances import Body
from cryosam_dask.analysis.volumes import ArrayVolume

SPACING = (1.0, 1.4, 0.7)


def body_of(mask: np.ndarray) -> Body:
    box = geometry.bounds(mask)
    return Body(box, mask[geometry.box_slices(box)])


def check(mask: np.ndarray, target: np.ndarray) -> None:
    pieces = MaskPieces(ArrayVolume(target), SPACING)
    body = body_of(mask)
    found = surface_distance(body, pieces, SPACING)
    centre = np.argwhere(mask).mean(0)
    from_centre = point_distance(centre, pieces, SPACING)
    if not target.any():
        assert math.isinf(found)
        assert math.isinf(from_centre)
        return
    whole = ndimage.distance_transform_edt(target == 0, sampling=SPACING)
    assert found == pytest.approx(whole[mask].min(), abs=1e-9)
    if target[tuple(np.rint(centre).astype(int))]:
        assert from_centre == 0
    else:
        tree = cKDTree(np.argwhere(target) * SPACING)
        assert from_centre == pytest.approx(tree.query(centre * SPACING)[0], abs=1e-9)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small volumes have many pieces, and long lists of pairs take the way of long lists."""
    monkeypatch.setattr(distances, "BLOCK", (8, 16, 16))
    monkeypatch.setattr(distances, "_PIECE", (8, 8, 8))
    monkeypatch.setattr(distances, "_PAIRS", 50)
    monkeypatch.setattr(distances, "LONG", 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_as_a_transform_of_the_whole_volume(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "BLOCK", (8, 16, 16))
        patch.setattr(distances, "_PIECE", (8, 8, 8))
        patch.setattr(distances, "_PAIRS", 50)
        patch.setattr(distances, "LONG", int(np.random.default_rng(seed).integers(3, 30)))
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(6, 30, 3))
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 3))
        mask = smooth > np.quantile(smooth, rng.uniform(0.9, 0.99))
        other = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 4))
        target = other > np.quantile(other, rng.uniform(0.5, 1))
        check(mask, np.where(target, rng.integers(1, 9, shape), 0))


@pytest.mark.usefixtures("small_pieces")
def test_a_far_speck_a_sheet_around_and_a_body_inside_the_target() -> None:
    ball = (np.linalg.norm(np.indices((30, 30, 60)).transpose(1, 2, 3, 0) - (15, 15, 12), axis=-1) < 7)  # fmt: skip
    speck = np.zeros_like(ball)
    speck[29, 0, 59] = True
    check(ball, speck)
    radius = np.linalg.norm(np.indices(ball.shape).transpose(1, 2, 3, 0) - (15, 15, 12), axis=-1)
    check(ball, np.abs(radius - 11) < 1)
    check(ball, np.ones_like(ball))
    inner = np.zeros_like(ball)
    inner[15, 15, 12] = True
    check(ball, inner)  # the target is inside the body, off its boundary
    check(inner, ball)
    check(ball, ~ball)
    check(ball, np.zeros_like(ball))


def test_large_sets_of_points_take_the_tree() -> None:
    first = np.zeros((40, 60, 60), bool)
    second = first.copy()
    first[3] = second[30] = True
    second[29, 40, 41] = True
    check(first, second)
