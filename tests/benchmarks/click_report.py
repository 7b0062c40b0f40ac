"""The lines of `clicks.py`, and its report: means and worst cases by condition and kind, and whether scores are right.

Reliability: picks are put into bins by their score, and in a calibrated bin the share of picks that are right is the
mean score. The expected calibration error is the mean of the difference over all picks (C. Guo et al., On Calibration
of Modern Neural Networks, ICML 2017, arXiv 1706.04599, equations 2 to 5).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]
TEMPLATES = "template matching"
BINS = 10
_OF_A_TRIAL = ("condition", "seed", "kind", "click", "receiver")  # besides what `series_of` says


def read_rows(path: Path) -> Iterator[Row]:
    """The lines of a file; one that was cut off when the program was killed is left out."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: a line that is cut off is left out", file=sys.stderr)


def append_row(path: Path, row: Row) -> None:
    """Add a line, after a line that was cut off, too."""
    text = json.dumps(row) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


class Bin(NamedTuple):
    """Picks of similar scores: limits, number, mean score, share of them that are right."""

    low: float
    high: float
    picks: int
    score: float
    right: float


def reliability(scored: Iterable[Sequence[float]], bins: int = BINS) -> list[Bin]:
    """Bins of equal width with their picks, (score from 0 to 1, right or not); those without any are left out."""
    table = np.array([tuple(pair) for pair in scored], dtype=np.float64).reshape(-1, 2)
    place = np.clip((table[:, 0] * bins).astype(int), 0, bins - 1)
    out = []
    for k in np.unique(place).tolist():
        score, right = table[place == k].mean(axis=0)
        out.append(Bin(k / bins, (k + 1) / bins, int((place == k).sum()), float(score), float(right)))
    return out


def calibration_error(table: Sequence[Bin]) -> float | None:
    """Expected calibration error; None without picks."""
    picks = sum(b.picks for b in table)
    return sum(b.picks * abs(b.score - b.right) for b in table) / picks if picks else None


def series_of(row: Row) -> tuple[str, ...]:
    """What has a table of its own: models with their changes, on one split and one shape."""
    return row["models"], json.dumps(row.get("set", [])), row["split"], json.dumps(row["shape"])


def figure_of(row: Row) -> float | None:
    """F1, or Dice where a structure was clicked; None where the kind is absent."""
    value = row.get("f1", row.get("dice"))
    return None if value is None else float(value)


def mean_and_worst(values: Iterable[float | None]) -> str:
    """`.81 (.40)`, the second being the smallest; a dash for none."""
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.2f} ({min(known):.2f})" if known else "–"


def _mean(values: Iterable[float | None], digits: int = 2) -> str:
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.{digits}f}" if known else "–"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]


def _grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by keys, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(key) for key in keys)].append(row)
    return groups


def _scored(rows: Iterable[Row]) -> list[Sequence[float]]:
    return [pair for row in rows for pair in row["scored"]]


def _present(rows: list[Row], templates: list[Row], keys: Sequence[str]) -> list[str]:
    """The table of what was looked for where it is."""
    header = [*keys, "tomograms", "measure", "mean (worst)", "IoU", "AP", "best cut", "all clicks", "IoU of all"]
    header += ["mask of the click, IoU", "leaks", "picks / truth", "calibration error", "s"]
    header += ["template matching, best cut (AP)"] if templates else []
    matched = _grouped(templates, keys)
    lines = []
    for key, group in _grouped(rows, keys).items():
        single = [row for row in group if row["click"] != "all"]
        together = [row for row in group if row["click"] == "all"]
        line = [*map(str, key), str(len({row["seed"] for row in group}))]
        line += ["Dice" if "dice" in group[0] else "F1", mean_and_worst(map(figure_of, single))]
        line += [mean_and_worst(row.get("mean_iou") for row in single)]
        line += [_mean(row.get(k) for row in single) for k in ("average_precision", "best_f1")]
        line += [mean_and_worst(map(figure_of, together)), _mean(row.get("mean_iou") for row in together)]
        line += [mean_and_worst(row["prompt_iou"] for row in single)]
        line += [f"{sum(bool(row['leaks']) for row in single)} of {len(single)}"]
        line += [f"{_mean((r['picks'] for r in single), 0)} / {_mean((r.get('truth') for r in single), 0)}"]
        line += [_mean([calibration_error(reliability(_scored(single)))]), _mean((r["seconds"] for r in single), 0)]
        if templates:
            same = matched.get(key, [])
            line += [f"{mean_and_worst(map(figure_of, same))}, {_mean(r['average_precision'] for r in same)}"]
        lines.append(line)
    return _table(header, lines)


