"""Masks of the places that were recognized, so that those of them that are proposed need no look of their own.

A look at a tile answers all places in it, and their masks are what it costs least. A place whose mask comes close to
where the look ends is looked at again: less of its surroundings was seen than around a click.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.stages.boxes import Boxes
from cryosam_dask.stages.segment_volume import instance_of
from cryosam_dask.stages.sight import Sight
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Json, Look

EDGE = 6
"""Voxels of its level, at least, between a mask that is kept and where the look ends, unless the level ends there."""

SEEN = "seen"
"""Parameter of a unit: (prompt, tile, mask in that tile) of what it need not look at."""


class Seen(NamedTuple):
    """Where a look was: its box, in a level of a shape."""

    box: Box
    level: tuple[int, int, int]

    def holds(self, mask: Box) -> bool:
        """Whether all around a mask in a box of the level was seen, too."""
        sides = zip(mask, self.box, self.level, strict=True)
        return all((a >= s + EDGE or s == 0) and (b <= t - EDGE or t == n) for (a, b), (s, t), n in sides)


def write(store: RunStore, name: str, index: int, seen: Seen, look: Look, middles: Array) -> None:
    """Write the masks of the places of one tile, asked for from their middles (n, 3) in voxels of the look."""
    start = np.array([a for a, _ in seen.box])
    rows, boxes, masks = [], [], []
    for row, (low, mask) in enumerate(look.masks(middles)):
        if not mask.any():
            continue
        own = geometry.bounds(mask)
        z, y, x = ((int(a + s), int(b + s)) for (a, b), s in zip(own, low + start, strict=True))
        if seen.holds((z, y, x)):
            rows.append(row)
            boxes.append((z[0], y[0], x[0], z[1], y[1], x[1]))
            masks.append(mask[geometry.box_slices(own)])
    quality = look.quality(middles)[rows].tolist()
    where = layout.group(layout.seen_masks(name), index)
    stored.write(store, where, stored.collect(rows, boxes, masks, quality, [1.0] * len(rows)))


def told(store: RunStore, name: str, stage: Stage) -> Stage:
    """The segmentation of a query's proposals, whose units know which masks were seen."""
    if not stage.settings.get("sight") or layout.seen_masks(name) not in store:
        return stage
    at: dict[tuple[float, ...], tuple[int, int]] = {}
    for index in range(len(store.groups(layout.seen_masks(name)))):
        rows = store.read(layout.instance_array(layout.seen_masks(name), index, "prompt"))
        centres = store.read(layout.look_array(name, index, "centres"))[rows]
        at |= {tuple(centre): (index, i) for i, centre in enumerate(centres.tolist())}

    def with_masks(unit: Unit) -> Unit:
        places = zip(unit.params["prompts"], map(tuple, unit.params["points"]), strict=True)
        seen = [[prompt, *at[place]] for prompt, place in places if place in at]
        return replace(unit, params={**unit.params, SEEN: seen}) if seen else unit

    return replace(stage, units=tuple(map(with_masks, stage.units)))


def masks(store: RunStore, name: str, settings: Json, unit: Unit) -> dict[int, Instance | None]:
    """The masks of a unit's prompts that were seen, by prompt; none if any can't be read.

    settings : of the stage
    """
    seen = unit.params.get(SEEN, ())
    if not seen:
        return {}
    sight = Sight(**settings["sight"])
    boxes, where = Boxes(store, sight.level, sight.bright), layout.seen_masks(name)
    out: dict[int, Instance | None] = {}
    try:
        for prompt, group, row in stored.read_rows(store, where, seen):
            low: NDArray[np.int64] = np.array([a for a, _ in stored.as_box(group.box[row])])
            out[prompt] = instance_of(boxes, prompt, low, group.mask(row), float(group.quality[row]))
    except StoreError:
        return {}
    return out
