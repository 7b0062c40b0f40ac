"""Workers on this machine, and the choice of an executor."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ExecutionError, SettingsError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.dask import GPU, UNIT_TIMEOUT, UNITS_PER_GPU, DaskExecutor
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.security import TLS, secured, temporary_security
from cryosam_dask.executors.serial import SerialExecutor, device_name

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client, Security

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
KINDS = ("cryosam", "kinds")
"""Where a scheduler's metadata name the kinds of jobs that hold its workers."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
MEMORY_SETTINGS = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
"""Units are known to fit, and leave nothing behind to spill. A worker that holds a large model must not be paused."""

NO_PAGES: dict[str, list[str]] = {f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}
"""Web pages have no certificates: on a machine that others use too they would show them what runs."""


def make_executor(
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    client: Client | None = None,
    *,
    uses_torch: bool = True,
    cluster: str | Path | None = None,
    security: Security | None = None,
    unit_timeout: float | None = UNIT_TIMEOUT,
) -> Executor:
    """Choose where units run.

    A `client` is used and left open. A `scheduler` address is connected to. A `cluster`, "cuda" or a file, is started
    and stopped. Otherwise they run here: on `workers` processes (None: one per GPU, or else one per core), started when
    the first stage needs them, or in this process if that is fewer than two.

    security : certificates for `scheduler` or `cluster`; clusters that are started here make their own without
    unit_timeout : seconds after which a unit is taken to hang and runs elsewhere; None: never

    Raises
    ------
    SettingsError : arguments that contradict each other or can't be
    DeviceError : a GPU was asked for and there is none
    ExecutionError : the scheduler does not answer, or the cluster did not start
    """
    _agree(workers, scheduler, client, cluster, security)
    if unit_timeout is not None and not unit_timeout > 0:
        raise SettingsError(f"unit timeout {unit_timeout:g}: expected seconds above 0, or none")
    common: dict[str, Any] = {"uses_torch": uses_torch, "unit_timeout": unit_timeout}
    if client is not None:
        return DaskExecutor(client, device, **common)
    if scheduler is not None:
        address, security = secured(scheduler, security)
        return JoiningExecutor(address, device, security=security, **common)
    if cluster is not None:
        from cryosam_dask.executors.clusters import open_cluster

        return open_cluster(cluster, device=device, security=security, **common)
    from cryosam_dask.models.registry import resolve_device

    found = resolve_device(device, uses_torch)
    count = default_workers(found) if workers is None else workers
    return LocalExecutor(count, found, **common) if count > 1 else SerialExecutor(found)


def _agree(
    workers: int | None,
    scheduler: str | None,
    client: Client | None,
    cluster: str | Path | None,
    security: Security | None,
) -> None:
    """`SettingsError` if it is not clear where units shall run."""
    if workers is not None and workers < 0:
        raise SettingsError(f"workers {workers} is not possible; expected 0 (this process) or more")
    places = {"--workers": workers, "--scheduler": scheduler, "a client": client, "--cluster": cluster}
    given = [name for name, place in places.items() if place is not None]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} are different places to run at; give one of them")
    if security is not None and scheduler is None and cluster is None:
        raise SettingsError(
            "certificates are for a scheduler or a cluster; give --scheduler or --cluster with them (local workers "
            "make their own)"
        )


class JoiningExecutor(DaskExecutor):
    """Runs units on a scheduler at an address. Where that serves a cluster's file, it says which jobs are to come."""

    def __init__(self, address: str, device: str = "auto", **options: Any) -> None:
        super().__init__(address, device, **options)
        kinds = self.client.get_metadata(list(KINDS), default=[])
        if kinds:
            self._worker_timeout = None  # queues take their time
            self._expects_gpu = "gpu" in kinds


class LocalExecutor(DaskExecutor):
    """Workers of this machine, started when they are first needed and stopped by `close`.

    Parameters
    ----------
    workers : number of processes
    device : a torch device that is known to be there
    uses_torch : whether the run's models need torch, which takes room in each worker
    unit_timeout : seconds that one unit may take before its worker is taken to hang; None: for ever
    """

    def __init__(
        self,
        workers: int,
        device: str = "cpu",
        *,
        uses_torch: bool = True,
        unit_timeout: float | None = UNIT_TIMEOUT,
    ) -> None:
        self._count = workers
        self._requested = device
        self._uses_torch = uses_torch
        self._unit_timeout = unit_timeout
        self._where = device
        self._opened = contextlib.ExitStack()
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            with contextlib.ExitStack() as opening:
                opening.enter_context(quiet_dask())
                self._client = local_client(self._count, self._where)
                opening.callback(close_local, self._client)
                self._opened = opening.pop_all()
        return self._client

    @property
    def device(self) -> str:
        """Each worker sees one GPU, its own, so its number is always the first."""
        return "cuda" if self._where.startswith("cuda") else self._where

    def describe(self) -> str:
        return f"{self._count} local workers, {device_name(self._where)}"


