"""Rank: what the tomogram looks like around each candidate and around random places, for `kernels.likeness`.

Features that describe texture but not extent propose places. Radial profiles of the density show which of them have the
same particle. A unit is a block of the volume with the candidates or random places in it, or several blocks that have
few.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels import likeness, radial_profiles
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, by_number
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json, Shape3

BLOCK = 96
"""Side of the blocks that places are grouped by, in voxels."""

PLACES = 64
"""Places in a unit that blocks with few places share."""

BACKGROUND = 512
"""Number of random places, at which the noise is measured."""

PLACE = 1.9e-3
"""Seconds of describing the density around one place."""

Negatives = Callable[[float], NDArray[np.float64]]


def stage_name(name: str) -> str:
    return STAGE.stage_name(name)


def blocks(points: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Indices of the points of each block that has any, blocks in (z, y, x) order."""
    if len(points) == 0:
        return []
    _, inverse = np.unique((points // BLOCK).astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


def bundles(points: NDArray[np.float64]) -> list[list[NDArray[np.intp]]]:
    """Blocks in a row that have `PLACES` points together, or one block with more."""
    out: list[list[NDArray[np.intp]]] = []
    for block in blocks(points):
        if out and sum(map(len, out[-1])) + len(block) <= PLACES:
            out[-1].append(block)
        else:
            out.append([block])
    return out


def background_places(shape: Shape3) -> NDArray[np.float64]:
    """The same random places for a shape each time, (BACKGROUND, 3)."""
    return np.random.default_rng(0).uniform(0, np.array(shape) - 1, (BACKGROUND, 3)).round()


def plan(store: RunStore, name: str, candidates: NDArray[np.float64], upstream: str) -> Stage:
    """Units for the blocks of the candidates, then for those of the random places."""
    radius, shape = query_radius(store, name), store.shape
    shells = radial_profiles.profile(radius)
    units: list[Unit] = []
    for kind, places in (("candidates", candidates), ("background", background_places(shape))):
        for bundle in bundles(places):
            index = len(units)
            units.append(
                Unit(
                    name=f"{kind} {index}",
                    marks=(index,),
                    params={
                        "kind": kind,
                        "index": index,
                        "points": _rows(places[np.concatenate(bundle)]),
                        "blocks": [len(block) for block in bundle],
                    },
                    writes=(Region(layout.profiles(name, index), (), ()),),
                    memory=max(unit_memory(places[block], shape, shells) for block in bundle),
                )
            )
    settings = {"name": name, "radius": radius, "candidates": len(candidates), "block": BLOCK, "places": PLACES}
    return Stage(stage_name(name), work, settings, upstream, tuple(units), len(units))


def _rows(points: NDArray[np.float64]) -> list[list[float]]:
    """The points as lists, equal numbers as one object: candidates stand on a grid, and the driver holds them all."""
    numbers, where = np.unique(points, return_inverse=True)
    objects: list[float] = numbers.tolist()
    z, y, x = ([objects[i] for i in column] for column in where.reshape(points.shape).T)
    return [list(point) for point in zip(z, y, x, strict=True)]


def unit_memory(points: NDArray[np.float64], shape: Shape3, shells: radial_profiles.Profile) -> int:
    """Bytes of describing one block's places."""
    low, high = radial_profiles.reached(points, shape, shells)
    return radial_profiles.working_bytes(high - low, len(points), shells) + BESIDES


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Describe, block by block, where the query's profile fits best near each place; random places also unmoved."""
    store = context.store
    name = settings["name"]
    shells = radial_profiles.profile(settings["radius"])
    template = np.asarray(store.read(layout.query_array(name, "template")), float)
    volume = store.array(layout.tomogram())
    every = np.split(np.asarray(unit.params["points"], float), np.cumsum(unit.params["blocks"])[:-1])
    described = [radial_profiles.describe(volume, points, shells, template) for points in every]
    index = unit.params["index"]
    centres, profiles = (np.concatenate(part) for part in zip(*described, strict=True))
    store.put(layout.profile_array(name, index, "centres"), centres, ("place", "axis"), {"units": "voxel"})
    store.put(layout.profile_array(name, index, "profiles"), profiles, ("place", "shell"))
    if unit.params["kind"] == "background":
        unmoved = [radial_profiles.describe(volume, points, shells)[1] for points in every]
        store.put(layout.profile_array(name, index, "unmoved"), np.concatenate(unmoved), ("place", "shell"))
    return None


def describe_query(store: RunStore, name: str, centres: NDArray[np.float64], sizes: list[int]) -> None:
    """Profiles of the prompted instances (centre of mass, voxels), written beside the query with their template."""
    radius = geometry.equivalent_radius(float(np.median(sizes)))
    shells = radial_profiles.profile(radius)
    volume = store.array(layout.tomogram())
    centres, template = radial_profiles.query_template(volume, centres, shells)
    own = np.concatenate([radial_profiles.describe(volume, centre, shells)[1] for centre in centres])
    # also by the very steps that proposals go through, so that both stand alike
    profiles = np.concatenate([radial_profiles.describe(volume, centre, shells, template)[1] for centre in centres])
    store.put(layout.query_array(name, "unmoved"), own, ("instance", "shell"))
    store.put(layout.query_array(name, "template"), template, ("shell",))
    store.put(layout.query_array(name, "profiles"), profiles, ("instance", "shell"), {"radius": radius})


def query_radius(store: RunStore, name: str) -> float:
    """Equivalent radius of the prompted instances in voxels."""
    return float(str(store.array(layout.query_array(name, "profiles")).attrs["radius"]))


def gather(
    store: RunStore, name: str, stage: Stage, negatives: Negatives
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Centres (n, 3) and scores (n,) in (0, 1] of the candidates, once all units are done; how many were rejected.

    negatives : gives the profiles of negative examples, at the contrast that a borrowed query has in this tomogram
    """
    indices: dict[str, list[int]] = {"candidates": [], "background": []}
    for unit in stage.units:
        indices[unit.params["kind"]].append(unit.params["index"])

    def every(kind: str, array: layout.ProfileArray) -> NDArray[np.float64]:
        # one array, filled: parts and their concatenation would be there twice
        paths = [layout.profile_array(name, index, array) for index in indices[kind]]
        shapes = [store.array(path).shape for path in paths]
        out = np.empty((sum(n for n, _ in shapes), shapes[0][1]))
        stops = np.cumsum([n for n, _ in shapes])
        for path, (count, _), stop in zip(paths, shapes, stops, strict=True):
            out[stop - count : stop] = store.read(path)
        return out

    centres, profiles = every("candidates", "centres"), every("candidates", "profiles")
    unmoved, fitted = every("background", "unmoved"), every("background", "profiles")
    radius = query_radius(store, name)
    own = [layout.query_array(name, "profiles"), layout.query_array(name, "unmoved")]
    options = [np.asarray(store.read(path), float) for path in own]
    contrasts = store.array(own[0]).attrs.get("contrasts")
    contrast = 1.0
    if isinstance(contrasts, list):
        factors, mean = [float(str(factor)) for factor in contrasts], float(store.info["statistics"]["mean"])
        queries, contrast = likeness.best_contrasted(centres, profiles, options, factors, mean, unmoved, radius, fitted)
    else:
        queries = likeness.best_described(centres, profiles, options, unmoved, radius, fitted)
    distance = likeness.distances(centres, profiles, queries, unmoved, radius, fitted, negatives(contrast))
    like = np.isfinite(distance)
    return centres[like], likeness.similarity(distance[like]), int((~like).sum())


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    arrays: tuple[layout.ProfileArray, ...] = ("centres", "profiles")
    return ((layout.profile_array(query, i, array), i) for i in done for array in arrays)


def _cost(bench: Bench, unit: Unit) -> Cost:
    block = math.prod(min(3 * BLOCK // 2, n) for n in bench.store.shape) * bench.voxel_bytes
    return cost(block, 0, len(unit.params["points"]) * PLACE, "tomogram")


STAGE = Declaration(
    "rank",
    "match",
    words="Ranking by profiles",
    part="matching",
    per="query",
    made_from=("match", "negative"),
    arrays=(Arrays(layout.pattern(layout.profile_array), "unit", by_number),),
    expected=_expected,
    places=lambda store, query: (layout.proposals(query),),
    cost=_cost,
)
