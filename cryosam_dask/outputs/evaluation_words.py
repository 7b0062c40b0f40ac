"""Figures of an evaluation in words, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryosam_dask.evaluate import CziiScore, DatasetEvaluation
from cryosam_dask.evaluate.dataset import MASK_FIGURES, KindEvaluation, TomogramEvaluation
from cryosam_dask.outputs.evaluation import RunsEvaluation

_SHORT = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "AP",
    "best_f1": "best F1",
}
_MASKS = {"mean_iou": "IoU of pairs", "mean_iou_truth": "IoU of true ones", "pq": "PQ", "sq": "SQ", "rq": "RQ"} | {
    "iou": "IoU of all",
    "dice": "Dice of all",
}
_COUNTS = {"true_positives": "hits", "false_positives": "false", "false_negatives": "missed"}
_INSTANCES = {"matched": "matched", "found": "instances found", "truth": "instances true"}


def figures_in_words(figures: Mapping[str, Any]) -> str:
    """The result of `outputs.evaluate`, one figure a line."""
    unit = "Å" if figures["unit"] == "angstrom" else "voxels"
    lines = [("radius", f"{figures['radius']:g} {unit}")]
    lines += [(words, str(figures[key])) for key, words in _COUNTS.items()]
    lines += [(words, f"{figures[key]:.3f}") for key, words in _SHORT.items()]
    if figures["best_threshold"] is not None:
        lines.append(("… at score ≥", f"{figures['best_threshold']:.4g}"))
    if "pq" in figures:
        lines += [(words, str(figures[key])) for key, words in _INSTANCES.items()]
        lines += [(words, f"{figures[key]:.3f}") for key, words in _MASKS.items()]
    told = [figures["review"]["words"]] if "review" in figures else []
    return "\n".join([*(f"{words:20} {value}" for words, value in lines), *told])


def runs_in_words(result: RunsEvaluation) -> str:
    """A row a tomogram, then each kind's pooled figures with mean and spread, then the challenge's score."""
    parts = ["\n".join(_table(result.dataset))]
    parts += ["\n".join(_kind(kind)) for kind in result.dataset.kinds]
    if len(result.dataset.kinds) > 1:
        values = "  ".join(f"{words} {result.dataset.over_kinds(key):.3f}" for key, words in _SHORT.items())
        parts.append(f"mean over {len(result.dataset.kinds)} kinds  {values}")
    if result.czii is not None:
        parts.append("\n".join(_czii(result.czii)))
    return "\n\n".join(parts)


def _table(dataset: DatasetEvaluation) -> list[str]:
    wide = max(8, *(len(row.tomogram) for row in dataset.rows))
    kinds = max(4, *(len(row.kind) for row in dataset.rows))
    masked = any(row.masks is not None for row in dataset.rows)
    head = f"{'tomogram':{wide}}  {'kind':{kinds}}  {'hits':>6} {'false':>6} {'missed':>6}  precision recall  F1    AP"
    return [head + ("    PQ    Dice" if masked else ""), *(_row(row, wide, kinds) for row in dataset.rows)]


def _row(row: TomogramEvaluation, wide: int, kinds: int) -> str:
    figures = row.picks
    counts = f"{figures.true_positives:6} {figures.false_positives:6} {figures.false_negatives:6}"
    line = f"{row.tomogram:{wide}}  {row.kind:{kinds}}  {counts}  {figures.precision:.3f}     {figures.recall:.3f}   "
    line += f"{figures.f1:.3f} {figures.average_precision:.3f}"
    return line if row.masks is None else f"{line} {row.masks.pq:.3f} {row.masks.dice:.3f}"


def _kind(kind: KindEvaluation) -> list[str]:
    many = "1 tomogram" if kind.tomograms == 1 else f"{kind.tomograms} tomograms"
    lines = [f"{kind.kind}, radius {kind.radius}, {many}"]
    if kind.truth_in != kind.tomograms:
        lines[0] += f", {kind.truth_in} with true positions (means are over these)"
    for key, words in _SHORT.items():
        pooled, spread = getattr(kind.pooled, key), kind.spread[key]
        line = f"  {words:16} pooled {pooled:.3f}"
        if key in kind.intervals:
            low, high = kind.intervals[key]
            line += f" (95 %: {low:.3f} to {high:.3f})"
        if key == "best_f1" and kind.pooled.best_threshold is not None:
            line += f" at score ≥ {kind.pooled.best_threshold:.4g}"
        if spread.count > 1:
            line += f"; mean {spread.in_words()}, quartiles {spread.q1:.3f} {spread.median:.3f} {spread.q3:.3f}"
        lines.append(line)
    if kind.masks is not None:
        lines.append(
            f"  {'PQ':16} pooled {kind.masks['pq']:.3f} = SQ {kind.masks['sq']:.3f} × RQ {kind.masks['rq']:.3f}"
        )
        lines += [f"  {_MASKS[key]:16} mean {kind.spread[key].in_words()}" for key in MASK_FIGURES]
    return lines


def _czii(score: CziiScore) -> list[str]:
    lines = [f"CZII score {score.score:.4f} (F-beta, β = {score.beta:g}, {score.matching} counting)"]
    for kind in score.classes:
        counts = f"hits {kind.true_positives}, false {kind.false_positives}, missed {kind.false_negatives}"
        lines.append(f"  {kind.name:20} {kind.f_beta:.4f}  weight {kind.weight:g}  {counts}")
    return lines
