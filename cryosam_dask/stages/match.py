"""Match: the query's cosine similarity on cells, from coarse to fine.

On the coarsest ratio all cells are evaluated, on each next one only those under a cell that reached `tau_sim`. For each
ratio, `stages.project` has multiplied the tokens that its cells touch with the query; a unit here is a box of cells
that interpolates these products and the Gram maps, both small. Cells that were not evaluated hold NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import learned
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import CELL, Bench, Cost, cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration, Expected, MarkOf, array_of, by_box
from cryosam_dask.store import layout, ome
from cryosam_dask.store.arrays import grid as chunk_grid
from cryosam_dask.store.feature_volume import TILE, FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Bool, Float32, Json, Shape3

CELLS: Shape3 = (64, 128, 128)
"""Cells in a unit, at most, and in a chunk of the similarity."""

VOXELS: Shape3 = (64, 256, 256)
"""The same for a unit of ratio 1, which has fewer tokens for each cell."""

SAMPLES = 4096
"""Cells of a chunk that the median of all is taken from."""

STEPS = 4096
"""Steps of similarity above the threshold that cells are counted in."""


def stage_name(name: str, ratio: int) -> str:
    return STAGE.stage_name(name, ratio)


@dataclass(frozen=True)
class Pass:
    """The matching at one ratio: which cells are evaluated, and how.

    Attributes
    ----------
    name : the query; ratio : side of the cells in voxels
    coarser : only cells under those of this ratio that reached `tau_sim`; None: all
    center : whether the similarity is of F − μ with F_Q − μ
    """

    name: str
    ratio: int
    coarser: int | None = None
    tau_sim: float | None = None
    center: bool = False

    @property
    def vectors(self) -> int:
        """Vectors that tokens are multiplied with: the query, and the mean where both are centred."""
        return 2 if self.center else 1


def passes(name: str, settings: MatchSettings) -> list[Pass]:
    """The ratios of a matching, from coarse to fine."""
    coarser = (None, *settings.ratios)
    return [
        Pass(name, ratio, before, None if before is None else settings.tau_sim, settings.center)
        for ratio, before in zip(settings.ratios, coarser, strict=False)
    ]


def plan(shape: Shape3, grids: dict[Axis, tuple[int, int]], this: Pass, upstream: str) -> Stage:
    """The boxes of cells of one ratio.

    grids : tokens along the rows and columns of each view's slices; upstream : fingerprint of the ratio's projection
    """
    units = []
    for index, box in enumerate(
        geometry.boxes(geometry.cell_grid(shape, this.ratio), VOXELS if this.ratio == 1 else CELLS)
    ):
        low, high = zip(*box, strict=True)
        region = Region(layout.similarity(this.name, this.ratio), low, high)
        units.append(
            Unit(
                name=f"ratio {this.ratio} cells {','.join(f'{a}:{b}' for a, b in box)}",
                marks=(index,),
                params={"box": [list(side) for side in box]},
                writes=(region,),
                memory=_unit_memory(shape, grids, this, box),
            )
        )
    return Stage(stage_name(this.name, this.ratio), work, asdict(this), upstream, tuple(units), len(units))


def _unit_memory(shape: Shape3, grids: dict[Axis, tuple[int, int]], this: Pass, box: Box) -> int:
    """The similarity and what it is made from: products and Gram maps, read and decoded, and a tile's terms."""
    maps = this.vectors + len(layout.GRAM_MAPS)
    tokens = 0
    for axis, grid in grids.items():
        slices, *sides = (b - a for a, b in geometry.box_of(box, axis))
        voxels = [side * this.ratio for side in sides]
        tokens += slices * geometry.tokens_under(voxels, grid, geometry.plane_shape(shape, axis))
    return math.prod(b - a for a, b in box) * 6 + tokens * maps * 6 + math.prod(TILE) * 4 * 8 + BESIDES


