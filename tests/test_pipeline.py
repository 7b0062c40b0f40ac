"""The whole job with the built-in models on a small simulated tomogram: what a user relies on."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import zarr

import cryosam_dask as cs
from cryosam_dask import outputs, planning
from cryosam_dask.demo import write_simulation
from cryosam_dask.errors import InputError, MemoryLimitError, SettingsError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models import cache
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.stages import embed
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore

NAME = "ribosome"
SIZE = {"shape": (64, 112, 112), "snr": 1.0, "membranes": 0}


@pytest.fixture(scope="session")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tomogram with a handful of ribosomes, its truth, and where to click."""
    folder = tmp_path_factory.mktemp("simulation")
    from cryosam_dask.simulate import Species

    species = (Species("ribosome", "ribosome", 25.0, 6, 1.2), Species("small", "globule", 7.0, 20))
    made = write_simulation(
        folder / "tomogram.mrc",
        "default",
        {**SIZE, "species": species},
        truth=folder / "truth.csv",
        labels=folder / "labels.mrc",
        species=NAME,
    )
    return {"path": made.tomogram, "point": [float(v) for v in made.click.split(",")], "folder": folder}


@pytest.fixture(scope="session")
def finished(simulation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole job, in this process. Tests must not change it."""
    out = tmp_path_factory.mktemp("run") / "run.zarr"
    cs.run(simulation["path"], [simulation["point"]], out, name=NAME, models="texture+random-walker", workers=0)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for more queries: features and planes near particles are there."""
    out = tmp_path / "run.zarr"
    shutil.copytree(finished, out)
    return out


def contents(run: Path) -> dict[str, bytes]:
    """All chunks that a stage made, by path; metadata of the run aside."""
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted(run.rglob("*"))
        if p.is_file() and p.name != "zarr.json" and "marks" not in p.parts
    }


def test_one_click_finds_and_outlines_the_particles(finished: Path, simulation: dict[str, Any]) -> None:
    folder = simulation["folder"]
    figures = outputs.evaluate(finished, folder / "truth.csv", 10, truth_labels=folder / "labels.mrc")
    assert figures["f1"] >= 0.9
    assert figures["mean_iou"] >= 0.55


