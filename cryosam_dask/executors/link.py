"""An executor's connection to the workers of its cluster: opened when it is needed, and again when it is lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.cluster import GPU, UNITS_PER_GPU, Cluster
from cryosam_dask.executors.connection import ConnectionLostError, News, talking
from cryosam_dask.executors.outcomes import Finished
from cryosam_dask.executors.sharing import Sharing
from cryosam_dask.executors.worker_calls import run_sent

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

_FRUITLESS = 3
"""Connections lost in a row without a unit landing, after which it is no use to look for another one."""

_LOOK = 1.0
"""Seconds after which somebody who waits for a worker looks whether one can still come."""

_RESTART = 30.0

_sending = threading.Lock()
"""Dask's configuration, which a message is sent under, is the whole process's."""

T = TypeVar("T")


class Link:
    """The connection to a cluster's scheduler. Make each call over it with `kept`, or within `connection.talking` and
    with `recover`.

    Attributes
    ----------
    address : of the scheduler
    fruitless : how many connections were lost since the last unit landed
    sharing : what links to the same workers know of each other
    priority : workers begin units of a higher one first
    stop : once it is set, by whichever thread, all that is waited for ends as Ctrl-C ends it
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        sharing: Sharing | None = None,
        priority: int = 0,
        stop: threading.Event | None = None,
    ) -> None:
        self.cluster = cluster
        self.sharing = sharing or Sharing()
        self.priority = priority
        self.stop = stop or threading.Event()
        self.fruitless = 0
        self.address = "an unknown address"
        self._client: Client | None = None
        self._closed = False
        self._news: News | None = None
        self._met: frozenset[str] = frozenset()

    @property
    def client(self) -> Client:
        """The connection that units are sent over."""
        if self._closed:
            raise ExecutionError("this executor is closed; make a new one")
        if self._client is None:
            self._client = self.cluster.connect()
            if (scheduler := self._client.scheduler) is not None:
                self.address = str(scheduler.address)
        return self._client

    def check(self) -> None:
        """`KeyboardInterrupt` once this is to stop."""
        if self.stop.is_set():
            raise KeyboardInterrupt

    def kept(self, call: Callable[[], T]) -> T:
        """Return the result of a call over the connection; if the connection is lost, connect again and repeat the
        call."""
        while True:
            self.check()
            try:
                with talking():
                    return call()
            except ConnectionLostError as error:
                self.recover(error)

    def recover(self, error: ConnectionLostError) -> None:
        """Have the cluster connect again; `ExecutionError` if it can't, or if it did so several times in vain."""
        self.fruitless += 1
        self._stop_listening()
        client = self.cluster.connect_again(error) if self.fruitless <= _FRUITLESS else None
        if client is None:
            raise ExecutionError(
                f"the connection to the scheduler at {self.address} was lost; finished units are kept, run the same "
                "command again to go on"
            ) from error
        self._client, self._met = client, frozenset()

    def workers(self) -> dict[str, dict[str, Any]]:
        """All workers that are there now, by address; `ExecutionError` if the cluster has none and will have none."""
        workers = self._identities()
        return self._identities() if self.cluster.tend(len(workers)) else workers

    def _identities(self) -> dict[str, dict[str, Any]]:
        scheduler: Any = self.client.scheduler
        if scheduler is None:
            raise ConnectionLostError("it was closed")
        # not `Client.scheduler_info`, which says what was known last if there is no answer
        return dict(self.client.sync(scheduler.identity, n_workers=-1)["workers"])

    def some_workers(self) -> dict[str, dict[str, Any]]:
        """`workers`, once there is at least one."""
        return self.wait_for_worker()

    def wait_for_worker(self, resource: str = "") -> dict[str, dict[str, Any]]:
        """Wait until there is a worker (that declares a resource); all workers that are there then.

        A cluster that starts workers on demand needs a task to see the demand. Workers that were there before will come
        back, so for them there is no limit.
        """
        if not _declares(workers := self.workers(), resource):
            kind = f" with a {resource}" if resource else ""
            awaited = self.cluster.awaited() or f"a worker{kind} to join the scheduler at {self.address}"
            logger.warning("waiting for %s", awaited)
            needs = {resource: 1 / UNITS_PER_GPU} if resource else None
            limit = None if resource in self._met else self.cluster.worker_timeout
            deadline = None if limit is None else time.monotonic() + limit
            probe = self.client.submit(int, pure=False, resources=needs)
            try:
                while not _declares(workers := self.workers(), resource):
                    self.check()
                    if deadline is not None and time.monotonic() > deadline:
                        option = f" --resources {resource}=1" if resource else ""
                        raise ExecutionError(
                            f"no worker{kind} joined the scheduler at {self.address} in {limit:g} s; start workers "
                            f"with `dask worker {self.address}{option}`"
                        )
                    with contextlib.suppress(TimeoutError):
                        probe.result(timeout=_LOOK)
            finally:  # a worker that holds what is still wanted, be it this, can't be given back
                probe.release()
        self._met |= {resource}
        return workers

    def slots_of(
        self, workers: Mapping[str, Mapping[str, Any]], needs_gpu: bool
    ) -> tuple[int, dict[str, float] | None]:
        """Units that can run at once on workers, and the resources that a unit asks for."""
        gpus = sum(w["resources"].get(GPU, 0) for w in workers.values())
        if needs_gpu and (gpus or self.cluster.expects_gpu):
            threads = [(w["nthreads"], int(w["resources"].get(GPU, 0) * UNITS_PER_GPU)) for w in workers.values()]
            return sum(min(pair) for pair in threads), {GPU: 1 / UNITS_PER_GPU}
        return sum(w["nthreads"] for w in workers.values()), None

    def submit(
        self, units: Sequence[bytes], keys: Sequence[str], resources: dict[str, float] | None, job: bytes, topic: str
    ) -> list[Future[Finished]]:
        """Send units in one message."""
        import dask

        # voxels that travel with units make it long, which is meant, and of which there is a bounded number
        with _sending, dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            futures: list[Future[Finished]] = self.client.map(
                *(run_sent, list(units)),
                key=list(keys),
                pure=False,
                resources=resources,
                priority=self.priority,
                job=job,
                topic=topic,
            )
        return futures

    def processing(self) -> dict[str, list[str]]:
        """Keys of the tasks that each worker holds, those of other clients included."""
        return {address: [str(key) for key in keys] for address, keys in self.client.processing().items()}

    def news(self) -> News:
        """The events that are heard over the current connection."""
        if self._news is None:
            self._news = News(self.client)
        return self._news

    def restart(self, address: str) -> bool:
        """Kill a worker's process and have its nanny start another; without a nanny, go on without the worker. False if
        that takes too long."""
        scheduler: Any = self.client.scheduler
        try:
            self.client.sync(
                scheduler.restart_workers,
                workers=[address],
                timeout=_RESTART,
                on_error="return",
                wait_for_workers=False,
                stimulus_id=f"cryosam-hung-{time.time()}",
                callback_timeout=2 * _RESTART,
            )
        except TimeoutError:
            return False
        return True

    def _stop_listening(self) -> None:
        news, self._news = self._news, None
        with contextlib.suppress(ConnectionLostError), talking():
            if news is not None and news.client.status == "running":
                news.close()

    def close(self) -> None:
        """Stop listening, and close the cluster."""
        self._closed = True
        self._stop_listening()
        self.cluster.close()


def _declares(workers: Mapping[str, Mapping[str, Any]], resource: str) -> bool:
    """Whether there is a worker (that declares a resource)."""
    return any(not resource or worker["resources"].get(resource) for worker in workers.values())