def prepare(store: RunStore, this: Pass) -> None:
    """Create the array of similarities."""
    store.new_array(
        layout.similarity(this.name, this.ratio),
        shape=geometry.cell_grid(store.shape, this.ratio),
        dtype="float32",
        chunks=CELLS,
        dims=("z", "y", "x"),
        fill_value=math.nan,
    )
    ome.put_coordinates(store, layout.similarity_group(this.name, this.ratio), this.ratio)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Similarity on one box of cells, where the coarser ratio allows it."""
    store, this = context.store, Pass(**settings)
    z, y, x = ((int(a), int(b)) for a, b in unit.params["box"])
    box: Box = (z, y, x)
    wanted = wanted_cells(store, this, box)
    out = np.full(wanted.shape, np.nan, np.float32)
    if wanted.any():
        query, mean = read_query(store, this)
        tight = geometry.bounds(wanted)
        inside = geometry.box_slices(tight)

        def dots(axis: Axis, part: tuple[slice, slice, slice]) -> Float32:
            return store.read(layout.dots(this.name, this.ratio, axis), (slice(None), *part))

        out[inside] = FeatureVolume(store).similarity_block(
            query, this.ratio, geometry.shifted(tight, box), mean, wanted=wanted[inside], dots=dots
        )
    store.array(layout.similarity(this.name, this.ratio))[geometry.box_slices(box)] = out
    return None


def read_query(store: RunStore, this: Pass) -> tuple[Float32, Float32 | None]:
    """What is searched for, the query's feature or what decisions made of it, and the mean that it is centred by or
    None."""
    mean = store.read(layout.query_array(this.name, "mean")) if this.center else None
    return store.read(learned.direction(store, this.name) or layout.query_array(this.name, "feature")), mean


def wanted_cells(store: RunStore, this: Pass, box: Box) -> Bool:
    """Cells of the box that lie under a coarser cell at or above the threshold."""
    shape = tuple(b - a for a, b in box)
    if this.coarser is None:
        return np.ones(shape, bool)
    step = this.coarser // this.ratio
    parents = tuple(slice(a // step, (b - 1) // step + 1) for a, b in box)
    kept = store.read(layout.similarity(this.name, this.coarser), parents) >= this.tau_sim
    index = np.ix_(*(np.arange(a, b) // step - a // step for a, b in box))
    out: Bool = kept[index]
    return out


@dataclass(frozen=True)
class Survey:
    """The distribution of the similarities of a ratio.

    evaluated, reached : number of cells evaluated, and of those at or above the threshold
    low, middle, high : least, median and greatest similarity seen; the median is of a sample
    counts : number of cells between each two of `edges`
    """

    evaluated: int
    reached: int
    low: float
    middle: float
    high: float
    edges: Float32
    counts: NDArray[np.int64]

    @property
    def words(self) -> str:
        return f"similarities from {self.low:.3f} to {self.high:.3f}, half of them below {self.middle:.3f}"


def survey(store: RunStore, this: Pass, tau_sim: float) -> Survey:
    """Read a ratio's similarity chunk by chunk and count."""
    # a cosine is less than 2, whatever it was rounded to; the first edge is the least single that reaches the threshold
    edges = np.append(np.linspace(tau_sim, 1.0, STEPS, dtype=np.float32)[:-1], np.float32(2))
    edges[0] = np.float32(tau_sim) if np.float32(tau_sim) >= tau_sim else np.nextafter(edges[0], edges[-1])
    counts = np.zeros(len(edges) - 1, np.int64)
    seen: list[Float32] = []
    evaluated = 0
    for _, values in parts(store, this):
        known = values[np.isfinite(values)]
        if known.size == 0:
            continue
        evaluated += known.size
        sample = known[:: 1 + known.size // SAMPLES].copy()  # a view would keep the whole chunk
        seen += [sample, known.min(keepdims=True), known.max(keepdims=True)]
        counts += np.histogram(known[known >= edges[0]], edges)[0]
    spread = np.concatenate(seen)
    low, middle, high = float(spread.min()), float(np.median(spread)), float(spread.max())
    return Survey(evaluated, int(counts.sum()), low, middle, high, edges, counts)


def parts(store: RunStore, this: Pass) -> Iterator[tuple[Box, Float32]]:
    """The similarity of a ratio, chunk by chunk, with the box of cells that each is of."""
    array = store.array(layout.similarity(this.name, this.ratio))
    for box in geometry.boxes(geometry.cell_grid(store.shape, this.ratio), CELLS):
        yield box, np.asarray(array[geometry.box_slices(box)])


def check_kept(survey: Survey, ratio: int, tau_sim: float) -> str | None:
    """`InputError` if no cell reached the threshold. Return a sentence of warning if all did, else None."""
    if survey.reached == 0:
        raise InputError(
            f"no cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g}: {survey.words}; "
            "set match.tau_sim lower, or click on another particle"
        )
    if survey.reached == survey.evaluated and survey.evaluated > 1:
        return (
            f"every cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g} ({survey.words}): it filters nothing; "
            "set it higher, or match.center"
        )
    return None


def _expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
    yield layout.similarity(query, settings["ratio"]), None


def _by_cells(store: RunStore, path: re.Match[str]) -> MarkOf | None:
    """A unit is a chunk, or of voxels a larger box; None where the array can't be opened."""
    array = array_of(store, path.string)
    if array is None:
        return None
    z, y, x = array.chunks
    if int(path["ratio"]) == 1:
        return by_box((z, y, x), VOXELS, store.shape)
    return lambda index: int(np.ravel_multi_index(index, chunk_grid(array)))


def _mend(store: RunStore, path: re.Match[str]) -> None:
    ratio = int(path["ratio"])
    ome.put_coordinates(store, layout.similarity_group(path["name"], ratio), ratio)


def _cost(bench: Bench, unit: Unit) -> Cost:
    """As if every cell were evaluated."""
    path = layout.pattern(layout.similarity).fullmatch(unit.writes[0].array)
    ratio = int(path["ratio"]) if path else 1
    tokens = sum(math.prod(bench.store.array(layout.gram(ratio, axis)).shape[:3]) for axis in AXES)
    cells, share = written(unit), tokens / math.prod(FeatureVolume(bench.store).grid(ratio))
    return cost(20 * share * cells, 4 * cells, cells * CELL, "features")


STAGE = Declaration(
    "match",
    "match",
    words="Similarity",
    part="matching",
    per="ratio",
    made_from=("project",),
    arrays=(
        Arrays(layout.pattern(layout.similarity), "stage", _by_cells, "similarity"),
        Arrays(
            layout.pattern(lambda name, ratio, axis: layout.member(layout.similarity_group(name, ratio), axis)),
            "coordinates",
            mend=_mend,
        ),
    ),
    expected=_expected,
    places=lambda store, query: (layout.similarities(query),),
    cost=_cost,
)
