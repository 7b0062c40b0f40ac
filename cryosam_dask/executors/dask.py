"""Units as futures on a Dask cluster: local, SLURM, Kubernetes, whatever a `distributed.Client` reaches."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cryosam_dask.errors import CryosamError, ExecutionError
from cryosam_dask.executors.base import Finished, Report, one_line, run_unit
from cryosam_dask.executors.memory import USABLE, process_memory
from cryosam_dask.executors.serial import device_name
from cryosam_dask.stages.base import Context, Stage, Unit, Work

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
WORKER_TIMEOUT = 300.0
"""Seconds to wait for the first worker: queues of clusters take their time."""

UNITS_PER_SLOT = 3
"""Units in flight for each thread (or GPU): enough that no worker waits for the driver, few enough for a scheduler."""

GPU = "GPU"
UNITS_PER_GPU = 4
"""Units that a GPU's worker runs at once if it has as many threads: one computes, the others read, resize or write."""

_LOOK_AROUND = 2.0
_LINGER = 0.05
"""Seconds that the driver waits for more units to land, at most: handling them together costs it a third."""

_CANCELLED = (concurrent.futures.CancelledError, asyncio.CancelledError)


class DaskExecutor:
    """Runs units on the workers of a scheduler.

    Where workers declare a GPU (`dask worker --resources GPU=1`) and the device is one, units that use a model go to
    them, up to `UNITS_PER_GPU` at once if the worker has as many threads; the models themselves take turns on it.
    Workers may come and go; a lost worker's units run again on another.

    Parameters
    ----------
    client : a connected `distributed.Client`, left open by `close`, or a scheduler's address
    device : auto, cpu, cuda or cuda:N, on the workers
    uses_torch : whether the run's models can use a GPU at all

    Raises
    ------
    ExecutionError : the scheduler can't be reached
    """

    name = "dask"

    def __init__(
        self, client: Client | str, device: str = "auto", *, uses_torch: bool = True, timeout: float = CONNECT_TIMEOUT
    ) -> None:
        self._requested = device
        self._uses_torch = uses_torch
        self._device: str | None = None
        self._opened = contextlib.ExitStack()
        self._client: Client | None = None
        if isinstance(client, str):
            with contextlib.ExitStack() as opening:
                opening.enter_context(quiet_dask())
                self._client = connect(client, timeout)
                opening.callback(self._client.close)
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
            self._device = self._agree_on_device()
        return self._device

    @property
    def worker_memory(self) -> int | None:
        """The smallest share of a thread in its worker's limit; None if no worker has a limit."""
        self._wait_for_worker()
        limits = [(w["memory_limit"], w["nthreads"]) for w in self._workers().values() if w["memory_limit"]]
        return min((usable_share(limit, threads, self._uses_torch) for limit, threads in limits), default=None)

    @property
    def units_per_worker(self) -> int:
        """The fewest threads of a worker: as many units share one model in its memory."""
        self._wait_for_worker()
        return min((w["nthreads"] for w in self._workers().values()), default=1)

    @property
    def slots(self) -> int:
        """Units of a model's stage that can run at once on the workers that are there now."""
        self._wait_for_worker()
        return max(1, self._slots(self.device.startswith("cuda"))[0])

    @property
    def precision(self) -> str:
        """The type that models run in best, found by asking the workers; float32 where they differ."""
        found = set(self._ask(self._of_models(), precision_here, self.device))
        return found.pop() if len(found) == 1 else "float32"

    def describe(self) -> str:
        count = len(self._workers())
        workers = f"{count} worker" + ("" if count == 1 else "s")
        return f"{workers} at {self._address()}, {device_name(self._device or self._requested)}"

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        # When a worker dies, Dask counts that against every unit that was queued on it. Units that were there too
        # often get another chance alone: then it is certain whose fault it is.
        from distributed import KilledWorker

        suspects: list[Unit] = []

        def set_suspects_aside(unit: Unit, outcome: Finished | BaseException) -> None:
            if isinstance(outcome, KilledWorker):
                suspects.append(unit)
            else:
                report(unit, outcome)

        def explain(unit: Unit, outcome: Finished | BaseException) -> None:
            if isinstance(outcome, KilledWorker):
                report(unit, _killed(stage, unit, outcome.allowed_failures + 1))
            else:
                report(unit, outcome)

        self._wait_for_worker()
        self._ask(self._workers(), work_here, stage.work)
        self._stream(stage, context, units, set_suspects_aside)
        for unit in suspects:
            self._stream(stage, context, [unit], explain)

    def _stream(self, stage: Stage, context: Context, units: Iterable[Unit], report: Report) -> None:
        """Keep a bounded number of units in flight until all have landed."""
        from distributed.protocol import pickle

        waiting = iter(units)
        flying: dict[Future[Finished], Unit] = {}
        landed: SimpleQueue[Future[Finished]] = SimpleQueue()  # filled by the connection's own thread
        window, looked, linger = 0, -_LOOK_AROUND, 0.0
        needs_gpu = stage.uses_model and context.device.startswith("cuda")
        job = pickle.dumps((stage.name, stage.work, stage.settings, context))
        try:
            while True:
                if time.monotonic() - looked >= _LOOK_AROUND:
                    slots, resources = self._slots(needs_gpu)
                    window, looked = max(1, slots) * UNITS_PER_SLOT, time.monotonic()
                if starting := list(islice(waiting, max(0, window - len(flying)))):
                    for future, unit in zip(self._submit(stage.name, job, starting, resources), starting, strict=True):
                        flying[future] = unit
                        future.add_done_callback(landed.put)
                if not flying:
                    return
                futures = self._landed(landed, linger)
                outcomes = self._outcomes(futures)
                linger = min(_LINGER, _shortest(outcomes) / UNITS_PER_SLOT)
                for future, outcome in zip(futures, outcomes, strict=True):
                    future.release()
                    report(flying.pop(future), outcome)
        except _CANCELLED as error:
            raise self._lost() from error
        finally:
            if flying:
                with contextlib.suppress(OSError, TimeoutError, *_CANCELLED):
                    self.client.cancel(list(flying))

    def _submit(
        self, stage: str, job: bytes, units: Sequence[Unit], resources: dict[str, float] | None
    ) -> list[Future[Finished]]:
        """Send units in one message. They travel as bytes, which the scheduler need not look into."""
        from distributed.protocol import pickle

        message = uuid.uuid4().hex
        futures: list[Future[Finished]] = self.client.map(
            run_sent,
            [pickle.dumps(unit) for unit in units],
            key=[f"{stage}-{unit.name}-{message}" for unit in units],
            pure=False,
            resources=resources,
            job=job,
        )
        return futures

    def _landed(self, landed: SimpleQueue[Future[Finished]], linger: float) -> list[Future[Finished]]:
        """Futures that are through, in any order; empty if none is after a while."""
        try:
            found = [landed.get(timeout=_LOOK_AROUND)]
        except Empty:
            found = []
        if self.client.status not in ("running", "connecting"):
            raise self._lost()
        if found:
            time.sleep(linger)
        with contextlib.suppress(Empty):
            while True:
                found.append(landed.get_nowait())
        return found

    def _outcomes(self, futures: Sequence[Future[Finished]]) -> list[Finished | BaseException]:
        """What landed futures hold; those that went well are fetched in one message."""
        well = [future for future in futures if future.status == "finished"]
        try:
            fetched = dict(zip(well, self.client.gather(well), strict=True))
        except _CANCELLED:
            raise
        except Exception:  # noqa: BLE001 - which of them it was is found one by one
            fetched = {}
        return [fetched.get(future) or _outcome(future) for future in futures]

    def _slots(self, needs_gpu: bool) -> tuple[int, dict[str, float] | None]:
        """Units that can run at once, and the resources that a unit asks for."""
        workers = self._workers().values()
        gpus = sum(w["resources"].get(GPU, 0) for w in workers)
        if needs_gpu and gpus:
            threads = [(w["nthreads"], int(w["resources"].get(GPU, 0) * UNITS_PER_GPU)) for w in workers]
            return sum(min(pair) for pair in threads), {GPU: 1 / UNITS_PER_GPU}
        return sum(w["nthreads"] for w in workers), None

    def _workers(self) -> dict[str, dict[str, Any]]:
        try:
            return dict(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TimeoutError, *_CANCELLED) as error:
            raise self._lost() from error

    def _address(self) -> str:
        scheduler = self.client.scheduler
        return str(scheduler.address) if scheduler is not None else "a closed connection"

    def _lost(self) -> ExecutionError:
        return ExecutionError(
            f"the connection to the scheduler at {self._address()} was lost; finished units are kept, run the same "
            "command again to go on"
        )

    def _wait_for_worker(self) -> None:
        """Wait until there is a worker. A cluster that starts workers on demand needs a task to see the demand."""
        if self._workers():
            return
        logger.warning("waiting for a worker to join the scheduler at %s", self._address())
        probe = self.client.submit(int, pure=False)
        try:
            probe.result(timeout=WORKER_TIMEOUT)
        except TimeoutError:
            raise ExecutionError(
                f"no worker joined the scheduler at {self._address()} in {WORKER_TIMEOUT:.0f} s; start workers with "
                f"`dask worker {self._address()}`"
            ) from None
        except _CANCELLED as error:
            raise self._lost() from error

    def _agree_on_device(self) -> str:
        addresses = self._of_models()
        found = set(self._ask(addresses, device_here, self._requested, self._uses_torch))
        if len(found) > 1:
            logger.warning("not all workers have a GPU and none declares one: models run on the CPU")
        return found.pop() if len(found) == 1 else "cpu"

    def _of_models(self) -> list[str]:
        """Addresses of the workers that would run models."""
        self._wait_for_worker()
        workers = self._workers()
        declared = [address for address, w in workers.items() if w["resources"].get(GPU)]
        return declared if declared and self._requested != "cpu" else list(workers)

    def _ask(self, addresses: Iterable[str], question: Callable[..., str], *args: Any) -> list[str]:
        """Answers of workers to a question; a worker that is gone by now gives none."""
        answers = self.client.run(question, *args, workers=list(addresses), on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, CryosamError):
                raise type(answer)(f"worker {address}: {answer}")
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise _unlike(f"worker {address}", answer)
        return [answer for answer in answers.values() if isinstance(answer, str)]

    def close(self) -> None:
        """Close the connection if it was made here."""
        self._client = None
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(address: str, timeout: float = CONNECT_TIMEOUT) -> Client:
    """Connect to a scheduler; `ExecutionError` if it does not answer within `timeout` seconds."""
    from distributed import Client

    try:
        return Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ExecutionError(
            f"no Dask scheduler answers at {address} within {timeout:g} s ({one_line(error)}); check the address and "
            "that the scheduler runs, or leave --scheduler out to run on this machine"
        ) from error


