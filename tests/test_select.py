"""Which instances are of the prompted one's size."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cryosam_dask.stages.select import of_size
from cryosam_dask.store import instances
from cryosam_dask.store.run_store import RunStore

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


def test_groups_of_instances_are_read_a_few_at_a_time_and_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore.create(tmp_path / "run.zarr", {})
    for group in range(8):
        there = instances.collect([group], [(0, 0, 0, 1, 1, 1)], [np.ones((1, 1, 1), bool)], [1.0], [0.5])
        instances.write(store, f"g{group}", there)
    read, together = instances.read_measured, threading.Barrier(4, timeout=10)

    def slow(*args):
        together.wait()  # as object storage answers: four that are asked for at once come at once
        return read(*args)

    monkeypatch.setattr(instances, "read_measured", slow)
    found = instances.read_all_measured(store, [f"g{group}" for group in range(8)])
    assert [part.prompt.tolist() for part in found] == [[group] for group in range(8)]
