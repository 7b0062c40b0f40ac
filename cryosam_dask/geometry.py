"""Frames of reference: voxels, cells, tokens, planes, ångström. No other module converts between them.

Voxel indices are (z, y, x), zero-based; an integer is the voxel's centre. Cell k of ratio r covers voxels
[k·r, (k+1)·r), the last one possibly fewer. A slice of axis z has rows y and columns x; of y: z, x; of x: z, y.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import AXES, Array, Axis, Bool, Float32, Point, Shape3

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(start, stop) along z, y, x."""

SAME_SIZE = 1e-3
"""Share that voxel sizes of one grid may differ by: files round them, each to its own number of decimals."""

MOST_SHIFT = 0.5
"""Voxels that such a difference may move the far end of a volume by."""


def axis_index(axis: Axis) -> int:
    return AXES.index(axis)


def plane_axes(axis: Axis) -> tuple[int, int]:
    """Indices in (z, y, x) of the rows and the columns of a slice of `axis`."""
    rows, columns = (i for i in range(3) if i != axis_index(axis))
    return rows, columns


def plane_shape(shape: Shape3, axis: Axis) -> tuple[int, int]:
    rows, columns = plane_axes(axis)
    return shape[rows], shape[columns]


def to_view(volume: Array, axis: Axis) -> Array:
    """A (z, y, x) volume as slices of `axis`: (slices, rows, columns), a view of the same memory."""
    return np.moveaxis(volume, axis_index(axis), 0)


def from_view(slices: Array, axis: Axis) -> Array:
    """The inverse of `to_view`."""
    return np.moveaxis(slices, 0, axis_index(axis))


def box_of(volume_box: Box, axis: Axis) -> Box:
    """A (z, y, x) box as (slices, rows, columns) of `axis`."""
    rows, columns = plane_axes(axis)
    return volume_box[axis_index(axis)], volume_box[rows], volume_box[columns]


def to_plane(point: Sequence[float], axis: Axis) -> tuple[float, float, float]:
    """A (z, y, x) point as (slice, row, column) of `axis`."""
    rows, columns = plane_axes(axis)
    return point[axis_index(axis)], point[rows], point[columns]


def from_plane(index: float, row: float, column: float, axis: Axis) -> Point:
    """The inverse of `to_plane`."""
    rows, columns = plane_axes(axis)
    point = [0.0, 0.0, 0.0]
    point[axis_index(axis)], point[rows], point[columns] = index, row, column
    return point[0], point[1], point[2]


