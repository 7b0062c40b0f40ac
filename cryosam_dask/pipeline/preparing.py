"""The commands that make what all queries of a run share: its tomogram, and the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryosam_dask.errors import InputError, MemoryLimitError, StoreError
from cryosam_dask.executors.base import unfinished
from cryosam_dask.io.arrays import ArraySource
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models import registry
from cryosam_dask.models.catalog import encoder_info, segmenter_entry
from cryosam_dask.pipeline import checks
from cryosam_dask.pipeline.runner import Runner, command, stage_fingerprint
from cryosam_dask.settings import Precision, Settings
from cryosam_dask.stages import chain, embed, features, ingest, ingest_array, standardize
from cryosam_dask.stages.base import Stage
from cryosam_dask.storage.address import public
from cryosam_dask.store import marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names
from cryosam_dask.types import Volume


class Preparing(Runner):
    """Commands for a run as a whole, and the precision that models work with."""

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
