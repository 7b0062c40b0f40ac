"""Ingest: a tomogram file → the store's chunked image with its 2× levels, and the statistics of the same pass.

A unit is a box of voxels, whole rows of whole slices where they are not too many: it reads the box once, writes its
whole chunks on every level, and one row of statistics. So its memory does not depend on the tomogram's size. Where a
file is decoded in pieces that span several boxes (chunks of 256 slices, compressed pages), a unit reads these boxes
together and then treats one after the other, so that no piece is decoded again for each.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from importlib import metadata
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io.arrays import ArraySource
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.omezarr import ZarrSource
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels import images
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import LEVELS, Bench, Cost, cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, by_image_box
from cryosam_dask.storage.address import is_local, public
from cryosam_dask.storage.filesystem import expect
from cryosam_dask.store import layout, ome
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Json
from cryosam_dask.version import __version__

NAME = "ingest"
MOST_TOGETHER = 1 << 29
"""Bytes of voxels that one unit reads together, where it takes more than one box."""
_MOST_KEPT = 8
SECONDS = 25e-9
"""Per voxel, besides reading and writing: statistics, levels."""


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type that voxels are stored in: the file's own where it is small, else float32."""
    return dtype if dtype.kind in "iuf" and dtype.itemsize <= 4 and dtype not in ("i4", "u4") else np.dtype("f4")


def plan(source: TomogramSource, path: str, options: Json) -> Stage:
    """The stage for a source opened from `path` with `options` (`voxel_size`, `unsigned`)."""
    units = []
    for group in _together(source):
        boxes = [box for _, box in group]
        start, stop = _hull(boxes)
        units.append(
            Unit(
                name="voxels " + ", ".join(f"{a}:{b}" for a, b in zip(start, stop, strict=True)),
                marks=tuple(index for index, _ in group),
                params={
                    "path": path,
                    "options": options,
                    "boxes": [[index, [*map(list, box)]] for index, box in group],
                },
                reads=(Region("input", start, stop),),
                writes=tuple(Region(layout.tomogram(), *_hull([box])) for box in boxes),
                memory=memory_of(boxes, source),
            )
        )
    count = len(layout.image_boxes(source.shape))
    return Stage(NAME, work, settings_of(source), "", tuple(units), count, advice="give each worker more memory")


def settings_of(source: TomogramSource) -> Json:
    """What the ingest of a source depends on."""
    return {
        "input": _content(source),
        "voxel_size": list(source.voxel_size),
        "origin": list(source.origin),
        "chunk": list(layout.CHUNK),
    }


