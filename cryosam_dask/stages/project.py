"""Project: the query's dot product with every token that the cells to be evaluated touch.

The similarity of a cell is interpolated from scalars on tokens, so the latents, which are nearly all that there is to
read, are gone through slab by slab along their own chunks, each chunk once; boxes of cells would read those at their
edges several times. A unit is a run of slabs of one view; it reads the chunks of latents that hold a touched token.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.stages import match
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import Bench, Cost, cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, array_of
from cryosam_dask.stages.match import Pass
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import grid as chunk_grid
from cryosam_dask.store.feature_volume import PIECE_BYTES, FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Bool, Json, Shape3

UNIT_BYTES = 64 << 20
"""Latents in a unit, where a single slab has not more: units of half a second or so."""


PRODUCT = 1.5e-9
"""Seconds per channel of a token that is multiplied with a query, reading apart."""


def stage_name(name: str, ratio: int) -> str:
    return STAGE.stage_name(name, ratio)


def plan(shape: Shape3, grids: dict[Axis, tuple[int, int]], channels: int, this: Pass, upstream: str) -> Stage:
    """Runs of slabs of the three views.

    Parameters
    ----------
    grids : tokens along the rows and columns of each view's slices; channels : C of one view
    """
    ratio = this.ratio
    units: list[Unit] = []
    for axis in AXES:
        thick = _unit_slices(grids[axis], channels, ratio)
        for start, stop in geometry.slabs(geometry.cell_grid(shape, ratio)[geometry.axis_index(axis)], thick):
            region = Region(layout.dots(this.name, ratio, axis), (0, start, 0, 0), (this.vectors, stop, *grids[axis]))
            units.append(
                Unit(
                    name=f"ratio {ratio} {axis} {start}:{stop}",
                    marks=(len(units),),
                    params={"axis": axis, "start": start, "stop": stop},
                    writes=(region,),
                    memory=_unit_memory(shape, grids[axis], channels, this, axis, stop - start),
                )
            )
    return Stage(stage_name(this.name, ratio), work, asdict(this), upstream, tuple(units), len(units))


def _unit_memory(shape: Shape3, grid: tuple[int, int], channels: int, this: Pass, axis: Axis, slices: int) -> int:
    """Two pieces of latents and chunks that are decoded; the products, as made and as written; cells of a piece."""
    cells = geometry.plane_shape(geometry.cell_grid(shape, this.ratio), axis)
    slab = min(slices, _slabs_of(PIECE_BYTES, grid, channels, this.ratio))
    chunk = math.prod(layout.latent_chunks(layout.SLAB // this.ratio, grid, channels)) * 2
    piece = min(max(PIECE_BYTES, chunk), slab * math.prod(grid) * channels * 2)
    products = slices * math.prod(grid) * 4 * 2 * this.vectors
    wanted = slab * math.prod(cells) * (1 if this.coarser is None else 6)
    return 9 * piece // 4 + products + wanted + BESIDES


def _unit_slices(grid: tuple[int, int], channels: int, ratio: int) -> int:
    """Latent slices in a unit."""
    return _slabs_of(UNIT_BYTES, grid, channels, ratio)


def _slabs_of(size: int, grid: tuple[int, int], channels: int, ratio: int) -> int:
    """Slices of as many whole slabs of the feature stage as have at most `size` bytes of latents; of one at least."""
    slab = layout.SLAB // ratio
    return slab * max(1, size // (slab * math.prod(grid) * channels * 2))


def prepare(store: RunStore, this: Pass) -> None:
    """Create the arrays of products."""
    volume = FeatureVolume(store)
    for axis in AXES:
        grid = volume.token_grid(axis)
        slices = volume.grid(this.ratio)[geometry.axis_index(axis)]
        store.new_array(
            layout.dots(this.name, this.ratio, axis),
            shape=(this.vectors, slices, *grid),
            dtype="float32",
            chunks=(this.vectors, _unit_slices(grid, volume.view_channels, this.ratio), *grid),
            dims=("vector", *layout.view_dims(axis)),
        )


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Multiply the touched tokens of a run of slabs with the query."""
    store, this = context.store, Pass(**settings)
    axis: Axis = unit.params["axis"]
    start, stop = unit.params["start"], unit.params["stop"]
    volume, index = FeatureVolume(store), geometry.axis_index(axis)
    target = volume.targets(*match.read_query(store, this))[index]
    # slabs that are smaller than a piece are read together
    thick = _slabs_of(PIECE_BYTES, volume.token_grid(axis), volume.view_channels, this.ratio)
    slabs = [(start + a, start + b) for a, b in geometry.slabs(stop - start, thick)]
    asked = [(*slices, touched_tokens(store, this, axis, slices)) for slices in slabs]
    products = volume.dots_of_slabs(target, this.ratio, axis, asked)
    store.array(layout.dots(this.name, this.ratio, axis))[:, start:stop] = products
    return None


def touched_tokens(store: RunStore, this: Pass, axis: Axis, slices: tuple[int, int]) -> Bool:
    """Tokens (r, c) that any cell to be evaluated in some slices of a view touches."""
    volume, index = FeatureVolume(store), geometry.axis_index(axis)
    sides = [(0, n) for n in volume.grid(this.ratio)]
    sides[index] = slices
    box: Box = (sides[0], sides[1], sides[2])
    wanted = match.wanted_cells(store, this, box)
    return volume.touched_tokens(this.ratio, axis, np.asarray(wanted.any(axis=index)))


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    return ((layout.dots(query, settings["ratio"], axis), None) for axis in AXES)


def _by_slabs(store: RunStore, path: re.Match[str]) -> MarkOf | None:
    """Units of the views one after another; None where the arrays before are not all there."""
    name, ratio, view = path["name"], int(path["ratio"]), [str(axis) for axis in AXES].index(path["axis"])
    arrays = [array_of(store, layout.dots(name, ratio, axis)) for axis in AXES[:view]]
    before = sum(chunk_grid(array)[1] for array in arrays if array is not None)
    return None if None in arrays else lambda index: before + index[1]


def _cost(bench: Bench, unit: Unit) -> Cost:
    tokens, channels = written(unit), FeatureVolume(bench.store).view_channels
    return cost(tokens * channels * 2, 4 * tokens, tokens * channels * PRODUCT, "products", source="latents")


STAGE = Declaration(
    "project",
    "match",
    words="Products with the query",
    part="matching",
    per="ratio",
    made_from=("query", "refine"),
    arrays=(Arrays(layout.pattern(layout.dots), "stage", _by_slabs, "products"),),
    expected=_expected,
    places=lambda store, query: (layout.similarities(query),),
    cost=_cost,
)
