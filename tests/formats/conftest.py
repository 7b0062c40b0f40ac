"""A finished run made by hand, small and with two levels; and other people's packages in folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryosam_dask.stages import label
from cryosam_dask.store import instances, layout, marks, ome, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (20, 24, 300)
VOXEL = 8.0
ORIGIN = (0.0, 80.0, -16.0)
CENTRES = np.array([[9.0, 11.0, 40.0], [10.5, 8.5, 120.0], [2.0, 3.0, 296.0]])
RADII = (6.0, 5.0, 6.0)
"""The last one is cut by three faces of the tomogram."""


@dataclass(frozen=True)
class Run:
    """A run and what is in it."""

    store: RunStore
    labels: np.ndarray
    tomogram: np.ndarray
    table: pd.DataFrame

    @property
    def url(self) -> str:
        return self.store.url


def balls() -> list[np.ndarray]:
    z, y, x = np.indices(SHAPE)
    return [(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= r * r for (a, b, c), r in zip(CENTRES, RADII, strict=True)]


def made(path: Path, name: str = "a_b", source: str = "/data/TS_01.mrc") -> Run:
    about = {"version": "9", "input": {"path": source}, "shape": list(SHAPE), "voxel_size": [VOXEL] * 3}
    store = RunStore.create(path, {**about, "origin": list(ORIGIN)})
    tomogram = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    levels = layout.level_count(SHAPE)
    for level in range(levels):
        shape = layout.level_shape(SHAPE, level)
        array = store.new_array(
            layout.tomogram(level), shape=shape, dtype="f4", chunks=layout.level_chunks(level), dims=("z", "y", "x")
        )
        array[...] = tomogram[tuple(slice(None, None, 1 << level) for _ in shape)]
    scales = ome.multiscales("tomogram", layout.TOMOGRAM_VARIABLE, levels, (VOXEL,) * 3, ORIGIN)
    store.root.attrs["ome"] = {"version": "0.5", "multiscales": scales}
    masks = balls()
    columns = {c: np.zeros(len(masks)) for c in picks.COLUMNS} | dict(zip("zyx", CENTRES.T.copy(), strict=True))
    kinds = dict.fromkeys(("instance", "size", "prompted", "group", "member"), np.int64)
    table = pd.DataFrame(columns).astype(kinds)
    table = table.assign(
        score=[0.9, 0.7, 0.5],
        instance=np.arange(1, len(masks) + 1),
        member=np.arange(len(masks)),
        size=[int(mask.sum()) for mask in masks],
    )
    boxes = [[f(v) for f in (min, lambda w: max(w) + 1) for v in np.nonzero(mask)] for mask in masks]
    cut = [mask[tuple(slice(box[i], box[i + 3]) for i in range(3))] for mask, box in zip(masks, boxes, strict=True)]
    stored = instances.collect(range(len(masks)), boxes, cut, [1.0] * len(masks), [1.0] * len(masks))
    instances.write(store, layout.group(layout.instances(name), 0), stored)
    picks.write(store, name, table, {"segmented": len(masks), "kept": len(masks)})
    label.prepare(store, name)
    values = np.zeros(SHAPE, np.uint32)
    for number, mask in reversed(list(enumerate(masks, 1))):
        values[mask] = number
    for level in range(levels):
        some = values[tuple(slice(None, None, 1 << level) for _ in SHAPE)]
        store.array(layout.labels(name, level))[...] = some
        store.array(layout.labels(layout.semantic_name(name), level))[...] = some > 0
    marks.begin(store, label.stage_name(name), fingerprint="f", settings={}, count=1)
    marks.mark(store, label.stage_name(name), 0)
    return Run(store, values, tomogram, table)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with three instances of the query `a_b`; not to be changed."""
    return made(tmp_path_factory.mktemp("finished") / "run.zarr")


@pytest.fixture(name="make_run")
def _make_run() -> Callable[..., Run]:
    return made


Elsewhere = Callable[..., Any]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Elsewhere]]:
    """`install` into a folder of this session."""
    folder = tmp_path_factory.mktemp("packages")
    yield lambda *packages: install(folder / packages[0].partition(">")[0], packages)
    shutil.rmtree(folder)


def install(folder: Path, packages: Sequence[str]) -> Elsewhere:
    """Packages in a folder that goes before this environment's own; what calls Python with them and gives its JSON.

    Without their dependencies, which this environment has: copick's own would be 75 packages.
    """
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        if (uv := shutil.which("uv")) is None:
            pytest.skip("neither pip nor uv to install other packages with")
        pip = [uv, "pip", "install", "-q", "--python", sys.executable]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"{packages[0]} can't be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")

    def call(code: str, *arguments: object) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return call
