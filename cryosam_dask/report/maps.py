"""Similarity maps of a query: one ratio after the other, with how many cells were looked at and how many reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.report.images import Picture, webp
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import match
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Float32

MOST_CELLS = 1 << 29
"""The most cells (2 GB) of which all are read; of a ratio with more, only the slice is."""

LARGEST = 480
"""Pixels of a map's longer side, at most."""


@dataclass(frozen=True)
class Ratio:
    """The similarity on cells of one ratio.

    Attributes
    ----------
    ratio : side of the cells in voxels; at : the slice's first voxel along z
    slice, highest : maps (y, x) of that slice, and of the highest similarity along z
    evaluated, cells : cells that were looked at, and all
    reached : cells at or above the threshold; words : how similarities lie; note : what a user should know
    """

    ratio: int
    at: int
    slice: Picture
    highest: Picture | None
    evaluated: int | None
    cells: int
    reached: int | None
    words: str
    note: str


@dataclass(frozen=True)
class Maps:
    """All ratios of a query from coarse to fine, on one scale of colours from `low` to `high`."""

    ratios: tuple[Ratio, ...]
    low: float
    high: float
    tau: float
    bar: Picture


@dataclass
class _Read:
    ratio: int
    at: int
    slice: Float32
    highest: Float32 | None
    found: match.Survey | None
    note: str


def maps(store: RunStore, name: str, settings: MatchSettings, z: float) -> Maps | None:
    """The maps of all finished ratios through voxel `z`; None where there are none."""
    read = []
    for this in match.passes(name, settings):
        if layout.similarity(name, this.ratio) in store:
            try:
                read.append(_read(store, this, settings.tau_sim, z))
            except StoreError:  # not finished
                break
    seen = [
        image[np.isfinite(image)] for reading in read for image in (reading.slice, reading.highest) if image is not None
    ]
    values = np.concatenate([np.zeros(0), *seen])
    if not values.size:
        return None
    low, high = (float(v) for v in np.percentile(values, (1, 99.8)))
    high = max(high, low + 1e-3)
    bar = _picture(np.linspace(low, high, 256, dtype=np.float32)[None].repeat(8, 0), low, high, "Scale of colours")
    return Maps(tuple(_shown(store, reading, low, high) for reading in read), low, high, settings.tau_sim, bar)


def _read(store: RunStore, this: match.Pass, tau: float, z: float) -> _Read:
    array = store.array(layout.similarity(this.name, this.ratio))
    # of the shape that the run says it has: what is read must fit in memory
    grid = tuple(-(-n // this.ratio) for n in store.shape)
    if tuple(array.shape) != grid:
        raise StoreError(f"{store.url}: similarities of ratio {this.ratio} have shape {array.shape}, expected {grid}")
    at = min(max(round(z) // this.ratio, 0), grid[0] - 1)
    step = max(1, -(-max(grid[1:]) // LARGEST))
    if math.prod(grid) > MOST_CELLS:
        return _Read(this.ratio, at * this.ratio, np.asarray(array[at, ::step, ::step]), None, None, "")
    highest = np.full(grid[1:], np.nan, np.float32)
    for box, values in match.parts(store, this):
        part = highest[box[1][0] : box[1][1], box[2][0] : box[2][1]]
        np.fmax(part, np.fmax.reduce(values, axis=0), out=part)
    if np.isnan(highest).all():
        return _Read(this.ratio, at * this.ratio, np.asarray(array[at]), highest, None, "No cell was looked at.")
    survey = match.survey(store, this, tau)
    try:
        note = match.check_kept(survey, this.ratio, tau) or ""
    except InputError as error:
        note = str(error)
    return _Read(this.ratio, at * this.ratio, np.asarray(array[at]), _reduced(highest, step), survey, note)


def _reduced(values: Float32, step: int) -> Float32:
    """The greatest of each step × step values."""
    if step == 1:
        return values
    rows, columns = (-(-n // step) * step for n in values.shape)
    padded = np.full((rows, columns), np.nan, np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    out: Float32 = np.fmax.reduce(padded.reshape(rows // step, step, columns // step, step), axis=(1, 3))
    return out


def _shown(store: RunStore, reading: _Read, low: float, high: float) -> Ratio:
    what = f"Similarity with the query on cells of {reading.ratio}³ voxels"
    highest = None if reading.highest is None else _picture(reading.highest, low, high, f"{what}, the highest along z")
    return Ratio(
        reading.ratio,
        reading.at,
        _picture(reading.slice, low, high, f"{what}, slice z = {reading.at}"),
        highest,
        None if reading.found is None else reading.found.evaluated,
        math.prod(-(-n // reading.ratio) for n in store.shape),
        None if reading.found is None else reading.found.reached,
        "" if reading.found is None else reading.found.words,
        reading.note,
    )


def _picture(values: NDArray[np.float32], low: float, high: float, alt: str) -> Picture:
    from cryosam_dask.picture import coloured

    return webp(coloured(values, low, high), alt, lossless=True)
