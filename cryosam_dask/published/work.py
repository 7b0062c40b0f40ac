"""Running the configurations of a benchmark: each once, whatever happens in between.

Tomogram by tomogram, and in each encoder by encoder: one store for both, whose features all configurations share. What
is complete has a record and is not run again; a configuration that was interrupted goes on with its unfinished units.

The paper's predictions are those of the prompts that matching proposes. A run adds the user's own prompts to them, and
their instances to its picks, which is what a user wants and here would count as found what was given. So each
configuration borrows the query, within its own tomogram, as another tomogram would.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import CryosamError, ExecutionError, InputError, StoreError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.progress import Progress
from cryosam_dask.models.registry import ensure_weights
from cryosam_dask.pipeline import Driver, uses_torch_of
from cryosam_dask.pipeline.batch import why_stop
from cryosam_dask.published.data import Entry
from cryosam_dask.published.jobs import Asked, Job, jobs_of
from cryosam_dask.published.paper import Config
from cryosam_dask.published.prefixes import all_picks, first_picks
from cryosam_dask.published.records import Record, make_folder
from cryosam_dask.published.times import seconds_of
from cryosam_dask.stages import borrow, features
from cryosam_dask.stages.query_file import renamed
from cryosam_dask.store import marks
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Report = Callable[[str], None]


def run(
    asked: Asked,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    **where: Any,
) -> str:
    """Run what has no record yet. Returns why it ended early; empty if all was tried.

    executor : where to run; it is left open. where : instead, what `executors.choice.make_executor` makes one from,
        when there is something to run
    report : is told what begins and what ended, in a line each

    A configuration that fails has a record with its error, and is tried again by the next call.

    Raises InputError where no tomogram can be used, StoreError where nothing can be written, and what keeps models from
    running at all.
    """
    if all(entry.error for entry in asked.entries):
        raise InputError(
            f"none of {len(asked.entries)} tomograms can be used; {asked.entries[0].name}: {asked.entries[0].error}"
        )
    asked.records.make(entry.name for entry in asked.entries)
    with contextlib.ExitStack() as opened:

        def drive(url: str) -> Driver:
            nonlocal executor
            if executor is None:
                from cryosam_dask.executors.choice import make_executor

                torch = any(uses_torch_of(settings) for settings in asked.settings.values())
                executor = opened.enter_context(make_executor(**where, uses_torch=torch))
            return Driver(url, executor, progress)

        return _Work(asked, drive, report or (lambda text: None)).run()


class _Work:
    def __init__(self, asked: Asked, drive: Callable[[str], Driver], report: Report) -> None:
        self._asked, self._drive, self._report = asked, drive, report
        self._records = asked.records
        self._ready = False
        self._broken = 0

    def run(self) -> str:
        entries = self._asked.entries
        for index, entry in enumerate(entries):
            configs = self._asked.configs(index)
            try:
                jobs = jobs_of(self._asked, entry, configs)
            except (CryosamError, OSError) as error:
                self._all_failed(entry, configs, error)
                continue
            place = f"{index + 1} of {len(entries)}, {entry.name}"
            todo = [job for job in jobs if not self._is_done(job)]
            if todo:
                self._get_ready(todo[0].url)
            if stopped := self._tomogram(place, todo):
                return stopped
            if self._asked.discard and jobs and all(self._is_done(job) for job in jobs):
                _discard(jobs)
        return ""

    def _get_ready(self, url: str) -> None:
        """Have all models and somewhere to run; that there are none is no tomogram's fault, and raised at once."""
        if not self._ready:
            for settings in self._asked.settings.values():
                for model in (settings.features.encoder, settings.propagation.segmenter):
                    ensure_weights(model)
            self._drive(url)
            self._ready = True

    def _is_done(self, job: Job) -> bool:
        record = self._records.read(job.entry.name, job.kind, job.config.key)
        return record is not None and record.status == "done" and record.request == job.request

    def _tomogram(self, place: str, todo: Sequence[Job]) -> str:
        """Run some configurations of a tomogram. Returns why the rest of all is not worth trying."""
        lost: dict[str, Exception] = {}  # why there are no features
        thrown: Exception | None = None
        succeeded = False
        for number, job in enumerate(todo, start=1):
            self._report(f"{place}: {job.config.key} ({number} of {len(todo)})")
            try:
                if job.url in lost:
                    raise lost[job.url]
                self._records.write(*self._one(job))
            except Exception as error:  # whatever it is, it is this configuration's, and written down
                if not isinstance(error, CryosamError | OSError) and job.url not in lost:
                    logger.error("%s: %s", job.entry.name, one_line(error), exc_info=error)
                self._report(f"{place}: {job.config.key} failed: {_in_words(error)}")
                with contextlib.suppress(CryosamError):  # a full disk takes no record either
                    self._fail(job.entry.name, job.kind, job.config, job.request, error)
                if stopped := why_stop(error, 0, fail_fast=False):
                    return stopped
                if not _has_features(job.url):
                    lost[job.url] = error
                if isinstance(error, ExecutionError) or not isinstance(error, CryosamError):
                    thrown = error
            else:
                succeeded = True
        if thrown is None or succeeded:
            self._broken = 0
            return ""
        self._broken += 1
        return why_stop(thrown, self._broken, fail_fast=False)

    def _one(self, job: Job) -> tuple[Record, pd.DataFrame]:
        make_folder(Path(job.url).parent)
        driver = self._drive(job.url)
        with driver.command(f"benchmark {job.called}"):
            driver.ingest(job.entry.tomogram, **self._asked.reading)
            driver.features(job.settings)
            driver.query(job.asked, job.prompts, job.settings)
            # lent to its own tomogram, the prompts' feature is all that is known there: they are no proposals
            driver.borrow(job.called, renamed(borrow.take(driver.store, job.asked), job.called), job.matched)
            driver.match(job.called)
            driver.segment(job.called)
        return self._record(job, driver.notes)

    def _record(self, job: Job, notes: Sequence[str]) -> tuple[Record, pd.DataFrame]:
        """The record of a configuration that is complete, and its picks."""
        import pandas as pd

        store = RunStore.open(job.url)
        if job.config.counts:
            # numbered by K: one file for all
            parts = [first_picks(store, job.called, job.matched, k).assign(k=k) for k in job.config.counts]
            picks = pd.concat(parts, ignore_index=True)
        else:
            picks = all_picks(store, job.called)
        seconds, device, executor = seconds_of(store, job.asked, job.called)
        record = Record(
            tomogram=job.entry.name,
            kind=job.kind,
            config=job.config.key,
            request=job.request,
            recipe=self._asked.recipe(job.config),
            status="done",
            seed=self._asked.seed,
            prompts=job.prompts,
            prompted=job.prompted,
            truth=job.truth,
            voxel_size=job.voxel_size,
            counts=list(job.config.counts),
            seconds=seconds,
            device=device,
            executor=executor,
            notes=[*job.notes, *notes],
        )
        return record, picks

    def _all_failed(self, entry: Entry, configs: Iterable[Config], error: Exception) -> None:
        """Write down a tomogram that can't be read. What is complete stays: it may only be out of reach."""
        for kind in entry.truths or self._asked.kinds:
            for config in configs:
                before = self._records.read(entry.name, kind, config.key)
                if before is None or before.status != "done":
                    self._fail(entry.name, kind, config, "", error)
        self._report(f"{entry.name} failed: {_in_words(error)}")

    def _fail(self, tomogram: str, kind: str, config: Config, request: str, error: Exception) -> None:
        """Write down why there is no result, unless somebody else has written one meanwhile."""
        before = self._records.read(tomogram, kind, config.key)
        if before is not None and before.status == "done" and before.request == request:
            return
        seed, recipe = self._asked.seed, self._asked.recipe(config)
        failed = Record(tomogram, kind, config.key, request, recipe, "failed", seed=seed, error=_in_words(error))
        self._records.write(failed, None)


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, CryosamError) else one_line(error)


def _has_features(url: str) -> bool:
    """Whether a store has all features, so that what failed may be one configuration's alone."""
    try:
        store = RunStore.open(url)
        return marks.all_done(store, features.NAME)
    except StoreError:
        return False


def _discard(jobs: Sequence[Job]) -> None:
    """Remove the stores of a tomogram."""
    for url in dict.fromkeys(job.url for job in jobs):
        if RunStore.exists(url) or RunStore.is_removed(url):
            RunStore.remove(url)
