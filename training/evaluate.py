"""Measures the network on tomograms that it was not trained on, and fits what turns similarity into probability.

`python training/evaluate.py TOMOGRAMS [--weights FILE] [--fit]`: TOMOGRAMS is a folder of `training/tomograms.py` with
seeds of its own. Each kind of particle is clicked several times, anywhere on its masks; what is clicked, and which
places are of its kind, is compared with the truth, per tomogram and in all. Some clicks of each tomogram are taken to
another one, where they should find nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import descriptors
from cryosam_dask.kernels.descriptors import Places, Query
from cryosam_dask.kernels.peaks import likely_cut, non_maximum_suppression
from cryosam_dask.models.particle_info import WEIGHTS
from cryosam_dask.models.particle_segmenter import ParticleSegmenter
from cryosam_dask.types import Answers, Look

CLICKS = 5
LEAST = 0.2


ABSENT = 8  # clicks of other tomograms that are taken to each
STRICTLY = 4  # times that these count for queries of other tomograms
ROUNDS = 4  # of fitting: which examples join a query depends on the weights
BINS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.01)


Scores = Callable[[Places, Query, Sequence[float]], NDArray[np.float64]]


class Truth(NamedTuple):
    """labels (z, y, x); kinds (M + 1,) of each label, 0 first; centres (M + 1, 3); sizes (M + 1,)."""

    labels: NDArray[np.int64]
    kinds: NDArray[np.int64]
    centres: NDArray[np.float64]
    sizes: NDArray[np.int64]


def truth_of(labels: NDArray[np.int64], kinds: NDArray[np.int64]) -> Truth:
    from scipy import ndimage

    index = np.arange(len(kinds))
    sizes = np.bincount(labels.ravel(), minlength=len(kinds))
    centres = np.array(ndimage.center_of_mass(np.ones(labels.shape), labels, index))
    return Truth(labels, kinds, centres, sizes)


def click(look: Look, point: NDArray[np.float64]) -> tuple[Answers, NDArray[np.int64], NDArray[np.bool_]]:
    """What a click says, asked again from the middle of its mask, and its mask."""
    place = point[None].astype(float)
    answers = look.answer(place)
    if answers.size[0]:
        again = look.answer(answers.middle)
        if again.size[0] and again.quality[0] >= answers.quality[0] - 0.05:
            place, answers = answers.middle, again
    low, mask = look.masks(place)[0]
    return answers, low, mask


def iou(truth: Truth, label: int, low: NDArray[np.int64], mask: NDArray[np.bool_]) -> float:
    window = tuple(slice(a, a + n) for a, n in zip(low, mask.shape, strict=True))
    both = int(((truth.labels[window] == label) & mask).sum())
    return both / (int(truth.sizes[label]) + int(mask.sum()) - both)


def places_of(look: Look) -> Places:
    points, centrality = look.centres(LEAST)
    seen = look.answer(points)
    kept = non_maximum_suppression(seen.middle, seen.quality * centrality, 3.0)
    return Places(
        seen.middle[kept],
        seen.descriptor[kept].astype(float),
        seen.quality[kept].astype(float),
        centrality[kept].astype(float),
        seen.size[kept].astype(float),
    )


def right(places: Places, score: NDArray[np.float64], centres: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Which places are of the kind: greedy, by falling score, each centre once."""
    out, free = np.zeros(len(places), bool), np.ones(len(centres), bool)
    for i in np.argsort(-score, kind="stable"):
        distance = np.where(free, np.linalg.norm(centres - places.centres[i], axis=1), np.inf)
        nearest = int(distance.argmin())
        if distance[nearest] <= radius:
            out[i], free[nearest] = True, False
    return out


class Click(NamedTuple):
    """A click, what was seen of it, and where others of its kind are in its tomogram (M, 3)."""

    query: Query
    centres: NDArray[np.float64]
    iou: float
    diameter: float


class Seen(NamedTuple):
    """What was seen of a tomogram: its places, and clicks in it; `missed` clicks have no mask at all."""

    name: str
    places: Places
    clicks: list[Click]
    missed: int


def see(model: ParticleSegmenter, path: Path, rng: np.random.Generator) -> Seen:
    """Look at a tomogram, and click on each kind of particle."""
    with np.load(path) as file:
        density = file["density"].astype(np.float32)
        kinds = np.concatenate([[0], file["kinds"]]).astype(np.int64)
        truth, species = truth_of(file["labels"].astype(np.int64), kinds), int(file["species"])
    look = model.look(density)
    clicks, missed = [], 0
    for kind in range(1, species + 1):
        labels = np.flatnonzero((truth.kinds == kind) & (truth.sizes >= 60))
        if len(labels) < 4:
            continue
        radius = max(3.0, 0.5 * float(np.cbrt(6 * np.median(truth.sizes[labels]) / np.pi)))
        for label in rng.choice(labels, min(CLICKS, len(labels)), replace=False):
            voxels = np.argwhere(truth.labels == label)
            answers, low, mask = click(look, voxels[rng.integers(len(voxels))])
            if not mask.any():
                missed += 1
                continue
            seen = answers.descriptor.astype(float)
            query = Query(seen, float(answers.quality[0]), float(mask.sum()), radius, np.empty((0, seen.shape[1])))
            diameter = float(np.cbrt(6 * truth.sizes[label] / np.pi))
            clicks.append(Click(query, truth.centres[labels], iou(truth, label, low, mask), diameter))
    return Seen(path.stem, places_of(look), clicks, missed)


