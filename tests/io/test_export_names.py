"""What exports call tomograms: by their tilt series, as asked for, and never two by one name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from typer.testing import CliRunner

from cryosam_dask import outputs
from cryosam_dask.cli import app
from cryosam_dask.errors import InputError
from cryosam_dask.io.points.files import read_points
from cryosam_dask.outputs.truth import Truth, tomogram_of
from cryosam_dask.outputs.truth_files import Kind
from cryosam_dask.pipeline.summary import Row, Summary, join_picks
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore

Make = Callable[..., RunStore]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """Makes a run with one pick, whose z is a number of its own."""

    def make(name: str, z: float = 1.0, path: str | None = None, query: str = "a") -> RunStore:
        info = {"version": "9", "input": {"path": path or f"/data/{name}.mrc"}, "shape": [40, 50, 60]}
        url = tmp_path / "runs" / f"{name}.zarr"
        store = RunStore.create(url, {**info, "origin": [0.0] * 3, "voxel_size": [10.0] * 3})
        table = pd.DataFrame({column: np.zeros(1) for column in picks.COLUMNS}).assign(z=z, y=2.0, x=3.0, score=1.0)
        whole = dict.fromkeys(("instance", "size", "prompted", "group", "member"), np.int64)
        picks.write(store, query, table.astype(whole).assign(instance=1), {"segmented": 1, "kept": 1})
        return store

    return make


def cryosam(*words: object) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("file", "series"), [("TS_1_10.00Apx", "TS_1"), ("rec_TS_2", "TS_2"), ("TS_3_full_rec", "TS_3"), ("rec", "rec")]
)
def test_one_run_is_called_by_its_tilt_series(run: Make, tmp_path: Path, file: str, series: str) -> None:
    store = run(file)
    star = tmp_path / "p.star"
    for kind, column, ending in (("warp", "rlnMicrographName", ".tomostar"), ("star", "rlnTomoName", "")):
        _, said = cryosam("export", store.url, star, "--format", kind)
        assert starfile.read(star)[column].tolist() == [series + ending]
        assert (f"not by their files: {series} ({file})" in said) == (file != series)
    outputs.export(store.url, tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["run_name"] == series
    assert outputs.export(store.url, tmp_path / "p.csv") == []  # which names no tomogram
    assert outputs.export(store.url, star, tomogram="rec_X") == []
    assert starfile.read(star)["rlnTomoName"].tolist() == ["rec_X"]
    with pytest.raises(InputError, match="one run has one name"):
        outputs.export(store.url, star, tomogram=["a", "b"])
    with pytest.raises(InputError, match="name is empty"):
        outputs.export(store.url, star, tomogram="")


def test_runs_of_a_copick_project_keep_their_names(run: Make, tmp_path: Path) -> None:
    store = run("TS_1_rec", path="/p/config.json#TS_1_rec/wbp@10.0")
    outputs.export(store.url, tmp_path / "p.star")
    assert starfile.read(tmp_path / "p.star")["rlnTomoName"].tolist() == ["TS_1_rec"]
    run("TS_1")
    outputs.export(tmp_path / "runs", tmp_path / "p.csv")
    assert sorted(read_points(tmp_path / "p.csv", tomogram_name="*")["tomogram"]) == ["TS_1", "TS_1_rec"]


def test_a_copick_projects_run_is_the_one_that_is_there(run: Make, tmp_path: Path) -> None:
    choice = outputs.CopickChoice(contents=("picks",))
    for name in ("rec_TS_1", "TS_2"):
        outputs.export(run(name).url, tmp_path / "new", format="copick", copick=choice)
    assert sorted(p.name for p in (tmp_path / "new" / "ExperimentRuns").iterdir()) == ["TS_1", "TS_2"]
    outputs.export(run("TS_3").url, tmp_path / "old", format="copick", copick=choice)
    (tmp_path / "old" / "ExperimentRuns" / "rec_TS_4").mkdir()
    outputs.export(run("rec_TS_4").url, tmp_path / "old", format="copick", copick=choice)
    assert sorted(p.name for p in (tmp_path / "old" / "ExperimentRuns").iterdir()) == ["TS_3", "rec_TS_4"]


def named(path: Path) -> dict[str, float]:
    table = read_points(path, tomogram_name="*")
    return dict(zip(table["tomogram"], table["z"], strict=True))


def test_a_folder_of_runs(run: Make, tmp_path: Path) -> None:
    for z, name in enumerate(("rec_TS_1", "TS_2_10.00Apx", "TS_3_rec", "TS_3_bin4")):
        run(name, z)
    path, runs = tmp_path / "p.csv", tmp_path / "runs"
    _, said = cryosam("export", runs, path)
    assert named(path) == {"TS_1": 0, "TS_2": 1, "TS_3_rec": 2, "TS_3_bin4": 3}
    assert "by their files: TS_2 (TS_2_10.00Apx), TS_1 (rec_TS_1)\n" in said
    assert "two would be called the same: TS_3_bin4, TS_3_rec" in said
    cryosam("export", runs, path, "--tomogram", "TS_3_rec=TS_3", "--tomogram", "rec_TS_1=one, first")
    assert named(path) == {"one, first": 0, "TS_2": 1, "TS_3": 2, "TS_3_bin4": 3}
    (tmp_path / "n.csv").write_text('note,tomogram,run\n,"b, second",TS_2\n,c,TS_3_bin4\n')
    for asked in (str(tmp_path / "n.csv"), {"TS_2": "b, second", "TS_3_bin4": "c"}):
        outputs.export(runs, path, tomogram=asked)
        assert named(path) == {"TS_1": 0, "b, second": 1, "TS_3": 2, "c": 3}
    outputs.export(runs / "TS_2_10.00Apx.zarr", tmp_path / "p.star", tomogram=str(tmp_path / "n.csv"))
    assert starfile.read(tmp_path / "p.star")["rlnTomoName"].tolist() == ["b, second"]
    outputs.export(runs, tmp_path / "p.parquet", tomogram=["TS_3_rec=é #1"])
    assert "é #1" in named(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("TS_9=a", "no run is called: TS_9; there are: TS_1_bin4, TS_1_rec"),
        ("TS_1=a", "several runs are called: TS_1"),
        ("TS_1_rec=", "an empty name: TS_1_rec"),
        (["TS_1_rec=a", "TS_1_rec=b"], "two names of TS_1_rec: a and b"),
        (["TS_1_rec=a", "TS_1_bin4=a"], "would both be called a"),
        ("TS_1", "no name for all of them: expected RUN=NAME"),
        ("none.csv", "no such file"),
        ("FILE.csv", "expected the columns run,tomogram, found a,b"),
    ],
)
def test_names_that_can_not_be(run: Make, tmp_path: Path, asked: str | list[str], words: str) -> None:
    run("TS_1_rec"), run("TS_1_bin4")
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    asked = str(tmp_path / "f.csv") if asked == "FILE.csv" else asked
    with pytest.raises(InputError, match=words) as error:
        outputs.export(tmp_path / "runs", tmp_path / "p.csv", tomogram=asked)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "p.csv").exists()


def test_relions_own_names_are_looked_up(run: Make, tmp_path: Path) -> None:
    sizes = {f"rlnTomoSize{axis}": [200, 200] for axis in "XYZ"}
    table = pd.DataFrame({"rlnTomoName": ["s1_TS_1", "TS_1"], "rlnTomoTiltSeriesPixelSize": [2.0, 2.0], **sizes})
    starfile.write({"global": table.assign(rlnTomoName=["TS_2_Vol", "TS_1"])}, tmp_path / "t.star")
    run("rec_TS_1"), run("TS_2_10.00Apx")
    star = tmp_path / "p.star"
    notes = outputs.export(tmp_path / "runs", star, format="relion5", tomograms=tmp_path / "t.star")
    assert starfile.read(star)["rlnTomoName"].tolist() == ["TS_2_Vol", "TS_1"]
    assert notes == [f"tomograms are called as in {tmp_path}/t.star: TS_2_Vol (TS_2_10.00Apx), TS_1 (rec_TS_1)"]
    run("TS_1_bin4")
    with pytest.raises(InputError, match="are both TS_1: say with --tomogram"):
        outputs.export(tmp_path / "runs", star, format="relion5", tomograms=tmp_path / "t.star")


def joined(run: Make, tmp_path: Path, names: dict[str, float], failed: str = "", kinds: tuple = ("a",)) -> list[str]:
    rows = []
    for name, z in names.items():
        url = str(tmp_path / "runs" / f"{name}.zarr")
        if name != failed:
            for kind in kinds[:1]:
                run(name, z, query=kind)
        rows.append(Row(f"/data/{name}.mrc", name, url, "failed" if name == failed else "done", 1))
    return join_picks(Summary(str(tmp_path), tuple(rows)), kinds)


def test_joint_files_of_a_batch_are_read_back_by_run(run: Make, tmp_path: Path) -> None:
    names = {"rec_TS_1": 1.0, "TS_2_rec": 2.0, "TS_2_bin4": 3.0, "TS_3_Vol": 4.0}
    notes = joined(run, tmp_path, names, failed="TS_2_bin4")
    assert named(tmp_path / "picks.csv") == {"TS_1": 1, "TS_2_rec": 2, "TS_3": 4}
    assert starfile.read(tmp_path / "picks.star")["rlnTomoName"].tolist() == ["TS_1", "TS_2_rec", "TS_3"]
    assert "TS_1 (rec_TS_1), TS_3 (TS_3_Vol)" in notes[0]
    truth = Truth.open(tmp_path / "picks.csv")
    for name, z in names.items():
        if name != "TS_2_bin4":
            table = truth.read(tomogram_of(RunStore.open(tmp_path / "runs" / f"{name}.zarr")), Kind("a"))
            assert table is not None
            assert table["z"].tolist() == [z]
    assert truth.read(tomogram_of(run("TS_4_rec")), Kind("a")) is None


def test_a_truth_of_the_tilt_series_is_one_of_its_reconstruction(run: Make, tmp_path: Path) -> None:
    tomogram = tomogram_of(run("TS_1_full_rec"))
    other = tomogram_of(run("TS_2_EVN_Vol"))
    (tmp_path / "t.csv").write_text("tomogram,z,y,x\nTS_1.tomostar,7,8,9\nTS_2_ODD_Vol,1,2,3\nTS_2_EVN_Vol,4,5,6\n")
    for one, z in ((tomogram, 7), (other, 4)):
        table = Truth.open(tmp_path / "t.csv").read(one, Kind("a"))
        assert table is not None
        assert table["z"].tolist() == [z]
    (tmp_path / "truth").mkdir()
    for name, z in (("TS_1", 1), ("TS_2", 2), ("TS_2_EVN_Vol", 3)):
        (tmp_path / "truth" / f"{name}.csv").write_text(f"z,y,x\n{z},2,3\n")
    for one, z in ((tomogram, 1), (other, 3)):
        table = Truth.open(tmp_path / "truth").read(one, Kind("a"))
        assert table is not None
        assert table["z"].tolist() == [z]


def test_a_batch_with_odd_names_ends_well(run: Make, tmp_path: Path) -> None:
    notes = joined(run, tmp_path, {"TS #1": 1.0, "it's": 2.0})
    assert named(tmp_path / "picks.csv") == {"TS #1": 1, "it's": 2}
    assert not (tmp_path / "picks.star").exists()
    assert len(notes) == 1
    assert notes[0].startswith("picks.star is not written: the name ")
    assert notes[0].isprintable()
    outputs.export(tmp_path / "runs", tmp_path / "p.star", tomogram=["it's=its"])
    assert read_points(tmp_path / "p.star", tomogram_name="TS #1")["z"].tolist() == [1]
