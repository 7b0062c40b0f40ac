"""Prompts that may be meant otherwise are remarked upon, or refused before anything runs, whatever way they come in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import pytest

import cryosam_dask as cs
from cryosam_dask.errors import InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, kinds_of, settings_for
from cryosam_dask.pipeline.batch import run_many
from cryosam_dask.store import journal
from cryosam_dask.store.run_store import RunStore

Run = Callable[..., tuple[int, str, str]]
SHAPE = (26, 42, 54)
CLICKS = [[12.0, 11, 11], [11.0, 11, 11], [12.0, 10, 11], [12.0, 11, 10], [12.0, 12, 12]]  # in one ball of radius 7
FRACTIONS = (np.array(CLICKS) / SHAPE).tolist()
HALF = "all 5 points are in the first half of each side: are they in larger voxels"
UNWANTED = "the only one of the points that are not wanted, 1,1,1, lies within 2 voxels of the corner"
REFUSED = "points lie within 2 voxels of the corner 0,0,0"
QUICK: dict[str, Any] = {"match.rank": "similarity", "match.count": 1, "match.tau_sim": 0.2}
SETTINGS = settings_for("texture+random-walker", QUICK)


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(0).normal(size=SHAPE)
    values += 3.0 * ((z - 12) ** 2 + (y - 11) ** 2 + (x - 11) ** 2 < 49)
    path = tmp_path_factory.mktemp("prompts") / "TS_1.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="module")
def features(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with features, and no query. Tests copy it."""
    out = tmp_path_factory.mktemp("prompts") / "bare.zarr"
    driver = Driver(out, SerialExecutor())
    driver.ingest(tomogram)
    driver.features(SETTINGS)
    return out


def written(path: Path, points: list[list[float]], **columns: Any) -> Path:
    pd.DataFrame(points, columns=list("zyx")).assign(**columns).to_csv(path, index=False)
    return path


# Said -----------------------------------------------------------------------------------------------------------------


def test_doubts_are_in_the_summarys_row_and_in_the_runs_journal(tomogram: Path, features: Path, tmp_path: Path) -> None:
    out = shutil.copytree(features, tmp_path / "TS_1.zarr")
    summary = run_many(
        [tomogram], CLICKS, tmp_path, negatives=[[1, 1, 1]], settings=SETTINGS, executor=SerialExecutor()
    )
    (row,) = summary.rows
    assert row.status == "done"
    noted = [note for entry in journal.commands(RunStore.open(str(out))) for note in entry["notes"]]
    for words in (HALF, UNWANTED):
        assert sum(words in note for note in row.notes) == 1
        assert sum(words in note for note in noted) == 1


def test_run_and_query_say_what_was_assumed_and_what_is_in_doubt(
    cryosam: Run, tomogram: Path, features: Path, tmp_path: Path
) -> None:
    """A file of another tomogram's name, with points of a tomogram that is binned more."""
    file, out = written(tmp_path / "p.csv", CLICKS, tomogram="TS_99"), tmp_path / "run.zarr"
    shutil.copytree(features, out)
    changes = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    name = f"{file}: its points are of 'TS_99' by name, and are used with 'TS_1'"
    code, _, err = cryosam(
        "run",
        tomogram,
        "--points",
        file,
        "--not",
        "1,1,1",
        "--out",
        out,
        "--models",
        "texture+random-walker",
        "--workers",
        0,
        *changes,
    )
    assert code == 0
    assert [err.count(words) for words in (name, HALF, UNWANTED)] == [1, 1, 1]
    file = written(tmp_path / "k.csv", CLICKS, tomogram="TS_99", kind=["a", "a", "a", "a", "b"])
    code, _, err = cryosam("query", out, "--kinds", file, "--models", "texture+random-walker", "--workers", 0)
    assert code == 0
    assert [err.count(words) for words in (name.replace("p.csv", "k.csv"), HALF)] == [1, 1]


# Refused --------------------------------------------------------------------------------------------------------------


def test_fractions_of_the_size_are_refused_by_run(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    out, common = tmp_path / "run.zarr", ["run", tomogram, "--models", "texture+random-walker", "--workers", 0, "--out"]
    file = written(tmp_path / "p.csv", FRACTIONS)
    kinds = written(tmp_path / "k.csv", FRACTIONS, kind=["a", "b", "a", "b", "a"])
    one = written(tmp_path / "one.csv", FRACTIONS[:1])
    typed = [",".join(map(str, point)) for point in FRACTIONS[:2]]
    for words, message in (
        (["--points", file], f"p.csv: all 5 {REFUSED}"),
        (["--kinds", kinds], f"k.csv: all 5 {REFUSED}"),
        (["--points", one], "one.csv: its only point lies within 2 voxels of the corner"),
        (["--point", typed[0], "--point", typed[1]], f"prompts: all 2 {REFUSED}"),
        (["--kind", f"a={typed[0]}", "--kind", f"b={typed[1]}"], f"prompts: all 2 {REFUSED}"),
        (["--point", "12,11,11", "--not", typed[0], "--not", typed[1]], f"all 2 {REFUSED}"),
    ):
        code, _, err = cryosam(*common, out, *words)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
        assert not out.exists()
        code, _, err = cryosam("run", tomogram, tomogram.parent, "--out", tmp_path / "runs", *common[2:-1], *words)
        assert (code, message in err) == (2, True), err
        assert not (tmp_path / "runs").exists()


def test_fractions_of_the_size_are_refused_in_python(tomogram: Path, tmp_path: Path) -> None:
    """As prompts, and as what is not wanted beside a query that is borrowed."""
    options: dict[str, Any] = {"models": "texture+random-walker", "workers": 0}
    for points in (FRACTIONS, {"a": FRACTIONS[:1], "b": FRACTIONS[1:2]}):
        with pytest.raises(InputError, match=REFUSED):
            cs.run(tomogram, points, tmp_path / "run.zarr", **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=REFUSED):
            run_many([tomogram], points, tmp_path / "runs", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_query_and_borrow_have_the_same_checks(tomogram: Path, features: Path, tmp_path: Path) -> None:
    out = shutil.copytree(features, tmp_path / "run.zarr")
    driver = Driver(out, SerialExecutor())
    with pytest.raises(InputError, match=REFUSED):
        driver.query("a", FRACTIONS, SETTINGS)
    with pytest.raises(InputError, match=REFUSED):
        kinds_of({"a": FRACTIONS[:1], "b": FRACTIONS[1:2]}, None, None, None).query(driver, SETTINGS)
    driver.query("a", CLICKS[:1], SETTINGS)
    other = tmp_path / "other.zarr"
    with pytest.raises(InputError, match=REFUSED):
        cs.run(tomogram, None, other, query=out, name="a", negatives=FRACTIONS, settings=SETTINGS, workers=0)
    assert not other.exists()


def test_a_single_typed_point_at_the_corner_is_taken(tomogram: Path) -> None:
    """There is no other way to say that a particle is there."""
    kinds = kinds_of([[0.5, 1, 1.5]], None, None, None)
    kinds.check(SHAPE)
    assert ["0.5,1,1.5, lies within 2 voxels" in note for note in kinds.doubts(SHAPE)] == [True]


def test_a_file_of_prompts_without_points_is_refused(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("z,y,x,kind\n")
    for option in ("--points", "--kinds"):
        code, _, err = cryosam(
            "run",
            tomogram,
            option,
            tmp_path / "p.csv",
            "--out",
            tmp_path / "r.zarr",
            "--models",
            "texture+random-walker",
        )
        assert code == 2
        assert "p.csv: holds no points" in err
