"""Features: slices of the three views → latent tokens, their pyramid, Gram maps and sums.

A unit is one or two slabs of 16 slices of one axis. A slab yields 16 native latent slices, 4, 2 and 1 of ratios 4, 8
and 16, and the Gram maps of each, with no dependence on any other slab. Before it, `standardize` fits a linear map per
view on a sample of slices; after it, `dense` writes the 3C-channel array of the ratios that ask for one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import features as kernel
from cryosam_dask.kernels import images
from cryosam_dask.kernels.standardization import fit_standardization
from cryosam_dask.models.cache import get_encoder
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout, ome
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Float32, Shape3, SliceEncoder

NAME = "features"
STANDARDIZE = "features-standardization"
DENSE = "features-dense"
SAMPLES = 12
"""Slices per view that the standardization is fitted on."""

WRITTEN_AT_ONCE = 10
"""Chunks that zarr has in hand while it writes an array."""


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
                memory=_unit_memory(shape, axis, 1, grid, info.channels, settings)
                + 3 * 4 * SAMPLES * math.prod(grid) * info.channels,
            )
        )
    return _stage(STANDARDIZE, work_standardize, settings, upstream, units)


def plan(shape: Shape3, settings: FeatureSettings, upstream: str) -> Stage:
    """The units of all three views."""
    info = encoder_info(settings.encoder)
    units: list[Unit] = []
    for axis in AXES:
        grid = token_grid(shape, axis, settings, info.patch)
        for start, stop in geometry.slabs(shape[geometry.axis_index(axis)], unit_slices(axis)):
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
                    memory=_unit_memory(shape, axis, stop - start, grid, info.channels, settings),
                )
            )
    return _stage(NAME, work, settings, upstream, units)


def unit_slices(axis: Axis) -> int:
    """Slices of one unit: half a chunk, so that the units of a view read each chunk of the tomogram twice.

    Smaller units would read it more often; larger ones hold more at a time, and fewer workers can share a view.
    """
    return max(layout.SLAB, layout.CHUNK[geometry.axis_index(axis)] // 2)


def _slabs(start: int, stop: int) -> list[range]:
    return [range(start + a, start + b) for a, b in geometry.slabs(stop - start, layout.SLAB)]


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


def _unit_memory(
    shape: Shape3, axis: Axis, slices: int, grid: tuple[int, int], channels: int, settings: FeatureSettings
) -> int:
    """All slices as stored with their neighbours, and one slab: its tokens in half precision, the sums of runs and a
    batch in single precision."""
    pixels, cells = math.prod(geometry.plane_shape(shape, axis)), math.prod(grid)
    info = encoder_info(settings.encoder)
    slab = min(slices, layout.SLAB)
    batch = min(settings.batch, slab)
    tile = (min(grid[0], settings.tile) * info.patch, min(grid[1], settings.tile) * info.patch)
    runs = geometry.cell_count(slab, min(settings.ratios, default=slab))
    read = pixels * (slices + settings.thickness - 1) * 4
    kept = cells * (channels * (2 * slab + 4 * runs) + 4 * len(layout.GRAM_MAPS) * slab)
    encoding = info.encode_bytes(tile, batch if info.uses_torch else 1)
    at_work = batch * 4 * (pixels + cells * info.patch**2 + 2 * cells * channels) + encoding
    # a chunk that is written: itself, compressed, and compressed with its checksum
    chunk = 3 * 2 * math.prod(layout.latent_chunks(slab, grid, channels))
    writing = min(WRITTEN_AT_ONCE * chunk, 3 * 2 * slab * cells * channels)
    return read + kept + max(at_work, writing) + (24 << 20)


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
    """Tokens (n, rows, columns, C) of slices (n, A, B): resized to whole patches, in one batch, tiled where large."""
    patch = encoder.patch
    rows, columns = (geometry.image_size(n, patch, settings.slice_size) for n in slices.shape[1:])
    images_ = images.resize(slices, (rows, columns))
    across = geometry.tiles(rows // patch, settings.tile, settings.halo)
    along = geometry.tiles(columns // patch, settings.tile, settings.halo)
    if len(across) == len(along) == 1:
        return encoder.encode(images_)
    out = np.empty((len(slices), rows // patch, columns // patch, encoder.channels), np.float32)
    for row, column in itertools.product(across, along):
        tokens = encoder.encode(np.ascontiguousarray(images_[:, row.read(patch), column.read(patch)]))
        out[:, row.keep, column.keep] = tokens[:, row.crop, column.crop]
    return out


def encoded(
    encoder: SliceEncoder, sample: Sample, slices: Sequence[int], settings: FeatureSettings
) -> Iterator[Float32]:
    """The tokens of slices, `settings.batch` slices at a time."""
    for start in range(0, len(slices), settings.batch):
        yield encode(encoder, sample.standard(slices[start : start + settings.batch]), settings)


def work_standardize(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Fit the view's linear map on evenly spaced slices."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    length = store.shape[geometry.axis_index(axis)]
    where = np.unique(np.linspace(0, length - 1, min(SAMPLES, length) + 2).round().astype(int)[1:-1])
    tokens = np.concatenate(
        [next(encoded(encoder, Sample(store, axis, [i], chosen.thickness), [i], chosen)) for i in where.tolist()]
    )
    mean, matrix = fit_standardization(tokens.reshape(-1, tokens.shape[-1]), chosen.standardize)
    store.put(
        f"{layout.STANDARDIZATION}/{axis}",
        np.concatenate([mean[None], matrix]).astype(np.float32),
        ("mean_and_rows", "channel"),
    )
    return None


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Encode the unit's slabs and write all that follows from them."""
    store, chosen, encoder = _open(context, settings)
    axis: Axis = unit.params["axis"]
    start, stop = unit.params["start"], unit.params["stop"]
    sample = Sample(store, axis, range(start, stop), chosen.thickness)
    fitted = store.read(f"{layout.STANDARDIZATION}/{axis}") if chosen.standardize != "none" else None
    for slices in _slabs(start, stop):
        slab = _Slab(store, axis, slices, chosen, encoder)
        for tokens in encoded(encoder, sample, slices, chosen):
            if fitted is not None:
                tokens -= fitted[0]
                tokens = tokens @ fitted[1:]
            slab.add(tokens)
        slab.write()
    return None


