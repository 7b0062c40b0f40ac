"""Refine: what people decided about picks → examples of the kind and of what is not, and a better query.

Decisions are in the run's reviews (`store.reviews`). A decided place is described as candidates are: by the features
around it, by its descriptor, or by its profiles. From then on

- features: what was segmented is described by its mask, as the query is. The query is moved into the direction in which
  accepted and rejected places differ most (`kernels.discriminant`); its products with F cost what the query's did
- descriptors: probabilities of all places are corrected by the decisions (`kernels.decisions`)
- profiles: rejected places are negatives

and what was decided stays decided: accepted places are prompts, rejected ones are never proposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels.discriminant import discriminant
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.settings import Settings
from cryosam_dask.stages import former, learned, negative, query, recognize, segment_volume, sight
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_one_unit
from cryosam_dask.store import layout, reviews
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32, Json

Float64 = NDArray[np.float64]

BALL = 0.5
"""Radius of the ball of features that stands for a place, of that of a sphere of the prompted size. Where a mask was
segmented, it stands for the place instead: in the middle of what is hollow there are the solvent's features."""

LEAK = 4
"""A mask of more than so many times the prompted size does not stand for its place."""

BELIEF = 4.0
"""So many decisions weigh as much as the query alone: with fewer the direction is nearer to the query's."""

LEAST = 0.01
"""Share of a sample that must reach the threshold at least."""

FACTORS = (0.05, 1.0)

STEPS, WEAKEST = 4, 0.3
"""So many shares of shrinkage are tried until similarities with the direction, and the threshold, are at least this
part of what they were: of features that are not centred, a discriminant may have next to nothing in common."""

SAMPLES, SIDE = 32, 6
"""Boxes of so many cells a side whose features say how features vary in the tomogram."""


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
        memory=BESIDES + unit_memory(store, name, settings),
    )
    described: Json = {"name": name, "rank": settings.match.rank, "points": points, "accepted": accepted}
    described |= {"ratios": list(settings.match.ratios), "center": settings.match.center}
    described |= {"tau_sim": settings.match.tau_sim}
    whole = volume_info(settings.propagation.segmenter) if settings.match.rank == "descriptor" else None
    if whole is None:
        return Stage(STAGE.stage_name(name), work, described, upstream, (unit,), 1)
    described |= {"segmenter": settings.propagation.segmenter, "precision": settings.propagation.precision}
    return Stage(STAGE.stage_name(name), work, described, upstream, (unit,), 1, True, whole.weights_bytes)


