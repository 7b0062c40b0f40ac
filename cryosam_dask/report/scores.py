"""Scores of the candidates of a query as its matching left them, and the cut that proposals were chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import peaks
from cryosam_dask.report import charts
from cryosam_dask.settings import Settings
from cryosam_dask.stages import match, propose, rank, recognize, structure
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.stages.cut import counts_clicked
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

MOST_CELLS = 5_000_000
"""The most cells in which candidates are searched again; with more, only the scores of proposals are shown."""


@dataclass(frozen=True)
class Scores:
    """Scores of the candidates, how many reach the cut, and how many of these became proposals beside the prompts.

    what : the scores are
    """

    chart: charts.Histogram
    candidates: int
    kept: int
    proposals: int
    reason: str
    what: str = "scores"


def scores(store: RunStore, name: str, settings: Settings | None) -> Scores | None:
    """Candidates' scores as the matching left them, with the cut that the proposals were chosen by."""
    where = layout.proposals(name)
    if settings is None or layout.proposal_array(name, "scores") not in store:
        return None
    attributes = dict(store.group(where).attrs)
    given, radius = int(str(attributes.get("given"))), float(str(attributes.get("nms_radius")))
    chosen = np.asarray(store.read(layout.proposal_array(name, "scores")), float)[given:]
    candidates, cut = _candidates(store, name, settings, radius), propose.read_cut(store, name)
    values = candidates if len(candidates) else chosen
    lowest = cut.threshold if cut is not None else float(chosen.min()) if len(chosen) else None
    # the stored ones are in single precision
    kept = np.zeros(len(values), bool) if lowest is None else values >= lowest - 1e-6
    chart = charts.histogram(values, kept, None if kept.all() else lowest)
    if chart is None:
        return None
    best = "found from the scores" if settings.match.count == "auto" else f"the best K = {settings.match.count} at most"
    reason = best if cut is None else cut.reason
    return Scores(chart, len(values), int(kept.sum()), len(chosen), reason, meaning(settings))


def meaning(settings: Settings) -> str:
    """What the scores of candidates are."""
    return {
        "similarity": "similarity with the query",
        "profile": "likeness of the density around them, 0.5 for a typical one of the kind",
        "descriptor": "probability that they are of the kind",
    }[settings.match.rank]


def unsure(store: RunStore, name: str) -> str | None:
    """What is said where hardly anything stands out from the background."""
    cut = propose.read_cut(store, name)
    return None if cut is None or cut.clear else propose.UNSURE


def _candidates(store: RunStore, name: str, settings: Settings, radius: float) -> NDArray[np.float64]:
    """Scores of all candidates that proposals were chosen from; none where they are too many to be searched again."""
    if settings.match.rank == "similarity":
        return _similar(store, name, settings, radius)
    profiles = settings.match.rank == "profile"
    array = partial(layout.profiles, name) if profiles else partial(layout.look_array, name, array="descriptors")
    count = len(store.names(layout.proposals(name)))
    left = [i for i in range(count) if array(i) in store]
    if not left:
        return np.empty(0)
    if profiles:
        among = propose.ranked(store, name, _ranking(store, name, left))
    else:
        extended = settings.match.structure == "extended"
        units = tuple(Unit("", (i,), {"index": i}) for i in left)
        looking = Stage("", recognize.work, {"extended": extended}, "", units, len(units))
        among = propose.recognized(store, name, looking)
    return among.scores[peaks.non_maximum_suppression(among.points, among.scores, radius)]


def _ranking(store: RunStore, name: str, left: list[int]) -> Stage:
    """The ranking whose units these were."""
    background = [layout.profile_array(name, i, "unmoved") in store for i in left]
    units = tuple(
        Unit("", (i,), {"index": i, "kind": "background" if random else "candidates"})
        for i, random in zip(left, background, strict=True)
    )
    return Stage("", rank.work, {}, "", units, len(units))


def _similar(store: RunStore, name: str, settings: Settings, radius: float) -> NDArray[np.float64]:
    this = match.passes(name, settings.match)[-1]
    limit = 4 * settings.match.count if isinstance(settings.match.count, int) else None
    extended = settings.match.structure == "extended"
    lowest = structure.threshold(store, name, settings.match) if extended else settings.match.tau_sim
    survey = match.survey(store, this, lowest)
    if limit is None and survey.reached > MOST_CELLS:
        return np.empty(0)
    points, similarity = propose.survivors(store, this, survey, radius, limit)
    values = similarity.astype(float)
    if settings.match.count == "auto" and not counts_clicked(settings.match):
        prompts = np.asarray(store.read(layout.query_array(name, "points")), float)
        points, values = (part[~propose.near(points, prompts, radius)] for part in (points, values))
    return values[peaks.non_maximum_suppression(points, values, radius)]
