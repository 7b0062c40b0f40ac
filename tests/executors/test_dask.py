from __future__ import annotations

import dataclasses
import gc
import pickle
import sys
import threading
import time
import types

import numpy as np
import pytest
from executor_contract import ExecutorContract
from toy_stage import ARRAY, calls, new_store, squares, toy_stage

from cryosam_dask.errors import DeviceError, ExecutionError, StoreError
from cryosam_dask.executors import (
    DaskExecutor,
    JoinedScheduler,
    SerialExecutor,
    UserClient,
    execute,
    local_client,
)
from cryosam_dask.executors import dask as dask_executor
from cryosam_dask.executors.cluster import UNITS_PER_GPU
from cryosam_dask.executors.connection import connect
from cryosam_dask.executors.landing import landed_outcomes
from cryosam_dask.executors.link import Link
from cryosam_dask.executors.local import close_local
from cryosam_dask.executors.sharing import UNITS_PER_SLOT
from cryosam_dask.stages.base import Context
from cryosam_dask.store import marks


class TestDask(ExecutorContract):
    @pytest.fixture
    def executor(self, two_workers):
        with DaskExecutor(UserClient(two_workers), "cpu") as executor:
            yield executor


@pytest.fixture
def executor(two_workers):
    return DaskExecutor(UserClient(two_workers), "cpu")


def test_same_bytes_as_serial(executor, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = new_store(tmp_path / "a"), new_store(tmp_path / "b")
    execute(toy_stage(tmp_path / "a"), one, SerialExecutor())
    execute(toy_stage(tmp_path / "b"), other, executor)
    assert one.array(ARRAY)[:].tobytes() == other.array(ARRAY)[:].tobytes()


def test_work_is_shared_by_workers(two_workers, executor, tmp_path):
    two_workers.wait_for_workers(2)
    done = execute(toy_stage(tmp_path, faults=dict.fromkeys(range(6), "slow")), new_store(tmp_path), executor)
    assert len({timing.worker for timing in done.timings}) == 2


def test_a_killed_worker_costs_its_unit_only(executor, tmp_path):
    store = new_store(tmp_path)
    execute(toy_stage(tmp_path, faults={2: "kill once"}), store, executor, retries=0)
    assert calls(tmp_path)[2] == 2
    assert np.array_equal(store.array(ARRAY)[:], squares())
    assert marks.done(store, "toy").all()


def test_a_given_client_stays_open(two_workers):
    DaskExecutor(UserClient(two_workers)).close()
    assert two_workers.status == "running"


def test_no_scheduler_is_one_line(unused_port):
    address = f"tcp://127.0.0.1:{unused_port}"
    with pytest.raises(ExecutionError, match=f"no Dask scheduler answers at {address} within 0.5 s") as caught:
        JoinedScheduler(address, timeout=0.5)
    assert "\n" not in str(caught.value)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]  # nobody listens there, and nobody else can


def test_a_unit_that_kills_its_worker_is_named_and_the_others_finish(two_workers, executor, tmp_path, monkeypatch):
    monkeypatch.setattr(two_workers.cluster.scheduler, "allowed_failures", 0)
    store = new_store(tmp_path)
    stage = toy_stage(tmp_path, faults={1: "kill"}, advice="choose a smaller slab")
    with pytest.raises(
        ExecutionError, match=r"the worker that ran unit 1 was killed in each of 1 attempts.*choose a smaller slab"
    ):
        execute(stage, store, executor)
    assert marks.done(store, "toy").tolist() == [True, False, True, True, True, True]
    for part in (slice(0, 4), slice(8, None)):
        assert np.array_equal(store.array(ARRAY)[part], squares()[part])


def test_units_in_flight_are_bounded(executor, tmp_path, monkeypatch):
    flying, most = set(), 0
    submit = Link.submit

    def watched(self, units, *args):
        nonlocal most
        flying.update(pickle.loads(unit).name for unit in units)
        most = max(most, len(flying))
        return submit(self, units, *args)

    monkeypatch.setattr(Link, "submit", watched)

    stage, store = toy_stage(tmp_path, 60), new_store(tmp_path, 60)
    marks.begin(store, "toy", fingerprint=stage.fingerprint, settings=stage.settings, count=60)
    executor.run(stage, Context(store.url), stage.units, lambda unit, outcome: flying.remove(unit.name))
    assert not flying
    assert 2 <= most <= 2 * UNITS_PER_SLOT
    assert marks.done(store, "toy").all()


def test_results_do_not_pile_up_on_workers(two_workers, executor, tmp_path):
    execute(toy_stage(tmp_path), new_store(tmp_path), executor)
    deadline = time.monotonic() + 120
    while two_workers.cluster.scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not two_workers.cluster.scheduler.tasks


@pytest.mark.parametrize(
    ("status", "error", "kept"),
    [("error", TimeoutError(), True), ("finished", TimeoutError(), False), ("finished", ValueError(), True)],
)
def test_a_units_own_timeout_is_its_failure_and_that_of_its_result_is_not(status, error, kept):
    class OneFuture:
        """Of a unit that has ended, or whose result does not come."""

        def __init__(self):
            self.status = status

        def result(self, timeout):
            raise error

    def fetch(*args, **kwargs):
        raise error if isinstance(error, ValueError) or status == "error" else OSError()

    future = OneFuture()
    client = types.SimpleNamespace(gather=None, sync=fetch)
    assert landed_outcomes(client, [future]) == ({future: error} if kept else {})


