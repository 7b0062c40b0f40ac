"""SAM's masks at the plane's own size, made on the device that the logits are on, only where a mask can be.

The public code brings logits to the plane in two bilinear steps: to the padded S × S image, of which the padding is
cut off, and from there to the plane. Both are linear and separable, so along each side of the plane they are one matrix
with a few entries in a row, and a plane's pixel can lie in the mask only if one of the few logits it is made of does.
So only the window that positive logits reach is made: a particle's is a thousandth of the plane. It is cut into tiles
of one size, so that those of all prompts are one product of matrices, and only their bits travel to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import Float32, Window

if TYPE_CHECKING:
    import torch

TILE = 64
"""Pixels of a tile's side; a multiple of 8, so that a row of it is whole bytes."""

TILES = 512
"""Tiles that are made at a time: 8 MB in float32, and less than that again in between."""


@dataclass(frozen=True, eq=False)
class Side:
    """How the plane's n pixels along one side are made of the logits.

    weights : (n, cells) float32; first, last : (n,) the first and the last cell of each pixel, both non-decreasing
    reach : the most cells that a tile is made of
    inside : cells whose centre lies on the plane, not on the padding; cell : pixels of the plane that a cell is wide
    """

    weights: Float32
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    reach: int
    inside: int
    cell: float

    def reached(self, low: int, high: int) -> slice:
        """Pixels that at least one of the cells from `low` to `high` is part of, as one range."""
        start, stop = np.searchsorted(self.last, low), np.searchsorted(self.first, high, "right")
        return slice(int(start), max(int(start), int(stop)))

    def pixel(self, cell: int) -> float:
        """Where a cell's centre lies, in pixels of the plane; on the plane in any case."""
        at = np.float32((cell + 0.5) * self.cell - 0.5)
        return float(min(max(at, np.float32(0)), np.float32(len(self.weights) - 1)))


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
    first, last = held.argmax(1), cells - 1 - held[:, ::-1].argmax(1)
    ends = np.minimum(np.arange(length) + TILE, length) - 1
    inside = max(1, int(np.ceil(resized / (size / cells) - 0.5)))
    return Side(weights, first, last, int((last[ends] - first).max()) + 1, inside, size / cells * (length / resized))


@lru_cache(maxsize=32)
def _weights(of: Side, device: str) -> torch.Tensor:
    """A side's weights on a device, for each first pixel and first cell of a tile: (n, cells − reach + 1, TILE, reach),
    a view of one matrix, with zeros for what a tile has beyond the plane."""
    import torch

    return (
        torch.from_numpy(np.pad(of.weights, ((0, TILE), (0, 0)))).to(device).unfold(0, TILE, 1).unfold(1, of.reach, 1)
    )


class Placement(NamedTuple):
    """How logits lie in a plane: its rows and its columns by the logits', and what logits inside are above."""

    rows: Side
    cols: Side
    threshold: float

    @property
    def plane(self) -> tuple[int, int]:
        """Its shape."""
        return len(self.rows.weights), len(self.cols.weights)


def look(low: torch.Tensor, numbers: Sequence[int], place: Placement) -> NDArray[np.int32]:
    """Where some of (n, h, w) logits are positive, and most so: the box of the cells above the threshold and the
    greatest cell on the plane, as (numbers, 6) of first and last row, first and last column, row and column. Without a
    cell above the threshold the last ones are −1.
    """
    import torch

    rows, cols, threshold = place
    # one after the other, so that a processor finds it in its cache the second time
    by_row, by_col = (torch.stack(v) for v in zip(*((low[i].amax(1), low[i].amax(0)) for i in numbers), strict=True))
    ends = [e for values in (by_row, by_col) for e in _ends(values > threshold)]
    which = torch.tensor(numbers, device=low.device)
    if cols.inside < low.shape[2]:  # the padding may hold a greater one
        by_row = torch.stack([low[i, :, : cols.inside].amax(1) for i in numbers])
    # the first row among those that hold the greatest one, then the first column, as by argmax of the whole
    row = by_row[:, : rows.inside].argmax(1)
    column = low[which, row, : cols.inside].argmax(1)
    return np.asarray(torch.stack([*ends, row, column], 1).int().cpu().numpy())


