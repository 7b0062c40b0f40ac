"""Refine: what people decided about picks → examples of the kind and of what is not, and a better query.

Decisions are in the run's reviews (`store.reviews`). A decided place is described as candidates are: by the features
around it, by its descriptor, or by its profiles. From then on

- features: the query is moved into the direction in which accepted and rejected places differ most
  (`kernels.discriminant`); its products with F cost what the query's did
- descriptors: probabilities of all places are corrected by the decisions (`kernels.decisions`)
- profiles: rejected places are negatives

and what was decided stays decided: accepted places are prompts, rejected ones are never proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import decisions
from cryosam_dask.kernels.discriminant import discriminant
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.settings import MatchSettings, Settings
from cryosam_dask.stages import negative, segment_volume, sight
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult, fingerprint
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_one_unit
from cryosam_dask.store import layout, marks
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Float32, Json

Float64 = NDArray[np.float64]

BALL = 0.5
"""Radius of the ball of features that stands for a place, of that of a sphere of the prompted size."""

BELIEF = 4.0
"""So many decisions weigh as much as the query alone: with fewer the direction is nearer to the query's."""

SAMPLES, SIDE = 32, 6
"""Boxes of so many cells a side whose features say how features vary in the tomogram."""

REJECTED = 3.0
"""Voxels, at least, around a rejected place in which nothing is proposed."""


def plan(store: RunStore, name: str, settings: Settings, decided: Sequence[Decision], upstream: str) -> Stage:
    """Plan one unit, which describes the places that were decided on.

    decided : current decisions; settings : that the query is searched with; upstream : fingerprint of the query
    """
    points = [list(decision.position) for decision in decided]
    accepted = [decision.verdict != "rejected" for decision in decided]
    unit = Unit(
        name="decisions",
        marks=(0,),
        params={},
        writes=(Region(layout.refined_array(name, "points"), (0, 0), (len(points), 3)),),
        memory=BESIDES + unit_memory(store, settings),
    )
    described: Json = {"name": name, "rank": settings.match.rank, "points": points, "accepted": accepted}
    described |= {"ratio": settings.match.ratios[-1], "center": settings.match.center}
    whole = volume_info(settings.propagation.segmenter) if settings.match.rank == "descriptor" else None
    if whole is None:
        return Stage(STAGE.stage_name(name), work, described, upstream, (unit,), 1)
    described |= {"segmenter": settings.propagation.segmenter, "precision": settings.propagation.precision}
    return Stage(STAGE.stage_name(name), work, described, upstream, (unit,), 1, True, whole.weights_bytes)


