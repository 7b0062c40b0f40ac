"""Standardize: a linear map per view that the tokens of `stages.features` go through, fitted on a sample of slices.

It belongs to the features and not to an encoder, so that any encoder can be used with it.
"""

from __future__ import annotations

import re

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.kernels.standardization import Moments, fit_standardization
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.torch_backend import backend_of
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import feature_memory, features, tiling
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, always
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Json, Shape3

NAME = "features-standardization"
SAMPLES = 12
"""Slices per view that the map is fitted on."""


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


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Fit the view's linear map on evenly spaced slices."""
    store, chosen, encoder = features.open_all(context, settings)
    backend = backend_of(encoder)
    axis: Axis = unit.params["axis"]
    length = store.shape[geometry.axis_index(axis)]
    where = np.unique(np.linspace(0, length - 1, min(SAMPLES, length) + 2).round().astype(int)[1:-1])
    moments = Moments(encoder.channels, mixed=chosen.standardize == "whiten")
    for index in where.tolist():
        plane = range(index, index + 1)
        for piece in tiling.pieces(store.shape, axis, encoder.patch, chosen, encoder.channels):
            sample = features.read_piece(store, axis, plane, chosen.thickness, piece)
            for tokens in features.encoded(encoder, backend, sample, piece, plane, chosen):
                moments.add(backend.numpy(tokens))
    mean, matrix = fit_standardization(moments, chosen.standardize)
    store.put(
        layout.standardization(axis),
        np.concatenate([mean[None], matrix]).astype(np.float32),
        ("mean_and_rows", "channel"),
    )
    return None


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
