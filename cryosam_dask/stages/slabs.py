"""What the tokens of a slab become in the store, piece by piece: latents of all ratios, their Gram maps, the sums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.kernels.backend import Backend
from cryosam_dask.kernels.reduction import Reduction
from cryosam_dask.stages.tiling import Piece
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Float32

Half = NDArray[np.float16]


class Slab:
    """The tokens of a slab's slices, of which no more than one piece is held.

    Parameters
    ----------
    grid : tokens (rows, columns) of a slice; ratios : those that are stored besides the native one
    backend : of the tokens that are added
    """

    def __init__(
        self,
        store: RunStore,
        axis: Axis,
        slices: range,
        grid: tuple[int, int],
        channels: int,
        ratios: Iterable[int],
        backend: Backend,
    ) -> None:
        self._store, self._axis, self.slices, self._backend = store, axis, slices, backend
        lengths = geometry.plane_shape(store.shape, axis)
        self._weights = [kernel.token_weights(n, t) for n, t in zip(lengths, grid, strict=True)]
        self._ratios = sorted(ratios)
        self._maps = {ratio: self._open(ratio, grid) for ratio in (1, *self._ratios)}
        self._sums = np.zeros(channels, np.float32)

    def _open(self, ratio: int, grid: tuple[int, int]) -> _Maps:
        first = self.slices.start // ratio
        part = slice(first, first + geometry.cell_count(len(self.slices), ratio))
        latents, gram = (self._store.array(name(ratio, self._axis)) for name in (layout.latents, layout.gram))
        return _Maps(latents, gram, part, grid[1])

    def add(self, piece: Piece, batches: Iterable[Any]) -> None:
        """A piece's tokens, (n, rows, columns, C) of some slices at a time, which are rounded in place; write it.

        Raises FloatingPointError for tokens that are not finite in half precision, and writes nothing of the piece.
        """
        rows, columns = (span.keep for span in piece)
        weights = np.outer(self._weights[0][rows], self._weights[1][columns])
        count, size, finest = len(self.slices), (piece[0].size, piece[1].size), min(self._ratios, default=None)
        reduction = Reduction(self._backend, count, size, len(self._sums), finest, weights)
        # all is asked for before anything is waited for, and of one thread: did threads take turns at each batch, a GPU
        # would be done with all of theirs at once, and be left idle while all of them write and read
        with self._backend.at_work():
            for tokens in batches:
                reduction.add(tokens)
                del tokens  # before the next ones are made
            reduced = {1: reduction.native} | {ratio: reduction.coarse(ratio) for ratio in self._ratios}
            landed = reduction.sums()
        del reduction
        sums = landed.array()[0]
        if not np.isfinite(sums).all():
            raise FloatingPointError("tokens are not finite in half precision")
        self._sums += sums
        for ratio in list(reduced):
            latents, maps = reduced.pop(ratio)
            self._maps[ratio].put(rows, columns, latents.array(), maps.array())
            del latents, maps

    def write_sums(self) -> None:
        """Write the sums over all that was added."""
        index = self.slices.start // layout.SLAB
        self._store.array(layout.feature_sums(self._axis))[index] = self._sums.astype(np.float64)


class _Maps:
    """Latents and Gram maps of one ratio of a slab, written piece by piece, row of pieces by row.

    Products across a seam wait for the tokens on its other side. For those on the right the piece's maps are held
    until the next piece. For those below, the last row of maps is written again once the next row of pieces is there;
    until then only the rows of tokens along the seam are held.
    """

    def __init__(self, latents: Any, gram: Any, part: slice, columns: int) -> None:
        self._latents, self._gram, self._part, self._columns = latents, gram, part, columns
        self._held: tuple[slice, slice, Float32] | None = None
        self._right: Half | None = None
        self._above: list[tuple[slice, Half]] = []
        self._below: list[tuple[slice, Half]] = []
        self._first: list[Half] = []

    def put(self, rows: slice, columns: slice, latents: Half, maps: Float32) -> None:
        """The next piece's latents (n, r, c, C) and the Gram maps that they have for themselves (n, r, c, 4)."""
        self._latents[self._part, rows, columns] = latents
        if self._held is not None and self._right is not None:
            self._held[2][:, :, -1] = kernel.gram_maps(np.stack([self._right, latents[:, :, 0]], axis=2))[:, :, 0]
            self._write_held()
        self._held = rows, columns, maps
        if columns.stop < self._columns:
            self._right = latents[:, :, -1].copy()
        self._first.append(latents[:, 0].copy())
        self._below.append((columns, latents[:, -1].copy()))
        if columns.stop == self._columns:
            self._write_held()
            if self._above:
                self._mend(rows.start - 1)
            self._above, self._below, self._first = self._below, [], []

    def _write_held(self) -> None:
        assert self._held is not None
        rows, columns, maps = self._held
        self._gram[self._part, rows, columns] = maps
        self._held = self._right = None

    def _mend(self, row: int) -> None:
        """Write the maps of the row above a seam, piece by piece, now that the tokens below it are known."""
        for index, (columns, above) in enumerate(self._above):
            both = np.stack([above, self._first[index]], axis=1)
            if index + 1 < len(self._above):  # the neighbours on the right
                beside = np.stack([self._above[index + 1][1][:, :1], self._first[index + 1][:, :1]], axis=1)
                both = np.concatenate([both, beside], axis=2)
            width = columns.stop - columns.start
            self._gram[self._part, row, columns] = kernel.gram_maps(both)[:, 0, :width]
