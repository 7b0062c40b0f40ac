"""Send the units of one stage over a connection, a bounded number at a time, until all have landed.

                 ┌── top_up: as many as workers can hold
waiting ─▶ flying ─▶ landed ─▶ report
   ▲          │  └── begin, lose their worker (Dask runs them again), hang (the worker is restarted)
   └──────────┘ the connection is lost, and found again
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors import lazy
from cryosam_dask.executors.base import with_value
from cryosam_dask.executors.connection import Began, ConnectionLostError, Left, talking
from cryosam_dask.executors.landing import FETCH, landed_outcomes
from cryosam_dask.executors.outcomes import Failed, Finished, Report
from cryosam_dask.executors.sharing import UNITS_PER_SLOT
from cryosam_dask.executors.watch import Flown, Watch
from cryosam_dask.executors.worker_calls import take
from cryosam_dask.stages.base import Context, Stage, Unit

if TYPE_CHECKING:
    from distributed import Future

    from cryosam_dask.executors.link import Link

logger = logging.getLogger(__name__)

STRIKES = 2
"""Workers that may hang in a unit before the unit is taken to be the reason."""

_LOOK_AROUND = 2.0
_LINGER = 0.05
"""Seconds that the driver waits for more units to land, at most: handling them together costs it a third."""


class Flight:
    """One run of units of a stage.

    Parameters
    ----------
    link : the connection to workers; report : told of each outcome
    timeout : seconds that a unit may take on a worker; None: for ever
    """

    def __init__(self, link: Link, stage: Stage, context: Context, report: Report, timeout: float | None) -> None:
        self._link = link
        self._stage, self._context = stage, context
        self._report = report
        self._timeout = timeout
        self._watch = Watch(timeout)
        self._waiting: deque[Unit] = deque()
        self._flying: dict[Future[Finished], Flown] = {}
        self._by_key: dict[str, Flown] = {}
        self._landed: SimpleQueue[Future[Finished]] = SimpleQueue()  # filled by the connection's own thread
        self._failed: list[tuple[Unit, Failed]] = []
        self._strikes: Counter[str] = Counter()
        self._threads: dict[str, int] = {}
        self._why: dict[str, str] = {}
        self._count = 0
        self._slots, self._looked, self._linger = 1, -_LOOK_AROUND, 0.0
        self._resources: dict[str, float] | None = None
        self._alone = False

    def run(self, units: Iterable[Unit]) -> None:
        """Run units until each has finished or failed.

        `ExecutionError` if the connection is lost for good, `KeyboardInterrupt` once the link is to stop. What
        `report` raises passes through.
        """
        self._waiting.extend(units)
        try:
            while self._waiting or self._flying:
                self._link.check()
                landed: list[tuple[Unit, Finished | Failed]] = []
                try:
                    with talking():
                        self._look_around()
                        self._top_up()
                        landed = self._land()
                        self._end_hung()
                except ConnectionLostError as error:
                    self._start_over()
                    self._link.recover(error)
                failed, self._failed = self._failed, []
                for unit, outcome in (*failed, *landed):
                    self._report(unit, outcome)
        finally:
            self._link.sharing.tell(self._link, 0)
            if self._flying:
                with contextlib.suppress(ConnectionLostError), talking():
                    self._link.client.cancel(list(self._flying))

    def _look_around(self) -> None:
        """See which workers are there now, now and then."""
        if time.monotonic() - self._looked < _LOOK_AROUND:
            return
        needs_gpu = self._stage.uses_model and self._context.device.startswith("cuda")
        workers = self._link.workers()
        self._threads |= {address: int(w["nthreads"]) for address, w in workers.items()}
        slots, self._resources = self._link.slots_of(workers, needs_gpu)
        self._slots, self._looked = max(1, slots), time.monotonic()
        if self._alone != (not slots):
            self._alone = not slots
            left = len(self._waiting) + len(self._flying)
            word = "no worker is left that could run them; waiting for new ones" if self._alone else "workers are back"
            logger.warning("%s: %d units to go, %s", self._stage.name, left, word)

    def _top_up(self) -> None:
        """Send as many units as there is room for, in one message. They travel as bytes, which nobody need look into
        on the way."""
        from distributed.protocol import pickle

        # one graph for all, where what several units need is to be computed once
        whole, window = lazy.is_lazy(self._stage), self._link.sharing.window(self._link, self._slots)
        count = len(self._waiting) if whole and window else min(len(self._waiting), window - len(self._flying))
        if count <= 0:
            self._link.sharing.tell(self._link, len(self._flying))
            return
        news = self._link.news()
        job = pickle.dumps((self._stage.name, self._stage.work, self._stage.settings, self._context))
        units = [self._waiting[i] for i in range(count)]
        message = uuid.uuid4().hex
        keys = [f"{self._stage.name}-{unit.name}-{message}" for unit in units]
        if whole:
            tasks = {
                key: (unit, functools.partial(take, unit=pickle.dumps(unit), job=job, topic=news.topic))
                for key, unit in zip(keys, units, strict=True)
            }
            futures = lazy.submit(self._link.client, self._stage, tasks, self._link.priority)
        else:
            sent = [pickle.dumps(with_value(self._stage, unit)) for unit in units]
            futures = self._link.submit(sent, keys, self._resources, job, news.topic)
        for future, unit, key in zip(futures, units, keys, strict=True):
            self._waiting.popleft()
            self._flying[future] = self._by_key[key] = Flown(unit, key, self._count)
            self._count += 1
            future.add_done_callback(self._landed.put)
        self._link.sharing.tell(self._link, len(self._flying))

    def _land(self) -> list[tuple[Unit, Finished | Failed]]:
        """Units that have finished or failed, in any order; an empty list if none has after a while."""
        futures = self._through()
        outcomes = landed_outcomes(self._link.client, futures)
        for future in futures:
            if future not in outcomes:
                future.add_done_callback(self._landed.put)
        self._hear()
        quickest = min((o.timing.seconds for o in outcomes.values() if isinstance(o, Finished)), default=0.0)
        self._linger = min(_LINGER, quickest / UNITS_PER_SLOT)
        landed: list[tuple[Unit, Finished | Failed]] = []
        for future, outcome in outcomes.items():
            future.release()
            task = self._drop(future)
            if isinstance(outcome, Finished):
                self._tell_loss(task)
                landed.append((task.unit, outcome))
            else:
                landed.append((task.unit, self._failure(task, outcome)))
        if landed:
            self._link.fruitless = 0
        return landed

    def _through(self) -> list[Future[Finished]]:
        futures = []
        with contextlib.suppress(Empty):
            futures.append(self._landed.get(timeout=min(_LOOK_AROUND, self._watch.interval or _LOOK_AROUND)))
        if self._link.client.status not in ("running", "connecting"):
            raise ConnectionLostError("it was closed")
        if futures:
            time.sleep(self._linger)
        with contextlib.suppress(Empty):
            while True:
                futures.append(self._landed.get_nowait())
        return [future for future in dict.fromkeys(futures) if future in self._flying]

    def _failure(self, task: Flown, error: BaseException) -> Failed:
        """A unit's exception, or the end of its last worker, with where that was."""
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            worker = task.lost.worker if task.lost else task.process
            return Failed(error, worker or str(error.last_worker.address))
        self._tell_loss(task)
        return Failed(error, task.process)

    def _hear(self) -> None:
        """Record which units have begun, and which were lost with their worker."""
        for event in self._link.news().take():
            if isinstance(event, Left):
                self._left(event)
            elif (task := self._by_key.get(event.key)) is not None:
                self._began(task, event)

    def _began(self, one: Flown, event: Began) -> None:
        if one.process and one.lost is None:
            one.lost = Failed(ConnectionError("its worker was lost"), one.process, again=True)
        self._tell_loss(one)
        one.worker, one.process, one.began = event.worker, event.process, event.at
        logger.debug("%s: %s begins on %s", self._stage.name, one.unit.name, one.process)

    def _left(self, event: Left) -> None:
        """A worker has left. What had begun on it, or else must have been about to, was lost with it. One that also
        held tasks of others may have been at those."""
        held = sorted((self._by_key[key] for key in event.keys if key in self._by_key), key=lambda task: task.order)
        begun = [task for task in held if task.worker == event.worker]
        next_ones = held[: self._threads.get(event.worker, 1)] if len(held) == len(event.keys) else []
        why = self._why.pop(event.worker, "its worker was lost")
        for task in begun or next_ones:
            self._tell_loss(task)
            worker = task.process or event.worker
            logger.info("%s: %s was running on %s when that was lost", self._stage.name, task.unit.name, worker)
            task.lost = Failed(ConnectionError(why), worker, again=True)
            task.worker, task.process, task.began = "", "", None

    def _tell_loss(self, task: Flown) -> None:
        """Report a run that was lost, now that another has followed."""
        if task.lost is not None:
            self._failed.append((task.unit, task.lost))
            task.lost = None

    def _end_hung(self) -> None:
        """Restart workers that hang, so that their units run elsewhere; give up units that made several hang."""
        hanging = self._watch.hung(self._flying.values(), self._link.processing, lambda w: self._threads.get(w, 1))
        for address, units in hanging.items():
            process = units[0].process or address
            names = ", ".join(task.unit.name for task in units)
            logger.warning(
                "%s: %s did not end within %g s on %s; this worker is taken to hang and is restarted",
                self._stage.name,
                names,
                self._timeout,
                process,
            )
            self._give_up([task for task in units if self._strike(task)], process)
            self._why[address] = f"it did not end within {self._timeout:g} s, so its worker was restarted"
            if not self._link.restart(address):
                logger.warning("%s: %s could not be restarted; the scheduler goes on without it", names, process)

    def _strike(self, task: Flown) -> bool:
        """Count a worker that hangs in a unit; whether the unit must be the reason."""
        self._strikes[task.unit.name] += 1
        task.began = time.monotonic() if task.began is not None else None  # if restarting fails, this is tried again
        return self._strikes[task.unit.name] >= STRIKES

    def _give_up(self, units: Collection[Flown], process: str) -> None:
        """Fail units that hang, and have the scheduler forget them."""
        keys = {task.key for task in units}
        cancelled = [future for future, task in self._flying.items() if task.key in keys]
        for future in cancelled:
            task = self._drop(future)
            self._tell_loss(task)
            error = ExecutionError(
                f"{self._stage.name}: {task.unit.name} did not end within {self._timeout:g} s on {STRIKES} workers, "
                f"the last of them {process}; see what it waits for there, or give units more time with --unit-timeout"
            )
            self._failed.append((task.unit, Failed(error, process)))
        if cancelled:
            self._link.client.cancel(cancelled)
            self._await_release(keys)

    def _await_release(self, keys: set[str]) -> None:
        """Wait until the scheduler has heard that units are cancelled. If their worker were restarted before, they
        would run once more on another, unwatched, and all that this is sent would wait behind them."""
        deadline = time.monotonic() + FETCH
        while any(keys.intersection(held) for held in self._link.processing().values()):
            if time.monotonic() > deadline:
                logger.warning("%s: the scheduler does not let go of units that hang", self._stage.name)
                return
            time.sleep(_LINGER)

    def _drop(self, future: Future[Finished]) -> Flown:
        task = self._flying.pop(future)
        del self._by_key[task.key]
        return task

    def _start_over(self) -> None:
        """Over a new connection, send again what has not landed."""
        again = sorted(self._flying.values(), key=lambda task: task.order)
        for task in again:
            self._tell_loss(task)
            if task.process:
                lost = Failed(ConnectionError("the connection to the scheduler was lost"), task.process, again=True)
                self._failed.append((task.unit, lost))
        self._waiting.extendleft(task.unit for task in reversed(again))
        self._flying, self._by_key, self._landed = {}, {}, SimpleQueue()
        self._looked = -_LOOK_AROUND
