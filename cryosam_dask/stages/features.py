"""Features: slices of the three views → latent tokens, their pyramid, Gram maps and sums.

A unit is one or two slabs of 16 slices of one axis. A slab yields 16 native latent slices, 4, 2 and 1 of ratios 4, 8
and 16, and the Gram maps of each, with no dependence on any other slab. Slices larger than a tile are read, encoded and
written piece by piece, so that a unit's memory does not grow with them. Before it, `standardize` fits a linear map per
view on a sample of slices; after it, `dense` writes the 3C-channel array of the ratios that ask for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cryosam_dask import geometry
from cryosam_dask.errors import ModelError
from cryosam_dask.kernels.backend import Backend
from cryosam_dask.models.cache import get_encoder
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.models.torch_backend import backend_of
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import feature_memory, tiling
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult, Work
from cryosam_dask.stages.cost import Bench, Cost, cost, size
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.stages.slabs import Slab
from cryosam_dask.stages.tiling import Piece
from cryosam_dask.store import layout, ome
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Json, Shape3, SliceEncoder

NAME = "features"
TOKEN = 0.5e-6
"""Seconds per token of what comes before and after the encoder whatever its channels: pixels, calls. A guess."""

VALUE = 10e-9
"""Seconds per token and channel of averages, Gram maps and sums in NumPy."""

MAP = 5e-11
"""Seconds per token and pair of channels of the linear map: at an assumed 40 GFLOP/s."""


def describe(settings: FeatureSettings) -> Json:
    """The settings with the identity of the weights, as they enter fingerprints."""
    return {**settings.model_dump(mode="json"), "weights": weights_identity(settings.encoder)}


def token_grid(shape: Shape3, axis: Axis, settings: FeatureSettings, patch: int) -> tuple[int, int]:
    rows, columns = (geometry.token_count(n, patch, settings.slice_size) for n in geometry.plane_shape(shape, axis))
    return rows, columns


def plan(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """The units of all three views."""
    info = encoder_info(settings.encoder)
    units: list[Unit] = []
    for axis in AXES:
        grid = token_grid(shape, axis, settings, info.patch)
        for start, stop in geometry.slabs(shape[geometry.axis_index(axis)], layout.feature_slices(axis)):
            units.append(
                Unit(
                    name=f"{axis} {start}:{stop}",
                    marks=(len(units),),
                    params={"axis": axis, "start": start, "stop": stop},
                    reads=(Region(layout.tomogram(), *_slab_box(shape, axis, start, stop)),),
                    writes=tuple(
                        Region(
                            layout.latents(ratio, axis),
                            (slab.start // ratio, 0, 0, 0),
                            (geometry.cell_count(slab.stop, ratio), *grid, info.channels),
                        )
                        for slab in _slabs(start, stop)
                        for ratio in (1, *settings.ratios)
                    ),
                    memory=feature_memory.unit_memory(shape, axis, stop - start, info, settings),
                )
            )
    return stage_of(NAME, work, settings, upstream, units)


def _slabs(start: int, stop: int) -> list[range]:
    return [range(start + a, start + b) for a, b in geometry.slabs(stop - start, layout.SLAB)]


def stage_of(
    name: str, function: Work, settings: FeatureSettings, upstream: str, units: list[Unit], uses_model: bool = True
) -> Stage:
    """A stage of the feature volume."""
    return Stage(
        name,
        function,
        describe(settings),
        upstream,
        tuple(units),
        len(units),
        uses_model=uses_model,
        model_memory=encoder_info(settings.encoder).weights_bytes if uses_model else 0,
        advice="set features.batch or features.tile lower, or give each worker more memory",
    )


def _slab_box(shape: Shape3, axis: Axis, start: int, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    low, high = [0, 0, 0], list(shape)
    low[geometry.axis_index(axis)], high[geometry.axis_index(axis)] = start, stop
    return tuple(low), tuple(high)


def prepare(store: RunStore, settings: FeatureSettings) -> None:
    """Create the arrays that the units write to."""
    info, shape = encoder_info(settings.encoder), store.shape
    store.delete(layout.FEATURES)
    grids = {axis: token_grid(shape, axis, settings, info.patch) for axis in AXES}
    for ratio in (1, *settings.ratios):
        for axis in AXES:
            slices = geometry.cell_count(shape[geometry.axis_index(axis)], ratio)
            dims = layout.view_dims(axis)
            chunks = tiling.latent_chunks(ratio, grids[axis], info.channels)
            size = (slices, *grids[axis])
            store.new_array(
                layout.latents(ratio, axis),
                shape=(*size, info.channels),
                dtype="float16",
                chunks=chunks,
                dims=(*dims, "channel"),
                compress=False,
            )
            store.new_array(
                layout.gram(ratio, axis),
                shape=(*size, len(layout.GRAM_MAPS)),
                dtype="float32",
                chunks=layout.gram_chunks(chunks, grids[axis]),
                dims=(*dims, "product"),
                attributes={"products": list(layout.GRAM_MAPS)},
            )
        ome.put_token_coordinates(store, layout.features_group(ratio), ratio, (grids["y"][0], *grids["z"]))
    for axis in AXES:
        count = len(geometry.slabs(shape[geometry.axis_index(axis)], layout.SLAB))
        store.new_array(
            layout.feature_sums(axis),
            shape=(count, info.channels),
            dtype="float64",
            chunks=(1, info.channels),
            dims=(f"slab_{axis}", "channel"),
        )


def finish(store: RunStore, settings: FeatureSettings) -> None:
    """Record in the root that the features are complete, and how they were made."""
    info = encoder_info(settings.encoder)
    store.update_info(
        features={
            "encoder": settings.encoder,
            "weights": weights_identity(settings.encoder),
            "ratios": list(settings.ratios),
            "channels": info.channels,
            "patch": info.patch,
        }
    )


def encoded(
    encoder: SliceEncoder, backend: Backend, sample: Sample, piece: Piece, slices: range, settings: FeatureSettings
) -> Iterator[Any]:
    """A piece's tokens of slices, `settings.batch` slices at a time; the sample is of the piece's voxels."""
    for start in range(0, len(slices), settings.batch):
        pixels = tiling.resized(sample.standard(slices[start : start + settings.batch]), backend, piece)
        yield tiling.encode(encoder, backend, pixels, piece)


def read_piece(store: RunStore, axis: Axis, slices: range, thickness: int, piece: Piece) -> Sample:
    """The voxels of a piece of some slices."""
    return Sample(store, axis, slices, thickness, (piece[0].voxels, piece[1].voxels))


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Encode the unit's slabs, piece by piece, and write all that follows from them."""
    store, chosen, encoder = open_all(context, settings)
    backend = backend_of(encoder)
    axis: Axis = unit.params["axis"]
    slices = range(unit.params["start"], unit.params["stop"])
    fitted = backend.place(store.read(layout.standardization(axis))) if chosen.standardize != "none" else None
    grid = token_grid(store.shape, axis, chosen, encoder.patch)
    slabs = [
        Slab(store, axis, part, grid, encoder.channels, chosen.ratios, backend)
        for part in _slabs(slices.start, slices.stop)
    ]
    for piece in tiling.pieces(store.shape, axis, encoder.patch, chosen, encoder.channels):
        sample = read_piece(store, axis, slices, chosen.thickness, piece)
        for slab in slabs:
            batches = encoded(encoder, backend, sample, piece, slab.slices, chosen)
            try:
                slab.add(piece, _mapped(batches, fitted, backend))
            except FloatingPointError as error:
                raise ModelError(
                    f"{encoder.name} gave tokens that are not finite in half precision, as they are stored; its own "
                    f"precision is {chosen.precision}, and with float32 (features.precision) they may be"
                ) from error
        del sample  # before the next one is read
    for slab in slabs:
        slab.write_sums()
    return None


