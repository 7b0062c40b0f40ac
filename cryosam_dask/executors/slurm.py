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
from dataclasses import dataclass

from dask_jobqueue.slurm import SLURMJob
from distributed import Client, Scheduler, Security
from distributed.scheduler import WorkerState

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster import Capacity, Cluster, usable_share
from cryosam_dask.executors.cluster_file import SlurmFile
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.security import temporary_security
from cryosam_dask.executors.slurm_jobs import (
    Held,
    demand,
    last_line,
    log_path,
    needs_gpu,
    new_job,
    shared_files,
    start_scheduler,
    wanted,
)

logger = logging.getLogger(__name__)

BALANCE_EVERY = 1.0
LOOK_AT_QUEUE_EVERY = 5.0
SUBMIT_AT_ONCE = 10
"""Jobs handed to the batch system in a row: its patience with one user has limits."""

FAILURES = 3
"""Jobs of a kind that may end in a row without a worker that joined, before the kind is given up."""

LONGEST_PAUSE = 300.0
LAST_WORDS = 30.0
"""Seconds that a command of the batch system has to come back when the cluster is closed."""


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


class JobPool(Cluster):
    """One scheduler in this process, and jobs of SLURM that hold its workers. Jobs are submitted when units wait for
    them, and at once up to their minimum; finished units need none. `close` gives them back.

    Parameters
    ----------
    file : the cluster's description
    security : certificates of the user; without them the pool makes some of its own, which its jobs read from a folder
        of `shared_directory` that nobody else can enter

    Raises
    ------
    ExecutionError : the scheduler did not start, or the shared folder can't be written
    SettingsError : there is no such network interface
    """

    def __init__(self, file: SlurmFile, security: Security | None = None) -> None:
        self.file = file
        self.device, self.expects_gpu, self.worker_timeout = None, file.gpu is not None, None
        self.held: dict[str, Held] = {}
        self._submitted: Counter[str] = Counter()
        self._luck = {kind: _Luck() for kind in file.kinds}
        self._looked = 0.0
        self._partings: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        if shutil.which(SLURMJob.submit_command) is None:
            raise ExecutionError(f"there is no {SLURMJob.submit_command} on this machine; start this where jobs are")
        with contextlib.ExitStack() as opening:
            opening.enter_context(quiet_dask())
            folder = file.shared / f"cluster-{uuid.uuid4().hex[:12]}"
            opening.callback(shutil.rmtree, folder, ignore_errors=True)
            security = security or temporary_security()
            self.tls_files = shared_files(file, security, folder)
            self._cluster = start_scheduler(file, security)
            self.scheduler: Scheduler = self._cluster.scheduler
            opening.callback(self._cluster.close)
            self._balancing: asyncio.Task[None] = self._cluster.sync(self._begin)
            opening.callback(self._cluster.sync, self._finish)
            self._client: Client = opening.enter_context(Client(self._cluster, set_as_default=False))
            self._opened = opening.pop_all()

    @property
    def address(self) -> str:
        return str(self._cluster.scheduler_address)

    def connect(self) -> Client:
        return self._client

    def capacity(self, on_gpu: bool, uses_torch: bool) -> Capacity:
        """What there is when all jobs that may be asked for are there."""
        file, kind = self.file, self.file.kind_of(on_gpu and self.expects_gpu)
        shares = {name: file.kinds[name].memory // file.processes(name) for name in file.kinds}
        return Capacity(
            min(usable_share(share, file.threads(name), uses_torch) for name, share in shares.items()),
            min(map(file.threads, file.kinds)),
            file.kinds[kind].maximum * file.units(kind),
        )

    def tend(self, present: int) -> bool:
        """Nothing to do, as jobs come and go on their own; `ExecutionError` once it is clear that no worker will
        come."""
        if words := self.trouble():
            raise ExecutionError(f"{words}; mend that and run the same command again, finished units are kept")
        return False

    def trouble(self) -> str | None:
        """Why no worker of some kind will come, once that is clear."""
        for kind, luck in self._luck.items():
            if luck.failures >= FAILURES and not any(h.joined for h in self.held.values() if h.kind == kind):
                return f"{luck.failures} jobs of kind {kind} in a row came to nothing: {luck.last_words}"
        return None

    def jobs(self) -> str:
        """How many jobs there are, of each kind, in words."""
        counts = Counter(held.kind for held in self.held.values())
        return ", ".join(f"{counts[kind]} {kind} job{'' if counts[kind] == 1 else 's'}" for kind in self.file.kinds)

    def describe(self) -> str:
        return f"SLURM at {self.address}: {self.jobs()}"

    def awaited(self) -> str:
        return f"a job to start: {self.jobs()}"

    def close(self) -> None:
        """Give all jobs back and stop the scheduler."""
        self._opened.close()

    async def _begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._balance_for_ever())

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
            name = f"{kind}-{self._submitted[kind]}"
            self._submitted[kind] += 1
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
            self.file.kind_of(needs_gpu(ts)) == held.kind for ws in self._workers_of(held) for ts in ws.processing
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
