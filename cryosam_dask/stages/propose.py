"""Propose: candidates of the last ratio → point prompts. Non-maximum suppression, then the best K or a cut by score.

The work is small, so the driver does it itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.kernels import decisions, peaks
from cryosam_dask.kernels.standing_out import UNKNOWN, Standing
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import cut, learned, match, negative, rank, recognize, structure
from cryosam_dask.stages.base import Stage
from cryosam_dask.stages.declaration import Arrays, Declaration
from cryosam_dask.stages.match import Pass, Survey
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Float32, Shape3

Float64 = NDArray[np.float64]

FULL = "full"
"""Attribute of proposals that negatives may still reject once they are segmented: whether there are K of them."""

CUT = "cut"
"""Attribute of proposals that a cut was found for: its threshold, its reason in words, and whether it is clear."""

UNSURE = (
    "little or nothing stands out from the background, so only what was clicked and the clearest places are kept; what "
    "helps: a click on another particle of the kind, a point on what is not of it (--not), or match.count = K for the "
    "best K all the same"
)
"""What is said where a cut is not clear, or leaves nothing but what was clicked."""

SHORTLIST = 1024
SHORTLIST_DENSITY = 200e-6
"""How many candidates are ranked: the larger of a number and a number per voxel of the tomogram."""

SECONDS = 0.2
"""Of the driver."""

BAND = 500_000
"""About how many cells non-maximum suppression holds at a time."""


@dataclass(frozen=True)
class Candidates:
    """Places that may be proposed.

    points : (n, 3) voxels (z, y, x); scores : (n,), best first
    radius : least distance of two of them, voxels; rejected : how many were nearer to a negative than to the query
    standing : what is known of similarities besides
    """

    points: Float64
    scores: Float64
    radius: float
    rejected: int = 0
    standing: Standing = UNKNOWN


def candidates(store: RunStore, this: Pass, survey: Survey, settings: MatchSettings) -> Candidates:
    """The candidates by similarity: a shortlist if they are to be ranked by profiles, else the best K, or all."""
    radius = suppression_radius(store, this.name, settings)
    limit = None if settings.count == "auto" else settings.count
    if ranks(settings):
        limit = shortlist_length(store.shape)
    points, similarity = survivors(store, this, survey, radius, limit)
    return Candidates(points, similarity.astype(float), radius, standing=_standing(store, this, survey, settings))


def _standing(store: RunStore, this: Pass, survey: Survey, settings: MatchSettings) -> Standing:
    """What a cut in similarities needs to know besides them; nothing where there is none."""
    if settings.count != "auto" or settings.rank != "similarity" or settings.structure == "extended":
        return UNKNOWN
    cells = math.prod(geometry.cell_grid(store.shape, this.ratio))
    own = structure.own_similarity(store, this.name, settings)
    return Standing(own, survey.reached / cells, settings.tau_sim)


def ranked(store: RunStore, name: str, ranking: Stage) -> Candidates:
    """The shortlist, ranked by the density around each place, once all units of `stages.rank` are done."""
    points, scores, rejected = rank.gather(
        store,
        name,
        ranking,
        lambda contrast: np.concatenate(
            [negative.profiles(store, name, contrast), *learned.rejected_profiles(store, name)]
        ),
    )
    return Candidates(points, scores, rank.query_radius(store, name), rejected)


def recognized(store: RunStore, name: str, looking: Stage) -> Candidates:
    """The places that a segmenter of volumes saw, by how probably they are of the kind."""
    points, scores, rejected = recognize.gather(store, name, looking)
    if looking.settings["extended"]:
        return Candidates(points, scores, 0.0)
    size = float(np.median(store.read(layout.query_array(name, "sizes"))))
    return Candidates(points, scores, 0.8 * geometry.equivalent_radius(size), rejected)


def ranks(settings: MatchSettings) -> bool:
    """Whether candidates are ranked by the density around them."""
    return settings.rank == "profile"


def suppression_radius(store: RunStore, name: str, settings: MatchSettings) -> float:
    """Least distance of two candidates in voxels: the setting, or half the radius of what was prompted."""
    if settings.nms_radius is not None:
        return settings.nms_radius
    size = float(np.median(store.read(layout.query_array(name, "sizes"))))
    return max(0.5 * geometry.equivalent_radius(size), 1.03 * settings.ratios[-1])


def shortlist_length(shape: Shape3) -> int:
    """How many candidates are ranked, at most."""
    return max(SHORTLIST, int(SHORTLIST_DENSITY * math.prod(shape)))


def survivors(store: RunStore, this: Pass, survey: Survey, radius: float, limit: int | None) -> tuple[Float64, Float32]:
    """The best `limit` cells (None: all) that reach the threshold and have no better one within `radius`.

    Returns points (n, 3) in voxels and scores (n,), best first. Cells are taken in bands of falling similarity, each
    by a pass over the array, so that memory does not grow with the tomogram but by what is kept.
    """
    points, scores = np.empty((0, 3)), np.empty(0, np.float32)
    for low, high in _bands(survey):
        if limit is not None and len(points) >= limit:
            break
        centers, values = _cells(store, this, low, high)
        rest = None if limit is None else limit - len(points)
        kept = peaks.non_maximum_suppression(centers, values, radius, rest, points)
        points, scores = np.concatenate([points, centers[kept]]), np.concatenate([scores, values[kept]])
    return points, scores


def _bands(survey: Survey) -> list[tuple[np.float32, np.float32]]:
    """Half-open intervals of similarity, falling, from above its maximum to the threshold, of about `BAND` cells."""
    bands, high, inside = [], len(survey.counts), 0
    for step in range(len(survey.counts) - 1, -1, -1):
        inside += int(survey.counts[step])
        if inside >= BAND or (step == 0 and inside):
            bands.append((survey.edges[step], survey.edges[high]))
            high, inside = step, 0
    return bands


def _cells(store: RunStore, this: Pass, low: np.float32, high: np.float32) -> tuple[Float64, Float32]:
    """Centres (n, 3) and similarities (n,) of the cells in [low, high), in (z, y, x) order of chunks."""
    axes = [geometry.cell_centers(n, this.ratio) for n in store.shape]
    points, scores = [np.empty((0, 3))], [np.empty(0, np.float32)]
    for box, values in match.parts(store, this):
        index = np.nonzero((values >= low) & (values < high))
        points.append(np.stack([axes[i][index[i] + box[i][0]] for i in range(3)], axis=1))
        scores.append(values[index])
    return np.concatenate(points), np.concatenate(scores)


def choose(store: RunStore, name: str, settings: MatchSettings, among: Candidates, upstream: str) -> list[str]:
    """Choose the prompts among candidates and write them, the user's own first. Returns what a user should know.

    A proposal within `among.radius` of a user's prompt stands for the same particle and is left out. A borrowed query
    has no prompts, and there may be no proposals either. Places that a person accepted are prompts too, and where one
    was rejected nothing is proposed.

    upstream : fingerprint of what the candidates come from
    """
    points, scores, radius = among.points, among.scores, among.radius
    full, upstream = len(points) == settings.count, learned.joined(store, name, negative.joined(store, name, upstream))
    prompts = np.asarray(store.read(layout.query_array(name, "points")), float)
    kept = peaks.non_maximum_suppression(points, scores, radius)
    points, scores = points[kept], scores[kept]
    accepted, rejected = learned.decided(store, name)
    prompts = np.concatenate([prompts, accepted[~near(accepted, prompts, radius)]])
    _keep_candidates(store, name, points, scores)
    new = ~near(points, prompts, radius) & ~near(points, rejected, max(radius, learned.REJECTED))
    notes: list[str] = []
    if among.rejected:
        notes.append(f"{name}: {among.rejected} candidates left out, nearer to a negative than to the query")
    described: dict[str, Any] = {"upstream": upstream, "given": len(prompts), "nms_radius": radius, CUT: None}
    if settings.count == "auto":
        chosen = cut.find(scores if cut.counts_clicked(settings) else scores[new], settings, among.standing)
        if settings.rank == "similarity":  # probabilities were corrected by the decisions already
            chosen = _agreed(chosen, points, scores, (accepted, rejected), radius)
        elif settings.rank == "descriptor" and settings.structure != "extended":
            chosen = _likely(chosen, scores, len(accepted) + len(rejected))
        notes.append(f"{name}: K = {chosen.kept}; {chosen.reason}")
        new &= scores >= chosen.threshold
        clear = chosen.clear and bool(new.any() or settings.structure == "extended")
        described[CUT] = {"threshold": chosen.threshold, "reason": chosen.reason, "clear": clear}
        if not clear:
            notes.append(f"{name}: {UNSURE}")
    else:
        new[settings.count :] = False
    points = np.concatenate([prompts, points[new]])
    scores = np.concatenate([np.ones(len(prompts)), scores[new]])
    where, stored = layout.proposals(name), scores.astype(np.float32)
    if not _is_there(store, name, points, stored, described):
        # half-written ones are none
        store.group(where).attrs["upstream"] = None
        store.put(
            layout.proposal_array(name, "points"), points, ("prompt", "axis"), {"units": "voxel", "order": "z, y, x"}
        )
        store.put(layout.proposal_array(name, "scores"), stored, ("prompt",))
        store.group(where).attrs.update(described)
    if (
        settings.rank == "similarity"
        and negative.feature_arrays(store, name)
        and store.group(where).attrs.get(FULL) != full
    ):
        store.group(where).attrs[FULL] = full
    return notes


def reaching(among: Candidates, cut: float) -> int:
    """How many candidates `choose` may choose from that have this score, as it is stored, or a better one."""
    kept = peaks.non_maximum_suppression(among.points, among.scores, among.radius)
    return int((np.asarray(among.scores[kept], np.float32) >= np.float32(cut)).sum())


def _agreed(
    chosen: peaks.Cut, points: Float64, scores: Float64, decided: tuple[Float64, Float64], radius: float
) -> peaks.Cut:
    """A cut that candidates, which a person accepted or rejected, contradict least."""
    known = [scores[near(points, places, radius)] for places in decided]
    told = np.repeat([True, False], [len(part) for part in known])
    threshold = decisions.agreed(chosen.threshold, np.concatenate(known), told)
    if threshold == chosen.threshold:
        return chosen
    return _moved(threshold, scores, "are left as people decided", clear=True)


def _likely(chosen: peaks.Cut, scores: Float64, decided: int) -> peaks.Cut:
    """A cut of probabilities that is not too low for what was decided."""
    least = decisions.least_likely(decided)
    if chosen.threshold >= least:
        return chosen
    words = f"are of the kind with a probability of {least:.2f} or more, after {decided} decisions"
    return _moved(least, scores, words, clear=chosen.clear)


def _moved(threshold: float, scores: Float64, words: str, *, clear: bool) -> peaks.Cut:
    """A cut at a threshold that decisions ask for; words : what is said of the places that it keeps."""
    kept = int((scores >= threshold).sum())
    return peaks.Cut(threshold, kept, f"{kept} of {len(scores)} places {words}", clear)


def _keep_candidates(store: RunStore, name: str, points: Float64, scores: Float64) -> None:
    """Write all places that were chosen from, best first, unless they are there."""
    places, values = (layout.proposal_array(name, array) for array in _CANDIDATES)
    known = places in store and values in store and np.array_equal(store.read(places), points)
    if not known or not np.array_equal(store.read(values), np.asarray(scores, np.float32)):
        store.put(places, points, ("candidate", "axis"), {"units": "voxel", "order": "z, y, x"})
        store.put(values, np.asarray(scores, np.float32), ("candidate",))


_CANDIDATES: tuple[layout.ProposalArray, layout.ProposalArray] = ("candidates", "candidate_scores")


def read_candidates(store: RunStore, name: str) -> tuple[Float64, Float32] | None:
    """All places (n, 3) that proposals were chosen from, and their scores (n,), best first; None where they were not
    kept."""
    places, values = (layout.proposal_array(name, array) for array in _CANDIDATES)
    if places not in store or values not in store:
        return None
    points, scores = np.asarray(store.read(places), float), store.read(values)
    return (points, scores) if len(points) == len(scores) else None


def near(points: Float64, prompts: Float64, radius: float) -> NDArray[np.bool_]:
    """Which of (n, 3) points stand for the same particle as one of (m, 3) prompts: those within `radius` of one."""
    return np.array([(np.linalg.norm(prompts - point, axis=1) <= radius).any() for point in points], bool)


def read_cut(store: RunStore, name: str) -> peaks.Cut | None:
    """The cut that the proposals were chosen by, without a number kept; None where they are the best K, or where an
    earlier version chose them."""
    told = store.group(layout.proposals(name)).attrs.get(CUT) if layout.proposals(name) in store else None
    if not isinstance(told, dict):
        return None
    return peaks.Cut(float(told["threshold"]), 0, str(told["reason"]), bool(told["clear"]))


def _is_there(store: RunStore, name: str, points: Float64, scores: Float32, described: dict[str, Any]) -> bool:
    """Whether these very proposals are stored."""
    where = layout.proposals(name)
    try:
        if where not in store or any(store.group(where).attrs.get(key) != described[key] for key in described):
            return False
        same = np.array_equal(store.read(layout.proposal_array(name, "points")), points)
        return same and np.array_equal(store.read(layout.proposal_array(name, "scores")), scores)
    except StoreError:
        return False


def read(store: RunStore, name: str) -> tuple[Float64, str]:
    """The prompts (n, 3) and the fingerprint of the matching that they come from."""
    where = layout.proposals(name)
    upstream = store.group(where).attrs.get("upstream") if where in store else None
    if not isinstance(upstream, str):
        raise StoreError(f"{store.url}: no proposals for {name!r} yet; run `cryosam match` first")
    return np.asarray(store.read(layout.proposal_array(name, "points")), float), upstream


STAGE = Declaration(
    "propose",
    "match",
    per="query",
    made_from=("match", "rank", "recognize", "negative", "refine"),
    arrays=(Arrays(layout.pattern(layout.proposal_array), "driver"),),
    places=lambda store, query: (layout.proposals(query),),
)