def cell_count(length: int, ratio: int) -> int:
    return -(-length // ratio)


def cell_grid(shape: Shape3, ratio: int) -> Shape3:
    z, y, x = (cell_count(n, ratio) for n in shape)
    return z, y, x


def cell_shares(mask: Bool, box: Box, ratio: int) -> tuple[Box, NDArray[np.float64]]:
    """The cells of a ratio that a mask in its box touches, and the share of each that it fills."""
    z, y, x = ((a // ratio, -(-b // ratio)) for a, b in box)
    around = [(a - low * ratio, high * ratio - b) for (a, b), (low, high) in zip(box, (z, y, x), strict=True)]
    n = [high - low for low, high in (z, y, x)]
    cells = np.pad(mask, around).reshape(n[0], ratio, n[1], ratio, n[2], ratio)
    return (z, y, x), cells.mean((1, 3, 5))


def cell_centers(length: int, ratio: int) -> NDArray[np.float64]:
    """Voxel positions of the cells' centres along one axis; a short last cell has the centre of what it covers."""
    start = np.arange(cell_count(length, ratio)) * ratio
    return np.asarray((start + np.minimum(start + ratio, length) - 1) / 2, np.float64)


def slabs(length: int, thickness: int) -> list[tuple[int, int]]:
    """Cut [0, length) into runs of `thickness`, the last one possibly shorter."""
    return [(start, min(start + thickness, length)) for start in range(0, length, thickness)]


def boxes(shape: Shape3, size: Shape3) -> Iterator[Box]:
    """Tile a volume with boxes of `size`, in (z, y, x) order; those at the ends may be smaller."""
    z, y, x = (slabs(n, s) for n, s in zip(shape, size, strict=True))
    return ((a, b, c) for a in z for b in y for c in x)


def even_boxes(shape: Shape3, most: Shape3, multiple: int) -> Iterator[Box]:
    """Tile a volume with as many boxes as those of size `most` would be, but of about equal sizes: no side is longer
    than `most`, and each begins at a multiple of `multiple`, by which `most` can be divided."""
    parts = (-(-n // size) for n, size in zip(shape, most, strict=True))
    z, y, x = (-(-n // (count * multiple)) * multiple for n, count in zip(shape, parts, strict=True))
    return boxes(shape, (z, y, x))


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    z, y, x = (slice(a, b) for a, b in box)
    return z, y, x


def bounds(mask: Bool) -> Box:
    """The smallest box that holds all of a mask (z, y, x) that is not empty."""
    sides = []
    for axis in range(3):
        held = np.flatnonzero(mask.any(tuple(i for i in range(3) if i != axis)))
        sides.append((int(held[0]), int(held[-1]) + 1))
    return sides[0], sides[1], sides[2]


def shifted(box: Box, by: Box) -> Box:
    """Move a box whose positions are relative to the start of `by` into the frame of `by`."""
    z, y, x = ((a + start, b + start) for (a, b), (start, _) in zip(box, by, strict=True))
    return z, y, x


def intersect(a: Box, b: Box) -> Box | None:
    """The common part of two boxes, or None."""
    z, y, x = ((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return (z, y, x) if all(p < q for p, q in (z, y, x)) else None


def tokens_under(sides: Sequence[int], grid: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens, at most, that a box of so many voxels interpolates in slices of `lengths` voxels and `grid` tokens."""
    rows, columns = (
        min(tokens, math.ceil(side * tokens / length) + 2)
        for side, tokens, length in zip(sides, grid, lengths, strict=True)
    )
    return rows * columns


def image_size(length: int, patch: int, slice_size: int | None) -> int:
    """Pixels of an encoder's input along one side: the side itself, or `slice_size`, up to a multiple of `patch`."""
    return cell_count(slice_size or length, patch) * patch


def token_count(length: int, patch: int, slice_size: int | None) -> int:
    return image_size(length, patch, slice_size) // patch


@dataclass(frozen=True)
class Interpolation:
    """Bilinear interpolation from tokens to positions along one axis, half-pixel centres, edges clamped.

    Attributes
    ----------
    start, stop : the tokens that the positions touch
    lower : (n,) index of the lower token, from `start`
    fraction : (n,) weight of the token above it; 0 where there is none
    """

    start: int
    stop: int
    lower: NDArray[np.intp]
    fraction: NDArray[np.float64]

    def part(self, first: int, last: int) -> Interpolation:
        """The interpolation of the positions [first, last), with tokens still counted from the first of all."""
        lower, fraction = self.lower[first:last] + self.start, self.fraction[first:last]
        return _touching(lower, fraction)

    @property
    def weights(self) -> Float32:
        """(n, stop − start) matrix that interpolates."""
        out = np.zeros((len(self.lower), self.stop - self.start), np.float32)
        rows = np.arange(len(self.lower))
        out[rows, self.lower] = 1 - self.fraction
        above = self.fraction > 0
        out[rows[above], self.lower[above] + 1] = self.fraction[above]
        return out

    @property
    def pairs(self) -> Float32:
        """(n, stop − start) matrix of w_lower · w_upper at the lower token: the mixed term of a square."""
        out = np.zeros((len(self.lower), self.stop - self.start), np.float32)
        out[np.arange(len(self.lower)), self.lower] = self.fraction * (1 - self.fraction)
        return out


def interpolation(positions: NDArray[np.float64], length: int, tokens: int) -> Interpolation:
    """Interpolate `tokens` tokens that stand for `length` voxels at voxel `positions` (as `align_corners=False`)."""
    source = np.clip((positions + 0.5) * (tokens / length) - 0.5, 0, tokens - 1)
    lower = np.floor(source).astype(np.intp)
    return _touching(lower, source - lower)


def _touching(lower: NDArray[np.intp], fraction: NDArray[np.float64]) -> Interpolation:
    """The interpolation between tokens `lower`, of all, and those above them."""
    start, highest = int(lower.min()), int(lower.max())
    stop = highest + 2 if np.any(fraction[lower == highest] > 0) else highest + 1
    return Interpolation(start, stop, lower - start, fraction)


def same_voxels(
    sizes: float | Sequence[float], others: float | Sequence[float], shape: Sequence[int] | None = None
) -> bool:
    """Whether voxel sizes, one or (z, y, x), are equal up to the rounding of files: within `SAME_SIZE`, and where the
    `shape` (z, y, x) is known, so that no voxel is moved by more than `MOST_SHIFT` voxels."""
    a, b = (np.broadcast_to(np.asarray(each, dtype=float), 3) for each in (sizes, others))
    difference, larger = np.abs(a - b), np.maximum(np.abs(a), np.abs(b))
    near = bool((difference <= SAME_SIZE * larger).all())
    return near and (shape is None or bool((difference * np.asarray(shape) <= MOST_SHIFT * larger).all()))


def one_side(sizes: Sequence[float], shape: Sequence[int] | None = None) -> float | None:
    """The voxel size of cubes, the mean of (z, y, x) that are the same by `same_voxels`; None where they are not."""
    low, high, mean = min(sizes), max(sizes), sum(sizes) / len(sizes)
    if low == high:
        return float(low)
    return float(mean) if same_voxels(low, high) and same_voxels(sizes, mean, shape) else None


def to_angstrom(
    points: NDArray[np.float64], voxel_size: Sequence[float], origin: Sequence[float]
) -> NDArray[np.float64]:
    """Voxel positions (…, 3) to ångström, z y x."""
    return np.asarray(points * np.asarray(voxel_size) + np.asarray(origin), np.float64)


def axis_coordinates(length: int, voxel_size: float, origin: float, ratio: int = 1) -> NDArray[np.float64]:
    """Ångström positions along one axis of voxels (ratio 1) or of cells."""
    return np.asarray(cell_centers(length, ratio) * voxel_size + origin, np.float64)


def token_coordinates(length: int, tokens: int, voxel_size: float, origin: float) -> NDArray[np.float64]:
    """Ångström positions of the tokens' centres along one axis."""
    voxels = (np.arange(tokens) + 0.5) * (length / tokens) - 0.5
    return np.asarray(voxels * voxel_size + origin, np.float64)


@dataclass(frozen=True)
class Tile:
    """A run of tokens along one axis of a tiled slice: [first, last) is read, [start, stop) of it is kept."""

    first: int
    last: int
    start: int
    stop: int

    def read(self, patch: int) -> slice:
        """Pixels to read."""
        return slice(self.first * patch, self.last * patch)

    @property
    def crop(self) -> slice:
        """What to keep of the tile's own tokens."""
        return slice(self.start - self.first, self.stop - self.first)

    @property
    def keep(self) -> slice:
        """The place of the kept tokens among all tokens."""
        return slice(self.start, self.stop)


def tiles(tokens: int, size: int, halo: int, side: int = 1) -> list[Tile]:
    """Cover `tokens` tokens with tiles of at most `size`, overlapping so that `halo` tokens around each are cropped.

    All tokens are one tile if they fit. Else what tiles keep is cut at multiples of `side`: only there, into about
    equal lengths, where a tile can keep so many tokens; where it can't, also between, and as seldom as possible.
    """
    if tokens <= size:
        return [Tile(0, tokens, 0, tokens)]
    outer, inner = (n // side * side for n in (size - halo, size - 2 * halo))
    if tokens <= 2 * outer or inner:
        count = 2 if tokens <= 2 * outer else cell_count(tokens, inner)
        stops = [*range(0, tokens, cell_count(cell_count(tokens, count), side) * side)][1:]
    else:
        stops = [size - halo if side > size - halo else side]
        while tokens - stops[-1] > size - halo or stops[-1] // side < (tokens - 1) // side:
            stops.append(min(stops[-1] + size - 2 * halo, (stops[-1] // side + 1) * side))
    edges = itertools.pairwise([0, *stops, tokens])
    return [Tile(max(a - halo, 0), min(b + halo, tokens), a, b) for a, b in edges]


def equivalent_radius(voxels: float) -> float:
    """Radius of the ball of that many voxels."""
    return float((3 * voxels / (4 * np.pi)) ** (1 / 3))
