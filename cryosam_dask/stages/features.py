"""Features: slices of the three views → latent tokens, their pyramid, Gram maps and sums.

A unit is a slab of 16 slices of one axis. It yields 16 native latent slices, 4, 2 and 1 of ratios 4, 8 and 16, and the
Gram maps of each, with no dependence on any other slab. Before it, `standardize` fits a linear map per view on a sample
of slices; after it, `dense` writes the 3C-channel array of the ratios that ask for one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.kernels import features as kernel
from cryosam_dask.kernels import images
from cryosam_dask.kernels.standardization import fit_standardization
from cryosam_dask.models.cache import get_encoder
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.sampling import standard_slices
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
        grid = token_grid(shape, axis, settings, info.patch)
        units.append(
            Unit(
                name=f"view {axis}",
                marks=(index,),
                params={"axis": axis},
                writes=(Region(f"{layout.STANDARDIZATION}/{axis}", (0, 0), (info.channels + 1, info.channels)),),
                memory=_slab_memory(shape, axis, 1, grid, info.channels, settings)
                + 3 * 4 * SAMPLES * math.prod(grid) * info.channels,
            )
        )
    return _stage(STANDARDIZE, work_standardize, settings, upstream, units)


def plan(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """The units of all three views, slab by slab."""
    info = encoder_info(settings.encoder)
    units: list[Unit] = []
    for axis in AXES:
        grid = token_grid(shape, axis, settings, info.patch)
        for start, stop in geometry.slabs(shape[geometry.axis_index(axis)], layout.SLAB):
            units.append(
                Unit(
                    name=f"{axis} {start}:{stop}",
                    marks=(len(units),),
                    params={"axis": axis, "start": start, "stop": stop},
                    reads=(Region(layout.tomogram(), *_slab_box(shape, axis, start, stop)),),
                    writes=tuple(
                        Region(
                            layout.latents(ratio, axis),
                            (start // ratio, 0, 0, 0),
                            (geometry.cell_count(stop, ratio), *grid, info.channels),
                        )
                        for ratio in (1, *settings.ratios)
                    ),
                    memory=_slab_memory(shape, axis, stop - start, grid, info.channels, settings),
                )
            )
    return _stage(NAME, work, settings, upstream, units)


def plan_dense(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """Boxes of cells of each dense ratio, one chunk each."""
    channels = 3 * encoder_info(settings.encoder).channels
    units: list[Unit] = []
    for ratio in settings.dense_ratios:
        for box in geometry.boxes(geometry.cell_grid(shape, ratio), dense_chunk(shape, ratio, channels)):
            cells = math.prod(b - a for a, b in box)
            region = Region(layout.dense(ratio), (*(a for a, _ in box), 0), (*(b for _, b in box), channels))
            units.append(
                Unit(
                    name=f"ratio {ratio} cells {box}",
                    marks=(len(units),),
                    params={"ratio": ratio, "box": [list(side) for side in box]},
                    writes=(region,),
                    memory=cells * channels * 4 * 4,
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


def _slab_memory(
    shape: Shape3, axis: Axis, slices: int, grid: tuple[int, int], channels: int, settings: FeatureSettings
) -> int:
    """Slab (with its neighbours and float64 sums where slices are averaged), tokens in float32 and half, Gram work."""
    pixels = math.prod(geometry.plane_shape(shape, axis))
    read = slices + settings.thickness - 1
    voxels = pixels * (read * (8 + 8 * (settings.thickness > 1)) + slices * 8)
    tokens = slices * math.prod(grid) * channels * (4 + 4 + 2 + 2)
    info = encoder_info(settings.encoder)
    tile = (min(grid[0], settings.tile) * info.patch, min(grid[1], settings.tile) * info.patch)
    return voxels + tokens + info.encode_bytes(tile, settings.batch) + (32 << 20)


def prepare(store: RunStore, settings: FeatureSettings) -> None:
    """Create the arrays that the units write to."""
    info, shape = encoder_info(settings.encoder), store.shape
    store.delete("features")
    grids = {axis: token_grid(shape, axis, settings, info.patch) for axis in AXES}
    for ratio in (1, *settings.ratios):
        for axis in AXES:
            slices = geometry.cell_count(shape[geometry.axis_index(axis)], ratio)
            dims = layout.view_dims(axis)
            chunks = layout.latent_chunks(layout.SLAB // ratio, grids[axis], info.channels)
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
                chunks=(*chunks[:3], len(layout.GRAM_MAPS)),
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


def encode(encoder: SliceEncoder, slices: Float32, settings: FeatureSettings) -> Float32:
    """Tokens (n, rows, columns, C) of slices (n, A, B): resized to whole patches, in batches, tiled where large."""
    patch = encoder.patch
    size = tuple(geometry.image_size(n, patch, settings.slice_size) for n in slices.shape[1:])
    grid = (size[0] // patch, size[1] // patch)
    out = np.empty((len(slices), *grid, encoder.channels), np.float32)
    for start in range(0, len(slices), settings.batch):
        batch = images.resize(slices[start : start + settings.batch], (size[0], size[1]))
        for rows in geometry.tiles(grid[0], settings.tile, settings.halo):
            for columns in geometry.tiles(grid[1], settings.tile, settings.halo):
                part = batch[:, rows.read(patch), columns.read(patch)]
                tokens = encoder.encode(np.ascontiguousarray(part))
                kept = tokens[:, rows.crop, columns.crop]
                out[start : start + len(batch), rows.keep, columns.keep] = kept
    return out


def work_standardize(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Fit the view's linear map on evenly spaced slices."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    length = store.shape[geometry.axis_index(axis)]
    where = np.unique(np.linspace(0, length - 1, min(SAMPLES, length) + 2).round().astype(int)[1:-1])
    tokens = np.concatenate(
        [encode(encoder, standard_slices(store, axis, int(i), int(i) + 1, chosen.thickness), chosen) for i in where]
    )
    mean, matrix = fit_standardization(tokens.reshape(-1, tokens.shape[-1]), chosen.standardize)
    store.put(
        f"{layout.STANDARDIZATION}/{axis}",
        np.concatenate([mean[None], matrix]).astype(np.float32),
        ("mean_and_rows", "channel"),
    )
    return None


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Encode one slab and write all that follows from it."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    start, stop = unit.params["start"], unit.params["stop"]
    tokens = encode(encoder, standard_slices(store, axis, start, stop, chosen.thickness), chosen)
    if chosen.standardize != "none":
        fitted = store.read(f"{layout.STANDARDIZATION}/{axis}")
        tokens = (tokens - fitted[0]) @ fitted[1:]
    lengths = geometry.plane_shape(store.shape, axis)
    weights = [kernel.token_weights(n, t) for n, t in zip(lengths, tokens.shape[1:3], strict=True)]
    sums = np.einsum("nrcz,r,c->z", tokens.astype(np.float16).astype(np.float32), *weights, optimize=True)
    store.array(layout.feature_sums(axis))[start // layout.SLAB] = sums.astype(np.float64)
    for ratio in (1, *chosen.ratios):
        latents = kernel.average_slices(tokens, ratio).astype(np.float16)
        first = start // ratio
        store.array(layout.latents(ratio, axis))[first : first + len(latents)] = latents
        maps = kernel.gram_maps(latents.astype(np.float32))
        store.array(layout.gram(ratio, axis))[first : first + len(latents)] = maps
    return None


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
