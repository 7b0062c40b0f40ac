"""Workers on this machine, and the choice of an executor."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ExecutionError, SettingsError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.dask import GPU, UNITS_PER_GPU, DaskExecutor, quiet_dask
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.serial import SerialExecutor, device_name

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_MEMORY_SETTINGS = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
"""Units are known to fit, and leave nothing behind to spill. A worker that holds a large model must not be paused."""


def make_executor(
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    client: Client | None = None,
    *,
    uses_torch: bool = True,
) -> Executor:
    """Choose where units run.

    A `client` is used and left open. A `scheduler` address is connected to. Otherwise they run here: on `workers`
    processes (None: one per GPU, or else one per core), started when the first stage needs them, or in this process
    if that is fewer than two.

    Raises
    ------
    SettingsError : arguments that contradict each other
    DeviceError : a GPU was asked for and there is none
    ExecutionError : the scheduler does not answer
    """
    if workers is not None and workers < 0:
        raise SettingsError(f"workers {workers} is not possible; expected 0 (this process) or more")
    if workers is not None and (scheduler is not None or client is not None):
        raise SettingsError("workers are those of the scheduler; give --workers or --scheduler, not both")
    if client is not None:
        return DaskExecutor(client, device, uses_torch=uses_torch)
    if scheduler is not None:
        return DaskExecutor(scheduler, device, uses_torch=uses_torch)
    from cryosam_dask.models.registry import resolve_device

    found = resolve_device(device, uses_torch)
    count = default_workers(found) if workers is None else workers
    return LocalExecutor(count, found, uses_torch=uses_torch) if count > 1 else SerialExecutor(found)


class LocalExecutor(DaskExecutor):
    """Workers of this machine, started when they are first needed and stopped by `close`.

    Parameters
    ----------
    workers : number of processes
    device : a torch device that is known to be there
    uses_torch : whether the run's models need torch, which takes room in each worker
    """

    def __init__(self, workers: int, device: str = "cpu", *, uses_torch: bool = True) -> None:
        self._count = workers
        self._requested = device
        self._uses_torch = uses_torch
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
    common = {
        "memory_limit": int(available_memory() * USABLE / count),
        "host": LOOPBACK,
        "protocol": "tcp://",
        "dashboard": False,
        "silence_logs": level,
        "preload": ["cryosam_dask.executors.worker_setup"],
    }
    gpus = visible_gpus(device)
    specs = {i: {"cls": Nanny, "options": common | _own_options(i, count, gpus)} for i in range(count)}
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOOPBACK, "protocol": "tcp://", "port": 0, "dashboard_address": f"{LOOPBACK}:0"},
    }
    before = {name: os.environ.get(name) for name in _spawn_variables()}
    settings = {"distributed.nanny.pre-spawn-environ": _spawn_environment(count), **_MEMORY_SETTINGS}
    try:
        with contextlib.ExitStack() as opening:
            with _interrupt_later(), dask.config.set(settings):
                cluster = SpecCluster(specs, scheduler, silence_logs=level, name="cryosam")
                opening.callback(cluster.close)
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
