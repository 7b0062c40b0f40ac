"""What is declared of a stage, once, in the stage's own module; `stages.chain` lists the stages in the order of a run.

The driver, `verify --repair`, planning, the report and the benchmarks read this; none of them has a list of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.settings import Settings
from cryosam_dask.stages.base import Json, Stage, Unit
from cryosam_dask.stages.cost import Bench, Cost
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import Index, RunArray
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Shape3

Kind = Literal["stage", "unit", "driver", "coordinates", "state"]
Command = Literal["ingest", "features", "query", "match", "segment"]
Part = Literal["", "ingest", "features", "embeddings", "query", "matching", "segmentation"]
MarkOf = Callable[[Index], int]
"""Index of a chunk → the mark of the unit that writes it."""

Expected = Iterable[tuple[str, int | None]]
"""Arrays that must be there, each with the mark of its unit where one unit writes it alone."""


@dataclass(frozen=True)
class Arrays:
    """Arrays of a stage, by the pattern of their paths.

    Attributes
    ----------
    pattern : as of `layout.pattern`; the group `name` is the query
    kind : "stage": many units write one array; "unit": one unit writes it alone; "driver": the driver writes it anew
        whenever the command runs; "coordinates": positions that follow from the run's shape; "state" of a unit that
        waits
    mark_of : (store, match of the path) → which unit writes a chunk; None where that can't be known
    holds : what a plan calls them ("latents")
    mend : writes coordinates again, given the match of the path
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
    """A stage as it is declared.

    Attributes
    ----------
    name : of the stage; its marks are called so, or `NAME/QUERY`, or `NAME/QUERY/rRATIO`
    command : the command that makes it
    words : what people read of it; "" for what the driver does itself, without units
    part : what its time counts as where configurations are compared; "" for none
    per : what it is made once for
    made_from : names of the stages that it is stale with
    arrays : that it owns
    expected : (store, query, settings, done marks) → the arrays that must be there
    places : (store, query) → groups and arrays that go when it is made anew
    described : whether laying out its arrays writes attributes of the groups in `places`
    sparse : whether units are made as they are asked for, and never all
    together : whether its arrays are laid out with those of the stages it is made from and that say so, too
    plan, prepare : for a stage that needs nothing but the store, the settings, the query and what it is made from: the
        command makes it when all else that it makes is there. (store, settings, query, upstream) → the stage;
        (store, settings, query) creates its arrays
    cost : what one of its units takes
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
        """Whether a stage of that name is one of these."""
        if self.per == "run":
            return stage == self.name
        return stage.startswith(f"{self.name}/") and self.query_of(stage) != ""

    def query_of(self, stage: str) -> str:
        """The query that a stage is made for; "" where it is made for the run."""
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
    """An array of the unit whose number is in its path."""
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
    """Of an image on levels, which are written box by box."""
    level = int(match["level"])
    z, y, x = (n << level for n in layout.level_chunks(level))
    return by_box((z, y, x), layout.INGEST_BOX, store.shape)


def array_of(store: RunStore, path: str) -> RunArray | None:
    """An array, or None where there is none that can be opened."""
    try:
        return store.array(path)
    except StoreError:
        return None