def _mapped(batches: Iterator[Any], fitted: Any, backend: Backend) -> Iterator[Any]:
    """Tokens after the view's linear map, if there is one."""
    for tokens in batches:
        if fitted is not None:
            with backend.at_work():
                tokens -= fitted[0]
                tokens = tokens @ fitted[1:]
        yield tokens


def open_all(context: Context, settings: Json) -> tuple[RunStore, FeatureSettings, SliceEncoder]:
    """Open what a unit works with: the store, its settings, and the encoder."""
    chosen = FeatureSettings.model_validate({k: v for k, v in settings.items() if k != "weights"})
    encoder = get_encoder(chosen.encoder, context.device, chosen.precision)
    return context.store, chosen, encoder


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    for axis in AXES:
        for ratio in (1, *settings.get("ratios", ())):
            yield layout.latents(ratio, axis), None
            yield layout.gram(ratio, axis), None
        yield layout.feature_sums(axis), None


def _by_slab(store: RunStore, match: re.Match[str]) -> MarkOf:
    """Chunks are one slab deep, units one or two slabs of the views one after another."""
    view = AXES.index(next(axis for axis in AXES if axis == match["axis"]))
    before = sum(-(-n // layout.feature_slices(a)) for a, n in list(zip(AXES, store.shape, strict=True))[:view])
    per_unit = layout.feature_slices(AXES[view]) // layout.SLAB
    return lambda index: before + index[0] // per_unit


def _mend(store: RunStore, match: re.Match[str]) -> None:
    y, x = (store.array(layout.latents(1, "z")).shape[i] for i in (1, 2))
    z = store.array(layout.latents(1, "y")).shape[1]
    ratio = int(match["ratio"])
    ome.put_token_coordinates(store, layout.features_group(ratio), ratio, (z, y, x))


def _cost(bench: Bench, unit: Unit) -> Cost:
    axis, slices = unit.params["axis"], unit.params["stop"] - unit.params["start"]
    maps = len(layout.GRAM_MAPS) * 4 / (unit.writes[0].stop[-1] * 2)
    values = sum(size(region) for region in unit.writes)
    read, stored = sum(map(bench.touched, unit.reads)), (1 + maps) * 2 * values
    return cost(read, stored, slices * seconds_of_slice(bench, axis), "latents", source="tomogram")


def seconds_of_slice(bench: Bench, axis: Axis) -> float:
    """One slice of an axis: the encoder, and what its tokens go through after it."""
    chosen = bench.settings.features
    info = encoder_info(chosen.encoder)
    rows, columns = token_grid(bench.store.shape, axis, chosen, info.patch)
    tokens = rows * columns
    reducing = bench.reduce_seconds(tokens) if info.uses_torch else tokens * VALUE * info.channels
    mapped = 0.0 if chosen.standardize == "none" else tokens * MAP * info.channels**2
    return bench.encode_seconds(axis) + tokens * TOKEN + reducing + mapped


STAGE = Declaration(
    NAME,
    "features",
    words="Features",
    part="features",
    made_from=("features-standardization",),
    together=True,
    arrays=(
        Arrays(layout.pattern(layout.latents), "stage", _by_slab, "latents"),
        Arrays(layout.pattern(layout.gram), "stage", _by_slab, "Gram maps"),
        Arrays(layout.pattern(layout.feature_sums), "stage", _by_slab),
        Arrays(
            layout.pattern(lambda ratio, side, axis: layout.member(layout.features_group(ratio), f"{side}_{axis}")),
            "coordinates",
            mend=_mend,
        ),
    ),
    expected=_expected,
    cost=_cost,
)
