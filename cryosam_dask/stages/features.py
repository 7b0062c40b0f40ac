"""Features: slices of the three views → latent tokens, their pyramid, Gram maps and sums.

A unit is one or two slabs of 16 slices of one axis. A slab yields 16 native latent slices, 4, 2 and 1 of ratios 4, 8
and 16, and the Gram maps of each, with no dependence on any other slab. Slices larger than a tile are read, encoded and
written piece by piece, so that a unit's memory does not grow with them. Before it, `standardize` fits a linear map per
view on a sample of slices; after it, `dense` writes the 3C-channel array of the ratios that ask for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.kernels.standardization import Moments, fit_standardization
from cryosam_dask.models.cache import get_encoder
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import feature_memory, tiling
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.stages.slabs import Slab
from cryosam_dask.stages.tiling import Piece
from cryosam_dask.store import layout, ome
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Float32, Shape3, SliceEncoder

NAME = "features"
STANDARDIZE = "features-standardization"
DENSE = "features-dense"
SAMPLES = 12
"""Slices per view that the standardization is fitted on."""


def describe(settings: FeatureSettings) -> Json:
    """The settings with the identity of the weights, as they enter fingerprints."""
    return {**settings.model_dump(mode="json"), "weights": weights_identity(settings.encoder)}


def token_grid(shape: Shape3, axis: Axis, settings: FeatureSettings, patch: int) -> tuple[int, int]:
    rows, columns = (geometry.token_count(n, patch, settings.slice_size) for n in geometry.plane_shape(shape, axis))
    return rows, columns


def plan_standardize(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """One unit a view; no units where the settings ask for no standardization."""
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
    return _stage(STANDARDIZE, work_standardize, settings, upstream, units)


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
    return _stage(NAME, work, settings, upstream, units)


def _slabs(start: int, stop: int) -> list[range]:
    return [range(start + a, start + b) for a, b in geometry.slabs(stop - start, layout.SLAB)]


def plan_dense(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """Boxes of cells of each dense ratio, one chunk each."""
    info = encoder_info(settings.encoder)
    channels = 3 * info.channels
    units: list[Unit] = []
    for ratio in settings.dense_ratios:
        for box in geometry.boxes(geometry.cell_grid(shape, ratio), dense_chunk(shape, ratio, channels)):
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
    return _stage(DENSE, work_dense, settings, upstream, units, uses_model=False)


def dense_chunk(shape: Shape3, ratio: int, channels: int) -> Shape3:
    side = max(4, int((layout.CHUNK_BYTES / (2 * channels)) ** (1 / 3)))
    z, y, x = (min(side, n) for n in geometry.cell_grid(shape, ratio))
    return z, y, x


def _stage(
    name: str, function: Any, settings: FeatureSettings, upstream: str, units: list[Unit], uses_model: bool = True
) -> Stage:
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
    store.delete("features")
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
    for ratio in settings.dense_ratios:
        _prepare_dense(store, ratio, 3 * info.channels)


def _prepare_dense(store: RunStore, ratio: int, channels: int) -> None:
    store.new_array(
        layout.dense(ratio),
        shape=(*geometry.cell_grid(store.shape, ratio), channels),
        dtype="float16",
        chunks=(*dense_chunk(store.shape, ratio, channels), channels),
        dims=(*AXES, "channel"),
    )
    ome.put_coordinates(store, layout.dense(ratio).rpartition("/")[0], ratio)


def finish(store: RunStore, settings: FeatureSettings) -> None:
    """Say in the root that the features are there, and what they are."""
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
    encoder: SliceEncoder, sample: Sample, piece: Piece, slices: range, settings: FeatureSettings
) -> Iterator[Float32]:
    """A piece's tokens of slices, `settings.batch` slices at a time; the sample is of the piece's voxels."""
    for start in range(0, len(slices), settings.batch):
        pixels = tiling.resized(sample.standard(slices[start : start + settings.batch]), piece)
        yield tiling.encode(encoder, pixels, piece)


def _read(store: RunStore, axis: Axis, slices: range, thickness: int, piece: Piece) -> Sample:
    return Sample(store, axis, slices, thickness, (piece[0].voxels, piece[1].voxels))


def work_standardize(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Fit the view's linear map on evenly spaced slices."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    length = store.shape[geometry.axis_index(axis)]
    where = np.unique(np.linspace(0, length - 1, min(SAMPLES, length) + 2).round().astype(int)[1:-1])
    moments = Moments(encoder.channels, mixed=chosen.standardize == "whiten")
    for index in where.tolist():
        one = range(index, index + 1)
        for piece in tiling.pieces(store.shape, axis, encoder.patch, chosen, encoder.channels):
            sample = _read(store, axis, one, chosen.thickness, piece)
            for tokens in encoded(encoder, sample, piece, one, chosen):
                moments.add(tokens)
    mean, matrix = fit_standardization(moments, chosen.standardize)
    store.put(
        layout.standardization(axis),
        np.concatenate([mean[None], matrix]).astype(np.float32),
        ("mean_and_rows", "channel"),
    )
    return None


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Encode the unit's slabs, piece by piece, and write all that follows from them."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    slices = range(unit.params["start"], unit.params["stop"])
    fitted = store.read(layout.standardization(axis)) if chosen.standardize != "none" else None
    grid = token_grid(store.shape, axis, chosen, encoder.patch)
    slabs = [
        Slab(store, axis, part, grid, encoder.channels, chosen.ratios) for part in _slabs(slices.start, slices.stop)
    ]
    for piece in tiling.pieces(store.shape, axis, encoder.patch, chosen, encoder.channels):
        sample = _read(store, axis, slices, chosen.thickness, piece)
        for slab in slabs:
            slab.add(piece, _mapped(encoded(encoder, sample, piece, slab.slices, chosen), fitted))
        del sample  # before the next one is read
    for slab in slabs:
        slab.write_sums()
    return None


def _mapped(batches: Iterator[Float32], fitted: Float32 | None) -> Iterator[Float32]:
    """Tokens after the view's linear map, if there is one."""
    for tokens in batches:
        if fitted is not None:
            tokens -= fitted[0]
            tokens = tokens @ fitted[1:]
        yield tokens


def work_dense(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Assemble one box of a dense ratio from the views."""
    store = RunStore.open(context.url, "r+")
    ratio = unit.params["ratio"]
    z, y, x = ((int(a), int(b)) for a, b in unit.params["box"])
    values = FeatureVolume(store).dense_block(ratio, (z, y, x))
    store.array(layout.dense(ratio))[geometry.box_slices((z, y, x))] = values.astype(np.float16)
    return None


def _open(context: Context, settings: Json) -> tuple[RunStore, FeatureSettings, SliceEncoder]:
    chosen = FeatureSettings.model_validate({k: v for k, v in settings.items() if k != "weights"})
    encoder = get_encoder(chosen.encoder, context.device, chosen.precision)
    return RunStore.open(context.url, "r+"), chosen, encoder
