"""Distances between bodies and to masks of any size, exact, without a volume in memory.

A mask is cut into pieces of which the boxes are known. A search visits them by the least distance that their boxes
allow, and ends where that is more than what was found. Distances are between centres of voxels, as
`scipy.ndimage.distance_transform_edt` has them: 0 where two share a voxel, a voxel's side where they touch.

Two bodies that share no voxel are nearest between voxels of their boundaries: from a voxel of which all six neighbours
belong to the body, one step towards the other is nearer. So boundaries are all that is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from cryosam_dask import geometry
from cryosam_dask.analysis.instances import KEPT_BYTES, LONG, Body, Kept, boundary_of, compute
from cryosam_dask.analysis.volumes import BLOCK, Cached, Held, Volume, inside
from cryosam_dask.geometry import Box
from cryosam_dask.store.instances import as_box
from cryosam_dask.types import Bool, Point, Shape3

Float64 = NDArray[np.float64]
_PIECE: Shape3 = (32, 32, 32)
_FIRST = 8  # pieces that are put in order at first
_PAIRS = 1 << 18  # pairs of points that are compared one by one, rather than by a tree
_SLACK = 1 + 1e-12  # roundings


class Pieces(Protocol):
    """Parts of a mask.

    boxes : (n, 6) that hold them
    """

    @property
    def boxes(self) -> NDArray[np.int64]: ...

    def places(self, index: int) -> Float64:
        """(m, 3) centres of a piece's boundary voxels, from the first voxel's centre, in the spacing's unit."""
        ...

    def held(self, index: int, box: Box) -> Bool:
        """The voxels of a box inside the piece's own that it holds."""
        ...


