"""The scheduler goes away and comes back, workers leave and come, and connections that are refused."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Cluster, cluster, free_port
from toy_stage import ARRAY, calls, new_store, squares, toy_stage
from whole_run import differences, unmarked, whole_run

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors import DaskExecutor, JoinedScheduler, UserClient, connection, execute
from cryosam_dask.executors import dask as dask_executor
from cryosam_dask.executors.watch import Flown


def unlucky(executor: DaskExecutor, stage: str, at: int, event: Any) -> DaskExecutor:
    """Have something done when units of a stage are sent for the nth time."""
    submit, left = executor.link.submit, at

    def submit_or_worse(units: Any, keys: Any, *args: Any) -> Any:
        nonlocal left
        futures = submit(units, keys, *args)
        if keys[0].startswith(f"{stage}-"):
            left -= 1
            if left == 0:
                event()
        return futures

    executor.link.submit = submit_or_worse  # type: ignore[method-assign]
    return executor


def restarted(machines: Cluster, scheduler: Any) -> Any:
    """The scheduler is killed with all that it knew, and started again at the same port, with new workers."""
    machines.kill(scheduler)
    again = machines.start_scheduler()
    for _ in range(2):
        machines.start_worker()
    return again


def test_a_scheduler_that_is_restarted_costs_nothing(
    ball_tomogram: Path, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster(tmp_path / "machines") as machines:
        scheduler = machines.start_scheduler()
        for _ in range(2):
            machines.start_worker()
        with unlucky(
            DaskExecutor(JoinedScheduler(machines.address, timeout=60), "cpu"),
            stage="features",
            at=2,
            event=lambda: restarted(machines, scheduler),
        ) as executor:
            whole_run(ball_tomogram, tmp_path / "run.zarr", executor)
            assert executor.slots >= 2
    said = [message for message in caplog.messages if machines.address in message]
    assert [message for message in said if "was lost" in message and "looking for it for 120 s" in message]
    assert [message for message in said if message.startswith("connected to the scheduler")]
    assert differences(tmp_path / "run.zarr", undisturbed) == []
    assert unmarked(tmp_path / "run.zarr") == {}


def test_between_stages_and_for_good(tmp_path: Path) -> None:
    with cluster(tmp_path / "machines") as machines:
        scheduler = machines.start_scheduler()
        machines.start_worker()
        with DaskExecutor(JoinedScheduler(machines.address, timeout=15, reconnect=300), "cpu") as executor:
            assert executor.slots == 1
            machines.kill(scheduler)
            threading.Timer(1.0, machines.start_scheduler).start()
            threading.Timer(1.0, machines.start_worker).start()
            assert executor.slots >= 1
            assert executor.device == "cpu"
            assert executor.worker_memory
            store = new_store(tmp_path)
            execute(toy_stage(tmp_path), store, executor)
            assert np.array_equal(store.array(ARRAY)[:], squares())
            assert calls(tmp_path) == [1] * 6
            machines.close()
            executor.cluster.reconnect = 1.0  # type: ignore[attr-defined]
            for _ in range(2):
                with pytest.raises(ExecutionError, match=r"^the connection to the scheduler at .* was lost; .*$"):
                    execute(toy_stage(tmp_path, name="other"), store, executor)


def test_when_all_workers_leave_units_wait_for_new_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cluster(tmp_path / "machines") as machines:
        machines.start_scheduler()
        worker = machines.start_worker()
        store = new_store(tmp_path, 12)

        def leave() -> None:
            machines.kill(worker)
            threading.Thread(target=come_back, daemon=True).start()

        def come_back() -> None:
            while not waits():  # as the executor ends in the end, so does this
                time.sleep(0.05)
            machines.start_worker()

        def waits() -> list[str]:
            return [text for text in caplog.messages if text.startswith("toy: ") and "waiting for new" in text]

        joined = DaskExecutor(JoinedScheduler(machines.address, timeout=60), "cpu")
        with unlucky(joined, stage="toy", at=2, event=leave) as executor:
            done = execute(toy_stage(tmp_path, 12), store, executor)
    assert np.array_equal(store.array(ARRAY)[:], squares(12))
    assert all(failure.error == "ConnectionError: its worker was lost" for failure in done.failures)
    assert len(waits()) == 1, caplog.messages


def test_a_hanging_worker_without_a_nanny_is_done_without(tmp_path: Path, hurry: Callable[..., None]) -> None:
    first: list[str] = []

    def hangs(one: Flown) -> bool:
        if one.unit.name != "unit 1" or not calls(tmp_path)[1]:
            return False
        first[:] = first or [one.process]
        return first == [one.process]

    hurry(hangs)
    with cluster(tmp_path / "machines") as machines:
        machines.start_scheduler()
        for _ in range(2):
            machines.start_worker("--no-nanny")
        with DaskExecutor(JoinedScheduler(machines.address, timeout=60), "cpu", unit_timeout=1800) as executor:
            executor.client.wait_for_workers(2)
            store = new_store(tmp_path)
            stage = toy_stage(tmp_path, faults={1: "hang once"})
            done = execute(stage, store, executor)
            assert len(executor.workers()) == 1
    assert np.array_equal(store.array(ARRAY)[:], squares())
    assert calls(tmp_path)[1] == 2
    assert [failure.unit for failure in done.failures if "did not end" in failure.error] == ["unit 1"]


def device_of_a_test(requested: str, uses_torch: bool, dask_worker: Any = None) -> str:
    return "cuda" if dask_worker.state.total_resources.get("GPU") else "cpu"


def test_models_wait_for_the_gpu_that_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster, Worker

    monkeypatch.setattr(dask_executor, "device_here", device_of_a_test)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "memory_limit": 0}
    with (
        LocalCluster(**options, dashboard_address="127.0.0.1:0") as workers,
        Client(workers) as client,
    ):
        assert DaskExecutor(UserClient(client), "auto").device == "cpu"
        with pytest.raises(ExecutionError, match=r"^no worker with a GPU joined .* in 0.2 s; .* --resources GPU=1`$"):
            _ = DaskExecutor(UserClient(client, expects_gpu=True, worker_timeout=0.2), "auto").device
        executor = DaskExecutor(UserClient(client, expects_gpu=True), "auto")
        assert executor.worker_memory is None  # which needs no GPU
        store = new_store(tmp_path)
        execute(toy_stage(tmp_path), store, executor)  # neither does a stage without a model
        late: list[Any] = []

        def join() -> None:
            async def start() -> None:
                late.append(await Worker(workers.scheduler_address, nthreads=2, resources={"GPU": 1}, dashboard=False))

            client.sync(start)

        threading.Timer(1.0, join).start()
        began = time.monotonic()
        assert executor.device == "cuda"
        assert time.monotonic() - began > 0.9
        assert executor.slots == 2
        done = execute(toy_stage(tmp_path, name="model", uses_model=True), new_models(tmp_path), executor)
        assert {result.value["device"] for result in done.results.values()} == {"cuda"}
        client.sync(late[0].close)
        assert executor.link.slots_of(executor.workers(), True) == (
            0,
            {"GPU": 0.25},
        )  # they wait; they don't go elsewhere
        executor.close()


def new_models(folder: Path) -> Any:
    (folder / "models").mkdir()
    return new_store(folder / "models")


def test_nobody_there_is_one_line() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ExecutionError, match=f"^no Dask scheduler answers at {address} within 0.5 s .*$"):
        JoinedScheduler(address, timeout=0.5)


def test_a_machine_that_stands_still_as_a_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask gives its thread ten seconds to start, and then has no words for it."""
    import distributed

    tries: list[str] = []

    class Second:
        def __init__(self, address: str, **options: Any) -> None:
            tries.append(address)
            assert len(tries) == 2

    monkeypatch.setattr(distributed, "Client", Second)
    assert isinstance(connection.connect("tcp://127.0.0.1:1"), Second)
    monkeypatch.setattr(connection, "_listener", lambda address: "nobody")
    with pytest.raises(ExecutionError, match=r"^no Dask scheduler answers .*AssertionError"):
        connection.connect("tcp://127.0.0.1:1")


