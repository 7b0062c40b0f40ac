"""Units as futures on a Dask cluster: local, SLURM, Kubernetes, whatever a `distributed.Client` reaches."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cryosam_dask.errors import CryosamError, ExecutionError
from cryosam_dask.executors.base import Failed, Finished, Report
from cryosam_dask.executors.connection import (
    CONNECT_TIMEOUT,
    ConnectionLostError,
    News,
    connect,
    connect_again,
    disconnect,
    quiet_dask,
    talking,
)
from cryosam_dask.executors.flight import UNITS_PER_SLOT, Flight
from cryosam_dask.executors.lazy import check_held, is_lazy, portions
from cryosam_dask.executors.memory import USABLE, process_memory
from cryosam_dask.executors.serial import device_name
from cryosam_dask.executors.worker_calls import device_here, precision_here, run_sent, unlike, work_here
from cryosam_dask.stages.base import Context, Stage, Unit

if TYPE_CHECKING:
    from distributed import Client, Future, Security

__all__ = [
    "CONNECT_TIMEOUT",
    "GPU",
    "RECONNECT",
    "UNITS_PER_GPU",
    "UNITS_PER_SLOT",
    "UNIT_TIMEOUT",
    "WORKER_TIMEOUT",
    "DaskExecutor",
    "connect",
    "quiet_dask",
    "usable_share",
]

logger = logging.getLogger(__name__)

WORKER_TIMEOUT = 300.0
"""Seconds to wait for the first worker: queues of clusters take their time."""

UNIT_TIMEOUT = 3600.0
"""Seconds that a unit may take before its worker is taken to hang."""

RECONNECT = 120.0
"""Seconds to look for a scheduler that was lost: time to be started again by who watches over it."""

GPU = "GPU"
UNITS_PER_GPU = 4
"""Units that a GPU's worker runs at once if it has as many threads: one computes, the others read, resize or write."""

_FRUITLESS = 3
"""Connections lost in a row without a unit landing, after which it is no use to look for another one."""

_LOOK = 1.0
"""Seconds after which somebody who waits for a worker looks whether one can still come."""

_ANSWER = 60.0
"""Seconds that workers have to answer a question, their imports included."""

_RESTART = 30.0

T = TypeVar("T")


