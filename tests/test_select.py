"""Which instances are of the prompted one's size."""

from __future__ import annotations

import numpy as np
import pytest

from cryosam_dask.stages.select import of_size

SHAPE = (40, 50, 60)


@pytest.mark.parametrize(("size", "inside", "at_border"), [(100, False, True), (500, True, True), (1000, True, True),
                                                           (2000, True, True), (2001, False, False)])  # fmt: skip
def test_half_to_twice_the_size_or_less_where_the_border_cuts(size, inside, at_border):
    within = np.array([[10, 10, 10, 20, 20, 20]])
    assert of_size(within, np.array([size]), 1000.0, SHAPE).tolist() == [inside]
    for axis in range(3):
        first, last = within.copy(), within.copy()
        first[0, axis], last[0, 3 + axis] = 0, SHAPE[axis]
        boxes = np.concatenate([first, last])
        assert of_size(boxes, np.full(2, size), 1000.0, SHAPE).tolist() == [at_border] * 2


def test_none():
    assert of_size(np.empty((0, 6), int), np.empty(0, int), 1000.0, SHAPE).shape == (0,)
