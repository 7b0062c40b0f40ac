"""Segment with a model that looks at boxes of the tomogram: groups of prompts → instance masks, without planes.

A unit is a group of neighbouring prompts, as in `stages.segment`. Prompts of the user are looked at on every level and
in both contrasts; proposals and negatives as the query was.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.models.info import VolumeInfo
from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages import looked_at
from cryosam_dask.stages.base import BESIDES
from cryosam_dask.stages.boxes import Boxes, levels_of
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.sight import MARGIN, MOST, Clicked, Sight, best, every_hypothesis, looks, model_of
from cryosam_dask.stages.volume_pieces import pieces, query_of, tile_of
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32, Point, VolumeSegmenter

AGAIN = 0.05
"""About what share of the proposals is looked at again, because of its mask's place in a tile; for planning."""


def unit_memory(info: VolumeInfo, prompts: int) -> int:
    """A look that the prompts of a unit share, at most."""
    side = 2 * (info.reach + MARGIN) + info.multiple
    voxels = min(max(MOST, side**3), prompts * (side + info.multiple) ** 3)
    return BESIDES + info.look_bytes((voxels, 1, 1)) + 8 * 4 * voxels


def unit_cost(bench: Bench, info: VolumeInfo, prompts: int, own: bool, pooled: bool) -> Cost:
    """The cost of a unit.

    own : whether its prompts are the user's, which are looked at in every way; pooled : whether they are proposals, of
    which most masks were seen when they were recognized
    """
    side = 2 * (info.reach + MARGIN) + info.multiple
    ways = 2 * len(levels_of(bench.store.shape)) if own else AGAIN if pooled else 1
    seconds = prompts * ways * bench.look_seconds((side, side, side), 2)
    read = prompts * ways * side**3 * bench.voxel_bytes + (prompts * bench.pool_bytes if pooled else 0)
    return cost(read, 0, seconds, "tomogram")


def instances_of(
    store: RunStore,
    settings: PropagationSettings,
    device: str,
    points: list[Point],
    sight: Sight,
    descriptors: str = "",
) -> list[Instance | None]:
    """The instance of each point, None where there is none.

    sight : how to look
    descriptors : the array of the query's, where the points are seeds of pieces of an extended structure
    """
    model, info = model_of(settings.segmenter, device, settings.precision)
    boxes = Boxes(store, sight.level, sight.bright)
    out: list[Instance | None] = [None] * len(points)
    places = np.asarray(points, float)
    if sight.extended:
        return _pieces(model, info, boxes, places, query_of(store, descriptors))
    for members, start, look in looks(model, info, boxes, places):
        own = boxes.from_voxels(places[members]) - start
        answers = look.answer(own)
        for i, (low, mask), quality in zip(members, look.masks(own), answers.quality, strict=True):
            out[i] = instance_of(boxes, i, low + start, mask, float(quality))
    return out


def _pieces(
    model: VolumeSegmenter,
    info: VolumeInfo,
    boxes: Boxes,
    points: NDArray[np.float64],
    query: tuple[Float32, Float32],
) -> list[Instance | None]:
    """The piece at each point, found again in its tile."""
    own = boxes.from_voxels(points)
    tiles = [tile_of(boxes.shape, info.multiple, point) for point in own]
    out: list[Instance | None] = [None] * len(points)
    for tile in dict.fromkeys(tiles):
        there = pieces(model, info, boxes, tile, query)
        for i in (i for i, other in enumerate(tiles) if other == tile):
            low, mask = there.at(own[i])
            quality = float(there.likeness[mask].mean()) if mask.any() else 0.0
            out[i] = instance_of(boxes, i, low, mask, quality)
    return out


def prompted(
    store: RunStore, settings: PropagationSettings, device: str, points: list[Point]
) -> tuple[list[Instance | None], list[list[str]], list[list[Clicked]]]:
    """The instance at each of a user's points, the doubts about it, and what was seen there in every way.

    A point that this process has looked at before is not looked at again.
    """
    instances: list[Instance | None] = []
    doubted, seen = [], []
    for i, point in enumerate(points):
        tried = looked_at.seen(store, settings, device, point)
        if tried is None:
            model, info = model_of(settings.segmenter, device, settings.precision)
            tried = every_hypothesis(model, info, store, np.asarray(point, float))
        chosen, doubts = best(tried)
        instances.append(of_click(store, chosen, i))
        doubted.append(doubts)
        seen.append(tried)
    return instances, doubted, seen


def of_click(store: RunStore, chosen: Clicked, prompt: int) -> Instance | None:
    """The mask of a click in voxels of the tomogram."""
    boxes = Boxes(store, chosen.hypothesis.level, chosen.hypothesis.bright)
    return instance_of(boxes, prompt, chosen.low, chosen.mask, chosen.hypothesis.quality)


def instance_of(boxes: Boxes, prompt: int, low: NDArray[np.int64], mask: Bool, quality: float) -> Instance | None:
    """An instance of the tomogram from a mask in a window of a level that begins at `low`; None where it is empty."""
    if not mask.any():
        return None
    tight = geometry.bounds(mask)  # a window is mostly empty
    low, mask = boxes.mask_to_voxels(low + np.array([a for a, _ in tight]), mask[geometry.box_slices(tight)])
    if not mask.any():
        return None
    own = geometry.bounds(mask)
    cut = mask[geometry.box_slices(own)]
    z, y, x = ((int(a + s), int(b + s)) for (a, b), s in zip(own, low, strict=True))
    return Instance(prompt, (z[0], y[0], x[0], z[1], y[1], x[1]), cut, quality, {})
