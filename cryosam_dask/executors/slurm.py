"""Workers in jobs of SLURM: as many jobs of each kind as waiting units can use, within the limits of a file.

units in the scheduler ──▶ wanted jobs per kind ──▶ sbatch │ retire, then scancel
                                  ▲
jobs that ended (squeue) ─────────┘  units that were there run again in other jobs

Imported when a cluster is opened: it needs dask-jobqueue.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import shlex
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from dask_jobqueue.slurm import SLURMJob
from distributed import Client, Scheduler, Security, SpecCluster
from distributed.scheduler import WorkerState

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster_file import SlurmFile
from cryosam_dask.executors.dask import GPU
from cryosam_dask.executors.local import NO_PAGES
from cryosam_dask.executors.security import temporary_security
from cryosam_dask.executors.slurm_jobs import last_line, log_path, new_job, scheduler_options, tls_files

logger = logging.getLogger(__name__)

BALANCE_EVERY = 1.0
LOOK_AT_QUEUE_EVERY = 5.0
SUBMIT_AT_ONCE = 10
"""Jobs handed to the batch system in a row: its patience with one user has limits."""

FAILURES = 3
"""Jobs of a kind that may end one after the other without a worker that joined, before it is called hopeless."""

LONGEST_PAUSE = 300.0
LAST_WORDS = 30.0
"""Seconds that a command of the batch system has to come back when the cluster is closed."""

_OPEN = ("waiting", "no-worker", "queued", "processing")


@dataclass(eq=False)
class Held:
    """A job that was submitted and has not ended."""

    kind: str
    name: str
    job: SLURMJob
    workers: frozenset[str]
    joined: bool = False
    leaving: bool = False
    unneeded_since: float | None = None


@dataclass
class _Luck:
    """How the latest jobs of a kind began."""

    failures: int = 0
    last_words: str = ""
    not_before: float = 0.0

    def note(self, words: str) -> None:
        self.failures += 1
        self.last_words = words
        self.not_before = time.monotonic() + min(LONGEST_PAUSE, 2.0**self.failures)


@dataclass
class JobPool:
    """One scheduler in this process, and jobs of SLURM that hold its workers. `start` it, and `close` it.

    Parameters
    ----------
    file : the cluster's description
    security : certificates of the user; without them the pool makes some of its own, which its jobs read from a folder
        of `shared_directory` that nobody else can enter
    """

    file: SlurmFile
    security: Security | None = None
    held: dict[str, Held] = field(default_factory=dict)
    submitted: Counter[str] = field(default_factory=Counter)

    def start(self, silence: int = logging.CRITICAL) -> Self:
        """Start the scheduler; jobs follow when units wait for them, or at once up to their minimum.

        Raises
        ------
        ExecutionError : the scheduler did not start, or the shared folder can't be written
        SettingsError : there is no such network interface
        """
        import dask

        self._folder = self.file.shared / f"cluster-{uuid.uuid4().hex[:12]}"
        if shutil.which(SLURMJob.submit_command) is None:
            raise ExecutionError(f"there is no {SLURMJob.submit_command} on this machine; start this where jobs are")
        own = self.security or temporary_security()
        try:
            (self.file.shared / "logs").mkdir(parents=True, exist_ok=True)
            self.tls_files = tls_files(own, self._folder)
        except OSError as error:
            raise ExecutionError(
                f"shared_directory {self.file.shared}: can't be written ({error.strerror}); jobs read there"
            ) from error
        options = scheduler_options(self.file) | {"security": own}
        try:
            with dask.config.set({} if self.file.dashboard else NO_PAGES):
                self.cluster: Any = SpecCluster(
                    {}, {"cls": Scheduler, "options": options}, security=own, silence_logs=silence, name="cryosam"
                )
        except (OSError, RuntimeError, ValueError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ExecutionError(f"the scheduler did not start on this machine ({one_line(error)})") from error
        self._luck = {kind: _Luck() for kind in self.file.kinds}
        self._looked = 0.0
        self._partings: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self.cluster.sync(self._begin)
        return self

    @property
    def address(self) -> str:
        return str(self.cluster.scheduler_address)

    @property
    def scheduler(self) -> Scheduler:
        found: Scheduler = self.cluster.scheduler
        return found

    def connect(self) -> Client:
        return Client(self.cluster, set_as_default=False)

    def trouble(self) -> str | None:
        """Why no worker of some kind will come, once that is clear."""
        for kind, luck in self._luck.items():
            if luck.failures >= FAILURES and not any(h.joined for h in self.held.values() if h.kind == kind):
                return f"{luck.failures} jobs of kind {kind} in a row came to nothing: {luck.last_words}"
        return None

    def describe(self) -> str:
        """How many jobs there are, of each kind."""
        counts = Counter(held.kind for held in self.held.values())
        return ", ".join(f"{counts[kind]} {kind} job{'' if counts[kind] == 1 else 's'}" for kind in self.file.kinds)

    def close(self) -> None:
        """Give all jobs back and stop the scheduler. Closing twice is allowed."""
        if self._closing.is_set():
            return
        try:
            self.cluster.sync(self._finish)
        finally:
            self.cluster.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _begin(self) -> None:
        self._balancing = asyncio.create_task(self._balance_for_ever())

    async def _finish(self) -> None:
        """Give all jobs back, after what is under way: a command that is cut off might leave a job behind."""
        self._closing.set()
        await asyncio.wait({*self._partings, self._balancing}, timeout=LAST_WORDS)
        await self._end(list(self.held.values()))

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), BALANCE_EVERY)

    async def _balance_for_ever(self) -> None:
        while not self._closing.is_set():
            try:
                await self._balance()
            except Exception as error:  # one failed look must not end all later ones
                logger.warning("cluster: %s", one_line(error))
                logger.debug("cluster", exc_info=error)
            await self._pause()

    async def _balance(self) -> None:
        await self._find_ended()
        open_units = demand(self.scheduler, self.file)
        for kind in self.file.kinds:
            mine = [held for held in self.held.values() if held.kind == kind]
            want = wanted(self.file, kind, open_units[kind])
            staying = [held for held in mine if not held.leaving]
            if want > len(staying):
                await self._submit(kind, min(want - len(staying), self.file.kinds[kind].maximum - len(mine)))
            await self._release(staying, len(staying) - want)

    async def _find_ended(self) -> None:
        """Forget jobs that the batch system no longer knows and whose workers are gone."""
        present = {str(ws.name) for ws in self.scheduler.workers.values()}
        for held in self.held.values():
            if present & held.workers and not held.joined:
                held.joined = True
                self._luck[held.kind] = _Luck()
        silent = [held for held in self.held.values() if not present & held.workers and not held.leaving]
        if not silent or time.monotonic() - self._looked < LOOK_AT_QUEUE_EVERY:
            return
        self._looked = time.monotonic()
        known = await self._known_jobs()
        for held in silent:
            if known is None or held.job.job_id in known:
                continue
            self.held.pop(held.name, None)
            logger.info("cluster: job %s (%s) ended", held.job.job_id, held.kind)
            if not held.joined:
                self._luck[held.kind].note(f"see {log_path(self.file, held.kind, str(held.job.job_id))}")

    async def _known_jobs(self) -> set[str] | None:
        """Jobs of this user that wait or run; None if the batch system does not answer now."""
        try:
            out = await SLURMJob._call(["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i"])
        except (RuntimeError, OSError) as error:
            logger.debug("squeue: %s", last_line(error))
            return None
        return {line.strip() for line in out.splitlines()}

    async def _submit(self, kind: str, count: int) -> None:
        if time.monotonic() < self._luck[kind].not_before:
            return
        for _ in range(min(count, SUBMIT_AT_ONCE)):
            name = f"{kind}-{self.submitted[kind]}"
            self.submitted[kind] += 1
            job = new_job(self.file, kind, name, self.address, self.tls_files)
            try:
                await job.start()
            except (RuntimeError, OSError, ValueError) as error:
                self._luck[kind].note(last_line(error))
                logger.warning("cluster: a job of kind %s can't be submitted: %s", kind, last_line(error))
                return
            processes = self.file.processes(kind)
            names = {name} if processes == 1 else {f"{name}-{i}" for i in range(processes)}
            self.held[name] = Held(kind, name, job, frozenset(names))
            logger.info("cluster: job %s (%s) submitted", job.job_id, kind)

    async def _release(self, staying: list[Held], surplus: int) -> None:
        """Give back up to `surplus` jobs that nobody needed for a while, those that still wait first."""
        now = time.monotonic()
        unneeded: list[Held] = []
        for held in sorted(staying, key=lambda held: held.joined):
            if surplus <= 0 or self._works_for_its_kind(held):
                held.unneeded_since = None
                continue
            held.unneeded_since = held.unneeded_since or now
            if now - held.unneeded_since >= self.file.idle:
                unneeded.append(held)
        for held in unneeded[: max(0, surplus)]:
            held.leaving = True
            task = asyncio.create_task(self._let_go(held))
            self._partings.add(task)
            task.add_done_callback(self._partings.discard)

    def _works_for_its_kind(self, held: Held) -> bool:
        return any(
            self.file.kind_of(_needs_gpu(ts)) == held.kind for ws in self._workers_of(held) for ts in ws.processing
        )

    async def _let_go(self, held: Held) -> None:
        """Take a job's workers out of the scheduler, which moves what they hold and were to do to others, and end it.

        A worker that is only told to take no more would not begin what it already has, either, and never become free.
        """
        retiring = asyncio.ensure_future(
            self.scheduler.retire_workers(names=list(held.workers), close_workers=True, remove=True)
        )
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait({retiring, closing}, return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        if not retiring.done():
            retiring.cancel()
            return
        if retiring.exception() is not None:
            logger.debug("cluster: %s does not leave", held.name, exc_info=retiring.exception())
        if self._workers_of(held):  # results that nobody else can take yet
            held.leaving, held.unneeded_since = False, None
            return
        await self._end([held])

    def _workers_of(self, held: Held) -> list[WorkerState]:
        return [ws for ws in self.scheduler.workers.values() if str(ws.name) in held.workers]

    async def _end(self, jobs: Iterable[Held]) -> None:
        """Cancel jobs, in one call, and forget them."""
        ids = [held.job.job_id for held in jobs if held.job.job_id]
        for held in list(jobs):
            self.held.pop(held.name, None)
        if ids:
            try:
                await SLURMJob._call([*shlex.split(SLURMJob.cancel_command), *ids])
            except (RuntimeError, OSError) as error:  # jobs that are gone already
                logger.debug("scancel: %s", last_line(error))


def demand(scheduler: Scheduler, file: SlurmFile) -> Counter[str]:
    """Units that run or wait now, by the kind of job that they wait for."""
    return Counter(file.kind_of(_needs_gpu(ts)) for ts in scheduler.tasks.values() if ts.state in _OPEN)


def _needs_gpu(task: Any) -> bool:
    return GPU in (task.resource_restrictions or {})


def wanted(file: SlurmFile, kind: str, units: int) -> int:
    """Jobs of a kind that so many units keep busy, within its limits."""
    limits = file.kinds[kind]
    return max(limits.minimum, min(limits.maximum, -(-units // file.units(kind))))
