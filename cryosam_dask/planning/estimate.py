"""About how long units take on N workers, by a formula: workers, driver, storage, or too few units limit them.

Units that read or write at the same time share the storage's bandwidth evenly, each up to what one worker can move. The
driver hands units out and takes their results back; both together take it `driver_seconds` for each unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cryosam_dask.stages.cost import Cost

Limit = Literal["workers", "driver", "storage", "order"]
LIMITS: tuple[Limit, ...] = ("workers", "driver", "storage", "order")
"""What keeps a job from being faster: too few workers, the driver, the storage, or too few units that may run at once
(the longest chain of tasks that wait for each other)."""


@dataclass(frozen=True)
class Cluster:
    """What a job runs on.

    workers : units that run at once; driver_seconds : of the driver for each unit
    bandwidth : bytes per second of the storage, shared; worker_bandwidth : the most of it that one worker gets
    window : units in flight for each worker
    """

    workers: int
    driver_seconds: float = 0.0
    bandwidth: float = math.inf
    worker_bandwidth: float = math.inf
    window: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.window < 1:
            raise ValueError(f"a cluster needs a worker and a window of one unit or more, got {self}")
        if self.driver_seconds < 0 or self.bandwidth <= 0 or self.worker_bandwidth <= 0:
            raise ValueError(f"seconds can't be negative, and bandwidths must be above 0, got {self}")


@dataclass(frozen=True)
class Bulk:
    """Units of a stage that are independent of each other, after all before them and before all that follow.

    count : how many; work : of one, on average; longest : seconds of computing of the largest
    driver : seconds of the driver besides what each unit takes it
    """

    stage: str
    count: int
    work: Cost
    longest: float = 0.0
    driver: float = 0.0


def estimate(bulk: Bulk, cluster: Cluster) -> tuple[float, Limit]:
    """The seconds of one bulk, and what limits them."""
    moved = bulk.work.read + bulk.work.write
    alone = bulk.work.seconds + moved / min(cluster.bandwidth, cluster.worker_bandwidth)
    own = cluster.driver_seconds
    seconds: dict[Limit, float] = {
        "order": max(alone, bulk.longest) + own,
        "workers": -(-bulk.count // cluster.workers) * alone + own if bulk.count > cluster.workers else 0.0,
        "driver": bulk.count * own,
        "storage": bulk.count * moved / cluster.bandwidth + own,
    }
    if not bulk.count:
        return bulk.driver, "driver"
    most = max(LIMITS, key=lambda name: seconds[name])
    return seconds[most] + bulk.driver, most if bulk.driver <= seconds[most] else "driver"
