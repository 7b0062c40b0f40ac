"""Found against true: picks (precision, recall, F1, average precision), instance masks (IoU) and masks (Dice)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from cryosam_dask.errors import InputError
from cryosam_dask.types import Array

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SLAB_VOXELS = 1 << 24  # label voxels in memory at a time


class CurvePoint(NamedTuple):
    """Precision and recall of the picks that score `threshold` or more."""

    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Evaluation:
    """How well picks agree with the truth.

    true_positives, false_positives, false_negatives : of the largest possible one-to-one matching within `radius`
    precision, recall, f1 : from these counts
    average_precision : area under the interpolated precision-recall curve (see `evaluate_picks`)
    curve : one point for each distinct score, best first
    radius : voxels
    """

    precision: float
    recall: float
    f1: float
    average_precision: float
    true_positives: int
    false_positives: int
    false_negatives: int
    curve: tuple[CurvePoint, ...]
    radius: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve as a list of {threshold, precision, recall}."""
        return asdict(self) | {"curve": [p._asdict() for p in self.curve]}


@dataclass(frozen=True)
class MaskEvaluation:
    """How well instance masks agree with true ones.

    mean_iou : mean intersection over union of the matched pairs; 0 when none is matched
    mean_iou_truth : the same over all true instances, those without a partner counting 0
    matched, found, truth : numbers of instances
    ious : (true instance, found instance, IoU) of each matched pair
    """

    mean_iou: float
    mean_iou_truth: float
    matched: int
    found: int
    truth: int
    ious: tuple[tuple[int, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"ious": [list(i) for i in self.ious]}


def evaluate_picks(found: ArrayLike, scores: ArrayLike, truth: ArrayLike, radius: float) -> Evaluation:
    """Compare picks with true positions.

    Parameters
    ----------
    found : (N, 3) voxels (z, y, x); scores : (N,), larger is better
    truth : (M, 3) voxels (z, y, x)
    radius : voxels; a pick and a true position this far apart or nearer can be partners, one to one

    The counts are those of a maximum matching, so that they don't depend on the order of the picks. The curve
    is made in order of score: each pick takes the nearest true position that is still free. Average precision
    is Σ (R_k - R_{k-1}) · max_{j ≥ k} P_j over the distinct scores, best first: the area under the interpolated
    curve with all points, as in PASCAL VOC from 2010 on.

    With neither picks nor truth everything is 1; with one of them missing, everything is 0. Raises InputError
    on shapes that don't fit, values that aren't finite, or a radius that isn't above 0.
    """
    places, targets = _positions(found, "picks"), _positions(truth, "truth")
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(values) != len(places):
        raise InputError(f"picks: expected one score for each of {len(places)} picks, found {len(values)}")
    if not np.isfinite(values).all():
        raise InputError("picks: expected finite scores, found NaN or infinite ones")
    if not (np.isfinite(radius) and radius > 0):
        raise InputError(f"radius: expected voxels above 0, found {radius!r}")
    if len(places) == 0 or len(targets) == 0:
        value = float(len(places) == len(targets))
        return Evaluation(value, value, value, value, 0, len(places), len(targets), (), float(radius))

    pairs = cKDTree(places).sparse_distance_matrix(cKDTree(targets), radius, output_type="ndarray")
    hits = _matched(pairs["i"], pairs["j"], (len(places), len(targets)))
    curve = _curve(pairs, values, places, len(targets))
    return Evaluation(
        precision=hits / len(places),
        recall=hits / len(targets),
        f1=2 * hits / (len(places) + len(targets)),
        average_precision=_area(curve),
        true_positives=hits,
        false_positives=len(places) - hits,
        false_negatives=len(targets) - hits,
        curve=curve,
        radius=float(radius),
    )


def _positions(values: ArrayLike, what: str) -> Float64:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"{what}: expected positions of shape (N, 3) as z, y, x, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{what}: expected finite positions, found NaN or infinite ones")
    return array


def _matched(rows: Int64, columns: Int64, shape: tuple[int, int]) -> int:
    graph = sparse.csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=shape)
    return int((csgraph.maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _curve(pairs: Array, scores: Float64, places: Float64, n_truth: int) -> tuple[CurvePoint, ...]:
    by_pick = pairs[np.lexsort((pairs["j"], pairs["v"], pairs["i"]))]
    starts = np.searchsorted(by_pick["i"], np.arange(len(scores) + 1))
    free = np.ones(n_truth, dtype=bool)
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0], -scores))  # ties by (z, y, x)
    hit = np.zeros(len(order), dtype=bool)
    for rank, pick in enumerate(order):
        for target in by_pick["j"][starts[pick] : starts[pick + 1]]:  # nearest first
            if free[target]:
                free[target] = False
                hit[rank] = True
                break
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores pass a threshold together
    hits = np.cumsum(hit)[last]
    return tuple(
        CurvePoint(float(ranked[k]), float(h / (k + 1)), float(h / n_truth)) for k, h in zip(last, hits, strict=True)
    )


def _area(curve: tuple[CurvePoint, ...]) -> float:
    precision = np.array([p.precision for p in curve])
    recall = np.array([p.recall for p in curve])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))


