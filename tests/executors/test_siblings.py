"""Executors on the same workers, each for a run in a thread of its own."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_stage import ARRAY, new_store, squares, toy_stage

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors import DaskExecutor, JoinedScheduler, UserClient, base, execute
from cryosam_dask.executors.local import LocalWorkers


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RETRY_PAUSE", 0.01)


@pytest.fixture
def executor(two_workers: Any) -> DaskExecutor:
    return DaskExecutor(UserClient(two_workers), "cpu")


def go(executor: DaskExecutor, folder: Path, units: int = 6, faults: dict[int, str] | None = None, **of: Any) -> Any:
    """Run a toy stage on a sibling, and read what it wrote; `observer` is told of its units' ends."""
    folder.mkdir()
    observer = of.pop("observer", None)
    with executor.sibling(**of) as sibling:
        store = new_store(folder, units)
        execute(toy_stage(folder, units, faults=faults), store, sibling, observer=observer)
    return store.array(ARRAY)[:]


def test_siblings_work_at_once_and_leave_the_cluster_open(
    two_workers: Any, executor: DaskExecutor, tmp_path: Path
) -> None:
    clients = len(two_workers.cluster.scheduler.clients)
    together = threading.Barrier(3)  # which each passes with its last unit, once the others have come to theirs

    def observer() -> Any:
        outcomes = itertools.count(1)
        return lambda _: next(outcomes) == 6 and together.wait(60)

    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(go, executor, tmp_path / str(i), observer=observer()) for i in range(3)]
        for run in runs:
            assert np.array_equal(run.result(), squares())
    assert two_workers.status == "running"
    assert len(two_workers.cluster.scheduler.clients) <= clients


def test_units_carry_the_priority_of_their_run(
    executor: DaskExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    sent: list[int] = []
    map_ = Client.map

    def watched(self: Client, *args: Any, **options: Any) -> Any:
        sent.append(options["priority"])
        return map_(self, *args, **options)

    monkeypatch.setattr(Client, "map", watched)
    for priority in (0, -5):
        go(executor, tmp_path / str(priority), 1, priority=priority)
    assert sent == [0, -5]


def test_a_run_that_is_stopped_ends_as_by_ctrl_c(executor: DaskExecutor, tmp_path: Path) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(go, executor, tmp_path / "a", 60, dict.fromkeys(range(60), "slow"), stop=stop)
        time.sleep(1.0)
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            run.result(timeout=10)
    assert not executor.link.sharing._flying
    assert np.array_equal(go(executor, tmp_path / "b"), squares())


def test_a_unit_that_kills_workers_fails_its_own_run_only(
    two_workers: Any, executor: DaskExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_workers.cluster.scheduler, "allowed_failures", 0)
    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(go, executor, tmp_path / "bad", faults={1: "kill"})
        good = threads.submit(go, executor, tmp_path / "good", 8, dict.fromkeys(range(8), "slow"))
        assert np.array_equal(good.result(), squares(8))
        with pytest.raises(ExecutionError, match="the worker that ran unit 1 was killed"):
            bad.result()


def test_a_scheduler_at_an_address_is_joined_again(two_workers: Any, tmp_path: Path) -> None:
    security = two_workers.security
    with DaskExecutor(JoinedScheduler(two_workers.scheduler.address, security=security), "cpu") as executor:
        with executor.sibling() as sibling:
            assert isinstance(sibling.cluster, JoinedScheduler)
            assert sibling.client is not executor.client
            assert sibling.slots == executor.slots
        assert executor.client.status == "running"


def test_workers_of_this_machine_are_started_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever notices first that workers are lost starts them, and the others find them there."""
    cluster, started = LocalWorkers(2), []
    lost = ["a", "b"]
    monkeypatch.setattr(LocalWorkers, "connect", lambda self: None)
    monkeypatch.setattr("cryosam_dask.executors.local.given_up", lambda client: list(lost))

    def start(client: Any, names: list[str]) -> None:
        started.append(list(names))
        time.sleep(0.05)
        lost.clear()

    monkeypatch.setattr("cryosam_dask.executors.local.start_again", start)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(cluster.tend, [0] * 4))
    assert started == [["a", "b"]]
    assert sorted(answers) == [False, False, False, True]
