"""Ingest of an array instead of a file: the same boxes, bytes and statistics, with voxels that Dask computes.

No path leads a worker to an array. A lazy one is cut into the ingest's boxes, and each box with the unit that writes it
is one graph for Dask: chunks that several boxes share, and the neighbourhoods of `map_overlap`, are computed once, and
never are more of them held than the workers need. What lies in this process's memory goes along with its unit.

What identifies an array is what was written of it: a digest of each box, taken in the same pass. So a run that goes on
is compared with the array that is given again: all boxes that are done by their digests where the array is here, which
takes a second or so for each GB; some chunks of them where it is lazy, since each has to be computed for that.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cryosam_dask.errors import CryosamError, InputError, StoreError
from cryosam_dask.geometry import Box, box_slices
from cryosam_dask.io.arrays import ArraySource, checked, cut
from cryosam_dask.stages import ingest
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Json, Shape3

Compute = Callable[[Sequence[Any]], Sequence[Any]]
"""Values of Dask's `Delayed`, computed where units run."""

COMPARED = 16
"""Chunks of a lazy array that are compared with what a run was made from."""

_CLOSE = 1e-5
"""How far, of the voxels' deviation, a lazy voxel may be from what was written: rounding differs between processors."""


class Blocks:
    """The boxes of an array, as `stages.base.Inputs`."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source

    @property
    def collection(self) -> Any:
        return self._source.array

    @functools.cached_property
    def _cut(self) -> tuple[dict[Any, Any], list[Any]]:
        return cut(self._source.array, layout.INGEST_BOX)

    @property
    def graph(self) -> dict[Any, Any] | None:
        return self._cut[0] if self._source.lazy else None

    def of(self, unit: Unit) -> Any:
        return self._cut[1][unit.params["index"]] if self._source.lazy else self._source.read(box_slices(_box(unit)))


def plan(source: ArraySource) -> Stage:
    """The stage for an array: a unit is one box."""
    units = []
    for index, box in enumerate(layout.image_boxes(source.shape)):
        start, stop = zip(*box, strict=True)
        voxels = math.prod(b - a for a, b in box)
        units.append(
            Unit(
                name="voxels " + ", ".join(f"{a}:{b}" for a, b in box),
                marks=(index,),
                params={"index": index, "box": [*map(list, box)], "name": source.name, "dtype": source.dtype.name},
                reads=(Region("input", start, stop),),
                writes=(Region(layout.tomogram(), start, stop),),
                memory=ingest.memory_of([box], source) + voxels * source.dtype.itemsize,
            )
        )
    return Stage(
        ingest.NAME,
        work,
        ingest.settings_of(source),
        "",
        tuple(units),
        len(units),
        advice="give the array smaller chunks, or each worker more memory",
        inputs=Blocks(source),
    )


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Write a box that was computed, with its digest."""
    params, box = unit.params, _box(unit)
    shape = tuple(b - a for a, b in box)
    voxels = ingest.as_stored(checked(unit.value, shape, np.dtype(params["dtype"]), params["name"]))
    store = RunStore.open(context.url, "r+")
    ingest.write_box(store, params["index"], box, voxels, params["name"])
    store.array(layout.DIGESTS)[params["index"]] = digest(voxels)
    return None


def _box(unit: Unit) -> Box:
    z, y, x = unit.params["box"]
    return (z[0], z[1]), (y[0], y[1]), (x[0], x[1])


def digest(voxels: Array) -> Array:
    """SHA-256 of voxels as they are stored, (32,) bytes."""
    voxels = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    return np.frombuffer(hashlib.sha256(voxels.reshape(-1).view(np.uint8).data).digest(), np.uint8)


def recognized(store: RunStore, source: ArraySource, compute: Compute) -> ArraySource:
    """The source with the identity of the run, where it holds what the run was, or is being, made from; else as it is.

    `compute` is called for a lazy array only.
    """
    begun = marks.found_stage(store, ingest.NAME)
    known: Json = begun["settings"]["input"] if begun else store.info.get("input", {})
    alike = ("format", "shape", "dtype", "voxel_size")
    if any(known.get(key) != source.identity[key] for key in alike):
        return source
    boxes = layout.image_boxes(source.shape)
    done = np.flatnonzero(marks.done(store, ingest.NAME)).tolist() if begun else range(len(boxes))
    try:
        same = (_same_places if source.lazy else _same_boxes)(store, source, [(i, boxes[i]) for i in done], compute)
    except CryosamError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"{source.name}: can't be computed: {type(error).__name__}: {said}") from error
    return replace(source, identity={**source.identity, "content": known["content"]}) if same else source


def _same_boxes(store: RunStore, source: ArraySource, boxes: list[tuple[int, Box]], compute: Compute) -> bool:
    """Whether all boxes have the digests of what was written."""
    for index, box in boxes:
        try:
            written = store.read(layout.DIGESTS, index)
        except StoreError:  # lost, and to be made again
            continue
        if not np.array_equal(written, digest(ingest.as_stored(source.read(box_slices(box))))):
            return False
    return True


def _same_places(store: RunStore, source: ArraySource, boxes: list[tuple[int, Box]], compute: Compute) -> bool:
    """Whether a chunk in the middle of each of some boxes, from the first to the last, is what was written."""
    last = len(boxes) - 1
    chosen = [boxes[i][1] for i in sorted({last * i // (COMPARED - 1) for i in range(COMPARED)})] if boxes else []
    written: dict[Box, Array] = {}
    for box in map(_middle, chosen):
        try:
            written[box] = store.read(layout.tomogram(), box_slices(box))
        except StoreError:
            continue
    values = compute([source.array[box_slices(box)] for box in written]) if written else []
    for (box, stored), value in zip(written.items(), values, strict=True):
        shape = tuple(b - a for a, b in box)
        given = ingest.as_stored(checked(value, shape, source.dtype, source.name))
        spread = _CLOSE * float(np.std(stored, dtype=np.float64)) if stored.dtype.kind == "f" else 0.0
        if not np.allclose(given, stored, rtol=0, atol=spread):
            return False
    return True


def _middle(box: Box) -> Box:
    """A chunk of the store in the middle of a box, on the store's grid."""
    size: Shape3 = layout.CHUNK
    z, y, x = (
        (first := a + (b - a - 1) // 2 // side * side, min(first + side, b))
        for (a, b), side in zip(box, size, strict=True)
    )
    return z, y, x
