"""Clusters that a run starts itself: jobs of SLURM as a file describes them, or this machine's GPUs with dask-cuda."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import DeviceError, ExecutionError, SettingsError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.choice import KINDS
from cryosam_dask.executors.cluster_file import SlurmFile, read_cluster_file
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.dask import GPU, UNIT_TIMEOUT, UNITS_PER_GPU, DaskExecutor, usable_share
from cryosam_dask.executors.local import LOOPBACK, MEMORY_SETTINGS, visible_gpus
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.security import TLS, temporary_security

if TYPE_CHECKING:
    from distributed import Client, Security

    from cryosam_dask.executors.slurm import JobPool

logger = logging.getLogger(__name__)

CUDA = "cuda"

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
    SettingsError : the file is not as it should be, or contradicts `device`
    DeviceError : "cuda" on a machine without a GPU
    ExecutionError : a package is not installed, or the cluster did not start
    """
    if is_cuda(spec):
        return CudaExecutor(device, uses_torch=uses_torch, security=security, unit_timeout=unit_timeout)
    file = read_cluster_file(spec)
    if device.startswith("cuda") and file.gpu is None:
        raise SettingsError(f"--cluster {spec}: device {device} needs a section gpu:; add one or use --device cpu")
    return SlurmExecutor(file, device, uses_torch=uses_torch, security=security, unit_timeout=unit_timeout)


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
    until : ends it, too
    """
    if is_cuda(spec):
        raise SettingsError("cryosam cluster takes a file; the GPUs of this machine are used by --cluster cuda")
    stop = threading.Event() if until is None else until
    say = _print if say is None else say
    pool = _slurm().JobPool(read_cluster_file(spec), security)
    with quiet_dask(), contextlib.closing(pool.start()):
        with pool.connect() as client:
            client.set_metadata(list(KINDS), list(pool.file.kinds))
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
        words = pool.trouble() or pool.describe()
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


class SlurmExecutor(DaskExecutor):
    """Runs units in jobs of SLURM, which come and go as units need them. What is done already asks for no job."""

    def __init__(
        self,
        file: SlurmFile,
        device: str = "auto",
        *,
        uses_torch: bool = True,
        security: Security | None = None,
        unit_timeout: float | None = UNIT_TIMEOUT,
    ) -> None:
        self._file = file
        self._on_gpu = file.gpu is not None and uses_torch and device != "cpu"
        with contextlib.ExitStack() as opening:
            opening.enter_context(quiet_dask())
            self._pool: JobPool = _slurm().JobPool(file, security).start()
            opening.callback(self._pool.close)
            client = self._pool.connect()
            opening.callback(client.close)
            super().__init__(
                client,
                device if self._on_gpu else "cpu",
                uses_torch=uses_torch,
                expects_gpu=self._on_gpu,
                unit_timeout=unit_timeout,
                worker_timeout=None,
            )
            self._opened = opening.pop_all()

    @property
    def worker_memory(self) -> int | None:
        """The smallest share of a unit in a job, whether there are jobs now or not."""
        file = self._file
        return min(
            usable_share(kind.memory // file.processes(name), file.threads(name), self._uses_torch)
            for name, kind in file.kinds.items()
        )

    @property
    def units_per_worker(self) -> int:
        return min(self._file.threads(name) for name in self._file.kinds)

    @property
    def slots(self) -> int:
        """Units of a model's stage that can run at once when all jobs that may be asked for are there."""
        kind = self._file.kind_of(self._on_gpu)
        return self._file.kinds[kind].maximum * self._file.units(kind)

    def describe(self) -> str:
        return f"SLURM at {self._address()}: {self._pool.describe()}"

    def workers(self) -> dict[str, dict[str, Any]]:
        """All workers that are there now; `ExecutionError` once it is clear that none will come."""
        if words := self._pool.trouble():
            raise ExecutionError(f"{words}; mend that and run the same command again, finished units are kept")
        return super().workers()

    def _awaited(self, resource: str) -> str:
        return f"a job to start: {self._pool.describe()}"


class CudaExecutor(DaskExecutor):
    """Runs units on a `dask_cuda.LocalCUDACluster`: one worker for each GPU of this machine."""

    def __init__(
        self,
        device: str = "auto",
        *,
        uses_torch: bool = True,
        security: Security | None = None,
        unit_timeout: float | None = UNIT_TIMEOUT,
    ) -> None:
        if device == "cpu":
            raise SettingsError("--cluster cuda and --device cpu contradict each other; leave one of them out")
        gpus = _gpus(device)
        with contextlib.ExitStack() as opening:
            opening.enter_context(quiet_dask())
            client = opening.enter_context(cuda_client(gpus, security))
            super().__init__(client, "cuda", uses_torch=uses_torch, expects_gpu=uses_torch, unit_timeout=unit_timeout)
            self._opened = opening.pop_all()


@contextlib.contextmanager
def cuda_client(gpus: list[str], security: Security | None = None) -> Iterator[Client]:
    """A worker for each of these GPUs, and a connection to them; both end with the context.

    `ExecutionError` if dask-cuda is not installed or the workers did not start.
    """
    import dask
    from distributed import Client

    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise _not_installed("dask-cuda", "cuda", error) from error
    options = {
        "CUDA_VISIBLE_DEVICES": gpus,
        "threads_per_worker": UNITS_PER_GPU,
        "memory_limit": int(available_memory() * USABLE / len(gpus)),
        "device_memory_limit": None,  # models and units are no Dask data that could be spilled
        "resources": {GPU: 1},
        "host": LOOPBACK,
        "protocol": TLS,
        "security": security or temporary_security(),
        "dashboard_address": f"{LOOPBACK}:0",
        "silence_logs": logging.CRITICAL,
    }
    with contextlib.ExitStack() as opened:
        try:
            with dask.config.set(MEMORY_SETTINGS):
                cluster = opened.enter_context(LocalCUDACluster(**options))
            client = opened.enter_context(Client(cluster, set_as_default=False))
        except Exception as error:
            raise ExecutionError(
                f"dask-cuda's workers did not start ({one_line(error)}); without --cluster cuda, workers for the GPUs "
                "start without dask-cuda"
            ) from error
        yield client


def _gpus(device: str) -> list[str]:
    from cryosam_dask.models.registry import resolve_device

    found = visible_gpus(resolve_device(CUDA if device == "auto" else device, True))
    if not found:
        raise DeviceError(f"device {device}: there is no GPU here; leave --cluster cuda out to run on the CPU")
    return found


def _slurm(module: str = "slurm") -> Any:
    try:
        with _ctrl_c_untouched():
            return importlib.import_module(f"cryosam_dask.executors.{module}")
    except ImportError as error:
        raise _not_installed("dask-jobqueue", "slurm", error) from error


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


def _not_installed(package: str, extra: str, error: ImportError) -> ExecutionError:
    return ExecutionError(
        f"--cluster needs {package}, which can't be loaded here ({one_line(error)}); pip install "
        f"'cryosam-dask[{extra}]'"
    )
