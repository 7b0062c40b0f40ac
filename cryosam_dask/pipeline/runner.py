"""What all commands of a driver share: the lease, the journal, and the execution of stages."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import CryosamError, StoreError
from cryosam_dask.executors.base import Execution, Executor, Timing, execute, one_line, unfinished
from cryosam_dask.executors.outcomes import Failure
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.pipeline.integrity import check_complete
from cryosam_dask.settings import Settings
from cryosam_dask.stages import chain, embed, ingest, looked_at, segment
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.stages.declaration import Command
from cryosam_dask.store import layout, marks
from cryosam_dask.store.journal import Journal, StageEntry
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.version import __version__

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R", bound="Runner")
_T = TypeVar("_T")


def command(
    method: Callable[Concatenate[_R, _P], _T],
) -> Callable[Concatenate[_R, _P], _T]:
    """Decorate a method of a driver: it is a command of its own, unless another command calls it."""

    @functools.wraps(method)
    def wrapped(self: _R, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        names = [_in_words(value) for value in (*args[:1], kwargs.get("name")) if isinstance(value, str | list | tuple)]
        words = [method.__name__, *(names[:1] if method.__name__ != "ingest" else ())]
        with self.command(" ".join(words)):
            return method(self, *args, **kwargs)

    return wrapped


def _in_words(names: str | Sequence[object]) -> str:
    return names if isinstance(names, str) else ", ".join(map(str, names))


class Runner:
    """Executes stages on a store, as its only writer.

    Attributes
    ----------
    url : the run's store
    timings : per stage, the time of each unit
    memory : per stage, bytes projected for its largest unit, and the most that a unit added to its worker's process
    notes : sentences that a user should read (a threshold that filters nothing, prompts without a mask)
    """

    def __init__(
        self, out: str | Path, executor: Executor, progress: Progress | None = None, *, overwrite: bool = False
    ) -> None:
        self.url = str(out)
        self.timings: dict[str, list[Timing]] = {}
        self.memory: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []
        self._executor = executor
        self._progress = progress
        self._overwrite = overwrite
        self._command = ""
        self._journal: Journal | None = None
        self._lease = Lease(self.url)

    @contextlib.contextmanager
    def command(self, words: str) -> Iterator[None]:
        """Run what is within as one command: it holds the run's lease and has one entry in the journal.

        `StoreError` if another driver is writing the run, if something that finished units wrote has been lost, or if
        the store can't be written.
        """
        if self._command:
            yield
            return
        with self._lease:
            if not self._overwrite and RunStore.exists(self.url) and not RunStore.is_removed(self.url):
                check_complete(RunStore.open(self.url))
            with self._journaled(words):
                yield

    @contextlib.contextmanager
    def _journaled(self, words: str) -> Iterator[None]:
        self._command, outcome, before = words, "interrupted", len(self.notes)
        try:
            try:
                yield
            except OSError as error:
                if error.errno is None:
                    raise
                raise StoreError(
                    f"{self.url}: {os.strerror(error.errno)}; mend that and run the same command again, finished units "
                    "are kept"
                ) from error
            outcome = "done"
        except Exception as error:
            outcome = f"failed: {str(error) if isinstance(error, CryosamError) else one_line(error)}"
            raise
        finally:
            journal, self._journal, self._command = self._journal, None, ""
            if journal is not None:
                for text in self.notes[before:]:
                    journal.note(text)
                with contextlib.suppress(OSError, CryosamError):  # the store may be what failed
                    journal.close(outcome)

    @property
    def store(self) -> RunStore:
        self._lease.check()
        return RunStore.open(self.url, "r+")

    def _segment(self, stage: Stage, settings: Settings, points: NDArray[np.float64]) -> None:
        """Run all groups of a segmentation to their end, and embed the planes that they wait for."""
        store = self.store
        if volume_info(settings.propagation.segmenter) is not None:
            device = self._executor.device
            # what this process has looked at is known here alone, and nothing is left to compute
            known = "sight" not in stage.settings and looked_at.all_seen(store, settings.propagation, device, points)
            self._execute(stage, store, executor=SerialExecutor(device) if known else None)
            return
        embedded = self._embedding(store, settings)
        shape = store.shape
        waiting = {unit.name: unit for unit in unfinished(stage, store, stage.units)}
        members = [i for unit in waiting.values() for i in unit.params["prompts"]]
        planes = segment.start_planes(shape, points[members])
        with (self._progress or NullProgress()).interleaved() as turns:
            self._waves(stage, settings, waiting, planes, embedded, turns)

    def _waves(
        self,
        stage: Stage,
        settings: Settings,
        waiting: dict[str, Unit],
        planes: set[embed.Plane],
        embedded: set[int],
        turns: Progress,
    ) -> None:
        store = self.store
        shape, upstream = store.shape, stage_fingerprint(store, ingest.NAME)
        while waiting:
            missing = [plane for plane in planes if embed.mark_of(shape, plane) not in embedded]
            if missing:
                # planes that are read together share a unit, but not so many that workers have nothing to do
                most = -(-len(missing) // self._executor.slots)
                embedding = embed.plan(shape, settings.propagation, upstream, missing, most)
                self._execute(embedding, store, progress=turns)
                embedded.update(embed.mark_of(shape, plane) for plane in missing)
            there = segment.pack_marks(embedded, sum(shape))
            units = [replace(unit, params={**unit.params, "embedded": there}) for unit in waiting.values()]
            results = self._execute(stage, store, units, turns)
            waiting = {n: u for n, u in waiting.items() if "planes" in results.get(n, {})}
            planes = {(axis, index) for n in waiting for axis, index in results[n]["planes"]}

    def _embedding(self, store: RunStore, settings: Settings) -> set[int]:
        """Make sure that embeddings of this kind can be added. Return the marks of those that are there."""
        stage = embed.plan(store.shape, settings.propagation, stage_fingerprint(store, ingest.NAME), ())
        if self._stale(stage):
            store.delete(layout.marks(stage.name))
        if marks.found_stage(store, stage.name) is None:
            embed.prepare(store, settings.propagation)
        marks.begin(store, stage.name, fingerprint=stage.fingerprint, settings=stage.settings, count=stage.count)
        return set(np.flatnonzero(marks.done(store, stage.name)).tolist())

    def _named(self, stage: Stage, prepare: Callable[[], None] | None = None) -> None:
        """Execute a stage, laying its arrays out first if it is new or to be replaced."""
        store = self.store
        if self._stale(stage):
            store.delete(layout.marks(stage.name))
        if marks.found_stage(store, stage.name) is None and prepare is not None:
            prepare()
        self._execute(stage, store)

    def _make_declared(self, command: Command, settings: Settings, query: str = "") -> None:
        """Make the stages of a command, for the run or for a query, that need nothing but their declarations."""
        store = self.store
        for declared in chain.made_alone(command, "query" if query else "run"):
            if declared.plan is not None:
                stage = declared.plan(store, settings, query, chain.upstream(store, declared, query))
                lay_out = functools.partial(declared.prepare, store, settings, query) if declared.prepare else None
                self._named(stage, lay_out)

    def _execute(
        self,
        stage: Stage,
        store: RunStore,
        units: Iterable[Unit] | None = None,
        progress: Progress | None = None,
        executor: Executor | None = None,
        *,
        parts: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Execute a stage, or some of its units, or `parts` of these; what each returned, by its name."""
        wanted = list(stage.units if units is None else units)
        if not wanted:
            return {}
        start, entry = time.perf_counter(), functools.partial(self._entry, stage, store)

        def observe(outcome: Timing | Failure) -> None:
            self._lease.check()  # a driver whose lease is another's must not go on
            if isinstance(outcome, Timing):
                entry().add_unit(outcome.unit, outcome.seconds, outcome.worker, outcome.peak, part=parts)
            else:
                entry().add_failure(outcome.unit, outcome.worker, outcome.error, given_up=outcome.given_up)

        try:
            done = execute(
                *(stage, store, executor or self._executor, progress or self._progress), units=wanted, observer=observe
            )
        finally:
            if self._journal is not None and stage.name in self._journal:
                entry().seconds += time.perf_counter() - start
        self._account(stage, wanted, done)
        if done.timings:
            entry().add_stage(done.skipped, self.memory[stage.name][0])
        return {name: result.value for name, result in done.results.items()}

    def _entry(self, stage: Stage, store: RunStore) -> StageEntry:
        """What the journal says of a stage in this command."""
        if self._journal is None:
            self._journal = Journal(store, self._command or stage.name, self._executor.describe(), __version__)
        return self._journal.stage(stage.name, self._executor.device if stage.uses_model else "cpu")

    def _account(self, stage: Stage, units: Sequence[Unit], done: Execution) -> None:
        """Keep the times of units, and the memory projected for the largest beside what was measured."""
        self.timings.setdefault(stage.name, []).extend(done.timings)
        projected = max(unit.memory for unit in units) + stage.model_memory
        measured = max((t.peak - t.memory for t in done.timings if t.together == 1), default=0)
        before = self.memory.get(stage.name, (0, 0))
        self.memory[stage.name] = (max(before[0], projected), max(before[1], measured))

    def _stale(self, stage: Stage) -> bool:
        """Whether the stage was made with other settings and is to be replaced."""
        return self._overwrite and self._differs(stage)

    def _check_same(self, stage: Stage) -> None:
        """`StoreError` where the stage was made with other settings and is not to be replaced."""
        if not self._overwrite and marks.found_stage(self.store, stage.name) is not None:
            marks.begin(
                *(self.store, stage.name),
                fingerprint=stage.fingerprint,
                settings=stage.settings,
                count=stage.count,
            )

    def _differs(self, stage: Stage) -> bool:
        record = marks.found_stage(self.store, stage.name)
        return record is not None and record["fingerprint"] != stage.fingerprint

    def _remove(self) -> None:
        RunStore.remove(self.url)
        self._journal = None

    def note(self, text: str) -> None:
        """Keep a sentence that a user should read."""
        logger.info("%s", text)
        self.notes.append(text)


def stage_fingerprint(store: RunStore, stage: str) -> str:
    record = marks.found_stage(store, stage)
    if record is None:
        raise StoreError(f"{store.url}: {stage} has not run yet; run `cryosam {stage.partition('/')[0]}` first")
    return str(record["fingerprint"])
