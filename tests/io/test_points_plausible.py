"""Points that can't be, or may not be, what they are taken for: voxels (z, y, x) of the tomogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.plausible import check_corner, check_place, check_points, doubts, in_a_corner

SHAPE = (120, 440, 400)
PLACES = np.array([(40, 100, 200), (55.5, 310.25, 128), (12, 33.5, 390), (90, 250, 77), (61, 180, 333)])


def test_points_in_the_tomogram_raise_no_doubt() -> None:
    assert check_points(PLACES, SHAPE) is not None
    assert doubts(PLACES, SHAPE) == []
    assert doubts(PLACES[:0], SHAPE) == []


@pytest.mark.parametrize("unit", [np.array(SHAPE), 200])
def test_prompts_that_are_all_at_the_corner_are_refused(unit: np.ndarray | float) -> None:
    for points in (PLACES / unit, PLACES[:2] / unit):
        with pytest.raises(InputError, match=r"prompts: all \d points lie within 2 voxels of the corner .*fractions"):
            check_points(points, SHAPE)
    assert len(check_points([*(PLACES / unit), (60, 200, 200)], SHAPE)) == 6  # one that is not there


def test_a_single_point_at_the_corner_is_a_doubt_unless_a_file_has_it() -> None:
    """Whoever types it means it; with a file there is still the other way."""
    point = np.array([[0.5, 1, 1.5]])
    assert check_points(point, SHAPE).tolist() == point.tolist()
    (note,) = doubts(point, SHAPE)
    assert "the only one of the points, 0.5,1,1.5, lies within 2 voxels of the corner 0,0,0: is it a fraction" in note
    check_corner("points.csv", point)
    with pytest.raises(InputError, match=r"points\.csv: its only point lies .* given as one --point"):
        check_corner("points.csv", point, alone=True)
    assert doubts(np.array([[0.5, 1, 2.5]]), SHAPE) == []


@pytest.mark.parametrize(
    ("factor", "count", "said"), [(2, 5, True), (2, 4, False), (4, 3, True), (4, 2, False), (1, 5, False)]
)
def test_points_of_a_tomogram_binned_more_are_a_doubt(factor: float, count: int, said: bool) -> None:
    points = PLACES[:count] / factor
    assert in_a_corner(points, SHAPE) is said
    notes = doubts(points, SHAPE, "points that are not wanted")
    words = f"all {count} points that are not wanted are in the first half of each side: are they in larger voxels"
    assert [words in note for note in notes] == [True] * said


def test_prompts_most_of_which_are_outside_may_be_of_another_tomogram() -> None:
    with pytest.raises(InputError, match=r"4 of 5 points are: are they in voxels of another size, or another tomogr"):
        check_points(PLACES * 2, (120, 440, 440))
    with pytest.raises(InputError, match=r"1 of 5 points are$"):
        check_points(PLACES, (120, 300, 400))


def test_a_truth_most_of_which_is_far_outside_is_refused() -> None:
    check_place(Path("t.csv"), PLACES - 20, "TS_1", SHAPE, (10.0, 10.0, 10.0))
    with pytest.raises(InputError, match=r"t\.csv: 5 of 5 points are outside of TS_1 \(120 x 440 x 400 voxels"):
        check_place(Path("t.csv"), 2.5 * PLACES, "TS_1", SHAPE, (10.0, 10.0, 10.0))
