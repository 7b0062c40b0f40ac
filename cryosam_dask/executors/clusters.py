"""Clusters that a user asks for by name: jobs of SLURM as a file describes them, or this machine's GPUs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import SettingsError
from cryosam_dask.executors.cluster import Cluster
from cryosam_dask.executors.cluster_file import read_cluster_file
from cryosam_dask.executors.cuda import CUDA, CudaWorkers, not_installed
from cryosam_dask.executors.dask import UNIT_TIMEOUT, DaskExecutor
from cryosam_dask.executors.joined import JOB_KINDS_KEY

if TYPE_CHECKING:
    from distributed import Security

    from cryosam_dask.executors.slurm import JobPool

_UNKNOWN: dict[str, str] = {"ca_file": "SHARED/ca.pem", "cert": "SHARED/cert.pem", "key": "SHARED/key.pem"}
_UNKNOWN_ADDRESS = "tls://SCHEDULER:PORT"


def open_cluster(
    spec: str | Path,
    *,
    uses_torch: bool = True,
    device: str = "auto",
    security: Security | None = None,
    unit_timeout: float | None = UNIT_TIMEOUT,
) -> DaskExecutor:
    """Start the cluster that `spec` names, "cuda" or a YAML file; `close` of the executor stops it.

    Raises
    ------
    SettingsError : the file is not valid, or contradicts `device`
    DeviceError : "cuda" on a machine without a GPU
    ExecutionError : a package is not installed, or the cluster did not start
    """
    cluster: Cluster
    if is_cuda(spec):
        cluster, device = CudaWorkers(device, security), "cuda"
    else:
        file = read_cluster_file(spec)
        if device.startswith("cuda") and file.gpu is None:
            raise SettingsError(f"--cluster {spec}: device {device} needs a section gpu:; add one or use --device cpu")
        cluster = _slurm().JobPool(file, security)
        device = device if file.gpu is not None and uses_torch else "cpu"
    return DaskExecutor(cluster, device, uses_torch=uses_torch, unit_timeout=unit_timeout)


def is_cuda(spec: str | Path) -> bool:
    """Whether this means the GPUs of this machine, not a file."""
    return str(spec) == CUDA


def job_scripts(spec: str | Path) -> dict[str, str]:
    """The script of a job of each kind, as it would be submitted; nothing is started or written."""
    if is_cuda(spec):
        raise SettingsError("--cluster cuda has no job scripts; its workers start on this machine")
    file = read_cluster_file(spec)
    jobs = _slurm("slurm_jobs")
    return {kind: jobs.new_job(file, kind, f"{kind}-0", _UNKNOWN_ADDRESS, _UNKNOWN).job_script() for kind in file.kinds}


def serve(
    spec: str | Path,
    scheduler_file: str | Path | None = None,
    *,
    security: Security | None = None,
    say: Callable[[str], object] | None = None,
    until: threading.Event | None = None,
) -> None:
    """Start a cluster for several commands or a notebook, say how to reach it, and stay until Ctrl-C or SIGTERM.

    scheduler_file : where to write what a client needs, for its owner alone: `address`, and paths under `tls`
    say : is called with each line for the user, instead of printing it
    until : an event that ends it, too
    """
    if is_cuda(spec):
        raise SettingsError("cryosam cluster takes a file; the GPUs of this machine are used by --cluster cuda")
    stop = threading.Event() if until is None else until
    say = _print if say is None else say
    pool: JobPool = _slurm().JobPool(read_cluster_file(spec), security)
    with contextlib.closing(pool):
        pool.connect().set_metadata(list(JOB_KINDS_KEY), list(pool.file.kinds))
        files = pool.tls_files
        if scheduler_file is not None:
            _write_private_json(Path(scheduler_file), {"type": "Scheduler", "address": pool.address, "tls": files})
        say(f"scheduler: {pool.address}")
        say(
            f"use it with: --scheduler {pool.address} --tls-ca {files['ca_file']} --tls-cert {files['cert']} "
            f"--tls-key {files['key']}"
        )
        say("Ctrl-C stops it and gives its jobs back")
        try:
            with _signals(stop):
                _watch(pool, stop, say)
        finally:
            if scheduler_file is not None:
                Path(scheduler_file).unlink(missing_ok=True)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _watch(pool: JobPool, stop: threading.Event, say: Callable[[str], object]) -> None:
    """Say what changes until it is over."""
    told = ""
    while not stop.wait(1.0):
        words = pool.trouble() or pool.jobs()
        if words != told:
            say(words)
            told = words


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `stop`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_private_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    temporary.replace(path)


def _slurm(module: str = "slurm") -> Any:
    try:
        with _ctrl_c_untouched():
            return importlib.import_module(f"cryosam_dask.executors.{module}")
    except ImportError as error:
        raise not_installed("dask-jobqueue", "slurm", error) from error


@contextlib.contextmanager
def _ctrl_c_untouched() -> Iterator[None]:
    """dask-jobqueue makes Ctrl-C a normal exit, of code 0, when it is imported, which only the main thread may do."""
    plain, here = signal.signal, threading.get_ident()

    def keep(number: int, handler: Any) -> Any:
        if number == signal.SIGINT and threading.get_ident() == here:
            return signal.getsignal(number)
        return plain(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = plain
