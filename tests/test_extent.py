"""Masks of particles are compact whatever their shape; those of parts of membranes, filaments and tubes are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cryosam_dask.kernels.extent import extent
from cryosam_dask.simulate.families import FAMILIES
from cryosam_dask.simulate.shapes import template
from cryosam_dask.simulate.species import SHAPES, Species

TEN = (10.0, 10.0, 10.0)


def grid(*shape: int) -> list[NDArray[np.float64]]:
    return list(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))


@pytest.mark.parametrize("shape", [*SHAPES, *FAMILIES])
@pytest.mark.parametrize(("diameter", "voxel"), [(12.0, 5.0), (26.0, 10.0), (38.0, 14.0)])
def test_particles_of_all_shapes_are_compact(shape: str, diameter: float, voxel: float) -> None:
    for seed in range(4 if shape in FAMILIES else 1):
        made = template(Species(shape, shape, diameter, 1, seed=seed), voxel)
        # the outline that a person would draw, and what is dense
        for mask in (made.occupancy >= 0.5, made.density >= 0.5):
            assert extent(mask, (voxel,) * 3).form == "compact", (seed, extent(mask, (voxel,) * 3))


def test_a_part_of_a_vesicle_is_a_sheet() -> None:
    z, y, x = grid(61, 61, 61)
    wall = np.abs(np.sqrt(z**2 + y**2 + x**2) - 25) <= 3.5
    measured = extent(wall & (z > 5), TEN)
    assert measured.form == "sheet"
    assert measured.thickness == pytest.approx(7, abs=1)
    assert measured.length == pytest.approx(57, abs=3)


def test_a_flat_membrane_is_a_sheet_at_any_voxel_size_and_slant() -> None:
    z, y, x = grid(50, 50, 50)
    for voxel in (8.0, 14.0):
        for slant in (0.0, 0.5, 1.0):
            mask = np.abs(z * np.cos(slant) + y * np.sin(slant)) * voxel <= 35
            mask &= np.abs(x) * voxel <= 250
            assert extent(mask, (voxel,) * 3).form == "sheet"


def test_a_piece_of_a_filament_and_of_a_microtubule_are_threads() -> None:
    z, _, x = grid(15, 80, 15)
    assert extent(np.hypot(z, x) <= 4, TEN).form == "thread"
    z, _, x = grid(31, 100, 31)
    tube = np.abs(np.hypot(z, x) - 10.5) <= 2.5
    assert extent(tube & (x > 5), TEN).form != "compact"  # the side of the wall that the missing wedge leaves


def test_a_mask_that_ends_early_is_taken_for_a_particle() -> None:
    z, _, x = grid(15, 20, 15)
    assert extent(np.hypot(z, x) <= 4, TEN).form == "compact"


def test_lengths_are_in_nanometres() -> None:
    measured = extent(np.ones((4, 10, 30), bool), (10.0, 10.0, 10.0))
    assert measured.length == pytest.approx(30, abs=0.5)
    assert measured.width == pytest.approx(10, abs=0.5)
    assert measured.thickness == pytest.approx(3, abs=1)
    assert extent(np.ones((1, 1, 1), bool), TEN) == pytest.approx((1, 1, 1))


def test_unequal_voxels_count_by_their_sides() -> None:
    measured = extent(np.ones((10, 10, 10), bool), (40.0, 10.0, 10.0))
    assert measured.length == pytest.approx(38, abs=2)
