"""Recognize: tiles of the tomogram → the places where a segmenter of volumes sees something, and what each is like.

Matching by features narrows the tomogram down to the tiles with similar places; the segmenter looks at these, at the
level and in the contrast that the query was seen in. What it sees of each place is compared with the query by the
driver (`kernels.descriptors`).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import descriptors
from cryosam_dask.kernels.descriptors import Places, Query
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages import learned, negative, seen_masks
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.boxes import Boxes, grown
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_number
from cryosam_dask.stages.seen_masks import Seen
from cryosam_dask.stages.sight import Sight, model_of
from cryosam_dask.stages.volume_pieces import TILE, Pieces, pieces, query_of, tiles
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Answers, Array, Float32, Json

Float64 = NDArray[np.float64]

LEAST = 0.2
"""Centrality from which a place is looked into."""

PLACES = 12e-6
"""About how many places there are in a voxel of a look, for planning: 3,058 in 200 × 928 × 960 voxels, between small
globules."""


def stage_name(name: str) -> str:
    return STAGE.stage_name(name)


def plan(store: RunStore, name: str, settings: PropagationSettings, sight: Sight, upstream: str) -> Stage:
    """One unit for each tile."""
    info = volume_info(settings.segmenter)
    assert info is not None
    boxes = Boxes(store, sight.level, sight.bright)
    units = []
    for index, tile in enumerate(tiles(boxes.shape, info.multiple)):
        seen = grown(tile, info.halo, boxes.shape)
        shape = tuple(b - a for a, b in seen)
        units.append(
            Unit(
                name=f"tile {index}",
                marks=(index,),
                params={"index": index, "tile": [list(side) for side in tile], "look": list(shape)},
                writes=(Region(layout.looks(name, index), (), ()),),
                memory=BESIDES
                + info.look_bytes((shape[0], shape[1], shape[2]))
                + 12 * math.prod(shape) * 8**sight.level,
            )
        )
    described = {
        "name": name,
        "segmenter": settings.segmenter,
        "precision": settings.precision,
        "weights": weights_identity(settings.segmenter),
        "tile": list(TILE),
        "least": LEAST,
        "edge": seen_masks.EDGE,
        **sight.to_json(),
    }
    return Stage(stage_name(name), work, described, upstream, tuple(units), len(units), True, info.weights_bytes)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Look at one tile and write what is seen at each place in it."""
    store, name, index = context.store, settings["name"], unit.params["index"]
    model, info = model_of(settings["segmenter"], context.device, settings["precision"])
    boxes = Boxes(store, settings["level"], settings["bright"])
    z, y, x = ((int(a), int(b)) for a, b in unit.params["tile"])
    tile: Box = (z, y, x)
    if settings["extended"]:
        query = query_of(store, layout.query_array(name, "descriptors"))
        there = pieces(model, info, boxes, tile, query)
        _write_pieces(store, name, index, boxes, there, query)
        return UnitResult({"places": there.count})
    seen = grown(tile, info.halo, boxes.shape)
    start = np.array([a for a, _ in seen])
    look = model.look(boxes.read(seen))
    places, centrality = look.centres(settings["least"])
    low, high = (np.array(side) - start for side in zip(*tile, strict=True))
    own = ((places >= low) & (places < high)).all(axis=1)
    answers = look.answer(places[own])
    seen_masks.write(store, name, index, Seen(seen, boxes.shape), look, answers.middle)
    _write(store, name, index, boxes, start, answers, centrality[own])
    return UnitResult({"places": int(own.sum())})


def _write(
    store: RunStore, name: str, index: int, boxes: Boxes, start: NDArray[np.int64], seen: Answers, centrality: Float64
) -> None:
    def put(array: layout.LookArray, values: Array, *dims: str) -> None:
        store.put(layout.look_array(name, index, array), values, ("place", *dims))

    put("centres", boxes.to_voxels(seen.middle + start), "axis")
    put("descriptors", seen.descriptor.astype(np.float32), "channel")
    put("quality", seen.quality.astype(np.float32))
    put("centrality", np.asarray(centrality, np.float32))
    put("sizes", seen.size * 8**boxes.level)
    put("classes", seen.classes, "class")


