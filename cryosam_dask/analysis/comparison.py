"""Compares two results of one tomogram."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from cryosam_dask import geometry
from cryosam_dask.analysis.instances import Bodies, Masks, batches, compute, rows, unread
from cryosam_dask.errors import InputError
from cryosam_dask.outputs.results import single_name
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def compare(
    run_a: str | Path,
    run_b: str | Path,
    name: str | None = None,
    *,
    name_b: str | None = None,
    radius: float,
    masks: Masks = "painted",
    same_content: bool = True,
) -> xr.Dataset:
    """Compare two runs of one tomogram, or two queries of one run: which instances both found, and how alike they are.

    Parameters
    ----------
    run_a, run_b : the runs' stores; the same twice to compare two of its queries
    name, name_b : the queries; `name_b` is `name` if left out, `name` may be left out where a run has one only
    radius : nm; picks this far apart or nearer can be partners, one to one: as many pairs as possible, and among these
        ways the one with the least sum of distances
    masks : as for `instance_table`
    same_content : refuse tomograms of different content; False allows, say, two filterings of one reconstruction

    Returns
    -------
    A Dataset with the dimension `row`: pairs first, then what only a has, then what only b has, each by falling score.
    `found_by` ("both", "a", "b"); `instance_a`, `instance_b` (labels, 0: none); `z y x` (voxels, a's where it has it);
    `score_a`, `score_b`; `distance` (nm) and `iou` of a pair's masks; NaN where there is none. Attributes sum up:
    `matched`, `only_a`, `only_b`, `f1` (2·matched / (all of a + all of b)), `mean_distance`, `mean_iou`,
    `score_correlation` (Pearson's) and `score_rank_correlation` (Spearman's) over the pairs, NaN below three pairs.

    Raises `InputError` in one line where the runs are of different tomograms: shape, voxel size, or content.
    """
    import xarray as xr

    stores = RunStore.open(run_a), RunStore.open(run_b)
    if not (math.isfinite(radius) and radius > 0):
        raise InputError(f"radius: expected nanometres above 0, found {radius!r}")
    _check_same(*stores, same_content)
    names = single_name(stores[0], name), single_name(stores[1], name if name_b is None else name_b)
    tables = [picks.read(store, chosen) for store, chosen in zip(stores, names, strict=True)]
    bodies = [Bodies(store, chosen, rows(store, chosen), masks) for store, chosen in zip(stores, names, strict=True)]
    spacing = np.asarray(stores[0].voxel_size) / 10
    places = [table[list(AXES)].to_numpy(np.float64) * spacing for table in tables]
    pairs, distance = match(places[0], places[1], radius)
    shares = batches(bodies[0].rows.box[pairs[:, 0]])
    iou = np.zeros(len(pairs))
    for batch, values in zip(shares, compute(_ious, [(pairs[share],) for share in shares], *bodies), strict=True):
        iou[batch] = values
    columns = _columns(tables[0], tables[1], pairs, distance, iou)
    units = {"distance": "nm", "z": "voxel", "y": "voxel", "x": "voxel"}
    return xr.Dataset(
        {key: ("row", values, {"units": units[key]} if key in units else {}) for key, values in columns.items()},
        {"row": np.arange(len(columns["z"]))},
        {
            "run_a": stores[0].url, "query_a": names[0], "run_b": stores[1].url, "query_b": names[1],
            "radius": float(radius), **_summary(columns, len(pairs)),
        },
    )  # fmt: skip


def _check_same(a: RunStore, b: RunStore, same_content: bool) -> None:
    if a.shape != b.shape:
        raise InputError(f"runs of different tomograms: {a.url} has shape {a.shape}, {b.url} has {b.shape}")
    if not geometry.same_voxels(a.voxel_size, b.voxel_size, a.shape):
        sizes = [", ".join(f"{v:g}" for v in store.voxel_size) for store in (a, b)]
        raise InputError(f"runs of different tomograms: {a.url} has voxels of {sizes[0]} Å, {b.url} of {sizes[1]} Å")
    if same_content and _content(a) != _content(b):
        paths = [store.info.get("input", {}).get("path", "?") for store in (a, b)]
        raise InputError(
            f"runs of different tomograms: {a.url} is of {paths[0]}, {b.url} of {paths[1]}, which differ in content; "
            "if they show one specimen in one frame, compare with same_content=False"
        )


def _content(store: RunStore) -> str:
    """What identifies the content of a run's input, wherever its file was."""
    known = store.info.get("input", {})
    drawn = ("path", "name", "content") if "sha256" in known else ("path", "name")
    return json.dumps({key: value for key, value in known.items() if key not in drawn}, sort_keys=True)


def match(a: Float64, b: Float64, radius: float) -> tuple[Int64, Float64]:
    """Pairs (n, 2) of indices of places (…, 3) at most `radius` apart, one to one, and their distances.

    As many pairs as can be, and of these matchings one with the least sum of distances.
    """
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int64), np.zeros(0)
    near = cKDTree(a).sparse_distance_matrix(cKDTree(b), radius, output_type="ndarray")
    joined = sparse.coo_matrix((np.ones(len(near)), (near["i"], near["j"] + len(a))), shape=(len(a) + len(b),) * 2)
    _, part = csgraph.connected_components(joined, directed=False)
    order = np.argsort(part[near["i"]], kind="stable")
    near = near[order]
    ends = np.flatnonzero(np.diff(part[near["i"]])) + 1
    matches = [_assigned(group, radius) for group in np.split(near, ends) if len(group)]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *matches])
    return pairs, np.asarray(np.linalg.norm(a[pairs[:, 0]] - b[pairs[:, 1]], axis=1), np.float64)


