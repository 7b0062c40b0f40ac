from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_slurm
import numpy as np
import pytest
from toy_stage import calls, new_store, squares, toy_stage

import cryosam_dask as cs
from cryosam_dask.errors import DeviceError, ExecutionError, SettingsError
from cryosam_dask.executors import (
    SerialExecutor,
    cluster_file,
    clusters,
    cuda,
    execute,
    make_executor,
    one_gpu,
    slurm,
)
from cryosam_dask.executors.cluster_file import parse_walltime, read_cluster_file
from cryosam_dask.executors.sharing import UNITS_PER_SLOT
from cryosam_dask.pipeline import settings_for
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

EXAMPLE = Path(__file__).parents[2] / "deploy/slurm/cluster.yaml"

KIND = "{cores: 2, processes: 1, memory: 2GiB, walltime: 01:00:00, maximum: %d}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a cluster's file, with a scheduler on the loopback, and give its path."""

    def make(kinds: str) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(f"system: slurm\ninterface: lo\nshared_directory: {tmp_path / 'shared'}\n{kinds}\n")
        return path

    return make


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A queue whose jobs are processes; the folder where they are noted. None of them outlives the test."""
    monkeypatch.setenv("PATH", f"{fake_slurm.install(tmp_path / 'queue')}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # jobs import `toy_stage` from there
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm, "BALANCE_EVERY", 0.1)
    monkeypatch.setattr(slurm, "LOOK_AT_QUEUE_EVERY", 0.5)
    monkeypatch.setattr(slurm, "LONGEST_PAUSE", 0.5)
    jobs = tmp_path / "queue/jobs"
    yield jobs
    left = fake_slurm.running(jobs)
    for number in left:
        fake_slurm.end(jobs, number, signal.SIGKILL)
    assert left == []


def eventually(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def nap(number: int) -> int:
    time.sleep(0.3)
    return number


# the file


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("5:30", 330), ("04:00:00", 14400), ("12:00:00", 43200), ("2-0", 172800), ("1-12:30", 131400),
     ("1-00:00:01", 86401)],
)  # fmt: skip
def test_walltimes_are_read_as_slurm_reads_them(text, seconds):
    assert parse_walltime(text) == seconds


def test_the_example_says_what_it_means():
    file = read_cluster_file(EXAMPLE)
    assert (file.processes("gpu"), file.threads("gpu"), file.units("gpu")) == (1, 4, 4)
    assert (file.processes("cpu"), file.threads("cpu"), file.units("cpu")) == (16, 1, 16)
    assert file.kinds["gpu"].seconds == 8 * 3600
    assert file.idle == 300
    assert file.kind_of(True) == "gpu"
    assert file.kind_of(False) == "cpu"


def test_workers_leave_before_the_walltime_however_they_are_staggered():
    for walltime in ("1", "10", "1:00:00", "7-0"):
        kind = cluster_file.JobKind(cores=1, memory="1GiB", walltime=walltime)
        assert 0 < kind.margin <= 600
        assert kind.seconds - kind.margin + kind.margin / 2 < kind.seconds
        assert kind.seconds - 1.5 * kind.margin > 0.5 * kind.seconds


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("", "no workers; expected a section gpu:, cpu: or both"),
        ("cpu: {cores: 2, memory: 2GiB}", "cpu.walltime: missing"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: 1:00:00, maximun: 3}", "cpu.maximun: unknown key; expected one of "),
        ("cpu: {cores: 2, memory: 48, walltime: 1:00:00}", "48 is too little"),
        ("cpu: {cores: 2, memory: lots, walltime: 1:00:00}", "'lots' is no amount of memory"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: 1 day}", "'1 day' is no duration"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: '0:30'}", "under a minute"),
        ("cpu: {cores: 0, memory: 2GiB, walltime: '60'}", "cpu.cores: "),
        ("cpu: {cores: 2, processes: 3, memory: 2GiB, walltime: '60'}", "3 processes on 2 cores"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: '60', minimum: 2}", "minimum 2 is more than maximum 1"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: '60', directives: [--mem=3G]}", "by their own keys"),
        ("cpu: {cores: 2, memory: 2GiB, walltime: '60', queue: ''}", "expected one line of text"),
        (f"host: 127.0.0.1\ncpu: {KIND % 1}", "interface and host say the same thing"),
        (f"sytem: slurm\ncpu: {KIND % 1}", "sytem: unknown key"),
        (f"idle: soon\ncpu: {KIND % 1}", "idle: 'soon' is no duration"),
        ("cpu: [", "not YAML"),
        ("cpu: !!python/object/apply:os.system ['touch /tmp/never']", ""),
    ],
)
def test_a_file_that_is_not_right_is_one_line(write, kinds, said):
    path = write(kinds)
    with pytest.raises(SettingsError) as caught:
        read_cluster_file(path)
    message = str(caught.value)
    assert message.startswith(f"--cluster {path}: ")
    assert said in message
    assert "\n" not in message
    assert not Path("/tmp/never").exists()


def test_a_missing_file_and_other_things_are_one_line(tmp_path):
    for content, said in (
        (None, "can't be read"),
        (b"\xff\xfe\x00", "expected a YAML file"),
        (b"- a", "system: slurm"),
    ):
        path = tmp_path / "x.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SettingsError, match=said) as caught:
            read_cluster_file(path)
        assert "\n" not in str(caught.value)


# the jobs


def test_scripts_are_made_without_starting_anything(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    path = write(
        "gpu: {queue: fast, account: us, cores: 8, memory: 48GiB, walltime: 04:00:00, directives: [--gres=gpu:1],"
        " prologue: [module load cuda]}\n"
        "cpu: {cores: 16, memory: 64GiB, walltime: 1-0}"
    )
    scripts = clusters.job_scripts(path)
    gpu = scripts["gpu"].splitlines()
    for line in (
        "#SBATCH -p fast",
        "#SBATCH -A us",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=48G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --gres=gpu:1",
        "export MALLOC_TRIM_THRESHOLD_=65536",
        "export MALLOC_MMAP_THRESHOLD_=33554432",
        "export OMP_NUM_THREADS=8",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    ):
        assert line in gpu
    assert gpu.index("module load cuda") > gpu.index("#SBATCH --gres=gpu:1")
    worker = gpu[-1]
    assert gpu.index("module load cuda") < len(gpu) - 1
    for part in ("--resources GPU=1", "--nthreads 4", "--lifetime 13800s --lifetime-stagger 300s", "--protocol tls://"):
        assert part in worker
    cpu = scripts["cpu"].splitlines()[-1]
    for part in ("--nworkers 16", "--nthreads 1", "--memory-limit 4.00GiB"):
        assert part in cpu
    assert "GPU" not in cpu
    assert not (tmp_path / "shared").exists()


def test_workers_of_a_job_with_several_gpus_get_one_each(write, monkeypatch):
    path = write("gpu: {cores: 16, processes: 4, memory: 64GiB, walltime: '60', directives: [--gres=gpu:4]}")
    assert "--preload cryosam_dask.executors.one_gpu" in clusters.job_scripts(path)["gpu"]
    for given, expected in (("4,5,GPU-x,7", "GPU-x"), ("", "2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        one_gpu.dask_setup(types.SimpleNamespace(name="gpu-3-2"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("kind", "units", "jobs"), [("cpu", 0, 1), ("cpu", 9, 2), ("cpu", 99, 3), ("gpu", 0, 0), ("gpu", 1, 1)]
)
def test_as_many_jobs_as_units_keep_busy_within_limits(write, kind, units, jobs):
    file = read_cluster_file(
        write(
            "cpu: {cores: 8, memory: 8GiB, walltime: '60', minimum: 1, maximum: 3}\n"
            "gpu: {cores: 8, memory: 8GiB, walltime: '60', maximum: 2}"
        )
    )
    assert slurm.wanted(file, kind, units) == jobs


def test_jobs_come_for_units_and_go_without_them(write, queue, tmp_path):
    path = write(f"idle: 1s\ngpu: {KIND % 1}\ncpu: {KIND % 2}")
    with make_executor(cluster=path, device="cpu") as executor:
        assert executor.worker_memory > 0
        assert executor.slots == 4
        assert fake_slurm.running(queue) == []
        done = execute(toy_stage(tmp_path, 12), new_store(tmp_path, 12), executor)
        assert len(done.results) == 12
        asked_for_gpu = executor.client.submit(os.getenv, "MALLOC_TRIM_THRESHOLD_", resources={"GPU": 0.25})
        assert asked_for_gpu.result() == "65536"
        names = [p.read_text() for p in queue.glob("*.sh")]
        assert sum("cryosam-gpu" in text for text in names) == 1
        secrets = list((tmp_path / "shared").glob("cluster-*/*"))
        assert {p.name for p in secrets} == {"ca.pem", "cert.pem", "key.pem"}
        assert {stat.S_IMODE(p.stat().st_mode) for p in secrets} == {0o600}
        assert stat.S_IMODE(secrets[0].parent.stat().st_mode) == 0o700
        asked_for_gpu.release()
        # units that need no GPU don't keep its job, and what they were to do there is done elsewhere
        naps = executor.client.map(nap, range(24), pure=False)
        gpu = next(int(p.stem) for p in queue.glob("*.sh") if "cryosam-gpu" in p.read_text())
        eventually(lambda: gpu not in fake_slurm.running(queue))
        assert executor.client.gather(naps) == list(range(24))
        for one in naps:
            one.release()
        eventually(lambda: not fake_slurm.running(queue))
    assert list((tmp_path / "shared").glob("cluster-*")) == []
    assert np.array_equal(RunStore.open(tmp_path / "run.zarr").read("toy/squares"), squares(12))


def test_what_is_done_asks_for_no_job(write, queue, tmp_path):
    stage, store = toy_stage(tmp_path), new_store(tmp_path)
    execute(stage, store, SerialExecutor())
    with make_executor(cluster=write(f"cpu: {KIND % 1}"), device="cpu") as executor:
        assert execute(stage, store, executor).skipped == 6
    assert list(queue.glob("*.sh")) == []


def test_a_job_that_is_killed_is_replaced_and_nothing_is_lost(write, queue, tmp_path):
    def kill() -> None:
        eventually(lambda: sum(calls(tmp_path, 16)) >= 3)
        fake_slurm.end(queue, 1, signal.SIGKILL)

    with make_executor(cluster=write(f"cpu: {KIND % 1}"), device="cpu") as executor:
        killer = in_background(kill)
        stage = toy_stage(tmp_path, 16, faults=dict.fromkeys(range(16), "slow"))
        done = execute(stage, new_store(tmp_path, 16), executor)
        killer.join()
        assert len(done.results) == 16
    assert len(list(queue.glob("*.sh"))) == 2
    # no more than was under way: running in the job, waiting there, or done and not fetched yet
    assert sum(calls(tmp_path, 16)) <= 16 + 2 * UNITS_PER_SLOT
    assert np.array_equal(RunStore.open(tmp_path / "run.zarr").read("toy/squares"), squares(16))


def test_a_queue_that_takes_no_jobs_is_one_line(write, queue, tmp_path):
    (queue / "closed").write_text("sbatch: error: Batch job submission failed: Invalid account\n")
    said = r"^\d jobs of kind cpu .* came to nothing: .*Invalid account; "
    with make_executor(cluster=write(f"cpu: {KIND % 1}"), device="cpu") as executor:
        store = new_store(tmp_path)
        with pytest.raises(ExecutionError, match=said) as caught:
            execute(toy_stage(tmp_path), store, executor)
    assert "\n" not in str(caught.value)


def test_a_run_in_jobs_equals_one_in_this_process(write, queue, ball_tomogram, tmp_path):
    settings = settings_for("texture+random-walker", {"match.count": 3})
    one, two = tmp_path / "serial.zarr", tmp_path / "jobs.zarr"
    cs.run(ball_tomogram, [[20, 20, 20]], one, settings=settings, workers=0)
    cs.run(ball_tomogram, [[20, 20, 20]], two, settings=settings, cluster=write(f"cpu: {KIND % 1}"))
    assert len(list(queue.glob("*.sh"))) == 1
    first, second = RunStore.open(one), RunStore.open(two)
    for path in (layout.labels("particle"), layout.latents(1, "x"), layout.similarity("particle", 4)):
        assert np.array_equal(first.read(path), second.read(path), equal_nan=True)


# a cluster that several commands share


def test_a_served_cluster_is_there_until_it_is_stopped(write, queue, tmp_path):
    said: list[str] = []
    stop = threading.Event()
    where = tmp_path / "scheduler.json"
    path = write(f"cpu: {KIND % 1}")
    server = in_background(lambda: clusters.serve(path, where, say=said.append, until=stop))
    eventually(where.exists)
    reach = json.loads(where.read_text())
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    from cryosam_dask.executors.security import security_from

    tls = security_from(reach["tls"]["ca_file"], reach["tls"]["cert"], reach["tls"]["key"])
    for power in (1, 2):
        folder = tmp_path / str(power)
        folder.mkdir()
        with make_executor(scheduler=reach["address"], device="cpu", security=tls) as executor:
            assert len(execute(toy_stage(folder, power=power), new_store(folder), executor).results) == 6
            assert not executor.cluster.expects_gpu
    assert len(list(queue.glob("*.sh"))) == 1  # the second command found the first one's job
    stop.set()
    server.join(300)
    assert not server.is_alive()
    assert not where.exists()
    assert reach["address"] in said[0]
    assert fake_slurm.running(queue) == []


# contradictions


def test_places_exclude_each_other(tmp_path):
    for given in ({"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}):
        with pytest.raises(SettingsError, match="--cluster"):
            make_executor(cluster="x.yaml", **given)
    with pytest.raises(SettingsError, match="local workers make their own"):
        make_executor(2, security=object())


def test_a_gpu_needs_jobs_that_have_one(write):
    with pytest.raises(SettingsError, match="needs a section gpu:"):
        make_executor(cluster=write(f"cpu: {KIND % 1}"), device="cuda")


def test_cuda_without_a_gpu_is_one_line():
    import torch

    if torch.cuda.is_available():
        return
    with pytest.raises(DeviceError) as caught:
        make_executor(cluster="cuda")
    assert "\n" not in str(caught.value)


def test_cuda_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(cuda, "_gpus", lambda device: ["0"])
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(ExecutionError, match=r"pip install 'cryosam-dask\[cuda\]'$"):
        make_executor(cluster="cuda")


def test_cuda_starts_a_worker_for_each_gpu(monkeypatch, tmp_path):
    made = {}

    class LocalCUDACluster:
        """Stands for dask-cuda's: notes what it is asked for."""

        def __new__(cls, *, CUDA_VISIBLE_DEVICES, device_memory_limit, **options):
            from distributed import LocalCluster

            made.update(options, gpus=CUDA_VISIBLE_DEVICES, spill=device_memory_limit)
            return LocalCluster(n_workers=len(CUDA_VISIBLE_DEVICES), **options)

    monkeypatch.setattr(cuda, "_gpus", lambda device: ["0"])
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=LocalCUDACluster))
    with make_executor(cluster="cuda", uses_torch=False) as executor:
        (worker,) = executor.workers().values()
        assert worker["resources"] == {"GPU": 1}
        assert worker["nthreads"] == 4
        assert worker["host"] == "127.0.0.1"
    assert (made["gpus"], made["spill"]) == (["0"], None)
    assert made["security"].require_encryption


def test_slurm_without_its_package_names_the_extra(write, monkeypatch):
    monkeypatch.delitem(sys.modules, "cryosam_dask.executors.slurm_jobs", raising=False)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    with pytest.raises(ExecutionError, match=r"pip install 'cryosam-dask\[slurm\]'$"):
        clusters.job_scripts(write(f"cpu: {KIND % 1}"))


IMPORTING = """
import signal, sys, threading
from cryosam_dask.executors import clusters
signal.signal(signal.SIGINT, signal.default_int_handler)
scripts = []
thread = threading.Thread(target=lambda: scripts.append(clusters.job_scripts(sys.argv[1])))
thread.start()
thread.join()
assert "#SBATCH -t 01:00:00" in scripts[0]["cpu"]
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.signal.__module__ == "signal"
"""


def test_ctrl_c_stays_an_interrupt_with_jobs_of_slurm(write):
    done = subprocess.run([sys.executable, "-c", IMPORTING, write(f"cpu: {KIND % 1}")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_without_sbatch_says_so(write, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExecutionError, match="no sbatch on this machine"):
        make_executor(cluster=write(f"cpu: {KIND % 1}"))