def _write_pieces(
    store: RunStore, name: str, index: int, boxes: Boxes, there: Pieces, query: tuple[Float32, Float32]
) -> None:
    """Write the pieces of a tile as places, each where it is most like the query."""
    numbers = range(1, there.count + 1)
    seen = Answers(
        np.repeat(query[0][None], there.count, axis=0),
        np.array([there.quality(n) for n in numbers], np.float32),
        np.array([there.size(n) for n in numbers], np.int64),
        np.array([there.seed(n) for n in numbers], float).reshape(-1, 3),
        np.repeat(query[1][None], there.count, axis=0),
    )
    _write(store, name, index, boxes, np.zeros(3, np.int64), seen, np.ones(there.count))


def gather(store: RunStore, name: str, stage: Stage) -> tuple[Float64, Float64, int]:
    """Centres (n, 3) and probabilities (n,) of the places, once all units are done; how many negatives rejected."""
    parts = {
        array: [store.read(layout.look_array(name, u.params["index"], array)) for u in stage.units] for array in _READ
    }
    every = {array: np.concatenate(values).astype(float) for array, values in parts.items()}
    places = Places(*(every[array] for array in _READ))
    if stage.settings["extended"]:
        return places.centres, places.quality, 0
    size = float(np.median(store.read(layout.query_array(name, "sizes"))))
    unlike = negative.descriptors(store, name)
    seen = store.array(layout.query_array(name, "descriptors"))
    qualities: Any = seen.attrs["quality"]
    query = Query(np.asarray(seen[:], float), float(np.mean(qualities)), size, geometry.equivalent_radius(size), unlike)
    clicked_here = store.array(layout.query_array(name, "points")).shape[0] > 0
    weights = descriptors.WEIGHTS if clicked_here else descriptors.STRICT
    result = learned.corrected(store, name, descriptors.probabilities(places, query, weights), places.descriptors)
    kept = result > 0
    return places.centres[kept], result[kept], int((~kept).sum()) if len(unlike) else 0


def seen(store: RunStore, name: str) -> tuple[Float64, Float64]:
    """Centres (n, 3) in voxels and descriptors (n, D) of all places that were looked at; none before there are any."""
    where = layout.proposals(name)
    arrays: tuple[layout.LookArray, layout.LookArray] = ("centres", "descriptors")
    filled = []
    for index in range(len(store.groups(where)) if where in store else 0):
        paths = [layout.look_array(name, index, array) for array in arrays]
        if all(path in store for path in paths) and store.array(paths[0]).shape[0]:
            filled.append([np.asarray(store.read(path), float) for path in paths])
    if not filled:
        return np.empty((0, 3)), np.empty((0, 0))
    return np.concatenate([part[0] for part in filled]), np.concatenate([part[1] for part in filled])


_READ: tuple[layout.LookArray, ...] = ("centres", "descriptors", "quality", "centrality", "sizes")

ARRAYS: tuple[layout.LookArray, ...] = (*_READ, "classes")
"""What is written of the places in a tile."""


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    looks = ((layout.look_array(query, i, array), i) for i in done for array in _READ)
    where = layout.seen_masks(query)
    masks = ((layout.instance_array(where, i, array), i) for i in done for array in stored.ARRAYS)
    return looks if settings["extended"] else itertools.chain(looks, masks)


def _cost(bench: Bench, unit: Unit) -> Cost:
    info = volume_info(bench.settings.propagation.segmenter)
    assert info is not None
    z, y, x = (-(-n // info.multiple) * info.multiple for n in unit.params["look"])
    places = round(PLACES * z * y * x)
    return cost(z * y * x * bench.voxel_bytes, 0, bench.look_seconds((z, y, x), places), "tomogram")


STAGE = Declaration(
    "recognize",
    "match",
    words="Recognizing",
    part="matching",
    per="query",
    made_from=("match", "negative"),
    arrays=(
        Arrays(layout.pattern(layout.look_array), "unit", by_number),
        Arrays(
            layout.pattern(lambda name, index, array: layout.instance_array(layout.seen_masks(name), index, array)),
            "unit",
            by_number,
        ),
    ),
    expected=_expected,
    places=lambda store, query: (layout.proposals(query),),
    cost=_cost,
)
