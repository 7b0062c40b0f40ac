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
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cryosam_dask.errors import CryosamError, ExecutionError
from cryosam_dask.executors.base import Finished, Report, one_line, run_unit
from cryosam_dask.executors.memory import PROCESS_MEMORY, USABLE
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
_LOOK_AROUND = 2.0
_CANCELLED = (concurrent.futures.CancelledError, asyncio.CancelledError)


class DaskExecutor:
    """Runs units on the workers of a scheduler.

    Units that use a model ask for one `GPU` resource each where workers declare it (`dask worker --resources GPU=1`)
    and the device is a GPU. Workers may come and go; a lost worker's units run again on another.

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
        return min((usable_share(limit, threads) for limit, threads in limits), default=None)

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
        waiting = iter(units)
        flying: dict[Future[Finished], Unit] = {}
        window, looked = 0, -_LOOK_AROUND
        needs_gpu = stage.uses_model and context.device.startswith("cuda")
        try:
            while True:
                if time.monotonic() - looked >= _LOOK_AROUND:
                    slots, resources = self._slots(needs_gpu)
                    window, looked = max(1, slots) * UNITS_PER_SLOT, time.monotonic()
                for unit in islice(waiting, max(0, window - len(flying))):
                    flying[self._submit(stage, context, unit, resources)] = unit
                if not flying:
                    return
                for future in self._landed(flying):
                    unit = flying.pop(future)
                    outcome = _outcome(future)
                    future.release()
                    report(unit, outcome)
        except _CANCELLED as error:
            raise self._lost() from error
        finally:
            if flying:
                with contextlib.suppress(OSError, TimeoutError, *_CANCELLED):
                    self.client.cancel(list(flying))

    def _submit(
        self, stage: Stage, context: Context, unit: Unit, resources: dict[str, float] | None
    ) -> Future[Finished]:
        return self.client.submit(
            run_unit,
            stage.name,
            stage.work,
            stage.settings,
            context,
            unit,
            key=f"{stage.name}-{unit.name}-{uuid.uuid4().hex}",
            pure=False,
            resources=resources,
        )

    def _landed(self, flying: dict[Future[Finished], Unit]) -> list[Future[Finished]]:
        """Futures that are through, in any order; empty if none is after a while."""
        from distributed import wait

        try:
            with self.client.as_current():
                done = wait(list(flying), timeout=_LOOK_AROUND, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            done = set()
        if self.client.status not in ("running", "connecting"):
            raise self._lost()
        return list(done)

    def _slots(self, needs_gpu: bool) -> tuple[int, dict[str, float] | None]:
        """Units that can run at once, and the resources that a unit asks for."""
        workers = self._workers().values()
        gpus = sum(w["resources"].get(GPU, 0) for w in workers)
        if needs_gpu and gpus:
            return int(gpus), {GPU: 1}
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
        self._wait_for_worker()
        workers = self._workers()
        declared = [address for address, w in workers.items() if w["resources"].get(GPU)]
        addresses = declared if declared and self._requested != "cpu" else list(workers)
        found = set(self._ask(addresses, device_here, self._requested, self._uses_torch))
        if len(found) > 1:
            logger.warning("not all workers have a GPU and none declares one: models run on the CPU")
        return found.pop() if len(found) == 1 else "cpu"

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


def usable_share(memory_limit: int, threads: int) -> int:
    """Bytes that one unit may use in a worker of this limit that runs `threads` units at once."""
    return max(0, int(memory_limit * USABLE) - PROCESS_MEMORY) // max(1, threads)


def device_here(requested: str, uses_torch: bool) -> str:
    """What `requested` means in this process; runs on workers."""
    from cryosam_dask.models.registry import resolve_device

    return resolve_device(requested, uses_torch)


def work_here(work: Work) -> str:
    """Where a work function was found in this process; runs on workers, which must be able to load it."""
    return work.__module__


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
