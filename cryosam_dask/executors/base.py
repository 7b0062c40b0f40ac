"""What an executor is, and the one loop around it: memory check, done marks, retries, errors.

execute ── skip what is marked ── check memory ── executor.run ──▶ run_unit on a worker: work, then marks
   ▲                                                  │
   └───────── retry what failed, round by round ◀─────┘ report(unit, outcome)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from cryosam_dask.errors import StoreError
from cryosam_dask.executors.ledger import PATIENCE, Ledger, RoundOverError
from cryosam_dask.executors.memory import PeakMemory, check_memory
from cryosam_dask.executors.outcomes import Failed, Failure, Finished, Observer, Report, Timing, one_line
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.executors.threads import one_blas_thread
from cryosam_dask.stages.base import Context, Stage, Unit, UnitResult, Work
from cryosam_dask.storage.address import absolute
from cryosam_dask.storage.filesystem import expect
from cryosam_dask.store import marks
from cryosam_dask.store.arrays import guarded
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json

__all__ = [
    "PATIENCE",
    "Execution",
    "Executor",
    "Failed",
    "Failure",
    "Finished",
    "Observer",
    "Report",
    "Timing",
    "execute",
    "one_line",
    "process_name",
    "run_unit",
    "unfinished",
    "with_value",
]

logger = logging.getLogger(__name__)

RETRIES = 2
RETRY_PAUSE = 0.5
"""Seconds before the first retry, doubled before each further one: file systems and networks recover."""

_NO_USE_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Executor(Protocol):
    """Runs independent units somewhere.

    Attributes
    ----------
    name : "serial" or "dask"
    shares : whether several runs can go on at once, each on a `sibling`
    device : the torch device that models run on
    worker_memory : bytes that a unit may use on the smallest worker, None if there is no limit to go by
    units_per_worker : units that run at once in one worker's process, at most
    slots : units of a model's stage that can run at once, on all workers that are there now
    precision : the type that models of torch run in best on the workers' device
    """

    name: str
    shares: bool

    @property
    def device(self) -> str: ...

    @property
    def worker_memory(self) -> int | None: ...

    @property
    def units_per_worker(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def precision(self) -> str: ...

    def describe(self) -> str:
        """A description for people, such as "2 local workers, CPU"."""
        ...

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        """Run each unit once through `run_unit` and report each outcome, in any order, on the calling thread.

        A unit's exception is reported, not raised, and the others go on. A run that is lost with its worker is
        reported as `Failed` with `again`, and the unit runs again. What `report` raises ends the run: units that
        have not begun are dropped, and the exception passes through.
        """
        ...

    def compute(self, values: Sequence[Any]) -> list[Any]:
        """Compute the values of small Dask collections where units run."""
        ...

    def sibling(self, priority: int = 0, stop: threading.Event | None = None) -> Executor:
        """Another executor on the same workers, for a run that goes on in another thread; close it before this one.

        priority : units of a higher one begin first
        stop : once it is set, all that the executor waits for ends with a `KeyboardInterrupt`, within seconds
        """
        ...

    def close(self) -> None:
        """Release what the executor itself opened. Closing twice is allowed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True)
class Execution:
    """What `execute` did: results and timings of the units it ran, how many were done before, and runs that failed."""

    results: dict[str, UnitResult]
    timings: tuple[Timing, ...]
    skipped: int
    failures: tuple[Failure, ...] = ()

    @property
    def peak(self) -> int:
        """The most resident bytes that a worker's process had in any unit, its libraries included."""
        return max((timing.peak for timing in self.timings), default=0)


def run_unit(stage: str, work: Work, settings: Json, context: Context, unit: Unit) -> Finished:
    """Run one unit in this process and set its marks when it is done. Every executor runs units through this."""
    worker = process_name()
    logger.debug("%s: %s begins on %s", stage, unit.name, worker)
    start = time.perf_counter()
    with PeakMemory() as watch:
        store = _open(context, worker)
        still_ours = functools.partial(marks.check_same, store, stage, context.fingerprint)
        try:
            with one_blas_thread.held(), guarded(still_ours):
                result = work(context, settings, unit)
            result = UnitResult() if result is None else result
            if result.done:
                still_ours()
                for index in unit.marks:
                    marks.mark(store, stage, index)
        except OSError as error:
            if error.errno not in _NO_USE_GOING_ON:
                raise
            raise StoreError(
                f"{context.url}: {os.strerror(error.errno or 0)} while {stage} ran {unit.name}; mend that and run the "
                "same command again, finished units are kept"
            ) from error
    timing = Timing(unit.name, time.perf_counter() - start, worker, watch.before, watch.peak, watch.together)
    logger.debug("%s: %s ends after %.2f s on %s", stage, unit.name, timing.seconds, worker)
    return Finished(result, timing)


