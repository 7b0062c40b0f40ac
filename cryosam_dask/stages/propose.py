"""Propose: candidates of the last ratio → point prompts. Non-maximum suppression, then the best K or a cut by score.

It is small work on gathered candidates, which the driver does itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.kernels import peaks
from cryosam_dask.kernels.verify import equivalent_radius
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages.match import Candidates
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

Float64 = NDArray[np.float64]

SHORTLIST = 1024
SHORTLIST_DENSITY = 200e-6
"""Candidates that are ranked: at least so many, or so many per voxel of the tomogram."""


def suppression_radius(store: RunStore, name: str, settings: MatchSettings) -> float:
    """Least distance of two candidates in voxels: the setting, or half the radius of what was prompted."""
    if settings.nms_radius is not None:
        return settings.nms_radius
    size = float(np.median(store.read(f"{layout.query(name)}/sizes")))
    return max(0.5 * equivalent_radius(size), 1.03 * settings.ratios[-1])


def shortlist(store: RunStore, name: str, settings: MatchSettings, found: Candidates) -> Float64:
    """The candidates worth ranking, (n, 3), best first."""
    kept = peaks.non_maximum_suppression(found.centers, found.scores, suppression_radius(store, name, settings))
    most = max(SHORTLIST, int(SHORTLIST_DENSITY * np.prod(store.shape)))
    return found.centers[kept[:most]]


def choose(
    store: RunStore, name: str, settings: MatchSettings, points: Float64, scores: Float64, radius: float, upstream: str
) -> list[str]:
    """Choose the prompts among scored points and write them, the user's own first. Returns what a user should know.

    A proposal within `radius` of a user's prompt stands for the same particle and is left out.
    """
    prompts = np.asarray(store.read(f"{layout.query(name)}/points"), float)
    kept = peaks.non_maximum_suppression(points, scores, radius)
    points, scores = points[kept], scores[kept]
    notes: list[str] = []
    if settings.count == "auto":
        cut = peaks.auto_cut(scores) if settings.rank == "profile" else peaks.otsu_cut(scores)
        notes.append(f"{name}: K = {cut.kept}; {cut.reason}")
        chosen = scores >= cut.threshold
        points, scores = points[chosen], scores[chosen]
    else:
        points, scores = points[: settings.count], scores[: settings.count]
    new = np.array([np.linalg.norm(prompts - point, axis=1).min() > radius for point in points], bool)
    points = np.concatenate([prompts, points[new]])
    scores = np.concatenate([np.ones(len(prompts)), scores[new]])
    where = layout.proposals(name)
    store.put(f"{where}/points", points, ("prompt", "axis"), {"units": "voxel", "order": "z, y, x"})
    store.put(f"{where}/scores", scores.astype(np.float32), ("prompt",))
    store.group(where).attrs.update({"upstream": upstream, "given": len(prompts), "nms_radius": radius})
    return notes


def read(store: RunStore, name: str) -> tuple[Float64, str]:
    """The prompts (n, 3) and the fingerprint of the matching that they come from."""
    where = layout.proposals(name)
    if f"{where}/points" not in store:
        raise StoreError(f"{store.url}: no proposals for {name!r} yet; run `cryosam match` first")
    return np.asarray(store.read(f"{where}/points"), float), str(store.group(where).attrs["upstream"])
