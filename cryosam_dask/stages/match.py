"""Match: the query's cosine similarity on cells, from coarse to fine.

On the coarsest ratio all cells are evaluated, on each next one only those under a cell that reached `tau_sim`. For each
ratio, `stages.project` has multiplied the tokens that its cells touch with the query; a unit here is a box of cells
that interpolates these products and the Gram maps, both small. Cells that were not evaluated hold NaN.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout, ome
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Bool, Float32, Shape3

CELLS: Shape3 = (64, 256, 256)
"""Cells in a unit, at most."""

CHUNK: Shape3 = (64, 128, 128)
"""Chunks of the similarity; a unit has whole ones."""

SAMPLES = 4096
"""Cells of a chunk that the median of all is taken from."""

CANDIDATES = 4_000_000
"""Cells that are held for non-maximum suppression; of more, the best are taken."""


def stage_name(name: str, ratio: int) -> str:
    return f"match/{name}/r{ratio}"


@dataclass(frozen=True)
class Pass:
    """One ratio of a matching: which cells of it are evaluated, and how.

    Attributes
    ----------
    name : of the query; ratio : of the cells
    coarser : only cells under those of this ratio that reached `tau_sim`; None: all
    center : whether the similarity is of F − μ with F_Q − μ
    """

    name: str
    ratio: int
    coarser: int | None = None
    tau_sim: float | None = None
    center: bool = False


def passes(name: str, settings: MatchSettings) -> list[Pass]:
    """The ratios of a matching, from coarse to fine."""
    coarser = (None, *settings.ratios)
    return [
        Pass(name, ratio, before, None if before is None else settings.tau_sim, settings.center)
        for ratio, before in zip(settings.ratios, coarser, strict=False)
    ]


def plan(shape: Shape3, this: Pass, upstream: str) -> Stage:
    """The boxes of cells of one ratio; `upstream` is the fingerprint of its projection."""
    units = []
    for index, box in enumerate(geometry.boxes(geometry.cell_grid(shape, this.ratio), CELLS)):
        low, high = zip(*box, strict=True)
        region = Region(layout.similarity(this.name, this.ratio), low, high)
        cells = math.prod(b - a for a, b in box)
        units.append(
            Unit(
                name=f"ratio {this.ratio} cells {','.join(f'{a}:{b}' for a, b in box)}",
                marks=(index,),
                params={"box": [list(side) for side in box]},
                writes=(region,),
                memory=cells * 10 + (24 << 20),
            )
        )
    return Stage(stage_name(this.name, this.ratio), work, asdict(this), upstream, tuple(units), len(units))


def prepare(store: RunStore, this: Pass) -> None:
    """Create the array of similarities."""
    store.new_array(
        layout.similarity(this.name, this.ratio),
        shape=geometry.cell_grid(store.shape, this.ratio),
        dtype="float32",
        chunks=CHUNK,
        dims=("z", "y", "x"),
        fill_value=math.nan,
    )
    ome.put_coordinates(store, layout.similarity_group(this.name, this.ratio), this.ratio)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Similarity on one box of cells, where the coarser ratio allows it."""
    store, this = RunStore.open(context.url, "r+"), Pass(**settings)
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
    """The query's feature, and the mean that it is centred by or None."""
    where = layout.query(this.name)
    return store.read(f"{where}/feature"), store.read(f"{where}/mean") if this.center else None


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
class Candidates:
    """Cells of a ratio that reached the threshold, and how the similarities lie.

    centers : (n, 3) voxels; scores : (n,); of more than `CANDIDATES` only the best
    evaluated : number of cells evaluated; reached : how many of them reached the threshold
    low, middle, high : least, median and greatest similarity seen
    """

    centers: NDArray[np.float64]
    scores: Float32
    evaluated: int
    reached: int
    low: float
    middle: float
    high: float

    @property
    def words(self) -> str:
        return f"similarities from {self.low:.3f} to {self.high:.3f}, half of them below {self.middle:.3f}"


def candidates(store: RunStore, this: Pass, tau_sim: float) -> Candidates:
    """Read a ratio's similarity chunk by chunk and gather the cells at or above the threshold."""
    array = store.array(layout.similarity(this.name, this.ratio))
    grid: Shape3 = (array.shape[0], array.shape[1], array.shape[2])
    axes = [geometry.cell_centers(n, this.ratio) for n in store.shape]
    points, scores = [np.empty((0, 3))], [np.empty(0, np.float32)]
    seen: list[Float32] = []
    evaluated = reached = 0
    for box in geometry.boxes(grid, CHUNK):
        values = np.asarray(array[geometry.box_slices(box)])
        known = values[np.isfinite(values)]
        evaluated += known.size
        if known.size == 0:
            continue
        seen += [known[:: 1 + known.size // SAMPLES], known.min(keepdims=True), known.max(keepdims=True)]
        index = np.argwhere(values >= tau_sim)
        reached += len(index)
        points.append(np.stack([axes[i][index[:, i] + box[i][0]] for i in range(3)], axis=1))
        scores.append(values[tuple(index.T)])
        if sum(map(len, scores)) > 2 * CANDIDATES:
            points, scores = _best(points, scores)
    points, scores = _best(points, scores)
    spread = np.concatenate(seen)
    return Candidates(
        points[0], scores[0], evaluated, reached, float(spread.min()), float(np.median(spread)), float(spread.max())
    )


def _best(
    points: list[NDArray[np.float64]], scores: list[Float32]
) -> tuple[list[NDArray[np.float64]], list[Float32]]:
    """Join the lists; of more than `CANDIDATES` points keep those of the highest scores, in their order."""
    places, values = np.concatenate(points), np.concatenate(scores)
    if len(values) > CANDIDATES:
        top = np.sort(np.argpartition(-values, CANDIDATES)[:CANDIDATES])
        places, values = places[top], values[top]
    return [places], [values]


def check_kept(found: Candidates, ratio: int, tau_sim: float) -> str | None:
    """`InputError` where no cell reached the threshold; a sentence of warning where all did; else None."""
    if len(found.scores) == 0:
        raise InputError(
            f"no cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g}: {found.words}; "
            "set match.tau_sim lower, or click on another particle"
        )
    if found.reached == found.evaluated and found.evaluated > 1:
        return (
            f"every cell of ratio {ratio} reaches match.tau_sim = {tau_sim:g} ({found.words}): it filters nothing; "
            "set it higher, or match.center"
        )
    return None
