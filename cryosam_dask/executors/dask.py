"""Units as futures on a Dask cluster: local, SLURM, Kubernetes, whatever a `distributed.Client` reaches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from cryosam_dask.errors import CryosamError, ExecutionError
from cryosam_dask.executors.base import Failed, Finished, Report
from cryosam_dask.executors.beside import beside
from cryosam_dask.executors.cluster import GPU, Capacity, Cluster, usable_share
from cryosam_dask.executors.flight import Flight
from cryosam_dask.executors.lazy import check_held, is_lazy, packed, portions
from cryosam_dask.executors.link import Link
from cryosam_dask.executors.serial import device_name
from cryosam_dask.executors.sharing import Sharing
from cryosam_dask.executors.worker_calls import device_here, graph_here, precision_here, unlike, work_here
from cryosam_dask.stages.base import Context, Stage, Unit

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

UNIT_TIMEOUT = 3600.0
"""Seconds that a unit may take before its worker is taken to hang."""

_ANSWER = 60.0
"""Seconds that workers have to answer a question, their imports included."""


class DaskExecutor:
    """Runs units on the workers of a cluster.

    Where workers declare a GPU (`dask worker --resources GPU=1`) and the device is one, units that use a model go to
    them, up to `UNITS_PER_GPU` at once if the worker has as many threads; the models themselves take turns on it.
    Workers may come and go; a lost worker's units run again on another. So do those of a worker that hangs, which is
    restarted.

    Parameters
    ----------
    cluster : closed by `close`
    device : auto, cpu, cuda or cuda:N, on the workers
    uses_torch : whether the run's models can use a GPU at all
    unit_timeout : seconds that one unit may take before its worker is taken to hang; None: for ever
    sharing, priority, stop : see `Link`
    """

    name = "dask"
    shares = True

    def __init__(
        self,
        cluster: Cluster,
        device: str = "auto",
        *,
        uses_torch: bool = True,
        unit_timeout: float | None = UNIT_TIMEOUT,
        sharing: Sharing | None = None,
        priority: int = 0,
        stop: threading.Event | None = None,
    ) -> None:
        self.cluster = cluster
        self.link = Link(cluster, sharing=sharing, priority=priority, stop=stop)
        self._requested = cluster.device or device
        self._uses_torch = uses_torch
        self._unit_timeout = unit_timeout
        self._device = cluster.device
        self._asked: frozenset[tuple[str, str]] = frozenset()

    @property
    def client(self) -> Client:
        """The connection that units are sent over."""
        return self.link.client

    @property
    def device(self) -> str:
        """The device that models run on. If it is not known, the workers are asked, which waits for the first one.

        `DeviceError` if a GPU was asked for and a worker that would run models has none.
        """
        if self._device is None:
            self._device = self.link.kept(self._agree_on_device)
        return self._device

    @property
    def worker_memory(self) -> int | None:
        """The memory of one thread in its worker's limit, the smallest of all workers; None if no worker has a
        limit."""
        if capacity := self._capacity():
            return capacity.worker_memory
        workers = self.link.kept(self.link.some_workers).values()
        limits = [(w["memory_limit"], w["nthreads"]) for w in workers if w["memory_limit"]]
        return min((usable_share(limit, threads, self._uses_torch) for limit, threads in limits), default=None)

    @property
    def units_per_worker(self) -> int:
        """The fewest threads that any worker has: so many units share one model in its memory."""
        if capacity := self._capacity():
            return capacity.units_per_worker
        return min((w["nthreads"] for w in self.link.kept(self.link.some_workers).values()), default=1)

    @property
    def slots(self) -> int:
        """Units of a model's stage that can run at once on the workers that are there now, or may be asked for."""
        if capacity := self._capacity():
            return capacity.slots
        on_gpu = self.device.startswith("cuda")
        return max(1, self.link.slots_of(self.link.kept(self.link.some_workers), on_gpu)[0])

    @property
    def precision(self) -> str:
        """The type that models run in best, found by asking the workers; float32 where they differ."""
        device = self.device
        answers = set(self.link.kept(lambda: self._ask(self._of_models(), precision_here, device)))
        return answers.pop() if len(answers) == 1 else "float32"

    def describe(self) -> str:
        if words := self.cluster.describe():
            return words
        count = len(self.workers())
        workers = f"{count} worker" + ("" if count == 1 else "s")
        return f"{workers} at {self.link.address}, {device_name(self._device or self._requested)}"

    def workers(self) -> dict[str, dict[str, Any]]:
        """All workers that are there now, by address, as their scheduler describes them."""
        return self.link.kept(self.link.workers)

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        # When a worker dies, Dask counts that against every unit that was queued on it. Units that were there too
        # often get another chance alone: then it is certain whose fault it is.
        from distributed import KilledWorker

        suspects: list[Unit] = []

        def judge(unit: Unit, outcome: Finished | Failed, alone: bool = False) -> None:
            error = outcome.error if isinstance(outcome, Failed) else None
            if not (isinstance(outcome, Failed) and isinstance(error, KilledWorker)):
                report(unit, outcome)
            elif alone:
                report(unit, Failed(_killed(stage, unit, error.allowed_failures + 1), outcome.worker))
            else:
                suspects.append(unit)
                report(unit, Failed(ConnectionError("its worker was lost"), outcome.worker, again=True))

        self.link.kept(lambda: self._check_work(stage))
        if is_lazy(stage) and units:
            self.link.kept(lambda: self._check_graph(stage, units[0]))
        for portion in portions(units, self._room()) if is_lazy(stage) else [units]:
            Flight(self.link, stage, context, judge, self._unit_timeout).run(portion)
        for unit in suspects:
            with self.link.sharing.alone(self.link, self.link.check):
                Flight(self.link, stage, context, partial(judge, alone=True), self._unit_timeout).run([unit])

    def sibling(self, priority: int = 0, stop: threading.Event | None = None) -> DaskExecutor:
        """See `Executor.sibling`. It has a connection of its own, so that no two threads use one."""
        other = DaskExecutor(
            *(beside(self.cluster), self._requested),
            uses_torch=self._uses_torch,
            unit_timeout=self._unit_timeout,
            sharing=self.link.sharing,
            priority=priority,
            stop=stop,
        )
        other._device, other._asked = self._device, self._asked
        return other

    def compute(self, values: Sequence[Any]) -> list[Any]:
        """See `Executor.compute`."""
        check_held(list(values), self.client)
        self.link.kept(self.link.some_workers)
        return list(self.link.kept(lambda: self.client.gather(self.client.compute(list(values)))))

    def _room(self) -> int | None:
        """Bytes that units may take on all workers together, None if there is no limit."""
        share, workers = self.worker_memory, self.link.kept(self.link.some_workers).values()
        return None if share is None else share * sum(w["nthreads"] for w in workers)

    def _capacity(self) -> Capacity | None:
        return self.cluster.capacity(self._requested != "cpu", self._uses_torch)

    def _agree_on_device(self) -> str:
        answers: set[str] = set()
        while not answers:  # a worker may leave before it answers
            answers = set(self._ask(self._of_models(), device_here, self._requested, self._uses_torch))
        if len(answers) > 1:
            logger.warning("not all workers have a GPU and none declares one: models run on the CPU")
        return answers.pop() if len(answers) == 1 else "cpu"

    def _of_models(self) -> list[str]:
        """Addresses of the workers that would run models."""
        if self.cluster.expects_gpu and self._uses_torch and self._requested != "cpu":
            self.link.wait_for_worker(GPU)
        workers = self.link.some_workers()
        declared = [address for address, w in workers.items() if w["resources"].get(GPU)]
        return declared if declared and self._requested != "cpu" else list(workers)

    def _check_work(self, stage: Stage) -> None:
        """See that workers can load a stage's work function; each is asked once for a module."""
        module = stage.work.__module__
        fresh = [address for address in self.link.some_workers() if (address, module) not in self._asked]
        self._ask(fresh, work_here, stage.work)
        self._asked |= {(address, module) for address in fresh}

    def _check_graph(self, stage: Stage, unit: Unit) -> None:
        """See that workers can load what an array is computed with. In Dask's messages what can't be loaded closes the
        connection, so that one worker after the other would be lost."""
        if (pickled := packed(stage, unit)) is not None:
            self._ask(list(self.link.some_workers()), graph_here, *pickled)

    def _ask(self, addresses: Iterable[str], question: Callable[..., str], *args: Any) -> list[str]:
        """Answers of workers to a question; a worker that is gone by now, or hangs, gives none."""
        asked = list(addresses)
        answers: dict[str, Any] = {}
        for group in (asked, *([address] for address in asked if len(asked) > 1)):  # all at once, or else each alone
            try:
                answers |= self.client.run(question, *args, workers=group, on_error="return", callback_timeout=_ANSWER)
            except TimeoutError:
                logger.warning("no answer from %s within %g s", ", ".join(group), _ANSWER)
            if len(answers) == len(asked):
                break
        for address, answer in answers.items():
            if isinstance(answer, CryosamError):
                raise type(answer)(f"worker {address}: {answer}")
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise unlike(f"worker {address}", answer)
        return [answer for answer in answers.values() if isinstance(answer, str)]

    def close(self) -> None:
        """Close the cluster: what was started or connected for it."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _killed(stage: Stage, unit: Unit, times: int) -> ExecutionError:
    return ExecutionError(
        f"{stage.name}: the worker that ran {unit.name} was killed in each of {times} attempts; most likely it ran out "
        f"of memory: {stage.advice}"
    )
