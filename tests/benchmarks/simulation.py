"""How long a job takes on N workers: a simulation of the driver, the workers and the storage they share.

A job is a list of tasks, each after the tasks it needs, which stand before it in the list. A unit runs on a worker: it
reads, computes, writes, one after the other. The driver is one processor: it hands units out, at most `window` for each
worker in flight, and takes their results, one by one; both together take it `driver_seconds` for each unit. What it
does itself for a run goes on beside that, in a thread of the run, and all that goes on shares the processor evenly.
Units that read or write at the same time share the storage's bandwidth evenly, each up to what one worker can move.

Of several runs, units of the earlier one go first, on the driver and on the workers.

    job = Job()
    tiles = job.stage("features", [Cost(seconds=40, read=3e8, write=2e8)] * 131)
    job.stage("match", [Cost(2.0)] * 64, after=tiles)
    simulate(job.tasks, Cluster(workers=64, driver_seconds=0.002, bandwidth=1e9))
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from cryosam_dask.planning.estimate import LIMITS, Bulk, Cluster, Limit
from cryosam_dask.stages.cost import Cost


class Phase(IntEnum):
    """How far a task is."""

    HANDED = 0
    READ = 1
    COMPUTED = 2
    WRITTEN = 3
    THROUGH = 4


class Task(NamedTuple):
    """A unit of a stage, or with `on_driver` a step that the driver does itself (a barrier, if it takes no time).

    after : the tasks, by their number, that must be through (for units: taken back by the driver) before it
    run : the number of the run that it is of
    """

    stage: str
    work: Cost
    after: tuple[int, ...] = ()
    on_driver: bool = False
    run: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    makespan : seconds from its start to its end
    workers, driver, storage : share of that time that they were at work (of all workers; of the storage's bandwidth)
    ends : when the last task of each stage was through
    """

    makespan: float
    workers: float
    driver: float
    storage: float
    ends: dict[str, float]


@dataclass
class Job:
    """A list of tasks, stage by stage; what is added is of the run `run`."""

    tasks: list[Task] = field(default_factory=list)
    run: int = 0

    def add(self, stage: str, work: Cost, after: Iterable[int] = (), *, on_driver: bool = False) -> int:
        """Add one task; its number."""
        needed = tuple(after)
        if any(not 0 <= index < len(self.tasks) for index in needed):
            raise ValueError(f"{stage}: a task can only come after tasks that were added before it, got {needed}")
        self.tasks.append(Task(stage, work, needed, on_driver, self.run))
        return len(self.tasks) - 1

    def stage(
        self, name: str, units: Iterable[Cost], after: int | Iterable[int] | None = None, seconds: float = 0.0
    ) -> int:
        """Add units that are independent of each other; the number of the barrier behind all of them.

        after : the barrier before them, or tasks; seconds : of the driver, besides what each unit takes it
        """
        before = () if after is None else (after,) if isinstance(after, int) else tuple(after)
        members = [self.add(name, work, before) for work in units]
        return self.add(name, Cost(seconds), members or before, on_driver=True)


def job_of(bulks: Sequence[Bulk], runs: int = 1, at_once: int = 1) -> Job:
    """The tasks of one bulk after the other, of so many equal runs, of which so many go on at once."""
    job, ends = Job(), list[int]()
    for job.run in range(runs):
        barrier = ends[job.run - at_once] if job.run >= at_once else None
        for bulk in bulks:
            barrier = job.stage(bulk.stage, [bulk.work] * bulk.count, barrier, bulk.driver)
        ends += [] if barrier is None else [barrier]
    return job


def simulate(tasks: Sequence[Task], cluster: Cluster) -> Outcome:
    """Play a job through; tasks that may run go in the order of the list."""
    return _Simulation(tasks, cluster).run()


def limits(tasks: Sequence[Task], cluster: Cluster) -> dict[Limit, float]:
    """Seconds that the job takes at least, by each limit alone: the greatest is what limits it.

    workers : all computing and moving shared out evenly; driver, storage : all that goes through them; order : the
    longest chain of tasks that wait for each other
    """
    rate = min(cluster.bandwidth, cluster.worker_bandwidth)
    busy = moved = driver = 0.0
    ends: list[float] = []
    for task in tasks:
        own, served = _alone(task, rate), _driver_seconds(task, cluster)
        ends.append(own + served + max((ends[i] for i in task.after), default=0.0))
        busy += 0.0 if task.on_driver else own
        driver += own if task.on_driver else served
        moved += task.work.read + task.work.write
    return {
        "workers": busy / cluster.workers,
        "driver": driver,
        "storage": moved / cluster.bandwidth,
        "order": max(ends, default=0.0),
    }


def limit(tasks: Sequence[Task], cluster: Cluster) -> Limit:
    """What limits the job, by `limits`; where two are equal, the first of `LIMITS`."""
    found = limits(tasks, cluster)
    return max(LIMITS, key=lambda name: found[name])


def _alone(task: Task, rate: float) -> float:
    """Seconds of a task when it is alone."""
    return task.work.seconds + (task.work.read + task.work.write) / rate


def _driver_seconds(task: Task, cluster: Cluster) -> float:
    return 0.0 if task.on_driver else cluster.driver_seconds


