"""Embed: planes → the segmenter's embeddings. Only planes that a prompt reaches are embedded, each once.

The stage has one mark per plane of the three axes. Propagation asks for the planes that it needs next, and `plan`
bundles those that are missing. Each plane has chunks of its own, so bundles never share a chunk.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.models.cache import get_segmenter
from cryosam_dask.models.catalog import segmenter_info
from cryosam_dask.models.info import SegmenterInfo
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import PLAIN_WRITE, Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import Behind
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Json, Shape3

NAME = "embeddings"
WORTH_COMPRESSING = 0.85
"""Share of their bytes that zstd must leave of embeddings, or less, to be worth its time."""

BUNDLE = 8
"""The most planes in a unit. They lie in one row of chunks, which is read once for all of them."""

Plane = tuple[Axis, int]


def describe(settings: PropagationSettings) -> Json:
    """The settings that embeddings depend on."""
    return {
        "segmenter": settings.segmenter,
        "weights": weights_identity(settings.segmenter),
        "plane_thickness": settings.plane_thickness,
        "precision": settings.precision,
    }


def mark_of(shape: Shape3, plane: Plane) -> int:
    """The number of a plane's done mark: planes of z come first, then y, then x."""
    axis, index = plane
    return sum(shape[: geometry.axis_index(axis)]) + index


def plan(
    shape: Shape3, settings: PropagationSettings, upstream: str, planes: Iterable[Plane], most: int = BUNDLE
) -> Stage:
    """Units for the given planes, bundled by the chunks that they are read from.

    most : planes in a unit, at most, where `BUNDLE` is not less: fewer where there are more workers than bundles
    """
    info = segmenter_info(settings.segmenter)
    units = [_unit(shape, settings, info, axis, bundle) for axis, bundle in _bundles(planes, min(most, BUNDLE))]
    return Stage(
        NAME,
        work,
        describe(settings),
        upstream,
        tuple(units),
        sum(shape),
        uses_model=True,
        model_memory=info.weights_bytes,
        advice="give each worker more memory",
    )


def _unit(shape: Shape3, settings: PropagationSettings, info: SegmenterInfo, axis: Axis, bundle: list[int]) -> Unit:
    plane, reach = geometry.plane_shape(shape, axis), settings.plane_thickness // 2
    embedding = info.embedding_shape(plane)
    low, high = [0, 0, 0], list(shape)
    across = geometry.axis_index(axis)
    low[across], high[across] = max(bundle[0] - reach, 0), min(bundle[-1] + reach + 1, shape[across])
    writes = []
    for start, stop in _runs(bundle):
        writes.append(Region(layout.planes(axis), (start, 0, 0), (stop, *plane)))
        writes.append(Region(layout.embeddings(axis), (start, *(0 for _ in embedding)), (stop, *embedding)))
    held = len({j for i in bundle for j in range(max(i - reach, 0), min(i + reach + 1, shape[across]))})
    pixels = math.prod(plane)
    return Unit(
        name=f"planes {axis} {','.join(str(a) if b == a + 1 else f'{a}:{b}' for a, b in _runs(bundle))}",
        marks=tuple(mark_of(shape, (axis, i)) for i in bundle),
        params={"axis": axis, "planes": bundle},
        reads=(Region(layout.tomogram(), tuple(low), tuple(high)),),
        writes=tuple(writes),
        # slices as stored; a plane in single precision and in bytes; its embedding as kept and as written, and those
        # of the one before, which is being written
        memory=pixels * (held * 4 + 8)
        + math.prod(embedding) * 4 * info.embedding_dtype.itemsize
        + info.embed_bytes(plane)
        + BESIDES,
    )


