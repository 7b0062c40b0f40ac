"""SAM's masks at the plane's own size, computed only in the window that a mask can reach.

The public code brings logits to the plane in two bilinear steps: to the padded S × S image, of which the padding is
cut off, and from there to the plane. Both are linear and separable, so along each side of the plane they are one matrix
with a few entries in a row, and a plane's pixel can lie in the mask only if one of the few logits it is made of does.
So only the window that positive logits reach is computed: a particle's is a thousandth of the plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import Bool, Float32, Window

PIECE = 64
"""Pixels along a side that are made together."""


class Side(NamedTuple):
    """How the plane's n pixels along one side are made of the logits.

    weights : (n, cells) float32; first, last : (n,) the first and the last cell of each pixel, both non-decreasing
    """

    weights: Float32
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    def reached(self, cells: Bool) -> slice:
        """Pixels that at least one of `cells` (bool) is part of, as one range; empty when there are none."""
        at = np.flatnonzero(cells)
        if at.size == 0:
            return slice(0, 0)
        start, stop = np.searchsorted(self.last, at[0]), np.searchsorted(self.first, at[-1], "right")
        return slice(int(start), max(int(start), int(stop)))

    def pieces(self, pixels: slice) -> Iterator[tuple[slice, slice]]:
        """A range of pixels in pieces, each with the cells it is made of: most weights of a longer one are 0."""
        for start in range(pixels.start, pixels.stop, PIECE):
            stop = min(start + PIECE, pixels.stop)
            yield slice(start, stop), slice(int(self.first[start]), int(self.last[stop - 1]) + 1)


def _taps(length: int, source: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32]:
    """The two sources of each pixel and the second's part, bilinear as in torch: half-pixel centres, in float32."""
    half = np.float32(0.5)
    at = np.float32(source) / np.float32(length) * (np.arange(length, dtype=np.float32) + half) - half
    at = np.maximum(at, 0)
    low = np.minimum(at.astype(np.intp), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


@lru_cache(maxsize=32)
def side(length: int, resized: int, size: int, cells: int) -> Side:
    """From `cells` logits along the padded image of `size` pixels to `length` pixels, which fill `resized` of them."""
    low, high, part = _taps(size, cells)
    image = np.zeros((size, cells), np.float64)
    np.add.at(image, (np.arange(size), low), 1 - part)
    np.add.at(image, (np.arange(size), high), part)
    low, high, part = _taps(length, resized)
    weights = ((1 - part)[:, None] * image[low] + part[:, None] * image[high]).astype(np.float32)
    held = weights > 0
    return Side(weights, held.argmax(1), cells - 1 - held[:, ::-1].argmax(1))


def enlarge(logits: Float32, rows: Side, cols: Side, threshold: float) -> Window:
    """The mask of logits (h, w) above `threshold`, in the window of the plane that such logits reach.

    Equal, but for rounding of the logits' values, to `Sam.postprocess_masks` on the whole plane.
    """
    above = logits > threshold
    r, c = rows.reached(np.asarray(above.any(1))), cols.reached(np.asarray(above.any(0)))
    shape = len(rows.weights), len(cols.weights)
    if r.start == r.stop or c.start == c.stop:
        return Window(shape, 0, 0, np.zeros((0, 0), bool))
    tall = np.empty((r.stop - r.start, logits.shape[1]), np.float32)
    wide = np.empty((len(tall), c.stop - c.start), np.float32)
    needed = slice(int(cols.first[c.start]), int(cols.last[c.stop - 1]) + 1)
    for k, cells in rows.pieces(r):
        tall[k.start - r.start : k.stop - r.start, needed] = rows.weights[k, cells] @ logits[cells, needed]
    for k, cells in cols.pieces(c):
        wide[:, k.start - c.start : k.stop - c.start] = tall[:, cells] @ cols.weights[k, cells].T
    return Window(shape, r.start, c.start, wide > threshold)
