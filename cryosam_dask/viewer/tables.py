"""Candidates and picks of a kind, as the page lists them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels.merging import center_of_mass
from cryosam_dask.stages import propose
from cryosam_dask.store import layout, picks, reviews
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Json, Point
from cryosam_dask.viewer.state import KindState, done_groups

Float64 = NDArray[np.float64]

EMPTY: Json = {
    "instances": [], "positions": [], "scores": [], "doubts": [], "voxels": [], "diameter_nm": [], "verdicts": [],
    "complete": False,
}  # fmt: skip


def diameter_nm(voxels: float, voxel_size: Point) -> float:
    """The diameter of a sphere of so many voxels, in nm."""
    return 2 * geometry.equivalent_radius(voxels) * math.prod(voxel_size) ** (1 / 3) / 10


def radius_of(state: KindState) -> float:
    """Voxels within which two decisions are about the same particle."""
    return reviews.same_place(state.size) if state.size > 0 else reviews.SAME_PLACE


def candidates(store: RunStore, name: str) -> Json:
    """Positions (n, 3) in voxels, scores (n,), best first, and what became of each: "prompt" where a prompt is,
    "kept" as a proposal, else "left out"."""
    every = propose.read_candidates(store, name)
    if every is None:
        return {"positions": [], "scores": [], "states": []}
    points, scores = every
    proposed, _ = propose.read(store, name)
    attributes = store.group(layout.proposals(name)).attrs
    given, radius = int(str(attributes["given"])), float(str(attributes["nms_radius"]))
    kept = {tuple(point) for point in proposed[given:].tolist()}
    clicked = propose.near(points, proposed[:given], radius)
    states = [
        "prompt" if own else "kept" if tuple(point) in kept else "left out"
        for own, point in zip(clicked.tolist(), points.tolist(), strict=True)
    ]
    return {"positions": np.round(points, 2).tolist(), "scores": _rounded(scores), "states": states}


def table(store: RunStore, name: str, state: KindState, decided: list[Decision]) -> Json:
    """The picks of a kind, best first, or the instances that are there so far, and the verdict about each.

    Instances so far are numbered by their proposals; picks have other numbers once all are there (`complete`).

    decided : current decisions about them
    """
    if state.picks is None:
        return dict(EMPTY)
    out = _complete(store, name) if state.picks["complete"] else _partial(store, name)
    places = np.asarray(out["positions"], float).reshape(-1, 3)
    scores, sizes = np.asarray(out["scores"], float), np.asarray(out["voxels"], float)
    clear = doubts(scores, sizes, boundary(state, scores), state.size)
    clear[np.asarray(out.pop("prompted"), bool)] = 0
    out["doubts"] = _rounded(clear)
    out["complete"] = state.picks["complete"]
    out["diameter_nm"] = [round(diameter_nm(size, store.voxel_size), 2) for size in sizes.tolist()]
    out["verdicts"] = reviews.verdicts(decided, places, radius_of(state))
    return out


def boundary(state: KindState, scores: Float64) -> float:
    """The score at which a pick is as likely right as wrong: 0.5 where scores are probabilities, else the cut."""
    ranked = state.settings.match.rank if state.settings is not None else "similarity"
    if ranked == "descriptor":
        return 0.5
    cut = (state.candidates or {}).get("cut") or {}
    if ranked == "profile" and cut.get("chosen") is not None:
        return float(cut["chosen"])
    return float(scores.min()) if len(scores) else 0.0


def doubts(scores: Float64, sizes: Float64, boundary: float, typical: float) -> Float64:
    """How doubtful picks are, 0 to 1: by how near a score is to the boundary, or by a size that is not typical."""
    if not len(scores):
        return np.zeros(0)
    away = np.abs(scores - boundary)
    near = 1 - away / max(float(away.max()), 1e-9)
    ratio = np.log2(np.maximum(sizes, 1) / typical) if typical > 0 else np.zeros(len(sizes))
    return np.asarray(np.maximum(near, np.clip(np.abs(ratio), 0, 1) * 0.9))


def _complete(store: RunStore, name: str) -> Json:
    rows = picks.read(store, name)
    return {
        "instances": rows["instance"].astype(int).tolist(),
        "positions": np.round(rows[list(AXES)].to_numpy(float), 2).tolist(),
        "scores": _rounded(rows["score"].to_numpy(float)),
        "voxels": rows["size"].astype(int).tolist(),
        "prompted": rows["prompted"].astype(bool).tolist(),
    }


def _partial(store: RunStore, name: str) -> Json:
    """What is segmented so far; instances are numbered by their proposals, from 1."""
    _, _ = propose.read(store, name)
    given = int(str(store.group(layout.proposals(name)).attrs["given"]))
    scores = store.read(layout.proposal_array(name, "scores"))
    rows: list[tuple[int, list[float], float, int]] = []
    for group in done_groups(store, name).values():
        for i, prompt in enumerate(group.prompt.tolist()):
            centre = [round(float(v), 2) for v in center_of_mass(group.box[i], group.mask(i))]
            rows.append((prompt, centre, float(scores[prompt]), int(group.size[i])))
    rows.sort(key=lambda row: (-row[2], row[0]))
    return {
        "instances": [prompt + 1 for prompt, *_ in rows],
        "positions": [centre for _, centre, *_ in rows],
        "scores": [round(score, 5) for *_, score, _ in rows],
        "voxels": [size for *_, size in rows],
        "prompted": [prompt < given for prompt, *_ in rows],
    }


def _rounded(values: Any) -> list[float]:
    return [float(v) for v in np.round(np.asarray(values, float), 5)]