def _bundles(planes: Iterable[Plane], most: int) -> Iterator[tuple[Axis, list[int]]]:
    """Planes of one row of chunks, cut evenly into bundles of at most `most`."""

    def row(plane: Plane) -> tuple[int, int]:
        axis = geometry.axis_index(plane[0])
        return axis, plane[1] // layout.CHUNK[axis]

    for (axis, _), row_planes in itertools.groupby(sorted(set(planes), key=lambda p: (row(p), p[1])), row):
        indices = [index for _, index in row_planes]
        count = -(-len(indices) // most)
        for part in np.array_split(indices, count):
            yield AXES[axis], part.tolist()


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    """Adjacent ones among ascending indices, as (start, stop)."""
    out: list[tuple[int, int]] = []
    for index in indices:
        if out and out[-1][1] == index:
            out[-1] = (out[-1][0], index + 1)
        else:
            out.append((index, index + 1))
    return out


def is_compressed(info: SegmenterInfo) -> bool:
    """Whether a segmenter's embeddings are stored compressed. Planes of a noisy tomogram never are."""
    return info.embedding_share <= WORTH_COMPRESSING


def prepare(store: RunStore, settings: PropagationSettings) -> None:
    """Create the arrays for all planes; they take space only where planes are written."""
    info = segmenter_info(settings.segmenter)
    store.delete(layout.EMBEDDINGS)
    for axis in AXES:
        length, plane = store.shape[geometry.axis_index(axis)], geometry.plane_shape(store.shape, axis)
        store.new_array(
            layout.planes(axis),
            shape=(length, *plane),
            dtype="uint8",
            chunks=(1, *plane),
            dims=(f"plane_{axis}", f"row_{axis}", f"column_{axis}"),
            compress=False,
        )
        size = info.embedding_shape(plane)
        store.new_array(
            layout.embeddings(axis),
            shape=(length, *size),
            dtype=info.embedding_dtype,
            chunks=(1, *size),
            dims=(f"plane_{axis}", *(f"embedding_{axis}{i}" for i in range(len(size)))),
            compress=is_compressed(info),
        )


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Embed a bundle of planes."""
    store = context.store
    segmenter = get_segmenter(settings["segmenter"], context.device, settings["precision"])
    axis: Axis = unit.params["axis"]
    indices = [int(i) for i in unit.params["planes"]]
    sample = Sample(store, axis, indices, settings["plane_thickness"])
    with Behind() as behind:  # a plane is written while the next one is embedded
        for index in indices:
            plane = sample.grey([index])
            embedding = np.asarray(segmenter.embed(plane)[0])
            behind.do(_write, store, axis, index, plane[0], embedding)
    return None


def _write(store: RunStore, axis: Axis, index: int, plane: NDArray[np.uint8], embedding: Array) -> None:
    store.array(layout.planes(axis))[index] = plane
    store.array(layout.embeddings(axis))[index] = embedding


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((path, None) for axis in AXES for path in (layout.embeddings(axis), layout.planes(axis)))


def _by_plane(store: RunStore, match: re.Match[str]) -> MarkOf:
    axis = next(axis for axis in AXES if axis == match["axis"])
    return lambda index: mark_of(store.shape, (axis, index[0]))


def _cost(bench: Bench, unit: Unit) -> Cost:
    axis, count = unit.params["axis"], len(unit.marks)
    read = sum(map(bench.touched, unit.reads))
    seconds = count * bench.embed_seconds(axis)
    if is_compressed(segmenter_info(bench.settings.propagation.segmenter)):
        return cost(read, count * bench.plane_bytes(axis), seconds, "embeddings")
    # read as the tomogram is, written without compression
    written = count * bench.plane_bytes(axis)
    return cost(read, 0, seconds + written / PLAIN_WRITE, "tomogram")._replace(write=written)


STAGE = Declaration(
    NAME,
    "query",
    words="Embedding of planes",
    part="embeddings",
    made_from=("ingest",),
    sparse=True,
    arrays=(
        Arrays(layout.pattern(layout.embeddings), "stage", _by_plane, "embeddings"),
        Arrays(layout.pattern(layout.planes), "stage", _by_plane),
    ),
    expected=_expected,
    cost=_cost,
)
