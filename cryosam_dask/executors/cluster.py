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
    """A scheduler and its workers. Methods with a body have it for clusters that have nothing to add.

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
        """The connection. What is not started yet is started; `ExecutionError` if that fails."""
        ...

    def connect_again(self, why: Exception) -> Client | None:
        """Another connection in the place of one that was lost, None if there can be none."""
        return None

    def tend(self, present: int) -> bool:
        """See to workers that are gone, with so many there; whether any were started. `ExecutionError` if none will
        come."""
        return False

    def capacity(self, on_gpu: bool, uses_torch: bool) -> Capacity | None:
        """What there will be for models on a GPU or not, where that is known whichever workers are there now."""
        return None

    def describe(self) -> str:
        """For people; "" where nothing is known but what its scheduler says."""
        return ""

    def awaited(self) -> str:
        """What a run without workers waits for, in words; "" for a worker that joins."""
        return ""

    def close(self) -> None:
        """Give back what was started or connected here. Closing twice is allowed."""
        ...


def usable_share(memory_limit: int, threads: int, uses_torch: bool = True) -> int:
    """Bytes that one unit may use in a worker of this limit that runs `threads` units at once."""
    return max(0, int(memory_limit * USABLE) - process_memory(uses_torch)) // max(1, threads)
