"""Sizes and surfaces of bodies of which the true ones are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cryosam_dask.analysis import shape

SPACINGS = [(1.0, 1.0, 1.0), (1.0, 1.4, 0.8), (2.0, 1.0, 1.0)]


def solid(half: tuple[float, float, float], spacing: tuple[float, ...], seed: int, turn: bool = False) -> np.ndarray:
    """An ellipsoid of half axes `half`, not centred on a voxel; with `turn`, in no special direction."""
    rng = np.random.default_rng(seed)
    reach = [int(max(half) / s) + 3 for s in spacing]
    places = np.stack(
        np.meshgrid(*[np.arange(-n, n + 1) * s for n, s in zip(reach, spacing, strict=True)], indexing="ij"), -1
    )
    places = places - rng.uniform(-0.5, 0.5, 3) * spacing
    if turn:
        places = places @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return ((places / half) ** 2).sum(-1) <= 1


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("radius", "tolerance"), [(3, 0.06), (6, 0.03), (12, 0.015)])
def test_a_balls_surface_and_sphericity(radius: float, tolerance: float, spacing: tuple[float, float, float]) -> None:
    mask = solid((radius,) * 3, spacing, seed=radius)
    volume = np.count_nonzero(mask) * math.prod(spacing)
    area = shape.surface_area(mask, spacing)
    assert area == pytest.approx(4 * math.pi * radius**2, rel=tolerance)
    assert shape.sphericity(volume, area) == pytest.approx(1, abs=tolerance)
    assert shape.equivalent_diameter(volume) == pytest.approx(2 * radius, rel=tolerance)


@pytest.mark.parametrize("radius", [5, 7, 10, 15])
def test_the_bias_on_balls_is_what_the_docs_say(radius: float) -> None:
    areas = [shape.surface_area(solid((radius,) * 3, (1, 1, 1), seed), (1.0, 1.0, 1.0)) for seed in range(4)]
    assert np.mean(areas) == pytest.approx(4 * math.pi * radius**2, rel=0.01)


def test_a_thin_sheet_has_two_sides() -> None:
    """A membrane a voxel thick, tilted: smoothing before a surface is fitted would lose it."""
    z, _, x = np.indices((60, 60, 60))
    sheet = np.abs((z - 30) - 0.5 * (x - 30)) <= 0.75
    expected = 2 * 60 * 60 * math.sqrt(1.25)
    assert shape.surface_area(sheet, (1.0, 1.0, 1.0)) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_axes_of_a_turned_ellipsoid(spacing: tuple[float, float, float]) -> None:
    found = shape.moments(solid((14, 9, 5), spacing, seed=1, turn=True), spacing)
    assert shape.principal_axes(found.covariance) == pytest.approx([28, 18, 10], rel=0.03)


def test_moments_are_those_of_the_voxels() -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.3
    places = np.argwhere(mask) * (1.0, 2.0, 0.5)
    found = shape.moments(mask, (1.0, 2.0, 0.5))
    assert found.voxels == len(places)
    assert found.centre * (1.0, 2.0, 0.5) == pytest.approx(places.mean(0))
    own = np.diag([1 / 12, 4 / 12, 0.25 / 12])
    assert found.covariance == pytest.approx(np.cov(places.T, bias=True) + own)


def test_one_voxel() -> None:
    one = np.ones((1, 1, 1), bool)
    found = shape.moments(one, (1.0, 1.0, 2.0))
    # the ellipsoid with a box's moments is a little longer than the box: √(5/3)
    assert shape.principal_axes(found.covariance) == pytest.approx(np.array([2, 1, 1]) * math.sqrt(5 / 3))
    assert 0.5 < shape.sphericity(2, shape.surface_area(one, (1.0, 1.0, 2.0))) < 1.6
    assert shape.boundary(one).tolist() == [[0, 0, 0]]


def test_the_boundary_looks_outside() -> None:
    mask = np.random.default_rng(1).random((9, 8, 7)) < 0.9
    padded = np.pad(mask, 1)
    open_ = np.zeros_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            open_ |= ~np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    assert {tuple(p) for p in shape.boundary(mask)} == {tuple(p) for p in np.argwhere(mask & open_)}
