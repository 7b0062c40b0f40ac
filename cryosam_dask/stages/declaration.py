"""How a stage is declared, once, in its own module. `stages.chain` lists the stages in the order of a run.

The driver, `verify --repair`, planning, the report and the benchmarks read declarations. None of them lists stages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.settings import Settings
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.stages.cost import Bench, Cost
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import Index, RunArray
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json, Shape3

Kind = Literal["stage", "unit", "driver", "coordinates", "state"]
Command = Literal["ingest", "features", "query", "match", "segment"]
Part = Literal["", "ingest", "features", "embeddings", "query", "matching", "segmentation"]
MarkOf = Callable[[Index], int]
"""A function from a chunk's index to the mark of the unit that writes the chunk."""

Expected = Iterable[tuple[str, int | None]]
"""Paths of arrays that must exist, each with the mark of the unit that writes the array alone, or None."""


@dataclass(frozen=True)
class Arrays:
    """The arrays of a stage whose paths match a pattern.

    Attributes
    ----------
    pattern : from `layout.pattern`; its named group `name` is the query
    kind : "stage": many units write one array; "unit": one unit writes it alone; "driver": the driver writes it anew
        whenever the command runs; "coordinates": positions that follow from the run's shape; "state" of a unit that
        waits
    mark_of : (store, match of the path) → which unit writes a chunk; None if that can't be known
    holds : the name of these arrays in a plan ("latents")
    mend : (store, match of the path); writes coordinates again
    """

    pattern: re.Pattern[str]
    kind: Kind
    mark_of: Callable[[RunStore, re.Match[str]], MarkOf | None] = lambda store, match: None
    holds: str = ""
    mend: Callable[[RunStore, re.Match[str]], None] | None = None


def _nothing(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ()


def _no_places(store: RunStore, query: str) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Declaration:
    """The declaration of a stage.

    Attributes
    ----------
    name : the stage; its marks are under `NAME`, `NAME/QUERY` or `NAME/QUERY/rRATIO`, see `per`
    command : the command that makes it
    words : its name for people; "" for a step that the driver does itself, without units
    part : the part of a run that its time is added to where configurations are compared; "" for none
    per : whether there is one stage for the run, for each query, or for each ratio of a query
    made_from : names of the stages that it is made from; it is stale when one of them is
    arrays : the arrays that it owns
    expected : (store, query, settings, done marks) → the arrays that must exist
    places : (store, query) → groups and arrays that are removed when it is made anew
    described : whether creating its arrays writes attributes of the groups in `places`
    sparse : whether units run only as they are asked for, and never all of them
    together : whether its arrays are created together with those of the stages in `made_from` that are `together` too
    plan, prepare : given for a stage that needs nothing but the store, the settings, the query and what it is made
        from. Its command makes it last. plan(store, settings, query, upstream) returns the stage; prepare(store,
        settings, query) creates its arrays
    cost : (bench, unit) → what the unit costs
    """

    name: str
    command: Command
    words: str = ""
    part: Part = ""
    per: Literal["run", "query", "ratio"] = "run"
    made_from: tuple[str, ...] = ()
    arrays: tuple[Arrays, ...] = ()
    expected: Callable[[RunStore, str, Json, list[int]], Expected] = _nothing
    places: Callable[[RunStore, str], Iterable[str]] = _no_places
    described: bool = False
    sparse: bool = False
    together: bool = False
    plan: Callable[[RunStore, Settings, str, str], Stage] | None = None
    prepare: Callable[[RunStore, Settings, str], None] | None = None
    cost: Callable[[Bench, Unit], Cost] | None = None

    def stage_name(self, query: str = "", ratio: int | None = None) -> str:
        """The name of the stage for a query, and for one ratio of its matching."""
        parts = [self.name] if self.per == "run" else [self.name, query]
        return "/".join(parts if ratio is None else [*parts, f"r{ratio}"])

    def is_of(self, stage: str) -> bool:
        """Whether a stage's name belongs to this declaration."""
        if self.per == "run":
            return stage == self.name
        return stage.startswith(f"{self.name}/") and self.query_of(stage) != ""

    def query_of(self, stage: str) -> str:
        """The query in a stage's name; "" for a stage of the run."""
        rest = stage.removeprefix(self.name).lstrip("/")
        return rest.rpartition("/r")[0] if self.per == "ratio" else rest

    def marks(self, query: str = "") -> str:
        """Where the done marks are, of all ratios."""
        return layout.marks(self.stage_name(query))

    def stage_of(self, match: re.Match[str]) -> str:
        """The stage that writes an array of a path."""
        groups = match.groupdict()
        query = groups.get("name", "").removesuffix(layout.semantic_name(""))
        return self.stage_name(query, int(groups["ratio"]) if self.per == "ratio" else None)


def always(mark: int) -> MarkOf:
    return lambda index: mark


def by_number(store: RunStore, match: re.Match[str]) -> MarkOf:
    """For an array whose path has the number of the unit that writes it."""
    return always(int(match["index"]))


def by_one_unit(store: RunStore, match: re.Match[str]) -> MarkOf:
    return always(0)


def by_box(chunk: Shape3, size: Shape3, shape: Shape3) -> MarkOf:
    """Number of the box of `size` voxels that a chunk lies in, boxes in (z, y, x) order."""
    counts = tuple(-(-n // s) for n, s in zip(shape, size, strict=True))

    def mark(index: Index) -> int:
        place = tuple(i * c // s for i, c, s in zip(index, chunk, size, strict=True))
        return int(np.ravel_multi_index(place, counts))

    return mark


def by_image_box(store: RunStore, match: re.Match[str]) -> MarkOf:
    """For an image with levels, which is written box by box."""
    level = int(match["level"])
    z, y, x = (n << level for n in layout.level_chunks(level))
    return by_box((z, y, x), layout.INGEST_BOX, store.shape)


def array_of(store: RunStore, path: str) -> RunArray | None:
    """Open an array; None if it does not exist or can't be opened."""
    try:
        return store.array(path)
    except StoreError:
        return None
