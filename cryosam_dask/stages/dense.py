"""Dense: the 3C-channel features of whole ratios as one array, assembled from the latent views box by box."""

from __future__ import annotations

import re

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import feature_memory, features
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import CELL, Bench, Cost, cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, array_of
from cryosam_dask.store import layout, marks, ome
from cryosam_dask.store.arrays import grid
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Json, Shape3

NAME = "features-dense"


def plan(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """Plan one unit for each box of cells, which is one chunk, of each dense ratio."""
    info = encoder_info(settings.encoder)
    channels = 3 * info.channels
    units: list[Unit] = []
    for ratio in settings.dense_ratios:
        for box in geometry.boxes(geometry.cell_grid(shape, ratio), chunk(shape, ratio, channels)):
            region = Region(layout.dense(ratio), (*(a for a, _ in box), 0), (*(b for _, b in box), channels))
            units.append(
                Unit(
                    name=f"ratio {ratio} cells {box}",
                    marks=(len(units),),
                    params={"ratio": ratio, "box": [list(side) for side in box]},
                    writes=(region,),
                    memory=feature_memory.dense_memory(shape, ratio, box, info, settings),
                )
            )
    return features.stage_of(NAME, work, settings, upstream, units, uses_model=False)


def chunk(shape: Shape3, ratio: int, channels: int) -> Shape3:
    side = max(4, int((layout.CHUNK_BYTES / (2 * channels)) ** (1 / 3)))
    z, y, x = (min(side, n) for n in geometry.cell_grid(shape, ratio))
    return z, y, x


def prepare(store: RunStore, settings: FeatureSettings) -> None:
    """Create the arrays of the ratios in `features.dense_ratios`."""
    channels = 3 * encoder_info(settings.encoder).channels
    for ratio in settings.dense_ratios:
        store.new_array(
            layout.dense(ratio),
            shape=(*geometry.cell_grid(store.shape, ratio), channels),
            dtype="float16",
            chunks=(*chunk(store.shape, ratio, channels), channels),
            dims=(*AXES, "channel"),
        )
        ome.put_coordinates(store, layout.dense_group(ratio), ratio)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Assemble one box of a dense ratio from the views."""
    store = context.store
    ratio = unit.params["ratio"]
    z, y, x = ((int(a), int(b)) for a, b in unit.params["box"])
    values = FeatureVolume(store).dense_block(ratio, (z, y, x))
    store.array(layout.dense(ratio))[geometry.box_slices((z, y, x))] = values.astype(np.float16)
    return None


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((layout.dense(ratio), None) for ratio in settings.get("dense_ratios", ()))


def _by_chunk(store: RunStore, match: re.Match[str]) -> MarkOf | None:
    """Chunks of the ratios one after another; None where the arrays before are not all there."""
    settings = (marks.found_stage(store, NAME) or {}).get("settings", {})
    before = 0
    for ratio in settings.get("dense_ratios", ()):
        if (array := array_of(store, layout.dense(ratio))) is None:
            return None
        counts = grid(array)
        if ratio == int(match["ratio"]):
            first = before
            return lambda index: first + int(np.ravel_multi_index(index, counts))
        before += int(np.prod(counts))
    return None


def _mend(store: RunStore, match: re.Match[str]) -> None:
    ome.put_coordinates(store, layout.dense_group(int(match["ratio"])), int(match["ratio"]))


def _cost(bench: Bench, unit: Unit) -> Cost:
    values = written(unit)  # cells of one chunk touch about as many tokens as they are
    return cost(2 * values, 2 * values, values * CELL, "dense features", source="latents")


STAGE = Declaration(
    NAME,
    "features",
    words="Dense features",
    part="features",
    made_from=("features",),
    together=True,
    arrays=(
        Arrays(layout.pattern(layout.dense), "stage", _by_chunk, "dense features"),
        Arrays(
            layout.pattern(lambda ratio, axis: layout.member(layout.dense_group(ratio), axis)),
            "coordinates",
            mend=_mend,
        ),
    ),
    expected=_expected,
    plan=lambda store, settings, query, upstream: plan(store.shape, settings.features, upstream),
    prepare=lambda store, settings, query: prepare(store, settings.features),
    cost=_cost,
)
