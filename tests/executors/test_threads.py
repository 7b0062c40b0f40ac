"""Units that run at once in the threads of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.executors.base import run_unit
from cryosam_dask.stages.base import Context, Unit
from cryosam_dask.store import marks
from cryosam_dask.store.run_store import RunStore

HEAD = """
import sys, threading, types
from concurrent.futures import ThreadPoolExecutor
import scipy.linalg
from threadpoolctl import ThreadpoolController, threadpool_info
from cryosam_dask.executors.threads import OneBlasThread

def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

limit = OneBlasThread()
before = blas_threads()
if max(before) < 2:
    print("one thread anyway")
    sys.exit()
"""
OVERLAPPING = """
inside, left = threading.Event(), threading.Event()
def early():
    with limit.held():
        inside.wait(300)
        seen = blas_threads()
    left.set()
    return seen
with ThreadPoolExecutor(2) as pool:
    first = pool.submit(early)
    def late():
        with limit.held():
            inside.set()
            left.wait(300)
            return blas_threads()
    assert pool.submit(late).result() == {1}, "the other has left, we have not"
    assert first.result() == {1}
assert blas_threads() == before
with limit.held():
    assert blas_threads() == {1}
assert blas_threads() == before
"""
NEW_LIBRARY = """
with limit.held():
    # as a library is that is loaded just now
    limit._keeper.submit(lambda: limit._libraries.limit(limits=2, user_api="blas")).result()
    assert blas_threads() == {2}
    sys.modules["just_imported"] = types.ModuleType("just_imported")
    with limit.held():
        assert blas_threads() == {1}
    assert blas_threads() == {1}
assert blas_threads() == before
"""


@pytest.mark.parametrize("code", [OVERLAPPING, NEW_LIBRARY])
def test_blas_has_one_thread_until_the_last_unit_ends(code: str) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    if done.stdout:
        pytest.skip("this BLAS has one thread anyway")


def test_units_in_threads_are_marked_and_know_of_each_other(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run.zarr", {})
    marks.begin(store, "toy", fingerprint="", settings={}, count=8)
    barrier = threading.Barrier(4)

    def work(context: Context, settings: dict[str, object], unit: Unit) -> None:
        barrier.wait(300)
        if unit.params["index"] % 4 == 0:
            raise InputError("bad")
        time.sleep(0.05)

    units = [Unit(f"unit {i}", (i,), {"index": i}) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run_unit, "toy", work, {}, Context(store.url), unit) for unit in units]
        errors = [future.exception() for future in futures]
    assert [isinstance(error, InputError) for error in errors] == [True, False, False, False] * 2
    assert marks.done(store, "toy").tolist() == [False, True, True, True] * 2
    timings = [future.result().timing for future in futures if not future.exception()]
    assert all(1 < timing.together <= 4 for timing in timings)
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(run_unit, "toy", lambda *_: None, {}, Context(store.url), units[0]).result()
    assert alone.timing.together == 1


def test_marks_of_a_stage_that_began_anew_are_written(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run.zarr", {})
    for _ in range(2):
        marks.begin(store, "toy", fingerprint="", settings={}, count=3)
        marks.mark(store, "toy", 2)
        marks.mark(store, "toy", 1)
        assert marks.done(store, "toy").tolist() == [False, True, True]
        store.delete("marks/toy")