@contextlib.contextmanager
def quiet_dask() -> Iterator[None]:
    """Keep Dask's own log off the screen while we own its connection; what matters of it is in our errors."""
    import distributed  # noqa: F401 - sets its loggers up, which must come first

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        if not logger.isEnabledFor(logging.DEBUG):
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def usable_share(memory_limit: int, threads: int, uses_torch: bool = True) -> int:
    """Bytes that one unit may use in a worker of this limit that runs `threads` units at once."""
    return max(0, int(memory_limit * USABLE) - process_memory(uses_torch)) // max(1, threads)


def run_sent(unit: bytes, job: bytes) -> Finished:
    """`run_unit` of what `_submit` sent; runs on workers."""
    from distributed.protocol import pickle

    try:
        stage, work, settings, context = pickle.loads(job)
        sent: Unit = pickle.loads(unit)
    except Exception as error:
        raise _unlike("a worker", error) from error
    return run_unit(stage, work, settings, context, sent)


def device_here(requested: str, uses_torch: bool) -> str:
    """What `requested` means in this process; runs on workers."""
    from cryosam_dask.models.registry import resolve_device

    return resolve_device(requested, uses_torch)


def precision_here(device: str) -> str:
    """The type that models run in best in this process; runs on workers."""
    from cryosam_dask.models.registry import preferred_precision

    return preferred_precision(device)