def _together(source: TomogramSource) -> list[list[tuple[int, geometry.Box]]]:
    """The numbered boxes that each unit takes: as many neighbours as one of the file's own pieces (`source.chunk`)
    spans, where `MOST_TOGETHER` bytes allow it."""
    size = layout.INGEST_BOX
    spans = [-(-min(n, piece) // side) for n, piece, side in zip(source.shape, source.chunk, size, strict=True)]
    while math.prod(spans) > 1:
        held = math.prod(min(n, span * side) for n, span, side in zip(source.shape, spans, size, strict=True))
        if held * source.dtype.itemsize <= MOST_TOGETHER:
            break
        widest = spans.index(max(spans))
        spans[widest] = -(-spans[widest] // 2)
    groups: dict[tuple[int, ...], list[tuple[int, geometry.Box]]] = {}
    for index, box in enumerate(layout.image_boxes(source.shape)):
        place = tuple(a // (side * span) for (a, _), side, span in zip(box, size, spans, strict=True))
        groups.setdefault(place, []).append((index, box))
    return list(groups.values())


def _hull(boxes: list[geometry.Box]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel of all boxes, and the one behind their last."""
    sides = list(zip(*boxes, strict=True))
    return tuple(min(a for a, _ in side) for side in sides), tuple(max(b for _, b in side) for side in sides)


def memory_of(boxes: list[geometry.Box], source: TomogramSource) -> int:
    """What reading takes, all boxes as read where there are several, and what is made of the largest: the box as read
    with what statistics and halving make of it, in the file's type; or the box as stored with its halves in single
    precision, whichever is more."""
    start, stop = _hull(boxes)
    together = math.prod(b - a for a, b in zip(start, stop, strict=True)) if len(boxes) > 1 else 0
    voxels = max(math.prod(b - a for a, b in box) for box in boxes)
    item = source.dtype.itemsize
    work = int(voxels * max(2.5 * item, stored_dtype(source.dtype).itemsize + 3))
    return together * item + work + source.scratch + (16 << 20)


def create_store(url: str, source: TomogramSource, path: str) -> RunStore:
    """A store with the arrays of the ingest, empty."""
    store = RunStore.create(
        url,
        {
            "version": __version__,
            "packages": _versions(),
            "input": {"path": public(path), **source.identity},
            "shape": list(source.shape),
            "voxel_size": list(source.voxel_size),
            "origin": list(source.origin),
            "notes": list(source.notes),
        },
    )
    prepare(store, source)
    return store


def prepare(store: RunStore, source: TomogramSource) -> None:
    """Create the arrays that the units write to, and the OME-Zarr metadata."""
    levels = layout.level_count(source.shape)
    for level in range(levels):
        store.new_array(
            layout.tomogram(level),
            shape=layout.level_shape(source.shape, level),
            dtype=stored_dtype(source.dtype),
            chunks=layout.level_chunks(level),
            dims=("z", "y", "x"),
        )
        ome.put_coordinates(store, layout.level_group(level), 1 << level)
    count = len(layout.image_boxes(source.shape))
    store.new_array(
        layout.STATISTICS,
        shape=(count, 3 + images.QUANTILES),
        dtype="float64",
        chunks=(1, 3 + images.QUANTILES),
        dims=("box", "summary"),
    )
    if isinstance(source, ArraySource):
        store.new_array(layout.DIGESTS, shape=(count, 32), dtype="uint8", chunks=(1, 32), dims=("box", "byte"))
    scales = ome.multiscales("tomogram", layout.TOMOGRAM_VARIABLE, levels, source.voxel_size, source.origin)
    store.root.attrs["ome"] = {"version": "0.5", "multiscales": scales}


def is_of(store: RunStore, source: TomogramSource) -> bool:
    """Whether a run was made from this source; the name of the file does not matter."""
    known, own = store.info, {**_content(source), "voxel_size": source.voxel_size, "origin": source.origin}
    content = {key: value for key, value in known.get("input", {}).items() if key not in ("path", "name", "sha256")}
    described = {**content, "voxel_size": known.get("voxel_size"), "origin": known.get("origin")}
    return bool(json.loads(json.dumps(described)) == json.loads(json.dumps(own)))


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Read a box, check it, write it on all levels with its statistics."""
    params = unit.params
    expect(params["path"])  # the driver has read it
    source = _source(params["path"], params["options"], settings["input"])
    store = context.store
    boxes: list[tuple[int, geometry.Box]] = [
        (index, ((z[0], z[1]), (y[0], y[1]), (x[0], x[1]))) for index, (z, y, x) in params["boxes"]
    ]
    start, stop = _hull([box for _, box in boxes])
    read = [source.read((slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2])))]
    shown = public(params["path"])
    if len(boxes) == 1:
        index, box = boxes[0]
        write_box(store, index, box, read.pop(), shown)  # and nobody else holds the voxels as they were read
        return None
    for index, box in boxes:
        part = tuple(slice(a - first, b - first) for (a, b), first in zip(box, start, strict=True))
        write_box(store, index, box, np.ascontiguousarray(read[0][part]), shown)
    return None


_kept: dict[str, TomogramSource] = {}


def _source(path: str, options: Json, content: Json) -> TomogramSource:
    """The input, checked to be the one that the run began with.

    An OME-Zarr elsewhere is checked once in a process: to know it takes as many chunks as some units read.
    """
    key = json.dumps([path, options, content])
    if (kept := _kept.get(key)) is not None:
        return kept
    source = open_tomogram(path, voxel_size=options.get("voxel_size"), unsigned=options.get("unsigned"))
    if _content(source) != content:
        raise InputError(f"{public(path)}: the file changed since the run began; use another --out or --overwrite")
    if isinstance(source, ZarrSource) and not is_local(source.url):
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[key] = source
    return source


def as_stored(voxels: Array) -> Array:
    """Voxels in the type that they are stored in; what is too large for single precision is infinite then."""
    with np.errstate(over="ignore"):
        return voxels.astype(stored_dtype(voxels.dtype), copy=False)


def write_box(store: RunStore, index: int, box: geometry.Box, voxels: Array, path: str) -> None:
    """Check a box, write its statistics, and its chunks on all levels."""
    start = (box[0][0], box[1][0], box[2][0])
    voxels = as_stored(voxels)
    _check_finite(voxels, start, path)
    store.array(layout.STATISTICS)[index] = images.summarize(voxels)
    for level in range(layout.level_count(store.shape)):
        if level:
            voxels = images.halve(voxels)
        where = (slice(a >> level, (a >> level) + n) for a, n in zip(start, voxels.shape, strict=True))
        store.array(layout.tomogram(level))[tuple(where)] = voxels


def _versions() -> dict[str, str]:
    """The versions that the run is made with, for its description."""
    names = ("numpy", "scipy", "scikit-image", "zarr", "dask", "torch", "timm", "segment-anything")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _content(source: TomogramSource) -> Json:
    """What identifies an input: its content, not its name."""
    return {key: value for key, value in source.identity.items() if key != "name"}


def _check_finite(voxels: Array, start: tuple[int, int, int], path: str) -> None:
    if voxels.dtype.kind != "f":
        return
    bad = {z: np.argwhere(~good) for z, part in enumerate(voxels) if not (good := np.isfinite(part)).all()}
    if bad:
        z, places = next(iter(bad.items()))
        first = ",".join(str(int(a) + b) for a, b in zip((z, *places[0]), start, strict=True))
        box = ", ".join(f"{a}:{a + n}" for a, n in zip(start, voxels.shape, strict=True))
        raise InputError(
            f"{path}: {sum(map(len, bad.values()))} voxels of {box} are NaN, infinite or too large for "
            f"single precision, the first at z,y,x = {first}; replace them (e.g. by the mean) and run again"
        )


def finish(store: RunStore, path: str) -> None:
    """Merge the boxes' statistics into the run's; `InputError` for a constant volume."""
    if "statistics" in store.info:
        return
    merged = images.merge_summaries(store.read(layout.STATISTICS))
    if not merged.std > 0 or not merged.high > merged.low:
        raise InputError(f"{public(path)}: all voxels are (nearly) {merged.mean:g}; expected a tomogram with contrast")
    about = store.info["input"]
    if layout.DIGESTS in store:  # an array, which is known by what was written of it
        about = {**about, "sha256": hashlib.sha256(store.read(layout.DIGESTS).tobytes()).hexdigest()}
    store.update_info(statistics=merged.to_json(), input=about)


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    yield from ((layout.tomogram(level), None) for level in range(layout.level_count(store.shape)))
    yield layout.STATISTICS, None
    if settings.get("input", {}).get("format") == "array":
        yield layout.DIGESTS, None


def _by_box(store: RunStore, match: re.Match[str]) -> MarkOf:
    return lambda index: index[0]


def _cost(bench: Bench, unit: Unit) -> Cost:
    voxels = written(unit)
    read, stored = voxels * bench.source.dtype.itemsize, voxels * bench.voxel_bytes * LEVELS
    return cost(read, stored, voxels * SECONDS, "tomogram", coded=False)


def _mend(store: RunStore, match: re.Match[str]) -> None:
    level = int(match["level"])
    ome.put_coordinates(store, layout.level_group(level), 1 << level)


STAGE = Declaration(
    NAME,
    "ingest",
    words="Tomogram into the store",
    part="ingest",
    arrays=(
        Arrays(layout.pattern(layout.tomogram), "stage", by_image_box, "tomogram"),
        Arrays(re.compile(layout.STATISTICS), "stage", _by_box),
        Arrays(re.compile(layout.DIGESTS), "stage", _by_box),
        Arrays(
            layout.pattern(lambda level, axis: layout.member(layout.level_group(level), axis)),
            "coordinates",
            mend=_mend,
        ),
    ),
    expected=_expected,
    cost=_cost,
)
