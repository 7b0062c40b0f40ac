"""The picks of a smaller K, from a run with a larger one.

Proposals are kept best first, so those of a smaller K are the first of a larger one's; each is segmented on its own.
Which instances are duplicates is decided among those that are there, best first by their score and not by their
proposal's, so that choice is made again for each K. `tests/benchmark` compares with runs of each K, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cryosam_dask.kernels import merging
from cryosam_dask.settings import Settings
from cryosam_dask.stages import segment, select
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd


def first_picks(store: RunStore, name: str, settings: Settings, count: int) -> pd.DataFrame:
    """The picks that a run of this (borrowed) query would have with K = `count`: z, y, x, score; best first."""
    import pandas as pd

    where = layout.instances(name)
    found = marks.found_stage(store, segment.stage_name(where))
    groups = 0 if found is None else len(marks.done(store, segment.stage_name(where)))
    parts = [stored.read_measured(store, layout.group(where, g)) for g in range(groups)]
    sources = [(g, i) for g, part in enumerate(parts) for i in np.flatnonzero(part.prompt < count)]
    if not sources:
        return pd.DataFrame({column: np.empty(0) for column in ("z", "y", "x", "score")})
    group, member = np.array(sources).T

    def joined(field: str) -> np.ndarray:
        return np.stack([getattr(parts[g], field)[i] for g, i in sources])

    boxes, sizes = joined("box"), joined("size")
    masks = stored.Masks(store, where)
    if settings.match.rank == "profile":
        score = np.asarray(store.read(f"{layout.proposals(name)}/scores"))[joined("prompt")]
        typical = float(np.median(store.read(f"{layout.query(name)}/sizes")))
        fitting = np.flatnonzero(select.of_size(boxes, sizes, typical, store.shape))
    else:
        score = (np.maximum(joined("similarity"), 0) * joined("quality")).astype(np.float32)
        fitting = np.arange(len(sources))
    kept = fitting[
        merging.distinct(
            boxes[fitting],
            sizes[fitting],
            score[fitting],
            lambda i: masks.mask(int(group[fitting[i]]), int(member[fitting[i]])),
            settings.label.overlap,
        )
    ]
    kept = kept[np.argsort(-score[kept], kind="stable")]
    centers = np.empty((len(kept), 3))
    for n in np.argsort(kept):  # group by group
        i = kept[n]
        centers[n] = merging.center_of_mass(boxes[i], masks.mask(int(group[i]), int(member[i])))
    return pd.DataFrame({"z": centers[:, 0], "y": centers[:, 1], "x": centers[:, 2], "score": score[kept]})


def all_picks(store: RunStore, name: str) -> pd.DataFrame:
    """The picks of a run as they are: z, y, x, score; best first."""
    return picks.read(store, name)[["z", "y", "x", "score"]]
