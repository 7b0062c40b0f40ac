from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import pytest
from executor_contract import ExecutorContract
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_stage import calls, new_store, toy_stage

from cryosam_dask.errors import ExecutionError, InputError
from cryosam_dask.executors import SerialExecutor, base, execute
from cryosam_dask.store import marks


class TestSerial(ExecutorContract):
    @pytest.fixture
    def executor(self):
        with SerialExecutor() as executor:
            yield executor


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
