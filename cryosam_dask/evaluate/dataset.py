"""Picks and masks of many tomograms against their truths: one row a tomogram, pooled figures, mean and spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate.detection import Evaluation, Ranked, figures_of, pooled, rank_picks
from cryosam_dask.evaluate.masks import MaskEvaluation, panoptic_quality
from cryosam_dask.evaluate.radius import Radius, parse_radius
from cryosam_dask.evaluate.spread import Summary, bootstrap, summarise

FIGURES = ("precision", "recall", "f1", "average_precision", "best_f1")
MASK_FIGURES = ("mean_iou", "mean_iou_truth", "pq", "sq", "rq", "iou", "dice")
COUNTS = ("true_positives", "false_positives", "false_negatives")


@dataclass(frozen=True)
class TomogramPicks:
    """Picks and true positions of one kind in one tomogram.

    found : (N, 3) voxels (z, y, x); scores : (N,) or None; truth : (M, 3) voxels
    voxel_size : Å, one number or (z, y, x); needed where the radius is a length
    masks : the instances' masks against the true ones, where these are known
    """

    tomogram: str
    found: ArrayLike
    scores: ArrayLike | None
    truth: ArrayLike
    kind: str = "particle"
    voxel_size: float | Sequence[float] | None = None
    masks: MaskEvaluation | None = None


@dataclass(frozen=True)
class TomogramEvaluation:
    """One kind in one tomogram."""

    tomogram: str
    kind: str
    picks: Evaluation
    masks: MaskEvaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without curves and single instances: a line of a table."""
        line: dict[str, Any] = {"tomogram": self.tomogram, "kind": self.kind}
        line |= {name: getattr(self.picks, name) for name in (*COUNTS, *FIGURES, "best_threshold")}
        if self.masks is not None:
            line |= {name: getattr(self.masks, name) for name in MASK_FIGURES}
        return line


@dataclass(frozen=True)
class KindEvaluation:
    """One kind in all tomograms.

    radius : as it was given
    tomograms : how many there are of it, truth_in : in how many of them there are true positions
    pooled : micro average: counts summed over tomograms, and the curve of all picks together
    intervals : bootstrap interval over tomograms, 95 %, of the pooled precision, recall and F1; empty for one tomogram
    spread : macro average: mean and spread over the tomograms that have true positions, by figure
    masks : pooled panoptic quality, where masks are known
    """

    kind: str
    radius: Radius
    tomograms: int
    truth_in: int
    pooled: Evaluation
    intervals: dict[str, tuple[float, float]]
    spread: dict[str, Summary]
    masks: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "radius": {"value": self.radius.value, "unit": self.radius.unit},
            "tomograms": self.tomograms,
            "truth_in": self.truth_in,
            "pooled": self.pooled.to_dict(),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "spread": {name: summary.to_dict() for name, summary in self.spread.items()},
            "masks": self.masks,
        }


@dataclass(frozen=True)
class DatasetEvaluation:
    """All kinds in all tomograms.

    rows : one for each kind in each tomogram, in the order given; kinds : in order of their first row
    notes : what a reader of the figures must know: tomograms without truth or without a run, and the like
    """

    rows: tuple[TomogramEvaluation, ...]
    kinds: tuple[KindEvaluation, ...]
    notes: tuple[str, ...] = ()

    def over_kinds(self, figure: str) -> float | None:
        """Unweighted mean of a pooled figure over kinds (of `average_precision`: mAP); None where there are none."""
        return float(np.mean([getattr(kind.pooled, figure) for kind in self.kinds])) if self.kinds else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "kinds": {kind.kind: kind.to_dict() for kind in self.kinds},
            "mean_over_kinds": {name: self.over_kinds(name) for name in FIGURES},
            "notes": list(self.notes),
        }


