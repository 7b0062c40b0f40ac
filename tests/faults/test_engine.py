"""Workers that die, fail and hang in the middle of whole runs; the results are those of an undisturbed run."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injection import Fault, Spec, command
from toy_stage import ARRAY, new_store, squares, toy_stage
from whole_run import ARGUMENTS, STAGES, differences, unmarked, whole_run

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors import DaskExecutor, SerialExecutor, UserClient, base, execute, local
from cryosam_dask.executors.base import Failure, Timing
from cryosam_dask.executors.local import close_local, local_client
from cryosam_dask.executors.watch import Flown
from cryosam_dask.store import marks
from cryosam_dask.store.run_store import RunStore

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s"}


Hurry = Callable[..., None]


def has_fired(spec: Spec, one: Flown) -> bool:
    """Whether a fault has happened in this very run of a unit."""
    return any(f.unit == one.unit.name and one.process.endswith(f":{f.pid}") for f in spec.fired())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RETRY_PAUSE", 0.01)


def test_each_stage_loses_a_worker(nannied: Any, ball_tomogram: Path, undisturbed: Path, tmp_path: Path) -> None:
    moments: Any = ("before", "data", "mark")
    spec = Spec.new(tmp_path / "faults", *(Fault(stage, when=moments[i % 3]) for i, stage in enumerate(STAGES)))
    with spec.on_workers(nannied), DaskExecutor(UserClient(nannied), "cpu") as executor:
        whole_run(ball_tomogram, tmp_path / "run.zarr", executor)
    killed = spec.fired()
    assert sorted(fired.fault for fired in killed) == list(range(len(STAGES)))
    assert len({fired.pid for fired in killed}) == len(STAGES)  # each a process of its own
    assert differences(tmp_path / "run.zarr", undisturbed) == []
    assert unmarked(tmp_path / "run.zarr") == {}


def test_a_unit_of_each_stage_fails_once(ball_tomogram: Path, undisturbed: Path, tmp_path: Path) -> None:
    moments: Any = ("before", "data")
    faults = (Fault(stage, when=moments[i % 2], do="raise") for i, stage in enumerate(STAGES))
    with Spec.new(tmp_path / "faults", *faults).here() as spec:
        driver = whole_run(ball_tomogram, tmp_path / "run.zarr", SerialExecutor())
    assert sorted(fired.fault for fired in spec.fired()) == list(range(len(STAGES)))
    again = {timing.unit for timings in driver.timings.values() for timing in timings if timing.attempt == 2}
    assert again >= {fired.unit for fired in spec.fired()}
    assert differences(tmp_path / "run.zarr", undisturbed) == []


def test_a_unit_that_always_fails_is_named_and_mending_it_is_enough(
    ball_tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    spec = Spec.new(tmp_path / "faults", Fault("features", at=2, do="raise", times=None))
    arguments = ("run", ball_tomogram, *ARGUMENTS, "--out", out, "--workers", 2)
    broken = subprocess.run(command(spec, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert broken.returncode == 1, broken.stderr
    assert spec.fired(), broken.stderr
    (unit,) = {fired.unit for fired in spec.fired()}
    assert "Traceback" not in broken.stderr
    last = " ".join(broken.stderr.split())
    assert re.search(
        rf"features: 1 of \d+ units failed on .* \({unit}\), the first with RuntimeError: an injected", last
    )
    assert unmarked(out) == {"features": 1}
    assert len(spec.fired()) == base.RETRIES + 1

    mended = Spec.new(tmp_path / "none")
    done = subprocess.run(command(mended, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [run.unit for run in mended.runs("features")] == [unit]
    assert mended.runs("ingest") == []
    assert differences(out, undisturbed) == []


def test_failures_are_told_as_they_happen(nannied: Any, tmp_path: Path) -> None:
    store, events = new_store(tmp_path, 12), []
    spec = Spec.new(
        tmp_path / "faults",
        Fault("toy", at=2, heard=True),
        Fault("toy", at=5, do="raise", times=2),
        Fault("toy", at=8, when="mark", heard=True),
    )
    with spec.on_workers(nannied), DaskExecutor(UserClient(nannied), "cpu") as executor:
        done = execute(toy_stage(tmp_path, 12), store, executor, observer=events.append)
    assert np.array_equal(store.array(ARRAY)[:], squares(12))
    victims = {fault: spec.fired(fault)[0].unit for fault in range(3)}
    assert [event for event in events if isinstance(event, Failure)] == list(done.failures)
    assert [event for event in events if isinstance(event, Timing)] == list(done.timings)
    assert {timing.unit: timing.attempt for timing in done.timings} == {
        f"unit {i}": 1 + Counter(failure.unit for failure in done.failures)[f"unit {i}"] for i in range(12)
    }
    of = {unit: [failure for failure in done.failures if failure.unit == unit] for unit in victims.values()}
    lost = {"ConnectionError: its worker was lost"}  # a unit that is through may be lost, too, with its result
    assert {failure.error for failure in of[victims[0]]} == lost
    assert [failure.attempt for failure in of[victims[1]]] == [1, 2]
    assert {failure.error for failure in of[victims[1]]} == {"RuntimeError: an injected fault"}
    assert {failure.error for failure in of[victims[2]]} == lost
    assert not any(failure.given_up for failure in done.failures)
    for fired in spec.fired():
        assert fired.pid in {int(failure.worker.rpartition(":")[2]) for failure in of[fired.unit]}


def test_failures_are_told_when_the_stage_fails(tmp_path: Path) -> None:
    events: list[Timing | Failure] = []
    stage = toy_stage(tmp_path, faults={1: "always", 2: "once"})
    with pytest.raises(ExecutionError):
        execute(stage, new_store(tmp_path), SerialExecutor(), retries=1, observer=events.append)
    failures = [(e.unit, e.attempt, e.given_up) for e in events if isinstance(e, Failure)]
    assert failures == [("unit 1", 1, False), ("unit 2", 1, False), ("unit 1", 2, True)]
    assert {e.worker for e in events} == {base.process_name()}
    assert Counter(isinstance(e, Timing) for e in events)[True] == 5


def test_the_log_names_stage_unit_worker_and_attempt(
    nannied: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        DaskExecutor(UserClient(nannied), "cpu") as executor,
        caplog.at_level(logging.DEBUG, logger="cryosam_dask.executors"),
    ):
        execute(toy_stage(tmp_path, faults={3: "once"}), new_store(tmp_path), executor)
    where = r"on [^ ]+:\d+"
    for pattern in (
        rf"toy: unit 0 begins {where}",
        rf"toy: unit 0 done in \d+\.\d\d s {where}",
        rf"toy: unit 3 failed {where} at attempt 1, to be tried again: RuntimeError: a passing trouble",
        rf"toy: unit 3 done in \d+\.\d\d s {where} at attempt 2",
    ):
        assert [message for message in caplog.messages if re.fullmatch(pattern, message)], pattern


def test_memory_that_runs_out_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_memory", lambda: 800 << 20)
    client = local_client(1)
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 1)
    store = new_store(tmp_path)
    spec = Spec.new(tmp_path / "faults", Fault("toy", at=2, do="allocate", times=None))
    events: list[Timing | Failure] = []
    try:
        with spec.on_workers(client), DaskExecutor(UserClient(client), "cpu", uses_torch=False) as executor:
            stage = toy_stage(tmp_path, advice="choose a smaller slab")
            with pytest.raises(ExecutionError) as caught:
                execute(stage, store, executor, observer=events.append)
    finally:
        close_local(client)
    (unit,) = {fired.unit for fired in spec.fired()}
    for part in (f"toy: the worker that ran {unit} was killed", "ran out of memory", "choose a smaller slab"):
        assert part in str(caught.value)
    assert len(spec.fired()) == 4  # twice among others, twice alone
    assert marks.done(store, "toy").sum() == 5
    own = [event.given_up for event in events if isinstance(event, Failure) and event.unit == unit]
    assert own == [False, False, False, True]


@pytest.mark.parametrize("do", ["hang", "stop"])
def test_a_worker_that_hangs_is_restarted(
    nannied: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, do: Any, hurry: Hurry
) -> None:
    store = new_store(tmp_path)
    spec = Spec.new(tmp_path / "faults", Fault("toy", at=2, when="data", do=do, heard=True))
    hurry(lambda one: has_fired(spec, one))
    with spec.on_workers(nannied), DaskExecutor(UserClient(nannied), "cpu", unit_timeout=1800) as executor:
        done = execute(toy_stage(tmp_path), store, executor)
    (fired,) = spec.fired()
    (line,) = [message for message in caplog.messages if "is taken to hang" in message]
    assert line.startswith(f"toy: {fired.unit} did not end within 1800 s on ")
    assert f":{fired.pid};" in line
    (failure,) = [failure for failure in done.failures if failure.unit == fired.unit]
    assert failure.error == "ConnectionError: it did not end within 1800 s, so its worker was restarted"
    assert np.array_equal(store.array(ARRAY)[:], squares())
    assert not Path(f"/proc/{fired.pid}").exists()


def test_a_worker_that_stops_before_it_can_say_anything(
    nannied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry: Hurry
) -> None:
    store = new_store(tmp_path)
    nannied.wait_for_workers(2)
    address, pid = next(iter(nannied.run(os.getpid).items()))
    os.kill(pid, signal.SIGSTOP)
    hurry(silent=[address])
    with DaskExecutor(UserClient(nannied), "cpu", unit_timeout=1800) as executor:
        monkeypatch.setattr(executor, "_check_work", lambda stage: None)  # it would wait for the answer
        execute(toy_stage(tmp_path), store, executor)
    assert np.array_equal(store.array(ARRAY)[:], squares())


def test_a_unit_that_always_hangs_is_given_up(
    nannied: Any, tmp_path: Path, hurry: Hurry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never runs again, though the scheduler learns late that it is given up: it would hold its worker for ever."""
    at_once = nannied._send_to_scheduler

    def late(message: dict[str, Any]) -> None:
        if message["op"] == "cancel-keys":
            threading.Timer(1.0, at_once, [message]).start()
        else:
            at_once(message)

    monkeypatch.setattr(nannied, "_send_to_scheduler", late)
    store = new_store(tmp_path)
    spec = Spec.new(tmp_path / "faults", Fault("toy", at=2, do="hang", times=None, heard=True))
    hurry(lambda one: has_fired(spec, one))
    events: list[Timing | Failure] = []
    with (
        spec.on_workers(nannied),
        DaskExecutor(UserClient(nannied), "cpu", unit_timeout=1800) as executor,
        pytest.raises(ExecutionError) as caught,
    ):
        execute(toy_stage(tmp_path), store, executor, observer=events.append)
    (unit,) = {fired.unit for fired in spec.fired()}
    assert len(spec.fired()) == 2
    assert str(caught.value).startswith(f"toy: {unit} did not end within 1800 s on 2 workers, the last of them ")
    assert "\n" not in str(caught.value)
    assert marks.done(store, "toy").sum() == 5
    own = [(event.attempt, event.given_up) for event in events if isinstance(event, Failure) and event.unit == unit]
    assert own == [(1, False), (2, True)]


def test_nothing_of_a_fault_stays_behind(nannied: Any, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with DaskExecutor(UserClient(nannied), "cpu") as executor:
        done = execute(toy_stage(tmp_path), store, executor)
    assert done.failures == ()
    assert RunStore.open(store.url).array(ARRAY)[:].tobytes() == squares().tobytes()


def test_workers_that_are_lost_again_and_again_come_back(tmp_path: Path) -> None:
    """A cluster that gives up a worker's nanny, because the worker is away for longer than it likes, has none left."""
    import dask

    client = local_client(1)
    try:
        with (
            dask.config.set({"distributed.deploy.lost-worker-timeout": "50ms"}),
            Spec.new(tmp_path / "faults", Fault("toy", at=2), Fault("toy", at=4)).on_workers(client) as spec,
            DaskExecutor(UserClient(client), "cpu") as executor,
        ):
            execute(toy_stage(tmp_path), new_store(tmp_path), executor)
            assert len(spec.fired()) == 2
            assert len(executor.workers()) == 1
    finally:
        close_local(client)