def _assigned(near: Any, radius: float) -> Int64:
    """The matching of one connected part of the graph of near pairs."""
    if len(near) == 1:
        return np.array([[near["i"][0], near["j"][0]]], np.int64)
    left, row = np.unique(near["i"], return_inverse=True)
    right, column = np.unique(near["j"], return_inverse=True)
    # what is too far costs more than all that can be saved elsewhere
    cost = np.full((len(left), len(right)), 2 * radius * (min(len(left), len(right)) + 1))
    cost[row, column] = near["v"]
    i, j = linear_sum_assignment(cost)
    kept = cost[i, j] <= radius * (1 + 1e-9)
    return np.stack([left[i[kept]], right[j[kept]]], axis=1).astype(np.int64)


def _ious(a: Bodies, b: Bodies, pairs: Int64) -> list[float]:
    """Intersection over union of the masks of pairs."""
    own, others = unread(a), unread(b)
    ious = []
    for i, j in pairs:
        first, second = own.body(int(i)), others.body(int(j))
        common = None if first is None or second is None else geometry.intersect(first.box, second.box)
        if first is None or second is None or common is None:
            ious.append(0.0)
            continue
        parts = [
            body.mask[tuple(slice(p - s, q - s) for (p, q), (s, _) in zip(common, body.box, strict=True))]
            for body in (first, second)
        ]
        both = np.count_nonzero(parts[0] & parts[1])
        ious.append(both / (np.count_nonzero(first.mask) + np.count_nonzero(second.mask) - both))
    return ious


def _columns(a: pd.DataFrame, b: pd.DataFrame, pairs: Int64, distance: Float64, iou: Float64) -> dict[str, Any]:
    order = np.argsort(-a["score"].to_numpy()[pairs[:, 0]], kind="stable")
    pairs, distance, iou = pairs[order], distance[order], iou[order]
    rest = [np.setdiff1d(np.arange(len(t)), pairs[:, i]) for i, t in enumerate((a, b))]
    nothing = [np.full(len(r), -1) for r in rest]
    rows_a = np.concatenate([pairs[:, 0], rest[0], nothing[1]]).astype(np.int64)
    rows_b = np.concatenate([pairs[:, 1], nothing[0], rest[1]]).astype(np.int64)

    def taken(table: pd.DataFrame, column: str, index: Int64, missing: Any) -> Any:
        values = np.append(table[column].to_numpy(), missing)  # the last one is for -1
        return values[index]

    alone = np.full(len(rest[0]) + len(rest[1]), np.nan)
    columns = {
        "found_by": np.repeat(np.array(["both", "a", "b"]), [len(pairs), len(rest[0]), len(rest[1])]),
        "instance_a": taken(a, "instance", rows_a, 0),
        "instance_b": taken(b, "instance", rows_b, 0),
    }
    for axis in AXES:
        columns[axis] = np.where(rows_a >= 0, taken(a, axis, rows_a, np.nan), taken(b, axis, rows_b, np.nan))
    return columns | {
        "score_a": taken(a, "score", rows_a, np.nan),
        "score_b": taken(b, "score", rows_b, np.nan),
        "distance": np.concatenate([distance, alone]),
        "iou": np.concatenate([iou, alone]),
    }


def _summary(columns: dict[str, Any], matched: int) -> dict[str, Any]:
    only_a, only_b = (int((columns["found_by"] == which).sum()) for which in "ab")
    total = 2 * matched + only_a + only_b
    scores = columns["score_a"][:matched], columns["score_b"][:matched]
    ranks = [rankdata(values) for values in scores]
    return {
        "matched": matched,
        "only_a": only_a,
        "only_b": only_b,
        "f1": 2 * matched / total if total else math.nan,
        "mean_distance": float(columns["distance"][:matched].mean()) if matched else math.nan,
        "mean_iou": float(columns["iou"][:matched].mean()) if matched else math.nan,
        "score_correlation": _correlation(*scores),
        "score_rank_correlation": _correlation(ranks[0], ranks[1]),
    }


def _correlation(a: Any, b: Any) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