def evaluate_dataset(
    tomograms: Iterable[TomogramPicks],
    radius: float | str | Radius | Mapping[str, float | str | Radius],
    *,
    notes: Sequence[str] = (),
) -> DatasetEvaluation:
    """Evaluate picks of many tomograms.

    Parameters
    ----------
    tomograms : each kind of each tomogram once; an iterator is read one by one
    radius : voxels, or a length as in "120A"; one for all, or one for each kind
    notes : go into the result

    Raises InputError for a kind without a radius, a tomogram's kind that comes twice, a length without a voxel size,
    and as `evaluate_picks`, naming the tomogram.
    """
    radii = radius if isinstance(radius, Mapping) else None
    rows: dict[tuple[str, str], TomogramEvaluation] = {}
    ranks: dict[str, list[Ranked]] = {}
    lengths: dict[str, Radius] = {}
    for picks in tomograms:
        if (picks.tomogram, picks.kind) in rows:
            raise InputError(f"{picks.tomogram}: {picks.kind} comes twice")
        if radii is not None and picks.kind not in radii:
            raise InputError(f"{picks.kind}: no radius given; there are radii for {', '.join(radii)}")
        chosen = parse_radius(radii[picks.kind] if radii is not None else radius)  # type: ignore[arg-type]
        ranked = _rank(picks, chosen)
        lengths[picks.kind] = chosen
        ranks.setdefault(picks.kind, []).append(ranked)
        rows[picks.tomogram, picks.kind] = TomogramEvaluation(
            picks.tomogram, picks.kind, figures_of(ranked, chosen.value, chosen.unit), picks.masks
        )
    every = tuple(rows.values())
    kinds = tuple(
        _kind(kind, lengths[kind], [row for row in every if row.kind == kind], parts) for kind, parts in ranks.items()
    )
    return DatasetEvaluation(every, kinds, tuple(notes))


def _rank(picks: TomogramPicks, radius: Radius) -> Ranked:
    if radius.unit == "angstrom" and picks.voxel_size is None:
        raise InputError(f"{picks.tomogram}: a radius of {radius} needs the tomogram's voxel size")
    scale = picks.voxel_size if radius.unit == "angstrom" else None
    try:
        return rank_picks(picks.found, picks.scores, picks.truth, radius.value, voxel_size=scale)
    except InputError as error:
        raise InputError(f"{picks.tomogram}: {error}") from error


def _kind(kind: str, radius: Radius, rows: Sequence[TomogramEvaluation], parts: Sequence[Ranked]) -> KindEvaluation:
    true = [row for row, part in zip(rows, parts, strict=True) if part.truth]
    spread = {name: summarise(getattr(row.picks, name) for row in true) for name in FIGURES}
    masks = [row.masks for row in rows if row.masks is not None]
    spread |= {name: summarise(getattr(m, name) for m in masks if m.truth) for name in MASK_FIGURES if masks}
    return KindEvaluation(
        kind=kind,
        radius=radius,
        tomograms=len(rows),
        truth_in=len(true),
        pooled=figures_of(pooled(parts), radius.value, radius.unit),
        intervals=_intervals(parts) if len(parts) > 1 else {},
        spread=spread,
        masks=_pooled_masks(masks) if masks else None,
    )


def _intervals(parts: Sequence[Ranked]) -> dict[str, tuple[float, float]]:
    counts = [(part.hits.sum(), len(part.scores), part.truth) for part in parts]

    def share(hits: NDArray[np.float64], of: NDArray[np.float64], every: NDArray[np.float64]) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (every == 0).astype(np.float64)  # no picks and no truth: 1, as everywhere
        np.divide(hits, of, out=shares, where=of > 0)
        return shares

    return {
        "precision": bootstrap(counts, lambda s, n: share(s[:, 0], s[:, 1], s[:, 1] + s[:, 2])),
        "recall": bootstrap(counts, lambda s, n: share(s[:, 0], s[:, 2], s[:, 1] + s[:, 2])),
        "f1": bootstrap(counts, lambda s, n: share(2 * s[:, 0], s[:, 1] + s[:, 2], s[:, 1] + s[:, 2])),
    }


def _pooled_masks(masks: Sequence[MaskEvaluation]) -> dict[str, float]:
    pairs, predicted, truth = (sum(getattr(m, name) for m in masks) for name in ("pairs", "found", "truth"))
    pq, sq, rq = panoptic_quality(sum(m.sq * m.pairs for m in masks), pairs, predicted, truth)
    return {"pq": pq, "sq": sq, "rq": rq, "pairs": pairs, "found": predicted, "truth": truth}
