"""Doubts: why the masks of a query's prompts may not be what was meant, whichever segmenter made them."""

from __future__ import annotations

import math

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import doubt, hypotheses
from cryosam_dask.stages.boxes import Boxes, grown
from cryosam_dask.stages.sight import DOUBTS, SCORES
from cryosam_dask.store import layout
from cryosam_dask.store.instances import StoredInstances, as_box
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32

TWO = "it looks like two bodies that touch"
HELPS = "look at the mask; another click, or a point on what it must not have (--not), tells more"

OTHER_SIZE = 2.5
"""Factor by which a mask is larger or smaller than those of the other prompts, to be doubtful."""

VOXELS = 2_000_000
"""Of the density that is looked at around a mask, at most; a larger one is looked at on a coarser level."""

VOXEL_BYTES = 16
"""Of memory for each of these voxels, the store's chunks not counted."""


def working_bytes(box: Box) -> int:
    """Bytes of looking at a mask in a box, which may fill it, and at what is around it."""
    sides = [b - a for a, b in box]
    reach = 2 * doubt.reach_of(math.prod(sides))
    return VOXEL_BYTES * min(VOXELS, math.prod(side + reach for side in sides))


def of_group(store: RunStore, group: str, instances: StoredInstances, particles: bool) -> list[list[str]]:
    """Doubts about each instance of a group.

    particles : whether they are particles; pieces of extended structures have any shape
    """
    own = layout.member(group, SCORES)
    said = store.array(own).attrs.get(DOUBTS) if own in store else None
    every = _sentences(said)
    if len(every) != len(instances.prompt):
        every = [[] for _ in instances.prompt]
    if particles:
        for i, each in enumerate(every):
            each += [text for text in of_mask(store, instances.mask(i), as_box(instances.box[i])) if text not in each]
    return every


def of_sizes(sizes: list[int]) -> list[list[str]]:
    """Doubts about the size of each mask: of two prompts beside the other, of more beside the median of all."""
    if len(sizes) < 2:
        return [[] for _ in sizes]
    typical = sizes[::-1] if len(sizes) == 2 else [float(np.median(sizes))] * len(sizes)
    return [
        []
        if 1 / OTHER_SIZE <= own / other <= OTHER_SIZE
        else [f"its mask has {own} voxels where {other:.0f} are typical"]
        for own, other in zip(sizes, typical, strict=True)
    ]


def by_prompt(prompts: list[int], said: list[list[str]], count: int) -> list[list[str]]:
    """Doubts about each of `count` prompts, from those about the instances of `prompts`."""
    out: list[list[str]] = [[] for _ in range(count)]
    for prompt, each in zip(prompts, said, strict=True):
        out[prompt] += each
    return out


def read(store: RunStore, name: str) -> list[list[str]]:
    """What is doubtful of each prompt of a query; an empty list for a query that is of an earlier version, or lent."""
    points = layout.query_array(name, "points")
    return _sentences(store.array(points).attrs.get(DOUBTS)) if points in store else []


def _sentences(stored: object) -> list[list[str]]:
    """A stored attribute `DOUBTS`; an empty list for anything else."""
    if not isinstance(stored, list):
        return []
    return [[str(text) for text in each] if isinstance(each, list) else [] for each in stored]


def of_mask(store: RunStore, mask: Bool, box: Box) -> list[str]:
    """Doubts about the mask of a particle in its box."""
    said = [TWO] if doubt.two_bodies(mask) else []
    coarse, cells, level = _coarse(mask, box)
    large = np.count_nonzero(coarse) >= doubt.SMALLEST
    if large and not doubt.has_border(coarse, _around(Boxes(store, level), coarse, cells)):
        said.append(hypotheses.BORDERLESS)
    return said


def _coarse(mask: Bool, box: Box) -> tuple[Bool, Box, int]:
    """A mask on the finest level on which its surroundings are not too many voxels, its box there, and the level."""
    level = 0
    while True:
        cells, share = geometry.cell_shares(mask, box, 2**level)
        coarse: Bool = share >= 0.5
        reach = 2 * doubt.reach_of(int(coarse.sum()))
        if np.prod([float(side + reach) for side in coarse.shape]) <= VOXELS:
            return coarse, cells, level
        level += 1


def _around(boxes: Boxes, mask: Bool, box: Box) -> Float32:
    """The density of a mask's box and what `doubt.has_border` looks at around it, NaN beyond the tomogram."""
    by = doubt.reach_of(int(mask.sum()))
    there = grown(box, by, boxes.shape)
    out = np.full([n + 2 * by for n in mask.shape], np.nan, np.float32)
    begins = [a - (first - by) for (a, _), (first, _) in zip(there, box, strict=True)]
    values = boxes.read(there)
    out[tuple(slice(a, a + n) for a, n in zip(begins, values.shape, strict=True))] = values
    return out
