"""Reviewing without a page: what the commands write, print and export, and how a run shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
from test_outputs import PLACES, SHAPE, segmented, table

import cryosam_dask as cs
from cryosam_dask import outputs
from cryosam_dask.errors import InputError
from cryosam_dask.pipeline import settings_for
from cryosam_dask.pipeline.integrity import repair, verify
from cryosam_dask.stages import query
from cryosam_dask.store import layout, marks, picks, reviews
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A run with three picks of particles of 33 voxels: their radius is 2, and points within 4 are at one."""
    about = {"version": "9.9", "input": {"path": "/data/TS_01.mrc", "name": "TS_01"}, "statistics": {}}
    about |= {"shape": list(SHAPE), "voxel_size": [8.0, 8.0, 8.0], "origin": [0.0, 80.0, -16.0]}
    store = RunStore.create(tmp_path / "run.zarr", about)
    store.group(layout.query("a")).attrs["settings"] = settings_for("builtin").model_dump(mode="json")
    store.put(layout.query_array("a", "sizes"), np.array([33]), ("instance",))
    marks.begin(store, query.stage_name("a"), fingerprint="f", settings={}, count=1)
    marks.mark(store, query.stage_name("a"), 0)
    segmented(store, "a", PLACES)
    return store


def verdicts(store: RunStore) -> list[str]:
    return list(reviews.of_picks(RunStore.open(store.url), "a"))