class MaskPieces:
    """What a mask holds in each small box of its volume."""

    def __init__(self, volume: Volume, spacing: Point) -> None:
        self.volume, self.spacing = volume, spacing
        tight = compute(_occupied, [(boxes,) for boxes in _rows_of_blocks(volume)], volume)
        self._boxes = np.concatenate([np.zeros((0, 6), np.int64), *tight])
        self._reset()

    def _reset(self) -> None:
        self._cached, self._kept = Cached(Held(self.volume)), Kept(KEPT_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("volume", "spacing", "_boxes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def boxes(self) -> NDArray[np.int64]:
        return self._boxes

    def places(self, index: int) -> Float64:
        box = as_box(self._boxes[index])
        return self._kept.get(index, lambda: boundary_of(Body(box, self.held(index, box)), self.spacing))

    def held(self, index: int, box: Box) -> Bool:
        return self._cached.read(box)


def _rows_of_blocks(volume: Volume) -> Iterator[list[Box]]:
    """The blocks of a volume, those along one x together: one task's work."""
    boxes = list(geometry.boxes(volume.shape, BLOCK))
    count = geometry.cell_count(volume.shape[2], BLOCK[2])
    return (boxes[i : i + count] for i in range(0, len(boxes), count))


def _occupied(volume: Volume, boxes: list[Box]) -> NDArray[np.int64]:
    """(n, 6) tight boxes of what a mask holds in each piece of these."""
    occupied = []
    for block in boxes:
        whole = inside(volume.read(block))
        if not whole.any():
            continue
        for part in geometry.boxes((whole.shape[0], whole.shape[1], whole.shape[2]), _PIECE):
            held = whole[geometry.box_slices(part)]
            if held.any():
                tight = geometry.shifted(geometry.shifted(geometry.bounds(held), part), block)
                occupied.append([a for a, _ in tight] + [b for _, b in tight])
    return np.array(occupied, np.int64).reshape(-1, 6)


def surface_distance(body: Body, pieces: Pieces, spacing: Point, skip: NDArray[np.int64] | None = None) -> float:
    """From a body to the nearest voxel of any piece but those of `skip`; infinite where there is none.

    spacing : the voxel's sides, of the same unit as the result
    """
    best = math.inf
    for part in _parts(body):
        best = _from_part(part, pieces, spacing, skip, best)
        if best == 0:
            break
    return best


def _parts(body: Body) -> Iterator[Body]:
    """A body, in parts if it is long: a part has few pieces that are near to it."""
    if max(body.mask.shape) <= LONG:
        yield body
        return
    whole = body.mask.shape
    for box in geometry.boxes((whole[0], whole[1], whole[2]), (LONG,) * 3):
        mask = body.mask[geometry.box_slices(box)]
        if mask.any():
            tight = geometry.bounds(mask)
            at = geometry.shifted(geometry.shifted(tight, box), body.box)
            yield Body(at, mask[geometry.box_slices(tight)])


def _from_part(part: Body, pieces: Pieces, spacing: Point, skip: NDArray[np.int64] | None, best: float) -> float:
    """The smaller of `best` and the distance of a part to the pieces."""
    low = np.array([a for a, _ in part.box])
    high = np.array([b for _, b in part.box]) - 1
    bound = _gap(low, high, pieces.boxes, spacing)
    if skip is not None:
        bound[skip] = np.inf
    own = np.stack([low, high]) * spacing
    places: Float64 | None = None
    for index in _by_bound(bound):
        if bound[index] >= best:
            break
        if bound[index] == 0 and _overlap(part, pieces, index):
            return 0.0
        places = boundary_of(part, spacing) if places is None else places
        box = (pieces.boxes[index].reshape(2, 3) - [[0], [1]]) * spacing
        best = _nearest(places, pieces.places(index), own, box, best)
    return best


def point_distance(point: Float64, pieces: Pieces, spacing: Point) -> float:
    """From a place (z, y, x) in voxels to the nearest voxel of any piece; 0 inside of one, infinite without any."""
    bound = _gap(point, point, pieces.boxes, spacing)
    voxel = np.rint(point).astype(np.int64)
    z, y, x = ((int(v), int(v) + 1) for v in voxel)
    around = (pieces.boxes[:, :3] <= voxel).all(1) & (voxel < pieces.boxes[:, 3:]).all(1)
    for index in map(int, np.flatnonzero(around)):
        if pieces.held(index, (z, y, x)).any():
            return 0.0
    best, place = np.inf, point * spacing
    for index in _by_bound(bound):
        if bound[index] >= best:
            break
        off = pieces.places(index) - place
        best = min(best, math.sqrt(np.einsum("ij,ij->i", off, off).min(initial=np.inf)))
    return best


def _gap(low: Any, high: Any, boxes: NDArray[np.int64], spacing: Point) -> Float64:
    """Least distance between voxels of a box, first and last voxel, and of each of `boxes`."""
    off = np.maximum(boxes[:, :3] - high, low - (boxes[:, 3:] - 1))
    return np.asarray(np.linalg.norm(np.maximum(off, 0) * np.asarray(spacing), axis=1), np.float64)


def _by_bound(bound: Float64) -> Iterator[int]:
    """Indices by rising bound; most searches end after a few, so that all are put in order only when asked for."""
    if len(bound) <= _FIRST:
        yield from map(int, np.argsort(bound))
        return
    first = np.argpartition(bound, _FIRST)[:_FIRST]
    yield from map(int, first[np.argsort(bound[first])])
    rest = np.setdiff1d(np.arange(len(bound)), first, assume_unique=True)
    yield from map(int, rest[np.argsort(bound[rest])])


def _overlap(body: Body, pieces: Pieces, index: int) -> bool:
    common = geometry.intersect(body.box, as_box(pieces.boxes[index]))
    if common is None:
        return False
    own = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(common, body.box, strict=True))
    return bool((body.mask[own] & pieces.held(index, common)).any())


def _nearest(these: Float64, those: Float64, these_box: Float64, those_box: Float64, best: float) -> float:
    """The smaller of `best` and the least distance between two sets of places; boxes (2, 3) hold them."""
    if not len(these) or not len(those):
        return best
    if not math.isfinite(best):
        best = _near_pair(these, those)
    these = these[_reach(these, those_box) <= best * _SLACK]
    those = those[_reach(those, these_box) <= best * _SLACK]
    if len(these) * len(those) > _PAIRS:
        best = min(best, _near_pair(these, those))
        these = these[_reach(these, _around(those)) <= best * _SLACK]
        those = those[_reach(those, _around(these)) <= best * _SLACK] if len(these) else those[:0]
    if not len(these) or not len(those):
        return best
    if len(these) * len(those) <= _PAIRS:
        return min(best, math.sqrt(cdist(these, those, "sqeuclidean").min()))
    small, large = (these, those) if len(these) < len(those) else (those, these)
    return min(best, float(cKDTree(large).query(small, distance_upper_bound=best * _SLACK)[0].min()))


def _near_pair(these: Float64, those: Float64) -> float:
    """The distance of two points, of one set each, that are near: it leaves few points to compare."""
    place, distance = these.mean(0), math.inf
    for among in (those, these, those):
        off = among - place
        squared = np.einsum("ij,ij->i", off, off)
        at = int(squared.argmin())
        distance, place = math.sqrt(squared[at]), among[at]
    return distance


def _around(places: Float64) -> Float64:
    return np.stack([places.min(0), places.max(0)])


def _reach(places: Float64, box: Float64) -> Float64:
    """Distance of each place to a box (2, 3): its lowest and its highest corner."""
    off = np.maximum(np.maximum(box[0] - places, places - box[1]), 0)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", off, off)), np.float64)
