"""Figures of a benchmark: of each tomogram, and their mean and spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cryosam_dask.evaluate import Summary, evaluate_picks, f_beta, summarise
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.paper import Line, Table
from cryosam_dask.published.records import Record, Records
from cryosam_dask.published.times import minutes

RADIUS = 125.0
"""Å: half of the diameter of a bacterial ribosome, so that a pick that counts lies inside of the particle."""


@dataclass(frozen=True)
class Score:
    """Figures of one tomogram.

    Attributes
    ----------
    precision, recall, f1 : of the picks, against all annotations
    unprompted : recall of those annotations alone that were no prompts; None where there are none
    picks, truth : how many; prompts : annotations that were given
    minutes : that it took, see `times`; matching : of these, minutes in matching
    """

    tomogram: str
    precision: float
    recall: float
    f1: float
    unprompted: float | None
    picks: int
    truth: int
    prompts: int
    minutes: float
    matching: float


def score_of(records: Records, record: Record, radius: float, count: int | None = None) -> Score:
    """The figures of a finished configuration. radius : Å; count : which K, of a run with several."""
    size = np.asarray(record.voxel_size, float)
    table = records.picks(record, count)
    picks = table[["z", "y", "x"]].to_numpy(float) * size
    truth = np.asarray(record.truth, float).reshape(-1, 3) * size
    result = evaluate_picks(picks, table["score"].to_numpy(float), truth, radius)
    rest = np.delete(truth, record.prompted, axis=0)
    unprompted = None
    if len(rest):
        unprompted = evaluate_picks(picks, table["score"].to_numpy(float), rest, radius).recall
    return Score(
        record.tomogram,
        result.precision,
        result.recall,
        result.f1,
        unprompted,
        len(picks),
        len(truth),
        len(record.prompted),
        minutes(record.seconds),
        record.seconds.get("matching", 0.0) / 60,
    )


@dataclass(frozen=True)
class Result:
    """A row of a table, over those of its `expected` tomograms that are complete; `failed` : name and error."""

    line: Line
    expected: int
    scores: tuple[Score, ...]
    failed: tuple[tuple[str, str], ...]
    devices: tuple[str, ...] = ()

    def summary(self, name: str) -> Summary:
        """Mean and spread over tomograms of a figure of `Score`."""
        return summarise(value for score in self.scores if (value := getattr(score, name)) is not None)

    @property
    def f1(self) -> float | None:
        """Of the mean precision and the mean recall, as in the paper."""
        precision, recall = self.summary("precision").mean, self.summary("recall").mean
        return None if precision is None or recall is None else f_beta(precision, recall)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        config = self.line.config
        return {
            "label": self.line.label,
            "prompts": self.line.prompts,
            "config": None if config is None else config.key,
            "count": self.line.count,
            "published": asdict(self.line.published),
            "expected": self.expected,
            "tomograms": len(self.scores),
            "f1": self.f1,
            **{name: self.summary(name).to_dict() for name in ("precision", "recall", "minutes", "matching")},
            "f1_of_tomograms": self.summary("f1").to_dict(),
            "unprompted": self.summary("unprompted").to_dict(),
            "scores": [asdict(score) for score in self.scores],
            "failed": [{"tomogram": name, "error": error} for name, error in self.failed],
        }


def results_of(table: Table, asked: Asked, kind: str, radius: float) -> list[Result]:
    """The rows of a table from what is recorded. radius : Å."""
    names = [entry.name for entry in asked.entries]
    return [_result(line, asked, names[: table.limit], kind, radius) for line in table.lines]


def _result(line: Line, asked: Asked, tomograms: Sequence[str], kind: str, radius: float) -> Result:
    if line.config is None:
        return Result(line, 0, (), ())
    scores, failed, devices = [], [], []
    for name in tomograms:
        record = asked.record(name, kind, line.config)
        if record is None:
            continue
        if record.status == "failed":
            failed.append((name, record.error))
            continue
        scores.append(score_of(asked.records, record, radius, line.count))
        devices.append(f"{record.device or 'cpu'}; {record.executor}")
    return Result(line, len(tomograms), tuple(scores), tuple(failed), tuple(dict.fromkeys(devices)))


def failures(results: Iterable[Result]) -> dict[str, list[str]]:
    """Tomograms that failed with their errors, each error once."""
    errors: dict[str, list[str]] = {}
    for result in results:
        for name, error in result.failed:
            if error not in errors.setdefault(name, []):
                errors[name].append(error)
    return errors
