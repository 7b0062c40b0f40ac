"""A run with known instances, made without any model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryosam_dask import geometry
from cryosam_dask.stages import label
from cryosam_dask.stages.base import Context
from cryosam_dask.store import instances, layout, marks, ome, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (40, 70, 90)
VOXEL = (10.0, 14.0, 8.0)
ORIGIN = (-50.0, 0.0, 300.0)

Paint = Callable[..., None]
MakeStore = Callable[..., RunStore]


def ellipsoid(centre: tuple[float, ...], axes: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Voxels inside an ellipsoid with half axes in voxels."""
    places = np.indices(shape).transpose(1, 2, 3, 0)
    return (((places - centre) / axes) ** 2).sum(-1) <= 1


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    """An empty run: `make_store(path, shape, voxel_size, content)`."""

    def make(path: Path, shape: Any = SHAPE, voxel: Any = VOXEL, content: str = "a", origin: Any = ORIGIN) -> RunStore:
        about = {"input": {"path": "/data/t.mrc", "name": "t.mrc", "sha256": content}, "version": "9.9"}
        return RunStore.create(path, {**about, "shape": list(shape), "voxel_size": list(voxel), "origin": list(origin)})

    return make


@pytest.fixture(scope="session")
def paint() -> Paint:
    """As if these masks had been segmented under `name`: `paint(store, name, masks, scores)`; the first is on top."""

    def do(store: RunStore, name: str, masks: list[np.ndarray], scores: list[float] | None = None) -> None:
        count = len(masks)
        boxes = [geometry.bounds(m) for m in masks]
        cut = [m[geometry.box_slices(b)] for m, b in zip(masks, boxes, strict=True)]
        flat = [[a for a, _ in b] + [e for _, e in b] for b in boxes]
        half = count // 2
        for group, chosen in enumerate((range(half), range(half, count))):
            found = instances.collect(
                list(chosen), [flat[i] for i in chosen], [cut[i] for i in chosen],
                [0.5 + i / 100 for i in chosen], [0.9 - i / 100 for i in chosen],
            )  # fmt: skip
            instances.write(store, layout.group(layout.instances(name), group), found)
        centres = np.array([np.argwhere(m).mean(0) for m in masks]).reshape(-1, 3)
        ranks = np.linspace(1, 0.5, count) if scores is None else np.array(scores, float)
        table = pd.DataFrame({
            "z": centres[:, 0], "y": centres[:, 1], "x": centres[:, 2], "score": ranks,
            "instance": np.arange(1, count + 1), "size": [int(m.sum()) for m in masks],
            "similarity": 0.9 - np.arange(count) / 100, "quality": 0.5,
            "prompted": (np.arange(count) == 0).astype(int),
            "group": (np.arange(count) >= half).astype(int),
            "member": [i if i < half else i - half for i in range(count)],
        })  # fmt: skip
        picks.write(store, name, table, {"kept": count})
        label.prepare(store, name)
        sources = [(int(g), int(m), i + 1) for i, (g, m) in enumerate(zip(table.group, table.member, strict=True))]
        stage = label.plan(store, name, np.array(flat, int).reshape(-1, 6)[::-1], sources[::-1], "u")
        marks.begin(store, stage.name, fingerprint="f", settings={}, count=len(stage.units))
        for unit in stage.units:
            label.work(Context(store.url), stage.settings, unit)
            marks.mark(store, stage.name, unit.marks[0])

    return do


def put_similarity(store: RunStore, name: str, ratio: int, values: np.ndarray) -> None:
    """A similarity map as the matching leaves it."""
    array = store.new_array(
        layout.similarity(name, ratio), shape=values.shape, dtype="float32", chunks=(4, 8, 16), dims=("z", "y", "x")
    )
    array[...] = values
    ome.put_coordinates(store, layout.similarity_group(name, ratio), ratio)


def some_masks() -> list[np.ndarray]:
    """Eight instances: apart, touching, overlapping, cut by the border, one that nothing is left of."""
    masks = [
        ellipsoid((10, 15, 15), (5, 5, 8)),
        ellipsoid((10, 15, 27), (4, 4, 6)),  # overlaps the first
        ellipsoid((28, 50, 60), (7, 5, 9)),
        ellipsoid((0, 40, 80), (5, 6, 6)),  # cut at z = 0
        ellipsoid((30, 20, 50), (4, 4, 4)),
        ellipsoid((28, 50, 60), (2, 2, 2)),  # hidden
        ellipsoid((20, 60, 20), (6, 3, 12)),
    ]
    one = np.zeros(SHAPE, bool)
    one[35, 5, 85] = True
    return [*masks, one]


@pytest.fixture(scope="session")
def run(make_store: MakeStore, paint: Paint, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Queries `a` (`some_masks`) and `m` (a bent sheet), similarity of `a` at ratios 4 and 2. Not to be changed."""
    store = make_store(tmp_path_factory.mktemp("analysis") / "run.zarr")
    paint(store, "a", some_masks())
    z, y, x = np.indices(SHAPE)
    paint(store, "m", [np.abs(z - 12 - 0.004 * (x - 45) ** 2 - 0.1 * y) < 1])
    rng = np.random.default_rng(3)
    put_similarity(store, "a", 4, rng.uniform(-1, 1, geometry.cell_grid(SHAPE, 4)))
    fine = rng.uniform(-1, 1, geometry.cell_grid(SHAPE, 2))
    put_similarity(store, "a", 2, np.where(rng.random(fine.shape) < 0.4, np.nan, fine))
    for name in ("a", "m"):
        store.group(layout.query(name))
    return store
