"""Masks of one object: patches on planes, and the instance that patches of three axes merge into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.types import AXES, Axis, Bool, Point


class Patch(NamedTuple):
    """A mask on one plane, cut to its bounding box.

    plane : the plane's index; row, col : the box's first pixel; mask : (a, b) bool; score : the segmenter's
    """

    plane: int
    row: int
    col: int
    mask: Bool
    score: float

    @classmethod
    def crop(cls, mask: Bool, plane: int, score: float, row: int = 0, col: int = 0) -> Patch | None:
        """Cut the mask of a whole plane, or of its part that begins at (row, col); None when it is empty."""
        rows = np.flatnonzero(mask.any(1))
        if rows.size == 0:
            return None
        band = mask[rows[0] : rows[-1] + 1]
        cols = np.flatnonzero(band.any(0))
        cut = band[:, cols[0] : cols[-1] + 1].copy()
        return cls(plane, row + int(rows[0]), col + int(cols[0]), cut, score)

    @property
    def area(self) -> int:
        """Number of pixels in the mask."""
        return int(np.count_nonzero(self.mask))

    def centre(self) -> tuple[float, float]:
        """Centre of mass (row, column) on the plane."""
        rows, cols = np.nonzero(self.mask)
        return float(rows.mean()) + self.row, float(cols.mean()) + self.col


def iou(a: Patch, b: Patch) -> float:
    """Intersection over union of two patches, as if on one plane."""
    r0, c0 = max(a.row, b.row), max(a.col, b.col)
    r1 = min(a.row + a.mask.shape[0], b.row + b.mask.shape[0])
    c1 = min(a.col + a.mask.shape[1], b.col + b.mask.shape[1])
    if r1 <= r0 or c1 <= c0:
        return 0.0
    mask_a = a.mask[r0 - a.row : r1 - a.row, c0 - a.col : c1 - a.col]
    mask_b = b.mask[r0 - b.row : r1 - b.row, c0 - b.col : c1 - b.col]
    both = int(np.count_nonzero(mask_a & mask_b))
    return both / (a.area + b.area - both)


def squared_distance(mask: Bool, reach: int) -> NDArray[np.uint8]:
    """Squared distance of each pixel to the mask as far as `reach` ≤ 10 pixels; anything more than reach² beyond.

    The nearest mask pixel in each column first, then over the columns: a few passes over bytes, which on small windows
    and whole planes alike is quicker than a transform that goes all the way.
    """
    far = np.uint8((reach + 1) ** 2)
    alone = np.where(mask, np.uint8(0), far)
    squared = alone.copy()
    for step in range(1, reach + 1):
        beside = alone + np.uint8(step**2)
        np.minimum(squared[step:], beside[:-step], out=squared[step:])
        np.minimum(squared[:-step], beside[step:], out=squared[:-step])
    column = squared.copy()
    for step in range(1, reach + 1):
        beside = column + np.uint8(step**2)
        np.minimum(squared[:, step:], beside[:, :-step], out=squared[:, step:])
        np.minimum(squared[:, :-step], beside[:, step:], out=squared[:, :-step])
    return squared


def pack(masks: Sequence[Bool]) -> NDArray[np.uint8]:
    """Masks of any shapes as one row of bits, eight to a byte; each mask starts a new byte."""
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(m.ravel()) for m in masks)])


def unpack(bits: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]) -> list[Bool]:
    """The inverse of `pack`, given the masks' shapes. Raises ValueError when the bytes don't fit the shapes."""
    sizes = [int(np.prod(s)) for s in shapes]
    stops = np.cumsum([0, *(-(-n // 8) for n in sizes)])
    if stops[-1] != bits.size:
        raise ValueError(f"packed masks: expected {stops[-1]} bytes for {len(sizes)} masks, found {bits.size}")
    return [
        np.unpackbits(bits[start:stop], count=n).reshape(s).astype(bool)
        for n, s, start, stop in zip(sizes, shapes, stops[:-1], stops[1:], strict=True)
    ]


@dataclass(frozen=True)
class Instance:
    """One segmented object.

    prompt : which point it came from
    box : (z0, y0, x0, z1, y1, x1), the last ones excluded; mask : (z1−z0, y1−y0, x1−x0) bool
    score : 0 to 1, the segmenter's mean score times how well the axes' stacks agree
    planes : number of planes segmented per axis
    """

    prompt: int
    box: tuple[int, int, int, int, int, int]
    mask: Bool
    score: float
    planes: dict[Axis, int]

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.count_nonzero(self.mask))

    def centre(self) -> Point:
        """Centre of mass (z, y, x) in the volume's voxels: a pick, or the prompt of a second round."""
        z, y, x = (float(i.mean()) + start for i, start in zip(np.nonzero(self.mask), self.box[:3], strict=True))
        return z, y, x


