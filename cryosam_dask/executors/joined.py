"""Clusters that run already: the user's client, or a scheduler at an address."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.cluster import WORKER_TIMEOUT, Cluster
from cryosam_dask.executors.connection import CONNECT_TIMEOUT, connect, disconnect, quiet_dask

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

RECONNECT = 120.0
"""Seconds to look for a scheduler that was lost: enough for whatever supervises it to start it again."""

_LONGEST_PAUSE = 15.0

JOB_KINDS_KEY = ("cryosam", "kinds")
"""The key in a scheduler's metadata that has the kinds of jobs that hold its workers."""


class UserClient(Cluster):
    """A connected `distributed.Client`, which is left open.

    expects_gpu, worker_timeout : see `Cluster`
    """

    def __init__(
        self, client: Client, *, expects_gpu: bool = False, worker_timeout: float | None = WORKER_TIMEOUT
    ) -> None:
        if client.asynchronous:
            raise ExecutionError("the client is asynchronous; give one made with asynchronous=False")
        self.device, self.expects_gpu, self.worker_timeout = None, expects_gpu, worker_timeout
        self._client = client

    def connect(self) -> Client:
        return self._client

    def close(self) -> None:
        """Do nothing: the client is the user's."""


class JoinedScheduler(Cluster):
    """A scheduler at an address. If it serves a cluster's file, its metadata say which jobs are to come.

    Parameters
    ----------
    security : certificates for it
    timeout : seconds for it to answer; reconnect : seconds to look for it when it was lost

    Raises
    ------
    ExecutionError : it can't be reached
    """

    def __init__(
        self,
        address: str,
        *,
        security: Security | None = None,
        timeout: float = CONNECT_TIMEOUT,
        reconnect: float = RECONNECT,
    ) -> None:
        self.device = None
        self.reconnect = self._patience = reconnect
        self._address, self._security = address, security
        with contextlib.ExitStack() as opening:
            opening.enter_context(quiet_dask())
            self._client = connect(address, timeout, security)
            opening.callback(lambda: disconnect(self._client))
            kinds = self._client.get_metadata(list(JOB_KINDS_KEY), default=[])
            self._opened = opening.pop_all()
        self.expects_gpu = "gpu" in kinds
        self.worker_timeout = None if kinds else WORKER_TIMEOUT  # queues take their time

    def connect(self) -> Client:
        return self._client

    def connect_again(self, why: Exception) -> Client | None:
        """Look for the scheduler for `reconnect` seconds; where that fails it is lost for good."""
        patience, self.reconnect = self.reconnect, 0.0
        if not patience:
            return None
        logger.warning(
            "the connection to the scheduler at %s was lost (%s); looking for it for %g s", self._address, why, patience
        )
        disconnect(self._client)
        client = self._search(patience)
        if client is not None:
            self._client, self.reconnect = client, patience
            logger.warning("connected to the scheduler at %s again; going on with what had not landed", self._address)
        return client

    def again(self) -> JoinedScheduler:
        return JoinedScheduler(self._address, security=self._security, reconnect=self._patience)

    def _search(self, patience: float) -> Client | None:
        """Try to connect for so long, with longer and longer pauses."""
        deadline, pause = time.monotonic() + patience, 0.25
        while True:
            left = deadline - time.monotonic()
            with contextlib.suppress(ExecutionError):
                return connect(self._address, max(1.0, min(CONNECT_TIMEOUT, left)), self._security)
            if left <= pause:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Close the connection."""
        self._opened.close()
