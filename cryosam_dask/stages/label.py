"""Label: distinct instances → OME-Zarr labels, instance ids and semantic, on the image's levels.

The driver chooses the instances and numbers them (`store.picks`); a unit paints one slab of slices on all levels. Where
instances overlap, the one with the better score is on top.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, ome
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

Source = tuple[int, int, int]
"""(group, index in the group, label)."""


def stage_name(name: str) -> str:
    return f"label/{name}"


def plan(store: RunStore, name: str, boxes: Array, sources: list[Source], upstream: str) -> Stage:
    """One unit per slab.

    boxes : (n, 6) of the instances to paint, in painting order (worst first); sources : where each one's mask is
    """
    shape = store.shape
    units = []
    for index, (start, stop) in enumerate(geometry.slabs(shape[0], layout.INGEST_SLAB)):
        inside = (boxes[:, 0] < stop) & (boxes[:, 3] > start) if len(boxes) else np.zeros(0, bool)
        largest = int(np.prod(boxes[inside, 3:] - boxes[inside, :3], axis=1).max()) if inside.any() else 0
        units.append(
            Unit(
                name=f"slices {start}:{stop}",
                marks=(index,),
                params={"start": start, "stop": stop, "sources": [sources[i] for i in np.flatnonzero(inside)]},
                writes=(Region(layout.labels(name), (start, 0, 0), (stop, *shape[1:])),),
                memory=(stop - start) * shape[1] * shape[2] * 9 + 2 * largest + (64 << 20),
            )
        )
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
    return Stage(stage_name(name), work, {"name": name, "instances": digest}, upstream, tuple(units), len(units))


def prepare(store: RunStore, name: str) -> None:
    """Create the label images, instance ids and semantic, and their OME-Zarr metadata."""
    levels = layout.level_count(store.shape)
    for image, dtype in ((name, "uint32"), (layout.semantic_name(name), "uint8")):
        store.delete(layout.labels_group(image))
        for level in range(levels):
            store.new_array(
                layout.labels(image, level),
                shape=layout.level_shape(store.shape, level),
                dtype=dtype,
                chunks=layout.level_chunks(level),
                dims=("z", "y", "x"),
            )
            ome.put_coordinates(store, f"{layout.labels_group(image)}/{layout.level_group(level)}", 1 << level)
        # a level of labels takes every other voxel: its centre is that voxel's
        scales = ome.multiscales(image, layout.LABELS_VARIABLE, levels, store.voxel_size, store.origin, sampled=True)
        store.group(layout.labels_group(image)).attrs["ome"] = {
            "version": "0.5",
            "multiscales": scales,
            "image-label": {"source": {"image": "../../"}},
        }
    folder = store.group("labels")
    known = folder.attrs.get("ome", {})
    listed = known.get("labels", []) if isinstance(known, dict) else []
    names = sorted({*listed, name, layout.semantic_name(name)}) if isinstance(listed, list) else []
    folder.attrs["ome"] = {"version": "0.5", "labels": names}


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Paint one slab on all levels."""
    store = RunStore.open(context.url, "r+")
    name, start, stop = settings["name"], unit.params["start"], unit.params["stop"]
    slab = np.zeros((stop - start, *store.shape[1:]), np.uint32)
    groups: dict[int, stored.StoredInstances] = {}
    for group, index, label in unit.params["sources"]:
        if group not in groups:
            groups[group] = stored.read(store, layout.group(layout.instances(name), group))
        (z0, z1), y, x = stored.as_box(groups[group].box[index])
        low, high = max(z0, start), min(z1, stop)
        mask = groups[group].mask(index)[low - z0 : high - z0]
        slab[low - start : high - start, slice(*y), slice(*x)][mask] = label
    for level in range(layout.level_count(store.shape)):
        part = slab[:: 1 << level, :: 1 << level, :: 1 << level]
        where = slice(start >> level, (start >> level) + part.shape[0])
        store.array(layout.labels(name, level))[where] = part
        store.array(layout.labels(layout.semantic_name(name), level))[where] = (part > 0).astype(np.uint8)
    return None
