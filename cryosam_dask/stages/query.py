"""Query: the instances of the point prompts → one mean feature (eq. 4 of the paper), by masked average pooling."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import radial_profiles
from cryosam_dask.kernels.merging import center_of_mass
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import doubts, rank, sight, structure
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_one_unit
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Json

TYPICAL = 24
"""Side of a particle's box in voxels: 25 nm at 10 Å."""

POOL = 0.15
"""Seconds of pooling one instance."""

DECODED = 2
"""Chunks of latents that are decoded at a time, as measured; the store reads several at once."""


def stage_name(name: str) -> str:
    return STAGE.stage_name(name)


def plan(
    store: RunStore,
    name: str,
    settings: MatchSettings,
    groups: int,
    points: list[list[float]],
    upstream: str,
) -> Stage:
    """Plan one unit, which reads only the features under the prompted instances.

    Its memory follows from their boxes, or from boxes of `TYPICAL` voxels a side if they are not segmented yet.

    settings : whether similarities are to be taken of F − μ, μ the tomogram's mean feature, and how they are ranked
    groups : number of groups that the prompts were segmented in
    """
    channels = FeatureVolume(store).channels
    unit = Unit(
        name="pool",
        marks=(0,),
        params={"groups": groups},
        writes=(Region(layout.query_array(name, "feature"), (0,), (channels,)),),
        memory=max(unit_memory(store, box, settings) for box in prompted_boxes(store, layout.query(name), groups)),
    )
    described = {"name": name, "center": settings.center, "rank": settings.rank, "points": points}
    return Stage(stage_name(name), work, described, upstream, (unit,), 1)


def unit_memory(store: RunStore, box: Box, settings: MatchSettings) -> int:
    """Bytes of pooling over one instance, or of describing it or looking at what is around it if that takes more."""
    sides = [b - a for a, b in box]
    most = 0
    if settings.rank == "profile":
        most = radial_profiles.working_bytes_at(geometry.equivalent_radius(math.prod(sides) * math.pi / 6))
    for axis in AXES:
        latents = store.array(layout.latents(1, axis))
        n, *plane = (b - a for a, b in geometry.box_of(box, axis))
        tokens = geometry.tokens_under(plane, latents.shape[1:3], geometry.plane_shape(store.shape, axis))
        # half precision, single precision; the mask as weights; chunks that are decoded at a time
        own = n * tokens * latents.shape[3] * (2 + 4) + math.prod(sides) * 4
        most = max(most, own + DECODED * math.prod(latents.chunks) * latents.dtype.itemsize)
    return max(most, doubts.working_bytes(box)) + BESIDES


def prompted_boxes(store: RunStore, where: str, groups: int) -> list[Box]:
    """Boxes of the instances that were segmented from points, in groups under `where`; before that a typical box."""
    boxes: list[Box] = []
    for group in range(groups):
        # not there yet, or not written to its end: its unit runs again
        with contextlib.suppress(StoreError):
            measured = stored.read_measured(store, layout.group(where, group))
            boxes += [stored.as_box(box) for box in measured.box]
    z, y, x = ((0, min(TYPICAL, n)) for n in store.shape)
    return boxes or [(z, y, x)]


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Pool the features over all prompted instances."""
    store = context.store
    name, volume = settings["name"], FeatureVolume(store)
    where = layout.query(name)
    total = np.zeros(volume.channels)
    sizes: list[int] = []
    centres: list[Array] = []
    segmented: list[int] = []
    said: list[list[str]] = []
    particles = structure.structure_of(store, name) == "particle"
    for group in range(unit.params["groups"]):
        instances = stored.read(store, layout.group(where, group))
        said += doubts.of_group(store, layout.group(where, group), instances, particles)
        for i in range(len(instances.prompt)):
            mask = instances.mask(i)
            total += volume.pool_block(mask, stored.as_box(instances.box[i]))
            centres.append(center_of_mass(instances.box[i], mask))
            sizes.append(int(instances.size[i]))
            segmented.append(int(instances.prompt[i]))
    missing = [point for i, point in enumerate(settings["points"]) if i not in segmented]
    if not sizes:
        raise InputError(
            f"nothing could be segmented at {_say(missing)}; click nearer to the middle of a clearly visible particle"
        )
    feature = (total / sum(sizes)).astype(np.float32)
    mean = volume.mean if settings["center"] else np.zeros_like(feature)
    if particles:
        said = [[*a, *b] for a, b in zip(said, doubts.of_sizes(sizes), strict=True)]
    by_prompt = doubts.by_prompt(segmented, said, len(settings["points"]))
    points = np.asarray(settings["points"], np.float64)
    store.put(layout.query_array(name, "points"), points, ("prompt", "axis"), {sight.DOUBTS: by_prompt})
    store.put(layout.query_array(name, "feature"), feature, ("channel",))
    store.put(layout.query_array(name, "mean"), mean, ("channel",))
    store.put(layout.query_array(name, "sizes"), np.asarray(sizes, np.int64), ("instance",), {"units": "voxel"})
    if settings["rank"] == "profile":
        rank.describe_query(store, name, np.stack(centres), sizes)
    if settings["rank"] == "descriptor":
        sight.describe_query(store, name, unit.params["groups"])
    doubted = [[point, each] for point, each in zip(settings["points"], by_prompt, strict=True) if each]
    return UnitResult({"segmented": len(sizes), "missing": missing, "doubts": doubted})


def _say(points: list[list[float]]) -> str:
    return "; ".join(",".join(f"{v:g}" for v in point) for point in points[:3])


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    arrays: tuple[layout.QueryArray, ...] = ("feature", "mean", "sizes", "points")
    return ((layout.query_array(query, array), 0) for array in arrays)


STAGE = Declaration(
    "query",
    "query",
    words="Query",
    part="query",
    per="query",
    made_from=("segment/queries",),
    arrays=(Arrays(layout.pattern(layout.query_array), "unit", by_one_unit),),
    expected=_expected,
    places=lambda store, query: (layout.query(query),),
    cost=lambda bench, unit: cost(bench.pool_bytes, 0, POOL, "latents"),
)