def _absent(rows: list[Row], keys: Sequence[str]) -> list[str]:
    """The table of what was looked for where it isn't."""
    header = [*keys, "looked for in", "trials", "false picks, mean", "most", "with all clicks, mean"]
    words = {"removed": "the same without it", "other": "other shapes"}
    lines = []
    for key, group in _grouped(rows, [*keys, "receiver"]).items():
        single = [row["picks"] for row in group if row["click"] != "all"]
        together = [row["picks"] for row in group if row["click"] == "all"]
        most = str(max(single, default="–"))
        line = [*map(str, key[:-1]), words[key[-1]], str(len(single)), _mean(single, 1), most, _mean(together, 1)]
        lines.append(line)
    return _table(header, lines)


def _believed(rows: list[Row]) -> list[str]:
    bins = reliability(_scored(row for row in rows if row["click"] != "all"))
    lines = [[f"{b.low:.1f}–{b.high:.1f}", str(b.picks), f"{b.score:.2f}", f"{b.right:.2f}"] for b in bins]
    error = calibration_error(bins)
    said = [] if error is None else ["", f"Expected calibration error: {error:.3f}."]
    return [*_table(["score", "picks", "mean score", "share that is right"], lines), *said]


def report(rows: Sequence[Row], by_kind: bool = True) -> str:
    """Markdown: for each of the models, with their changes, and each split and shape its tables.

    A line that is there twice counts once, as it was written last; of lines of templates the finest angle counts.
    """
    keys = ["condition", "kind"] if by_kind else ["condition"]
    coarse_first = sorted(rows, key=lambda row: -row.get("angle", 0))
    unique = {json.dumps([*series_of(r), *(r.get(k) for k in _OF_A_TRIAL)]): r for r in coarse_first}
    ours = [row for row in unique.values() if row["models"] != TEMPLATES]
    templates = [row for row in unique.values() if row["models"] == TEMPLATES]
    series: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in ours or templates:
        series[series_of(row)].append(row)
    lines: list[str] = []
    for (models, changes, split, shape), group in series.items():
        size = " × ".join(map(str, json.loads(shape)))
        same = [t for t in templates if series_of(t)[2:] == (split, shape)]
        lines += [f"## {', '.join([models, *json.loads(changes)])}: {split}, {size} voxels", ""]
        if not ours:
            lines += [*_templates_alone(group, keys), ""]
            continue
        present, absent = ([r for r in group if (r["receiver"] is None) == here] for here in (True, False))
        lines += [*_present(present, same, keys), ""] if present else []
        lines += ["### Where there is none of the kind", "", *_absent(absent, keys), ""] if absent else []
        lines += ["### Scores", "", *_believed(group), ""]
        if failed := [row for row in group if "error" in row]:
            lines += [f"{len(failed)} of {len(group)} trials ended with an error, the first: {failed[0]['error']}", ""]
    return "\n".join(lines).strip() or "nothing to report"


def _templates_alone(rows: list[Row], keys: Sequence[str]) -> list[str]:
    lines = [
        [
            *map(str, key),
            str(len(group)),
            mean_and_worst(map(figure_of, group)),
            _mean(r["average_precision"] for r in group),
        ]
        for key, group in _grouped(rows, keys).items()
    ]
    return _table([*keys, "tomograms", "best cut, F1", "AP"], lines)