def unit_memory(store: RunStore, name: str, settings: Settings) -> int:
    """Bytes of describing places one by one, and of the covariance of features."""
    if settings.match.rank == "descriptor":
        whole = volume_info(settings.propagation.segmenter)
        assert whole is not None
        return segment_volume.unit_memory(whole, 1)
    channels = FeatureVolume(store).channels
    side = math.ceil(2 * geometry.equivalent_radius(LEAK * _size(store, name)))
    z, y, x = ((0, min(side, n)) for n in store.shape)
    pooled = query.unit_memory(store, (z, y, x), settings.match)
    return pooled + 3 * 8 * channels**2 + 2 * 4 * SAMPLES * SIDE**3 * channels


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Describe what was decided on; of features, find the direction."""
    store, name = context.store, settings["name"]
    points = np.asarray(settings["points"], float).reshape(-1, 3)
    accepted = np.asarray(settings["accepted"], bool)
    if settings["rank"] == "descriptor":
        seen = _descriptors(context, settings, points)
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


def _descriptors(context: Context, settings: Json, points: Float64) -> Float32:
    """Descriptors (n, D) of places: of those that `match` looked at already, as it saw them."""
    from scipy.spatial import cKDTree

    store, name = context.store, settings["name"]
    centres, known = recognize.seen(store, name)
    distance, nearest = np.full(len(points), np.inf), np.zeros(len(points), np.intp)
    if len(centres):
        distance, nearest = cKDTree(centres).query(points)
    far = distance > reviews.radius(store, name)
    how = sight.Sight.of_query(store, name)
    new = sight.describe(store, context.device, settings, how, points[far]) if far.any() else np.empty((0, 0))
    if far.all():
        return np.asarray(new, np.float32)
    out = known[nearest].astype(np.float32)
    out[far] = new if far.any() else out[far]
    return out


def _describe_features(
    store: RunStore, name: str, settings: Json, points: Float64, accepted: NDArray[np.bool_]
) -> None:
    volume = FeatureVolume(store)
    size = _size(store, name)
    radius = max(1.0, BALL * geometry.equivalent_radius(size))
    masks = former.at(store, name, points, reviews.radius(store, name))
    masks = {i: (mask, box) for i, (mask, box) in masks.items() if mask.sum() <= LEAK * size}
    features = np.empty((len(points), volume.channels), np.float32)
    for i, point in enumerate(points):
        features[i] = _of_mask(volume, *masks[i]) if i in masks else _of_ball(volume, point, radius)
    store.put(layout.refined_array(name, "features"), features, ("decision", "channel"))
    query = np.asarray(store.read(learned.before(store, name)), float)
    towards, scale, factor = _direction(volume, query, features.astype(float), accepted, settings)
    said = {learned.SCALE: scale, learned.FACTOR: factor}
    store.put(layout.refined_array(name, "direction"), towards, ("channel",), said)


def _size(store: RunStore, name: str) -> float:
    """Voxels of a prompted instance."""
    return float(np.median(store.read(layout.query_array(name, "sizes"))))


def _of_ball(volume: FeatureVolume, point: Float64, radius: float) -> Float64:
    """Mean feature (3C,) in a ball."""
    low = [max(0, int(np.floor(p - radius))) for p in point]
    high = [min(n, int(np.ceil(p + radius)) + 1) for p, n in zip(point, volume.shape, strict=True)]
    z, y, x = ((a, max(a + 1, b)) for a, b in zip(low, high, strict=True))
    box: Box = (z, y, x)
    axes = np.ogrid[tuple(slice(a, b) for a, b in box)]
    ball = sum((a - p) ** 2 for a, p in zip(axes, point, strict=True)) <= radius**2
    mask = ball if ball.any() else np.ones_like(ball)
    return _of_mask(volume, mask, box)


def _of_mask(volume: FeatureVolume, mask: Bool, box: Box) -> Float64:
    """Mean feature (3C,) in a mask, as of the query."""
    return np.asarray(volume.pool_block(mask, box) / np.count_nonzero(mask), float)


def _direction(
    volume: FeatureVolume, query: Float64, features: Float64, accepted: NDArray[np.bool_], settings: Json
) -> tuple[Float32, float, float]:
    """What is searched for in the place of the query's feature (3C,), by what factor similarities of masks with it are
    smaller, and by what factor the threshold must be.

    The query itself is worth `BELIEF` accepted examples, and the tomogram's mean as many rejected ones, so that few
    decisions change little. The more was rejected, the less it is the direction between means and the more the
    discriminant. Where nothing was, the direction is the mean of what was accepted.
    """
    mean = volume.mean.astype(float)
    own = mean if settings["center"] else np.zeros_like(mean)
    # features of particles differ in length by their contrast; similarities do not see lengths
    wanted, unwanted = (_unit(part - own) for part in (features[accepted], features[~accepted]))
    centre, background = _unit((query - own)[None])[0], _unit((mean - own)[None])[0]
    plus = np.concatenate([np.repeat(centre[None], round(BELIEF), axis=0), wanted])
    minus = np.concatenate([np.repeat(background[None], round(BELIEF), axis=0), unwanted])
    samples = [_unit(_sample(volume, ratio) - own) for ratio in settings["ratios"]]
    covariance = np.cov(samples[-1], rowvar=False)
    before = max(float(np.median(plus @ centre)), 1e-6)
    shares = np.linspace(BELIEF / (BELIEF + len(unwanted)), 1, STEPS if len(unwanted) else 0)
    for w in [*(discriminant(plus, minus, covariance, share) for share in shares), _unit(plus.mean(axis=0))]:
        scale = float(np.median(plus @ w)) / before
        factor = min(_as_many(sample @ centre, sample @ w, settings["tau_sim"]) for sample in samples)
        if min(scale, factor) >= WEAKEST:
            break
    towards = (own + w * float(np.linalg.norm(query - own))).astype(np.float32)
    return towards, float(np.clip(scale, *FACTORS)), float(np.clip(min(scale, factor), *FACTORS))


def _as_many(before: Float64, after: Float64, threshold: float) -> float:
    """The factor of a threshold that as many similarities `after` reach as the threshold itself `before`, (n,) each.

    At coarse ratios a cell is in part of what is around a particle, which the direction lowers more than the query."""
    share = max(float(np.mean(before >= threshold)), LEAST)
    if threshold <= 0:
        return 1.0
    return float(np.quantile(after, 1 - share)) / threshold


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


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((layout.refined_array(query, array), 0) for array in ("points", "accepted"))


STAGE = Declaration(
    learned.STAGE,
    "query",
    words="Learning from decisions",
    per="query",
    made_from=("query", "negative"),
    arrays=(Arrays(layout.pattern(layout.refined_array), "unit", by_one_unit),),
    expected=_expected,
    places=lambda store, name: (layout.refined(name),),
)