def _ends(held: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last of (n, cells) that hold; the last is −1 where none does."""
    count = held.shape[1]
    last = count - 1 - held.flip(1).int().argmax(1)
    return held.int().argmax(1), last.where(held.any(1), -1)


def enlarge(
    low: torch.Tensor,
    numbers: Sequence[int],
    boxes: NDArray[np.int32],
    place: Placement,
    max_area: int | None = None,
) -> list[Window]:
    """Masks of some of (n, h, w) logits, each in the window of the plane that cells above the threshold reach.

    Equal, but for rounding of the logits' values, to `Sam.postprocess_masks` on the whole plane.

    numbers : of the logits; boxes : (numbers, 4) first and last row, first and last column of their cells, by `look`
    max_area : masks of so many pixels or more are given as empty ones
    """
    rows, cols, _ = place
    windows = [_window(box, rows, cols) for box in boxes.tolist()]
    tiles = np.array(
        [
            (row, col, number)
            for number, (r, c) in zip(numbers, windows, strict=True)
            for row in range(r.start, r.stop, TILE)
            for col in range(c.start, c.stop, TILE)
        ],
        np.int64,
    ).reshape(-1, 3)
    areas, bits = _made(low, tiles, place)
    counts = [-(-(r.stop - r.start) // TILE) * -(-(c.stop - c.start) // TILE) for r, c in windows]
    stops = np.cumsum(counts, dtype=int)
    out = []
    for (r, c), stop, count in zip(windows, stops, counts, strict=True):
        own = slice(stop - count, stop)
        area = int(areas[own].sum())
        none = not area or (max_area is not None and area >= max_area)
        empty = Window(place.plane, 0, 0, np.zeros((0, 0), bool))
        out.append(empty if none else _joined(bits[own], r, c, place.plane))
    return out


def _window(box: Sequence[int], rows: Side, cols: Side) -> tuple[slice, slice]:
    """Rows and columns of the plane that a box of cells reaches."""
    top, bottom, left, right = box
    if bottom < 0:
        return slice(0, 0), slice(0, 0)
    r, c = rows.reached(top, bottom), cols.reached(left, right)
    return (r, c) if r.stop > r.start and c.stop > c.start else (slice(0, 0), slice(0, 0))


def _joined(bits: NDArray[np.uint8], r: slice, c: slice, plane: tuple[int, int]) -> Window:
    """The mask in a window out of its tiles' bits (n, TILE, TILE / 8)."""
    across = -(-(c.stop - c.start) // TILE)
    tiles = np.unpackbits(bits, axis=2, bitorder="little").view(bool).reshape(-1, across, TILE, TILE)
    whole = tiles[0, 0] if len(bits) == 1 else tiles.swapaxes(1, 2).reshape(-1, across * TILE)
    return Window(plane, r.start, c.start, whole[: r.stop - r.start, : c.stop - c.start])


def _made(low: torch.Tensor, tiles: NDArray[np.int64], place: Placement) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Areas (n,) and bits (n, TILE, TILE / 8; lowest first) of tiles (n, 3): first row and column, number of logits."""
    import torch

    parts: list[torch.Tensor] = []
    for some in (tiles[i : i + TILES] for i in range(0, len(tiles), TILES)):
        held = _tile_masks(low, some, place)
        bits = _packed(held.view(torch.uint8).view(torch.int64))
        area = held.sum((1, 2), dtype=torch.int32)[:, None].view(torch.uint8)
        parts.append(torch.cat([area, bits.flatten(1)], 1))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, TILE, TILE // 8), np.uint8)
    both = torch.cat(parts).cpu().numpy()  # in one transfer
    areas = np.ascontiguousarray(both[:, :4]).view(np.int32)[:, 0].astype(np.int64)
    return areas, both[:, 4:].reshape(-1, TILE, TILE // 8)


def _packed(bits: torch.Tensor) -> torch.Tensor:
    """Eight bytes of 0 or 1 in each int64, lowest first, as the bits of one byte."""
    import torch

    for step, held in ((7, 0x0003_0003_0003_0003), (14, 0x0000_000F_0000_000F), (28, 0xFF)):
        bits = (bits | bits >> step) & held
    return bits.to(torch.uint8)


def _tile_masks(low: torch.Tensor, tiles: NDArray[np.int64], place: Placement) -> torch.Tensor:
    """Masks (n, TILE, TILE) of tiles as in `_made`. What a tile has beyond its window is made of logits that are not
    above the threshold, or of nothing, so it is not inside."""
    import torch

    rows, cols, threshold = place
    # a tile at the end begins with an earlier cell, which has no weight
    above, before = (
        np.minimum(of.first[tiles[:, k]], of.weights.shape[1] - of.reach) for k, of in enumerate((rows, cols))
    )
    top, left, number, upper, first = torch.from_numpy(np.stack([*tiles.T, above, before])).to(low.device)
    down, along = (_weights(of, str(low.device)) for of in (rows, cols))
    logits = low.unfold(1, rows.reach, 1).unfold(2, cols.reach, 1)[number, upper, first] - threshold
    inside: torch.Tensor = down[top, upper] @ logits @ along[left, first].transpose(1, 2) > 0
    return inside
