"""Many runs on the same workers: how many of them at once keep the workers busy, and how long all take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cryosam_dask.planning.estimate import LIMITS, Bulk, Cluster, Limit, estimate

MOST = 32
"""Runs at once, at most: each has a thread and a connection of its own in the driver."""

SPARE = 2.0
"""Runs at once over those whose units fill the workers on average, since now and then several have few of them. By the
simulation 64 workers are busy for 91 to 96 % of the time so, and for 78 to 83 % with 1."""


_ALMOST = 1.05


@dataclass(frozen=True)
class ManyRuns:
    """The time of many equal runs on some workers.

    runs : how many; at_once : of them; seconds : of all; in_turn : if they went one after the other
    busy : share of the time that workers are; limit : what keeps it from being faster
    """

    workers: int
    runs: int
    at_once: int
    seconds: float
    in_turn: float
    busy: float
    limit: Limit


def at_once(bulks: Sequence[Bulk], cluster: Cluster) -> int:
    """Runs of these units that keep the workers busy together: no more than `few`, or than `MOST`."""
    alone, work = _alone(bulks, cluster), _limits(bulks, cluster)["workers"]
    if not work:
        return 1
    return min(few(cluster.workers), MOST, math.ceil(SPARE * alone / work))


def few(workers: int) -> int:
    """One run for each worker is enough, whatever it is, and one more, for which the driver does its own steps."""
    return workers + 1


def estimate_many(bulks: Sequence[Bulk], cluster: Cluster, runs: int, together: int | None = None) -> ManyRuns:
    """The time of so many runs of these units, `together` at once (None: as many as fill the workers).

    The first takes as long as it does alone, and each further one what it takes of that which limits all of them: of
    the workers, the driver or the storage, or its part of a run's own time where too few go on at once.
    """
    count = min(runs, at_once(bulks, cluster) if together is None else together)
    alone, each = _alone(bulks, cluster), _limits(bulks, cluster)
    each["order"] = alone / count
    seconds = alone + (runs - 1) * max(each.values())
    if each["order"] < _ALMOST * max(each[name] for name in each if name != "order"):
        del each["order"]  # what a run waits for itself is little beside what it has to share
    most = max((name for name in LIMITS if name in each), key=lambda name: each[name])
    return ManyRuns(
        *(cluster.workers, runs, count, seconds, runs * alone),
        busy=runs * each["workers"] / seconds if seconds else 0.0,
        limit=most,
    )


def _alone(bulks: Sequence[Bulk], cluster: Cluster) -> float:
    """Seconds of one run that has the workers to itself."""
    return sum(estimate(bulk, cluster)[0] for bulk in bulks)


def _limits(bulks: Sequence[Bulk], cluster: Cluster) -> dict[Limit, float]:
    """Seconds that one run takes of the workers, of the driver and of the storage, where others take the rest."""
    rate = min(cluster.bandwidth, cluster.worker_bandwidth)
    moved = [bulk.count * (bulk.work.read + bulk.work.write) for bulk in bulks]
    busy = sum(bulk.count * bulk.work.seconds for bulk in bulks) + sum(moved) / rate
    return {
        "workers": busy / cluster.workers,
        "driver": sum(bulk.count * cluster.driver_seconds + bulk.driver for bulk in bulks),
        "storage": sum(moved) / cluster.bandwidth,
    }
