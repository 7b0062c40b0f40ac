"""The commands that search for a query: its similarity, the places that are proposed, and their instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.pipeline import checks, looked, recut
from cryosam_dask.pipeline.querying import Querying
from cryosam_dask.pipeline.runner import command, stage_fingerprint
from cryosam_dask.settings import Settings
from cryosam_dask.stages import (
    borrow,
    label,
    learned,
    match,
    negative,
    project,
    propose,
    query,
    rank,
    recognize,
    seen_masks,
    segment,
    select,
    structure,
)
from cryosam_dask.stages.base import Stage, fingerprint
from cryosam_dask.stages.match import Pass, Survey
from cryosam_dask.stages.sight import Sight
from cryosam_dask.store import layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore


class Searching(Querying):
    """Commands from a query to labels and picks."""

    @command
    def compare(self, name: str) -> None:
        """Compare the query with the features: the first part of `match`, which makes the similarity map."""
        self._compare(name, self._queried(name)[1])

    @command
    def match(self, name: str) -> None:
        """Compare the query with the features, coarse to fine, and propose prompts."""
        settings = self._queried(name)[1]
        self._propose(name, settings, *self._ranked(name, settings))

    @command
    def candidates(self, name: str) -> propose.Candidates:
        """All places that `match` chooses its proposals from, with their scores; what it needs for that is made."""
        return self._ranked(name, self._queried(name)[1])[0]

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

    def _propose(self, name: str, settings: Settings, among: propose.Candidates, upstream: str) -> None:
        for note in propose.choose(self.store, name, settings.match, among, upstream):
            self.note(note)
        self._make_declared("match", settings, name)

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


def _sight(store: RunStore, name: str, settings: Settings) -> Sight | None:
    """How a segmenter of volumes looks at a query; None for segmenters of planes."""
    if settings.match.rank != "descriptor":
        return None
    return Sight.of_query(store, name, settings.match.structure == "extended")