def with_value(stage: Stage, unit: Unit) -> Unit:
    """The unit with its value from the stage's inputs, if the stage has inputs in this process."""
    return unit if stage.inputs is None else replace(unit, value=stage.inputs.of(unit))


def process_name() -> str:
    """The name of this process in timings and failures: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _open(context: Context, worker: str) -> RunStore:
    expect(context.url)  # the driver has used it
    try:
        return RunStore.open(context.url, "r+")
    except StoreError as error:
        raise StoreError(
            f"worker {worker} can't open the store ({error}); it must stand where all workers can write"
        ) from error


def execute(
    stage: Stage,
    store: RunStore,
    executor: Executor,
    progress: Progress | None = None,
    *,
    units: Iterable[Unit] | None = None,
    retries: int = RETRIES,
    observer: Observer | None = None,
) -> Execution:
    """Run the units of a stage that are not marked done; `units` restricts it to some of the stage's units.

    `observer` is told of the end of each run of a unit, whether it succeeded or failed, even if `execute` itself
    raises.

    Raises
    ------
    StoreError : the stage was begun with other settings, or the store can't be written
    MemoryLimitError : the largest unit does not fit in a worker; nothing ran and nothing was written
    ExecutionError : units failed `retries` + 1 times; the others ran, and are not run again next time
    CryosamError : a unit raised it; it is passed on unchanged and the unit is not tried again, since bad input stays
        bad
    """
    wanted = tuple(stage.units if units is None else units)
    if len({unit.name for unit in wanted}) < len(wanted):
        raise ValueError(f"{stage.name}: two units have the same name")
    todo = _begin(stage, store, wanted, executor)
    skipped = len(wanted) - len(todo)
    if not todo:
        return Execution({}, (), skipped)
    device = executor.device if stage.uses_model else "cpu"
    context = Context(absolute(store.url), device, stage.fingerprint)
    sink = NullProgress() if progress is None else progress
    with contextlib.closing(sink.stage(stage.name, len(wanted), skipped, device)) as bar:
        ledger = Ledger(stage.name, todo, bar, executor.describe(), observer)
        for attempt in range(retries + 1):
            if attempt:
                time.sleep(RETRY_PAUSE * 2 ** (attempt - 1))
            with contextlib.suppress(RoundOverError):
                executor.run(stage, context, ledger.next_round(attempt == retries), ledger.report)
            if ledger.settled:
                break
    ledger.raise_failures()
    return Execution(ledger.results, tuple(ledger.timings), skipped, tuple(ledger.failures))


def unfinished(stage: Stage, store: RunStore, units: Iterable[Unit]) -> list[Unit]:
    """The units that lack a mark of this very stage: all, if it has not begun or was begun with other settings."""
    stored = marks.found_stage(store, stage.name)
    if stored is None or stored["fingerprint"] != stage.fingerprint:
        return list(units)
    done = marks.done(store, stage.name)
    return [unit for unit in units if not all(done[index] for index in unit.marks)]


def _begin(stage: Stage, store: RunStore, units: Sequence[Unit], executor: Executor) -> list[Unit]:
    """Compare settings, find the units that are not done, check that they fit, and lay the marks out, in this order."""

    def begin() -> None:
        marks.begin(store, stage.name, fingerprint=stage.fingerprint, settings=stage.settings, count=stage.count)

    todo = list(units)
    fresh = marks.found_stage(store, stage.name) is None
    if not fresh:
        begin()
        todo = unfinished(stage, store, units)
    if todo:
        check_memory(stage, todo, executor.worker_memory, executor.units_per_worker)
    if fresh:
        begin()
    return todo
