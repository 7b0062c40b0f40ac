"""The commands that make a query, of points or of one that another run lends, and take it away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.io.points.plausible import check_points
from cryosam_dask.models import presets, registry
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.pipeline import checks
from cryosam_dask.pipeline.preparing import Preparing
from cryosam_dask.pipeline.runner import command, stage_fingerprint
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, boxes, chain, doubts, features, negative, query, query_file, segment, structure
from cryosam_dask.stages.base import Stage
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.stages.sight import Sight
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore


class Querying(Preparing):
    """Commands for one query, and what all commands that use it check first."""

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

    @command
    def forget(self, name: str) -> None:
        """Remove a query, and all that it has led to; clicks and decisions stay."""
        self._forget(name)
        self.store.delete(layout.query(name))

    def check_same(self, name: str, points: ArrayLike | None, negatives: ArrayLike) -> None:
        """`StoreError` where the query of that name was made from other points and is not to be replaced.

        points : (n, 3) voxels (z, y, x); None for a query that is to be borrowed; negatives : (n, 3)
        """
        if not self._overwrite:
            checks.same_points(self.store, name, points, negatives)

    def check_lender(self, name: str, settings: Settings) -> None:
        """`StoreError` where a query that is lent to others, and goes on here itself, was made with other settings."""
        checks.lender(self.store, name, self._with_precision(settings))

    def _check_settings(self, name: str, settings: Settings) -> None:
        if not self._overwrite:
            checks.same_settings(self.store, name, settings)

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


def lent(where: str | Path, name: str) -> Loan:
    """Return the query `name` of a run, or the query of a file, which gets that name."""
    if query_file.is_file(where):
        return query_file.renamed(query_file.read(where), name)
    return borrow.take(RunStore.open(where), name)


def _points(points: Sequence[Sequence[float]], store: RunStore) -> NDArray[np.float64]:
    """Negative points (n, 3) that lie in the tomogram; there may be none."""
    if not len(points):
        return np.empty((0, 3))
    return check_points(np.asarray(points, float), store.shape, "negative points")
