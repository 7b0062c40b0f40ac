"""Workers on this machine."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.dask import GPU, UNIT_TIMEOUT, UNITS_PER_GPU, DaskExecutor
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.security import TLS, temporary_security
from cryosam_dask.executors.serial import device_name

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
MEMORY_SETTINGS = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
"""Units are known to fit, and leave nothing behind to spill. A worker that holds a large model must not be paused."""

NO_PAGES: dict[str, list[str]] = {f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}
"""Web pages have no certificates: on a machine that others use too they would show them what runs."""

_STARTS = 3
"""How often workers that were lost for good are replaced."""

_START_TIMEOUT = 300.0
"""Seconds that new workers have to start."""

_START_ERRORS = (OSError, RuntimeError, TimeoutError, ValueError)


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
        self._starts = 0

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

    def workers(self) -> dict[str, dict[str, Any]]:
        """All workers that are there now. Those that nobody else would start again are, a few times.

        `ExecutionError` if none is left and none can be started.
        """
        found = super().workers()
        lost = given_up(self.client) if len(found) < self._count else []
        if not lost:
            return found
        if self._starts == _STARTS:
            if found:
                return found
            raise ExecutionError(
                f"local workers were lost for good {_STARTS + 1} times; see what ended them (--verbose), or run "
                "without workers (--workers 0); finished units are kept"
            )
        self._starts += 1
        logger.warning("%d of %d local workers were lost for good; starting new ones", len(lost), self._count)
        try:
            start_again(self.client, lost)
        except ExecutionError as error:
            if not found:
                raise
            logger.warning("%s", error)
        return super().workers()

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
    try:
        with contextlib.ExitStack() as opening:
            with _interrupt_later(), _spawning(count):
                cluster = SpecCluster(specs, scheduler, security=security, silence_logs=level, name="cryosam")
                opening.callback(cluster.close)
                _leave_to_nannies(cluster)
                client = Client(cluster, set_as_default=False)
                opening.callback(client.close)
            opening.pop_all()
            return client
    except _START_ERRORS as error:
        raise _not_started(count, error) from error


def given_up(client: Client) -> list[Any]:
    """Names of the workers of `local_client` that have ended, and whose nannies have ended too: what starts a process
    can fail, as on a full disk, and a nanny tries once."""
    from distributed import Status

    cluster: Any = client.cluster
    return [name for name, nanny in dict(cluster.workers).items() if nanny.status in (Status.closed, Status.failed)]


def start_again(client: Client, names: Collection[Any]) -> None:
    """Start new workers of `local_client` in the place of some; `ExecutionError` if they do not start."""
    cluster: Any = client.cluster

    async def replace() -> None:
        for name in names:
            cluster.workers.pop(name, None)
        await cluster._correct_state()

    try:
        with _interrupt_later(), _spawning(len(cluster.worker_spec)):
            cluster.sync(replace, callback_timeout=_START_TIMEOUT)
    except _START_ERRORS as error:
        raise _not_started(len(names), error) from error


@contextlib.contextmanager
def _spawning(count: int) -> Iterator[None]:
    """What `count` workers are told by their surroundings as they start."""
    import dask

    before = {name: os.environ.get(name) for name in _spawn_variables()}
    settings = {"distributed.nanny.pre-spawn-environ": _spawn_environment(count), **MEMORY_SETTINGS, **NO_PAGES}
    try:
        with dask.config.set(settings):
            yield
    finally:
        _restore(before)


def _not_started(count: int, error: Exception) -> ExecutionError:
    return ExecutionError(
        f"{count} workers did not start on this machine ({one_line(error)}); a script that starts workers needs "
        "`if __name__ == '__main__':` around what it does; without workers: --workers 0"
    )


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
