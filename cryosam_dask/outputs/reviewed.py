"""Results without what people rejected: which picks are left, and labels of these alone.

"accepted": what was accepted, and what was added. "not-rejected": that, and what nobody decided on. Particles that were
added and have no mask yet are picks with the instance 0 and the score 1; labels and meshes have none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.omezarr_out import Level
from cryosam_dask.store import picks, reviews
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array

if TYPE_CHECKING:
    import pandas as pd

Only = Literal["accepted", "not-rejected"]


def check(only: str | None) -> None:
    """InputError for an unknown choice."""
    if only not in (None, *get_args(Only)):
        raise InputError(f"reviewed {only}: expected {' or '.join(get_args(Only))}")


def chosen_picks(store: RunStore, name: str, only: Only | None, *, added: bool = False) -> pd.DataFrame:
    """The picks of a query, best first, or those that `only` leaves; `added`: and particles that have no pick.

    InputError where only accepted ones are asked for, and nothing was decided.
    """
    import pandas as pd

    table = picks.read(store, name)
    if only is None:
        return table
    if only == "accepted" and not reviews.standing(store, name):
        raise InputError(f"{store.url}: nothing was decided about the picks of {name!r}; `cryosam review` does that")
    told = np.array(reviews.of_picks(store, name, table[list(AXES)].to_numpy(float)), dtype=object)
    table = table[told == "accepted" if only == "accepted" else told != "rejected"].reset_index(drop=True)
    without = reviews.without_pick(store, name) if added else []
    if not without:
        return table
    rows = pd.DataFrame([dict(zip(AXES, decision.position, strict=True)) for decision in without])
    rows = rows.reindex(columns=table.columns, fill_value=0).assign(score=1.0)
    return pd.concat([table, rows.astype(table.dtypes.to_dict())], ignore_index=True)


def masked(levels: Sequence[Level], table: pd.DataFrame, largest: int, *, semantic: bool = False) -> list[Level]:
    """Levels of instance ids with those of a table's picks alone; `semantic`: 1 in the place of each.

    largest : id in the levels
    """
    kept = table["instance"].to_numpy(np.int64)
    values = np.zeros(max(largest, int(kept.max(initial=0))) + 1, np.uint8 if semantic else np.uint32)
    values[kept] = 1 if semantic else kept
    values[0] = 0

    def level(source: Level) -> Level:
        def read(block: tuple[slice, ...]) -> Array:
            out: Array = values[source.read(block)]  # type: ignore[arg-type]
            return out

        return Level(source.shape, read)

    return [level(source) for source in levels]


def rejected_in_words(store: RunStore, name: str, only: Only | None) -> list[str]:
    """A sentence where what is exported has picks that were rejected."""
    if only is not None:
        return []
    told = reviews.of_picks(store, name)
    if not (count := told.count("rejected")):
        return []
    return [
        f"{count} of {len(told)} picks of {name!r} were rejected, and are among these; --not-rejected leaves them out"
    ]
