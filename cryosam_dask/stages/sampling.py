"""Slices and planes as models get them, read from the store's tomogram."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import images
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Axis, Float32

_ROWS = 2 * layout.CHUNK[0]


class Sample:
    """Slices of one axis, or a part of each, as means of `thickness` slices, read once and held as they are stored.

    They are made into images a few at a time, so that only these few are held in single precision.

    Parameters
    ----------
    slices : the slices that will be asked for; nothing else is held but their neighbours
    window : rows and columns of the slices; all, if it is not given
    """

    def __init__(
        self,
        store: RunStore,
        axis: Axis,
        slices: Iterable[int],
        thickness: int,
        window: tuple[slice, slice] | None = None,
    ) -> None:
        self._length = store.shape[geometry.axis_index(axis)]
        self._reach = thickness // 2
        self._statistics = store.info["statistics"]
        self._held = np.unique([i for slice_ in slices for i in range(*self._window(slice_))])
        first, last = int(self._held[0]), int(self._held[-1])
        run = len(self._held) == last + 1 - first
        rows, columns = window or tuple(slice(0, n) for n in geometry.plane_shape(store.shape, axis))
        part: list[Any] = [None] * 3
        part[geometry.axis_index(axis)] = slice(first, last + 1) if run else self._held
        for index, side in zip(geometry.plane_axes(axis), (rows, columns), strict=True):
            part[index] = side
        array = store.array(layout.tomogram())
        if not run:
            self._block = geometry.to_view(np.asarray(array.oindex[tuple(part)]), axis)
        elif axis == "x" and self._reach:
            self._block = _in_order(array, part)
        else:
            self._block = geometry.to_view(np.asarray(array[tuple(part)]), axis)

    def standard(self, slices: Sequence[int]) -> Float32:
        """Slices (n, rows, columns) with the tomogram's mean taken off and divided by its standard deviation."""
        return images.mean_slices(
            self._block, self._windows(slices), self._statistics["mean"], 1 / self._statistics["std"]
        )

    def grey(self, slices: Sequence[int]) -> NDArray[np.uint8]:
        """Slices as 8-bit images (n, rows, columns), stretched between the tomogram's percentiles."""
        means = images.mean_slices(self._block, self._windows(slices))
        return images.to_uint8(means, self._statistics["low"], self._statistics["high"])

    def _window(self, index: int) -> tuple[int, int]:
        return max(index - self._reach, 0), min(index + self._reach + 1, self._length)

    def _windows(self, slices: Sequence[int]) -> list[tuple[int, int]]:
        """Where the slices around each one lie among those that are held."""
        low, high = np.transpose([self._window(i) for i in slices])
        first = np.searchsorted(self._held, low)
        return list(zip(first.tolist(), (first + high - low).tolist(), strict=True))


def _in_order(array: Any, part: Sequence[slice]) -> Array:
    """Slices of axis x, one after the other in memory, since each is looked at several times.

    They are put in order while they are read, some rows of chunks at a time, so that no second copy of all is held.
    """
    z, y, x = part
    out = np.empty([side.stop - side.start for side in (x, z, y)], array.dtype)
    edges = [z.start, *range((z.start // _ROWS + 1) * _ROWS, z.stop, _ROWS), z.stop]
    for a, b in itertools.pairwise(edges):
        out[:, a - z.start : b - z.start] = geometry.to_view(np.asarray(array[a:b, y, x]), "x")
    return out
