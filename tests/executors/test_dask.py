from __future__ import annotations

import numpy as np
import pytest
from contract import ExecutorContract
from toy_stage import ARRAY, calls, new_store, squares, toy_stage

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors import DaskExecutor, SerialExecutor, execute
from cryosam_dask.store import marks


class TestDask(ExecutorContract):
    @pytest.fixture
    def executor(self, two_workers):
        with DaskExecutor(two_workers, "cpu") as executor:
            yield executor


@pytest.fixture
def executor(two_workers):
    return DaskExecutor(two_workers, "cpu")


def test_same_bytes_as_serial(executor, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = new_store(tmp_path / "a"), new_store(tmp_path / "b")
    execute(toy_stage(tmp_path / "a"), one, SerialExecutor())
    execute(toy_stage(tmp_path / "b"), other, executor)
    assert one.array(ARRAY)[:].tobytes() == other.array(ARRAY)[:].tobytes()


def test_work_is_shared_by_workers(executor, tmp_path):
    done = execute(toy_stage(tmp_path, faults=dict.fromkeys(range(6), "slow")), new_store(tmp_path), executor)
    assert len({timing.worker for timing in done.timings}) == 2


def test_a_killed_worker_costs_its_unit_only(executor, tmp_path):
    store = new_store(tmp_path)
    execute(toy_stage(tmp_path, faults={2: "kill once"}), store, executor, retries=0)
    assert calls(tmp_path)[2] == 2
    assert np.array_equal(store.array(ARRAY)[:], squares())
    assert marks.done(store, "toy").all()


def test_a_given_client_stays_open(two_workers):
    DaskExecutor(two_workers).close()
    assert two_workers.status == "running"


def test_no_scheduler_is_one_line(unused_port):
    address = f"tcp://127.0.0.1:{unused_port}"
    with pytest.raises(ExecutionError, match=f"no Dask scheduler answers at {address} within 0.5 s") as caught:
        DaskExecutor(address, timeout=0.5)
    assert "\n" not in str(caught.value)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
