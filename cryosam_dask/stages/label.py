"""Label: distinct instances → OME-Zarr labels, instance ids and semantic, on the image's levels.

The driver chooses the instances and numbers them (`store.picks`); a unit paints a box of voxels on all levels. Where
instances overlap, the one with the better score is on top.

Where several kinds compete, the labels of a kind leave out the voxels of better instances of other kinds, so that
labels of different kinds have no voxel in common. The image `labels/kinds` says which kind each voxel has.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import LEVELS, Bench, Cost, cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_image_box
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, ome, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Json, Shape3

PAINTED: Shape3 = (32, 256, 1024)
"""Voxels that are in memory at a time."""

SECONDS = 10e-9
"""Per voxel of painting, writing apart."""

Source = tuple[int, int, int] | tuple[int, int, int, str]
"""(group, index in the group, label), and the instance's query if that is not the painted one."""


def stage_name(name: str) -> str:
    return STAGE.stage_name(name)


def plan(
    store: RunStore, name: str, boxes: Array, sources: Sequence[Source], upstream: str, kinds: Sequence[str] = ()
) -> Stage:
    """One unit per box of whole chunks on all levels.

    boxes : (n, 6) of the instances to paint, in painting order (worst first); sources : where each one's mask is
    kinds : that were told apart; with the name `layout.KINDS`, the image of all kinds
    """
    units = []
    for index, box in enumerate(layout.image_boxes(store.shape)):
        low, high = (tuple(int(v) for v in side) for side in zip(*box, strict=True))
        inside = np.flatnonzero((boxes[:, :3] < high).all(axis=1) & (boxes[:, 3:] > low).all(axis=1))
        sizes = np.prod(boxes[inside, 3:] - boxes[inside, :3], axis=1)
        packed = min(stored.KEPT_BYTES, int(sizes.sum()) // 8)
        painted = math.prod(min(n, m) for n, m in zip((b - a for a, b in box), PAINTED, strict=True))
        units.append(
            Unit(
                name=f"voxels {','.join(f'{a}:{b}' for a, b in box)}",
                marks=(index,),
                params={
                    "box": [list(side) for side in box],
                    "sources": [sources[i] for i in inside.tolist()],
                },
                writes=(Region(layout.labels(name), low, high),),
                # the ids and what is not zero of them; packed masks; one unpacked, and as it comes from that
                memory=painted * (4 + 1) + packed + 2 * int(sizes.max(initial=0)) + BESIDES,
            )
        )
    digest = hashlib.sha256(json.dumps(list(sources)).encode()).hexdigest()
    settings: Json = {"name": name, "instances": digest, "box": list(layout.INGEST_BOX)}
    if kinds:
        settings["kinds"] = list(kinds)
    return Stage(stage_name(name), work, settings, upstream, tuple(units), len(units))


def prepare(store: RunStore, name: str, kinds: Sequence[str] = ()) -> None:
    """Create the label images, instance ids and semantic, and their OME-Zarr metadata; or with `layout.KINDS` as the
    name the image of all kinds, whose metadata says which number is which kind."""
    levels = layout.level_count(store.shape)
    semantic = layout.semantic_name(name)
    images = {name: "uint32", semantic: "uint8"}
    described: dict[str, dict[int, dict[str, Any]]] = {name: {}, semantic: {1: {"name": name}}}
    if kinds and name not in kinds:
        images, described = {name: "uint8"}, {name: {i: {"name": kind} for i, kind in enumerate(kinds, 1)}}
    elif name in picks.names(store):
        described[name] = ome.described_instances(picks.read(store, name))
    for image, dtype in images.items():
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
        attributes = ome.label_attributes(image, levels, store.voxel_size, store.origin, described[image])
        store.group(layout.labels_group(image)).attrs["ome"] = attributes
    folder = store.group(layout.LABELS)
    known = folder.attrs.get("ome", {})
    listed = known.get("labels", []) if isinstance(known, dict) else []
    names = sorted({*listed, *images}) if isinstance(listed, list) else []
    folder.attrs["ome"] = {"version": "0.5", "labels": names}


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Paint one box of voxels on all levels."""
    store = context.store
    name = settings["name"]
    box: list[tuple[int, int]] = [(int(a), int(b)) for a, b in unit.params["box"]]
    kinds = settings.get("kinds", [name])
    masks = {kind: stored.Masks(store, layout.instances(kind), stored.KEPT_BYTES // len(kinds)) for kind in kinds}
    for level in range(layout.level_count(store.shape)):
        # voxels of the level inside the box: every 2^level-th one, the first included
        starts = [a >> level for a, _ in box]
        sizes = [-(-b // (1 << level)) - start for (_, b), start in zip(box, starts, strict=True)]
        for part in geometry.boxes((sizes[0], sizes[1], sizes[2]), PAINTED):
            low = [start + a for start, (a, _) in zip(starts, part, strict=True)]
            # filled, for pages of zeros would only be there once something is painted on them
            painted = np.full([b - a for a, b in part], 0, np.uint32)
            for group, index, label, *kind in unit.params["sources"]:
                _paint(painted, low, level, masks[kind[0] if kind else name], (group, index, label))
            where = tuple(slice(a, a + n) for a, n in zip(low, painted.shape, strict=True))
            if name not in kinds:  # the image of all kinds
                store.array(layout.labels(name, level))[where] = painted.astype(np.uint8)
                continue
            store.array(layout.labels(name, level))[where] = painted
            store.array(layout.labels(layout.semantic_name(name), level))[where] = (painted > 0).view(np.uint8)
    return None


def _paint(painted: Array, low: list[int], level: int, masks: stored.Masks, source: tuple[int, int, int]) -> None:
    """Set an instance's voxels that are in a part of a level; the part begins at `low` in voxels of the level."""
    group, index, label = source
    box = masks.box(group, index)
    step = 1 << level
    # the level's voxels v that lie at v · step in the mask's box and are in the part
    first = [max(-(-a // step), start) for (a, _), start in zip(box, low, strict=True)]
    last = [min(-(-b // step), start + n) for (_, b), start, n in zip(box, low, painted.shape, strict=True)]
    if any(a >= b for a, b in zip(first, last, strict=True)):
        return
    taken = tuple(
        slice(a * step - z, (b - 1) * step - z + 1, step) for a, b, (z, _) in zip(first, last, box, strict=True)
    )
    there = tuple(slice(a - start, b - start) for a, b, start in zip(first, last, low, strict=True))
    painted[there][masks.mask(group, index)[taken]] = label


def kinds_of(store: RunStore) -> list[str]:
    """The kinds that the image of all kinds shows; none where there is no such image."""
    record = marks.found_stage(store, stage_name(layout.KINDS)) or {}
    return list(record.get("settings", {}).get("kinds", ()))


def places_of_kinds(store: RunStore, query: str) -> Iterable[str]:
    """Paths of the image of all kinds and its marks, if the query is one of the kinds."""
    if query in kinds_of(store):
        yield layout.labels_group(layout.KINDS)
        yield layout.marks(stage_name(layout.KINDS))


def _places(store: RunStore, query: str) -> Iterable[str]:
    yield layout.labels_group(query)
    yield layout.labels_group(layout.semantic_name(query))
    yield from places_of_kinds(store, query)


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    combined = query not in settings.get("kinds", (query,))
    for image in (query,) if combined else (query, layout.semantic_name(query)):
        yield from ((layout.labels(image, level), None) for level in range(layout.level_count(store.shape)))


def _mend(store: RunStore, path: re.Match[str]) -> None:
    level = int(path["level"])
    group = layout.member(layout.labels_group(path["name"]), layout.level_group(level))
    ome.put_coordinates(store, group, 1 << level)


def _cost(bench: Bench, unit: Unit) -> Cost:
    """Instance ids and what is semantic; the image of all kinds has one byte a voxel."""
    voxels = written(unit)
    ids = unit.writes[0].array != layout.labels(layout.KINDS)
    return cost(0, (5 if ids else 1) * voxels * LEVELS, voxels * SECONDS, "labels")


def _coordinates(name: str, level: int, axis: str) -> str:
    return layout.member(layout.member(layout.labels_group(name), layout.level_group(level)), axis)


STAGE = Declaration(
    "label",
    "segment",
    words="Labels",
    part="segmentation",
    per="query",
    made_from=("select",),
    described=True,
    arrays=(
        Arrays(layout.pattern(layout.labels), "stage", by_image_box, "labels"),
        Arrays(layout.pattern(_coordinates), "coordinates", mend=_mend),
    ),
    expected=_expected,
    places=_places,
    cost=_cost,
)
