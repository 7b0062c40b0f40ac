"""The driver: stages in order, on whatever executes them, from a tomogram and a click to labels and picks."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import __version__
from cryosam_dask.errors import CryosamError, InputError, MemoryLimitError, StoreError
from cryosam_dask.executors.base import Execution, Executor, Timing, execute, one_line, unfinished
from cryosam_dask.executors.dask import UNIT_TIMEOUT
from cryosam_dask.executors.outcomes import Failure
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.picks import check_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models.catalog import encoder_info, parse_models, segmenter_info
from cryosam_dask.models.registry import ensure_weights
from cryosam_dask.settings import Precision, Settings, preset
from cryosam_dask.stages import (
    borrow,
    embed,
    features,
    ingest,
    label,
    match,
    project,
    propose,
    query,
    rank,
    segment,
    select,
)
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.store import layout, marks
from cryosam_dask.store.address import public
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.integrity import check_complete
from cryosam_dask.store.journal import Journal, StageEntry
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.store.views import query_names

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def settings_for(models: str, overrides: dict[str, Any] | None = None) -> Settings:
    """The settings of a models spec ("builtin", "paper", "ENCODER+SEGMENTER"), with dotted overrides."""
    encoder, segmenter = parse_models(models)
    return preset(models, encoder, segmenter).replace(overrides or {})


def chosen_settings(models: str | None, loan: borrow.Loan | None) -> Settings:
    """Those of the models that are named; where none are, those that a borrowed query was made with, or "paper"."""
    return loan.settings if loan is not None and models is None else settings_for(models or "paper")


def uses_torch_of(settings: Settings) -> bool:
    """Whether a model of these settings runs in torch, and so could use a GPU."""
    segmenter = segmenter_info(settings.propagation.segmenter)
    return encoder_info(settings.features.encoder).uses_torch or segmenter.uses_torch


def run(
    tomogram: str | Path,
    points: Sequence[Sequence[float]] | None,
    out: str | Path,
    *,
    query: str | Path | None = None,
    name: str = "particle",
    models: str | None = None,
    settings: Settings | None = None,
    client: Client | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    cluster: str | Path | None = None,
    security: Security | None = None,
    unit_timeout: float | None = UNIT_TIMEOUT,
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Driver:
    """Segment every particle like the one(s) at `points`, or like those of a query of another run.

    Parameters
    ----------
    tomogram : MRC file, or OME-Zarr as a folder or URL
    points : (n, 3) voxels (z, y, x), zero-based, all on particles of one kind; None with `query`
    out : the run's store, a folder or fsspec URL; an existing run with the same settings is continued
    query : a run, path or URL, that has a query of that name, made with the same models and settings in a tomogram of
        the same voxel size; it need not have gone farther than that
    name : name of the query; one store may hold several
    models : "builtin", "paper" or "ENCODER+SEGMENTER"; None: "paper", or with `query` the settings it was made with
    settings : instead of the models' preset
    client, workers, scheduler, device, cluster, security, unit_timeout : where to run, see
        `executors.local.make_executor`
    voxel_size : ångström, instead of the file's; unsigned : how to read 8-bit MRC voxels
    overwrite : replace what was made with other settings

    Returns the closed `Driver`, whose `url` and `timings` say where the results are and what each unit took.
    """
    from cryosam_dask.executors.local import make_executor

    check_name(name)
    if (points is None) == (query is None):
        raise InputError("give points in the tomogram, or a run to take the query from, one of the two")
    loan = None if query is None else borrow.take(RunStore.open(query), name)
    chosen = settings or chosen_settings(models, loan)
    source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
    if points is not None:
        check_points(np.asarray(points, float), source.shape)
    for model in (chosen.features.encoder, chosen.propagation.segmenter):
        ensure_weights(model)
    if loan is not None:
        borrow.check(loan, chosen, source.voxel_size, public(tomogram))
    with make_executor(
        *(workers, scheduler, device, client),
        uses_torch=uses_torch_of(chosen),
        cluster=cluster,
        security=security,
        unit_timeout=unit_timeout,
    ) as executor:
        driver = Driver(out, executor, progress, overwrite=overwrite)
        with driver.command(f"run {name}"):
            driver.ingest(tomogram, voxel_size=voxel_size, unsigned=unsigned)
            driver.features(chosen)
            if query is not None:
                driver.borrow(name, query, chosen)
            elif points is not None:
                driver.query(name, points, chosen)
            driver.match(name)
            driver.segment(name)
    return driver


def _command(
    method: Callable[Concatenate[Driver, _P], _T],
) -> Callable[Concatenate[Driver, _P], _T]:
    """A method of the driver that is a command of its own, unless it is called within one."""

    @functools.wraps(method)
    def wrapped(self: Driver, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        names = [str(value) for value in (*args[:1], kwargs.get("name")) if isinstance(value, str)]
        words = [method.__name__, *(names[:1] if method.__name__ != "ingest" else ())]
        with self.command(" ".join(words)):
            return method(self, *args, **kwargs)

    return wrapped


class Driver:
    """Runs stages on a store. Each method is one command; all skip what is done.

    Attributes
    ----------
    url : the run's store
    timings : per stage, what each unit took
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
        """What runs within is one command, with one entry in the run's journal that says how it ended.

        It holds the run's lease: no other driver writes there meanwhile. `StoreError` where another one does, where
        what finished units wrote has been lost, or the store can't be written.
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
        self._command, outcome = words, "interrupted"
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
                with contextlib.suppress(OSError, CryosamError):  # the store may be what failed
                    journal.close(outcome)

    @_command
    def ingest(
        self, tomogram: str | Path, *, voxel_size: float | Sequence[float] | None = None, unsigned: bool | None = None
    ) -> None:
        """Copy a tomogram into the store, chunked, with its levels and statistics."""
        source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
        path = str(tomogram) if "://" in str(tomogram) else str(Path(tomogram).expanduser().absolute())
        sizes = list(source.voxel_size) if voxel_size is not None else None
        stage = ingest.plan(source, path, {"voxel_size": sizes, "unsigned": unsigned})
        if RunStore.exists(self.url) and self._replaced(stage, source):
            self._remove()
        fresh = not RunStore.exists(self.url)
        store = ingest.create_store(self.url, source, path) if fresh else self.store
        if not fresh and marks.found_stage(store, stage.name) is None:
            ingest.prepare(store, source)
        for note in source.notes:
            self._note(f"{public(path)}: {note}")
        unfinished = "statistics" not in store.info
        try:
            self._execute(stage, store)
            ingest.finish(store, path)
        except (InputError, MemoryLimitError):
            # nothing can come of this store; after any other error the same command goes on with it
            if unfinished:
                self._remove()
            raise

    def _remove(self) -> None:
        RunStore.remove(self.url)
        self._journal = None

    def _replaced(self, stage: Stage, source: TomogramSource) -> bool:
        """Whether the run that is there gives way to a new one of this source."""
        if RunStore.is_removed(self.url):
            return True
        store = self.store
        if marks.found_stage(store, stage.name) is not None:
            return self._overwrite and self._differs(stage)
        # its creation was interrupted; or its ingest was taken away to be made again
        if "statistics" not in store.info:
            return True
        if ingest.is_of(store, source):
            return False
        if not self._overwrite:
            raise StoreError(f"{self.url}: is a run of another tomogram; use another --out, or --overwrite")
        return True

    @_command
    def features(self, settings: Settings) -> None:
        """Encode the slices of the three views into the feature volume."""
        store = self._ingested()
        chosen = self._with_precision(settings).features
        ensure_weights(chosen.encoder)
        upstream = _fingerprint(store, ingest.NAME)
        standardize = features.plan_standardize(store.shape, chosen, upstream)
        stage = features.plan(store.shape, chosen, standardize.fingerprint)
        if self._stale(stage):
            for name in query_names(store):
                self._forget(name)
            # these marks last: interrupted before, all this is found to be stale again
            for name in (features.STANDARDIZE, features.DENSE, features.NAME):
                store.delete(layout.marks(name))
        begun = marks.found_stage(store, features.STANDARDIZE) or {}
        if marks.found_stage(store, stage.name) is None and begun.get("fingerprint") != standardize.fingerprint:
            store.delete(layout.marks(features.STANDARDIZE))
            store.delete(layout.marks(features.DENSE))
            features.prepare(store, chosen)
        if standardize.units:
            self._execute(standardize, store)
        self._execute(stage, store)
        features.finish(store, chosen)
        self._execute(features.plan_dense(store.shape, chosen, stage.fingerprint), store)

    @_command
    def query(self, name: str, points: Sequence[Sequence[float]], settings: Settings) -> None:
        """Segment the prompted particles and pool their features into the query."""
        check_name(name)
        store = self._ingested()
        settings = self._with_precision(settings)
        ensure_weights(settings.propagation.segmenter)
        prompts = check_points(np.asarray(points, float), store.shape)
        where, upstream = layout.query(name), _fingerprint(store, features.NAME)
        stage = segment.plan(store.shape, settings.propagation, upstream, where, prompts, None)
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        if self._stale(stage) or self._stale(pooling):
            self._forget(name)
        self._check_settings(where, settings)
        if found := borrow.origin(store, name):
            raise StoreError(
                f"{self.url}: query {name!r} was taken from a run of {found['tomogram']}; "
                "use another --name for one of these points, or --overwrite"
            )
        store.group(where).attrs["settings"] = settings.model_dump(mode="json")
        self._segment(stage, settings, prompts)
        # planned again: its memory follows from what has been segmented
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        for result in self._execute(pooling, store).values():
            for point in result.get("missing", []):
                self._note(f"nothing could be segmented at the prompt {','.join(f'{v:g}' for v in point)}")

    @_command
    def borrow(self, name: str, donor: str | Path, settings: Settings | None = None) -> None:
        """Take the query of that name of another run, in the place of `query`.

        donor : the run, path or URL; only its query must be finished, and it is only read
        settings : for this tomogram; None: those that the donor's query was made with
        """
        check_name(name)
        store = self._ingested()
        loan = borrow.take(RunStore.open(donor), name)
        settings = self._with_precision(settings or loan.settings)
        ensure_weights(settings.propagation.segmenter)
        borrow.check(loan, settings, store.voxel_size, self.url)
        stage = borrow.plan(store, name, settings.match, loan, _fingerprint(store, features.NAME))
        if self._stale(stage):
            self._forget(name)
        self._check_settings(layout.query(name), settings)
        borrow.check_origin(store, name, loan)
        described = {"settings": settings.model_dump(mode="json"), borrow.FROM: loan.origin}
        store.group(layout.query(name)).attrs.update(described)
        self._execute(stage, store)

    def _with_precision(self, settings: Settings) -> Settings:
        """Settings with "auto" precisions decided: as in what is there already, else as suits the device."""
        encoder = encoder_info(settings.features.encoder)
        segmenter = segmenter_info(settings.propagation.segmenter)
        decide = self._precision
        return settings.replace(
            {
                "features.precision": decide(settings.features.precision, encoder.uses_torch, features.NAME),
                "propagation.precision": decide(settings.propagation.precision, segmenter.uses_torch, embed.NAME),
            }
        )

    def _precision(self, precision: Precision, uses_torch: bool, stage: str) -> str:
        if precision != "auto":
            return precision
        found = None if self._overwrite else marks.found_stage(self.store, stage)
        if found is not None:
            return str(found["settings"]["precision"])
        return self._executor.precision if uses_torch else "float32"

    def _check_settings(self, where: str, settings: Settings) -> None:
        """Refuse to continue a query with other settings, by their names; stages know only those that concern them."""
        found = self.store.group(where).attrs.get("settings")
        if not isinstance(found, dict) or self._overwrite:
            return
        if differing := marks.differences(dict(found), settings.model_dump(mode="json")):
            raise StoreError(
                f"{self.url}: {where} was made with other settings ({'; '.join(differing)}); "
                "use the same settings, another --name, or --overwrite"
            )

    @_command
    def match(self, name: str) -> None:
        """Compare the query with the features, coarse to fine, and propose prompts."""
        store, settings = self._queried(name)
        upstream = _fingerprint(store, query.stage_name(name))
        volume = FeatureVolume(store)
        for this in match.passes(name, settings.match):
            products = project.plan(store.shape, volume.token_grids, volume.view_channels, this, upstream)
            self._named(products, lambda p=this: project.prepare(store, p))  # type: ignore[misc]
            stage = match.plan(store.shape, volume.token_grids, this, products.fingerprint)
            self._named(stage, lambda p=this: match.prepare(store, p))  # type: ignore[misc]
            found = match.survey(store, this, settings.match.tau_sim)
            upstream = stage.fingerprint
            if not found.reached and borrow.origin(store, name):
                # a click that is like nothing is a mistake; that another tomogram has none of the kind is a result
                self._note(f"{name}: nothing here reaches match.tau_sim = {settings.match.tau_sim:g}; {found.words}")
                break
            if note := match.check_kept(found, this.ratio, settings.match.tau_sim):
                self._note(note)
        radius = propose.suppression_radius(store, name, settings.match)
        if settings.match.rank == "profile" and found.reached:
            most = propose.shortlist_length(store.shape)
            candidates, _ = propose.survivors(store, this, found, radius, most)
            ranking = rank.plan(store, name, candidates, upstream)
            self._named(ranking, lambda: None)
            points, scores = rank.gather(store, name, ranking)
            radius, upstream = rank.query_radius(store, name), ranking.fingerprint
        else:
            count = None if settings.match.count == "auto" else settings.match.count
            points, similarity = propose.survivors(store, this, found, radius, count)
            scores = similarity.astype(float)
        for note in propose.choose(store, name, settings.match, points, scores, radius, upstream):
            self._note(note)

    @_command
    def segment(self, name: str) -> None:
        """Segment every proposal, keep the distinct instances that belong, and write labels and picks."""
        store, settings = self._queried(name)
        points, upstream = propose.read(store, name)
        where = layout.instances(name)
        stage = segment.plan(store.shape, settings.propagation, upstream, where, points, layout.query(name))
        if self._stale(stage):
            store.delete(where)
            store.delete(layout.marks(stage.name))
        if stage.units:
            self._segment(stage, settings, points)
        chosen = select.select(store, name, len(stage.units), settings)
        for note in chosen.notes:
            self._note(note)
        painting = label.plan(store, name, chosen.boxes, chosen.sources, stage.fingerprint)
        self._named(painting, lambda: label.prepare(store, name))

    @property
    def store(self) -> RunStore:
        self._lease.check()
        return RunStore.open(self.url, "r+")

    def _segment(self, stage: Stage, settings: Settings, points: NDArray[np.float64]) -> None:
        """Run the groups of a segmentation to their end, embedding the planes that they come to wait for."""
        store = self.store
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
        shape, upstream = store.shape, _fingerprint(store, ingest.NAME)
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
        """Make sure that embeddings of this kind can be added; the marks of those that are there."""
        stage = embed.plan(store.shape, settings.propagation, _fingerprint(store, ingest.NAME), ())
        if self._stale(stage):
            store.delete(layout.marks(stage.name))
        if marks.found_stage(store, stage.name) is None:
            embed.prepare(store, settings.propagation)
        marks.begin(store, stage.name, fingerprint=stage.fingerprint, settings=stage.settings, count=stage.count)
        return set(np.flatnonzero(marks.done(store, stage.name)).tolist())

    def _named(self, stage: Stage, prepare: Callable[[], None]) -> None:
        """Execute a stage of a query, laying its arrays out first if it is new or to be replaced."""
        store = self.store
        if self._stale(stage):
            store.delete(layout.marks(stage.name))
        if marks.found_stage(store, stage.name) is None:
            prepare()
        self._execute(stage, store)

    def _execute(
        self, stage: Stage, store: RunStore, units: Iterable[Unit] | None = None, progress: Progress | None = None
    ) -> dict[str, dict[str, Any]]:
        wanted = list(stage.units if units is None else units)
        if not wanted:
            return {}
        start, entry = time.perf_counter(), functools.partial(self._entry, stage, store)

        def observe(outcome: Timing | Failure) -> None:
            self._lease.check()  # a driver whose lease is another's must not go on
            if isinstance(outcome, Timing):
                entry().add_unit(outcome.unit, outcome.seconds, outcome.worker, outcome.peak)
            else:
                entry().add_failure(outcome.unit, outcome.worker, outcome.error, given_up=outcome.given_up)

        try:
            done = execute(stage, store, self._executor, progress or self._progress, units=wanted, observer=observe)
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
        """Keep what units took, and the memory that was projected for the largest beside what was measured."""
        self.timings.setdefault(stage.name, []).extend(done.timings)
        projected = max(unit.memory for unit in units) + stage.model_memory
        measured = max((t.peak - t.memory for t in done.timings if t.together == 1), default=0)
        before = self.memory.get(stage.name, (0, 0))
        self.memory[stage.name] = (max(before[0], projected), max(before[1], measured))

    def _stale(self, stage: Stage) -> bool:
        """Whether the stage was made with other settings and is to be replaced."""
        return self._overwrite and self._differs(stage)

    def _differs(self, stage: Stage) -> bool:
        found = marks.found_stage(self.store, stage.name)
        return found is not None and found["fingerprint"] != stage.fingerprint

    def _forget(self, name: str) -> None:
        """Remove all that a query has led to."""
        store = self.store
        for path in (layout.query(name), layout.proposals(name), layout.instances(name), layout.picks(name)):
            store.delete(path)
        store.delete(f"similarity/{name}")
        for image in (name, layout.semantic_name(name)):
            store.delete(layout.labels_group(image))
        # the marks by which a query is found to be stale go last: interrupted before, all this is done again
        for stage in (
            label.stage_name(name),
            segment.stage_name(layout.instances(name)),
            rank.stage_name(name),
            f"match/{name}",
            f"project/{name}",
            query.stage_name(name),
            segment.stage_name(layout.query(name)),
        ):
            store.delete(layout.marks(stage))

    def _ingested(self) -> RunStore:
        store = self.store
        if "statistics" not in store.info:
            raise StoreError(f"{self.url}: the ingest is not finished; run `cryosam ingest` or `cryosam run` again")
        return store

    def _queried(self, name: str) -> tuple[RunStore, Settings]:
        """The store and the settings that a query was made with."""
        store = self._ingested()
        where = layout.query(check_name(name))
        stage = query.stage_name(name)
        if where not in store or marks.found_stage(store, stage) is None or not marks.done(store, stage).all():
            known = ", ".join(query_names(store)) or "none yet"
            raise StoreError(f"{self.url}: no query called {name!r} (there are: {known}); run `cryosam query` first")
        found = store.group(where).attrs.get("settings")
        if not isinstance(found, dict):
            raise StoreError(f"{self.url}: the settings of query {name!r} are lost; run `cryosam query` again")
        return store, Settings.model_validate(found)

    def _note(self, text: str) -> None:
        logger.info("%s", text)
        self.notes.append(text)


def _fingerprint(store: RunStore, stage: str) -> str:
    found = marks.found_stage(store, stage)
    if found is None:
        raise StoreError(f"{store.url}: {stage} has not run yet; run `cryosam {stage.partition('/')[0]}` first")
    return str(found["fingerprint"])
