"""Negative: points that are not of the query's kind → features and profiles that candidates are compared with.

The points are segmented as prompts are (`stages.segment`, under `negatives/NAME`), each one's features are averaged
over its mask, and the tomogram is described around it just as around a candidate: from places all over the mask, each
moved to where the query's profile fits best near it. A particle of another kind has several such places, and a
candidate stands at any of them.

A borrowed query brings the negative examples of its donor along (`stages.borrow`); those of points in this tomogram
join them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import likeness, radial_profiles
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.settings import Settings
from cryosam_dask.stages import query, rank, segment_volume, sight
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult, fingerprint
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_one_unit
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Json

Float64 = NDArray[np.float64]

POINTS = "negatives"
"""Attribute of a query: points in this tomogram that are not of its kind."""

PLACES = 256
"""Places of a mask that are moved to where the query fits, at most."""

STEP = 2
"""Voxels between two of them, at least."""


def stage_name(name: str) -> str:
    return STAGE.stage_name(name)


def plan(
    store: RunStore,
    name: str,
    settings: Settings,
    groups: int,
    points: list[list[float]],
    upstream: str,
) -> Stage:
    """Plan one unit, which reads only what lies under and around the negatives.

    groups : number of groups that the points were segmented in; upstream : fingerprint of their segmentation
    """
    where = layout.negatives(name)
    boxes = query.prompted_boxes(store, where, groups)
    memory = max(query.unit_memory(store, box, settings.match) for box in boxes)
    if settings.match.rank == "profile" and layout.query_array(name, "profiles") in store:
        shells = radial_profiles.profile(rank.query_radius(store, name))
        block = np.minimum(np.array(store.shape), rank.BLOCK + 2 * shells.halo)
        memory = max(memory, radial_profiles.working_bytes(block, PLACES, shells) + BESIDES)
    unit = Unit(
        name="negatives",
        marks=(0,),
        params={"groups": groups},
        writes=(Region(layout.negative_array(name, "features"), (0, 0), (len(points), FeatureVolume(store).channels)),),
        memory=memory,
    )
    asked = (marks.found_stage(store, query.stage_name(name)) or {}).get("fingerprint")
    described: Json = {"name": name, "rank": settings.match.rank, "points": points}
    made_from = fingerprint({"query": asked, "negatives": upstream})
    whole = volume_info(settings.propagation.segmenter) if settings.match.rank == "descriptor" else None
    if whole is None:
        return Stage(stage_name(name), work, described, made_from, (unit,), 1)
    described |= {"segmenter": settings.propagation.segmenter, "precision": settings.propagation.precision}
    unit = replace(unit, memory=unit.memory + segment_volume.unit_memory(whole, 1))
    return Stage(stage_name(name), work, described, made_from, (unit,), 1, True, whole.weights_bytes)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Average the features over each negative, and describe it as candidates are."""
    store = context.store
    name = settings["name"]
    where, volume = layout.negatives(name), FeatureVolume(store)
    points = np.asarray(settings["points"], np.float64)
    features: list[Any] = []
    places: list[Float64] = []
    segmented: set[int] = set()
    for group in range(unit.params["groups"]):
        instances = stored.read(store, layout.group(where, group))
        for i, prompt in enumerate(instances.prompt):
            mask, box = instances.mask(i), stored.as_box(instances.box[i])
            features.append(volume.pool_block(mask, box) / instances.size[i])
            if settings["rank"] == "profile":
                places.append(_described(store, name, _places(mask, instances.box[i, :3]), mask, instances.box[i, :3]))
            segmented.add(int(prompt))
    missing = [i for i in range(len(points)) if i not in segmented]
    if settings["rank"] == "profile":
        # where nothing could be segmented, the place itself is still what a candidate could stand on
        places += [_described(store, name, points[[i]]) for i in missing]
        profiles = np.concatenate([_none(store, name), *places])
        store.put(layout.negative_array(name, "profiles"), profiles, ("example", "shell"))
    if settings["rank"] == "descriptor":
        seen = sight.describe(store, context.device, settings, sight.Sight.of_query(store, name), points)
        store.put(layout.negative_array(name, "descriptors"), seen, ("negative", "component"))
    pooled = np.asarray(features, np.float32).reshape(-1, volume.channels)
    described = {"units": "voxel", "order": "z, y, x"}
    store.put(layout.negative_array(name, "points"), points, ("negative", "axis"), described)
    store.put(layout.negative_array(name, "features"), pooled, ("instance", "channel"))
    return UnitResult({"segmented": len(segmented), "missing": [settings["points"][i] for i in missing]})


def _places(mask: Bool, low: NDArray[np.int64]) -> Float64:
    """Voxels (n, 3) of a mask on a grid that leaves about `PLACES` of them; its box begins at `low`."""
    step = max(STEP, int(np.ceil((np.count_nonzero(mask) / PLACES) ** (1 / 3))))
    inside = np.argwhere(mask[::step, ::step, ::step])
    voxels = inside * step if len(inside) else np.argwhere(mask)[:1]
    return np.asarray(voxels + low, np.float64)