class DaskExecutor:
    """Runs units on the workers of a scheduler.

    Where workers declare a GPU (`dask worker --resources GPU=1`) and the device is one, units that use a model go to
    them, up to `UNITS_PER_GPU` at once if the worker has as many threads; the models themselves take turns on it.
    Workers may come and go; a lost worker's units run again on another. So do those of a worker that hangs, which is
    restarted. A connection that was made here is made again when it is lost.

    Parameters
    ----------
    client : a connected `distributed.Client`, left open by `close`, or a scheduler's address
    device : auto, cpu, cuda or cuda:N, on the workers
    uses_torch : whether the run's models can use a GPU at all
    timeout : seconds for a scheduler at an address to answer; security : certificates for it
    unit_timeout : seconds that one unit may take before its worker is taken to hang; None: for ever
    reconnect : seconds to look for a scheduler at an address that was lost
    worker_timeout : seconds to wait for the first worker; None: for ever
    expects_gpu : whether workers that declare a GPU are to come; models then wait for one, rather than use a CPU

    Raises
    ------
    ExecutionError : the scheduler can't be reached
    """

    name = "dask"

    # what a subclass that makes its own connection may leave as it is
    fruitless = 0
    _requested = "auto"
    _uses_torch = True
    _security: Security | None = None
    _unit_timeout: float | None = UNIT_TIMEOUT
    _worker_timeout: float | None = WORKER_TIMEOUT
    _reconnect = RECONNECT
    _expects_gpu = False
    _given: str | None = None
    _device: str | None = None
    _client: Client | None = None
    _news: News | None = None
    _met: frozenset[str] = frozenset()
    _asked: frozenset[tuple[str, str]] = frozenset()

    def __init__(
        self,
        client: Client | str,
        device: str = "auto",
        *,
        uses_torch: bool = True,
        timeout: float = CONNECT_TIMEOUT,
        security: Security | None = None,
        unit_timeout: float | None = UNIT_TIMEOUT,
        reconnect: float = RECONNECT,
        worker_timeout: float | None = WORKER_TIMEOUT,
        expects_gpu: bool = False,
    ) -> None:
        self._requested = device
        self._uses_torch = uses_torch
        self._security = security
        self._unit_timeout = unit_timeout
        self._reconnect = reconnect
        self._worker_timeout = worker_timeout
        self._expects_gpu = expects_gpu
        self._opened = contextlib.ExitStack()
        if isinstance(client, str):
            with contextlib.ExitStack() as opening:
                opening.enter_context(quiet_dask())
                self._client = connect(client, timeout, security)
                self._given = client
                self._opened = opening.pop_all()
        elif client.asynchronous:
            raise ExecutionError("the client is asynchronous; give one made with asynchronous=False")
        else:
            self._client = client

    @property
    def client(self) -> Client:
        """The connection that units are sent over."""
        if self._client is None:
            raise ExecutionError("this executor is closed; make a new one")
        return self._client

    @property
    def device(self) -> str:
        """What models run on, found by asking the workers; waits for the first one.

        `DeviceError` if a GPU was asked for and a worker that would run models has none.
        """
        if self._device is None:
            self._device = self._kept(self._agree_on_device)
        return self._device

    @property
    def worker_memory(self) -> int | None:
        """The smallest share of a thread in its worker's limit; None if no worker has a limit."""
        workers = self._kept(self._some_workers).values()
        limits = [(w["memory_limit"], w["nthreads"]) for w in workers if w["memory_limit"]]
        return min((usable_share(limit, threads, self._uses_torch) for limit, threads in limits), default=None)

    @property
    def units_per_worker(self) -> int:
        """The fewest threads of a worker: as many units share one model in its memory."""
        return min((w["nthreads"] for w in self._kept(self._some_workers).values()), default=1)

    @property
    def slots(self) -> int:
        """Units of a model's stage that can run at once on the workers that are there now."""
        on_gpu = self.device.startswith("cuda")
        return max(1, self.slots_of(self._kept(self._some_workers), on_gpu)[0])

    @property
    def precision(self) -> str:
        """The type that models run in best, found by asking the workers; float32 where they differ."""
        device = self.device
        found = set(self._kept(lambda: self._ask(self._of_models(), precision_here, device)))
        return found.pop() if len(found) == 1 else "float32"

    def describe(self) -> str:
        count = len(self._kept(self.workers))
        workers = f"{count} worker" + ("" if count == 1 else "s")
        return f"{workers} at {self._address()}, {device_name(self._device or self._requested)}"

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        # When a worker dies, Dask counts that against every unit that was queued on it. Units that were there too
        # often get another chance alone: then it is certain whose fault it is.
        from distributed import KilledWorker

        suspects: list[Unit] = []

        def set_suspects_aside(unit: Unit, outcome: Finished | Failed) -> None:
            if isinstance(outcome, Failed) and isinstance(outcome.error, KilledWorker):
                suspects.append(unit)
                report(unit, Failed(ConnectionError("its worker was lost"), outcome.worker, again=True))
            else:
                report(unit, outcome)

        def explain(unit: Unit, outcome: Finished | Failed) -> None:
            if isinstance(outcome, Failed) and isinstance(outcome.error, KilledWorker):
                error = _killed(stage, unit, outcome.error.allowed_failures + 1)
                report(unit, Failed(error, outcome.worker))
            else:
                report(unit, outcome)

        self._kept(lambda: self._check_work(stage))
        for portion in portions(units, self._room()) if is_lazy(stage) else [units]:
            Flight(self, stage, context, set_suspects_aside, self._unit_timeout).run(portion)
        for unit in suspects:
            Flight(self, stage, context, explain, self._unit_timeout).run([unit])

    def _room(self) -> int | None:
        """Bytes that units may take on all workers together, None if there is no limit."""
        share = self.worker_memory
        return None if share is None else share * sum(w["nthreads"] for w in self._kept(self._some_workers).values())

    def submit(
        self, units: Sequence[bytes], keys: Sequence[str], resources: dict[str, float] | None, job: bytes, topic: str
    ) -> list[Future[Finished]]:
        """Send units in one message."""
        import dask

        # voxels that travel with units make it long, which is meant, and of which there is a bounded number
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            futures: list[Future[Finished]] = self.client.map(
                run_sent, list(units), key=list(keys), pure=False, resources=resources, job=job, topic=topic
            )
        return futures

    def compute(self, values: Sequence[Any]) -> list[Any]:
        """See `Executor.compute`."""
        check_held(list(values), self.client)
        self._kept(self._some_workers)
        return list(self._kept(lambda: self.client.gather(self.client.compute(list(values)))))

    def slots_of(
        self, workers: Mapping[str, Mapping[str, Any]], needs_gpu: bool
    ) -> tuple[int, dict[str, float] | None]:
        """Units that can run at once on workers, and the resources that a unit asks for."""
        gpus = sum(w["resources"].get(GPU, 0) for w in workers.values())
        if needs_gpu and (gpus or self._expects_gpu):
            threads = [(w["nthreads"], int(w["resources"].get(GPU, 0) * UNITS_PER_GPU)) for w in workers.values()]
            return sum(min(pair) for pair in threads), {GPU: 1 / UNITS_PER_GPU}
        return sum(w["nthreads"] for w in workers.values()), None

    def workers(self) -> dict[str, dict[str, Any]]:
        """All workers that are there now, by address; to be called within `talking`."""
        scheduler: Any = self.client.scheduler
        if scheduler is None:
            raise ConnectionLostError("it was closed")
        # not `Client.scheduler_info`, which says what was known last if there is no answer
        return dict(self.client.sync(scheduler.identity, n_workers=-1)["workers"])

    def processing(self) -> dict[str, list[str]]:
        """Keys of the tasks that each worker holds, whoever's they are; to be called within `talking`."""
        return {address: [str(key) for key in keys] for address, keys in self.client.processing().items()}

    def news(self) -> News:
        """What is heard over the connection that there is now."""
        if self._news is None or self._news.client is not self.client:
            self._news = News(self.client)
        return self._news

    def restart(self, address: str) -> bool:
        """End a worker's process by force, and have its nanny start another; without a nanny, do without it."""
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

    def recover(self, error: ConnectionLostError) -> None:
        """Connect again to the address that was given; `ExecutionError` if it was none, or there is no answer."""
        self.fruitless += 1
        if self._given is None or self._client is None or self.fruitless > _FRUITLESS or not self._reconnect:
            raise self._lost() from error
        logger.warning(
            "the connection to the scheduler at %s was lost (%s); looking for it for %g s",
            self._given,
            error,
            self._reconnect,
        )
        address, gone = self._given, self._client
        self._hang_up()
        try:
            self._client = connect_again(address, self._reconnect, self._security)
        except ExecutionError:
            self._client, self._given = gone, None  # from now on it is lost, whatever is asked
            raise self._lost(address) from error
        self._met = frozenset()
        logger.warning("connected to the scheduler at %s again; going on with what had not landed", self._given)

    def _kept(self, call: Callable[[], T]) -> T:
        """What a call over the connection gives, if need be over another connection."""
        while True:
            try:
                with talking():
                    return call()
            except ConnectionLostError as error:
                self.recover(error)

    def _some_workers(self) -> dict[str, dict[str, Any]]:
        self._wait_for_worker()
        return self.workers()

    def _address(self) -> str:
        scheduler = self.client.scheduler
        return str(scheduler.address) if scheduler is not None else "a closed connection"

    def _lost(self, address: str = "") -> ExecutionError:
        return ExecutionError(
            f"the connection to the scheduler at {address or self._address()} was lost; finished units are kept, run "
            "the same command again to go on"
        )

    def _wait_for_worker(self, resource: str = "") -> None:
        """Wait until there is a worker (that declares a resource). A cluster that starts workers on demand needs a task
        to see the demand. Workers that were there before will come back, so for them there is no limit."""
        if not self._is_there(resource):
            logger.warning("waiting for %s", self._awaited(resource))
            needs = {resource: 1 / UNITS_PER_GPU} if resource else None
            limit = None if resource in self._met else self._worker_timeout
            deadline = None if limit is None else time.monotonic() + limit
            probe = self.client.submit(int, pure=False, resources=needs)
            try:
                while not self._is_there(resource):
                    if deadline is not None and time.monotonic() > deadline:
                        option = f" --resources {resource}=1" if resource else ""
                        raise ExecutionError(
                            f"no worker{_with(resource)} joined the scheduler at {self._address()} in {limit:g} s; "
                            f"start workers with `dask worker {self._address()}{option}`"
                        )
                    with contextlib.suppress(TimeoutError):
                        probe.result(timeout=_LOOK)
            finally:  # a worker that holds what is still wanted, be it this, can't be given back
                probe.release()
        self._met |= {resource}

    def _is_there(self, resource: str) -> bool:
        return any(not resource or w["resources"].get(resource) for w in self.workers().values())

    def _awaited(self, resource: str) -> str:
        """What is waited for, in words."""
        return f"a worker{_with(resource)} to join the scheduler at {self._address()}"

    def _agree_on_device(self) -> str:
        found: set[str] = set()
        while not found:  # a worker may leave before it answers
            found = set(self._ask(self._of_models(), device_here, self._requested, self._uses_torch))
        if len(found) > 1:
            logger.warning("not all workers have a GPU and none declares one: models run on the CPU")
        return found.pop() if len(found) == 1 else "cpu"

    def _of_models(self) -> list[str]:
        """Addresses of the workers that would run models."""
        if self._expects_gpu and self._uses_torch and self._requested != "cpu":
            self._wait_for_worker(GPU)
        workers = self._some_workers()
        declared = [address for address, w in workers.items() if w["resources"].get(GPU)]
        return declared if declared and self._requested != "cpu" else list(workers)

    def _check_work(self, stage: Stage) -> None:
        """See that workers can load a stage's work function; each is asked once for a module."""
        module = stage.work.__module__
        fresh = [address for address in self._some_workers() if (address, module) not in self._asked]
        self._ask(fresh, work_here, stage.work)
        self._asked |= {(address, module) for address in fresh}

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

    def _hang_up(self) -> None:
        """Leave the connection: close it if it was made here from an address, or else stop listening to it."""
        news, self._news = self._news, None
        client, self._client = self._client, None
        with contextlib.suppress(ConnectionLostError), talking():
            if news is not None and news.client.status == "running":
                news.close()
        if client is not None and self._given is not None:
            disconnect(client)

    def close(self) -> None:
        """Close the connection if it was made here."""
        self._hang_up()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def usable_share(memory_limit: int, threads: int, uses_torch: bool = True) -> int:
    """Bytes that one unit may use in a worker of this limit that runs `threads` units at once."""
    return max(0, int(memory_limit * USABLE) - process_memory(uses_torch)) // max(1, threads)


def _with(resource: str) -> str:
    return f" with a {resource}" if resource else ""


def _killed(stage: Stage, unit: Unit, times: int) -> ExecutionError:
    return ExecutionError(
        f"{stage.name}: the worker that ran {unit.name} was killed in each of {times} attempts; most likely it ran out "
        f"of memory: {stage.advice}"
    )
