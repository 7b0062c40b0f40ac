"""Measures the network on tomograms that it was not trained on, and fits what turns similarity into probability.

`python training/evaluate.py TOMOGRAMS [--weights FILE] [--fit]`: TOMOGRAMS is a folder of `training/tomograms.py` with
seeds of its own. Each kind of particle is clicked several times, anywhere on its masks; what is clicked, and which
places are of its kind, is compared with the truth, per tomogram and in all.
"""

from __future__ import annotations

import argparse
import json
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


def measure(
    model: ParticleSegmenter, path: Path, rng: np.random.Generator
) -> tuple[list[dict[str, float]], list[NDArray[np.float64]]]:
    """Rows of figures, one for a click, and terms with the truth for fitting."""
    with np.load(path) as file:
        density = file["density"].astype(np.float32)
        kinds = np.concatenate([[0], file["kinds"]]).astype(np.int64)
        truth, species = truth_of(file["labels"].astype(np.int64), kinds), int(file["species"])
    look = model.look(density)
    places = places_of(look)
    rows, terms = [], []
    for kind in range(1, species + 1):
        labels = np.flatnonzero((truth.kinds == kind) & (truth.sizes >= 60))
        if len(labels) < 4:
            continue
        centres = truth.centres[labels]
        radius = max(3.0, 0.5 * float(np.cbrt(6 * np.median(truth.sizes[labels]) / np.pi)))
        for label in rng.choice(labels, min(CLICKS, len(labels)), replace=False):
            voxels = np.argwhere(truth.labels == label)
            answers, low, mask = click(look, voxels[rng.integers(len(voxels))])
            if not mask.any():
                rows.append({"kind": kind, "iou": 0.0, "f1": 0.0, "best": 0.0, "ap": 0.0, "quality": 0.0})
                continue
            clicked = answers.descriptor.astype(float)
            query = Query(
                clicked, float(answers.quality[0]), float(mask.sum()), radius, np.empty((0, clicked.shape[1]))
            )
            score = descriptors.probabilities(places, query)
            hits = right(places, score, centres, radius)
            f1, best, ap = curve(score, hits, len(labels))
            rows.append({
                "kind": kind, "iou": iou(truth, label, low, mask), "f1": f1, "best": best, "ap": ap,
                "quality": float(answers.quality[0]), "diameter": float(np.cbrt(6 * truth.sizes[label] / np.pi)),
            })  # fmt: skip
            terms.append(np.column_stack([descriptors.terms(places, query, descriptors.learned(places, query)), hits]))
    return rows, terms


def fit(terms: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Logistic regression, by Newton's steps with a small penalty."""
    every = np.concatenate(terms)
    x, y = every[:, :-1], every[:, -1]
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
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    model = ParticleSegmenter(chosen.weights, "", "cpu", chosen.dtype)
    every, terms = [], []
    for path in sorted(chosen.tomograms.glob("*.npz"))[: chosen.count]:
        rows, more = measure(model, path, np.random.default_rng(0))
        every += rows
        terms += more
        print(path.stem, json.dumps(summary(rows)), flush=True)
    print("all", json.dumps(summary(every)))
    if chosen.fit:
        print("weights", [round(float(w), 3) for w in fit(terms)])


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    if not rows:
        return {}
    means = {name: round(float(np.mean([r[name] for r in rows])), 3) for name in ("iou", "f1", "best", "ap", "quality")}
    return means | {"iou<.4": round(float(np.mean([r["iou"] < 0.4 for r in rows])), 3)}


if __name__ == "__main__":
    main()
