"""Truths in formats of other programs: units, tomograms by number, and folders with files that are no points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryosam_dask import outputs
from cryosam_dask.errors import InputError
from cryosam_dask.io.points.files import Frame, encode_picks, write_picks
from cryosam_dask.outputs.truth_files import truth_files
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (24, 30, 36)
POINTS = np.array([[4, 4, 4], [11, 18, 25], [18, 25, 32], [18, 4, 11.0]])
TABLE = pd.DataFrame(POINTS, columns=list("zyx")).assign(score=1.0, instance=range(1, 5))


def make_run(folder: Path, name: str, points: np.ndarray = POINTS) -> str:
    attributes = {"input": {"path": f"/data/{name}.mrc"}, "shape": list(SHAPE), "voxel_size": [10.0] * 3}
    store = RunStore.create(folder / f"{name}.zarr", attributes | {"origin": [0.0] * 3})
    table = pd.DataFrame({column: np.zeros(len(points)) for column in picks.COLUMNS})
    table[["z", "y", "x"]], table["score"] = points, np.linspace(0.9, 0.1, len(points))
    picks.write(store, "ribosome", table, {"kept": len(points)})
    return store.url


def test_plain_text_in_angstrom(tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]) -> None:
    run, truth = make_run(tmp_path, "TS_1"), tmp_path / "truth.txt"
    np.savetxt(truth, POINTS[:, ::-1] * 10)
    common: tuple[Any, ...] = ("evaluate", run, "--truth", truth, "--radius", "1", "--json")
    code, out, _ = cryosam(*common, "--truth-unit", "angstrom")
    assert code == 0
    assert json.loads(out)["f1"] == 1.0
    code, _, err = cryosam(*common)
    assert code == 2
    assert "4 of 4 points are outside of TS_1" in err
    csv = truth.with_suffix(".csv")
    write_picks(TABLE, csv)
    code, _, err = cryosam("evaluate", run, "--truth", csv, "--radius", "1", "--truth-unit", "angstrom")
    assert code == 2
    assert "positions in the format csv are in voxels, but ångström are asked for" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["dynamo", "em", "stopgap"])
def test_numbers_of_tomograms_are_matched(tmp_path: Path, kind: str) -> None:
    """One file with the truth of three tomograms, two of which have runs."""
    suffix = {"dynamo": ".tbl", "em": ".em", "stopgap": ".star"}[kind]
    runs = tmp_path / "runs"
    for name in ("TS_07", "TS_17"):
        make_run(runs, name)
    parts = [(TABLE.iloc[:n], Frame(tomogram=f"TS_{number}")) for number, n in ((7, 4), (17, 2), (70, 3))]
    (tmp_path / f"truth{suffix}").write_bytes(encode_picks(parts, kind, joint=True))
    result = outputs.evaluate_runs(runs, tmp_path / f"truth{suffix}", 1).dataset
    assert [(row.tomogram, row.picks.recall, row.picks.precision) for row in result.rows] == [
        ("TS_07", 1, 1),
        ("TS_17", 1, 0.5),
    ]
    assert result.notes == ("left out, truth without a run: 70",)


def test_files_that_only_share_a_suffix_are_passed_over(tmp_path: Path) -> None:
    """What lies beside true positions in projects: notes, lists, Warp's metadata, volumes, other programs' sources."""
    folder = tmp_path / "truth"
    folder.mkdir()
    write_picks(TABLE, folder / "TS_1.txt")
    write_picks(TABLE, folder / "TS_2.em", notes=[])
    write_picks(TABLE, folder / "TS_3.xml")
    (folder / "README.txt").write_text("True positions by hand, 12 May\n")
    (folder / "tomograms.txt").write_text("TS_1.mrc\nTS_2.mrc\n")
    (folder / "TS_1.xml").write_text('<?xml version="1.0"?><TiltSeries AreAnglesInverted="False"></TiltSeries>')
    (folder / "TS_3.em").write_bytes(b"\x06\0\0\5" + np.array([4, 5, 6], "<i4").tobytes().ljust(508 + 480, b"\0"))
    (folder / "Program.cs").write_text("using System;")
    assert [path.name for path in truth_files(folder, None)[1]] == ["TS_1.txt", "TS_2.em", "TS_3.xml"]
    assert [path.name for path in truth_files(folder, "xyz")[1]] == ["README.txt", "TS_1.txt", "tomograms.txt"]
    for name in ("TS_1", "TS_2", "TS_3"):
        make_run(tmp_path / "runs", name)
    result = outputs.evaluate_runs(tmp_path / "runs", folder, 1).dataset
    assert [row.picks.f1 for row in result.rows] == [1, 1, 1]
    assert result.notes == ()


def test_formats_without_a_suffix_of_their_own_are_looked_for_under_anothers(tmp_path: Path) -> None:
    for name, suffix in (("eman2", ".json"), ("stopgap", ".star"), ("relion5", ".star"), ("warp", ".star")):
        path = tmp_path / f"{name}{suffix}"
        write_picks(TABLE, path, format=name, voxel_size=10, shape=SHAPE, tomogram_name="TS_1")
        assert path in truth_files(tmp_path, name)[1]
    with pytest.raises(InputError, match="no files of points in this folder"):
        truth_files(tmp_path, "dynamo")


def test_eman2_names_a_tomograms_boxes(tmp_path: Path) -> None:
    """A project's folder of info files, with two classes."""
    runs, info = tmp_path / "runs", tmp_path / "info"
    info.mkdir()
    for name in ("TS_1", "TS_10"):
        make_run(runs, name)
        write_picks(TABLE, info / f"{name}_info.json", format="eman2", voxel_size=10, shape=SHAPE, kind="ribosome")
    result = outputs.evaluate_runs(runs, info, {"ribosome": 1}).dataset
    assert [(row.tomogram, row.picks.f1) for row in result.rows] == [("TS_1", 1), ("TS_10", 1)]


def test_an_export_says_what_it_had_to_assume(tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]) -> None:
    run = make_run(tmp_path, "lamella")
    code, out, err = cryosam("export", run, tmp_path / "p.tbl")
    assert code == 0
    assert "1 is lamella, since its name does not end in one" in err
    assert "p.tbl: written" in out
    code, _, err = cryosam("export", run, tmp_path / "p.cs")
    assert code == 2
    assert "cryosparc is read, not written" in err
