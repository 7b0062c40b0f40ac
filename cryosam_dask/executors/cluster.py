"""What a `DaskExecutor` needs of a cluster: a connection to its scheduler, and what is known of its workers.

joined : a client or a scheduler of the user's        local : processes of this machine
cuda : this machine's GPUs by dask-cuda               slurm : jobs of a batch system
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cryosam_dask.executors.memory import USABLE, process_memory

if TYPE_CHECKING:
    from distributed import Client

GPU = "GPU"
UNITS_PER_GPU = 4
"""Units that a GPU's worker runs at once if it has as many threads: one computes, the others read, resize or write."""

WORKER_TIMEOUT = 300.0
"""Seconds to wait for the first worker: queues of clusters take their time."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster offers once all its workers are there; see `base.Executor` for the attributes."""

    worker_memory: int
    units_per_worker: int
    slots: int


class Cluster(Protocol):
    """A scheduler and its workers. Methods with a body are the defaults of clusters that have nothing to add.

    Attributes
    ----------
    device : what models run on, where that is known; None: workers are asked
    expects_gpu : whether workers that declare a GPU are to come; models then wait for one, rather than use a CPU
    worker_timeout : seconds to wait for the first worker; None: for ever
    """

    device: str | None
    expects_gpu: bool
    worker_timeout: float | None

    def connect(self) -> Client:
        """The connection to the scheduler. The cluster is started first if needed; `ExecutionError` if that fails."""
        ...

    def connect_again(self, why: Exception) -> Client | None:
        """A new connection in place of a lost one; None if the cluster can't be reached again."""
        return None

    def tend(self, present: int) -> bool:
        """Replace workers that are gone, where `present` are there. Returns whether any were started; `ExecutionError`
        if none will come."""
        return False

    def capacity(self, on_gpu: bool, uses_torch: bool) -> Capacity | None:
        """What the full cluster offers to models on a GPU or on the CPU; None if only its present workers can tell."""
        return None

    def describe(self) -> str:
        """A description for people; "" if nothing is known beyond what its scheduler says."""
        return ""

    def awaited(self) -> str:
        """What a run without workers waits for, in words; "" if it waits for a worker to join."""
        return ""

    def again(self) -> Cluster | None:
        """The same workers over another connection, which can be made again on its own; None if it can't."""
        return None

    def close(self) -> None:
        """Release what was started or connected here. Closing twice is allowed."""
        ...


def usable_share(memory_limit: int, threads: int, uses_torch: bool = True) -> int:
    """Bytes that one unit may use in a worker of this limit that runs `threads` units at once."""
    return max(0, int(memory_limit * USABLE) - process_memory(uses_torch)) // max(1, threads)