class _Pipe:
    """What flows share evenly, each up to `most`: storage, or the driver's processor. All flows gain position at the
    same rate, so that each ends at a fixed one."""

    def __init__(self, bandwidth: float, most: float) -> None:
        self._bandwidth, self._most = bandwidth, most
        self._flows: list[tuple[float, int, Phase]] = []
        self._position = self._clock = 0.0
        self.moved = 0.0

    def _rate(self) -> float:
        return min(self._most, self._bandwidth / max(1, len(self._flows)))

    def _advance(self, now: float) -> None:
        if self._flows:
            self._position += self._rate() * (now - self._clock)
        self._clock = now

    def begin(self, now: float, size: float, task: int, then: Phase) -> None:
        self._advance(now)
        heapq.heappush(self._flows, (self._position + size, task, then))
        self.moved += size

    @property
    def next_end(self) -> float:
        """When the first flow ends, if none other begins before."""
        if not self._flows:
            return math.inf
        return self._clock + max(0.0, self._flows[0][0] - self._position) / self._rate()

    def end(self, now: float) -> tuple[int, Phase]:
        """Take the first flow out: its task, and what comes then."""
        self._advance(now)
        position, task, then = heapq.heappop(self._flows)
        self._position = max(self._position, position)
        return task, then


class _Simulation:
    """The state of `simulate`: the clock, what each task waits for, the driver, the workers, events yet to come."""

    def __init__(self, tasks: Sequence[Task], cluster: Cluster) -> None:
        self._tasks, self._cluster = tasks, cluster
        self._now = self._busy = 0.0
        self._pipe = _Pipe(cluster.bandwidth, cluster.worker_bandwidth)
        self._driver = _Pipe(1.0, 1.0)
        self._instant = math.isinf(cluster.bandwidth) and math.isinf(cluster.worker_bandwidth)
        self._events: list[tuple[float, int, Phase]] = []
        self._lacks = [len(task.after) for task in tasks]
        self._children: list[list[int]] = [[] for _ in tasks]
        for index, task in enumerate(tasks):
            for needed in task.after:
                self._children[needed].append(index)
        self._ready: list[int] = []
        self._handed: list[tuple[int, int, int]] = []
        self._landed: deque[int] = deque()
        self._idle, self._flying, self._handing, self._count = cluster.workers, 0, False, 0
        self._began = [0.0] * len(tasks)
        self._ends: dict[str, float] = {}
        for index, lacks in enumerate(self._lacks):
            if not lacks:
                self._may_run(index)

    def run(self) -> Outcome:
        while True:
            self._occupy_driver()
            self._occupy_workers()
            ends = [self._events[0][0] if self._events else math.inf, self._driver.next_end, self._pipe.next_end]
            first = min(ends)
            if math.isinf(first):
                break
            self._now = first
            if first == ends[0]:
                _, index, phase = heapq.heappop(self._events)
            else:
                index, phase = (self._driver if first == ends[1] else self._pipe).end(first)
            self._enter(index, phase)
        span = self._now or 1.0
        return Outcome(
            self._now,
            self._busy / span / self._cluster.workers,
            self._driver.moved / span,
            self._pipe.moved / self._cluster.bandwidth / span,
            self._ends,
        )

    def _may_run(self, index: int) -> None:
        """A task waits for no other any more."""
        if self._tasks[index].on_driver:
            self._driver.begin(self._now, self._tasks[index].work.seconds, index, Phase.THROUGH)
        else:
            heapq.heappush(self._ready, index)

    def _occupy_driver(self) -> None:
        """The driver hands units out while there is room, else takes results back."""
        if self._handing:
            return
        if self._ready and self._flying < self._cluster.workers * self._cluster.window:
            index, phase = heapq.heappop(self._ready), Phase.HANDED
            self._flying += 1
        elif self._landed:
            index, phase = self._landed.popleft(), Phase.THROUGH
        else:
            return
        self._handing = True
        self._driver.begin(self._now, self._cluster.driver_seconds / 2, index, phase)

    def _occupy_workers(self) -> None:
        while self._idle and self._handed:
            self._idle -= 1
            _, _, index = heapq.heappop(self._handed)
            self._began[index] = self._now
            self._move(index, self._tasks[index].work.read, Phase.READ)

    def _later(self, seconds: float, index: int, phase: Phase) -> None:
        heapq.heappush(self._events, (self._now + seconds, index, phase))

    def _move(self, index: int, size: float, then: Phase) -> None:
        if self._instant or size <= 0:
            self._later(0.0, index, then)
        else:
            self._pipe.begin(self._now, size, index, then)

    def _enter(self, index: int, phase: Phase) -> None:
        """A task has come to a phase: begin what comes next."""
        task = self._tasks[index]
        if phase is Phase.HANDED:
            self._handing = False
            self._count += 1
            heapq.heappush(self._handed, (task.run, self._count, index))
        elif phase is Phase.READ:
            self._later(task.work.seconds, index, Phase.COMPUTED)
        elif phase is Phase.COMPUTED:
            self._move(index, task.work.write, Phase.WRITTEN)
        elif phase is Phase.WRITTEN:
            self._busy += self._now - self._began[index]
            self._idle += 1
            self._landed.append(index)
        else:
            self._handing = self._handing and task.on_driver
            self._flying -= not task.on_driver
            self._ends[task.stage] = self._now
            for child in self._children[index]:
                self._lacks[child] -= 1
                if not self._lacks[child]:
                    self._may_run(child)
