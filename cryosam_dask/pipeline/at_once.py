"""Jobs that go on at once: each in a thread, with an executor of its own on the same workers.

The thread that goes through `AtOnce.ends` begins the jobs and learns of their ends, one after the other. A job that is
to stop, as others failed or by Ctrl-C, ends as if Ctrl-C had ended it: it gives back what it holds, and may go on
another time.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import Executor
from cryosam_dask.planning.estimate import Bulk, Cluster
from cryosam_dask.planning.many import at_once, few

logger = logging.getLogger(__name__)

THREAD = "run "
"""What the name of a job's thread begins with, before the job's own; the log says it of each line (`cli.app`)."""

_FEW = 2
"""Workers that are so few that it does not matter what the jobs are."""

DRIVER_SECONDS = 2e-3
"""Of the driver for each unit; see `planning.Options`."""

T = TypeVar("T")

Work = Callable[[int, Executor], T]
"""What a job does, by its number, on its executor."""


@dataclass(frozen=True)
class _End(Generic[T]):
    """A job ended; None: it was stopped."""

    number: int
    outcome: T | Exception | None


_Event = _End[T] | Callable[[], object]


class Crowd:
    """Says how many jobs go on at once on an executor's workers.

    Parameters
    ----------
    given : by the user; None: as many as keep the workers that are there busy, by the units of one job
    bulks : plans those units, or gives none if it can't; is asked once, and not where it does not matter
    """

    def __init__(self, executor: Executor, given: int | None, bulks: Callable[[], Sequence[Bulk]]) -> None:
        self._executor, self._given = executor, given
        self._bulks = functools.cache(bulks)
        self._latest = 1

    @property
    def threads(self) -> bool:
        """Whether jobs may go on at once at all."""
        return self._executor.shares and self._given != 1

    def most(self) -> int:
        """How many, now."""
        if self._given is not None:
            return self._given
        with contextlib.suppress(ExecutionError):  # no worker now: those that go on wait for one, or fail by it
            slots = self._executor.slots
            bulks = self._bulks() if slots > _FEW else ()
            self._latest = at_once(bulks, Cluster(slots, DRIVER_SECONDS)) if bulks else few(min(slots, _FEW))
        return self._latest


class AtOnce(Generic[T]):
    """Jobs, by their numbers.

    Parameters
    ----------
    executor : whose workers they share; only the thread that goes through the ends uses the executor itself
    work : a job; what it raises is its end
    crowd : how many may go on at once, asked again whenever one has ended; None: one after the other
    name : of a job, for its thread

    Attributes
    ----------
    threads : whether each job has a thread of its own, or else all run where `ends` is gone through
    """

    def __init__(
        self, executor: Executor, work: Work[T], crowd: Crowd | None, name: Callable[[int], str] = str
    ) -> None:
        self._executor, self._work, self._crowd, self._name = executor, work, crowd, name
        self.threads = crowd is not None and crowd.threads
        self._events: SimpleQueue[_Event[T]] = SimpleQueue()
        self._stop = threading.Event()
        self._running: dict[int, threading.Thread] = {}

    def stop(self) -> None:
        """Begin no other job, and have those that go on stop."""
        self._stop.set()

    def tell(self, call: Callable[[], object]) -> None:
        """Have the thread that goes through the ends call something."""
        if self.threads:
            self._events.put(call)
        else:
            call()

    def ends(self, jobs: Iterable[int]) -> Generator[tuple[int, T | Exception], None, None]:
        """Begin the jobs in their order, and go through their ends: results, or what they raised. Those that were
        stopped are left out. Closing it stops them, too, and waits for them."""
        if self.threads:
            yield from self._crowded(deque(jobs))
            return
        for number in jobs:
            if self._stop.is_set():
                return
            try:
                outcome: T | Exception = self._work(number, self._executor)
            except Exception as error:  # noqa: BLE001 - it is the job's end, and for the caller to judge
                outcome = error
            yield number, outcome

    def _crowded(self, waiting: deque[int]) -> Iterator[tuple[int, T | Exception]]:
        assert self._crowd is not None
        _ = self._executor.slots  # workers that are yet to be started are started here, once
        try:
            while True:
                while waiting and not self._stop.is_set() and len(self._running) < self._crowd.most():
                    self._begin(waiting.popleft())
                if not self._running:
                    return
                event = self._events.get()
                if not isinstance(event, _End):
                    event()
                    continue
                self._running.pop(event.number).join()
                if event.outcome is not None:
                    yield event.number, event.outcome
        finally:
            self.stop()
            for thread in self._running.values():
                if thread.ident is not None:  # Ctrl-C may have come before it began
                    thread.join()

    def _begin(self, number: int) -> None:
        # a daemon: whoever presses Ctrl-C twice is not kept waiting, and the leases of a process that ended are free
        name = f"{THREAD}{self._name(number)}"
        self._running[number] = threading.Thread(target=self._run, args=(number,), name=name, daemon=True)
        self._running[number].start()

    def _run(self, number: int) -> None:
        outcome: T | Exception | None = None
        try:
            # what began before goes first, so that it ends, rather than all at the end
            with self._executor.sibling(-number, self._stop) as executor:
                outcome = self._work(number, executor)
        except KeyboardInterrupt:
            logger.info("stopped; finished units are kept")
        except Exception as error:  # noqa: BLE001 - as above
            outcome = error
        finally:
            self._events.put(_End(number, outcome))
