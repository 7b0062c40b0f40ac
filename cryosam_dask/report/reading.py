"""Reading of a run that may be unfinished, damaged, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cryosam_dask.errors import CryosamError, StoreError
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

BROKEN = (CryosamError, ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""Errors of reading a store that is unfinished, damaged, or not ours; the page reports them and goes on."""

MOST_PICKS = 2_000_000
"""Rows of a table of picks that are read, at most: 180 MB."""


def attempt(problems: list[str], what: str, action: Callable[[], T]) -> T | None:
    """Return the action's value; if the store can't be read, return None and add a line to `problems`."""
    try:
        return action()
    except CryosamError as error:
        problems.append(f"{what}: {error}")
    except BROKEN as error:
        lines = str(error).splitlines()
        problems.append(f"{what}: can't be read ({lines[0] if lines else type(error).__name__})")
    return None


def table_of(store: RunStore, name: str) -> pd.DataFrame | None:
    """The picks, or None where there are none yet."""
    if name not in picks.names(store):
        return None
    for column in picks.COLUMNS:
        if (size := store.array(layout.pick_column(name, column)).size) > MOST_PICKS:
            raise StoreError(f"{size} picks, at most {MOST_PICKS} can be shown")
    table = picks.read(store, name)
    if not np.isfinite(table[["z", "y", "x", "score"]].to_numpy(float)).all():
        raise StoreError("the picks hold numbers that are not finite")
    return table