class _Slab:
    """What a slab's tokens become, gathered a few slices at a time.

    Native tokens are held as they are stored. What is held in single precision are the sums of the finest ratio's runs
    of slices, from which all coarser ones follow.
    """

    def __init__(
        self, store: RunStore, axis: Axis, slices: range, settings: FeatureSettings, encoder: SliceEncoder
    ) -> None:
        self._store, self._axis, self._first = store, axis, slices.start
        lengths = geometry.plane_shape(store.shape, axis)
        grid = token_grid(store.shape, axis, settings, encoder.patch)
        rows, columns = (kernel.token_weights(n, t) for n, t in zip(lengths, grid, strict=True))
        self._weights = np.outer(rows, columns).reshape(-1)
        self._ratios = sorted(settings.ratios)
        self._finest = self._ratios[0] if self._ratios else len(slices)
        self._native = np.empty((len(slices), *grid, encoder.channels), np.float16)
        self._gram = np.empty((len(slices), *grid, len(layout.GRAM_MAPS)), np.float32)
        runs = geometry.cell_count(len(slices), self._finest) if self._ratios else 0
        self._runs = np.zeros((runs, *grid, encoder.channels), np.float32)
        self._sums = np.zeros(encoder.channels, np.float32)
        self._filled = 0

    def add(self, tokens: Float32) -> None:
        """The next slices' tokens (n, rows, columns, C); they are rounded in place."""
        part = slice(self._filled, self._filled + len(tokens))
        if self._ratios:
            for index, image in enumerate(tokens, part.start):
                self._runs[index // self._finest] += image
        self._native[part] = tokens
        tokens[...] = self._native[part]  # all that follows is of the tokens as they are stored
        self._gram[part] = kernel.gram_maps(tokens)
        for image in tokens:
            self._sums += self._weights @ image.reshape(len(self._weights), -1)
        self._filled = part.stop

    def write(self) -> None:
        """Write the native tokens, the pyramid, the Gram maps of all and the sums."""
        count, slab = len(self._native), self._first // layout.SLAB
        self._store.array(layout.feature_sums(self._axis))[slab] = self._sums.astype(np.float64)
        self._put(1, self._native, self._gram)
        del self._native, self._gram
        counts = np.minimum(self._finest, count - np.arange(0, count, self._finest))
        for ratio in self._ratios:
            means = kernel.average_slices(self._runs, ratio // self._finest, counts).astype(np.float16)
            self._put(ratio, means, kernel.gram_maps(means))

    def _put(self, ratio: int, latents: NDArray[np.float16], gram: Float32) -> None:
        part = slice(self._first // ratio, self._first // ratio + len(latents))
        self._store.array(layout.latents(ratio, self._axis))[part] = latents
        self._store.array(layout.gram(ratio, self._axis))[part] = gram


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
