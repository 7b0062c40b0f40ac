from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from executor_contract import ExecutorContract
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_stage import ARRAY, calls, new_store, square, toy_stage

from cryosam_dask.errors import ExecutionError, InputError, StoreError
from cryosam_dask.executors import SerialExecutor, base, execute
from cryosam_dask.store import arrays, layout, marks
from cryosam_dask.store.run_store import RunStore


class TestSerial(ExecutorContract):
    @pytest.fixture
    def executor(self):
        with SerialExecutor() as executor:
            yield executor


@pytest.mark.parametrize("moment", ["before its data", "before its mark"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_unit_that_outlives_its_driver_does_not_touch_what_another_one_began(tmp_path, monkeypatch, moment, marked):
    """The driver is killed and its worker goes on, while another command overwrites the stage."""
    monkeypatch.setattr(arrays, "CHECK_EVERY", 0.0)
    stage, other = toy_stage(tmp_path), toy_stage(tmp_path, power=3)
    store = new_store(tmp_path)
    if marked:  # how this process marks units is known to it by now
        execute(stage, store, SerialExecutor(), units=stage.units[:1])

    def overwrite():
        anew = RunStore.open(store.url, "r+")
        anew.delete(layout.marks("toy"))
        execute(other, anew, SerialExecutor(), units=other.units[4:])

    def work(context, settings, unit):
        if moment == "before its data":
            with_another_thread(overwrite)
        square(context, settings, unit)
        if moment == "before its mark":
            with_another_thread(overwrite)

    with pytest.raises(StoreError, match=r"^[^\n]*toy was overwritten by another command[^\n]*$"):
        execute(dataclasses.replace(stage, work=work), store, SerialExecutor(), units=stage.units[2:3])
    assert marks.done(store, "toy").tolist() == [False] * 4 + [True] * 2
    assert (f"{ARRAY}/c/2" in dict(store.files(ARRAY))) == (moment == "before its mark")


def with_another_thread(call):
    """As another process would: what is held to one thread does not hold there."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


@settings(max_examples=25, deadline=None)
@given(
    faults=st.lists(
        st.sampled_from([None, "once", "half", "none", "always", "input", "not done"]), min_size=1, max_size=8
    ),
    retries=st.integers(1, 3),
)
def test_any_mix_of_faults_leaves_marks_that_are_true(faults, retries):
    count = len(faults)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(base, "RETRY_PAUSE", 0):
        folder = Path(name)
        store = new_store(folder, count)
        stage = toy_stage(folder, count, faults={i: fault for i, fault in enumerate(faults) if fault})
        try:
            results = execute(stage, store, SerialExecutor(), retries=retries).results
        except InputError:
            assert "input" in faults
        except ExecutionError:
            assert "always" in faults
            assert "input" not in faults
        else:
            assert not {"always", "input"} & set(faults)
            assert len(results) == count
        expected = {"once": 2, "half": 2, "always": retries + 1}
        assert calls(folder, count) == [expected.get(fault, 1) for fault in faults]
        failing = ("always", "input", "not done")
        assert marks.done(store, "toy").tolist() == [fault not in failing for fault in faults]
