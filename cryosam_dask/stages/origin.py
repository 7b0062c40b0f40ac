"""Which unit of which stage wrote a chunk, and which arrays finished units must have left, as stages declare it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cryosam_dask.stages import chain
from cryosam_dask.stages.declaration import Arrays, Declaration, Kind, MarkOf
from cryosam_dask.store import layout, marks
from cryosam_dask.store.arrays import Index
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool


@dataclass(frozen=True)
class Origin:
    """The stage that wrote an array.

    Attributes
    ----------
    kind : as of `declaration.Arrays`; or "marks", or "unknown"
    stage : name of the stage, "" where there is none
    mark_of : the mark of the unit that wrote a chunk
    declared : the stage's declaration
    """

    kind: Kind | Literal["marks", "unknown"]
    stage: str = ""
    mark_of: MarkOf | None = None
    declared: Declaration | None = None

    def mark(self, index: Index) -> int | None:
        return None if self.mark_of is None else self.mark_of(index)


def origin(store: RunStore, array: str) -> Origin:
    """The origin of an array of a run, by its path; the array itself need not exist."""
    if (owner := owner_of(array)) is not None:
        declared, arrays, match = owner
        return Origin(arrays.kind, declared.stage_of(match), arrays.mark_of(store, match), declared)
    if layout.is_log(array):  # a page may be there without its first row, when its writer was killed
        return Origin("state")
    return Origin("marks" if array.startswith(layout.marks("")) else "unknown")


def owner_of(array: str) -> tuple[Declaration, Arrays, re.Match[str]] | None:
    """The stage that owns an array, by its path."""
    for declared in chain.STAGES:
        for arrays in declared.arrays:
            if match := arrays.pattern.fullmatch(array):
                return declared, arrays, match
    return None


def expected(store: RunStore, stage: str, done: Bool) -> Iterator[tuple[str, int | None]]:
    """The arrays that a stage with these units done must have, each with its unit where it has one of its own."""
    declared = chain.declaration_of(stage)
    if declared is None or not done.any():
        return
    settings = (marks.found_stage(store, stage) or {}).get("settings", {})
    yield from declared.expected(store, declared.query_of(stage), settings, np.flatnonzero(done).tolist())


def stages(store: RunStore) -> list[str]:
    """Names of the stages that have begun."""
    return chain.begun(store)


def mend(store: RunStore, array: str) -> None:
    """Write an array of coordinates again."""
    owner = owner_of(array)
    if owner is not None and owner[1].mend is not None:
        owner[1].mend(store, owner[2])
