"""Scores of the candidates of a query as its matching left them, and the cut that proposals were chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import peaks
from cryosam_dask.report import charts
from cryosam_dask.settings import Settings
from cryosam_dask.stages import match, propose, rank, structure
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

MOST_CELLS = 5_000_000
"""The most cells in which candidates are searched again; with more, only the scores of proposals are shown."""


@dataclass(frozen=True)
class Scores:
    """Scores of the candidates, how many reach the cut, and how many of these became proposals beside the prompts."""

    chart: charts.Histogram
    candidates: int
    kept: int
    proposals: int
    reason: str


def scores(store: RunStore, name: str, settings: Settings | None) -> Scores | None:
    """Candidates' scores as the matching left them, with the cut that the proposals were chosen by."""
    where = layout.proposals(name)
    if settings is None or layout.proposal_array(name, "scores") not in store:
        return None
    attributes = dict(store.group(where).attrs)
    given, radius = int(str(attributes.get("given"))), float(str(attributes.get("nms_radius")))
    chosen = np.asarray(store.read(layout.proposal_array(name, "scores")), float)[given:]
    candidates, cut = _candidates(store, name, settings, radius)
    values = candidates if len(candidates) else chosen
    lowest = cut.threshold if cut is not None else float(chosen.min()) if len(chosen) else None
    # the stored ones are in single precision
    kept = np.zeros(len(values), bool) if lowest is None else values >= lowest - 1e-6
    chart = charts.histogram(values, kept, None if kept.all() else lowest)
    if chart is None:
        return None
    reason = cut.reason if cut is not None else f"the best K = {settings.match.count} at most"
    return Scores(chart, len(values), int(kept.sum()), len(chosen), reason)


def _candidates(
    store: RunStore, name: str, settings: Settings, radius: float
) -> tuple[NDArray[np.float64], peaks.Cut | None]:
    """Scores of all candidates that proposals were chosen from, and the cut where it was found from the scores."""
    if settings.match.rank == "profile":
        count = len(store.names(layout.proposals(name)))
        left = [i for i in range(count) if layout.profiles(name, i) in store]
        if not left:
            return np.empty(0), None
        background = [layout.profile_array(name, i, "unmoved") in store for i in left]
        units = tuple(
            Unit("", (i,), {"index": i, "kind": "background" if random else "candidates"})
            for i, random in zip(left, background, strict=True)
        )
        stage = Stage("", rank.work, {}, "", units, len(units))
        among = propose.ranked(store, name, stage)
        points, values = among.points, among.scores
    else:
        this = match.passes(name, settings.match)[-1]
        limit = 4 * settings.match.count if isinstance(settings.match.count, int) else None
        extended = settings.match.structure == "extended"
        lowest = structure.threshold(store, name, settings.match) if extended else settings.match.tau_sim
        survey = match.survey(store, this, lowest)
        if limit is None and survey.reached > MOST_CELLS:
            return np.empty(0), None
        points, similarity = propose.survivors(store, this, survey, radius, limit)
        values = similarity.astype(float)
    values = values[peaks.non_maximum_suppression(points, values, radius)]
    if settings.match.count != "auto":
        return values, None
    if settings.match.structure == "extended":
        return values, peaks.Cut(lowest, len(values), "every place that is like what was clicked")
    return values, peaks.auto_cut(values) if settings.match.rank == "profile" else peaks.otsu_cut(values)
