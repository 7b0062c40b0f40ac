"""The driver has one method for each command. It runs the stages in order, on any executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError, MemoryLimitError, StoreError
from cryosam_dask.executors.base import unfinished
from cryosam_dask.io.arrays import ArraySource
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.points.plausible import check_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models import presets, registry
from cryosam_dask.models.catalog import encoder_info, segmenter_entry, volume_info
from cryosam_dask.pipeline import checks, looked, recut
from cryosam_dask.pipeline.runner import Runner, command, stage_fingerprint
from cryosam_dask.settings import Precision, Settings
from cryosam_dask.stages import (
    borrow,
    boxes,
    chain,
    doubts,
    embed,
    features,
    ingest,
    ingest_array,
    label,
    learned,
    match,
    negative,
    project,
    propose,
    query,
    query_file,
    rank,
    recognize,
    refine,
    seen_masks,
    segment,
    select,
    standardize,
    structure,
)
from cryosam_dask.stages.base import Stage, fingerprint
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.stages.match import Pass, Survey
from cryosam_dask.stages.sight import Sight
from cryosam_dask.storage.address import public
from cryosam_dask.store import layout, marks, picks, reviews
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names
from cryosam_dask.types import Volume


class Driver(Runner):
    """Runs stages on a store. Each method is one command and skips what is done. Attributes are those of `Runner`."""

    @command
    def ingest(
        self,
        tomogram: str | Path | Volume,
        *,
        voxel_size: float | Sequence[float] | None = None,
        unsigned: bool | None = None,
    ) -> None:
        """Copy a tomogram, a file or an array as of `run`, into the store, chunked, with its levels and statistics."""
        source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
        if isinstance(source, ArraySource):
            source = self._recognized(source)
            path, stage = source.name, ingest_array.plan(source)
        else:
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
            self.note(f"{public(path)}: {note}")
        unfinished = "statistics" not in store.info
        try:
            self._execute(stage, store)
            ingest.finish(store, path)
        except (InputError, MemoryLimitError):
            # nothing can come of this store; after any other error the same command goes on with it
            if unfinished:
                self._remove()
            raise

    def _recognized(self, source: ArraySource) -> ArraySource:
        """An array as that which the run is made from, if it is."""
        if not RunStore.exists(self.url) or RunStore.is_removed(self.url):
            return source
        return ingest_array.recognized(self.store, source, self._executor.compute)

    def _replaced(self, stage: Stage, source: TomogramSource) -> bool:
        """Whether the run in the store is to be replaced by a new one of this source."""
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

    @command
    def features(self, settings: Settings) -> None:
        """Encode the slices of the three views into the feature volume."""
        store = checks.ingested(self.store)
        chosen = self._with_precision(settings)
        registry.ensure_weights(chosen.features.encoder)
        upstream = stage_fingerprint(store, ingest.NAME)
        fitting = standardize.plan(store.shape, chosen.features, upstream)
        stage = features.plan(store.shape, chosen.features, fitting.fingerprint)
        if self._stale(stage):
            for name in query_names(store):
                chain.forget(store, name, after=features.NAME)
            chain.forget_features(store)
        begun = marks.found_stage(store, fitting.name) or {}
        if marks.found_stage(store, stage.name) is None and begun.get("fingerprint") != fitting.fingerprint:
            chain.forget_features(store)
            features.prepare(store, chosen.features)
        self._standardize(fitting, chosen)
        self._execute(stage, store)
        features.finish(store, chosen.features)
        self._make_declared("features", chosen)

    def _standardize(self, stage: Stage, settings: Settings) -> None:
        """Fit the views' linear maps, slice by slice where the views do not share out evenly among the workers."""
        store = self.store
        units = {unit.name: unit for unit in unfinished(stage, store, stage.units)}
        if len(units) % self._executor.slots:
            slices = standardize.slices_of(replace(stage, units=tuple(units.values())), store.shape, settings.features)
            results = self._execute(stage, store, slices, parts=True)
            units = {unit.name: standardize.with_slices(unit, results) for unit in units.values()}
        self._execute(stage, store, [units.get(unit.name, unit) for unit in stage.units])

    @command
    def query(
        self,
        name: str,
        points: Sequence[Sequence[float]],
        settings: Settings,
        negatives: Sequence[Sequence[float]] = (),
    ) -> None:
        """Segment the prompted particles and pool their features into the query.

        negatives : (n, 3) voxels (z, y, x) on what is not of the kind
        """
        store, settings = self._ready(name, settings)
        prompts = check_points(np.asarray(points, float), store.shape)
        unwanted = _points(negatives, store)
        upstream = stage_fingerprint(store, features.NAME)
        stage = segment.plan(store.shape, settings.propagation, upstream, segment.PROMPTS, name, prompts)
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        if self._stale(stage) or self._stale(pooling) or (self._overwrite and borrow.origin(store, name)):
            self._forget(name)
        self._check_settings(name, settings)
        self._begin_query(name, prompts, unwanted, settings)
        self._segment(stage, settings, prompts)
        # planned again: its memory follows from what has been segmented
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        # before the query is done: one that is done and says nothing is of an earlier version, and of particles
        if self._overwrite or not marks.all_done(store, query.stage_name(name)):
            for note in structure.settle(store, name, settings.match, len(stage.units)):
                self.note(note)
        self._pool(pooling, "the prompt")
        settings = structure.effective(store, name, settings)
        self._describe_negatives(name, unwanted, settings)
        self._make_declared("query", settings, name)

    @command
    def borrow(
        self,
        name: str,
        donor: str | Path | Loan,
        settings: Settings | None = None,
        negatives: Sequence[Sequence[float]] = (),
    ) -> None:
        """Take a query from another run, or from a query's file, instead of making it with `query`.

        donor : path or URL of the run, which is only read and needs no more than a finished query; or a loan
        settings : for this tomogram; None takes those that the donor's query was made with
        negatives : (n, 3) voxels of this tomogram on what is not of the kind, besides those that are borrowed
        """
        loan = donor if isinstance(donor, Loan) else lent(donor, name)
        store, settings = self._ready(name, settings or loan.settings)
        borrow.check(loan, settings, store.voxel_size, self.url)
        unwanted = _points(negatives, store)
        stage = borrow.plan(store, name, settings.match, loan, stage_fingerprint(store, features.NAME))
        if self._stale(stage):
            self._forget(name)
        self._check_settings(name, settings)
        borrow.check_origin(store, name, loan)
        told = {borrow.FROM: loan.origin, **structure.borrowed(settings.match, loan.params)}
        self._begin_query(name, None, unwanted, settings, told)
        self._execute(stage, store)
        settings = structure.effective(store, name, settings)
        self._describe_negatives(name, unwanted, settings)
        self._make_declared("query", settings, name)

    def review(self, name: str, decided: Sequence[Decision], by: str | None = None) -> list[Decision]:
        """Write decisions about the picks of a query; each is on the disk when this returns. See `store.reviews`.

        Others may write the run meanwhile: this is no command, and takes no lease.
        """
        store = RunStore.open(self.url, "r+")
        checks.queried(store, name)
        return reviews.ReviewLog(store, name, by).write(decided)

    @command
    def refine(self, name: str) -> list[str]:
        """Learn from the decisions about a query's picks: `match` and `segment` then find better ones.

        Returns the names that `segment` is to be given then: of all kinds, where the picks competed with other kinds'.
        `InputError` if nothing was decided. Decisions of which all are of one verdict are enough.
        """
        store, settings = self._queried(name)
        decided = reviews.standing(store, name)
        if not decided:
            raise InputError(f"{self.url}: nothing was decided about the picks of {name!r}; `cryosam review` does that")
        upstream = negative.joined(store, name, stage_fingerprint(store, query.stage_name(name)))
        stage, kinds = refine.plan(store, name, settings, decided, upstream), self._competing(name)
        if (marks.found_stage(store, stage.name) or {}).get("fingerprint") != stage.fingerprint:
            recut.keep(store, name, settings.propagation.group)
            self._forget_refined(name, settings, kinds)
        self._named(stage)
        accepted = sum(decision.verdict != "rejected" for decision in decided)
        self.note(f"{name}: learned from {accepted} accepted and {len(decided) - accepted} rejected places")
        return kinds or [name]

    def _competing(self, name: str) -> list[str]:
        """The kinds that a query's picks competed with, itself included; or did, before they were to be made anew."""
        store = self.store
        about = store.group(layout.query(name)).attrs
        kinds = picks.kinds(store, name) if name in picks.names(store) else about.get(layout.KINDS, [])
        about[layout.KINDS] = kinds
        return [str(kind) for kind in kinds] if isinstance(kinds, list) else []

    def _forget_refined(self, name: str, settings: Settings, kinds: Sequence[str]) -> None:
        """Remove what was learned from other decisions, and what follows from it."""
        for kind in kinds:
            if kind != name:  # these compete anew
                chain.forget(self.store, kind, after=select.STAGE.name, itself=True)
        if settings.match.rank == "similarity":
            chain.forget(self.store, name, after=refine.STAGE.name, itself=True)
            return
        # what was seen of the places stays: only what is believed of them changes
        chain.forget(self.store, name, after=segment.PROPOSALS.stage, itself=True)
        for path in refine.STAGE.places(self.store, name):
            self.store.delete(path)
        self.store.delete(refine.STAGE.marks(name))

    def _check_settings(self, name: str, settings: Settings) -> None:
        if not self._overwrite:
            checks.same_settings(self.store, name, settings)

    def check_same(self, name: str, points: ArrayLike | None, negatives: ArrayLike) -> None:
        """`StoreError` where the query of that name was made from other points and is not to be replaced.

        points : (n, 3) voxels (z, y, x); None for a query that is to be borrowed; negatives : (n, 3)
        """
        if not self._overwrite:
            checks.same_points(self.store, name, points, negatives)

    def check_lender(self, name: str, settings: Settings) -> None:
        """`StoreError` where a query that is lent to others, and goes on here itself, was made with other settings."""
        checks.lender(self.store, name, self._with_precision(settings))

    @command
    def match(self, name: str) -> None:
        """Compare the query with the features, coarse to fine, and propose prompts."""
        settings = self._queried(name)[1]
        self._propose(name, settings, *self._ranked(name, settings))

    def _propose(self, name: str, settings: Settings, among: propose.Candidates, upstream: str) -> None:
        for note in propose.choose(self.store, name, settings.match, among, upstream):
            self.note(note)
        self._make_declared("match", settings, name)

    @command
    def candidates(self, name: str) -> propose.Candidates:
        """All places that `match` chooses its proposals from, with their scores; what it needs for that is made."""
        return self._ranked(name, self._queried(name)[1])[0]

    def _ranked(self, name: str, settings: Settings) -> tuple[propose.Candidates, str]:
        """The candidates, and the fingerprint of what they come from."""
        store = self.store
        this, survey, upstream = self._compare(name, settings)
        chosen = learned.searched(store, name, settings.match)
        if chosen.structure == "extended" and chosen.rank == "similarity":
            survey = structure.survey(store, this, chosen)
        if settings.match.rank == "descriptor" and survey.reached:
            sight = Sight.of_query(store, name, settings.match.structure == "extended")
            looking = recognize.plan(store, name, settings.propagation, sight, upstream)
            self._named(looking, lambda: looked.take_over(store, name, looking))
            return propose.recognized(store, name, looking), looking.fingerprint
        among = propose.candidates(store, this, survey, chosen)
        if propose.ranks(settings.match) and survey.reached:
            ranking = rank.plan(store, name, among.points, upstream)
            self._named(ranking)
            among, upstream = propose.ranked(store, name, ranking), ranking.fingerprint
        return among, upstream

    def _compare(self, name: str, settings: Settings) -> tuple[Pass, Survey, str]:
        """Evaluate the similarity from the coarsest ratio to the finest. Return the last pass, its survey, and its
        fingerprint."""
        store, chosen = self.store, learned.searched(self.store, name, settings.match)
        upstream, volume = stage_fingerprint(store, query.stage_name(name)), FeatureVolume(store)
        if chosen.rank == "similarity":
            upstream = learned.joined(store, name, upstream)
        for this in match.passes(name, chosen):
            products = project.plan(store.shape, volume.token_grids, volume.view_channels, this, upstream)
            self._named(products, lambda p=this: project.prepare(store, p))  # type: ignore[misc]
            stage = match.plan(store.shape, volume.token_grids, this, products.fingerprint)
            self._named(stage, lambda p=this: match.prepare(store, p))  # type: ignore[misc]
            survey, upstream = match.survey(store, this, chosen.tau_sim), stage.fingerprint
            if not survey.reached and borrow.origin(store, name):
                # a click that is like nothing is a mistake; that another tomogram has none of the kind is a result
                self.note(f"{name}: nothing here reaches match.tau_sim = {chosen.tau_sim:g}; {survey.words}")
                break
            if note := match.check_kept(survey, this.ratio, chosen.tau_sim):
                self.note(note)
        return this, survey, upstream

    @command
    def segment(self, name: str | Sequence[str]) -> None:
        """Segment every proposal, keep the distinct instances that belong, and write labels and picks.

        Kinds of several names compete: of instances of different kinds at one place the best stays. No voxel has two
        kinds, and `labels/kinds` says which kind it has.
        """
        names = [name] if isinstance(name, str) else checks.kinds(self.store, name)
        stages = {kind: self._instances(kind) for kind in names}
        settings = {kind: self._queried(kind)[1] for kind in names}
        groups = {kind: len(stage.units) for kind, stage in stages.items()}
        if isinstance(name, str):
            chosen = [select.select(self.store, name, groups[name], settings[name])]
            self._paint(chosen, stages[name].fingerprint)
        else:
            upstream = fingerprint({"segment": {kind: stage.fingerprint for kind, stage in stages.items()}})
            self._paint(select.compete(self.store, groups, settings), upstream, names)
        for kind in names:
            self._make_declared("segment", settings[kind], kind)

    def _instances(self, name: str) -> Stage:
        """Segment the proposals of one query."""
        store, settings = self._queried(name)
        stage, points = self._planned(name)
        if self._stale(stage):
            store.delete(layout.instances(name))
            store.delete(layout.marks(stage.name))
        elif recut.differs_in_points_alone(store, stage):
            recut.take_over(store, name, stage, recut.Segmented())
        if stage.units:
            stage_with_masks = seen_masks.told(store, name, recut.recalled(store, name, stage))
            self._segment(stage_with_masks, settings, points)
            store.delete(layout.former(name))
        return stage

    @command
    def compare(self, name: str) -> None:
        """Compare the query with the features: the first part of `match`, which makes the similarity map."""
        self._compare(name, self._queried(name)[1])

    @command
    def forget(self, name: str) -> None:
        """Remove a query, and all that it has led to; clicks and decisions stay."""
        self._forget(name)
        self.store.delete(layout.query(name))

    def chosen(self, name: str) -> int | None:
        """How many candidates were chosen to be proposed; None: as the query's settings say."""
        count = self.store.group(layout.query(name)).attrs.get(checks.COUNT)
        return None if count is None else int(str(count))

    @command
    def choose(self, name: str, count: int | None, cut: float | None = None) -> None:
        """Have `match` propose so many of the candidates, from now on; None: as the query's settings say.

        cut : or as many as have this score or a better one, but at least one

        What is segmented already is kept, as far as whole groups of prompts stay proposals; `segment` does the rest.
        """
        if count is not None and count < 1:
            raise InputError(f"{count} candidates: expected 1 or more")
        store, settings = self._queried(name)
        ranked = None
        if cut is not None:
            ranked = self._ranked(name, settings)
            count = max(1, propose.reaching(ranked[0], cut))
        known = recut.Segmented()
        if count != self.chosen(name):
            known = recut.read(store, name, settings.propagation.group)
            store.group(layout.query(name)).attrs[checks.COUNT] = count
            settings = self._queried(name)[1]
            if settings.match.rank == "similarity":  # of so many candidates no more are looked for
                ranked = None
        self._propose(name, settings, *(ranked or self._ranked(name, settings)))
        stage, _ = self._planned(name)
        if recut.differs_in_points_alone(store, stage):
            recut.take_over(store, name, stage, known)

    def _planned(self, name: str) -> tuple[Stage, NDArray[np.float64]]:
        """The segmentation of a query's proposals, and these."""
        store, settings = self._queried(name)
        points, upstream = propose.read(store, name)
        against = negative.feature_arrays(store, name)
        sight = _sight(store, name, settings)
        stage = segment.plan(
            *(store.shape, settings.propagation, upstream, segment.PROPOSALS, name, points, against, sight),
            direction=learned.direction(store, name),
        )
        return stage, points

    def _paint(self, chosen: Sequence[select.Selection], upstream: str, kinds: Sequence[str] = ()) -> None:
        """Write picks and labels of the chosen instances; with several kinds also the image of all kinds."""
        store = self.store
        stages = [
            label.plan(store, selection.name, selection.boxes, selection.sources, upstream, kinds)
            for selection in chosen
        ]
        if kinds:
            stages.append(label.plan(store, layout.KINDS, *select.combined(list(chosen)), upstream, kinds))
        for stage in stages:  # before any picks are replaced
            self._check_same(stage)
        if not kinds and any(self._stale(stage) for stage in stages):
            for path in label.places_of_kinds(store, chosen[0].name):
                store.delete(path)
        for stage in stages:  # labels that belong to other picks are not done
            if self._stale(stage):
                store.delete(layout.marks(stage.name))
        for selection in chosen:
            for note in selection.notes:
                self.note(note)
            selection.write(store)
        for stage, image in zip(stages, [*(selection.name for selection in chosen), layout.KINDS], strict=False):
            self._named(stage, lambda name=image: label.prepare(store, name, kinds))  # type: ignore[misc]

    def _ready(self, name: str, settings: Settings) -> tuple[RunStore, Settings]:
        """Return the store, and the settings with precisions decided, after checking that the query can be made."""
        store = checks.ingested(self.store)
        checks.free_name(store, name)
        checks.encoder(store, settings)
        presets.check(settings)
        settings = self._with_precision(settings)
        registry.ensure_weights(settings.propagation.segmenter)
        if volume_info(settings.propagation.segmenter) is not None:
            boxes.write_deviations(store)
        return store, settings

    def _queried(self, name: str) -> tuple[RunStore, Settings]:
        """Return the store, and the settings that a query was made with."""
        store = self.store
        return store, checks.queried(store, name)

    def _begin_query(
        self,
        name: str,
        points: ArrayLike | None,
        negatives: NDArray[np.float64],
        settings: Settings,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write down what a query is made from and with; `StoreError` where it was made from something else."""
        store = self.store
        self.check_same(name, points, negatives)
        if negative.given(store, name) != negatives.tolist():
            if marks.found_stage(store, query.stage_name(name)) is not None:  # what followed from others goes
                chain.forget(store, name, after=segment.NEGATIVES.stage, itself=True)
            store.group(layout.query(name)).attrs[negative.POINTS] = negatives.tolist()
        store.group(layout.query(name)).attrs.update({"settings": settings.model_dump(mode="json"), **(more or {})})

    def _describe_negatives(self, name: str, points: NDArray[np.float64], settings: Settings) -> None:
        """Segment the negative points, and describe them for comparison with the query's candidates."""
        if not len(points):
            return
        store, upstream = self.store, stage_fingerprint(self.store, features.NAME)
        sight = Sight.of_query(store, name) if settings.match.rank == "descriptor" else None
        role = segment.NEGATIVES
        stage = segment.plan(store.shape, settings.propagation, upstream, role, name, points, sight=sight)
        if self._stale(stage):
            store.delete(layout.negatives(name))
            store.delete(layout.marks(stage.name))
        self._segment(stage, settings, points)
        telling = negative.plan(store, name, settings, len(stage.units), points.tolist(), stage.fingerprint)
        if self._stale(telling):
            store.delete(layout.marks(telling.name))
        self._pool(telling, "the negative point")

    def _pool(self, stage: Stage, what: str) -> None:
        """Average features over what was segmented; say where nothing was, and what is doubtful."""
        for result in self._execute(stage, self.store).values():
            for point, said in result.get("doubts", []):
                self.note(f"{what} {checks.say(point)}: {' and '.join(said)}; {doubts.HELPS}")
            for point in result.get("missing", []):
                self.note(f"nothing could be segmented at {what} {checks.say(point)}")

    def _forget(self, name: str) -> None:
        """Remove all that a query has led to, and the query."""
        chain.forget(self.store, name, after=segment.PROMPTS.stage, itself=True)

    def _with_precision(self, settings: Settings) -> Settings:
        """Settings with "auto" precisions decided: those of the stored stages, else those that suit the device."""
        encoder = encoder_info(settings.features.encoder)
        segmenter, _ = segmenter_entry(settings.propagation.segmenter)
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
        begun = None if self._overwrite else marks.found_stage(self.store, stage)
        if begun is not None:
            return str(begun["settings"]["precision"])
        return self._executor.precision if uses_torch else "float32"


def lent(where: str | Path, name: str) -> Loan:
    """Return the query `name` of a run, or the query of a file, which gets that name."""
    if query_file.is_file(where):
        return query_file.renamed(query_file.read(where), name)
    return borrow.take(RunStore.open(where), name)


def _sight(store: RunStore, name: str, settings: Settings) -> Sight | None:
    """How a segmenter of volumes looks at a query; None for segmenters of planes."""
    if settings.match.rank != "descriptor":
        return None
    return Sight.of_query(store, name, settings.match.structure == "extended")


def _points(points: Sequence[Sequence[float]], store: RunStore) -> NDArray[np.float64]:
    """Negative points (n, 3) that lie in the tomogram; there may be none."""
    if not len(points):
        return np.empty((0, 3))
    return check_points(np.asarray(points, float), store.shape, "negative points")
