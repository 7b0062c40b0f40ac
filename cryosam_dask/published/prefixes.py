"""The picks of a smaller K, from a run with a larger one.

Proposals are kept best first, so those of a smaller K are the first of a larger one's; each is segmented on its own.
Which instances are duplicates is decided among those that are there, best first by their score and not by their
proposal's, so that choice is made again for each K. `tests/benchmark` compares with runs of each K, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryosam_dask.settings import Settings
from cryosam_dask.stages import segment, select
from cryosam_dask.store import marks, picks
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ["z", "y", "x", "score"]


def first_picks(store: RunStore, name: str, settings: Settings, count: int) -> pd.DataFrame:
    """The picks that a run of this (borrowed) query would have with K = `count`: z, y, x, score; best first."""
    stage = segment.PROPOSALS.stage_name(name)
    groups = 0 if marks.found_stage(store, stage) is None else len(marks.done(store, stage))
    return select.select(store, name, groups, settings, first=count).table[_COLUMNS]


def all_picks(store: RunStore, name: str) -> pd.DataFrame:
    """The picks of a run as they are: z, y, x, score; best first."""
    return picks.read(store, name)[_COLUMNS]
