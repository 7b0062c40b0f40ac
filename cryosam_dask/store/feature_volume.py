"""`FeatureVolume`: the 3C-channel features of a run, read block by block from its latent views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Bool, Float32, Shape3

if TYPE_CHECKING:
    import xarray as xr

BLOCK_BYTES = 32 << 20
PIECE_BYTES = 16 << 20
"""Latents that are read at a time when a slab is multiplied with a query; at least one chunk."""

TILE: Shape3 = (32, 64, 64)
"""Cells that are interpolated at a time: what they need stays in the cache."""

Part = tuple[slice, slice, slice]
DotsReader = Callable[[Axis, Part], Float32]
"""A function (axis, slices, token rows, token columns) → products (k, n, r, c), see `kernels.tokens.token_dots`."""


class _Where(NamedTuple):
    """The tokens of a view that a box of cells needs, and their interpolation."""

    part: Part
    rows: geometry.Interpolation
    columns: geometry.Interpolation


class FeatureVolume:
    """The features F of a run and its pyramid F^r, never held in memory as a whole.

    Open with `FeatureVolume.open(url)`. All arrays are (z, y, x[, channel]); a query or a mean is (3C,), the channels
    of the z, y and x views in this order.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        described = store.info.get("features")
        if described is None:
            raise StoreError(f"{store.url}: no features yet; make them with `cryosam features` or `cryosam run`")
        self.shape: Shape3 = store.shape
        self.ratios: tuple[int, ...] = (1, *(int(r) for r in described["ratios"]))
        self.view_channels = int(described["channels"])
        self.channels = 3 * self.view_channels

    @classmethod
    def open(cls, url: str | Path) -> FeatureVolume:
        """Open the features of the run at a path or URL; `StoreError` if there is no run or it has no features."""
        return cls(RunStore.open(url))

    def grid(self, ratio: int) -> Shape3:
        """Cells of a ratio along z, y, x; for ratio 1 the voxels."""
        self._check_ratio(ratio)
        return geometry.cell_grid(self.shape, ratio)

    def token_grid(self, axis: Axis) -> tuple[int, int]:
        """Tokens along the rows and the columns of a slice of `axis`."""
        shape = self._store.array(layout.latents(1, axis)).shape
        return int(shape[1]), int(shape[2])

    @property
    def token_grids(self) -> dict[Axis, tuple[int, int]]:
        """`token_grid` of each view."""
        return {axis: self.token_grid(axis) for axis in AXES}

    @property
    def mean(self) -> Float32:
        """Mean of F over all voxels, (3C,)."""
        voxels = float(np.prod(self.shape))
        sums = [self._store.read(layout.feature_sums(axis)).sum(0) for axis in AXES]
        return (np.concatenate(sums) / voxels).astype(np.float32)

    def dense(self, ratio: int) -> xr.DataArray:
        """F^ratio as a lazy float32 DataArray (z, y, x, channel) with ångström coordinates."""
        return self._lazy(ratio, lambda box: self.dense_block(ratio, box), self.channels, "features")

    def similarity(self, query: Array, ratio: int, *, center: bool = False) -> xr.DataArray:
        """Cosine similarity of F^ratio with `query` (3C,), as a lazy float32 DataArray (z, y, x).

        With `center`, it is the cosine of F − μ and query − μ, where μ is the mean feature.
        """
        checked = self._check_query(query)
        mean = self.mean if center else None
        return self._lazy(ratio, lambda box: self.similarity_block(checked, ratio, box, mean), None, "similarity")

    def pool(self, mask: Any) -> Float32:
        """Mean of F over a boolean (z, y, x) mask of the tomogram's shape, (3C,).

        `InputError` if the mask has another shape or is empty. A lazy mask is read box by box.
        """
        if tuple(mask.shape) != self.shape:
            raise InputError(f"mask of shape {tuple(mask.shape)} does not fit the tomogram's {self.shape}")
        total, count = np.zeros(self.channels), 0
        for box in geometry.boxes(self.shape, (64, 128, 128)):
            block = np.asarray(mask[geometry.box_slices(box)]).astype(bool)
            if block.any():
                total += self.pool_block(block, box)
                count += int(block.sum())
        if count == 0:
            raise InputError("the mask is empty: no voxel to average over")
        return (total / count).astype(np.float32)

    def dense_block(self, ratio: int, box: Box) -> Float32:
        """F^ratio on a box of cells, (z, y, x, 3C)."""
        parts = []
        for axis in AXES:
            where = self._where(ratio, axis, box)
            values = kernel.upsample(self._latents(ratio, axis, where), where.rows, where.columns)
            parts.append(np.moveaxis(values, 0, geometry.axis_index(axis)))
        return np.concatenate(parts, axis=-1)

    def similarity_block(
        self,
        query: Float32,
        ratio: int,
        box: Box,
        mean: Float32 | None = None,
        *,
        wanted: Bool | None = None,
        dots: DotsReader | None = None,
    ) -> Float32:
        """Cosine similarity on a box of cells, (z, y, x); of F − mean and query − mean where a mean is given.

        Where a mask of `wanted` cells is given, the others are NaN. The tokens' dot products are computed from the
        latents, or read with `dots` from where `dots_of_slabs` was kept.
        """
        targets = self.targets(query, mean)
        views = [self._view(ratio, axis, box, target, dots) for axis, target in zip(AXES, targets, strict=True)]
        norm = float(np.linalg.norm(query if mean is None else query - mean))
        size: Shape3 = (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0])
        out = np.full(size, np.nan, np.float32)
        for tile in geometry.boxes(size, TILE):
            if wanted is not None:
                held = wanted[geometry.box_slices(tile)]
                if not held.any():
                    continue
                tile = geometry.shifted(geometry.bounds(held), tile)
            part = geometry.box_slices(tile)
            out[part] = self._cosine(views, targets, tile, norm)
        return out if wanted is None else np.where(wanted, out, np.float32(np.nan))

    @staticmethod
    def _cosine(views: list[kernel.ViewBlock], targets: list[kernel.Target], tile: Box, norm: float) -> Float32:
        """The cosine on a tile of the box that the views' blocks are of."""
        numerator: Float32 | None = None
        for axis, view, target in zip(AXES, views, targets, strict=True):
            slices, rows, columns = (slice(*side) for side in geometry.box_of(tile, axis))
            n, s = kernel.view_terms(view.part(slices, rows, columns), target)
            if numerator is None:
                numerator, squared = geometry.from_view(n, axis), geometry.from_view(s, axis)
            else:
                numerator += geometry.from_view(n, axis)
                squared += geometry.from_view(s, axis)
        assert numerator is not None
        return kernel.cosine(numerator, squared, norm)

    def _view(
        self, ratio: int, axis: Axis, box: Box, target: kernel.Target, dots: DotsReader | None
    ) -> kernel.ViewBlock:
        where = self._where(ratio, axis, box)
        if dots is None:
            products = kernel.token_dots(self._latents(ratio, axis, where), target.vectors)
        else:
            products = dots(axis, where.part)
        gram = self._store.read(layout.gram(ratio, axis), where.part)
        return kernel.ViewBlock(products, gram, where.rows, where.columns)

    def targets(self, query: Float32, mean: Float32 | None = None) -> list[kernel.Target]:
        """The query, and the mean where there is one, cut into the three views' parts."""
        parts = (slice(i * self.view_channels, (i + 1) * self.view_channels) for i in range(len(AXES)))
        return [kernel.Target(query[part], None if mean is None else mean[part]) for part in parts]

    def touched_tokens(self, ratio: int, axis: Axis, wanted: Bool) -> Bool:
        """The tokens (r, c) that the wanted cells of a slice of `axis`, a mask of the slice's cells, interpolate."""
        touch = []
        for length, cells, tokens in zip(
            geometry.plane_shape(self.shape, axis), wanted.shape, self.token_grid(axis), strict=True
        ):
            between = geometry.interpolation(geometry.cell_centers(length, ratio), length, tokens)
            full = np.zeros((cells, tokens), np.float32)
            full[:, between.start : between.stop] = between.weights > 0
            touch.append(full)
        return np.asarray(touch[0].T @ wanted.astype(np.float32) @ touch[1] > 0)

    def dots_of_slabs(
        self, target: kernel.Target, ratio: int, axis: Axis, slabs: Iterable[tuple[int, int, Bool]]
    ) -> Float32:
        """Products of the tokens of a view's slabs with a target's vectors, (k, n, r, c); 0 in chunks not asked for.

        A slab is (first slice, last slice + 1, touched tokens (r, c)); slabs follow each other. Latents are read piece
        by piece, whole chunks at a time and each once; the next piece is read while this one is multiplied.
        """
        latents = self._store.array(layout.latents(ratio, axis))
        vectors, side = target.vectors, (latents.chunks[1], latents.chunks[2])
        every = list(slabs)
        first = every[0][0]

        def pieces() -> Iterator[Part]:
            for start, stop, touched in every:
                token_bytes = (stop - start) * self.view_channels * latents.dtype.itemsize
                for rows, columns in runs(touched, side, PIECE_BYTES // token_bytes):
                    yield slice(start, stop), rows, columns

        out = np.zeros((vectors.shape[1], every[-1][1] - first, *latents.shape[1:3]), np.float32)
        for (slices, rows, columns), tokens in read_ahead(lambda part: np.asarray(latents[part]), pieces()):
            here = slice(slices.start - first, slices.stop - first)
            out[:, here, rows, columns] = kernel.token_dots(tokens, vectors)
        return out

    def pool_block(self, mask: Bool, box: Box) -> Float32:
        """Sum of F over a mask of the box's shape, (3C,). `box` is in voxels."""
        parts = []
        for axis in AXES:
            where = self._where(1, axis, box)
            latents = self._latents(1, axis, where)
            parts.append(kernel.pool_view(latents, geometry.to_view(mask, axis), where.rows, where.columns))
        return np.concatenate(parts)

    def _where(self, ratio: int, axis: Axis, box: Box) -> _Where:
        slices, rows, columns = geometry.box_of(box, axis)
        lengths = geometry.plane_shape(self.shape, axis)
        row, column = (
            geometry.interpolation(geometry.cell_centers(length, ratio)[a:b], length, tokens)
            for length, (a, b), tokens in zip(lengths, (rows, columns), self.token_grid(axis), strict=True)
        )
        part = (slice(*slices), slice(row.start, row.stop), slice(column.start, column.stop))
        return _Where(part, row, column)

    def _latents(self, ratio: int, axis: Axis, where: _Where) -> Array:
        return self._store.read(layout.latents(ratio, axis), where.part)

    def _lazy(self, ratio: int, block: Any, channels: int | None, name: str) -> xr.DataArray:
        import dask.array as da
        import xarray as xr

        grid = self.grid(ratio)
        # similarity has small results: its blocks are cut by the voxels they cover, which say how many tokens it reads
        side = max(8, 128 // ratio if channels is None else int((BLOCK_BYTES / (4 * channels)) ** (1 / 3)))
        chunks = tuple(tuple(b - a for a, b in geometry.slabs(n, side)) for n in grid)
        last = () if channels is None else (channels,)

        def compute(block_info: Any = None) -> Float32:
            where = block_info[None]["array-location"][:3]
            out: Float32 = block(tuple((int(a), int(b)) for a, b in where))
            return out

        data = da.map_blocks(
            compute,
            chunks=chunks + tuple((n,) for n in last),
            dtype=np.float32,
            meta=np.empty((0,) * (3 + len(last)), np.float32),
        )
        coords = {
            a: (a, geometry.axis_coordinates(n, v, o, ratio), {"units": "angstrom"})
            for a, n, v, o in zip(AXES, self.shape, self._store.voxel_size, self._store.origin, strict=True)
        }
        return xr.DataArray(data, coords=coords, dims=(*AXES, *("channel",) * len(last)), name=name)

    def _check_ratio(self, ratio: int) -> None:
        if ratio not in self.ratios:
            raise InputError(f"no features of ratio {ratio} in this run; it has {self.ratios}")

    def _check_query(self, query: Array) -> Float32:
        values = np.asarray(query, np.float32)
        if values.shape != (self.channels,):
            raise InputError(f"a query has shape ({self.channels},) in this run, got {values.shape}")
        if not np.isfinite(values).all() or not values.any():
            raise InputError("a query must be finite and not zero")
        return values


def runs(touched: Bool, side: tuple[int, int], most: int) -> Iterator[tuple[slice, slice]]:
    """Cover the touched tokens (r, c) by whole chunks of `side`: rows and columns of pieces of at most `most` tokens.

    Each chunk that holds a touched token is in exactly one piece, others in none; a piece has at least one chunk.
    """
    rows, columns = touched.shape
    starts = [np.arange(0, n, s) for n, s in zip(touched.shape, side, strict=True)]
    chunks = np.logical_or.reduceat(np.logical_or.reduceat(touched, starts[0], axis=0), starts[1], axis=1)
    deep = max(1, most // max(1, side[0] * columns))
    i = 0
    while i < len(chunks):
        # rows of chunks that ask for the same columns are read together
        j = i + 1
        while j < len(chunks) and j - i < deep and np.array_equal(chunks[j], chunks[i]):
            j += 1
        high = min(j * side[0], rows)
        wide = max(1, most // ((high - i * side[0]) * side[1]))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chunks[i], [False]]).astype(np.int8)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            for k in range(first, last, wide):
                stop = min(min(k + wide, last) * side[1], columns)
                yield slice(i * side[0], high), slice(k * side[1], stop)
        i = j


def read_ahead(read: Callable[[Any], Array], parts: Iterable[Any]) -> Iterator[tuple[Any, Array]]:
    """Read part by part, each next one in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for part in parts:
            following = (part, reader.submit(read, part))
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = following
        if ahead is not None:
            yield ahead[0], ahead[1].result()
