"""The driver: one method for each command, stages in order, on whatever executes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError, MemoryLimitError, StoreError
from cryosam_dask.io.arrays import ArraySource
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.picks import check_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models import registry
from cryosam_dask.models.catalog import encoder_info, segmenter_info
from cryosam_dask.pipeline.runner import Runner, command, stage_fingerprint
from cryosam_dask.settings import Precision, Settings
from cryosam_dask.stages import (
    borrow,
    embed,
    features,
    ingest,
    ingest_array,
    label,
    match,
    negative,
    project,
    propose,
    query,
    query_file,
    rank,
    segment,
    select,
)
from cryosam_dask.stages.base import Stage, fingerprint
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.store import layout, marks
from cryosam_dask.store.address import public
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.store.views import query_names
from cryosam_dask.types import Volume


class Driver(Runner):
    """Runs stages on a store. Each method is one command; all skip what is done. Attributes are those of `Runner`."""

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

    @command
    def features(self, settings: Settings) -> None:
        """Encode the slices of the three views into the feature volume."""
        store = self._ingested()
        chosen = self._with_precision(settings).features
        registry.ensure_weights(chosen.encoder)
        upstream = stage_fingerprint(store, ingest.NAME)
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
        self._check_free(name)
        store = self._ingested()
        self._check_encoder(settings)
        settings = self._with_precision(settings)
        registry.ensure_weights(settings.propagation.segmenter)
        prompts = check_points(np.asarray(points, float), store.shape)
        unwanted = _points(negatives, store)
        where, upstream = layout.query(name), stage_fingerprint(store, features.NAME)
        stage = segment.plan(store.shape, settings.propagation, upstream, where, prompts, None)
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        if self._stale(stage) or self._stale(pooling) or (self._overwrite and borrow.origin(store, name)):
            self._forget(name)
        self._check_settings(where, settings)
        self.check_same(name, prompts, unwanted)
        self._decide_negatives(name, unwanted)
        store.group(where).attrs["settings"] = settings.model_dump(mode="json")
        self._segment(stage, settings, prompts)
        # planned again: its memory follows from what has been segmented
        pooling = query.plan(store, name, settings.match, len(stage.units), prompts.tolist(), stage.fingerprint)
        for result in self._execute(pooling, store).values():
            for point in result.get("missing", []):
                self.note(f"nothing could be segmented at the prompt {_say(point)}")
        self._describe_negatives(name, unwanted, settings)

    @command
    def borrow(
        self,
        name: str,
        donor: str | Path | Loan,
        settings: Settings | None = None,
        negatives: Sequence[Sequence[float]] = (),
    ) -> None:
        """Take the query of that name of another run, or of a query's file, in the place of `query`.

        donor : the run, path or URL; only its query must be finished, and it is only read. Or what was read already
        settings : for this tomogram; None: those that the donor's query was made with
        negatives : (n, 3) voxels of this tomogram on what is not of the kind, besides those that are borrowed
        """
        self._check_free(name)
        store = self._ingested()
        loan = donor if isinstance(donor, Loan) else lent(donor, name)
        self._check_encoder(settings or loan.settings)
        settings = self._with_precision(settings or loan.settings)
        registry.ensure_weights(settings.propagation.segmenter)
        borrow.check(loan, settings, store.voxel_size, self.url)
        unwanted = _points(negatives, store)
        stage = borrow.plan(store, name, settings.match, loan, stage_fingerprint(store, features.NAME))
        if self._stale(stage):
            self._forget(name)
        self._check_settings(layout.query(name), settings)
        borrow.check_origin(store, name, loan)
        self.check_same(name, None, unwanted)
        self._decide_negatives(name, unwanted)
        described = {"settings": settings.model_dump(mode="json"), borrow.FROM: loan.origin}
        store.group(layout.query(name)).attrs.update(described)
        self._execute(stage, store)
        self._describe_negatives(name, unwanted, settings)

    def check_same(self, name: str, points: ArrayLike | None, negatives: ArrayLike) -> None:
        """`StoreError` where the query of that name was made from other points and is not to be replaced.

        points : (n, 3) voxels (z, y, x); None for a query that is to be borrowed; negatives : (n, 3)
        """
        store, where = self.store, layout.query(name)
        if self._overwrite or where not in store:
            return
        found, made = borrow.origin(store, name), marks.found_stage(store, query.stage_name(name))
        if points is not None and found:
            raise StoreError(
                f"{self.url}: query {name!r} was taken from a run of {found['tomogram']}; "
                "use another --name for one of these points, or --overwrite"
            )
        if made is None or (points is None and not found):
            return
        told = {
            "points": (made["settings"].get("points"), points),
            "negatives": (store.group(where).attrs.get(negative.POINTS, []), negatives),
        }
        differing = [
            f"{what}: {_brief(known)} → {_brief(wanted)}"
            for what, (known, given) in told.items()
            if given is not None and known != (wanted := np.asarray(given, float).reshape(-1, 3).tolist())
        ]
        if differing:
            raise StoreError(
                f"{self.url}: {where} was made with other settings ({'; '.join(differing)}); use the same points and "
                "kinds (clicks on one are negatives of the others), another --name, or --overwrite"
            )

    def _check_free(self, name: str) -> None:
        """`StoreError` for a name that a query can't have here."""
        check_name(name)
        if name == layout.KINDS and marks.found_stage(self.store, label.stage_name(name)):
            settings = (marks.found_stage(self.store, label.stage_name(name)) or {})["settings"]
            if "kinds" in settings:
                raise StoreError(f"{self.url}: labels/{name} is the image of all kinds here; use another name")

    def _decide_negatives(self, name: str, points: NDArray[np.float64]) -> None:
        """Write down which points are not of the kind; what followed from others goes."""
        store, where = self.store, layout.query(name)
        known, wanted = store.group(where).attrs.get(negative.POINTS, []), points.tolist()
        if known == wanted:
            return
        if marks.found_stage(store, query.stage_name(name)) is not None:
            self._forget_results(name)
        store.group(where).attrs[negative.POINTS] = wanted

    def _describe_negatives(self, name: str, points: NDArray[np.float64], settings: Settings) -> None:
        """Segment what is not of the kind, and find what tells the query's candidates from it."""
        if not len(points):
            return
        store, where = self.store, layout.negatives(name)
        stage = segment.plan(
            store.shape, settings.propagation, stage_fingerprint(store, features.NAME), where, points, None
        )
        if self._stale(stage):
            store.delete(where)
            store.delete(layout.marks(stage.name))
        self._segment(stage, settings, points)
        telling = negative.plan(store, name, settings.match, len(stage.units), points.tolist(), stage.fingerprint)
        if self._stale(telling):
            store.delete(layout.marks(telling.name))
        for result in self._execute(telling, store).values():
            for point in result.get("missing", []):
                self.note(f"nothing could be segmented at the negative point {_say(point)}")

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

    def check_lender(self, name: str, settings: Settings) -> None:
        """`StoreError` where a query that is lent to others, and goes on here itself, was made with other settings."""
        where = layout.query(name)
        if differing := self._other_settings(where, self._with_precision(settings)):
            raise StoreError(
                f"{self.url}: {where}, which others are given, was made here with other settings "
                f"({'; '.join(differing)}); use the same settings, or leave this tomogram out"
            )

    def _check_encoder(self, settings: Settings) -> None:
        """Refuse settings of another encoder than the features are of: they would be told as what was run."""
        made, asked = self.store.info.get("features", {}).get("encoder"), settings.features.encoder
        if made not in (None, asked):
            raise StoreError(
                f"{self.url}: its features are of {made}, and the models ask for {asked}; give "
                f"--models {made}+{settings.propagation.segmenter}, or make the features again with --overwrite"
            )

    def _check_settings(self, where: str, settings: Settings) -> None:
        """Refuse to continue a query with other settings, by their names; stages know only those that concern them."""
        if not self._overwrite and (differing := self._other_settings(where, settings)):
            raise StoreError(
                f"{self.url}: {where} was made with other settings ({'; '.join(differing)}); "
                "use the same settings, another --name, or --overwrite"
            )

    def _other_settings(self, where: str, settings: Settings) -> list[str]:
        found = self.store.group(where).attrs.get("settings")
        return marks.differences(dict(found), settings.model_dump(mode="json")) if isinstance(found, dict) else []

    @command
    def match(self, name: str) -> None:
        """Compare the query with the features, coarse to fine, and propose prompts."""
        store, settings = self._queried(name)
        upstream = stage_fingerprint(store, query.stage_name(name))
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
                self.note(f"{name}: nothing here reaches match.tau_sim = {settings.match.tau_sim:g}; {found.words}")
                break
            if note := match.check_kept(found, this.ratio, settings.match.tau_sim):
                self.note(note)
        radius = propose.suppression_radius(store, name, settings.match)
        if settings.match.rank == "profile" and found.reached:
            most = propose.shortlist_length(store.shape)
            candidates, _ = propose.survivors(store, this, found, radius, most)
            ranking = rank.plan(store, name, candidates, upstream)
            self._named(ranking, lambda: None)
            points, scores, left_out = rank.gather(
                store, name, ranking, lambda contrast: negative.profiles(store, name, contrast)
            )
            if left_out:
                self.note(f"{name}: {left_out} candidates left out, nearer to a negative than to the query")
            radius, upstream = rank.query_radius(store, name), ranking.fingerprint
        else:
            count = None if settings.match.count == "auto" else settings.match.count
            points, similarity = propose.survivors(store, this, found, radius, count)
            scores = similarity.astype(float)
        if self._has_negatives(name):
            unlike = stage_fingerprint(store, negative.stage_name(name))
            upstream = fingerprint({"match": upstream, "negatives": unlike})
        for note in propose.choose(store, name, settings.match, points, scores, radius, upstream):
            self.note(note)
        if settings.match.rank == "similarity" and negative.feature_arrays(store, name):
            proposals, full = store.group(layout.proposals(name)), len(points) == settings.match.count
            if proposals.attrs.get(propose.FULL) != full:
                proposals.attrs[propose.FULL] = full

    @command
    def segment(self, name: str | Sequence[str]) -> None:
        """Segment every proposal, keep the distinct instances that belong, and write labels and picks.

        Of several names, kinds are told apart: of instances of different kinds at one place the best stays, no voxel
        has two kinds, and `labels/kinds` says which it has.
        """
        if isinstance(name, str):
            store, settings = self._queried(name)
            stage = self._instances(name)
            chosen = select.select(store, name, len(stage.units), settings)
            self._paint([chosen], stage.fingerprint)
            return
        names = self._kinds(name)
        stages = {kind: self._instances(kind) for kind in names}
        every = {kind: self._queried(kind)[1] for kind in names}
        groups = {kind: len(stage.units) for kind, stage in stages.items()}
        upstream = fingerprint({"segment": {kind: stage.fingerprint for kind, stage in stages.items()}})
        self._paint(select.compete(self.store, groups, every), upstream, names)

    def _kinds(self, names: Sequence[str]) -> list[str]:
        """The names of kinds that can be told apart; `StoreError` or `InputError` where they can't."""
        kinds = list(names)
        if len(set(kinds)) != len(kinds) or not 1 < len(kinds) <= layout.MOST_KINDS:
            raise InputError(f"kinds {', '.join(kinds)}: expected 2 to {layout.MOST_KINDS} different names")
        if layout.query(layout.KINDS) in self.store:
            raise StoreError(f"{self.url}: labels/{layout.KINDS} is to be the image of all kinds, not of a query")
        ranks = {kind: self._queried(kind)[1].match.rank for kind in kinds}
        if len(set(ranks.values())) > 1:
            said = ", ".join(f"{kind} by {how}" for kind, how in ranks.items())
            raise StoreError(
                f"{self.url}: kinds that were ranked differently ({said}) can't be compared; "
                "make their queries with the same match.rank"
            )
        return kinds

    def _instances(self, name: str) -> Stage:
        """Segment the proposals of one query."""
        store, settings = self._queried(name)
        points, upstream = propose.read(store, name)
        where = layout.instances(name)
        against = negative.feature_arrays(store, name)
        stage = segment.plan(store.shape, settings.propagation, upstream, where, points, layout.query(name), against)
        if self._stale(stage):
            store.delete(where)
            store.delete(layout.marks(stage.name))
        if stage.units:
            self._segment(stage, settings, points)
        return stage

    def _paint(self, chosen: Sequence[select.Selection], upstream: str, kinds: Sequence[str] = ()) -> None:
        """Write the picks of what was chosen, and the labels; of several kinds also the image of all."""
        store = self.store
        stages = [label.plan(store, one.name, one.boxes, one.sources, upstream, kinds) for one in chosen]
        if kinds:
            stages.append(label.plan(store, layout.KINDS, *select.combined(list(chosen)), upstream, kinds))
        for stage in stages:  # before any picks are replaced
            self._check_same(stage)
        if not kinds and any(self._stale(stage) for stage in stages):
            self._forget_combined(chosen[0].name)
        for stage in stages:  # labels that belong to other picks are not done
            if self._stale(stage):
                store.delete(layout.marks(stage.name))
        for one in chosen:
            for note in one.notes:
                self.note(note)
            one.write(store)
        for stage, image in zip(stages, [*(one.name for one in chosen), layout.KINDS], strict=False):
            self._named(stage, lambda name=image: label.prepare(store, name, kinds))  # type: ignore[misc]

    def _forget(self, name: str) -> None:
        """Remove all that a query has led to, and the query."""
        store = self.store
        self._forget_results(name)
        store.delete(layout.query(name))
        store.delete(f"similarity/{name}")
        # the marks by which a query is found to be stale go last: interrupted before, all this is done again
        for stage in (
            f"match/{name}",
            f"project/{name}",
            query.stage_name(name),
            segment.stage_name(layout.query(name)),
        ):
            store.delete(layout.marks(stage))

    def _forget_results(self, name: str) -> None:
        """Remove what follows from a query and its negatives, these included."""
        store = self.store
        self._forget_combined(name)
        for path in (layout.proposals(name), layout.instances(name), layout.picks(name), layout.negatives(name)):
            store.delete(path)
        for image in (name, layout.semantic_name(name)):
            store.delete(layout.labels_group(image))
        for stage in (
            label.stage_name(name),
            segment.stage_name(layout.instances(name)),
            rank.stage_name(name),
            negative.stage_name(name),
            segment.stage_name(layout.negatives(name)),
        ):
            store.delete(layout.marks(stage))

    def _forget_combined(self, name: str) -> None:
        """Remove the image of all kinds if this is one of them."""
        stage = label.stage_name(layout.KINDS)
        found = marks.found_stage(self.store, stage)
        if found is not None and name in found["settings"].get("kinds", ()):
            self.store.delete(layout.labels_group(layout.KINDS))
            self.store.delete(layout.marks(stage))

    def _ingested(self) -> RunStore:
        store = self.store
        if "statistics" not in store.info:
            raise StoreError(f"{self.url}: the ingest is not finished; run `cryosam ingest` or `cryosam run` again")
        return store

    def _queried(self, name: str) -> tuple[RunStore, Settings]:
        """The store and the settings that a query was made with."""
        store = self._ingested()
        where = layout.query(check_name(name))
        if where not in store or not marks.all_done(store, query.stage_name(name)):
            made = [one for one in query_names(store) if marks.all_done(store, query.stage_name(one))]
            known = ", ".join(made) or "none yet"
            raise StoreError(f"{self.url}: no query called {name!r} (there are: {known}); run `cryosam query` first")
        found = store.group(where).attrs.get("settings")
        if not isinstance(found, dict):
            raise StoreError(f"{self.url}: the settings of query {name!r} are lost; run `cryosam query` again")
        if self._has_negatives(name) and not marks.all_done(store, negative.stage_name(name)):
            raise StoreError(f"{self.url}: the negative points of {name!r} are not finished; run `cryosam query` again")
        return store, Settings.model_validate(found)

    def _has_negatives(self, name: str) -> bool:
        """Whether points in this tomogram were said not to be of a query's kind."""
        return bool(self.store.group(layout.query(name)).attrs.get(negative.POINTS))


def lent(where: str | Path, name: str) -> Loan:
    """The query of a run, or of a query's file whatever its name."""
    if query_file.is_file(where):
        return query_file.renamed(query_file.read(where), name)
    return borrow.take(RunStore.open(where), name)


def _points(points: Sequence[Sequence[float]], store: RunStore) -> NDArray[np.float64]:
    """Negative points (n, 3) that lie in the tomogram; there may be none."""
    return check_points(np.asarray(points, float), store.shape) if len(points) else np.empty((0, 3))


def _brief(points: object) -> str:
    """A few positions, for an error."""
    listed = points if isinstance(points, list) else []
    return "; ".join([_say(point) for point in listed[:3]] + ["…"] * (len(listed) > 3)) or "none"


def _say(point: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in point)
