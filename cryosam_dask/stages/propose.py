"""Propose: the last ratio's similarity → point prompts. Non-maximum suppression, then the best K or a cut by score.

It is one small piece of work on gathered candidates, which the driver does itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.kernels import peaks  # noqa
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages.match import Candidates
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

RADIUS_SHARE = 0.75
"""Least distance of two prompts as a share of the prompted instances' equivalent radius, where none is set."""


def suppression_radius(store: RunStore, name: str, settings: MatchSettings) -> float:
    """Least distance of two prompts in voxels: the setting, or from the size of what was prompted."""
    if settings.nms_radius is not None:
        return settings.nms_radius
    size = float(np.median(store.read(f"{layout.query(name)}/sizes")))
    return max(RADIUS_SHARE * (3 * size / (4 * np.pi)) ** (1 / 3), float(settings.ratios[-1]))


def propose(store: RunStore, name: str, settings: MatchSettings, found: Candidates, upstream: str) -> list[str]:
    """Choose the prompts and write them, the user's own first. Returns what the user should know.

    A proposal within the suppression radius of a user's prompt stands for the same particle and is left out.
    """
    radius = suppression_radius(store, name, settings)
    prompts = np.asarray(store.read(f"{layout.query(name)}/points"), float)
    kept = peaks.non_maximum_suppression(found.centers, found.scores, radius)
    points, scores = found.centers[kept], found.scores[kept]
    notes: list[str] = []
    if settings.count == "auto":
        cut = peaks.auto_cut(scores)
        chosen = scores >= cut.threshold
        notes.append(
            f"K = {int(chosen.sum())} of {len(scores)} proposals, similarity at least {cut.threshold:.3f}: {cut.reason}"
        )
        points, scores = points[chosen], scores[chosen]
    else:
        points, scores = points[: settings.count], scores[: settings.count]
    new = np.linalg.norm(points[:, None] - prompts[None], axis=-1).min(1) > radius if len(points) else np.zeros(0, bool)
    points, scores = np.concatenate([prompts, points[new]]), np.concatenate([np.ones(len(prompts)), scores[new]])
    where = layout.proposals(name)
    store.put(f"{where}/points", points, ("prompt", "axis"), {"units": "voxel", "order": "z, y, x"})
    store.put(f"{where}/scores", scores.astype(np.float32), ("prompt",))
    store.group(where).attrs.update({"upstream": upstream, "given": len(prompts), "nms_radius": radius})
    return notes


def read(store: RunStore, name: str) -> tuple[NDArray[np.float64], str]:
    """The prompts (n, 3) and the fingerprint of the matching that they come from."""
    where = layout.proposals(name)
    if f"{where}/points" not in store:
        raise StoreError(f"{store.url}: no proposals for {name!r} yet; run `cryosam match` first")
    return np.asarray(store.read(f"{where}/points"), float), str(store.group(where).attrs["upstream"])