def unit_memory(store: RunStore, settings: Settings) -> int:
    """Bytes of describing places one by one, and of the covariance of features."""
    if settings.match.rank == "descriptor":
        whole = volume_info(settings.propagation.segmenter)
        assert whole is not None
        return segment_volume.unit_memory(whole, 1)
    channels = FeatureVolume(store).channels
    return 3 * 8 * channels**2 + 2 * 4 * SAMPLES * SIDE**3 * channels


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Describe what was decided on; of features, find the direction."""
    store, name = context.store, settings["name"]
    points = np.asarray(settings["points"], float).reshape(-1, 3)
    accepted = np.asarray(settings["accepted"], bool)
    if settings["rank"] == "descriptor":
        seen = sight.describe(store, context.device, settings, sight.Sight.of_query(store, name), points)
        store.put(layout.refined_array(name, "descriptors"), seen, ("decision", "component"))
    elif settings["rank"] == "profile":
        profiles = negative.at(store, name, points[~accepted])
        store.put(layout.refined_array(name, "profiles"), profiles, ("place", "shell"))
    else:
        _describe_features(store, name, settings, points, accepted)
    store.put(layout.refined_array(name, "accepted"), accepted.astype(np.uint8), ("decision",))
    described = {"units": "voxel", "order": "z, y, x"}
    store.put(layout.refined_array(name, "points"), points, ("decision", "axis"), described)
    return UnitResult({"decisions": len(points)})


def _describe_features(
    store: RunStore, name: str, settings: Json, points: Float64, accepted: NDArray[np.bool_]
) -> None:
    volume = FeatureVolume(store)
    size = float(np.median(store.read(layout.query_array(name, "sizes"))))
    radius = max(1.0, BALL * geometry.equivalent_radius(size))
    features = np.asarray([_feature(volume, point, radius) for point in points], np.float32)
    features = features.reshape(-1, volume.channels)
    store.put(layout.refined_array(name, "features"), features, ("decision", "channel"))
    query = np.asarray(store.read(layout.query_array(name, "feature")), float)
    direction, scale = _direction(volume, query, features.astype(float), accepted, settings)
    store.put(layout.refined_array(name, "direction"), direction, ("channel",), {"scale": scale})


def _feature(volume: FeatureVolume, point: Float64, radius: float) -> Float64:
    """Mean feature (3C,) in a ball."""
    low = [max(0, int(np.floor(p - radius))) for p in point]
    high = [min(n, int(np.ceil(p + radius)) + 1) for p, n in zip(point, volume.shape, strict=True)]
    z, y, x = ((a, max(a + 1, b)) for a, b in zip(low, high, strict=True))
    box: Box = (z, y, x)
    axes = np.ogrid[tuple(slice(a, b) for a, b in box)]
    ball = sum((a - p) ** 2 for a, p in zip(axes, point, strict=True)) <= radius**2
    mask = ball if ball.any() else np.ones_like(ball)
    return np.asarray(volume.pool_block(mask, box) / np.count_nonzero(mask), float)


def _direction(
    volume: FeatureVolume, query: Float64, features: Float64, accepted: NDArray[np.bool_], settings: Json
) -> tuple[Float32, float]:
    """What is searched for in the place of the query's feature (3C,), and by what factor similarities are smaller.

    The query itself is worth `BELIEF` accepted examples, and the tomogram's mean as many rejected ones, so that few
    decisions change little. As there are more, the direction is less that between means and more the discriminant.
    """
    mean = volume.mean.astype(float)
    own = mean if settings["center"] else np.zeros_like(mean)
    # features of particles differ in length by their contrast; similarities do not see lengths
    wanted, unwanted = (_unit(part - own) for part in (features[accepted], features[~accepted]))
    centre, background = _unit((query - own)[None])[0], _unit((mean - own)[None])[0]
    count = len(features)
    plus = np.concatenate([np.repeat(centre[None], round(BELIEF), axis=0), wanted])
    minus = np.concatenate([np.repeat(background[None], round(BELIEF), axis=0), unwanted])
    sample = _unit(_sample(volume, settings["ratio"]) - own)
    covariance = np.cov(sample, rowvar=False)
    w = discriminant(plus, minus, covariance, shrinkage=BELIEF / (BELIEF + count))
    before = float(np.median(plus @ centre))
    scale = float(np.median(plus @ w)) / max(before, 1e-6)
    return (own + w * float(np.linalg.norm(query - own))).astype(np.float32), float(np.clip(scale, 0.05, 1.0))


def _sample(volume: FeatureVolume, ratio: int) -> Float64:
    """Features (n, 3C) of cells all over the tomogram, the same every time."""
    rng, grid = np.random.default_rng(0), volume.grid(ratio)
    parts = []
    for _ in range(SAMPLES):
        low = [int(rng.integers(0, max(1, n - SIDE + 1))) for n in grid]
        z, y, x = ((a, min(n, a + SIDE)) for a, n in zip(low, grid, strict=True))
        parts.append(volume.dense_block(ratio, (z, y, x)).reshape(-1, volume.channels))
    return np.concatenate(parts).astype(float)


def _unit(vectors: Float64) -> Float64:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))


# What others ask ------------------------------------------------------------------------------------------------------


def is_there(store: RunStore, name: str) -> bool:
    """Whether a query has been refined."""
    return marks.all_done(store, STAGE.stage_name(name))


def joined(store: RunStore, name: str, upstream: str) -> str:
    """A fingerprint, joined with that of the decisions if there are any."""
    record = marks.found_stage(store, STAGE.stage_name(name))
    return upstream if record is None else fingerprint({"made from": upstream, "decisions": record["fingerprint"]})


def searched(store: RunStore, name: str, settings: MatchSettings) -> MatchSettings:
    """Settings of the search: similarities to a direction are smaller, and so is the threshold."""
    path = layout.refined_array(name, "direction")
    if path not in store:
        return settings
    scale = float(str(store.array(path).attrs["scale"]))
    return settings.model_copy(update={"tau_sim": settings.tau_sim * scale})


def corrected(store: RunStore, name: str, probabilities: Float64, descriptors: Float64) -> Float64:
    """Probabilities (n,) of places with descriptors (n, D) after the decisions."""
    path = layout.refined_array(name, "descriptors")
    if path not in store:
        return probabilities
    accepted = store.read(layout.refined_array(name, "accepted")).astype(bool)
    return decisions.corrected(probabilities, descriptors, np.asarray(store.read(path), float), accepted)


def rejected_profiles(store: RunStore, name: str) -> list[Float64]:
    """Profiles (k, P) of rejected places, in a list; none for a query that was not refined so."""
    path = layout.refined_array(name, "profiles")
    return [np.asarray(store.read(path), float)] if path in store else []


def decided(store: RunStore, name: str) -> tuple[Float64, Float64]:
    """Places (a, 3) that were accepted and (r, 3) that were rejected."""
    path = layout.refined_array(name, "points")
    if path not in store or not is_there(store, name):
        return np.empty((0, 3)), np.empty((0, 3))
    points: Any = np.asarray(store.read(path), float)
    accepted = store.read(layout.refined_array(name, "accepted")).astype(bool)
    return points[accepted], points[~accepted]


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((layout.refined_array(query, array), 0) for array in ("points", "accepted"))


STAGE = Declaration(
    "refine",
    "query",
    words="Learning from decisions",
    per="query",
    made_from=("query", "negative"),
    arrays=(Arrays(layout.pattern(layout.refined_array), "unit", by_one_unit),),
    expected=_expected,
    places=lambda store, name: (layout.refined(name),),
)
