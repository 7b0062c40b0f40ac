"""Slices and planes as models get them, read from the store's tomogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import images
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Float32


class Sample:
    """Slices of one axis, each the mean of `thickness` slices around it, read once and held as they are stored.

    They are made into images a few at a time, so that only these few are held in single precision.

    Parameters
    ----------
    slices : the slices that will be asked for; nothing else is held but their neighbours
    """

    def __init__(self, store: RunStore, axis: Axis, slices: Iterable[int], thickness: int) -> None:
        self._length = store.shape[geometry.axis_index(axis)]
        self._reach = thickness // 2
        self._statistics = store.info["statistics"]
        self._held = np.unique([i for slice_ in slices for i in range(*self._window(slice_))])
        first, last = int(self._held[0]), int(self._held[-1])
        part: list[Any] = [slice(None)] * 3
        part[geometry.axis_index(axis)] = slice(first, last + 1)
        if len(self._held) == last + 1 - first:
            block = store.read(layout.tomogram(), tuple(part))
        else:
            part[geometry.axis_index(axis)] = self._held
            block = np.asarray(store.array(layout.tomogram()).oindex[tuple(part)])
        self._block = geometry.to_view(block, axis)
        if axis == "x" and self._reach:  # each slice is looked at several times
            self._block = np.ascontiguousarray(self._block)

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
