"""Match: the query's cosine similarity on cells, from coarse to fine; then the proposals.

On the coarsest ratio all cells are evaluated, on each next one only those under a cell that reached `tau_sim`. A unit
is a box of cells, one chunk of the similarity array; where no cell is asked for it reads no features. Cells that were
not evaluated hold NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout, ome
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Bool, Float32, Shape3

CELLS: Shape3 = (32, 64, 64)
"""Cells in a unit, at most; fewer where their tokens would take more than `UNIT_BYTES`."""

UNIT_BYTES = 192 << 20

CANDIDATES = 4_000_000
"""Cells that are held for non-maximum suppression; of more, the best are taken."""


def stage_name(name: str, ratio: int) -> str:
    return f"match/{name}/r{ratio}"


def plan(store: RunStore, name: str, ratio: int, coarser: int | None, tau_sim: float, upstream: str) -> Stage:
    """The boxes of cells of one ratio, under the ratio before it (None: all cells)."""
    volume = FeatureVolume(store)
    grid = volume.grid(ratio)
    size = unit_cells(volume, ratio)
    units = []
    for index, box in enumerate(geometry.boxes(grid, size)):
        region = Region(layout.similarity(name, ratio), tuple(a for a, _ in box), tuple(b for _, b in box))
        units.append(
            Unit(
                name=f"ratio {ratio} cells {','.join(f'{a}:{b}' for a, b in box)}",
                marks=(index,),
                params={"box": [list(side) for side in box]},
                writes=(region,),
                memory=_token_bytes(volume, ratio, size) + math.prod(size) * 40 + (32 << 20),
            )
        )
    settings = {"name": name, "ratio": ratio, "coarser": coarser, "tau_sim": tau_sim if coarser else None}
    return Stage(stage_name(name, ratio), work, settings, upstream, tuple(units), len(units))


def unit_cells(volume: FeatureVolume, ratio: int) -> Shape3:
    """Cells along z, y, x in a unit of this ratio."""
    size = [min(a, b) for a, b in zip(CELLS, volume.grid(ratio), strict=True)]
    while _token_bytes(volume, ratio, (size[0], size[1], size[2])) > UNIT_BYTES and max(size) > 1:
        longest = size.index(max(size))
        size[longest] = -(-size[longest] // 2)
    return size[0], size[1], size[2]


def _token_bytes(volume: FeatureVolume, ratio: int, size: Shape3) -> int:
    """The most that one view's tokens of a unit take, in half and in single precision."""
    most = 0
    for axis in AXES:
        grid = volume.token_grid(axis)
        lengths = geometry.plane_shape(volume.shape, axis)
        rows, columns = (
            min(tokens, math.ceil(size[i] * ratio * tokens / length) + 2)
            for i, tokens, length in zip(geometry.plane_axes(axis), grid, lengths, strict=True)
        )
        most = max(most, size[geometry.axis_index(axis)] * rows * columns)
    return most * (volume.channels // 3) * (2 + 4)


def prepare(store: RunStore, name: str, ratio: int) -> None:
    volume = FeatureVolume(store)
    grid = volume.grid(ratio)
    store.new_array(
        layout.similarity(name, ratio),
        shape=grid,
        dtype="float32",
        chunks=unit_cells(volume, ratio),
        dims=("z", "y", "x"),
        fill_value=math.nan,
    )
    ome.put_coordinates(store, layout.similarity_group(name, ratio), ratio)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Similarity on one box of cells, where the coarser ratio allows it."""
    store = RunStore.open(context.url, "r+")
    name, ratio = settings["name"], settings["ratio"]
    z, y, x = ((int(a), int(b)) for a, b in unit.params["box"])
    box: Box = (z, y, x)
    wanted = _wanted(store, settings, box)
    out = np.full(wanted.shape, np.nan, np.float32)
    if wanted.any():
        tight = _bounds(wanted)
        inside = geometry.box_slices(tight)
        z, y, x = ((a + o[0], b + o[0]) for (a, b), o in zip(tight, box, strict=True))
        values = _evaluate(store, name, ratio, (z, y, x))
        out[inside] = np.where(wanted[inside], values, np.nan)
    store.array(layout.similarity(name, ratio))[geometry.box_slices(box)] = out
    return None


def _evaluate(store: RunStore, name: str, ratio: int, box: Box) -> Float32:
    query = store.read(f"{layout.query(name)}/feature")
    mean = store.read(f"{layout.query(name)}/mean")
    return FeatureVolume(store).similarity_block(query, ratio, box, mean if mean.any() else None)


def _wanted(store: RunStore, settings: Json, box: Box) -> Bool:
    """Cells of the box that lie under a coarser cell at or above the threshold."""
    shape = tuple(b - a for a, b in box)
    coarser = settings["coarser"]
    if coarser is None:
        return np.ones(shape, bool)
    step = coarser // settings["ratio"]
    parents = tuple(slice(a // step, (b - 1) // step + 1) for a, b in box)
    kept = store.read(layout.similarity(settings["name"], coarser), parents) >= settings["tau_sim"]
    index = np.ix_(*(np.arange(a, b) // step - a // step for a, b in box))
    out: Bool = kept[index]
    return out


def _bounds(mask: Bool) -> Box:
    sides = []
    for axis in range(3):
        held = np.flatnonzero(mask.any(tuple(i for i in range(3) if i != axis)))
        sides.append((int(held[0]), int(held[-1]) + 1))
    return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Candidates:
    """Cells of a ratio that reached the threshold, and how the similarities lie.

    centers : (n, 3) voxels; scores : (n,); evaluated : number of cells evaluated
    low, middle, high : least, median and greatest similarity seen
    """

    centers: NDArray[np.float64]
    scores: Float32
    evaluated: int
    low: float
    middle: float
    high: float

    @property
    def words(self) -> str:
        return f"similarities from {self.low:.3f} to {self.high:.3f}, half of them below {self.middle:.3f}"


def candidates(store: RunStore, name: str, ratio: int, tau_sim: float) -> Candidates:
    """Read a ratio's similarity box by box and gather the cells at or above the threshold."""
    array = store.array(layout.similarity(name, ratio))
    grid: Shape3 = (array.shape[0], array.shape[1], array.shape[2])
    axes = [geometry.cell_centers(n, ratio) for n in store.shape]
    where: list[Array] = []
    scores: list[Float32] = []
    seen: list[Float32] = []
    evaluated = 0
    for box in geometry.boxes(grid, CELLS):
        values = np.asarray(array[geometry.box_slices(box)])
        known = values[np.isfinite(values)]
        evaluated += known.size
        if known.size == 0:
            continue
        seen.append(np.quantile(known, np.linspace(0, 1, 101)).astype(np.float32))
        index = np.argwhere(values >= tau_sim)
        where.append(np.stack([axes[i][index[:, i] + box[i][0]] for i in range(3)], axis=1))
        scores.append(values[tuple(index.T)])
    spread = np.concatenate(seen)
    points, best = np.concatenate(where), np.concatenate(scores)
    if len(best) > CANDIDATES:
        top = np.argpartition(-best, CANDIDATES)[:CANDIDATES]
        points, best = points[top], best[top]
    return Candidates(points, best, evaluated, float(spread.min()), float(np.median(spread)), float(spread.max()))


def check_kept(found: Candidates, ratio: int, tau_sim: float) -> str | None:
    """`InputError` where no cell reached the threshold; a sentence of warning where all did; else None."""
    if len(found.scores) == 0:
        raise InputError(
            f"no cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g}: {found.words}; "
            "set match.tau_sim lower, or click on another particle"
        )
    if len(found.scores) == found.evaluated and found.evaluated > 1:
        return (
            f"every cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g} ({found.words}): it filters nothing; "
            "set it higher, or match.center"
        )
    return None