def local_client(workers: int | None = None, device: str = "cpu") -> Client:
    """Start worker processes on this machine and connect to them; give them back with `close_local`.

    With a GPU `device` each of the first workers gets a GPU of its own and declares it; workers beyond the number of
    GPUs serve the stages that use no model. Memory and cores are divided evenly. A worker with a GPU runs as many units
    at once as it has cores, up to `UNITS_PER_GPU`, so that some read or write while the model works on another; the
    others run one unit at a time.

    Raises
    ------
    ExecutionError : the workers did not start
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise ExecutionError(
            "a script that starts workers is imported again by each of them; put its code under "
            "`if __name__ == '__main__':`"
        )
    count = workers or default_workers(device)
    level = logging.INFO if logger.isEnabledFor(logging.DEBUG) else logging.CRITICAL
    security = temporary_security()
    common = {
        "memory_limit": int(available_memory() * USABLE / count),
        "host": LOOPBACK,
        "protocol": TLS,
        "security": security,
        "dashboard": False,
        "silence_logs": level,
        "preload": ["cryosam_dask.executors.worker_setup"],
    }
    gpus = visible_gpus(device)
    specs = {i: {"cls": Nanny, "options": common | _own_options(i, count, gpus)} for i in range(count)}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": LOOPBACK,
            "protocol": TLS,
            "security": security,
            "port": 0,
            "dashboard": False,
            "dashboard_address": f"{LOOPBACK}:0",
        },
    }
    before = {name: os.environ.get(name) for name in _spawn_variables()}
    settings = {"distributed.nanny.pre-spawn-environ": _spawn_environment(count), **MEMORY_SETTINGS, **NO_PAGES}
    try:
        with contextlib.ExitStack() as opening:
            with _interrupt_later(), dask.config.set(settings):
                cluster = SpecCluster(specs, scheduler, security=security, silence_logs=level, name="cryosam")
                opening.callback(cluster.close)
                _leave_to_nannies(cluster)
                client = Client(cluster, set_as_default=False)
                opening.callback(client.close)
            opening.pop_all()
            return client
    except (OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise ExecutionError(
            f"{count} workers did not start on this machine ({one_line(error)}); a script that starts workers needs "
            "`if __name__ == '__main__':` around what it does; without workers: --workers 0"
        ) from error
    finally:
        _restore(before)


def _leave_to_nannies(cluster: Any) -> None:
    """A worker that is lost comes back, however often and however long it takes: its nanny sees to that. A SpecCluster
    would end the nanny of one that is not there 15 s after it was lost, be it lost again by then."""
    from distributed.deploy.cluster import Cluster

    cluster._update_worker_status = functools.partial(Cluster._update_worker_status, cluster)


def close_local(client: Client) -> None:
    """Stop what `local_client` started."""
    cluster = client.cluster
    before = {name: os.environ.get(name) for name in _spawn_variables()}
    try:
        client.close()
    finally:
        if cluster is not None:
            cluster.close()
        _restore(before)


def default_workers(device: str) -> int:
    """One per GPU on a GPU device, else one per core that this process may use."""
    from dask.system import CPU_COUNT

    return len(visible_gpus(device)) or int(CPU_COUNT)


def visible_gpus(device: str) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs of a device: all for "cuda", one for "cuda:N", none for "cpu"."""
    if not device.startswith("cuda"):
        return []
    from cryosam_dask.models.registry import gpu_count

    count = gpu_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = named[:count] if len(named) >= count else [str(i) for i in range(count)]
    _, _, number = device.partition(":")
    return [names[int(number)]] if number else names


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back until workers that are being started can be stopped in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            raise KeyboardInterrupt


def _own_options(index: int, count: int, gpus: list[str]) -> dict[str, Any]:
    """Threads of worker `index` of `count`, and its GPU if it has one."""
    if not gpus:
        return {"nthreads": 1}
    if index >= len(gpus):
        return {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": ""}}
    threads = max(1, min(UNITS_PER_GPU, _cores(count)))
    return {"nthreads": threads, "env": {"CUDA_VISIBLE_DEVICES": gpus[index]}, "resources": {GPU: 1}}


def _cores(count: int) -> int:
    """Cores for each of `count` workers."""
    from dask.system import CPU_COUNT

    return int(max(1, CPU_COUNT // count))


def _spawn_environment(count: int) -> dict[str, str]:
    """Threads of the numerical libraries, which read them when they are imported."""
    return {"MALLOC_TRIM_THRESHOLD_": "65536"} | dict.fromkeys(THREAD_VARIABLES, str(_cores(count)))


def _spawn_variables() -> tuple[str, ...]:
    """What Dask sets in this process's own environment to hand it down to its workers."""
    return (*THREAD_VARIABLES, "MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED")


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
