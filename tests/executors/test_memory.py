from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from toy_stage import toy_stage

from cryosam_dask.errors import MemoryLimitError
from cryosam_dask.executors.cluster import usable_share
from cryosam_dask.executors.memory import PeakMemory, available_memory, check_memory, process_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets a process's high-water mark")
def test_peak_is_of_this_unit_alone():
    size = 64 << 20
    with PeakMemory() as first:
        array = np.ones(size, dtype=np.uint8)
        del array
    assert first.peak - first.before > 0.9 * size
    with PeakMemory() as second:
        pass
    assert second.peak - second.before < 0.5 * size
    assert (first.together, second.together) == (1, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets a process's high-water mark")
def test_a_unit_that_begins_beside_another_leaves_its_peak_alone():
    size = 64 << 20
    with PeakMemory() as first:
        array = np.ones(size, dtype=np.uint8)
        del array
        with PeakMemory() as second:
            pass
    assert first.peak - first.before > 0.9 * size
    assert second.peak >= first.before + 0.9 * size  # shared, and said to be so
    assert (first.together, second.together) == (2, 2)


def test_three_units_at_once_know_of_each_other():
    import contextlib

    with contextlib.ExitStack() as running:
        watches = [running.enter_context(PeakMemory()) for _ in range(3)]
    assert [watch.together for watch in watches] == [3, 3, 3]
    with PeakMemory() as alone:
        pass
    assert alone.together == 1


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


def test_units_of_one_worker_share_its_model(tmp_path):
    stage = dataclasses.replace(toy_stage(tmp_path), model_memory=5_000_000)
    check_memory(stage, stage.units, 1_251_005, 4)
    with pytest.raises(MemoryLimitError, match=r"needs 1\.3 MB \(1\.2 MB of it for the model\)"):
        check_memory(stage, stage.units, 1_251_004, 4)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_of_a_worker_share_its_memory(threads):
    assert usable_share(10 << 30, threads) == ((9 << 30) - process_memory(True)) // threads


def test_built_in_models_run_on_small_workers():
    assert usable_share(500 << 20, 1, uses_torch=False) > 200 << 20
    assert usable_share(500 << 20, 1, uses_torch=True) == 0


IMPORTS = """
import importlib, psutil
import distributed
for name in {names}:
    importlib.import_module(name)
print(psutil.Process().memory_info().rss)
"""
BUILT_IN = [f"cryosam_dask.stages.{name}" for name in ("ingest", "features", "segment", "rank", "label")] + [
    "cryosam_dask.models.random_walker",
    "cryosam_dask.executors.threads",
    "threadpoolctl",
]


def test_a_process_of_the_built_in_models_holds_what_is_counted_for_it():
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(names=BUILT_IN)], capture_output=True, text=True, check=True
    )
    assert 0.5 * process_memory(False) < int(found.stdout) < 1.2 * process_memory(False)


def test_available_memory_is_less_than_the_machine_has():
    import psutil

    assert 0 < available_memory() < psutil.virtual_memory().total