def absent(every: list[Seen], rng: np.random.Generator) -> list[tuple[Places, Query]]:
    """Clicks of other tomograms with the places that they are compared with."""
    pairs = []
    for seen in every:
        others = [click for other in every if other is not seen for click in other.clicks]
        chosen = rng.choice(len(others), min(ABSENT, len(others)), replace=False) if others else []
        pairs += [(seen.places, others[i].query) for i in chosen]
    return pairs


def figures(
    every: list[Seen], weights: Sequence[float], scores: Scores = descriptors.probabilities
) -> dict[str, float]:
    """Means over the clicks: IoU, F1 at the cut that is found, the best F1, average precision."""
    rows = [(0.0,) * 5 for seen in every for _ in range(seen.missed)]
    for places, clicks in ((seen.places, seen.clicks) for seen in every):
        for one in clicks:
            score = scores(places, one.query, weights)
            hits = right(places, score, one.centres, one.query.radius)
            rows.append((one.iou, float(one.iou < 0.4), *curve(score, hits, len(one.centres))))
    if not rows:
        return {}
    names = ("iou", "iou<.4", "f1", "best", "ap")
    return {name: round(float(v), 3) for name, v in zip(names, np.mean(rows, axis=0), strict=True)}


def by_similarity(places: Places, query: Query, weights: Sequence[float]) -> NDArray[np.float64]:
    """The likeness of descriptors alone."""
    return np.asarray(np.maximum(places.descriptors @ query.descriptors[0], 0))


def by_size(places: Places, query: Query, weights: Sequence[float]) -> NDArray[np.float64]:
    """No descriptors: how much a place is one of a particle, and of the same size."""
    ratio = np.minimum(places.sizes, query.size) / np.maximum(np.maximum(places.sizes, query.size), 1)
    return np.asarray(places.quality * places.centrality * ratio)


def alone(places: Places, query: Query, weights: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities by the click alone: no place joins it."""
    mean = query.descriptors[0] / np.linalg.norm(query.descriptors[0])
    return descriptors.probability(places, query, mean, weights)


PARTS: dict[str, Scores] = {
    "size, quality, centrality": by_size,
    "descriptors": by_similarity,
    "both": alone,
    "both, places that are sure join the click": descriptors.probabilities,
}


def curve(score: NDArray[np.float64], hits: NDArray[np.bool_], count: int) -> tuple[float, float, float]:
    """F1 at the cut that is found, the best F1, and the average precision."""
    order = np.argsort(-score, kind="stable")
    hit, number = np.cumsum(hits[order]), np.arange(1, len(order) + 1)
    f1 = 2 * hit / (number + count)
    at = likely_cut(score).kept
    return (
        float(f1[at - 1]) if at else 0.0,
        float(f1.max(initial=0)),
        float((hits[order] * hit / number).sum() / count),
    )


def calibration(every: list[Seen], pairs: list[tuple[Places, Query]], weights: Sequence[float]) -> dict[str, object]:
    """Of places with a probability in each of `BINS`, the share that is of the kind; false picks where none is."""
    scores, truths = [], []
    for seen in every:
        for one in seen.clicks:
            score = descriptors.probabilities(seen.places, one.query, weights)
            scores.append(score)
            truths.append(right(seen.places, score, one.centres, one.query.radius))
    score, truth = np.concatenate(scores), np.concatenate(truths)
    share = {
        f"{low:g}": round(float(truth[(score >= low) & (score < high)].mean()), 2)
        for low, high in itertools.pairwise(BINS)
        if ((score >= low) & (score < high)).any()
    }
    false = [likely_cut(descriptors.probabilities(places, query, weights)).kept for places, query in pairs]
    return {"right": share, "false where absent": {"mean": float(np.mean(false)), "median": float(np.median(false))}}


def fit(every: list[Seen], pairs: list[tuple[Places, Query]]) -> NDArray[np.float64]:
    """The weights of `kernels.descriptors`, with queries that have their kind here and such that have not."""
    weights = np.asarray(descriptors.WEIGHTS)
    for _ in range(ROUNDS):
        rows = []
        for seen in every:
            for one in seen.clicks:
                mean = descriptors.learned(seen.places, one.query, weights)
                hits = right(seen.places, seen.places.descriptors @ mean, one.centres, one.query.radius)
                rows.append(np.column_stack([descriptors.terms(seen.places, one.query, mean), hits]))
        for places, query in pairs:
            terms = descriptors.terms(places, query, descriptors.learned(places, query, weights))
            rows.append(np.column_stack([terms, np.zeros(len(places))]))
        weights = regression(np.concatenate(rows))
    return weights


def regression(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic regression of the last column on the others, by Newton's steps with a small penalty."""
    x, y = rows[:, :-1], rows[:, -1]
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + 1e-3 * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(x.shape[1])
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tomograms", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=20, help="tomograms at most")
    parser.add_argument("--fit", action="store_true", help="find the weights of kernels.descriptors again")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    model = ParticleSegmenter(chosen.weights, "", "cpu", chosen.dtype)
    every = []
    for path in sorted(chosen.tomograms.glob("*.npz"))[: chosen.count]:
        every.append(see(model, path, np.random.default_rng(0)))
        print(path.stem, json.dumps(figures(every[-1:], descriptors.WEIGHTS)), flush=True)
    pairs = absent(every, np.random.default_rng(1))
    weights = descriptors.WEIGHTS
    print("all", json.dumps(figures(every, weights) | calibration(every, pairs, weights)))
    for part, scores in PARTS.items():
        print(part, json.dumps(figures(every, weights, scores)))
    if chosen.fit:
        for name, count in (("WEIGHTS", 1), ("STRICT", STRICTLY)):
            weights = tuple(round(float(w), 2) for w in fit(every, pairs * count))
            print(name, weights, json.dumps(figures(every, weights) | calibration(every, pairs, weights)))


if __name__ == "__main__":
    main()
