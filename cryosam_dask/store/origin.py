"""Which unit of which stage wrote a chunk, and what a finished unit must have left: by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.store import instances, layout, marks
from cryosam_dask.store.arrays import Index, RunArray, grid
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Bool, Shape3

Kind = Literal["stage", "unit", "driver", "coordinates", "state", "marks", "unknown"]


@dataclass(frozen=True)
class Origin:
    """Where an array is from.

    Attributes
    ----------
    kind : "stage", many units write one array; "unit", one unit writes it alone; "driver", the driver writes it anew
        whenever the command runs; "coordinates", positions that follow from the run's shape; "state" of a unit that
        waits; "marks"; "unknown"
    stage : name of the stage, "" where there is none
    unit : the mark of the unit that wrote a chunk
    """

    kind: Kind
    stage: str = ""
    unit: Callable[[Index], int] | None = None

    def mark(self, index: Index) -> int | None:
        return None if self.unit is None else self.unit(index)


def origin(store: RunStore, array: str) -> Origin:
    """Where an array of a run is from, by its path; the array itself need not be there."""
    for pattern, rule in _RULES:
        if found := pattern.fullmatch(array):
            return rule(store, found)
    return Origin("unknown")


def expected(store: RunStore, stage: str, done: Bool) -> Iterator[tuple[str, int | None]]:
    """The arrays that a stage with these units done must have, each with its unit where it has one of its own."""
    if not done.any():
        return
    kind, _, name = stage.partition("/")
    settings: dict[str, Any] = (marks.found_stage(store, stage) or {}).get("settings", {})
    finished = np.flatnonzero(done).tolist()
    if kind == "ingest":
        yield from ((layout.tomogram(level), None) for level in range(layout.level_count(store.shape)))
        yield layout.STATISTICS, None
        if settings.get("input", {}).get("format") == "array":
            yield layout.DIGESTS, None
    elif kind == "features":
        for axis in AXES:
            for ratio in (1, *settings.get("ratios", ())):
                yield layout.latents(ratio, axis), None
                yield layout.gram(ratio, axis), None
            yield layout.feature_sums(axis), None
    elif kind == "features-standardization":
        yield from ((f"{layout.STANDARDIZATION}/{AXES[i]}", i) for i in finished)
    elif kind == "features-dense":
        yield from ((layout.dense(ratio), None) for ratio in settings.get("dense_ratios", ()))
    elif kind == "embeddings":
        yield from ((path, None) for axis in AXES for path in (layout.embeddings(axis), layout.planes(axis)))
    elif kind == "segment":
        arrays = (*instances.ARRAYS, instances.RIVAL) if settings.get("against") else instances.ARRAYS
        yield from ((f"{layout.group(name, i)}/{array}", i) for i in finished for array in arrays)
    elif kind == "query":
        yield from ((f"{layout.query(name)}/{array}", 0) for array in ("feature", "mean", "sizes", "points"))
    elif kind == "negative":
        described = ("profiles",) if settings.get("rank") == "profile" else ()
        yield from ((f"{layout.negatives(name)}/{array}", 0) for array in ("points", "features", *described))
    elif kind == "rank":
        for i in finished:
            yield from ((f"{layout.profiles(name, i)}/{array}", i) for array in ("centres", "profiles"))
    elif kind in ("project", "match"):
        query, _, ratio = name.rpartition("/r")
        if kind == "match":
            yield layout.similarity(query, int(ratio)), None
        else:
            yield from ((layout.dots(query, int(ratio), axis), None) for axis in AXES)
    elif kind == "label":
        combined = name not in settings.get("kinds", (name,))
        for image in (name,) if combined else (name, layout.semantic_name(name)):
            yield from ((layout.labels(image, level), None) for level in range(layout.level_count(store.shape)))


def stages(store: RunStore) -> list[str]:
    """Names of the stages that have begun."""
    found = []
    for path, _ in store.files("marks"):
        folder, _, name = path.rpartition("/")
        if name == "zarr.json" and _array(store, folder) is not None:
            found.append(folder.removeprefix("marks/"))
    return found


def put_coordinates(store: RunStore, array: str) -> None:
    """Write an array of coordinates again."""
    from cryosam_dask.store import ome

    group = array.rpartition("/")[0]
    number = int(re.findall(r"\d+", group)[-1])
    if group.startswith("features/r"):
        y, x = (store.array(layout.latents(1, "z")).shape[i] for i in (1, 2))
        z = store.array(layout.latents(1, "y")).shape[1]
        ome.put_token_coordinates(store, group, number, (z, y, x))
    else:
        ome.put_coordinates(store, group, 1 << number if "scale" in group.rpartition("/")[2] else number)


def _array(store: RunStore, path: str) -> RunArray | None:
    try:
        return store.array(path)
    except StoreError:
        return None


def _box_of(store: RunStore, chunk: Shape3, size: Shape3, shape: Shape3) -> Callable[[Index], int]:
    """Number of the box of `size` that a chunk lies in, boxes in (z, y, x) order."""
    counts = tuple(-(-n // s) for n, s in zip(shape, size, strict=True))

    def unit(index: Index) -> int:
        place = tuple(i * c // s for i, c, s in zip(index, chunk, size, strict=True))
        return int(np.ravel_multi_index(place, counts))

    return unit


def _image(store: RunStore, stage: str, level: int) -> Origin:
    z, y, x = (n << level for n in layout.level_chunks(level))
    return Origin("stage", stage, _box_of(store, (z, y, x), layout.INGEST_BOX, store.shape))


def _slabs(store: RunStore, axis: Axis) -> Origin:
    """Of the feature stage: chunks are one slab deep, units one or two slabs of the views one after another."""
    lengths = dict(zip(AXES, store.shape, strict=True))
    before = sum(-(-lengths[a] // layout.feature_slices(a)) for a in AXES[: AXES.index(axis)])
    per_unit = layout.feature_slices(axis) // layout.SLAB
    return Origin("stage", "features", lambda index: before + index[0] // per_unit)


def _planes(store: RunStore, axis: Axis) -> Origin:
    before = sum(store.shape[: AXES.index(axis)])
    return Origin("stage", "embeddings", lambda index: before + index[0])


def _dense(store: RunStore, ratio: int) -> Origin:
    stage = "features-dense"
    settings = (marks.found_stage(store, stage) or {}).get("settings", {})
    before, shape = 0, None
    for other in settings.get("dense_ratios", ()):
        array = _array(store, layout.dense(other))
        if array is None:
            break
        counts = grid(array)
        if other == ratio:
            shape = counts
            break
        before += int(np.prod(counts))
    if shape is None:
        return Origin("stage", stage)
    return Origin("stage", stage, lambda index: before + int(np.ravel_multi_index(index, shape)))


def _similarity(store: RunStore, name: str, ratio: int) -> Origin:
    array, stage = _array(store, layout.similarity(name, ratio)), f"match/{name}/r{ratio}"
    if array is None:
        return Origin("stage", stage)
    z, y, x = array.chunks
    if ratio != 1:
        return Origin("stage", stage, lambda index: int(np.ravel_multi_index(index, grid(array))))
    return Origin("stage", stage, _box_of(store, (z, y, x), layout.SIMILARITY_VOXELS, store.shape))


def _dots(store: RunStore, name: str, ratio: int, axis: Axis) -> Origin:
    stage = f"project/{name}/r{ratio}"
    arrays = [_array(store, layout.dots(name, ratio, a)) for a in AXES[: AXES.index(axis)]]
    before = sum(grid(array)[1] for array in arrays if array is not None)
    if None in arrays:
        return Origin("stage", stage)
    return Origin("stage", stage, lambda index: before + index[1])


def _one(stage: str, mark: int) -> Origin:
    return Origin("unit", stage, lambda index: mark)


def _axis(found: re.Match[str]) -> Axis:
    return next(axis for axis in AXES if axis == found["axis"])


_NAME = r"(?P<name>[^/]+)"
_AXIS = r"(?P<axis>[zyx])"
_N = r"(?P<n>\d+)"

_RULES: list[tuple[re.Pattern[str], Callable[[RunStore, re.Match[str]], Origin]]] = [
    (re.compile(pattern), rule)
    for pattern, rule in (
        (rf"scale{_N}/tomogram", lambda s, m: _image(s, "ingest", int(m["n"]))),
        (r"statistics|digests", lambda s, m: Origin("stage", "ingest", lambda index: index[0])),
        (r"scale\d+/[zyx]", lambda s, m: Origin("coordinates", "ingest")),
        (rf"labels/{_NAME}/scale\d+/[zyx]", lambda s, m: Origin("coordinates", f"label/{_query(m)}")),
        (rf"similarity/{_NAME}/r{_N}/[zyx]", lambda s, m: Origin("coordinates", f"match/{m['name']}/r{m['n']}")),
        (r"features/(dense/)?r\d+/((slice|token)_)?[zyx]", lambda s, m: _features(s, m)),
        (rf"features/standardization/{_AXIS}", lambda s, m: _one("features-standardization", AXES.index(_axis(m)))),
        (rf"features/(r\d+/{_AXIS}_gram)", lambda s, m: _slabs(s, _axis(m))),
        (rf"features/sums/{_AXIS}", lambda s, m: _slabs(s, _axis(m))),
        (rf"features/dense/r{_N}/features", lambda s, m: _dense(s, int(m["n"]))),
        (rf"embeddings/(planes/)?{_AXIS}", lambda s, m: _planes(s, _axis(m))),
        (
            rf"(?P<where>(queries|negatives|instances)/{_NAME})/group{_N}/\w+",
            lambda s, m: _one(f"segment/{m['where']}", int(m["n"])),
        ),
        (rf"(queries|negatives|instances)/{_NAME}/state\d+", lambda s, m: Origin("state")),
        (rf"negatives/{_NAME}/\w+", lambda s, m: _one(f"negative/{m['name']}", 0)),
        (rf"queries/{_NAME}/\w+", lambda s, m: _one(f"query/{m['name']}", 0)),
        (rf"similarity/{_NAME}/r{_N}/similarity", lambda s, m: _similarity(s, m["name"], int(m["n"]))),
        (rf"similarity/{_NAME}/r{_N}/dots/{_AXIS}", lambda s, m: _dots(s, m["name"], int(m["n"]), _axis(m))),
        (rf"proposals/{_NAME}/profiles{_N}/\w+", lambda s, m: _one(f"rank/{m['name']}", int(m["n"]))),
        (rf"(proposals|picks)/{_NAME}/\w+", lambda s, m: Origin("driver")),
        (rf"labels/{_NAME}/scale{_N}/labels", lambda s, m: _image(s, f"label/{_query(m)}", int(m["n"]))),
        (r"marks/.+", lambda s, m: Origin("marks")),
    )
]


def _features(store: RunStore, found: re.Match[str]) -> Origin:
    """`z`, `y`, `x` are the latents of a view in the groups of ratios, and coordinates in those of dense features."""
    path = found.string
    if "_" in path.rpartition("/")[2] or path.startswith("features/dense"):
        return Origin("coordinates", "features")
    return _slabs(store, next(axis for axis in AXES if axis == path[-1]))


def _query(found: re.Match[str]) -> str:
    return found["name"].removesuffix(layout.semantic_name(""))
