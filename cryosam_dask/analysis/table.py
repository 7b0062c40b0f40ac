"""The table of a query's instances: size, place, shape, similarity, neighbours, distances."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cryosam_dask import geometry
from cryosam_dask.analysis import shape
from cryosam_dask.analysis.distances import MaskPieces, point_distance, surface_distance
from cryosam_dask.analysis.instances import Bodies, Body, InstancePieces, Masks, batches, compute, rows, unread
from cryosam_dask.analysis.profile import ratios
from cryosam_dask.analysis.volumes import Cached, RunVolume, named_volume
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.outputs.results import single_name
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Point

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Columns = dict[str, NDArray[Any]]

_MEASURED = {
    "voxels": ("", "voxels of the mask"),
    "volume": ("nm^3", "volume of the mask"),
    "z": ("voxel", "centre of mass, in voxels of the tomogram"),
    "y": ("voxel", "centre of mass, in voxels of the tomogram"),
    "x": ("voxel", "centre of mass, in voxels of the tomogram"),
    "position_z": ("angstrom", "centre of mass, in the tomogram's frame"),
    "position_y": ("angstrom", "centre of mass, in the tomogram's frame"),
    "position_x": ("angstrom", "centre of mass, in the tomogram's frame"),
    "extent_z": ("nm", "side of the box around the mask"),
    "extent_y": ("nm", "side of the box around the mask"),
    "extent_x": ("nm", "side of the box around the mask"),
    "axis_major": ("nm", "longest axis of the ellipsoid with the mask's second moments"),
    "axis_middle": ("nm", "middle axis of that ellipsoid"),
    "axis_minor": ("nm", "shortest axis of that ellipsoid"),
    "equivalent_diameter": ("nm", "diameter of the ball of the mask's volume"),
    "surface_area": ("nm^2", "surface area, by Crofton's formula"),
    "sphericity": ("", "surface of the ball of the mask's volume, over the mask's own"),
    "touches_border": ("", "whether the mask reaches the tomogram's border, which may have cut it"),
    "mean_similarity": ("", "mean over the mask's voxels of the finest similarity map, where it was evaluated"),
    "similarity_evaluated": ("", "share of the mask's voxels for which the map was evaluated"),
    "neighbour_distance": ("nm", "centre to the nearest other instance's centre"),
    "neighbour_surface_distance": ("nm", "voxel to the nearest voxel of any other instance"),
}
"""Column → unit, meaning."""

_FROM_PICKS = {
    "score": "score of the pick",
    "pick_similarity": "similarity of the instance's mean feature to the query",
    "quality": "the segmenter's score",
    "prompted": "whether this is an instance that was clicked on",
}


def instance_table(
    run: str | Path,
    name: str | None = None,
    *,
    distance_to: Any = None,
    masks: Masks = "painted",
    surface_neighbours: bool = True,
) -> xr.Dataset:
    """Measure the instances of a query, one row each, in the order of the picks (best score first).

    Parameters
    ----------
    run : the run's store, a path or a URL
    name : the query; may be left out where there is one only
    distance_to : what to measure distances to: labels of the run (another query's name, or `NAME_semantic`), a file
        or URL of a mask that `open_tomogram` reads (voxels other than 0), an array (z, y, x) of NumPy, Dask, zarr or
        xarray; or a list of these, or a mapping of names to them
    masks : "painted": an instance is what the label image shows of it, that is without what a better one covers;
        "whole": its mask as it was segmented, which may share voxels with others
    surface_neighbours : whether to measure `neighbour_surface_distance` as well

    Returns
    -------
    A Dataset with the dimension `instance` (the label's id) and one variable a column, each with `units` and
    `long_name`; `.to_dataframe()` is the same as a DataFrame. The columns:

    - `voxels`, `volume` (nm³), `z y x` (voxels of the tomogram), `position_z …` (Å, with the tomogram's origin)
    - `score`, `quality`, `prompted` as in the picks; `pick_similarity`: of the instance's mean feature;
      `mean_similarity`: mean over its voxels of the finest similarity map, and `similarity_evaluated`: on what share
      of them that map was evaluated
    - `extent_z …` (nm): sides of the box around it; `axis_major`, `axis_middle`, `axis_minor` (nm): axes of the
      ellipsoid with the same second moments; `equivalent_diameter` (nm)
    - `surface_area` (nm²) and `sphericity`, as by `shape.surface_area`; below 100 voxels they are rough
    - `touches_border`: the tomogram's border may have cut it; size and shape are then those of the part inside
    - `neighbour_distance`, `neighbour_surface_distance` (nm): to the nearest other instance, between centres and
      between surfaces; NaN where there is no other
    - `distance_to_X`, `centre_distance_to_X` (nm) for each X of `distance_to`: from the instance's nearest voxel and
      from its centre to the nearest voxel of the mask, 0 where they meet; NaN where the mask is empty

    Distances between surfaces are between centres of voxels, so that two that touch are a voxel apart. Voxels need not
    be cubes. Where nothing of an instance is painted, `voxels` is 0 and what can't be measured is NaN.

    The table is in memory; what it is made from is read instance by instance and block by block, on the current Dask
    scheduler: a task holds its largest instance a few times over and 150 to 250 MB besides.

    Raises `InputError` for a name that is not there or a mask of another shape, `StoreError` where labels are not
    finished.
    """
    import xarray as xr

    store = RunStore.open(run)
    chosen = single_name(store, name)
    table = picks.read(store, chosen)
    where = rows(store, chosen)
    bodies = Bodies(store, chosen, where, masks)
    frame = _Frame(store)
    targets = {key: MaskPieces(volume, frame.spacing) for key, volume in _targets(store, chosen, distance_to).items()}
    similarity = _finest_similarity(store, chosen)
    jobs = [(batch,) for batch in batches(where.box)]
    parts = compute(_measure_batch, jobs, frame, bodies, similarity, targets, surface_neighbours)
    columns = _together([job[0] for job in jobs], parts, list(_columns(targets, surface_neighbours)))
    columns["neighbour_distance"] = _centre_neighbours(columns, frame)
    columns |= _of_picks(table)
    measured = {key: ("instance", columns[key], {k: v for k, v in zip(("units", "long_name"), words, strict=True) if v})
                for key, words in _described(targets, surface_neighbours).items()}  # fmt: skip
    attributes = {
        "run": store.url,
        "query": chosen,
        "masks": masks,
        "voxel_size": list(store.voxel_size),
        "similarity_ratio": similarity[1] if similarity else 0,
    }
    return xr.Dataset(measured, {"instance": where.label}, attributes)


class _Frame:
    """What tasks need to know of the tomogram: shape, voxel's sides in Å and in nm, origin in Å."""

    def __init__(self, store: RunStore) -> None:
        self.shape, self.voxel_size, self.origin = store.shape, store.voxel_size, store.origin
        z, y, x = (v / 10 for v in store.voxel_size)
        self.spacing: Point = (z, y, x)


def _targets(store: RunStore, name: str, given: Any) -> dict[str, Any]:
    """Volumes to measure distances to, by the names that columns get."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        named = list(given.items())
    else:
        named = [(None, what) for what in (given if isinstance(given, list | tuple) else [given])]
    targets = {}
    for key, what in named:
        if isinstance(what, str) and what in (name, layout.semantic_name(name)):
            raise InputError(f"distance to {what}: these are the instances themselves; see neighbour_surface_distance")
        own, volume = named_volume(store, what, "distance to")
        label = re.sub(r"\W+", "_", str(key or own))
        if label in targets:
            raise InputError(f"distance to {label}: given twice")
        targets[label] = volume
    return targets


def _finest_similarity(store: RunStore, name: str) -> tuple[RunVolume, int] | None:
    known = ratios(store, name)
    return (RunVolume(store, layout.similarity(name, known[0])), known[0]) if known else None


def _columns(targets: Mapping[str, Any], surface_neighbours: bool) -> list[str]:
    """What a task measures, in order."""
    own = [key for key in _MEASURED if not key.startswith("neighbour")]
    return [
        *own,
        *(["neighbour_surface_distance"] if surface_neighbours else []),
        *(key for target in targets for key in (f"distance_to_{target}", f"centre_distance_to_{target}")),
    ]


def _described(targets: Mapping[str, Any], surface_neighbours: bool) -> dict[str, tuple[str, str]]:
    """All columns with unit and meaning, in the order of the table."""
    described = {key: words for key, words in _MEASURED.items() if surface_neighbours or "surface_dist" not in key}
    described |= {key: ("", words) for key, words in _FROM_PICKS.items()}
    for target in targets:
        described[f"distance_to_{target}"] = ("nm", f"nearest voxel to the nearest voxel of {target}")
        described[f"centre_distance_to_{target}"] = ("nm", f"centre to the nearest voxel of {target}")
    return described


def _measure_batch(
    frame: _Frame,
    bodies: Bodies,
    similarity: tuple[RunVolume, int] | None,
    targets: Mapping[str, MaskPieces],
    surface_neighbours: bool,
    indices: NDArray[np.int64],
) -> list[list[float]]:
    """A row of `_columns` for each of some instances."""
    maps = None if similarity is None else (Cached(similarity[0]), similarity[1])
    own = unread(bodies)
    others = InstancePieces(own) if surface_neighbours else None
    masks = [unread(pieces) for pieces in targets.values()]
    measured = []
    for index in map(int, indices):
        body = own.body(index)
        row = _measure(body, frame, maps)
        if others is not None:
            row.append(math.inf if body is None else surface_distance(body, others, frame.spacing, others.of(index)))
        for pieces in masks:
            row.append(math.inf if body is None else surface_distance(body, pieces, frame.spacing))
            row.append(math.inf if body is None else point_distance(np.array(row[2:5]), pieces, frame.spacing))
        measured.append([value if math.isfinite(value) else math.nan for value in row])
    return measured


def _measure(body: Body | None, frame: _Frame, maps: tuple[Cached, int] | None) -> list[float]:
    """The columns of `_MEASURED` that concern one instance alone."""
    if body is None:
        return [0.0, 0.0] + [math.nan] * 15 + [0.0, math.nan, math.nan]
    moments = shape.moments(body.mask, frame.spacing)
    volume = moments.voxels * math.prod(frame.spacing)
    centre = moments.centre + np.array([a for a, _ in body.box])
    area = shape.surface_area(body.mask, frame.spacing)
    mean, share = (math.nan, 0.0) if maps is None else _mean_similarity(body, *maps)
    return [
        moments.voxels,
        volume,
        *centre,
        *geometry.to_angstrom(centre, frame.voxel_size, frame.origin),
        *((b - a) * s for (a, b), s in zip(body.box, frame.spacing, strict=True)),
        *shape.principal_axes(moments.covariance),
        shape.equivalent_diameter(volume),
        area,
        shape.sphericity(volume, area),
        any(a == 0 or b == n for (a, b), n in zip(body.box, frame.shape, strict=True)),
        mean,
        share,
    ]


def _mean_similarity(body: Body, similarity: Cached, ratio: int) -> tuple[float, float]:
    """Mean over the voxels of a body whose cell was evaluated, and the share of these."""
    z, y, x = ((a // ratio, geometry.cell_count(b, ratio)) for a, b in body.box)
    cells: Box = (z, y, x)
    values = similarity.read(cells).astype(np.float64)
    count = _voxels_per_cell(body, cells, ratio)
    evaluated = np.isfinite(values) & (count > 0)
    total, seen = count.sum(), count[evaluated].sum()
    return (float(values[evaluated] @ count[evaluated] / seen) if seen else math.nan), float(seen / total)


def _voxels_per_cell(body: Body, cells: Box, ratio: int) -> NDArray[np.int64]:
    """How many voxels of a body lie in each of the cells around it."""
    count = body.mask
    for axis, ((start, _), (first, last)) in enumerate(zip(body.box, cells, strict=True)):
        edges = np.maximum(np.arange(first, last) * ratio - start, 0)
        count = np.add.reduceat(count, edges, axis=axis, dtype=np.int64)
    return np.asarray(count, np.int64)


def _together(indices: list[NDArray[np.int64]], parts: list[list[list[float]]], names: list[str]) -> Columns:
    """Rows of all batches in the order of the picks, as columns."""
    values = np.full((sum(map(len, indices)), len(names)), np.nan)
    for chosen, part in zip(indices, parts, strict=True):
        values[chosen] = part
    kinds = {"voxels": np.int64, "touches_border": bool}
    return {key: values[:, i].astype(kinds.get(key, np.float64)) for i, key in enumerate(names)}


def _centre_neighbours(columns: Columns, frame: _Frame) -> NDArray[np.float64]:
    places = np.stack([columns[axis] for axis in AXES], axis=1) * frame.spacing
    there = np.isfinite(places).all(1)
    out = np.full(len(places), np.nan)
    if there.sum() > 1:
        out[there] = cKDTree(places[there]).query(places[there], k=2)[0][:, 1]
    return out


def _of_picks(table: pd.DataFrame) -> Columns:
    return {
        "score": table["score"].to_numpy(),
        "pick_similarity": table["similarity"].to_numpy(),
        "quality": table["quality"].to_numpy(),
        "prompted": table["prompted"].to_numpy().astype(bool),
    }
