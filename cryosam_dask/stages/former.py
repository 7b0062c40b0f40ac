"""Masks of a query's former proposals, which are not segmented again where the same place is proposed again.

A mask depends on the tomogram, the segmenter, and the place, not on why the place is proposed. When decisions change
what is proposed, the masks so far are kept (`pipeline.recut`) until the new proposals are segmented, or the query goes.
Prompts that share a look of a segmenter of volumes have slightly other masks than alone: these are known by whole
groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.kernels.merging import center_of_mass
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.stages.base import Unit, fingerprint
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Json

KNOWN = "known"
"""Parameter of a unit: (prompt, group, instance in that group of former masks) of what it need not segment, −1 for the
instance where nothing was segmented."""


def made_with(settings: Json) -> str:
    """A fingerprint of those settings of a segmentation that masks depend on."""
    return fingerprint({key: settings.get(key) for key in ("propagation", "sight")})


def alone(settings: Json) -> bool:
    """Whether a mask is the same, whichever prompts are in a group with its own; settings : of the stage."""
    extended = (settings.get("sight") or {}).get("extended", False)
    return volume_info(settings["propagation"]["segmenter"]) is None or bool(extended)


def masks(store: RunStore, name: str, unit: Unit) -> dict[int, Instance | None]:
    """The masks of a unit's prompts that are known, None where nothing was segmented; none if any can't be read."""
    rows = unit.params.get(KNOWN, ())
    out: dict[int, Instance | None] = {prompt: None for prompt, _, index in rows if index < 0}
    try:
        for prompt, group, index in stored.read_rows(store, layout.former(name), [row for row in rows if row[2] >= 0]):
            z0, y0, x0, z1, y1, x1 = (int(v) for v in group.box[index])
            out[prompt] = Instance(prompt, (z0, y0, x0, z1, y1, x1), group.mask(index), float(group.quality[index]), {})
    except StoreError:
        return {}
    return out


def at(store: RunStore, name: str, points: NDArray[np.float64], near: float) -> dict[int, tuple[Bool, Box]]:
    """The mask, and its box, that was segmented at each of some points (n, 3), by the number of the point.

    near : voxels that its centre of mass may be from the point
    """
    where = layout.former(name)
    masks, nearest = stored.Masks(store, where), np.full(len(points), near)
    out: dict[int, tuple[Bool, Box]] = {}
    for group in range(len(store.groups(where)) if where in store else 0):
        if layout.instance_array(where, group, "bits") not in store:
            continue
        low, high = np.split(store.read(layout.instance_array(where, group, "box")), 2, axis=1)
        for index, number in np.argwhere(((points >= low[:, None]) & (points < high[:, None])).all(axis=2)).tolist():
            mask, box = masks.mask(group, index), masks.box(group, index)
            away = float(np.linalg.norm(center_of_mass(np.array([a for a, _ in box]), mask) - points[number]))
            if away <= nearest[number]:
                nearest[number], out[number] = away, (mask, box)
    return out
