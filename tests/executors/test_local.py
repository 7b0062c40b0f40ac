from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from toy_stage import calls, new_store, toy_stage

from cryosam_dask.errors import ExecutionError, SettingsError
from cryosam_dask.executors import (
    DaskExecutor,
    LocalWorkers,
    SerialExecutor,
    execute,
    local,
    local_client,
    machine,
    make_executor,
)
from cryosam_dask.executors.memory import process_memory


def test_one_worker_is_this_process():
    for workers in (0, 1):
        assert isinstance(make_executor(workers, device="cpu"), SerialExecutor)


def test_several_workers_start_only_when_needed():
    executor = make_executor(3, device="cpu")
    assert isinstance(executor.cluster, LocalWorkers)
    assert executor.describe() == "3 local workers, CPU"
    assert executor.device == "cpu"
    assert executor.link._client is None
    executor.close()


def test_what_is_done_starts_no_workers(tmp_path):
    stage, store = toy_stage(tmp_path), new_store(tmp_path)
    execute(stage, store, SerialExecutor())
    with DaskExecutor(LocalWorkers(2)) as executor:
        assert execute(stage, store, executor).skipped == 6
        assert executor.link._client is None


def test_a_client_is_used_as_it_is(two_workers):
    executor = make_executor(client=two_workers, device="cpu")
    assert isinstance(executor, DaskExecutor)
    assert executor.client is two_workers


@pytest.mark.parametrize(("workers", "scheduler"), [(-1, None), (2, "tcp://127.0.0.1:1")])
def test_contradictions_are_refused(workers, scheduler):
    with pytest.raises(SettingsError):
        make_executor(workers, scheduler, "cpu")


def test_default_is_a_worker_per_core_or_gpu(monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 5)
    assert machine.default_workers("cpu") == 5
    monkeypatch.setattr(machine, "visible_gpus", lambda device: ["0", "1"])
    assert machine.default_workers("cuda") == 2


@pytest.mark.parametrize(
    ("variable", "device", "found"),
    [
        (None, "cuda", ["0", "1"]),
        ("5,GPU-aa", "cuda", ["5", "GPU-aa"]),
        ("5,GPU-aa", "cuda:1", ["GPU-aa"]),
        ("5", "cpu", []),
    ],
)
def test_gpus_are_called_as_their_variable_calls_them(monkeypatch, variable, device, found):
    cuda = types.SimpleNamespace(device_count=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert machine.visible_gpus(device) == found


def test_workers_of_a_machine_with_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "visible_gpus", lambda device: ["7"])
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    monkeypatch.setattr(local, "available_memory", lambda: 10 << 30)
    for name in machine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with DaskExecutor(LocalWorkers(2, "cuda")) as executor:
        assert executor.worker_memory == (int((4.5 * 0.9) * 2**30) - process_memory(True)) // 3
        assert [w["nthreads"] for w in executor.workers().values() if w["resources"].get("GPU")] == [3]
        assert executor.units_per_worker == 1  # of the other worker
        done = execute(toy_stage(tmp_path, uses_model=True), new_store(tmp_path), executor)
        assert {result.value["device"] for result in done.results.values()} == {"cuda"}
        assert len({timing.worker for timing in done.timings}) == 1  # the one that has the GPU
        for code, expected in {
            "os.environ['CUDA_VISIBLE_DEVICES']": {"7", ""},
            "os.environ['OMP_NUM_THREADS']": {"3"},
            "signal.getsignal(signal.SIGINT) == signal.SIG_IGN": {True},
        }.items():
            found = executor.client.run(eval, code, {"os": os, "signal": signal})
            assert set(found.values()) == expected
        paused_at = executor.client.run(lambda dask_worker: dask_worker.memory_manager.memory_pause_fraction)
        assert set(paused_at.values()) == {False}
        assert all(w["host"] == "127.0.0.1" for w in executor.workers().values())
    assert dict(os.environ) == before


def end_for_good(executor, count=2):
    """End workers with their nannies, as when those can't start them again."""
    cluster = executor.client.cluster
    for nanny in list(cluster.workers.values())[:count]:
        cluster.sync(nanny.close)


def test_workers_that_are_lost_for_good_are_replaced(tmp_path, caplog):
    before = dict(os.environ)
    with DaskExecutor(LocalWorkers(2)) as executor:
        for name, ended in (("a", 0), ("b", 1), ("c", 2)):
            (tmp_path / name).mkdir()
            end_for_good(executor, ended)
            caplog.clear()
            done = execute(toy_stage(tmp_path / name), new_store(tmp_path / name), executor)
            assert len(done.results) == 6
            said = [text for text in caplog.messages if "lost for good" in text]
            assert said == [f"{ended} of 2 local workers were lost for good; starting new ones"] * bool(ended)
            assert len(executor.workers()) == 2
        threads = executor.client.run(os.getenv, "OMP_NUM_THREADS")
        assert set(threads.values()) == {str(machine._cores(2))}
    assert dict(os.environ) == before


def test_workers_that_can_not_be_replaced(tmp_path, caplog, monkeypatch):
    def fail(client, names):
        raise ExecutionError("no room")

    monkeypatch.setattr(local, "start_again", fail)
    with DaskExecutor(LocalWorkers(2)) as executor:
        end_for_good(executor, 1)
        done = execute(toy_stage(tmp_path, 12), new_store(tmp_path, 12), executor)
        assert len(done.results) == 12
        while caplog.messages.count("no room") < 3:
            assert len(executor.workers()) == 1
        assert len(executor.workers()) == 1
        assert caplog.messages.count("no room") == 3
        end_for_good(executor)
        with pytest.raises(ExecutionError, match=r"^local workers were lost for good 4 times; .*--workers 0"):
            executor.workers()
        executor.cluster._starts = 0
        (tmp_path / "b").mkdir()
        with pytest.raises(ExecutionError, match=r"^no room$"):
            execute(toy_stage(tmp_path / "b"), new_store(tmp_path / "b"), executor)


def test_workers_that_do_not_start_are_one_line(monkeypatch):
    import distributed

    def fail(*args, **kwargs):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "SpecCluster", fail)
    with pytest.raises(ExecutionError, match=r"^2 workers did not start .*Nanny failed.*--workers 0$"):
        local_client(2)


INTERRUPTED = """
import signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from toy_stage import new_store, toy_stage
from cryosam_dask.executors import DaskExecutor, LocalWorkers, execute

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
    folder = Path({folder!r})
    with DaskExecutor(LocalWorkers(2)) as executor:
        try:
            execute(toy_stage(folder, 50, faults=dict.fromkeys(range(50), "slow")), new_store(folder, 50), executor)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print("closed", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_an_interrupt_stops_workers_without_a_word(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not sum(calls(tmp_path, 50)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=300)
    assert (out, err, process.returncode) == ("interrupted\nclosed\n", "", 0)
    assert 0 < sum(calls(tmp_path, 50)) < 20
    deadline = time.monotonic() + 120
    while group_exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_exists(process.pid)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
