"""Runs made without running anything, a small real one, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import chromium

from cryosam_dask import geometry
from cryosam_dask.kernels import images
from cryosam_dask.models import preset
from cryosam_dask.stages import label, match
from cryosam_dask.store import instances, journal, layout, marks, picks
from cryosam_dask.store.run_store import RunStore

MakeRun = Callable[..., RunStore]
RADIUS = 5


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """`make_run(url, shape, names, count) -> RunStore`: balls as found with the published settings."""
    made: dict[str, Path] = {}

    def copied(url: Path, **options: Any) -> RunStore:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("made") / "run.zarr"
            made_run(made[key], **options)
        shutil.copytree(made[key], url)
        return RunStore.open(url, "r+")

    return copied


def made_run(
    url: Path, shape: tuple[int, int, int] = (40, 64, 90), names: tuple[str, ...] = ("ball",), count: int = 8
) -> RunStore:
    rng = np.random.default_rng(0)
    source = {"path": "/data/TS_01.mrc", "name": "TS_01.mrc", "format": "mrc", "dtype": "float32"}
    about = {"version": "9.9", "packages": {"dask": "1.2", "zarr": "3.4"}, "input": source, "notes": ["a note"]}
    frame = {"shape": list(shape), "voxel_size": [13.48] * 3, "origin": [0.0] * 3}
    store = RunStore.create(url, {**about, **frame, "statistics": {"mean": 0.0, "std": 1.0}})
    store.update_info(features={"encoder": "dinov2-vits14", "weights": f"dinov2-vits14 sha256:{'ab' * 32}",
                                "channels": 384})  # fmt: skip
    shown = np.zeros(shape, bool)
    for name in names:
        shown |= add_query(store, name, rng.uniform(RADIUS, np.array(shape) - RADIUS, (count, 3)), rng) > 0
    add_tomogram(store, rng.normal(size=shape).astype("f4") + 3 * shown)
    add_journal(store, names[0])
    return store


def add_tomogram(store: RunStore, values: np.ndarray) -> None:
    marks.begin(store, "ingest", fingerprint="f", settings={}, count=1)
    for level in range(layout.level_count(store.shape)):
        values = images.halve(values) if level else values
        path, chunks = layout.tomogram(level), layout.level_chunks(level)
        store.new_array(path, shape=values.shape, dtype="f4", chunks=chunks, dims=("z", "y", "x"))[...] = values
    marks.mark(store, "ingest", 0)


def add_query(store: RunStore, name: str, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Prompts, similarities, proposals, picks and labels of a query, whose labels are given back."""
    settings, count = preset("paper", "dinov2-vits14", "sam-vitb"), len(centres)
    ball = ((np.indices((2 * RADIUS + 1,) * 3) - RADIUS) ** 2).sum(0) < RADIUS**2
    z, y, x = np.indices(store.shape)
    labels = np.zeros(store.shape, np.uint32)
    for number, (a, b, c) in enumerate(centres.round(), 1):
        labels[(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < RADIUS**2] = number
    where = layout.query(name)
    store.group(where).attrs["settings"] = settings.model_dump(mode="json")
    corner = centres[0].round().astype(int) - RADIUS
    prompted = instances.collect([0], [[*corner, *(corner + ball.shape)]], [ball], [1.0], [1.0])
    instances.write(store, layout.group(where, 0), prompted)
    store.put(f"{where}/points", centres[:1], ("prompt", "axis"))
    store.put(f"{where}/sizes", np.array([ball.sum()]), ("instance",))
    coarse = np.ones((1, 1, 1), bool)
    for this in match.passes(name, settings.match):
        match.prepare(store, this)
        grid = geometry.cell_grid(store.shape, this.ratio)
        values = rng.normal(0.4, 0.05, grid).astype("f4")
        values[tuple((centres // this.ratio).astype(int).T)] += 0.4
        if this.coarser:
            coarse = np.kron(coarse, np.ones((2, 2, 2), bool))[tuple(map(slice, grid))]
            values[~coarse] = np.nan
        coarse = values >= settings.match.tau_sim
        store.array(layout.similarity(name, this.ratio))[...] = values
    scores = np.linspace(0.9, 0.55, count).astype("f4")
    store.put(f"{layout.proposals(name)}/points", centres, ("prompt", "axis"))
    store.put(f"{layout.proposals(name)}/scores", np.append(1, scores[1:]).astype("f4"), ("prompt",))
    store.group(layout.proposals(name)).attrs.update({"upstream": "u", "given": 1, "nms_radius": 3.0})
    table = pd.DataFrame(dict(zip("zyx", centres.T, strict=True))).assign(
        score=scores, instance=np.arange(1, count + 1), size=int(ball.sum()), similarity=scores, quality=scores,
        prompted=(np.arange(count) == 0).astype("u1"), group=0, member=np.arange(count),
    )  # fmt: skip
    picks.write(store, name, table, {"segmented": count + 2, "kept": count})
    label.prepare(store, name)
    marks.begin(store, label.stage_name(name), fingerprint="f", settings={}, count=1)
    for level in range(layout.level_count(store.shape)):
        store.array(layout.labels(name, level))[...] = labels[(slice(None, None, 1 << level),) * 3]
    marks.mark(store, label.stage_name(name), 0)
    return labels


def add_journal(store: RunStore, name: str) -> None:
    made = journal.Journal(store, f"run {name}", "this process, CPU", "9.9")
    for stage, seconds in (("ingest", 3.5), ("features", 250.0), (f"match/{name}/r16", 7000.0)):
        entry = made.stage(stage, "cuda" if stage == "features" else "cpu")
        entry.add_unit("u", seconds, "host:1", 2_500_000_000)
        entry.seconds = seconds
    made.close("done")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, steered by playwright."""
    with chromium(["--disable-gpu"]) as started:
        yield started


EVIL = "\"'><script>window.hit=1;alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


@pytest.fixture(scope="session")
def hostile_page(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about a run in which everything that is text is an attack."""
    from cryosam_dask.report import write_report

    folder = tmp_path_factory.mktemp("hostile")
    evil_name = EVIL.replace("/", "")
    store = make_run(folder / "run.zarr", names=(evil_name,), count=3)
    source = {"path": f"/data/{EVIL}.mrc", "name": EVIL, "format": EVIL, "dtype": EVIL, "sha256": EVIL}
    store.update_info(
        input=source,
        version=EVIL,
        notes=[EVIL],
        packages={EVIL: EVIL},
        features={"encoder": EVIL, "weights": EVIL, "channels": EVIL},
    )
    entry = {"command": EVIL, "began": EVIL, "executor": EVIL, "outcome": EVIL, "notes": [EVIL]}
    stage = {"seconds": 1, "units": 1, "unit_seconds": 1, "device": EVIL, "workers": {EVIL: 1}}
    store.group(journal.GROUP).attrs["commands"] = [{**entry, "stages": {EVIL: stage}}, {"stages": 3}, 7]
    write_report(store.url, folder / "report.html")
    return folder / "report.html"
