"""The instances of a query, one at a time, and in batches of neighbours that tasks share out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.analysis import shape
from cryosam_dask.analysis.volumes import Cached, RunVolume, labels_of
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Point, Shape3

Masks = Literal["painted", "whole"]
Float64 = NDArray[np.float64]
T = TypeVar("T")
Reader = TypeVar("Reader", bound=Any)

TILE: Shape3 = (64, 256, 256)
"""Instances of which the boxes begin in one tile are neighbours."""

BATCH_INSTANCES, BATCH_VOXELS = 256, 16 << 20
"""What a task takes at most, unless one instance alone is larger."""

LONG = 96
"""Voxels of a side beyond which a mask is cut to pieces where distances are searched."""

KEPT_BYTES = 32 << 20
"""Boundaries that one task keeps."""


class Body(NamedTuple):
    """A mask with its place: box : that of its voxels, as tight as can be; mask : (z, y, x) bool in it."""

    box: Box
    mask: Bool


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the instances of a query are.

    label : (n,) ids, in the order of the picks; box : (n, 6) z0 … x1
    pieces : (m, 3) label, group, index in the group: where their masks are, of extended structures several
    """

    label: NDArray[np.int64]
    box: NDArray[np.int64]
    pieces: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


def rows(store: RunStore, name: str) -> Rows:
    """The instances of a query's picks."""
    table = picks.read(store, name)
    label, pieces = table["instance"].to_numpy(np.int64), picks.pieces(store, name, table)
    bounds = np.zeros((len(pieces), 6), np.int64)
    for number in np.unique(pieces[:, 1]):
        path = layout.instance_array(layout.instances(name), int(number), "box")
        boxes, chosen = store.read(path), pieces[:, 1] == number
        if len(boxes) <= pieces[chosen, 2].max():
            raise StoreError(f"{store.url}: {path} has {len(boxes)} rows, the picks of {name!r} ask for more")
        bounds[chosen] = boxes[pieces[chosen, 2]]
    box = np.zeros((len(table), 6), np.int64)
    for index, number in enumerate(label.tolist()):
        own = bounds[pieces[:, 0] == number]
        box[index] = [*own[:, :3].min(0), *own[:, 3:].max(0)]
    return Rows(label, box, pieces)


class Kept:
    """Arrays that were made last, `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._arrays: OrderedDict[int, Float64] = OrderedDict()

    def get(self, key: int, make: Callable[[], Float64]) -> Float64:
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = self._arrays[key] = make()
        self._bytes += array.nbytes
        while self._bytes > self._limit and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


class Bodies:
    """The masks of a query's instances, read when asked for. Pickles without what it holds. spacing : nm."""

    def __init__(self, store: RunStore, name: str, where: Rows, masks: Masks) -> None:
        if masks not in ("painted", "whole"):
            raise InputError(f"masks {masks!r}: expected 'painted' or 'whole'")
        self.url, self.name, self.rows, self.masks = store.url, name, where, masks
        z, y, x = (v / 10 for v in store.voxel_size)
        self.spacing: Point = (z, y, x)
        self._labels: RunVolume | None = labels_of(store, name) if masks == "painted" else None
        self._reset()

    def _reset(self) -> None:
        self._cached = None if self._labels is None else Cached(self._labels)
        self._whole: stored.Masks | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("url", "name", "rows", "masks", "spacing", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def body(self, index: int) -> Body | None:
        """An instance, or None where nothing of it is painted."""
        box = stored.as_box(self.rows.box[index])
        mask = self.held(index, box)
        if not mask.any():
            return None
        tight = geometry.bounds(mask)
        return Body(geometry.shifted(tight, box), mask[geometry.box_slices(tight)])

    def held(self, index: int, box: Box) -> Bool:
        """The voxels of a box inside the instance's own that the instance holds."""
        if self._cached is not None:
            return np.asarray(self._cached.read(box) == self.rows.label[index], bool)
        if self._whole is None:
            self._whole = stored.Masks(RunStore.open(self.url), layout.instances(self.name))
        pieces = self.rows.pieces
        mask, own = self._whole.union(pieces[pieces[:, 0] == self.rows.label[index], 1:])
        return mask[tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(box, own, strict=True))]


class InstancePieces:
    """The instances of a query as `distances.Pieces`; painted ones that are long are several pieces each.

    owner : (p,) which instance each piece is of
    """

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.boxes, self.owner = bodies.rows.box, np.arange(len(bodies.rows))
        if bodies.masks == "painted":  # whole masks can only be unpacked as a whole
            self.boxes, self.owner = _cut(self.boxes)
        self._kept = Kept(KEPT_BYTES)

    def of(self, index: int) -> NDArray[np.int64]:
        """The pieces of an instance."""
        return np.arange(*np.searchsorted(self.owner, [index, index + 1]))

    def held(self, index: int, box: Box) -> Bool:
        return self.bodies.held(int(self.owner[index]), box)

    def places(self, index: int) -> Float64:
        box = stored.as_box(self.boxes[index])
        return self._kept.get(index, lambda: boundary_of(Body(box, self.held(index, box)), self.bodies.spacing))


def _cut(boxes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes (n, 6) cut where they are longer than `LONG`, and of which each part is, in order."""
    if not len(boxes) or (boxes[:, 3:] - boxes[:, :3]).max() <= LONG:
        return boxes, np.arange(len(boxes))
    parts, owner = [], []
    for index, whole in enumerate(boxes):
        z, y, x = (int(n) for n in whole[3:] - whole[:3])
        for part in geometry.boxes((z, y, x), (LONG,) * 3):
            parts.append(np.array([[a for a, _ in part], [b for _, b in part]]) + whole[:3])
            owner.append(index)
    return np.array(parts).reshape(-1, 6), np.array(owner)


def boundary_of(body: Body, spacing: Point) -> Float64:
    """(m, 3) centres of a body's boundary voxels, from the volume's first voxel's, in the spacing's unit."""
    return np.asarray((shape.boundary(body.mask) + [a for a, _ in body.box]) * np.asarray(spacing), np.float64)


def batches(boxes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of boxes (n, 6) in batches of neighbours, none too large for one task."""
    tiles = boxes[:, :3] // TILE
    order = np.lexsort((boxes[:, 0], tiles[:, 2], tiles[:, 1], tiles[:, 0]))
    sizes = np.prod(boxes[order, 3:] - boxes[order, :3], axis=1)
    groups: list[NDArray[np.int64]] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and (total + size > BATCH_VOXELS or at - start >= BATCH_INSTANCES):
            groups.append(order[start:at])
            start, total = at, 0
        total += int(size)
    return [*groups, order[start:]] if len(order) else []


def unread(shared: Reader) -> Reader:
    """A copy with nothing read yet: tasks of one process must not share what they keep."""
    copy: Reader = object.__new__(type(shared))
    copy.__setstate__(shared.__getstate__())
    return copy


class _Shared:
    """What all tasks get: one node of the graph, which Dask does not look into and sends to a worker once."""

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items


def compute(function: Callable[..., T], jobs: Iterable[Sequence[Any]], *shared: Any) -> list[T]:
    """`function(*shared, *job)` of each job, on whichever Dask scheduler is the current one."""
    from dask.base import compute as dask_compute
    from dask.delayed import delayed

    common = delayed(_Shared(shared), pure=False, traverse=False)
    task = delayed(partial(_call, function), pure=False, traverse=False)
    return list(dask_compute(*[task(common, *job) for job in jobs]))


def _call(function: Callable[..., T], shared: _Shared, *job: Any) -> T:
    return function(*shared.items, *job)