@pytest.mark.parametrize("somebody_listens", [False, True])
def test_one_connection_serves_one_executor_after_the_other(two_workers, tmp_path, somebody_listens):
    heard = []
    before = heard.append if somebody_listens else None
    with connect(two_workers.scheduler.address, security=two_workers.security) as client:
        if before:
            client.subscribe_topic("all", before)
        for name in "abc":
            (tmp_path / name).mkdir()
            with DaskExecutor(UserClient(client), "cpu") as executor:
                execute(toy_stage(tmp_path / name), new_store(tmp_path / name), executor)
                assert executor.link.news()._theirs == before  # and none of those that have ended
    assert bool(heard) == somebody_listens


def test_what_shows_the_demand_for_a_worker_is_not_left_with_it():
    """What a worker holds keeps it from being given back; nor is it for the garbage collector to end that."""
    from distributed import Client, LocalCluster

    gc.disable()
    try:
        with (
            LocalCluster(
                n_workers=0, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster) as client,
            DaskExecutor(UserClient(client), "cpu") as executor,
        ):
            threading.Timer(2.5, cluster.scale, [1]).start()
            assert executor.units_per_worker == 1
            deadline = time.monotonic() + 120
            while cluster.scheduler.tasks and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not cluster.scheduler.tasks
    finally:
        gc.enable()


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (6, UNITS_PER_GPU)])
def test_a_gpu_worker_runs_as_many_model_units_as_it_has_threads(tmp_path, monkeypatch, threads, expected):
    from distributed import Client, LocalCluster

    at_once, most, guard = 0, 0, threading.Lock()
    together = threading.Event()

    def work(context, settings, unit):
        nonlocal at_once, most
        assert context.device == "cuda"
        with guard:
            at_once += 1
            most = max(most, at_once)
            if at_once == expected:
                together.set()
        together.wait(300)
        time.sleep(0.05)  # one more would be seen
        with guard:
            at_once -= 1

    module = types.ModuleType("model_of_a_test")
    module.work = work
    work.__module__, work.__qualname__ = module.__name__, "work"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(dask_executor, "device_here", device_of_a_test)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            resources={"GPU": 1},
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
        DaskExecutor(UserClient(client), "cuda") as executor,
    ):
        stage = dataclasses.replace(toy_stage(tmp_path, 12, uses_model=True), work=work)
        done = execute(stage, new_store(tmp_path, 12), executor)
    assert len(done.results) == 12
    assert most == expected


def device_of_a_test(requested, uses_torch):
    return requested


def test_model_units_run_anywhere_if_no_worker_declares_a_gpu(executor, tmp_path):
    done = execute(toy_stage(tmp_path, uses_model=True), new_store(tmp_path), executor)
    assert len(done.results) == 6


def test_no_gpu_on_the_workers_is_an_error(two_workers, tmp_path):
    executor = DaskExecutor(UserClient(two_workers), "cuda", uses_torch=False)
    with pytest.raises(DeviceError, match=r"^worker tls://.*: device cuda"):
        execute(toy_stage(tmp_path, uses_model=True), new_store(tmp_path), executor)
    assert calls(tmp_path) == [0] * 6


def test_auto_takes_what_the_workers_have(two_workers):
    assert DaskExecutor(UserClient(two_workers), "auto", uses_torch=False).device == "cpu"


def test_work_that_workers_do_not_have_is_explained(executor, tmp_path):
    module = types.ModuleType("only_here")
    exec("def work(context, settings, unit): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        stage = dataclasses.replace(toy_stage(tmp_path), work=module.work)
        with pytest.raises(ExecutionError, match=r"can't load what the units need .*only_here.*install the same"):
            execute(stage, new_store(tmp_path), executor)
    finally:
        del sys.modules["only_here"]


def test_a_store_that_workers_cannot_see_is_explained(executor, tmp_path):
    new_store(tmp_path)
    stage = toy_stage(tmp_path)
    outcomes = []
    elsewhere = Context(str(tmp_path / "elsewhere.zarr"))
    executor.run(stage, elsewhere, stage.units[:1], lambda unit, outcome: outcomes.append(outcome))
    assert isinstance(outcomes[0].error, StoreError)
    assert "can't open the store" in str(outcomes[0].error)
    assert calls(tmp_path) == [0] * 6


def test_a_lost_scheduler_is_one_line(tmp_path):
    owner = local_client(1)
    closed = threading.Event()

    def lose():
        while not sum(calls(tmp_path, 100)):
            time.sleep(0.05)
        close_local(owner)
        closed.set()

    address = owner.scheduler.address
    with DaskExecutor(JoinedScheduler(address, security=owner.security, timeout=60, reconnect=0.5), "cpu") as executor:
        stage = toy_stage(tmp_path, 100, faults=dict.fromkeys(range(100), "slow"))
        threading.Thread(target=lose).start()
        with pytest.raises(ExecutionError, match=r"^the connection to the scheduler .* was lost") as caught:
            execute(stage, new_store(tmp_path, 100), executor)
    assert "\n" not in str(caught.value)
    assert closed.wait(300)


def test_a_closed_executor_says_so(two_workers):
    executor = DaskExecutor(UserClient(two_workers), "cpu")
    executor.close()
    executor.close()
    with pytest.raises(ExecutionError, match="closed"):
        executor.describe()
