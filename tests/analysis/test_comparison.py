"""Two runs of one tomogram against each other, and the commands."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from cryosam_dask import analysis
from cryosam_dask.analysis.comparison import match
from cryosam_dask.cli import main
from cryosam_dask.errors import InputError
from cryosam_dask.store.run_store import RunStore

SHAPE = (40, 70, 90)


def cube(z: int, y: int, x: int, side: int = 6) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[z : z + side, y : y + side, x : x + side] = True
    return mask


@pytest.fixture(scope="module")
def two(make_store: Any, paint: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, RunStore]:
    folder = tmp_path_factory.mktemp("two")
    a, b = make_store(folder / "a.zarr"), make_store(folder / "b.zarr")
    paint(a, "q", [cube(2, 2, 2), cube(20, 20, 20), cube(30, 50, 60), cube(5, 60, 5)], [0.9, 0.8, 0.7, 0.6])
    paint(b, "q", [cube(30, 50, 62), cube(2, 2, 2), cube(2, 40, 70), cube(20, 20, 22)], [0.95, 0.8, 0.5, 0.4])
    return a, b


def test_what_both_found_and_what_only_one(two: tuple[RunStore, RunStore]) -> None:
    found = analysis.compare(two[0].url, two[1].url, radius=3)
    assert found.found_by.values.tolist() == ["both"] * 3 + ["a", "b"]
    assert found.instance_a.values.tolist() == [1, 2, 3, 4, 0]
    assert found.instance_b.values.tolist() == [2, 4, 1, 0, 3]
    assert found.distance.values == pytest.approx([0, 1.6, 1.6, math.nan, math.nan], nan_ok=True)
    assert found.iou.values == pytest.approx([1, 0.5, 0.5, math.nan, math.nan], nan_ok=True)
    assert found.score_a.values == pytest.approx([0.9, 0.8, 0.7, 0.6, math.nan], nan_ok=True)
    assert found.score_b.values == pytest.approx([0.8, 0.4, 0.95, math.nan, 0.5], nan_ok=True)
    assert found.z.values == pytest.approx([4.5, 22.5, 32.5, 7.5, 4.5])
    about = found.attrs
    assert (about["matched"], about["only_a"], about["only_b"]) == (3, 1, 1)
    assert about["f1"] == pytest.approx(0.75)
    assert about["mean_iou"] == pytest.approx(2 / 3)
    assert about["score_correlation"] == pytest.approx(np.corrcoef([0.9, 0.8, 0.7], [0.8, 0.4, 0.95])[0, 1])
    assert about["score_rank_correlation"] == pytest.approx(-0.5)
    nothing = analysis.compare(two[0].url, two[1].url, radius=0.1, masks="whole").attrs
    assert (nothing["matched"], nothing["only_a"]) == (1, 3)
    assert math.isnan(nothing["score_correlation"])


def test_a_run_with_itself_and_with_one_that_found_nothing(
    two: tuple[RunStore, RunStore], make_store: Any, paint: Any, tmp_path: Path
) -> None:
    same = analysis.compare(two[0].url, two[0].url, radius=5)
    assert same.attrs["f1"] == same.attrs["mean_iou"] == 1
    empty = make_store(tmp_path / "e.zarr")
    paint(empty, "q", [])
    found = analysis.compare(two[0].url, empty.url, radius=5)
    assert (found.attrs["only_a"], found.attrs["f1"]) == (4, 0)
    assert analysis.compare(empty.url, empty.url, radius=5).sizes["row"] == 0


def test_runs_of_different_tomograms_are_refused_in_one_line(
    two: tuple[RunStore, RunStore], make_store: Any, paint: Any, tmp_path: Path
) -> None:
    others = {
        r"has shape \(40, 70, 90\), .* has \(40, 70, 91\)": make_store(tmp_path / "s.zarr", shape=(40, 70, 91)),
        r"voxels of 10, 14, 8 Å, .* of 10, 10, 8 Å": make_store(tmp_path / "v.zarr", voxel=(10, 10, 8)),
        "differ in content": make_store(tmp_path / "c.zarr", content="b"),
    }
    for words, other in others.items():
        paint(other, "q", [])
        with pytest.raises(InputError, match=f"different tomograms: .*{words}") as caught:
            analysis.compare(two[0].url, other.url, radius=5)
        assert "\n" not in str(caught.value)
    assert analysis.compare(two[0].url, tmp_path / "c.zarr", radius=5, same_content=False).attrs["only_a"] == 4
    with pytest.raises(InputError, match="radius: expected nanometres above 0"):
        analysis.compare(two[0].url, two[1].url, radius=0)


@pytest.mark.parametrize("seed", range(20))
def test_as_many_pairs_as_can_be_and_the_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 3, (5, 3)), rng.uniform(0, 3, (4, 3))
    pairs, distance = match(a, b, 1.5)
    apart = np.linalg.norm(a[:, None] - b, axis=-1)
    assert distance == pytest.approx(apart[pairs[:, 0], pairs[:, 1]])
    assert (distance <= 1.5).all()
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    ways = [
        [(i, j) for j, i in enumerate(chosen) if apart[i, j] <= 1.5] for chosen in itertools.permutations(range(5), 4)
    ]
    best = min(ways, key=lambda way: (-len(way), sum(apart[i, j] for i, j in way)))
    assert len(pairs) == len(best)
    assert distance.sum() == pytest.approx(sum(apart[i, j] for i, j in best))


def cryosam(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    sys.argv = ["cryosam", *map(str, words)]
    code = 0
    try:
        main()
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cryosam"])


@pytest.mark.usefixtures("_argv")
def test_the_command_writes_the_table(run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = analysis.instance_table(run.url, "a", distance_to="m").to_dataframe()
    for file, read in [
        ("t.csv", lambda p: pd.read_csv(p, index_col=0)),
        ("t.parquet", pd.read_parquet),
        ("t.nc", lambda p: xr.load_dataset(p, engine="scipy").to_dataframe()),
    ]:
        path = tmp_path / file
        assert cryosam(capsys, "table", run.url, "--name", "a", "--distance-to", "m", "-o", path)[0] == 0
        again = read(path)
        pd.testing.assert_frame_equal(again, frame, check_dtype=False, check_index_type=False)
    assert pd.read_parquet(tmp_path / "t.parquet").attrs["units"]["volume"] == "nm^3"
    assert xr.load_dataset(tmp_path / "t.nc", engine="scipy").volume.attrs["units"] == "nm^3"
    code, out, _ = cryosam(capsys, "table", run.url, "--name", "a", "--whole")
    assert code == 0
    assert out.startswith("instance,voxels,volume,z,")
    assert len(out.splitlines()) == 9


@pytest.mark.usefixtures("_argv")
def test_the_command_refuses_in_one_line(run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in [
        (("--name", "a", "-o", tmp_path / "t.xlsx"), "the suffix '.xlsx' tells no format"),
        (("--name", "a", "-o", tmp_path / "none" / "t.csv"), "there is no folder"),
        (("--name", "a", "--distance-to", "nothing"), "neither labels of"),
        ((), "say which results with --name"),
    ]:
        code, out, err = cryosam(capsys, "table", run.url, *words)
        assert code == 2
        assert expected in err
        assert len(err.splitlines()) == 1
        assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_argv")
def test_the_command_compares(
    two: tuple[RunStore, RunStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.csv"
    code, out, _ = cryosam(capsys, "compare", two[0].url, two[1].url, "--radius", 3, "-o", path)
    assert code == 0
    assert "only a                 1" in out
    assert pd.read_csv(path)["found_by"].tolist() == ["both"] * 3 + ["a", "b"]
    code, out, _ = cryosam(capsys, "compare", two[0].url, two[1].url, "--radius", 0.1, "--json")
    assert json.loads(out)["score_correlation"] is None
    assert json.loads(out)["matched"] == 1