def work_here(work: Work) -> str:
    """Where a work function was found in this process; runs on workers, which must be able to load it."""
    return work.__module__


def _shortest(outcomes: Sequence[Finished | BaseException]) -> float:
    """Seconds of the quickest unit that finished; 0 if none did."""
    return min((outcome.timing.seconds for outcome in outcomes if isinstance(outcome, Finished)), default=0.0)


def _outcome(future: Future[Finished]) -> Finished | BaseException:
    """What a landed future holds. A result whose worker is gone by now is computed again by Dask."""
    try:
        finished: Finished = future.result()
    except _CANCELLED:
        raise
    except Exception as error:  # noqa: BLE001 - what to do with a failed unit is the caller's to decide
        if str(error).startswith("Error during deserialization"):
            return _unlike("the scheduler or a worker", error.__cause__ or error)
        return error
    return finished


def _unlike(who: str, error: BaseException) -> ExecutionError:
    return ExecutionError(
        f"{who} can't load what the units need ({one_line(error)}); install the same packages, in the same versions, "
        "on scheduler and workers as here"
    )


def _killed(stage: Stage, unit: Unit, times: int) -> ExecutionError:
    return ExecutionError(
        f"{stage.name}: the worker that ran {unit.name} was killed in each of {times} attempts; most likely it ran out "
        f"of memory: {stage.advice}"
    )
