from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from toy_stage import toy_stage

from cryosam_dask.errors import MemoryLimitError
from cryosam_dask.executors.dask import usable_share
from cryosam_dask.executors.memory import PROCESS_MEMORY, PeakMemory, available_memory, check_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets a process's high-water mark")
def test_peak_is_of_this_unit_alone():
    size = 64 << 20
    first = PeakMemory()
    array = np.ones(size, dtype=np.uint8)
    del array
    assert first.peak - first.before > 0.9 * size
    second = PeakMemory()
    assert second.peak - second.before < 0.5 * size


def test_the_largest_unit_and_the_model_must_fit(tmp_path):
    stage = dataclasses.replace(toy_stage(tmp_path), model_memory=5_000_000, advice="choose a smaller slab")
    check_memory(stage, stage.units, 5_001_005)
    with pytest.raises(MemoryLimitError) as caught:
        check_memory(stage, stage.units, 5_001_004)
    assert str(caught.value) == (
        "toy: unit unit 5 needs 5.0 MB (5.0 MB of it for the model), a worker has 5.0 MB for it; choose a smaller slab"
    )


def test_no_limit_and_no_units_always_fit(tmp_path):
    stage = toy_stage(tmp_path)
    check_memory(stage, stage.units, None)
    check_memory(stage, (), 0)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_of_a_worker_share_its_memory(threads):
    assert usable_share(10 << 30, threads) == ((9 << 30) - PROCESS_MEMORY) // threads


def test_a_worker_smaller_than_its_libraries_has_nothing():
    assert usable_share(PROCESS_MEMORY // 2, 1) == 0


def test_available_memory_is_less_than_the_machine_has():
    import psutil

    assert 0 < available_memory() < psutil.virtual_memory().total
