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


@dataclass(frozen=True)
class Selection:
    """What `label` paints, worst first, and what the user should know."""

    boxes: NDArray[np.int64]
    sources: list[Source]
    notes: list[str]


def select(store: RunStore, name: str, groups: int, settings: Settings) -> Selection:
    """Score the instances, drop those largely inside better ones, number the rest and write the picks.

    The score is that of the prompt where proposals were ranked by their profiles, else the similarity of the
    instance's own mean feature with the query, times the segmenter's quality.
    """
    import pandas as pd

    parts = [stored.read(store, layout.group(layout.instances(name), g)) for g in range(groups)]
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
        group, member = sources[i]
        return parts[group].mask(member)

    kept = merging.distinct(boxes, sizes, rank, mask, settings.label.overlap)
    kept = kept[np.argsort(-score[kept], kind="stable")]
    centers = np.array([merging.center_of_mass(boxes[i], mask(int(i))) for i in kept]).reshape(-1, 3)
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
    order = kept[::-1]
    labels = range(len(kept), 0, -1)
    painted = [(*sources[i], n) for i, n in zip(order, labels, strict=True)]
    return Selection(boxes[order], painted, notes)
