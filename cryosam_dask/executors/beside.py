"""A second connection to a cluster that runs already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.cluster import Capacity, Cluster
from cryosam_dask.executors.connection import connect, disconnect

if TYPE_CHECKING:
    from distributed import Client


def beside(cluster: Cluster) -> Cluster:
    """The same workers over a connection of its own, for another thread. Close it before the cluster."""
    return cluster.again() or Beside(cluster)


class Beside(Cluster):
    """The scheduler and the workers of another cluster, which is left as it is by `close`.

    Raises
    ------
    ExecutionError : the other cluster's connection is closed
    """

    def __init__(self, cluster: Cluster) -> None:
        self.device, self.expects_gpu = cluster.device, cluster.expects_gpu
        self.worker_timeout = cluster.worker_timeout
        self._cluster = cluster
        self._client: Client | None = None
        first = cluster.connect()
        if first.scheduler is None:
            raise ExecutionError("the connection to the scheduler was closed")
        self._address, self._security = str(first.scheduler.address), first.security

    def connect(self) -> Client:
        if self._client is None:
            self._client = connect(self._address, security=self._security)
        return self._client

    def tend(self, present: int) -> bool:
        return self._cluster.tend(present)

    def capacity(self, on_gpu: bool, uses_torch: bool) -> Capacity | None:
        return self._cluster.capacity(on_gpu, uses_torch)

    def describe(self) -> str:
        return self._cluster.describe()

    def awaited(self) -> str:
        return self._cluster.awaited()

    def close(self) -> None:
        """Close this connection."""
        if self._client is not None:
            disconnect(self._client)
