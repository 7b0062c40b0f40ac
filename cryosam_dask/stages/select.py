"""Select: all segmented proposals → the distinct instances that belong to the query, numbered best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import merging
from cryosam_dask.settings import Settings
from cryosam_dask.stages.label import Source
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool

SIZE_FACTOR = 2.0
"""An instance more than so many times larger or smaller than the prompted ones is something else, or a failed mask."""

_NONE = stored.Measured(
    prompt=np.empty(0, np.int64),
    box=np.empty((0, 6), np.int64),
    size=np.empty(0, np.int64),
    quality=np.empty(0, np.float32),
    similarity=np.empty(0, np.float32),
)
"""The instances of a borrowed query that has no like here: without prompts there are no groups."""


@dataclass(frozen=True)
class Selection:
    """What `label` paints, worst first, and what the user should know."""

    boxes: NDArray[np.int64]
    sources: list[Source]
    notes: list[str]


def select(store: RunStore, name: str, groups: int, settings: Settings) -> Selection:
    """Score the instances, drop those of another size or largely inside better ones, number the rest, write the picks.

    The score is that of the prompt where proposals were ranked by their profiles, else the similarity of the
    instance's own mean feature with the query, times the segmenter's quality. Sizes are looked at in the first case
    only: proposals that have the profile of the query have its size.
    """
    import pandas as pd

    where = layout.instances(name)
    parts = [stored.read_measured(store, layout.group(where, g)) for g in range(groups)] or [_NONE]
    masks = stored.Masks(store, where)
    sources = [(g, i) for g, part in enumerate(parts) for i in range(len(part.prompt))]
    boxes = np.concatenate([part.box for part in parts])
    sizes = np.concatenate([part.size for part in parts])
    quality = np.concatenate([part.quality for part in parts])
    similarity = np.concatenate([part.similarity for part in parts])
    given = int(str(store.group(layout.proposals(name)).attrs["given"]))
    prompt = np.concatenate([part.prompt for part in parts])
    prompted = prompt < given
    if settings.match.rank == "profile":
        score = np.asarray(store.read(f"{layout.proposals(name)}/scores"))[prompt]
    else:
        score = (np.maximum(similarity, 0) * quality).astype(np.float32)
    rank = np.where(prompted, score + 1, score).astype(np.float32)

    def mask(i: int) -> Bool:
        return masks.mask(*sources[i])

    fitting = np.arange(len(sources))
    if settings.match.rank == "profile":
        typical = float(np.median(store.read(f"{layout.query(name)}/sizes")))
        fitting = np.flatnonzero(prompted | of_size(boxes, sizes, typical, store.shape))
    kept = fitting[
        merging.distinct(
            boxes[fitting], sizes[fitting], rank[fitting], lambda i: mask(int(fitting[i])), settings.label.overlap
        )
    ]
    kept = kept[np.argsort(-score[kept], kind="stable")]
    centers = np.empty((len(kept), 3))
    for n in np.argsort(kept):  # group by group
        centers[n] = merging.center_of_mass(boxes[kept[n]], mask(int(kept[n])))
    table = pd.DataFrame(
        {
            "z": centers[:, 0],
            "y": centers[:, 1],
            "x": centers[:, 2],
            "score": score[kept],
            "instance": np.arange(1, len(kept) + 1),
            "size": sizes[kept],
            "similarity": similarity[kept],
            "quality": quality[kept],
            "prompted": prompted[kept].astype(np.uint8),
            "group": np.array([sources[i][0] for i in kept], np.int64),
            "member": np.array([sources[i][1] for i in kept], np.int64),
        }
    )
    picks.write(store, name, table, {"segmented": len(sources), "kept": len(kept)})
    notes = [f"{len(kept)} instances kept of {len(sources)} segmented"]
    if strange := len(sources) - len(fitting):
        notes.append(f"{strange} of them left out, less than half or more than twice as large as what was prompted")
    order = kept[::-1]
    labels = range(len(kept), 0, -1)
    painted = [(*sources[i], n) for i, n in zip(order, labels, strict=True)]
    return Selection(boxes[order], painted, notes)


def of_size(
    boxes: NDArray[np.int64], sizes: NDArray[np.int64], typical: float, shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Which (n,) instances have about `typical` voxels; one that the tomogram's border cuts may have fewer."""
    cut = (boxes[:, :3] <= 0).any(axis=1) | (boxes[:, 3:] >= np.array(shape)).any(axis=1)
    result: NDArray[np.bool_] = (sizes <= SIZE_FACTOR * typical) & (cut | (sizes * SIZE_FACTOR >= typical))
    return result