def _described(
    store: RunStore, name: str, places: Float64, mask: Bool | None = None, low: NDArray[np.int64] | None = None
) -> Float64:
    """Profiles (k, P) at the distinct ends of `places` that were moved as candidates are; those in the mask only."""
    shells = radial_profiles.profile(rank.query_radius(store, name))
    template = np.asarray(store.read(layout.query_array(name, "template")), float)
    volume = store.array(layout.tomogram())
    every = [radial_profiles.describe(volume, places[block], shells, template) for block in rank.blocks(places)]
    moved, profiles = (np.concatenate(parts) for parts in zip(*every, strict=True))
    if mask is not None and low is not None:
        at = np.rint(moved).astype(np.int64) - low
        within = ((at >= 0) & (at < mask.shape)).all(axis=1)
        within[within] = mask[tuple(at[within].T)]
        if within.any():  # what moved to a neighbour is that neighbour's
            moved, profiles = moved[within], profiles[within]
    _, first = np.unique(moved, axis=0, return_index=True)
    return np.asarray(profiles[first])


def at(store: RunStore, name: str, points: Float64) -> Float64:
    """Profiles (k, P) of points (n, 3) as of negatives at which nothing could be segmented."""
    return np.concatenate([_none(store, name), *(_described(store, name, point[None]) for point in points)])


def _none(store: RunStore, name: str) -> Float64:
    return np.empty((0, store.array(layout.query_array(name, "profiles")).shape[1]))


def given(store: RunStore, name: str) -> list[list[float]]:
    """The negative points (z, y, x) that were given for a query in this tomogram."""
    points = store.group(layout.query(name)).attrs.get(POINTS, [])
    return [[float(v) for v in point] for point in points] if isinstance(points, list) else []


def joined(store: RunStore, name: str, upstream: str) -> str:
    """The fingerprint of the matching, joined with that of the negatives if there are any."""
    if not given(store, name):
        return upstream
    unlike = (marks.found_stage(store, stage_name(name)) or {})["fingerprint"]
    return fingerprint({"match": upstream, "negatives": unlike})


def read_points(store: RunStore, name: str) -> list[list[float]]:
    """The points that were given in this tomogram, (z, y, x) voxels; none before the stage has run."""
    record = marks.found_stage(store, stage_name(name))
    return [] if record is None else [[float(v) for v in point] for point in record["settings"]["points"]]


def feature_arrays(store: RunStore, name: str) -> list[str]:
    """Paths of the existing arrays (n, 3C) of negatives' features: borrowed ones and this tomogram's own."""
    paths = (layout.query_array(name, "negative_features"), layout.negative_array(name, "features"))
    return [path for path in paths if path in store and store.array(path).shape[0]]


def profiles(store: RunStore, name: str, contrast: float = 1.0) -> Float64:
    """Profiles (k, P) of all negative examples; borrowed ones at the contrast that the query was found to have here."""
    examples = [_none(store, name)]
    if (path := layout.query_array(name, "negative_profiles")) in store:
        borrowed = np.asarray(store.read(path), float)
        examples.append(likeness.contrasted(borrowed, contrast, float(store.info["statistics"]["mean"])))
    if (path := layout.negative_array(name, "profiles")) in store:
        examples.append(np.asarray(store.read(path), float))
    return np.concatenate(examples)


def descriptors(store: RunStore, name: str) -> Float64:
    """Descriptors (k, D) of all negative examples, borrowed ones and this tomogram's own."""
    paths = (layout.query_array(name, "negative_descriptors"), layout.negative_array(name, "descriptors"))
    own = [np.asarray(store.read(path), float) for path in paths if path in store]
    return np.concatenate([np.empty((0, store.array(layout.query_array(name, "descriptors")).shape[1])), *own])


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    arrays: list[layout.NegativeArray] = ["points", "features"]
    if settings.get("rank") == "profile":
        arrays.append("profiles")
    if settings.get("rank") == "descriptor":
        arrays.append("descriptors")
    return ((layout.negative_array(query, array), 0) for array in arrays)


def _cost(bench: Bench, unit: Unit) -> Cost:
    count = unit.writes[0].stop[0]
    places = PLACES * count if bench.settings.match.rank == "profile" else 0
    seconds = query.POOL * count + rank.PLACE * places
    return cost(bench.pool_bytes * count, 0, seconds, "latents")


STAGE = Declaration(
    "negative",
    "query",
    words="Negative points",
    per="query",
    made_from=("query", "segment/negatives"),
    arrays=(Arrays(layout.pattern(layout.negative_array), "unit", by_one_unit),),
    expected=_expected,
    places=lambda store, name: (layout.negatives(name),),
    cost=_cost,
)
