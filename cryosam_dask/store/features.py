"""`FeatureVolume`: the 3C-channel features of a run, read block by block from its latent views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import features as kernel
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Bool, Float32, Shape3

if TYPE_CHECKING:
    import xarray as xr

BLOCK_BYTES = 32 << 20


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
        self._view_channels = int(described["channels"])
        self.channels = 3 * self._view_channels

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

        With `center`, of F − μ with query − μ, μ the mean feature.
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
            view = self._view(ratio, axis, box, gram=False)
            values = kernel.upsample(view.latents, view.rows, view.columns)
            parts.append(np.moveaxis(values, 0, geometry.axis_index(axis)))
        return np.concatenate(parts, axis=-1)

    def similarity_block(self, query: Float32, ratio: int, box: Box, mean: Float32 | None = None) -> Float32:
        """Cosine similarity on a box of cells, (z, y, x); of F − mean and query − mean where a mean is given."""
        size = tuple(b - a for a, b in box)
        numerator, squared = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for i, axis in enumerate(AXES):
            part = slice(i * self._view_channels, (i + 1) * self._view_channels)
            view = self._view(ratio, axis, box, gram=True)
            n, s = kernel.view_terms(view, query[part], None if mean is None else mean[part])
            numerator += geometry.from_view(n, axis)
            squared += geometry.from_view(s, axis)
        norm = float(np.linalg.norm(query if mean is None else query - mean))
        return kernel.cosine(numerator, squared, norm)

    def pool_block(self, mask: Bool, box: Box) -> Float32:
        """Sum of F over a mask of the box's shape, (3C,). `box` is in voxels."""
        parts = []
        for axis in AXES:
            view = self._view(1, axis, box, gram=False)
            parts.append(kernel.pool_view(view.latents, geometry.to_view(mask, axis), view.rows, view.columns))
        return np.concatenate(parts)

    def _view(self, ratio: int, axis: Axis, box: Box, *, gram: bool) -> kernel.ViewBlock:
        slices, rows, columns = geometry.box_of(box, axis)
        latents = self._store.array(layout.latents(ratio, axis))
        lengths = geometry.plane_shape(self.shape, axis)
        row, column = (
            geometry.interpolation(geometry.cell_centers(length, ratio)[a:b], length, tokens)
            for length, (a, b), tokens in zip(lengths, (rows, columns), latents.shape[1:3], strict=True)
        )
        part = (slice(*slices), slice(row.start, row.stop), slice(column.start, column.stop))
        maps = self._store.read(layout.gram(ratio, axis), part) if gram else None
        return kernel.ViewBlock(np.asarray(latents[part]), maps, row, column)

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
