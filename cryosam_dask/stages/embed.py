"""Embed: planes → the segmenter's embeddings, each once and only those that a prompt comes to.

The stage has one mark per plane of the three axes, and no plan of its own: propagation asks for the planes it stands
before, `plan` bundles those that are missing. A plane has its own chunks, so bundles never share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.models.cache import get_segmenter
from cryosam_dask.models.catalog import segmenter_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.sampling import grey_planes
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Shape3

NAME = "embeddings"
BUNDLE = 8
"""Adjacent planes in a unit: they share the chunks they are read from."""

Plane = tuple[Axis, int]


def describe(settings: PropagationSettings) -> Json:
    """What embeddings depend on."""
    return {
        "segmenter": settings.segmenter,
        "weights": weights_identity(settings.segmenter),
        "plane_thickness": settings.plane_thickness,
        "precision": settings.precision,
    }


def mark_of(shape: Shape3, plane: Plane) -> int:
    """The done mark of a plane: those of z, then y, then x."""
    axis, index = plane
    return sum(shape[: geometry.axis_index(axis)]) + index


def plan(shape: Shape3, settings: PropagationSettings, upstream: str, planes: Iterable[Plane]) -> Stage:
    """Units for the given planes, bundled by neighbourhood."""
    info = segmenter_info(settings.segmenter)
    units = []
    for axis, start, stop in _runs(planes):
        plane = geometry.plane_shape(shape, axis)
        pixels = math.prod(plane)
        size = math.prod(info.embedding_shape(plane))
        reach = settings.plane_thickness - 1
        units.append(
            Unit(
                name=f"planes {axis} {start}:{stop}",
                marks=tuple(mark_of(shape, (axis, i)) for i in range(start, stop)),
                params={"axis": axis, "start": start, "stop": stop},
                writes=(
                    Region(layout.planes(axis), (start, 0, 0), (stop, *plane)),
                    Region(
                        layout.embeddings(axis),
                        (start, *(0 for _ in info.embedding_shape(plane))),
                        (stop, *info.embedding_shape(plane)),
                    ),
                ),
                memory=pixels * (stop - start + reach) * 24 + size * 8 + info.embed_bytes(plane) + (32 << 20),
            )
        )
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


def _runs(planes: Iterable[Plane]) -> list[tuple[Axis, int, int]]:
    """Runs of at most `BUNDLE` adjacent planes."""
    out: list[tuple[Axis, int, int]] = []
    for axis, index in sorted(set(planes), key=lambda p: (geometry.axis_index(p[0]), p[1])):
        if out and out[-1][0] == axis and out[-1][2] == index and index - out[-1][1] < BUNDLE:
            out[-1] = (axis, out[-1][1], index + 1)
        else:
            out.append((axis, index, index + 1))
    return out


def prepare(store: RunStore, settings: PropagationSettings) -> None:
    """Create the arrays for all planes; they take space only where planes are written."""
    info = segmenter_info(settings.segmenter)
    store.delete("embeddings")
    for axis in AXES:
        length, plane = store.shape[geometry.axis_index(axis)], geometry.plane_shape(store.shape, axis)
        store.new_array(
            layout.planes(axis),
            shape=(length, *plane),
            dtype="uint8",
            chunks=(1, *plane),
            dims=(f"plane_{axis}", f"row_{axis}", f"column_{axis}"),
        )
        size = info.embedding_shape(plane)
        store.new_array(
            layout.embeddings(axis),
            shape=(length, *size),
            dtype=info.embedding_dtype,
            chunks=(1, *size),
            dims=(f"plane_{axis}", *(f"embedding_{axis}{i}" for i in range(len(size)))),
        )


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Embed a bundle of adjacent planes."""
    store = RunStore.open(context.url, "r+")
    segmenter = get_segmenter(settings["segmenter"], context.device, settings["precision"])
    axis: Axis = unit.params["axis"]
    start, stop = unit.params["start"], unit.params["stop"]
    planes = grey_planes(store, axis, start, stop, settings["plane_thickness"])
    store.array(layout.planes(axis))[start:stop] = planes
    for index, plane in enumerate(planes, start):
        store.array(layout.embeddings(axis))[index] = np.asarray(segmenter.embed(plane[None])[0])
    return None