def test_numbers_ranges_files_and_places_are_decided_on(store: RunStore, cryosam: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("z,y,x\n31,4,20\n15,15,2\n")  # the first is near the third pick, the second near none
    options = ["--accept", "1-2", "--reject", wrong, "--add", "12,3,3", "--by", "ada"]
    code, out, err = cryosam("review", store.url, *options)
    assert code == 0
    assert "1 of 2 points that are rejected are at no pick, and were left out" in err
    assert verdicts(store) == ["accepted", "accepted", "rejected"]
    assert "3 picks of 'a': 2 accepted, 1 rejected, 0 undecided; 1 particles without a pick" in out
    assert "precision among the decided picks 0.667" in out
    assert [line.split()[:4] for line in out.splitlines() if line.startswith("ada")] == [["ada", "2", "1", "1"]]
    assert cryosam("review", store.url, "--undecide", "2", "--by", "bob")[0] == 0
    figures = json.loads(cryosam("review", store.url, "--json")[1])
    assert figures["picks"] == {"accepted": 1, "rejected": 1, "undecided": 1}
    assert {row["verdict"]: row["by"] for row in figures["decisions"]} == dict.fromkeys(
        ("accepted", "rejected", "added"), "ada"
    )


def test_an_added_particle_that_has_a_pick_is_accepted(store: RunStore) -> None:
    cs.review(store.url, "a", add=[PLACES[1] + 0.5, (12, 3, 3)])
    assert verdicts(store) == ["undecided", "accepted", "undecided"]
    (decision,) = reviews.without_pick(store, "a")
    assert (decision.verdict, decision.position, decision.instance) == ("added", (12.0, 3.0, 3.0), 0)
    cs.review(store.url, "a", undecide=[(12, 4, 3)])  # what has no number is taken back by its place
    assert reviews.without_pick(store, "a") == []


def test_a_place_is_decided_on_whether_or_not_a_pick_is_there(store: RunStore, cryosam: Run) -> None:
    near = ",".join(f"{v + 0.5:g}" for v in PLACES[1])
    options = ["--decide", f"rejected={near}", "--decide", "rejected=12,3,3", "--decide", "added=15,15,2"]
    assert cryosam("review", store.url, *options)[0] == 0
    assert verdicts(store) == ["undecided", "rejected", "undecided"]
    standing = [(d.verdict, d.position, d.instance) for d in reviews.standing(store, "a")]
    expected = [("rejected", tuple(PLACES[1] + 0.5), 0), ("rejected", (12, 3, 3), 0), ("added", (15, 15, 2), 0)]
    assert standing == expected
    cs.review(store.url, "a", decide=[("undecided", (12, 3, 3)), ("accepted", PLACES[[1]] + 0.5)])
    assert verdicts(store) == ["undecided", "accepted", "undecided"]
    assert [d.verdict for d in reviews.standing(store, "a")] == ["added", "accepted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accept", "4"], "no instance 4 among the picks; there are 1 to 3"),
        (["--accept", "3-1"], "--accept 3-1: expected a range that goes up, as 7-12"),
        (["--accept", "1", "--reject", "1-2"], "instance 1 is accepted and rejected at once"),
        (["--accept", "none.csv"], "none.csv"),
        (["--accept", "1", "--accept", "none.csv"], "give instance numbers or files of points, not both"),
        (["--reject", "{far}"], "none of 1 points that are rejected is at a pick"),
        (["--add", "1,2"], "--add 1,2: expected three numbers Z,Y,X, got 2"),
        (["--add", "1,2,99"], "point 1,2,99 is outside the tomogram"),
        (["--decide", "1,2,3"], "--decide 1,2,3: expected VERDICT=Z,Y,X, as rejected=92,410,388"),
        (["--decide", "wrong=1,2,3"], "verdict 'wrong': expected one of undecided, accepted, rejected, added"),
        (["--decide", "added=1,2"], "--decide added 1,2: expected three numbers Z,Y,X, got 2"),
        (["--accept", "1", "--decide", "rejected=1,2,99"], "point 1,2,99 is outside the tomogram"),
        (["--name", "b"], "no results called 'b'; there are: a"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_decided(
    store: RunStore, cryosam: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "far.csv").write_text("z,y,x\n15,15,2\n")
    code, out, err = cryosam("review", store.url, *(o.replace("{far}", str(tmp_path / "far.csv")) for o in options))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert reviews.names(store) == []


def test_reviewing_waits_for_no_other_command(store: RunStore) -> None:
    with Lease(store.url):
        cs.review(store.url, "a", accept=[1])
    assert verdicts(store) == ["accepted", "undecided", "undecided"]


def test_a_run_shows_verdicts_and_decisions(store: RunStore) -> None:
    assert "verdict" not in cs.open_run(store.url)["picks/a"].to_dataset()
    cs.review(store.url, "a", accept=[1, 2], by="ada")
    cs.review(store.url, "a", reject=[2], by="bob")
    tree = cs.open_run(store.url)
    assert tree["picks/a"]["verdict"].values.tolist() == ["accepted", "rejected", "undecided"]
    told = tree["reviews/a"].to_dataset()
    assert told["verdict"].values.tolist() == ["accepted", "accepted", "rejected"]
    assert told["by"].values.tolist() == ["ada", "ada", "bob"]
    assert told["current"].values.tolist() == [True, False, True]
    assert told["instance"].values.tolist() == [1, 2, 2]
    np.testing.assert_allclose(told["position_z"], np.array([5.0, 20.5, 20.5]) * 8)
    assert abs(told["when"].values[0] - np.datetime64("now")) < np.timedelta64(1, "m")


def test_verdicts_stay_with_their_particles_when_picks_are_numbered_anew(store: RunStore) -> None:
    cs.review(store.url, "a", accept=[1], reject=[3])
    moved = np.concatenate([[[12.0, 3.0, 3.0]], PLACES[::-1] + 0.6])
    picks.write(store, "a", table(moved), {"segmented": 4, "kept": 4})
    assert verdicts(store) == ["undecided", "rejected", "undecided", "accepted"]


def test_exports_leave_out_what_was_rejected(store: RunStore, cryosam: Run, tmp_path: Path) -> None:
    cs.review(store.url, "a", accept=[1], reject=[3], add=[(12, 3, 3)])
    file = tmp_path / "p.csv"

    def exported(*options: str) -> tuple[list[int], str]:
        code, _, err = cryosam("export", store.url, file, *options)
        assert code == 0, err
        return pd.read_csv(file)["instance"].tolist(), err

    assert exported("--reviewed") == ([1, 0], "")
    assert pd.read_csv(file)[["z", "y", "x", "score"]].to_numpy()[1].tolist() == [12, 3, 3, 1]
    assert exported("--not-rejected") == ([1, 2, 0], "")
    numbers, err = exported()
    assert numbers == [1, 2, 3]
    assert "1 of 3 picks of 'a' were rejected" in err
    for what, values in (("labels", [0, 1, 2]), ("semantic", [0, 1])):
        path = tmp_path / f"{what}.mrc"
        assert cryosam("export", store.url, path, "--what", what, "--not-rejected")[0] == 0
        with mrcfile.open(path) as written:
            assert np.unique(written.data).tolist() == values
            assert np.count_nonzero(written.data) == np.count_nonzero(np.isin(store.read(layout.labels("a")), (1, 2)))
    project = tmp_path / "project"
    outputs.export_copick(store.url, project, only="accepted")
    (file,) = project.rglob("*_a.json")
    assert len(json.loads(file.read_text())["points"]) == 2


def test_exports_of_what_nobody_reviewed_are_one_line(store: RunStore, cryosam: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    code, _, err = cryosam("export", store.url, path, "--reviewed")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "nothing was decided about the picks of 'a'; `cryosam review` does that" in err
    assert "give one of the two" in cryosam("export", store.url, path, "--reviewed", "--not-rejected")[2]
    assert (
        "--what query: is not of reviewed picks"
        in cryosam("export", store.url, "q.json", "--what", "query", "--reviewed")[2]
    )
    assert not path.exists()
    with pytest.raises(InputError, match="reviewed yes: expected accepted or not-rejected"):
        outputs.export(store.url, path, reviewed="yes")  # type: ignore[arg-type]


def test_picks_of_a_folder_of_runs_say_where_nothing_was_decided(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(cs.CryosamError, match="no decisions about picks called 'a' in any of its runs"):
        outputs.export(tmp_path, tmp_path / "p.csv", name="a", reviewed="accepted")
    cs.review(store.url, "a", accept=[2])
    outputs.export(tmp_path, tmp_path / "p.csv", name="a", reviewed="accepted")
    assert pd.read_csv(tmp_path / "p.csv")["instance"].tolist() == [2]


def test_a_damaged_page_of_decisions_is_named_and_goes_with_repair(store: RunStore) -> None:
    cs.review(store.url, "a", accept=[1], by="ada")
    cs.review(store.url, "a", reject=[2], by="bob")
    chunk = next(
        chunk
        for chunk in Path(store.url).glob("reviews/a/*/c/0/0")
        if '"ada"' in (chunk.parents[2] / "zarr.json").read_text()
    )
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(cs.CryosamError, match=r"reviews/a/.* is damaged"):
        cs.open_run(store.url)
    report = verify(store.url)
    assert [damage.kind for damage in report.damages if damage.array.startswith("reviews")] == ["checksum"]
    repair(store.url, [damage for damage in report.damages if damage.array.startswith("reviews")])
    assert verdicts(store) == ["undecided", "rejected", "undecided"]


def test_figures_and_descriptions_know_the_decisions(store: RunStore, cryosam: Run, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    pd.DataFrame(PLACES, columns=list("zyx")).to_csv(truth, index=False)
    options = ("--truth", truth, "--radius", 3)
    assert "Reviewed" not in cryosam("evaluate", store.url, *options)[1]
    cs.review(store.url, "a", accept=[1], reject=[3], by="ada")
    cs.review(store.url, "a", add=[(12, 3, 3)], by="bob")
    said = cryosam("evaluate", store.url, *options)[1].splitlines()[-1]
    assert said.startswith("Reviewed by ada, bob on ")
    assert said.endswith(
        "1 accepted, 1 rejected, 1 added; 1 of 2 picks that were decided on are right; 1 picks are undecided."
    )
    figures = outputs.evaluate(store.url, truth, 3)["review"]
    assert (figures["precision"], figures["without_pick"]) == (0.5, 1)
    assert figures["picks"] == {"accepted": 1, "rejected": 1, "undecided": 1}
    assert "3 decisions" in cryosam("info", store.url)[1]
