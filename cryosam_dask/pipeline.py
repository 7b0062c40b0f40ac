"""The driver: stages in order, on whatever executes them, from a tomogram and a click to labels and picks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError, MemoryLimitError, StoreError
from cryosam_dask.executors.base import Execution, Executor, Timing, execute, unfinished
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.io.picks import check_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models.catalog import encoder_info, parse_models, segmenter_info
from cryosam_dask.models.registry import ensure_weights
from cryosam_dask.settings import Precision, Settings, preset
from cryosam_dask.stages import embed, features, ingest, label, match, project, propose, query, rank, segment, select
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.store import layout, marks
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.store.views import query_names

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)


def settings_for(models: str, overrides: dict[str, Any] | None = None) -> Settings:
    """The settings of a models spec ("builtin", "paper", "ENCODER+SEGMENTER"), with dotted overrides."""
    encoder, segmenter = parse_models(models)
    return preset(models, encoder, segmenter).replace(overrides or {})


def uses_torch_of(settings: Settings) -> bool:
    """Whether a model of these settings runs in torch, and so could use a GPU."""
    segmenter = segmenter_info(settings.propagation.segmenter)
    return encoder_info(settings.features.encoder).uses_torch or segmenter.uses_torch


def run(
    tomogram: str | Path,
    points: Sequence[Sequence[float]],
    out: str | Path,
    *,
    name: str = "particle",
    models: str = "paper",
    settings: Settings | None = None,
    client: Client | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Driver:
    """Segment every particle like the one(s) at `points`.

    Parameters
    ----------
    tomogram : MRC file, or OME-Zarr as a folder or URL
    points : (n, 3) voxels (z, y, x), zero-based, all on particles of one kind
    out : the run's store, a folder or fsspec URL; an existing run with the same settings is continued
    name : name of the query; one store may hold several
    models : "builtin", "paper" or "ENCODER+SEGMENTER"; settings : instead of the models' preset
    client, workers, scheduler, device : where to run, see `executors.local.make_executor`
    voxel_size : ångström, instead of the file's; unsigned : how to read 8-bit MRC voxels
    overwrite : replace what was made with other settings

    Returns the closed `Driver`, whose `url` and `timings` say where the results are and what each unit took.
    """
    from cryosam_dask.executors.local import make_executor

    chosen = settings or settings_for(models)
    check_name(name)
    source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
    check_points(np.asarray(points, float), source.shape)
    for model in (chosen.features.encoder, chosen.propagation.segmenter):
        ensure_weights(model)
    with make_executor(workers, scheduler, device, client, uses_torch=uses_torch_of(chosen)) as executor:
        driver = Driver(out, executor, progress, overwrite=overwrite)
        driver.ingest(tomogram, voxel_size=voxel_size, unsigned=unsigned)
        driver.features(chosen)
        driver.query(name, points, chosen)
        driver.match(name)
        driver.segment(name)
    return driver


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

    def ingest(
        self, tomogram: str | Path, *, voxel_size: float | Sequence[float] | None = None, unsigned: bool | None = None
    ) -> None:
        """Copy a tomogram into the store, chunked, with its levels and statistics."""
        source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
        path = str(tomogram) if "://" in str(tomogram) else str(Path(tomogram).expanduser().absolute())
        sizes = list(source.voxel_size) if voxel_size is not None else None
        stage = ingest.plan(source, path, {"voxel_size": sizes, "unsigned": unsigned})
        fresh = not RunStore.exists(self.url)
        if not fresh and self._overwrite and self._differs(stage):
            _remove_run(self.url)
            fresh = True
        store = ingest.create_store(self.url, source, path) if fresh else self.store
        if not fresh and marks.found_stage(store, stage.name) is None:
            ingest.prepare(store, source)
        for note in source.notes:
            self._note(f"{path}: {note}")
        unfinished = "statistics" not in store.info
        try:
            self._execute(stage, store)
            ingest.finish(store, path)
        except (InputError, MemoryLimitError):
            # nothing can come of this store; after any other error the same command goes on with it
            if unfinished:
                _remove_run(self.url)
            raise

    def features(self, settings: Settings) -> None:
        """Encode the slices of the three views into the feature volume."""
        store = self._ingested()
        chosen = self._with_precision(settings).features
        ensure_weights(chosen.encoder)
        upstream = _fingerprint(store, ingest.NAME)
        standardize = features.plan_standardize(store.shape, chosen, upstream)
        stage = features.plan(store.shape, chosen, standardize.fingerprint)
        if self._stale(stage):
            for name in (features.STANDARDIZE, features.NAME, features.DENSE):
                store.delete(layout.marks(name))
            for name in query_names(store):
                self._forget(name)
        if marks.found_stage(store, stage.name) is None:
            store.delete(layout.marks(features.STANDARDIZE))
            store.delete(layout.marks(features.DENSE))
            features.prepare(store, chosen)
        if standardize.units:
            self._execute(standardize, store)
        self._execute(stage, store)
        features.finish(store, chosen)
        self._execute(features.plan_dense(store.shape, chosen, stage.fingerprint), store)

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
        store.group(where).attrs["settings"] = settings.model_dump(mode="json")
        self._segment(stage, settings, prompts)
        # planned again: its memory follows from what has been segmented
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        for result in self._execute(pooling, store).values():
            for point in result.get("missing", []):
                self._note(f"nothing could be segmented at the prompt {','.join(f'{v:g}' for v in point)}")

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
            if note := match.check_kept(found, this.ratio, settings.match.tau_sim):
                self._note(note)
            upstream = stage.fingerprint
        radius = propose.suppression_radius(store, name, settings.match)
        if settings.match.rank == "profile":
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

    def segment(self, name: str) -> None:
        """Segment every proposal, keep the distinct instances that belong, and write labels and picks."""
        store, settings = self._queried(name)
        points, upstream = propose.read(store, name)
        where = layout.instances(name)
        stage = segment.plan(store.shape, settings.propagation, upstream, where, points, layout.query(name))
        if self._stale(stage):
            store.delete(where)
            store.delete(layout.marks(stage.name))
        self._segment(stage, settings, points)
        chosen = select.select(store, name, len(stage.units), settings)
        for note in chosen.notes:
            self._note(note)
        painting = label.plan(store, name, chosen.boxes, chosen.sources, stage.fingerprint)
        self._named(painting, lambda: label.prepare(store, name))

    @property
    def store(self) -> RunStore:
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
        done = execute(stage, store, self._executor, progress or self._progress, units=wanted)
        self._account(stage, wanted, done)
        return {name: result.value for name, result in done.results.items()}

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
        for where in (layout.query(name), layout.instances(name)):
            store.delete(layout.marks(segment.stage_name(where)))
        for stage in (
            query.stage_name(name),
            f"project/{name}",
            f"match/{name}",
            rank.stage_name(name),
            label.stage_name(name),
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
        if f"{where}/feature" not in store:
            known = ", ".join(query_names(store)) or "none yet"
            raise StoreError(f"{self.url}: no query called {name!r} (there are: {known}); run `cryosam query` first")
        return store, Settings.model_validate(store.group(where).attrs["settings"])

    def _note(self, text: str) -> None:
        logger.info("%s", text)
        self.notes.append(text)


def _fingerprint(store: RunStore, stage: str) -> str:
    found = marks.found_stage(store, stage)
    if found is None:
        raise StoreError(f"{store.url}: {stage} has not run yet; run `cryosam {stage.partition('/')[0]}` first")
    return str(found["fingerprint"])


def _remove_run(url: str) -> None:
    """Delete a store that is ours."""
    import fsspec

    filesystem, path = fsspec.url_to_fs(url)
    filesystem.rm(path, recursive=True)