def _extent(patches: dict[Axis, list[Patch]]) -> tuple[list[int], list[int]]:
    low, high = [2**31] * 3, [0] * 3
    for a, axis in enumerate(AXES):
        rows, cols = (i for i in range(3) if i != a)
        for p in patches[axis]:
            for i, start, stop in (
                (a, p.plane, p.plane + 1),
                (rows, p.row, p.row + p.mask.shape[0]),
                (cols, p.col, p.col + p.mask.shape[1]),
            ):
                low[i], high[i] = min(low[i], start), max(high[i], stop)
    return low, high


def stacks(patches: dict[Axis, list[Patch]]) -> tuple[list[int], Bool]:
    """Lay the patches of each axis into its own volume: the box's first voxel, and (3, dz, dy, dx) bool."""
    low, high = _extent(patches)
    volumes = np.zeros((3, *(b - a for a, b in zip(low, high, strict=True))), bool)
    for a, axis in enumerate(AXES):
        rows, cols = (i for i in range(3) if i != a)
        planes = np.moveaxis(volumes[a], a, 0)
        for p in patches[axis]:
            r, c = p.row - low[rows], p.col - low[cols]
            planes[p.plane - low[a], r : r + p.mask.shape[0], c : c + p.mask.shape[1]] |= p.mask
    return low, volumes


def _connected(mask: Bool, at: tuple[int, int, int]) -> Bool:
    """The component that holds the voxel `at`, else the largest; its holes filled."""
    labels, count = ndimage.label(mask)
    if count > 1:
        inside = all(0 <= i < n for i, n in zip(at, mask.shape, strict=True))
        label = int(labels[at]) if inside else 0
        if label == 0:
            label = int(np.bincount(labels.ravel())[1:].argmax()) + 1
        mask = labels == label
    filled: Bool = ndimage.binary_fill_holes(mask)
    return filled


def merge_patches(prompt: int, point: Point, patches: dict[Axis, list[Patch]], votes: int) -> Instance | None:
    """Merge the patches of the three axes: voxels that at least `votes` axes hold, connected, holes filled."""
    every = [p for axis in AXES for p in patches[axis]]
    if not every:
        return None
    low, volumes = stacks(patches)
    count = volumes.sum(0, dtype=np.uint8)
    mask = count >= votes
    if not mask.any():
        return None
    z, y, x = (round(v) - a for v, a in zip(point, low, strict=True))
    mask = _connected(mask, (z, y, x))
    held = [np.flatnonzero(mask.any(tuple(j for j in range(3) if j != i))) for i in range(3)]
    cut = tuple(slice(int(h[0]), int(h[-1]) + 1) for h in held)
    box = [a + s.start for a, s in zip(low, cut, strict=True)] + [a + s.stop for a, s in zip(low, cut, strict=True)]
    union = int((count > 0).sum())
    agreement = float(np.count_nonzero(count >= 2)) / union
    quality = float(np.mean([p.score for p in every]))
    score = quality * agreement
    planes = {axis: len(patches[axis]) for axis in AXES}
    return Instance(prompt, (box[0], box[1], box[2], box[3], box[4], box[5]), mask[cut], score, planes)
