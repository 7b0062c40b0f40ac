"""Reduces overlapping instances to distinct ones, joins pieces that touch, and finds centres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.types import Array, Bool, Float32

_CELL = 64
"""Voxels of a side of the cells that kept instances are found by."""


Met = Callable[[int, int], None]


def distinct(
    boxes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    scores: Float32,
    mask: Callable[[int], Bool],
    overlap: float | NDArray[np.float64],
    kinds: NDArray[np.int64] | None = None,
    met: Met | None = None,
) -> NDArray[np.intp]:
    """Indices of the instances to keep, best first: greedy, dropping each one largely inside a better one.

    Parameters
    ----------
    boxes : (n, 6) z0 y0 x0 z1 y1 x1, the last ones excluded; sizes : (n,) voxels; scores : (n,)
    mask : gives the mask of an instance in its box
    overlap : an instance is dropped if more than this share of its voxels lies in a better one; one for all, or (n,)
    kinds : (n,) what each is an instance of, with `met`
    met : called with a kept instance and a worse one of another kind at the same place: more than that share of the
        smaller one lies in the other

    Ties of the score go to the larger instance, then to the lower (z, y, x).
    """
    order = np.lexsort((boxes[:, 2], boxes[:, 1], boxes[:, 0], -sizes, -scores))
    share = np.broadcast_to(overlap, sizes.shape)
    kept: list[int] = []
    near: dict[tuple[int, ...], list[int]] = defaultdict(list)  # kept instances by the cells that their boxes touch

    def is_double(i: int, others: NDArray[np.intp]) -> bool:
        own, double = mask(i), False
        for j in others.tolist():
            common = _common(boxes[i], own, boxes[j], mask(j))
            double |= bool(common > share[i] * sizes[i])
            if met is None or kinds is None:
                if double:
                    return True
            elif kinds[i] != kinds[j] and common > share[i] * min(sizes[i], sizes[j]):
                met(j, i)
        return double

    for i in order.tolist():
        cells = list(_cells(boxes[i]))
        others = np.unique(np.asarray([j for cell in cells for j in near.get(cell, ())], np.intp))
        touching = np.all(
            np.minimum(boxes[others, 3:], boxes[i, 3:]) > np.maximum(boxes[others, :3], boxes[i, :3]), axis=1
        )
        if touching.any() and is_double(i, others[touching]):
            continue
        kept.append(i)
        for cell in cells:
            near[cell].append(i)
    return np.asarray(kept, np.intp)


def joined(boxes: NDArray[np.int64], mask: Callable[[int], Bool]) -> NDArray[np.int64]:
    """Which of (n,) pieces are of one body: numbers from 0, by the first piece of each body.

    Pieces are of one body that overlap or share a voxel's face, or of which others in between do (union-find). Masks
    are compared two at a time, and only where that can change anything.

    boxes : (n, 6) z0 y0 x0 z1 y1 x1, the last ones excluded; mask : gives the mask of a piece in its box
    """
    parents = list(range(len(boxes)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    grown = boxes + np.array([-1, -1, -1, 1, 1, 1])
    near: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in range(len(boxes)):
        cells = list(_cells(grown[i]))
        others = np.unique(np.asarray([j for cell in cells for j in near.get(cell, ())], np.intp))
        meeting = np.all(
            np.minimum(boxes[others, 3:], grown[i, 3:]) > np.maximum(boxes[others, :3], grown[i, :3]), axis=1
        )
        wide: Bool | None = None
        for j in others[meeting].tolist():
            if root(i) == root(j):
                continue
            if wide is None:
                wide = ndimage.binary_dilation(np.pad(mask(i), 1))
            if _common(grown[i], wide, boxes[j], mask(j)):
                parents[max(root(i), root(j))] = min(root(i), root(j))
        for cell in cells:
            near[cell].append(i)
    _, bodies = np.unique([root(i) for i in range(len(boxes))], return_inverse=True)
    return np.asarray(bodies, np.int64)


def union(boxes: NDArray[np.int64], mask: Callable[[int], Bool]) -> tuple[int, NDArray[np.float64]]:
    """Number of voxels and centre of mass (z, y, x) of the union of (n > 0) masks, which may overlap.

    Counted cube by cube, so that the union is never in memory.
    """
    touching: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, box in enumerate(boxes):
        for cell in _cells(box):
            touching[cell].append(i)
    size, moment = 0, np.zeros(3)
    for cell, pieces in touching.items():
        low = np.array(cell) * _CELL
        cube = np.zeros((_CELL,) * 3, bool)
        for i in pieces:
            _paint(cube, low, boxes[i], mask(i))
        count = int(np.count_nonzero(cube))
        if count:
            size += count
            moment += count * center_of_mass(low, cube)
    return size, moment / size


def _paint(cube: Bool, low: NDArray[np.int64], box: NDArray[np.int64], mask: Bool) -> None:
    """Set the voxels of a mask that lie in a cube, which begins at `low`."""
    first, last = np.maximum(box[:3], low), np.minimum(box[3:], low + cube.shape)
    there = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
    cube[there] |= mask[tuple(slice(a, b) for a, b in zip(first - box[:3], last - box[:3], strict=True))]


def _cells(box: Array) -> Iterator[tuple[int, ...]]:
    """The cells of a coarse grid that a box touches."""
    return product(*(range(int(a) // _CELL, -(-int(b) // _CELL)) for a, b in zip(box[:3], box[3:], strict=True)))


def _common(box: Array, mask: Bool, other_box: Array, other: Bool) -> int:
    """Voxels common to two masks, each given in its box."""
    low, high = np.maximum(box[:3], other_box[:3]), np.minimum(box[3:], other_box[3:])
    a = tuple(slice(p, q) for p, q in zip(low - box[:3], high - box[:3], strict=True))
    b = tuple(slice(p, q) for p, q in zip(low - other_box[:3], high - other_box[:3], strict=True))
    return int((mask[a] & other[b]).sum())


def center_of_mass(box: Array, mask: Bool) -> NDArray[np.float64]:
    """Centre of mass in voxels (z, y, x) of a mask in its box."""
    # sums of whole numbers are exact, so this is the mean of all positions without a list of them
    sums = [(mask.sum(tuple(j for j in range(3) if j != i)) * np.arange(n)).sum() for i, n in enumerate(mask.shape)]
    out: NDArray[np.float64] = np.asarray(sums) / np.count_nonzero(mask) + box[:3]
    return out
