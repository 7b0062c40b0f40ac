"""Work that takes long: one background thread runs commands of the driver, with an executor that stays warm.

A job that is cancelled ends as a command ends at Ctrl-C: finished units are kept, and the same job, started again,
goes on with the rest.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from cryosam_dask.errors import CryosamError, ExecutionError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.dask import DaskExecutor
from cryosam_dask.executors.local import LocalWorkers
from cryosam_dask.executors.progress import Interleaved, NullProgress, StageProgress
from cryosam_dask.stages import chain

logger = logging.getLogger(__name__)

PUBLISH = 0.25
"""Seconds between two times that progress is told."""

GOODBYE = 20.0
"""Seconds that a running unit has to end when the page is closed."""


class BusyError(CryosamError):
    """Something else is at work on the run; what was asked for is possible later."""

    status = 409


class JobCancelled(KeyboardInterrupt):
    """Raised in a job's thread, as soon as a unit ends, once the job was cancelled."""


Run = Callable[[Executor, NullProgress], None]


@dataclass
class Job:
    """A job, and how far it is. run : called with the executor and the progress of its stages"""

    words: str
    run: Run
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def to_json(self) -> dict[str, Any]:
        declared = chain.declaration_of(self.stage) if self.stage else None
        return {
            "id": self.id,
            "words": self.words,
            "stage": self.stage,
            "stage_words": declared.words if declared else "",
            "done": self.done,
            "total": self.total,
            "seconds_left": self.seconds_left,
            "cancelling": self.cancelled.is_set(),
        }


class Jobs:
    """Runs one job at a time.

    Parameters
    ----------
    make_executor : called in the job's thread before the first job
    changed : called when a job's progress is to be shown
    ended : called with a job and its error, None if it was done; `JobCancelled` if it was cancelled
    idle : called when another job may begin
    """

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        changed: Callable[[], None],
        ended: Callable[[Job, BaseException | None], None],
        idle: Callable[[], None],
    ) -> None:
        self._make, self._changed, self._ended, self._idle = make_executor, changed, ended, idle
        self._executor: Executor | None = None
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    @property
    def job(self) -> Job | None:
        """The job that runs, or is about to."""
        return self._job

    def start(self, job: Job) -> None:
        """Start a job; `BusyError` while another one runs."""
        with self._lock:
            if self._closed:
                raise BusyError("the page is being closed; start it again")
            self.check_free()
            self._job = job
        self._queue.put(job)
        self._changed()

    def check_free(self) -> None:
        """`BusyError` while a job runs."""
        if self._job is not None:
            raise BusyError(f"busy: {self._job.words}; wait until that is done, or cancel it")

    def cancel(self) -> bool:
        """Have the job that runs end; whether there is one."""
        job = self._job
        if job is None:
            return False
        job.cancelled.set()
        self._changed()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no job runs; False if one still does after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._job is not None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """Cancel the job that runs, and stop the workers. Closing twice is allowed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.cancel()
        self._queue.put(None)
        self._thread.join(GOODBYE)
        if self._thread.is_alive():  # a long unit: it ends with the process, and runs again next time
            self._drop_executor()

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # the first job says what is wrong
            self._warm()
        while (job := self._queue.get()) is not None:
            error = self._outcome(job)
            if isinstance(error, ExecutionError):  # workers that can't be reached are not tried again
                self._drop_executor()
            self._ended(job, error)
            with self._lock:
                self._job = None
            self._idle()
        self._drop_executor()

    def _outcome(self, job: Job) -> BaseException | None:
        try:
            if job.cancelled.is_set():
                raise JobCancelled
            job.run(self._warm(), JobProgress(job, self._changed))
        except JobCancelled as error:
            return error
        except (CryosamError, OSError) as error:
            return error
        except Exception as error:
            logger.exception("%s failed", job.words)
            return ExecutionError(f"{job.words} failed: {one_line(error)}")
        return None

    def _warm(self) -> Executor:
        """The executor. Workers of this machine are started before they are needed; a cluster waits until it is."""
        if self._executor is None:
            self._executor = self._make()
            if isinstance(self._executor, DaskExecutor) and isinstance(self._executor.cluster, LocalWorkers):
                self._executor.workers()
        return self._executor

    def _drop_executor(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            with contextlib.suppress(Exception):
                executor.close()


class JobProgress(NullProgress):
    """Writes the progress of stages into a job, and raises `JobCancelled` once it is cancelled."""

    def __init__(self, job: Job, changed: Callable[[], None]) -> None:
        super().__init__(Console(quiet=True))
        self._job, self._tell = job, changed
        self._told = 0.0

    def stage(self, name: str, total: int, done: int, device: str) -> StageProgress:
        line = _Line(self, name, total, done, device)
        line.show()
        return line

    def interleaved(self) -> Interleaved:
        return _Turns(self)

    def show(self, stage: str, done: int, total: int, seconds_left: float | None) -> None:
        """Tell how far a stage is; `JobCancelled` if the job was cancelled."""
        job = self._job
        news = job.stage != stage
        job.stage, job.done, job.total, job.seconds_left = stage, done, total, seconds_left
        if news or done == total or time.monotonic() - self._told > PUBLISH:
            self._told = time.monotonic()
            self._tell()
        if job.cancelled.is_set():
            raise JobCancelled


class _Line(StageProgress):
    """One stage's progress."""

    def __init__(self, progress: JobProgress, name: str, total: int, done: int, device: str) -> None:
        super().__init__(name, total, done, device)
        self._progress = progress
        self._before = done

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        self.show()

    def extend(self, count: int) -> None:
        super().extend(count)
        self.show()

    def show(self) -> None:
        own = self._done - self._before
        seconds = time.monotonic() - self._start
        left = seconds / own * (self._total - self._done) if own else None
        self._progress.show(self._name, self._done, self._total, left)


class _Turns(Interleaved):
    """Stages that take turns."""

    def __init__(self, progress: JobProgress) -> None:
        super().__init__(Console(quiet=True), None)
        self._progress = progress

    def stage(self, name: str, total: int, done: int, device: str) -> StageProgress:
        known = self._lines.get(name)
        if known is None:
            self._lines[name] = known = _Turn(self._progress, name, total, done, device)
            known.show()
        else:
            known.extend(total - done)
        return known


class _Turn(_Line):
    def close(self) -> None:
        """The turn ends; the line stays open."""
