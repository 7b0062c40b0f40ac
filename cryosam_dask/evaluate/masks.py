"""Masks against true ones: IoU, Dice and panoptic quality, box by box.

Sources
-------
IoU (Jaccard index) |A∩B| / |A∪B|, Dice 2|A∩B| / (|A| + |B|)
panoptic quality : A. Kirillov et al., Panoptic Segmentation, CVPR 2019, arXiv 1801.00868, equation 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import boxes
from cryosam_dask.types import Array, Shape3

Int64 = NDArray[np.int64]

_BOX: Shape3 = (32, 256, 512)
"""Voxels in memory at a time, whole chunks of a run's labels: some 130 MB with the keys, where all are labelled."""

_MOST = 1 << 31  # two ids share one 64-bit key


@dataclass(frozen=True)
class MaskEvaluation:
    """How well instance masks agree with true ones.

    mean_iou : mean intersection over union of the matched pairs; 0 when none is matched
    mean_iou_truth : the same over all true instances, those without a partner counting 0
    matched, found, truth : numbers of instances
    pq, sq, rq : panoptic quality, and what it is the product of: mean IoU of the pairs with an IoU above 0.5, and
        their share, pairs / ((found + truth) / 2)
    pairs : number of pairs with an IoU above 0.5
    iou, dice : of all labelled voxels, whichever instance they are of
    ious : (true instance, found instance, IoU) of each matched pair

    With neither found nor true instances all shares are 1.
    """

    mean_iou: float
    mean_iou_truth: float
    matched: int
    found: int
    truth: int
    pq: float
    sq: float
    rq: float
    pairs: int
    iou: float
    dice: float
    ious: tuple[tuple[int, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"ious": [list(i) for i in self.ious]}


class ClassOverlap(NamedTuple):
    """Overlap of one class: voxels found, true and both, their IoU and Dice."""

    label: int
    iou: float
    dice: float
    found: int
    truth: int
    both: int


@dataclass(frozen=True)
class SemanticEvaluation:
    """How well classes of voxels agree with the true ones.

    mean_iou, mean_dice : over the classes that are found or true, without the background; 1 where there are none
    classes : by label
    """

    mean_iou: float
    mean_dice: float
    classes: tuple[ClassOverlap, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"classes": [c._asdict() for c in self.classes]}


def panoptic_quality(ious: float, pairs: int, found: int, truth: int) -> tuple[float, float, float]:
    """(PQ, SQ, RQ) of instances, also summed over tomograms.

    Parameters
    ----------
    ious : sum of the IoU of the pairs with an IoU above 0.5, which are unique; pairs : how many they are
    found, truth : numbers of instances

    PQ = Σ IoU / (TP + FP/2 + FN/2) = SQ · RQ. Where nothing is found or true, all are 1.
    """
    if found + truth == 0:
        return 1.0, 1.0, 1.0
    quality = ious / pairs if pairs else 0.0
    recognised = 2 * pairs / (found + truth)
    return quality * recognised, quality, recognised


def evaluate_masks(labels: Any, truth_labels: Any) -> MaskEvaluation:
    """Compare instance masks.

    Parameters
    ----------
    labels, truth_labels : (z, y, x) integers of equal shape, instance ids from 1, 0 = background; any arrays that
        can be sliced (numpy, zarr), read box by box

    Found and true instances are matched one to one so that the sum of their IoU is the largest possible; only
    pairs that overlap count. Raises InputError on unequal shapes, values that aren't whole numbers, or ids below 0 or
    of 2³¹ and more.
    """
    pairs, counts = _contingency(labels, truth_labels)
    true_ids, found_ids = pairs[:, 0], pairs[:, 1]
    true_sizes, found_sizes = _sizes(true_ids, counts), _sizes(found_ids, counts)
    both = (true_ids > 0) & (found_ids > 0)
    rows = np.searchsorted(true_sizes[0], true_ids[both])
    columns = np.searchsorted(found_sizes[0], found_ids[both])
    iou = counts[both] / (true_sizes[1][rows] + found_sizes[1][columns] - counts[both])
    n_truth, n_found = len(true_sizes[0]), len(found_sizes[0])
    matrix = sparse.csr_matrix((iou, (rows, columns)), shape=(n_truth, n_found))
    ious = tuple((int(true_sizes[0][r]), int(found_sizes[0][c]), float(matrix[r, c])) for r, c in _best_pairs(matrix))
    total, nothing = sum(v for _, _, v in ious), float(n_truth == n_found == 0)
    good = iou[iou > 0.5]  # at most one for each instance, as instances don't overlap
    pq, sq, rq = panoptic_quality(float(good.sum()), len(good), n_found, n_truth)
    overlap, sizes = int(counts[both].sum()), int(true_sizes[1].sum() + found_sizes[1].sum())
    return MaskEvaluation(
        mean_iou=total / len(ious) if ious else nothing,
        mean_iou_truth=total / n_truth if n_truth else nothing,
        matched=len(ious),
        found=n_found,
        truth=n_truth,
        pq=pq,
        sq=sq,
        rq=rq,
        pairs=len(good),
        iou=_iou(overlap, sizes),
        dice=_dice(overlap, sizes),
        ious=ious,
    )


def evaluate_semantic(labels: Any, truth_labels: Any) -> SemanticEvaluation:
    """Compare classes of voxels: IoU and Dice of each, the background (0) left out.

    Parameters and errors are those of `evaluate_masks`; equal labels mean the same class.
    """
    pairs, counts = _contingency(labels, truth_labels)
    classes = []
    for label in np.unique(pairs[pairs > 0]).tolist():
        truth, predicted = int(counts[pairs[:, 0] == label].sum()), int(counts[pairs[:, 1] == label].sum())
        both = int(counts[(pairs == label).all(axis=1)].sum())
        classes.append(
            ClassOverlap(label, _iou(both, truth + predicted), _dice(both, truth + predicted), predicted, truth, both)
        )
    return SemanticEvaluation(
        mean_iou=float(np.mean([c.iou for c in classes])) if classes else 1.0,
        mean_dice=float(np.mean([c.dice for c in classes])) if classes else 1.0,
        classes=tuple(classes),
    )


def dice(mask: Any, truth: Any) -> float:
    """Dice coefficient 2|A∩B| / (|A| + |B|) of the non-zero voxels of two (z, y, x) arrays; 1 when both are empty.

    Arrays are read box by box. Raises InputError on unequal shapes.
    """
    both = sizes = 0
    for labels, truth_labels in _blocks(mask, truth):
        a, b = labels != 0, truth_labels != 0
        both += int(np.count_nonzero(a & b))
        sizes += int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return _dice(both, sizes)


def _iou(both: int, sizes: int) -> float:
    return both / (sizes - both) if sizes else 1.0


def _dice(both: int, sizes: int) -> float:
    return 2 * both / sizes if sizes else 1.0


def _blocks(labels: Any, truth_labels: Any) -> Iterator[tuple[Array, Array]]:
    shape = tuple(int(n) for n in labels.shape)
    if shape != tuple(truth_labels.shape) or len(shape) != 3:
        raise InputError(
            f"masks: expected two volumes (z, y, x) of the same shape, found {shape} and {tuple(truth_labels.shape)}"
        )
    if 0 in shape:
        return
    for box in boxes((shape[0], shape[1], shape[2]), _BOX):
        place = tuple(slice(start, stop) for start, stop in box)
        yield np.asarray(labels[place]), np.asarray(truth_labels[place])


def _ids(block: Array) -> Int64:
    """A flat block as ids."""
    if block.dtype.kind == "f" and not (np.isfinite(block) & (block == np.floor(block))).all():
        raise InputError("masks: expected instance ids, found numbers that aren't whole")
    if block.dtype.kind not in "buif":
        raise InputError(f"masks: expected instance ids, found {block.dtype}")
    low, high = block.min(), block.max()
    if low < 0 or high >= _MOST:
        raise InputError(f"masks: expected instance ids from 0 to {_MOST - 1}, found {low if low < 0 else high}")
    return block.astype(np.int64).reshape(-1)


def _contingency(labels: Any, truth_labels: Any) -> tuple[Int64, Int64]:
    """Pairs (true id, found id), background included, without (0, 0), and the number of voxels of each."""
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for ids, true_ids in _blocks(labels, truth_labels):
        both = (_ids(true_ids) << 32) | _ids(ids)
        # neighbours along x are mostly of one pair: there are fewer stretches of them to sort than voxels
        starts = np.flatnonzero(np.append(True, both[1:] != both[:-1]))
        some = both[starts] != 0
        lengths = np.diff(starts, append=both.size)[some]
        unique, inverse = np.unique(both[starts][some], return_inverse=True)
        keys.append(unique)
        counts.append(_totals(inverse, lengths, len(unique)))
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    total = _totals(inverse, np.concatenate(counts), len(unique))
    return np.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1), total


def _totals(index: Int64, counts: Int64, size: int) -> Int64:
    """Sum of the counts of each index from 0 to size - 1, exact."""
    total = np.zeros(size, dtype=np.int64)
    np.add.at(total, index, counts)
    return total


def _sizes(ids: Int64, counts: Int64) -> tuple[Int64, Int64]:
    unique, inverse = np.unique(ids, return_inverse=True)
    total = _totals(inverse, counts, len(unique))
    return unique[unique > 0], total[unique > 0]


def _best_pairs(iou: Any) -> list[tuple[int, int]]:
    """Row and column of each pair of the assignment with the largest sum; time and memory go by the overlaps."""
    rows, columns = iou.shape
    if iou.nnz == 0:
        return []
    # each row may also stay alone, at the cost of a pair without any overlap: the least cost has the largest sum
    cost = iou.copy()
    cost.data = 2 - cost.data
    alone = sparse.identity(rows, format="csr") * 2
    row, column = csgraph.min_weight_full_bipartite_matching(sparse.hstack([cost, alone], format="csr"))
    return [(int(r), int(c)) for r, c in zip(row, column, strict=True) if c < columns]