def test_nothing_is_said_of_who_listens_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that is stopped, or something else: not one that does not encrypt."""
    monkeypatch.setattr(connection, "_INTRODUCTION", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert connection._listener(f"tls://127.0.0.1:{silent.getsockname()[1]}") == "nobody"


def test_connections_that_are_refused_are_one_line() -> None:
    from distributed import Client, LocalCluster
    from distributed.security import Security

    ours, theirs = Security.temporary(), Security.temporary()
    common: dict[str, Any] = {"n_workers": 0, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with (
        LocalCluster(**common, security=theirs, protocol="tls://") as secret,
        LocalCluster(**common, protocol="tcp://") as plain,
    ):
        tls, tcp = secret.scheduler_address, plain.scheduler_address
        threads = {thread for thread in threading.enumerate() if thread.name == "IO loop"}
        for address, security, expected in (
            (tls.replace("tls", "tcp"), None, "wants an encrypted connection and a certificate"),
            (tls, None, "wants an encrypted connection and a certificate"),
            (tls, ours, "don't accept each other's certificates"),
            (tcp.replace("tcp", "tls"), ours, "does not encrypt its connections"),
        ):
            with pytest.raises(ExecutionError) as caught:
                JoinedScheduler(address, timeout=2, security=security)
            message = str(caught.value)
            assert message.startswith(f"the scheduler at {address} ")
            assert expected in message
            assert "\n" not in message
            for option in ("--tls-ca", "--tls-cert", "--tls-key"):
                assert option in message
        # nothing of a client that failed is left to be closed by the garbage collector
        assert {thread for thread in threading.enumerate() if thread.name == "IO loop"} <= threads
        left = [one for one in gc.get_objects() if type(one) is Client and one.status != "closed"]
        assert not {one._start_arg for one in left} & {tls, tcp, tls.replace("tls", "tcp"), tcp.replace("tcp", "tls")}
        with DaskExecutor(JoinedScheduler(tls, security=theirs, timeout=60)) as executor:
            assert executor.workers() == {}