def evaluate_masks(labels: Any, truth_labels: Any) -> MaskEvaluation:
    """Compare instance masks.

    Parameters
    ----------
    labels, truth_labels : (z, y, x) integers of equal shape, instance ids from 1, 0 = background; any arrays that
        can be sliced (numpy, zarr), read slab by slab

    Found and true instances are matched one to one so that the sum of their IoU is the largest possible; only
    pairs that overlap count. Raises InputError on unequal shapes, or ids below 0 or of 2³¹ and more.
    """
    _same_shape(labels, truth_labels)
    pairs, counts = _contingency(labels, truth_labels)
    true_ids, found_ids = pairs[:, 0], pairs[:, 1]
    true_sizes, found_sizes = _sizes(true_ids, counts), _sizes(found_ids, counts)
    both = (true_ids > 0) & (found_ids > 0)
    rows = np.searchsorted(true_sizes[0], true_ids[both])
    columns = np.searchsorted(found_sizes[0], found_ids[both])
    iou = counts[both] / (true_sizes[1][rows] + found_sizes[1][columns] - counts[both])
    matrix = sparse.csr_matrix((iou, (rows, columns)), shape=(len(true_sizes[0]), len(found_sizes[0])))
    ious = tuple((int(true_sizes[0][r]), int(found_sizes[0][c]), float(matrix[r, c])) for r, c in _best_pairs(matrix))
    total = sum(v for _, _, v in ious)
    return MaskEvaluation(
        mean_iou=total / len(ious) if ious else 0.0,
        mean_iou_truth=total / matrix.shape[0] if matrix.shape[0] else 0.0,
        matched=len(ious),
        found=int(matrix.shape[1]),
        truth=int(matrix.shape[0]),
        ious=ious,
    )


def dice(mask: Any, truth: Any) -> float:
    """Dice coefficient 2|A∩B| / (|A| + |B|) of the non-zero voxels of two (z, y, x) arrays; 1 when both are empty.

    Arrays are read slab by slab. Raises InputError on unequal shapes.
    """
    _same_shape(mask, truth)
    both = sizes = 0
    for found, true in _slabs(mask, truth):
        a, b = found != 0, true != 0
        both += int(np.count_nonzero(a & b))
        sizes += int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * both / sizes if sizes else 1.0


def _same_shape(found: Any, truth: Any) -> None:
    if tuple(found.shape) != tuple(truth.shape) or len(found.shape) != 3:
        raise InputError(
            f"masks: expected two volumes (z, y, x) of the same shape, found {tuple(found.shape)} and "
            f"{tuple(truth.shape)}"
        )


def _slabs(found: Any, truth: Any) -> Iterator[tuple[Array, Array]]:
    if 0 in found.shape:
        return
    depth = max(1, _SLAB_VOXELS // max(1, int(found.shape[1]) * int(found.shape[2])))
    for start in range(0, int(found.shape[0]), depth):
        yield np.asarray(found[start : start + depth]), np.asarray(truth[start : start + depth])


def _contingency(labels: Any, truth_labels: Any) -> tuple[Int64, Int64]:
    """Pairs (true id, found id), background included, without (0, 0), and the number of voxels of each."""
    parts: list[tuple[Int64, Int64]] = []
    for found, true in _slabs(labels, truth_labels):
        low, high = min(found.min(), true.min()), max(found.max(), true.max())
        if low < 0 or high >= 1 << 31:  # two ids share one 64-bit key
            raise InputError(f"masks: expected instance ids from 0 to 2147483647, found {low if low < 0 else high}")
        some = (found != 0) | (true != 0)
        keys = (true[some].astype(np.int64) << 32) | found[some].astype(np.int64)
        unique, counts = np.unique(keys, return_counts=True)
        parts.append((unique, counts.astype(np.int64)))
    keys = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int64)
    counts = np.concatenate([p[1] for p in parts]) if parts else np.zeros(0, np.int64)
    unique, inverse = np.unique(keys, return_inverse=True)
    total = np.zeros(len(unique), dtype=np.int64)
    np.add.at(total, inverse, counts)
    return np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1), total


def _sizes(ids: Int64, counts: Int64) -> tuple[Int64, Int64]:
    unique, inverse = np.unique(ids, return_inverse=True)
    total = np.zeros(len(unique), dtype=np.int64)
    np.add.at(total, inverse, counts)
    return unique[unique > 0], total[unique > 0]


def _best_pairs(iou: Any) -> list[tuple[int, int]]:
    """Row and column of each pair of the assignment with the largest sum, solved one connected part at a time."""
    n_rows = iou.shape[0]
    if iou.nnz == 0:
        return []
    whole = sparse.bmat([[None, iou], [iou.T, None]], format="csr")
    _, part = csgraph.connected_components(whole, directed=False)
    order = np.argsort(part, kind="stable")
    pairs: list[tuple[int, int]] = []
    for members in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        rows, columns = members[members < n_rows], members[members >= n_rows] - n_rows
        if len(rows) == 0 or len(columns) == 0:
            continue
        block = iou[rows][:, columns].toarray()
        for r, c in zip(*linear_sum_assignment(block, maximize=True), strict=True):
            if block[r, c] > 0:
                pairs.append((int(rows[r]), int(columns[c])))
    return sorted(pairs)
