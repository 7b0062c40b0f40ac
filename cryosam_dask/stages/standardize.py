"""Standardize: a linear map per view that the tokens of `stages.features` go through, fitted on a sample of slices.

It belongs to the features and not to an encoder, so that any encoder can be used with it.

A view is a unit. Where that leaves workers idle, each slice of the sample is one (`slices_of`), which returns what the
view's unit then sums up (`with_slices`): in the order of the slices, so that the map is the same bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.kernels.standardization import PORTION_VALUES, Moments, Portion, fit_standardization, portions
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.torch_backend import backend_of
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import feature_memory, features, tiling
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, always
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Json, Shape3, SliceEncoder

NAME = "features-standardization"
SAMPLES = 12
"""Slices per view that the map is fitted on."""

_RETURNED = 1 << 18
"""Numbers that a slice's unit may return, at most."""


def plan(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """Plan one unit for each view; no units if the settings ask for no standardization."""
    info = encoder_info(settings.encoder)
    units = []
    for index, axis in enumerate(AXES if settings.standardize != "none" else ()):
        units.append(
            Unit(
                name=f"view {axis}",
                marks=(index,),
                params={"axis": axis},
                writes=(Region(layout.standardization(axis), (0, 0), (info.channels + 1, info.channels)),),
                memory=feature_memory.standardize_memory(shape, axis, info, settings),
            )
        )
    return features.stage_of(NAME, work, settings, upstream, units)


def slices_of(stage: Stage, shape: Shape3, settings: FeatureSettings) -> list[Unit]:
    """A unit for each slice of the sample of each view in the stage; none where these would return too much."""
    info = encoder_info(settings.encoder)
    out: list[Unit] = []
    for unit in stage.units:
        axis: Axis = unit.params["axis"]
        tokens = math.prod(features.token_grid(shape, axis, settings, info.patch))
        if _returned(tokens, info.channels, settings) > _RETURNED:
            return []
        out += [
            replace(unit, name=f"{unit.name}, slice {index}", params={"axis": axis, "slice": index}, writes=())
            for index in sample_of(shape, axis)
        ]
    return out


def with_slices(unit: Unit, results: Mapping[str, Json]) -> Unit:
    """The unit of a view with what the units of its slices returned, by their names, if there were any."""
    begin = f"{unit.name}, slice "
    own = {int(name.removeprefix(begin)): value for name, value in results.items() if name.startswith(begin)}
    every = [portion for index in sorted(own) for portion in own[index]["portions"]]
    return replace(unit, params={**unit.params, "portions": every}) if every else unit


def _returned(tokens: int, channels: int, settings: FeatureSettings) -> int:
    """Numbers that the portions of one slice hold."""
    per_portion = channels + (channels**2 if settings.standardize == "whiten" else channels)
    return (tokens * channels // PORTION_VALUES + 1) * per_portion


def sample_of(shape: Shape3, axis: Axis) -> list[int]:
    """The slices of a view that its map is fitted on, evenly spaced."""
    length = shape[geometry.axis_index(axis)]
    where = np.linspace(0, length - 1, min(SAMPLES, length) + 2).round().astype(int)[1:-1]
    return [int(index) for index in np.unique(where)]


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Fit the view's linear map; or, for one slice of its sample, return the portions of its tokens' moments."""
    store, chosen, encoder = features.open_all(context, settings)
    axis: Axis = unit.params["axis"]
    if "slice" in unit.params:
        own = _portions(store, chosen, encoder, axis, unit.params["slice"])
        return UnitResult({"portions": [[n, mean.tolist(), sums.tolist()] for n, mean, sums in own]}, done=False)
    moments = Moments(encoder.channels, mixed=chosen.standardize == "whiten")
    if "portions" in unit.params:
        for count, mean, sums in unit.params["portions"]:
            moments.merge(Portion(count, np.array(mean), np.array(sums)))
    else:
        for index in sample_of(store.shape, axis):
            for portion in _portions(store, chosen, encoder, axis, index):
                moments.merge(portion)
    mean, matrix = fit_standardization(moments, chosen.standardize)
    store.put(
        layout.standardization(axis),
        np.concatenate([mean[None], matrix]).astype(np.float32),
        ("mean_and_rows", "channel"),
    )
    return None


def _portions(
    store: RunStore, settings: FeatureSettings, encoder: SliceEncoder, axis: Axis, index: int
) -> Iterator[Portion]:
    """The portions of one slice's tokens."""
    backend, plane = backend_of(encoder), range(index, index + 1)
    for piece in tiling.pieces(store.shape, axis, encoder.patch, settings, encoder.channels):
        sample = features.read_piece(store, axis, plane, settings.thickness, piece)
        for tokens in features.encoded(encoder, backend, sample, piece, plane, settings):
            yield from portions(backend.numpy(tokens), settings.standardize == "whiten")


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((layout.standardization(AXES[i]), i) for i in done)


def _by_view(store: RunStore, match: re.Match[str]) -> MarkOf:
    return always([str(axis) for axis in AXES].index(match["axis"]))


def _cost(bench: Bench, unit: Unit) -> Cost:
    axis: Axis = unit.params["axis"]
    chosen, shape = bench.settings.features, bench.store.shape
    info, index = encoder_info(chosen.encoder), geometry.axis_index(axis)
    low, high, once = [0, 0, 0], list(shape), 0
    low[index], high[index] = high[index] // 2, high[index] // 2 + 1
    for piece in tiling.pieces(shape, axis, info.patch, chosen, info.channels):  # chunks between pieces are read again
        for side, span in zip(geometry.plane_axes(axis), piece, strict=True):
            low[side], high[side] = span.voxels.start, span.voxels.stop
        once += bench.touched(Region(layout.tomogram(), tuple(low), tuple(high)))
    beside = 1 + (chosen.thickness - 1) / layout.CHUNK[index]  # where the neighbours of a slice are in other chunks
    read = min(SAMPLES, shape[index]) * once * beside
    return cost(read, 0, SAMPLES * features.seconds_of_slice(bench, axis), "tomogram")


STAGE = Declaration(
    NAME,
    "features",
    words="Standardization of tokens",
    part="features",
    made_from=("ingest",),
    together=True,
    arrays=(Arrays(layout.pattern(layout.standardization), "unit", _by_view),),
    expected=_expected,
    cost=_cost,
)
