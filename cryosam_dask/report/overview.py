"""Many runs on one page: a row for each, with a picture and what was found, and totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cryosam_dask.errors import CryosamError
from cryosam_dask.report import images
from cryosam_dask.report.facts import facts
from cryosam_dask.report.images import Picture
from cryosam_dask.report.reading import BROKEN, table_of
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names

COVER = 192
"""Pixels of a picture's longer side where there are few runs."""

MOST_PIXELS = 8_000_000
"""Of all pictures together: 2 MB."""


@dataclass(frozen=True)
class Found:
    """What a query found in one run: instances, their median score, how many there are in a cubic micrometre."""

    count: int
    score: float | None
    density: float


@dataclass(frozen=True)
class RunRow:
    """One run; fields that can't be read are None, and `error` says why."""

    name: str
    state: str
    seconds: float = 0.0
    cover: Picture | None = None
    found: tuple[Found | None, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Total:
    """The totals of a query over all runs that have picks of it."""

    name: str
    runs: int
    count: int
    mean: float
    spread: float


def rows(runs: Sequence[str], name: str | None) -> tuple[list[RunRow], list[Total]]:
    """A row for each run, in the order given, and a total for each query; `name` : of one query alone."""
    names = [name] if name is not None else _names(runs)
    side = int(min(COVER, max(48.0, (MOST_PIXELS / max(len(runs), 1)) ** 0.5)))
    table = [_row(run, names, side) for run in runs]
    return table, [_total(query, [row.found[i] for row in table if row.found]) for i, query in enumerate(names)]


def _names(runs: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for run in runs:
        try:
            names |= dict.fromkeys(query_names(RunStore.open(run)))
        except BROKEN:
            continue
    return sorted(names)


def _row(run: str, names: Sequence[str], side: int) -> RunRow:
    stem = run.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
    try:
        store = RunStore.open(run)
        about = facts(store)
        instances = tuple(_found(store, name) for name in names)
        state = "unfinished" if about.unfinished or not about.progress else "complete"
        row = RunRow(stem, state, about.seconds, found=instances)
    except BROKEN as error:
        return RunRow(stem, "unreadable", error=_line(error))
    try:
        return replace(row, cover=_cover(store, names, side))
    except BROKEN as error:
        return replace(row, error=_line(error))


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if isinstance(error, CryosamError) else f"can't be read ({text})"


def _found(store: RunStore, name: str) -> Found | None:
    table = table_of(store, name)
    if table is None:
        return None
    cubic = float(np.prod(images.sides(store))) / 1e9
    score = float(table["score"].median()) if len(table) else None
    return Found(len(table), score, len(table) / cubic)


def _cover(store: RunStore, names: Sequence[str], side: int) -> Picture:
    """The middle slice, small, with the instances of all queries on it."""
    from PIL import Image

    level, at = images.level_for(store, 2 * side), store.shape[0] // 2
    slice_ = images.read_slice(store, layout.tomogram(level), 0, at, level, 2 * side)
    picture = Image.fromarray(images.grey(slice_, images.contrast([slice_]))).convert("RGBA")
    for name in names:
        if layout.labels(name, level) in store:
            mask = images.instances_on(store, name, 0, at, level, 2 * side)
            if mask is not None:
                picture.alpha_composite(Image.fromarray(mask))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return images.webp(np.asarray(picture.convert("RGB")), f"Slice z = {at}")


def _total(name: str, results: Sequence[Found | None]) -> Total:
    counts = [result.count for result in results if result is not None]
    spread = float(np.std(counts, ddof=1)) if len(counts) > 1 else 0.0
    return Total(name, len(counts), sum(counts), float(np.mean(counts)) if counts else 0.0, spread)
