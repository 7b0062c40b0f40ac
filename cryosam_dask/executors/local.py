"""Workers on this machine."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster import WORKER_TIMEOUT, Cluster
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.machine import (
    LOOPBACK,
    MEMORY_SETTINGS,
    NO_PAGES,
    default_workers,
    environment_kept,
    spawn_environment,
    worker_options,
)
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.security import TLS, temporary_security
from cryosam_dask.executors.serial import device_name

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

_STARTS = 3
"""How often workers that were lost for good are replaced."""

_START_TIMEOUT = 300.0
"""Seconds that new workers have to start."""

_START_ERRORS = (OSError, RuntimeError, TimeoutError, ValueError)


class LocalWorkers(Cluster):
    """Workers of this machine, started when they are first needed and stopped by `close`.

    Parameters
    ----------
    count : number of processes
    device : a torch device that is known to be there
    """

    def __init__(self, count: int, device: str = "cpu") -> None:
        # each worker sees one GPU, its own, so its number is always the first
        self.device = "cuda" if device.startswith("cuda") else device
        self.expects_gpu = False
        self.worker_timeout = WORKER_TIMEOUT
        self._count, self._where = count, device
        self._client: Client | None = None
        self._opened = contextlib.ExitStack()
        self._starts = 0
        self._tending = threading.Lock()

    def connect(self) -> Client:
        if self._client is None:
            with contextlib.ExitStack() as opening:
                opening.enter_context(quiet_dask())
                self._client = local_client(self._count, self._where)
                opening.callback(close_local, self._client)
                self._opened = opening.pop_all()
        return self._client

    def tend(self, present: int) -> bool:
        """Start lost workers again that no nanny starts, a few times.

        `ExecutionError` if none is left and none can be started. Any thread may call this.
        """
        with self._tending:
            return self._tend(present)

    def _tend(self, present: int) -> bool:
        client = self.connect()
        lost = given_up(client) if present < self._count else []
        if not lost or (self._starts == _STARTS and present):
            return False
        if self._starts == _STARTS:
            raise ExecutionError(
                f"local workers were lost for good {_STARTS + 1} times; see what ended them (--verbose), or run "
                "without workers (--workers 0); finished units are kept"
            )
        self._starts += 1
        logger.warning("%d of %d local workers were lost for good; starting new ones", len(lost), self._count)
        try:
            start_again(client, lost)
        except ExecutionError as error:
            if not present:
                raise
            logger.warning("%s", error)
        return True

    def describe(self) -> str:
        return f"{self._count} local workers, {device_name(self._where)}"

    def close(self) -> None:
        """Stop the workers."""
        self._opened.close()


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
    specs = {i: {"cls": Nanny, "options": common | own} for i, own in enumerate(worker_options(count, device))}
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
    """Names of the workers of `local_client` that have ended, together with their nannies. Starting a process can fail,
    as on a full disk, and a nanny tries only once."""
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

    settings = {"distributed.nanny.pre-spawn-environ": spawn_environment(count), **MEMORY_SETTINGS, **NO_PAGES}
    with environment_kept(), dask.config.set(settings):
        yield


def _not_started(count: int, error: Exception) -> ExecutionError:
    return ExecutionError(
        f"{count} workers did not start on this machine ({one_line(error)}); a script that starts workers needs "
        "`if __name__ == '__main__':` around what it does; without workers: --workers 0"
    )


def _leave_to_nannies(cluster: Any) -> None:
    """A worker that is lost comes back, however often and however long it takes: its nanny sees to that. A SpecCluster
    would end the nanny of one that is not there 15 s after it was lost, be it lost again by then."""
    from distributed.deploy.cluster import Cluster as AnyCluster

    cluster._update_worker_status = functools.partial(AnyCluster._update_worker_status, cluster)


def close_local(client: Client) -> None:
    """Stop what `local_client` started."""
    cluster = client.cluster
    with environment_kept():
        try:
            client.close()
        finally:
            if cluster is not None:
                cluster.close()


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
