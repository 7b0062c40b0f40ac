"""Rank: what the tomogram looks like around each candidate and around random places, for `kernels.verify`.

Features that know texture but not extent propose places; radial profiles of the density say which of them are the same
particle. A unit is a block of the volume with the candidates, or the random places, that lie in it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import verify
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Shape3

BLOCK = 96
"""Side of the blocks that places are grouped by, in voxels."""

BACKGROUND = 512
"""Random places that the noise is measured at."""


def stage_name(name: str) -> str:
    return f"rank/{name}"


def group_path(name: str, index: int) -> str:
    return f"{layout.proposals(name)}/profiles{index:05d}"


def blocks(points: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Indices of the points of each block that has any, blocks in (z, y, x) order."""
    if len(points) == 0:
        return []
    _, inverse = np.unique((points // BLOCK).astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


def background_places(shape: Shape3) -> NDArray[np.float64]:
    """The same random places for a shape each time, (BACKGROUND, 3)."""
    return np.random.default_rng(0).uniform(0, np.array(shape) - 1, (BACKGROUND, 3)).round()


def plan(store: RunStore, name: str, candidates: NDArray[np.float64], upstream: str) -> Stage:
    """Units for the blocks of the candidates, then for those of the random places."""
    radius = query_radius(store, name)
    halo = verify.profile(radius).halo
    voxels = math.prod(min(BLOCK + 2 * halo, n) for n in store.shape)
    units: list[Unit] = []
    for kind, places in (("candidates", candidates), ("background", background_places(store.shape))):
        for members in blocks(places):
            index = len(units)
            units.append(
                Unit(
                    name=f"{kind} {index}",
                    marks=(index,),
                    params={"kind": kind, "index": index, "points": places[members].tolist()},
                    writes=(Region(group_path(name, index), (), ()),),
                    # the box, its padded copies, and the transforms of its correlation
                    memory=voxels * (4 + 4 * 4 + 2 * 16) + (96 << 20),
                )
            )
    settings = {"name": name, "radius": radius, "candidates": len(candidates)}
    return Stage(stage_name(name), work, settings, upstream, tuple(units), len(units))


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Describe the places of one block where the query's profile fits best near them; random ones also as they are."""
    store = RunStore.open(context.url, "r+")
    name = settings["name"]
    shells = verify.profile(settings["radius"])
    template = np.asarray(store.read(f"{layout.query(name)}/template"), float)
    volume, points = store.array(layout.tomogram()), np.asarray(unit.params["points"], float)
    centres, profiles = verify.describe(volume, points, shells, template)
    path = group_path(name, unit.params["index"])
    store.put(f"{path}/centres", centres, ("place", "axis"), {"units": "voxel"})
    store.put(f"{path}/profiles", profiles, ("place", "shell"))
    if unit.params["kind"] == "background":
        store.put(f"{path}/unmoved", verify.describe(volume, points, shells)[1], ("place", "shell"))
    return None


def describe_query(store: RunStore, name: str, centres: NDArray[np.float64], sizes: list[int]) -> None:
    """Profiles of the prompted instances (centre of mass, voxels), written beside the query with their template."""
    radius = verify.equivalent_radius(float(np.median(sizes)))
    shells = verify.profile(radius)
    volume = store.array(layout.tomogram())
    centres, template = verify.query_template(volume, centres, shells)
    own = np.concatenate([verify.describe(volume, centre, shells)[1] for centre in centres])
    # also by the very steps that proposals go through, so that both stand alike
    profiles = np.concatenate([verify.describe(volume, centre, shells, template)[1] for centre in centres])
    store.put(f"{layout.query(name)}/unmoved", own, ("instance", "shell"))
    store.put(f"{layout.query(name)}/template", template, ("shell",))
    store.put(f"{layout.query(name)}/profiles", profiles, ("instance", "shell"), {"radius": radius})


def query_radius(store: RunStore, name: str) -> float:
    """Equivalent radius of the prompted instances in voxels."""
    return float(str(store.array(f"{layout.query(name)}/profiles").attrs["radius"]))


def gather(store: RunStore, name: str, stage: Stage) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (n, 3) and scores (n,) in (0, 1] of the candidates, once all units are done."""
    paths: dict[str, list[str]] = {"candidates": [], "background": []}
    for unit in stage.units:
        paths[unit.params["kind"]].append(group_path(name, unit.params["index"]))

    def every(kind: str, array: str) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(store.read(f"{path}/{array}"), float) for path in paths[kind]])

    centres, profiles = every("candidates", "centres"), every("candidates", "profiles")
    unmoved, fitted = every("background", "unmoved"), every("background", "profiles")
    radius = query_radius(store, name)
    options = [np.asarray(store.read(f"{layout.query(name)}/{array}"), float) for array in ("profiles", "unmoved")]
    queries = verify.best_described(centres, profiles, options, unmoved, radius, fitted)
    distance = verify.distances(centres, profiles, queries, unmoved, radius, fitted)
    return centres, verify.similarity(distance)