def test_two_workers_give_the_same_bytes(finished: Path, simulation: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "dask.zarr"
    cs.run(simulation["path"], [simulation["point"]], out, name=NAME, models="texture+random-walker", workers=2)
    one, other = contents(finished), contents(out)
    assert one.keys() == other.keys()
    assert [path for path in one if one[path] != other[path]] == []


def test_labels_picks_and_instances_agree(finished: Path) -> None:
    tree = cs.open_run(finished)
    labels = tree[f"labels/{NAME}/scale0"]["labels"]
    table = tree[f"picks/{NAME}"].to_dataset().to_dataframe()
    assert len(table) >= 5
    assert (np.diff(table["score"]) <= 0).all()
    assert table["instance"].tolist() == list(range(1, len(table) + 1))
    values = labels.to_numpy()
    for row in table.itertuples():
        where = np.argwhere(values == row.instance)
        assert 0 < len(where) <= row.size
        assert where.mean(0) == pytest.approx([row.z, row.y, row.x], abs=2.0)
    semantic = tree[f"labels/{NAME}_semantic/scale0"]["labels"].to_numpy()
    assert (semantic == (values > 0)).all()
    assert labels.coords["y"].attrs["units"] == "angstrom"
    assert float(labels.y[3]) == pytest.approx(30.0)
    assert table["position_z"].to_numpy() == pytest.approx(10.0 * table["z"].to_numpy())


def test_the_prompted_particle_is_among_the_picks(finished: Path, simulation: dict[str, Any]) -> None:
    table = picks.read(RunStore.open(finished), NAME)
    own = table[table["prompted"] == 1]
    assert len(own) == 1
    assert np.linalg.norm(own[["z", "y", "x"]].to_numpy()[0] - simulation["point"]) < 6


def test_labels_are_ome_zarr(finished: Path) -> None:
    root = zarr.open_group(finished, mode="r")
    listed = root["labels"].attrs["ome"]
    assert isinstance(listed, dict)
    assert listed["labels"] == [NAME, f"{NAME}_semantic"]
    image = root[f"labels/{NAME}"]
    assert isinstance(image, zarr.Group)
    metadata = image.attrs["ome"]
    assert isinstance(metadata, dict)
    assert metadata["image-label"]["source"] == {"image": "../../"}
    for dataset in metadata["multiscales"][0]["datasets"]:
        assert dataset["path"] in image
    array = root[layout.labels(NAME)]
    assert isinstance(array, zarr.Array)
    assert np.issubdtype(array.dtype, np.integer)


def test_each_visited_plane_is_embedded_once_and_no_other(
    simulation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: set[tuple[str, int]] = set()
    embedded: list[int] = []
    step = Propagation.step

    def spy(self: Propagation, segmenter: Any, axis: Any, plane: int, *rest: Any) -> None:
        visited.add((axis, plane))
        step(self, segmenter, axis, plane, *rest)

    cache.clear()
    segmenter = cache.get_segmenter("random-walker", "cpu", "float32")
    embed_planes = type(segmenter).embed

    def count(self: Any, planes: Any) -> Any:
        embedded.append(len(planes))
        return embed_planes(self, planes)

    monkeypatch.setattr(Propagation, "step", spy)
    monkeypatch.setattr(type(segmenter), "embed", count)
    out = tmp_path / "run.zarr"
    cs.run(simulation["path"], [simulation["point"]], out, name=NAME, models="texture+random-walker", workers=0)
    store = RunStore.open(out)
    done = {int(i) for i in np.flatnonzero(marks.done(store, embed.NAME))}
    assert done == {embed.mark_of(store.shape, plane) for plane in visited}  # type: ignore[arg-type]
    assert sum(embedded) == len(visited) > 0


def test_a_second_run_does_nothing(finished: Path, simulation: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(finished)
    driver = cs.run(
        simulation["path"], [simulation["point"]], finished, name=NAME, models="texture+random-walker", workers=0
    )
    assert sum(len(t) for t in driver.timings.values()) == 0
    assert contents(finished) == before


def test_interrupted_anywhere_it_goes_on_to_the_same_result(
    finished: Path, simulation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop the driver after every 25 units, as Ctrl-C does, until it gets through."""
    out, limit, stops = tmp_path / "run.zarr", 25, 0
    from cryosam_dask.executors import serial

    run_unit = serial.run_unit
    while True:
        count = 0

        def stopping(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > limit:
                raise KeyboardInterrupt
            return run_unit(*args, **kwargs)

        monkeypatch.setattr(serial, "run_unit", stopping)
        try:
            cs.run(simulation["path"], [simulation["point"]], out, name=NAME, models="texture+random-walker", workers=0)
        except KeyboardInterrupt:
            stops += 1
            assert stops < 40
            continue
        break
    assert stops >= 2
    assert contents(out) == contents(finished)


def test_other_settings_are_refused_by_name_and_replaced_on_request(simulation: dict[str, Any], copied: Path) -> None:
    out, name = copied, "other"

    def go(overwrite: bool = False, **changes: Any) -> None:
        settings = settings_for("texture+random-walker", {k.replace("__", "."): v for k, v in changes.items()})
        cs.run(
            simulation["path"], [simulation["point"]], out, name=name, settings=settings, workers=0, overwrite=overwrite
        )

    go(match__count=3)
    first = contents(out)
    with pytest.raises(StoreError, match=r"match\.count: 3 → 2.*--overwrite"):
        go(match__count=2)
    assert contents(out) == first
    go(match__count=2, overwrite=True)
    assert len(picks.read(RunStore.open(out), name)) <= 3
    with pytest.raises(StoreError, match=r"features.*thickness: 5 → 7"):
        go(match__count=2, features__thickness=7)


def test_two_queries_share_a_store(simulation: dict[str, Any], finished: Path, copied: Path) -> None:
    out = copied
    other = picks.read(RunStore.open(out), NAME)[["z", "y", "x"]].to_numpy()[-1].round().tolist()
    cs.run(simulation["path"], [other], out, name="second", models="texture+random-walker", workers=0)
    tree = cs.open_run(out)
    assert set(tree["picks"].children) == {NAME, "second"}
    before, after = contents(finished), contents(out)
    changed = {p for p in before if after.get(p) != before[p]}
    assert {p for p in changed if not p.startswith("embeddings")} == set()


def test_several_points_make_one_query(simulation: dict[str, Any], copied: Path) -> None:
    out, name = copied, "several"
    points = picks.read(RunStore.open(out), NAME)[["z", "y", "x"]].to_numpy()[:2].round().tolist()
    cs.run(simulation["path"], points, out, name=name, models="texture+random-walker", workers=0)
    store = RunStore.open(out)
    volume = cs.FeatureVolume.open(out)
    from cryosam_dask.store import instances as stored

    total, count = np.zeros(volume.channels), 0
    found = stored.read(store, layout.group(layout.query(name), 0))
    for i in range(len(found.prompt)):
        mask = np.zeros(store.shape, bool)
        z0, y0, x0, z1, y1, x1 = found.box[i]
        mask[z0:z1, y0:y1, x0:x1] = found.mask(i)
        total += volume.pool(mask) * mask.sum()
        count += int(mask.sum())
    assert len(found.prompt) == 2
    assert store.read(f"{layout.query(name)}/feature") == pytest.approx(total / count, abs=1e-4)
    assert picks.read(store, name)["prompted"].sum() == 2


def test_naive_matching_goes_through_the_same_code(simulation: dict[str, Any], copied: Path) -> None:
    settings = settings_for("texture+random-walker", {"match.ratios": [1]})
    cs.run(simulation["path"], [simulation["point"]], copied, name="naive", settings=settings, workers=0)
    similarity = cs.open_run(copied)["similarity/naive/r1"]["similarity"]
    assert similarity.shape == SIZE["shape"]
    assert bool(np.isfinite(similarity).all())
    truth = simulation["folder"] / "truth.csv"
    assert outputs.evaluate(copied, truth, 10, name="naive")["recall"] >= 0.8


@pytest.mark.parametrize(
    ("tau_sim", "message"), [(0.999, r"no cell of ratio \d+ reaches match\.tau_sim = 0\.999: similarities from")]
)
def test_a_threshold_that_keeps_nothing_is_said_in_words(
    simulation: dict[str, Any], copied: Path, tau_sim: float, message: str
) -> None:
    settings = settings_for("texture+random-walker", {"match.tau_sim": tau_sim})
    with pytest.raises(InputError, match=message):
        cs.run(simulation["path"], [simulation["point"]], copied, settings=settings, workers=0)


def test_a_threshold_that_keeps_everything_is_said_in_words(simulation: dict[str, Any], copied: Path) -> None:
    settings = settings_for("texture+random-walker", {"match.tau_sim": -1.0, "match.ratios": [4], "match.count": 3})
    driver = cs.run(simulation["path"], [simulation["point"]], copied, settings=settings, workers=0)
    assert any("every cell of ratio 4 reaches match.tau_sim" in note for note in driver.notes)


def test_a_unit_too_large_for_a_worker_is_refused_before_anything_runs(
    simulation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SerialExecutor, "worker_memory", property(lambda self: 1 << 20))
    driver = Driver(tmp_path / "r.zarr", SerialExecutor())
    with pytest.raises(MemoryLimitError, match=r"ingest: unit voxels .* needs .* a worker has 1\.0 MB"):
        driver.ingest(simulation["path"])
    assert not (tmp_path / "r.zarr").exists()


def test_a_point_outside_is_refused_before_anything_is_written(simulation: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"looks like x,y,z"):
        cs.run(simulation["path"], [[100, 50, 20]], tmp_path / "r.zarr", models="texture+random-walker", workers=0)
    assert not (tmp_path / "r.zarr").exists()


def test_the_store_describes_the_run(finished: Path) -> None:
    described = outputs.describe(finished)
    assert described["version"] == cs.__version__
    assert described["input"]["path"].endswith("tomogram.mrc")
    assert described["features"]["encoder"] == "texture"
    assert described["queries"][NAME]["settings"]["propagation"]["segmenter"] == "random-walker"
    assert all(stage["done"] == stage["units"] for name, stage in described["stages"].items() if name != embed.NAME)
    json.dumps(described)


def test_the_journal_says_who_ran_what_and_how_long(finished: Path) -> None:
    (entry,) = outputs.describe(finished)["journal"]
    assert entry["command"] == f"run {NAME}"
    assert entry["outcome"] == "done"
    assert entry["began"] <= entry["ended"]
    assert entry["host"] == socket.gethostname()
    assert entry["process"] == os.getpid()
    assert entry["executor"] == "this process, CPU"
    done = outputs.describe(finished)["stages"]
    assert set(entry["stages"]) == set(done)
    for name, stage in entry["stages"].items():
        waits = name.startswith("segment/")  # its units run once more for each plane that they wait for
        assert stage["units"] == done[name]["done"] or waits or name == "embeddings", name
        assert 0 < stage["longest_seconds"] <= stage["unit_seconds"]
        assert stage["unit_seconds"] <= 1.05 * stage["seconds"] + 0.05
        assert stage["device"] == "cpu"
        assert stage["workers"] == {socket.gethostname(): 1}
        assert stage["retried"] == stage["failed"] == 0
    words = outputs.describe_in_words(outputs.describe(finished))
    assert f"run {NAME}, by " in words
    assert "features: 12 units in " in words


def test_a_plan_goes_by_what_a_run_took(finished: Path, simulation: dict[str, Any]) -> None:
    like = planning.measured(finished, planning.machine("cpu"))
    source = open_tomogram(simulation["path"])
    made = planning.plan_run(source, settings_for("texture+random-walker"), planning.Options(workers=(1,), like=like))
    took = {}
    for name, stage in outputs.describe(finished)["journal"][0]["stages"].items():
        kind = name.partition("/")[0]
        took[kind] = took.get(kind, 0.0) + stage["unit_seconds"]
    planned = {stage.name: stage.seconds for stage in made.stages}
    assert set(planned) == set(took)
    for kind in ("ingest", "features", "match", "rank", "label"):  # whose units are those of the run
        assert planned[kind] == pytest.approx(took[kind], rel=0.05), kind
    assert str(finished) in planning.in_words(made)
    assert made.prompts == 1 + len(picks.read(RunStore.open(finished), NAME))
    assert like.settings.features.encoder == "texture"
    with pytest.raises(SettingsError, match=r"was made with texture\+random-walker, and says nothing of what dinov2"):
        planning.plan_run(source, settings_for("paper"), planning.Options(like=like))


def test_exports_carry_the_picks_and_labels(finished: Path, tmp_path: Path) -> None:
    table = picks.read(RunStore.open(finished), NAME)
    cs.export(finished, tmp_path / "p.csv")
    text = (tmp_path / "p.csv").read_text().splitlines()
    assert text[0] == "z,y,x,score,instance"
    assert list(cs.open_run(finished)[f"picks/{NAME}"].data_vars)[:5] == ["z", "y", "x", "score", "instance"]
    assert len(text) == len(table) + 1
    assert [float(v) for v in text[1].split(",")[:3]] == pytest.approx(table.loc[0, ["z", "y", "x"]].tolist())
    cs.export(finished, tmp_path / "p.star")
    from cryosam_dask.io.points.files import read_points

    again = read_points(tmp_path / "p.star")
    assert again[["z", "y", "x"]].to_numpy() == pytest.approx(table[["z", "y", "x"]].to_numpy(), abs=1e-4)
    cs.export(finished, tmp_path / "l.mrc")
    with mrcfile.open(tmp_path / "l.mrc") as file:
        assert (file.data == RunStore.open(finished).read(layout.labels(NAME))).all()
        assert float(file.voxel_size.x) == pytest.approx(10.0)
    with pytest.raises(InputError, match="can't hold labels"):
        cs.export(finished, tmp_path / "l.csv", what="labels")
    with pytest.raises(InputError, match="no results called 'none'"):
        cs.export(finished, tmp_path / "p.csv", name="none")


def test_the_run_opens_with_plain_xarray(finished: Path) -> None:
    import xarray as xr

    tree = xr.open_datatree(finished, engine="zarr", consolidated=False, chunks={})
    assert tree["scale0"]["tomogram"].dims == ("z", "y", "x")
    assert "similarity" in tree
    tree.close()


def test_dense_ratios_are_stored_as_the_volume_computes_them(finished: Path) -> None:
    stored = cs.open_run(finished)["features/dense/r16"]["features"]
    assert stored.to_numpy() == pytest.approx(cs.FeatureVolume.open(finished).dense(16).to_numpy(), abs=2e-3, rel=1e-3)
