"""The instances of a query as the viewer shows them: labels, boxes and masks."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box
from cryosam_dask.stages import segment
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Bool
from cryosam_dask.viewer.status import NotThereError

Ints = NDArray[np.int64]
_PLACES = ("prompt", "box")


class Segments:
    """Instances and their masks, which are read when asked for; used by several threads.

    places : label → (k, 2) group and index of each of its masks; boxes : label → (6,) bounds, where they are known
    """

    def __init__(
        self, store: RunStore, name: str, places: Mapping[int, Ints], boxes: Mapping[int, Ints] | None = None
    ) -> None:
        self._places = places
        self._labels = np.array(list(boxes or ()), np.int64)
        self._boxes = np.array(list((boxes or {}).values()), np.int64).reshape(-1, 6)
        self._masks = stored.Masks(store, layout.instances(name))
        self._lock = threading.Lock()

    def mask(self, label: int) -> tuple[Bool, Box]:
        """The mask of an instance in its box; of an extended structure, of all its pieces."""
        if label not in self._places:
            raise NotThereError(f"no instance {label}")
        with self._lock:
            return self._masks.union(self._places[label])

    def paint(self, box: Box, step: int) -> Array:
        """Labels of every step-th voxel of a box (z, y, x); 0: no instance.

        box : in these voxels, so that its first is voxel start · step of the tomogram
        """
        out = np.zeros([b - a for a, b in box], np.uint32)
        low, high = (np.array([side[i] for side in box]) * step for i in (0, 1))
        inside = (self._boxes[:, :3] < high).all(axis=1) & (self._boxes[:, 3:] > low).all(axis=1)
        for label in self._labels[inside].tolist():
            mask, bounds = self.mask(label)
            # the first voxel of the mask that is on the grid, and where that is
            first = [-(-a // step) for a, _ in bounds]
            coarse = mask[tuple(slice(f * step - a, None, step) for f, (a, _) in zip(first, bounds, strict=True))]
            starts = [max(a, f) for (a, _), f in zip(box, first, strict=True)]
            stops = [min(b, f + n) for (_, b), f, n in zip(box, first, coarse.shape, strict=True)]
            if all(a < b for a, b in zip(starts, stops, strict=True)):
                spans = list(zip(starts, stops, strict=True))
                part = out[tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(spans, box, strict=True))]
                part[coarse[tuple(slice(a - f, b - f) for (a, b), f in zip(spans, first, strict=True))]] = label
        return out


def picked(store: RunStore, name: str) -> Segments:
    """The picks of a query, by their labels."""
    pieces = picks.pieces(store, name)
    order = np.argsort(pieces[:, 0], kind="stable")
    labels, starts = np.unique(pieces[order, 0], return_index=True)
    parts = np.split(pieces[order, 1:], starts[1:])
    return Segments(store, name, dict(zip(labels.tolist(), parts, strict=True)) if len(labels) else {})


Known = dict[int, tuple[list[int], Ints]]
"""Group of instances → the prompts of its instances, and their boxes."""


def so_far(store: RunStore, name: str, known: Known) -> Segments:
    """The proposals of a query that are segmented so far, labelled by their numbers from 1.

    known : groups that were read before, of the same proposals; those that are new are added
    """
    places: dict[int, Ints] = {}
    boxes: dict[int, Ints] = {}
    for group in np.flatnonzero(marks.done(store, segment.PROPOSALS.stage_name(name))).tolist():
        if group not in known:
            prompts, bounds = (store.read(layout.instance_array(layout.instances(name), group, a)) for a in _PLACES)
            known[group] = prompts.tolist(), bounds
        for index, (prompt, box) in enumerate(zip(*known[group], strict=True)):
            places[prompt + 1] = np.array([[group, index]])
            boxes[prompt + 1] = box
    return Segments(store, name, places, boxes)
