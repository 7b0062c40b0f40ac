"""Runs against truths in files: which belongs to which, what is left out and said, what is written."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import pytest
import zarr

from cryosam_dask import outputs
from cryosam_dask.errors import CryosamError, InputError, StoreError
from cryosam_dask.evaluate import czii_score, evaluate_masks, evaluate_picks
from cryosam_dask.io.points.files import write_picks
from cryosam_dask.stages import label
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (24, 30, 36)
Make = Callable[..., RunStore]


def places(seed: int, count: int = 6) -> np.ndarray:
    """Positions at least six voxels apart."""
    grid = np.stack(np.meshgrid(*[np.arange(4, n - 4, 7) for n in SHAPE], indexing="ij"), -1).reshape(-1, 3)
    return np.random.default_rng(seed).permutation(grid)[:count].astype(float)


def make_run(folder: Path, name: str, input: str | None = None, **queries: np.ndarray) -> RunStore:
    """A run with the picks of some queries."""
    path = input or f"/data/{name}.mrc"
    attributes = {"input": {"path": path}, "shape": list(SHAPE), "voxel_size": [10.0] * 3, "origin": [0.0] * 3}
    store = RunStore.create(folder / f"{name}.zarr", attributes)
    for query, found in queries.items():
        table = pd.DataFrame({column: np.zeros(len(found)) for column in picks.COLUMNS})
        table[["z", "y", "x"]] = found
        table["score"] = np.linspace(0.9, 0.1, len(found))
        picks.write(store, query.replace("_", "-"), table, {"kept": len(found)})
    return store


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make_run` in the folder `runs` of the test."""
    return lambda name, **options: make_run(tmp_path / "runs", name, **options)


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of tomograms whose names begin alike, with two kinds each."""
    folder = tmp_path_factory.mktemp("three")
    for seed, name in enumerate(("TS_1", "TS_10", "TS_1_2")):
        make_run(folder, name, ribosome=places(seed), fas=places(seed + 10))
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    folder = tmp_path / "truth"
    folder.mkdir()
    return folder


def write(path: Path, points: np.ndarray, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(points, columns=list("zyx")).assign(**columns).to_csv(path, index=False)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- which truth is of which run ---


@pytest.mark.parametrize(
    "layout_of",
    [
        "{t}_{k}.csv", "{t}-{k}.CSV", "{k}/{t}.csv", "{t}/{k}.csv", "ExperimentRuns/{t}/Picks/user_0_{k}.csv",
        "{T}/VoxelSpacing10.000/{k}.csv",
    ],
)  # fmt: skip
def test_folders_are_matched_by_name(three_runs: Path, truth: Path, layout_of: str) -> None:
    for seed, name in enumerate(("TS_1", "TS_10", "TS_1_2")):
        for kind, offset in (("ribosome", 0), ("fas", 10)):
            write(truth / layout_of.format(t=name, T=name.lower(), k=kind), places(seed + offset))
    result = outputs.evaluate_runs(three_runs, truth, {"ribosome": 1, "fas": "10A"}).dataset
    assert [(row.tomogram, row.kind, row.picks.f1) for row in result.rows] == [
        (name, kind, 1.0) for name in ("TS_1", "TS_10", "TS_1_2") for kind in ("ribosome", "fas")
    ]
    assert result.notes == ()


def test_one_kind_needs_no_name_in_the_truth(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", particle=places(0))
    make("TS_2", input="/scratch/TS_2_wbp.rec", particle=places(1))
    write(truth / "TS_1.csv", places(0))
    write(truth / "deep" / "TS_2_wbp.csv", places(1))
    result = outputs.evaluate_runs(tmp_path / "runs", truth, 1).dataset
    assert [row.picks.f1 for row in result.rows] == [1, 1]
    assert result.kinds[0].kind == "particle"
    write(truth / "TS_1" / "a.csv", places(0))
    with pytest.raises(InputError, match=r"2 files could be the truth of particle in TS_1 \(TS_1/a\.csv, TS_1\.csv\)"):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1)
    # a name says which: kinds of the truth may be called otherwise than the query
    write(truth / "TS_1" / "ribosome.csv", places(0)[:3])
    write(truth / "TS_2" / "ribosome.csv", places(1)[:3])
    named = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1}, name="particle").dataset
    assert [row.picks.precision for row in named.rows] == [0.5, 0.5]


@pytest.mark.parametrize("file", ["all.star", "all.csv", "all.parquet"])
def test_one_file_of_many_tomograms(make: Make, truth: Path, tmp_path: Path, file: str) -> None:
    frames = []
    for seed, name in enumerate(("TS_1", "TS_10", "unknown")):
        frames.append(pd.DataFrame(places(seed), columns=list("zyx")).assign(tomogram=name))
    make("TS_1", a=places(0))
    make("TS_10", a=places(1)[:3])
    make("TS_7", a=places(1))
    every = pd.concat(frames, ignore_index=True)
    if file.endswith("csv"):
        every.to_csv(truth / file, index=False)
    elif file.endswith("parquet"):
        every.to_parquet(truth / file)
    else:
        import starfile

        renamed = {"z": "rlnCoordinateZ", "y": "rlnCoordinateY", "x": "rlnCoordinateX", "tomogram": "rlnTomoName"}
        starfile.write({"particles": every.rename(columns=renamed)}, truth / file)
    result = outputs.evaluate_runs(tmp_path / "runs", truth / file, 1).dataset
    assert [(row.tomogram, row.picks.recall) for row in result.rows] == [("TS_1", 1), ("TS_10", 0.5)]
    assert result.notes == ("left out, no truth of a: TS_7", "left out, truth without a run: unknown")


def test_a_file_that_names_no_tomograms_is_for_one_run(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", a=places(0))
    file = write(truth / "plain.csv", places(0))
    assert outputs.evaluate_runs(tmp_path / "runs", file, 1).dataset.rows[0].picks.f1 == 1
    make("TS_2", a=places(0))
    with pytest.raises(InputError, match=r"plain\.csv: names no tomograms, and there are several runs"):
        outputs.evaluate_runs(tmp_path / "runs", file, 1)


def test_a_pattern_chooses_files(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", ribosome=places(0))
    for user in ("anna", "bert"):
        write(truth / "TS_1" / "Picks" / f"{user}_0_ribosome.csv", places(0)[: 6 if user == "anna" else 3])
    with pytest.raises(InputError, match=r"2 files could be the truth of ribosome in TS_1 .*pattern"):
        outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1})
    result = outputs.evaluate_runs(tmp_path / "runs", truth / "*" / "Picks" / "bert_*.csv", {"ribosome": 1}).dataset
    assert (result.rows[0].picks.precision, result.notes) == (0.5, ())
    with pytest.raises(InputError, match="no files of points of such names"):
        outputs.evaluate_runs(tmp_path / "runs", truth / "*" / "carla_*.csv", {"ribosome": 1})


def test_a_named_kind_is_not_taken_for_another(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", particle=places(0))
    write(truth / "ribosome" / "TS_1.csv", places(0))
    with pytest.raises(InputError, match="no truth of fas: TS_1"):
        outputs.evaluate_runs(tmp_path / "runs", truth, {"fas": 1}, name="particle")
    write(truth / "ribosome" / "TS_1.csv", places(0), kind="ribosome", tomogram="TS_1")
    with pytest.raises(InputError, match="points of ribosome, none of 'fas'"):
        outputs.evaluate_runs(tmp_path / "runs", truth / "ribosome" / "TS_1.csv", {"fas": 1}, name="particle")
    assert outputs.evaluate_runs(tmp_path / "runs", truth, 1).dataset.rows[0].picks.f1 == 1
    with pytest.raises(InputError, match="no truth of particle: TS_1"):
        outputs.evaluate_runs(tmp_path / "runs", truth, {"particle": 1})
    write(truth / "TS_1.csv", places(0)[:3])
    named = outputs.evaluate_runs(tmp_path / "runs", truth, {"fas": 1}, name="particle").dataset
    assert named.rows[0].picks.precision == 0.5


def test_a_file_with_kinds(make: Make, truth: Path, tmp_path: Path) -> None:
    store = make("TS_1", ribosome=places(0), fas=places(1))
    both = pd.concat(
        [pd.DataFrame(places(s), columns=list("zyx")).assign(kind=k) for s, k in ((0, "ribosome"), (1, "FAS"))]
    )
    both.to_csv(truth / "both.csv", index=False)
    result = outputs.evaluate_runs(store.url, truth / "both.csv", {"ribosome": 1, "fas": 1}).dataset
    assert [row.picks.f1 for row in result.rows] == [1, 1]
    assert outputs.evaluate(store.url, truth / "both.csv", 1, name="fas")["f1"] == 1
    with pytest.raises(InputError, match=r"points of FAS, ribosome, none of 'proteasome'"):
        outputs.evaluate_runs(store.url, truth / "both.csv", {"proteasome": 1}, name="fas")


def test_copick_runs_go_by_their_run(make: Make, truth: Path, tmp_path: Path) -> None:
    make("one", input="/p/static/ExperimentRuns/TS_5_4/VoxelSpacing10.000/denoised.zarr", ribosome=places(0))
    make("two", input="/p/static/ExperimentRuns/TS_6_4/VoxelSpacing10.000/denoised.zarr", ribosome=places(1))
    for seed, run in enumerate(("TS_5_4", "TS_6_4")):
        file = truth / "ExperimentRuns" / run / "Picks" / "curation_0_ribosome.json"
        file.parent.mkdir(parents=True)
        table = pd.DataFrame(places(seed), columns=list("zyx")).assign(score=1.0, instance=1)
        write_picks(table, file, voxel_size=10, shape=SHAPE, tomogram_name=run, kind="ribosome")
    result = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": "75A"}).dataset
    assert [(row.tomogram, row.picks.f1) for row in result.rows] == [("one", 1), ("two", 1)]


def test_a_data_set_of_the_portal_goes_by_its_runs(make: Make, truth: Path, tmp_path: Path) -> None:
    for seed, run in enumerate(("TS_07", "TS_08")):
        folder = f"{run}/Reconstructions/VoxelSpacing10.000"
        make(run, input=f"/data/10003/{folder}/Tomograms/100/{run}.zarr", a=places(seed))
        file = truth / folder / "Annotations" / "101" / "cytosolic_ribosome-1.0_orientedpoint.ndjson"
        file.parent.mkdir(parents=True)
        lines = [{"type": "orientedPoint", "location": dict(zip("zyx", p, strict=True))} for p in places(seed).tolist()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for radius, name in ((1, None), ({"ribosome": 1}, "a"), ({"cytosolic_ribosome": 1}, "a")):
        result = outputs.evaluate_runs(tmp_path / "runs", truth, radius, name=name).dataset
        assert [(row.tomogram, row.picks.f1) for row in result.rows] == [("TS_07", 1), ("TS_08", 1)]
    shutil.rmtree(truth / "TS_07")  # the other's truth is not its own
    result = outputs.evaluate_runs(tmp_path / "runs", truth, 1).dataset
    assert [row.tomogram for row in result.rows] == ["TS_08"]
    assert result.notes == ("left out, no truth of a: TS_07",)


def test_names_are_the_same_without_what_programs_append(make: Make, truth: Path, tmp_path: Path) -> None:
    names = {
        "TS_1.mrc_10.00Apx": ("/warp/TS_1.mrc_10.00Apx.mrc", "TS_1.tomostar"),
        "lamella_3A": ("/data/lamella_3A.zarr/0", "lamella_3A"),
        "lamella_4A": ("/data/lamella_4A.zarr/0", "lamella_4A.mrc"),
    }
    frames = []
    for seed, (run, (path, called)) in enumerate(names.items()):
        make(run, input=path, a=places(seed))
        frames.append(pd.DataFrame(places(seed), columns=list("zyx")).assign(tomogram=called))
    pd.concat(frames).to_csv(truth / "all.csv", index=False)
    result = outputs.evaluate_runs(tmp_path / "runs", truth / "all.csv", 1).dataset
    assert [row.picks.f1 for row in result.rows] == [1, 1, 1]
    assert result.notes == ()


def test_species_of_a_simulation_are_kinds(make: Make, truth: Path) -> None:
    store = make("TS_1", ribosome=places(0), other=places(1))
    both = pd.concat(
        [pd.DataFrame(places(s), columns=list("zyx")).assign(species=k) for s, k in ((0, "ribosome"), (1, "b"))]
    )
    both.to_csv(truth / "truth.csv", index=False)
    assert outputs.evaluate(store.url, truth / "truth.csv", 1, name="ribosome")["f1"] == 1
    with pytest.raises(InputError, match="points of b, ribosome, none of 'other'"):
        outputs.evaluate(store.url, truth / "truth.csv", 1, name="other")


# --- what is left out is said ---


def test_whatever_is_left_out_is_named(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", ribosome=places(0))
    make("TS_2", ribosome=places(1))
    make("TS_3", fas=places(1))
    make("TS_4")
    for name in ("TS_1", "TS_3", "TS_4", "TS_9"):
        write(truth / f"{name}_ribosome.csv", places(0))
    result = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1}).dataset
    assert [row.tomogram for row in result.rows] == ["TS_1"]
    assert set(result.notes) == {
        "left out, no truth of ribosome: TS_2",
        "left out, no results called ribosome: TS_3, TS_4",
        "left out, truth without a run: TS_9_ribosome.csv",
    }
    # a run that can't be opened does not stop the others
    store = make("TS_5")
    root = zarr.open_group(store.url, mode="r+")
    root.attrs["cryosam"] = {**root.attrs["cryosam"], "format": 99}
    broken = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1}).dataset
    assert broken.rows == result.rows
    assert any("TS_5.zarr: store format 99" in note for note in broken.notes)
    shutil.rmtree(store.url)
    # nor one that was damaged
    store = make("TS_5", ribosome=places(0))
    shutil.rmtree(Path(store.url) / "picks" / "ribosome" / "z" / "c")
    write(truth / "TS_5_ribosome.csv", places(0))
    damaged = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1}).dataset
    assert damaged.rows == result.rows
    assert any(note.startswith("left out: ") and "picks/ribosome/z" in note for note in damaged.notes)
    with pytest.raises(StoreError, match="picks/ribosome/z"):
        outputs.evaluate_runs(store.url, truth, {"ribosome": 1})
    shutil.rmtree(store.url)
    (truth / "TS_5_ribosome.csv").unlink()
    # files of kinds that nobody asked for are of a tomogram that has a run
    write(truth / "TS_1_fas.csv", places(0))
    again = outputs.evaluate_runs(tmp_path / "runs", truth, {"ribosome": 1}).dataset
    assert f"1 more file of points under {truth} not read: of other kinds" in again.notes
    assert {note for note in again.notes if "1 more" not in note} == set(result.notes)


def test_an_empty_truth_is_one(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", a=places(0)[:2])
    make("TS_2", a=np.zeros((0, 3)))
    make("TS_3", a=places(0))
    (truth / "TS_1.csv").write_text("z,y,x\n")
    (truth / "TS_2.csv").write_text("z,y,x\n")
    write(truth / "TS_3.csv", places(0))
    result = outputs.evaluate_runs(tmp_path / "runs", truth, 1).dataset
    assert [row.picks.f1 for row in result.rows] == [0, 1, 1]
    kind = result.kinds[0]
    assert (kind.tomograms, kind.truth_in, kind.pooled.false_positives) == (3, 1, 2)
    assert result.notes == ("no true points of a, so that every pick is false: TS_1, TS_2",)
    # of a kind that a joint file has in another tomogram, too
    both = pd.concat([pd.DataFrame(places(s), columns=list("zyx")).assign(tomogram=t, kind=k)
                      for s, t, k in ((0, "TS_3", "a"), (1, "TS_1", "b"))])  # fmt: skip
    both.to_csv(truth / "joint.csv", index=False)
    joint = outputs.evaluate_runs(tmp_path / "runs", truth / "joint.csv", {"a": 1}).dataset
    assert [(row.tomogram, row.picks.f1) for row in joint.rows] == [("TS_1", 0), ("TS_3", 1)]
    figures = outputs.evaluate(tmp_path / "runs" / "TS_1.zarr", truth / "joint.csv", 1)
    assert (figures["precision"], figures["notes"]) == (0, ["no true points of a, so that every pick is false: TS_1"])


def test_a_truth_without_any_point_is_refused(
    make: Make, truth: Path, tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]
) -> None:
    """For one run, for several with a file of all, and in a folder of which no file has one."""
    store = make("TS_1", a=places(0))
    (truth / "TS_1.csv").write_text("z,y,x,tomogram\n")
    code, out, err = cryosam("evaluate", store.url, "--truth", truth / "TS_1.csv", "--radius", 1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for true in (truth / "TS_1.csv", truth):
        for call in (outputs.evaluate, outputs.evaluate_runs):
            with pytest.raises(InputError, match=r"TS_1\.csv: holds no points$"):
                call(store.url, true, 1)
    make("TS_2", a=places(1))
    with pytest.raises(InputError, match=r"TS_1\.csv: holds no points$"):
        outputs.evaluate_runs(tmp_path / "runs", truth / "TS_1.csv", 1)
    (truth / "TS_2.csv").write_text("z,y,x\n")
    with pytest.raises(InputError, match=r"truth: the 2 files that were read hold no points$"):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1)


def test_nothing_to_compare_is_one_line(make: Make, truth: Path, tmp_path: Path) -> None:
    make("TS_1", a=places(0))
    write(truth / "TS_9.csv", places(0))
    cases: list[tuple[Any, Any, str]] = [
        (tmp_path / "runs", truth, r"nothing to compare with; left out, no truth of a: TS_1; .*TS_9\.csv"),
        (tmp_path, truth, r"no run, and no folder with runs"),
        (tmp_path / "none", truth, r"no run, and no folder with runs"),
        ([], truth, r"no runs: expected"),
        (tmp_path / "runs", tmp_path / "none.csv", r"none\.csv: no such file"),
        (tmp_path / "runs", tmp_path / "runs", r"no files of points in this folder"),
    ]
    for runs, true, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            outputs.evaluate_runs(runs, true, 1)
        assert "\n" not in str(caught.value)
    make("TS_2", a=places(0), b=places(1))
    write(truth / "TS_2.csv", places(0))
    with pytest.raises(InputError, match="say which results with --name; there are: a, b"):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1)
    with pytest.raises(InputError, match="kinds are queries' names"):
        outputs.evaluate_runs(tmp_path / "runs", truth, {"a": 1, "b": 1}, name="a")


def test_truth_of_another_voxel_size_is_one_line(make: Make, truth: Path) -> None:
    store = make("TS_1", a=places(0))
    file = write(truth / "TS_1.csv", 4 * places(0))
    with pytest.raises(InputError, match=r"of 6 points are outside of TS_1 .*voxels of another size"):
        outputs.evaluate(store.url, file, 1)


def test_truth_in_larger_voxels_is_remarked_upon(make: Make, truth: Path) -> None:
    store = make("TS_1", a=places(0, 12))
    note = "all true points in the first half of each side: are they in larger voxels? TS_1"
    assert outputs.evaluate(store.url, write(truth / "half.csv", places(0, 12) / 2), 1)["notes"] == [note]
    assert "notes" not in outputs.evaluate(store.url, write(truth / "whole.csv", places(0, 12)), 1)
    assert "notes" not in outputs.evaluate(store.url, write(truth / "few.csv", places(0, 3) / 2), 1)


@pytest.mark.parametrize("unit", [np.array(SHAPE), 20.0])
def test_a_truth_all_at_the_corner_is_refused(make: Make, truth: Path, tmp_path: Path, unit: Any) -> None:
    """Fractions of the size, as template matchers write them; and tenths of micrometres."""
    store = make("TS_1", a=places(0))
    file = write(truth / "TS_1.csv", places(0) / unit)
    words = r"TS_1\.csv: all 6 points lie within 2 voxels of the corner 0,0,0 .*fractions of the tomogram's size"
    with pytest.raises(InputError, match=words):
        outputs.evaluate(store.url, file, 1)
    make("TS_2", a=places(0))
    with pytest.raises(InputError, match=words):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1)
    # one particle of one of several tomograms may be there
    write(truth / "TS_1.csv", np.array([[0.5, 1.0, 1.5]]))
    write(truth / "TS_2.csv", places(0))
    result = outputs.evaluate_runs(tmp_path / "runs", truth, 1).dataset
    assert [row.picks.recall for row in result.rows] == [0, 1]
    with pytest.raises(InputError, match=r"TS_1\.csv: its only point lies within 2 voxels"):
        outputs.evaluate(store.url, file, 1)


def test_what_was_assumed_when_a_truth_was_read_is_noted(make: Make, truth: Path) -> None:
    """A note of the reader: two columns that contradict each other."""
    store, table = make("TS_1", a=places(0)), pd.DataFrame(places(0), columns=list("zyx"))
    star = table.rename(columns={axis: f"rlnCoordinate{axis.upper()}" for axis in "zyx"})
    import starfile

    starfile.write(star.assign(rlnPixelSize=10.0, rlnDetectorPixelSize=5.0), truth / "t.star")
    figures = outputs.evaluate(store.url, truth / "t.star", 1)
    assert figures["f1"] == 1
    (note,) = figures["notes"]
    assert "pixels of 10 Å by rlnPixelSize, of 5 Å by rlnDetectorPixelSize" in note
    assert outputs.evaluate_runs(store.url, truth / "t.star", 1).dataset.notes == (note,)


def test_a_single_tomogram_may_be_called_anything(make: Make, truth: Path) -> None:
    store = make("TS_1", a=places(0))
    other = write(truth / "t.csv", places(0), tomogram="position_7")
    figures = outputs.evaluate(store.url, other, 1)
    assert figures["f1"] == 1
    assert figures["notes"] == [f"{other}: its points are of 'position_7' by name, and are used with 'TS_1'"]
    assert "notes" not in outputs.evaluate(store.url, write(truth / "t.csv", places(0), tomogram="ts_1.mrc"), 1)
    two = np.vstack([places(0), places(1)])
    file = write(truth / "two.csv", two, tomogram=["x"] * 6 + ["y"] * 6)
    with pytest.raises(InputError, match=r"two\.csv: no points of TS_1 in it"):
        outputs.evaluate(store.url, file, 1)
    file = write(truth / "named.csv", two, tomogram=["y"] * 6 + ["data/ts_1.mrc"] * 6)
    assert outputs.evaluate(store.url, file, 1)["f1"] == evaluate_picks(places(0), None, places(1), 1).f1


# --- masks ---


def paint(store: RunStore, query: str, values: np.ndarray) -> None:
    label.prepare(store, query)
    store.array(layout.labels(query))[...] = values
    marks.begin(store, label.stage_name(query), fingerprint="f", settings={}, count=1)
    marks.mark(store, label.stage_name(query), 0)


def cubes(points: np.ndarray, half: int = 1) -> np.ndarray:
    values = np.zeros(SHAPE, np.int16)
    for number, point in enumerate(points.astype(int), 1):
        values[tuple(slice(p - half, p + half + 1) for p in point)] = number
    return values


def mrc(path: Path, values: np.ndarray, voxel_size: float = 10.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, values) as file:
        file.voxel_size = voxel_size
    return path


def test_masks_of_many_runs(make: Make, truth: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("TS_1", "TS_2", "TS_3")):
        paint(make(name, a=places(seed)), "a", cubes(places(seed)))
        write(truth / f"{name}.csv", places(seed))
    mrc(tmp_path / "labels" / "TS_1.mrc", cubes(places(0)))
    image = zarr.create_array(tmp_path / "labels" / "TS_2.zarr" / "0", shape=SHAPE, dtype="uint16", chunks=(8, 8, 8))
    image[...] = cubes(places(1), half=2)
    root = zarr.open_group(tmp_path / "labels" / "TS_2.zarr")
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [10.0] * 3}]
    level = {"path": "0", "coordinateTransformations": scale}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "l", "axes": axes, "datasets": [level]}]}
    result = outputs.evaluate_runs(tmp_path / "runs", truth, 1, truth_labels=tmp_path / "labels").dataset
    first, second, third = (row.masks for row in result.rows)
    assert first is not None
    assert second is not None
    assert (first.pq, first.dice, third) == (1, 1, None)
    assert second == evaluate_masks(cubes(places(1)), cubes(places(1), half=2))
    assert result.kinds[0].masks is not None
    assert result.kinds[0].masks["truth"] == 12
    assert result.notes == ("masks left out, no true labels of a: TS_3",)
    with pytest.raises(InputError, match=r"TS_1\.mrc: labels of one tomogram and kind, and there are several runs"):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1, truth_labels=tmp_path / "labels" / "TS_1.mrc")
    with pytest.raises(InputError, match="no images in this folder"):
        outputs.evaluate_runs(tmp_path / "runs", truth, 1, truth_labels=truth)
    one, file = tmp_path / "runs" / "TS_1.zarr", tmp_path / "labels" / "TS_1.mrc"
    assert outputs.evaluate_runs(one, truth, {"a": 1}, truth_labels=file).dataset.rows[0].masks == first
    with pytest.raises(InputError, match="several runs or kinds"):
        outputs.evaluate_runs(one, truth, {"a": 1, "b": 1}, truth_labels=file)


def test_labels_that_do_not_fit_are_one_line(make: Make, truth: Path, tmp_path: Path) -> None:
    store, points = make("TS_1", a=places(0)), write(truth / "TS_1.csv", places(0))
    paint(store, "a", cubes(places(0)))
    binned = mrc(tmp_path / "binned.mrc", cubes(places(0))[::2, ::2, ::2].copy(), 20)
    with pytest.raises(InputError, match=r"binned\.mrc: shape \(12, 15, 18\).*voxels of 10 Å, not 20 Å"):
        outputs.evaluate(store.url, points, 1, truth_labels=binned)
    many = cubes(places(0))
    many[many > 0] += 200  # as IMOD has 8-bit labels, without a sign
    assert outputs.evaluate(store.url, points, 1, truth_labels=mrc(tmp_path / "i.mrc", many.astype(np.int8)))["pq"] == 1
    half = mrc(tmp_path / "half.mrc", np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(InputError, match=r"half\.mrc: expected instance ids, found numbers that aren't whole"):
        outputs.evaluate(store.url, points, 1, truth_labels=half)
    other = mrc(tmp_path / "other.mrc", cubes(places(0)), 13)
    figures = outputs.evaluate(store.url, points, 1, truth_labels=other)
    assert figures["pq"] == 1
    assert "voxels of 13 Å by its header, 10 Å by the run" in figures["notes"][0]


# --- the challenge ---


def test_the_challenges_score_of_runs(make: Make, truth: Path, tmp_path: Path) -> None:
    kinds = {"ribosome": 0, "apo-ferritin": 1, "beta-amylase": 2}
    for seed, name in enumerate(("TS_1", "TS_2")):
        queries = {kind: places(seed + 5 * k)[: 3 + k] for kind, k in kinds.items()}
        make(name, **queries)
        for kind, k in kinds.items():
            write(truth / name / f"{kind}.csv", places(seed + 5 * k) + 1.0)
    write(truth / "TS_2" / "thyroglobulin.csv", places(3))  # none was looked for: all missed
    radii = dict.fromkeys((*kinds, "thyroglobulin"), "75A")
    result = outputs.evaluate_runs(tmp_path / "runs", truth, radii, czii=True)
    assert result.czii is not None
    expected = czii_score(
        {
            name: {kind: 10 * places(seed + 5 * k)[: 3 + k] for kind, k in kinds.items()}
            for seed, name in enumerate(("TS_1", "TS_2"))
        },
        {
            name: {kind: 10 * places(seed + 5 * k) + 10 for kind, k in kinds.items()}
            | ({"thyroglobulin": 10 * places(3)} if name == "TS_2" else {})
            for seed, name in enumerate(("TS_1", "TS_2"))
        },
    )
    assert result.czii == expected
    assert 0 < result.czii.score < 1
    assert next(c for c in result.czii.classes if c.name == "thyroglobulin").false_negatives == 6
    assert "left out, no results called thyroglobulin: TS_2" in result.dataset.notes


# --- the command ---


def test_the_command_on_a_folder(
    make: Make, truth: Path, tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]
) -> None:
    for seed, name in enumerate(("TS_1", "TS_2")):
        make(name, ribosome=places(seed)[:4], apo_ferritin=places(seed + 5))
        write(truth / f"{name}_ribosome.csv", places(seed))
        write(truth / f"{name}_apo-ferritin.csv", places(seed + 5))
    make("TS_3", ribosome=places(0))
    common = ["evaluate", tmp_path / "runs", "--truth", truth, "--radius", "ribosome=75A,apo-ferritin=3nm"]
    written = [tmp_path / file for file in ("rows.csv", "all.json", "curve.csv", "curve.png")]
    code, out, err = cryosam(
        *common, "--czii", "--out", written[0], "--out", written[1], "--curve", written[2], "--curve", written[3]
    )
    assert code == 0
    assert "left out, no truth of ribosome: TS_3" in err
    assert "ribosome, radius 75 Å, 2 tomograms" in out
    assert "pooled 0.667" in out
    assert "CZII score" in out
    rows = rows_of(written[0])
    assert [(row["tomogram"], row["kind"], float(row["recall"])) for row in rows] == [
        ("TS_1", "ribosome", 4 / 6), ("TS_1", "apo-ferritin", 1), ("TS_2", "ribosome", 4 / 6),
        ("TS_2", "apo-ferritin", 1),
    ]  # fmt: skip
    document = json.loads(written[1].read_text())
    assert document["kinds"]["ribosome"]["pooled"]["recall"] == pytest.approx(2 / 3)
    assert document["czii"]["score"] > 0
    points = rows_of(written[2])
    assert {p["kind"] for p in points} == {"ribosome", "apo-ferritin"}
    assert float(points[0]["f1"]) > 0
    assert written[3].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    code, out, _ = cryosam(*common, "--json")
    assert {row["tomogram"] for row in json.loads(out)["rows"]} == {"TS_1", "TS_2"}
    config = tmp_path / "copick.json"
    radii = [{"name": "ribosome", "radius": 150}, {"name": "apo-ferritin", "radius": 60}]
    config.write_text(json.dumps({"pickable_objects": radii}))
    code, again, _ = cryosam(*common[:-1], config, "--share", 0.5, "--json")
    assert code == 0
    assert json.loads(again)["rows"] == json.loads(out)["rows"]


def test_curves_without_points_can_be_drawn(tmp_path: Path) -> None:
    curves = {"some": evaluate_picks(places(0), None, places(0), 1).curve, "none": ()}
    outputs.write_curves(curves, tmp_path / "c.PNG", "both")
    assert (tmp_path / "c.PNG").read_bytes()[:4] == b"\x89PNG"
    outputs.write_curves({"none": ()}, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "kind,threshold,precision,recall,f1\n"
    for file in ("c.png", "c.csv"):
        with pytest.raises(CryosamError, match=f"none/{file}"):
            outputs.write_curves(curves, tmp_path / "none" / file)


def test_the_command_on_one_run(
    make: Make, truth: Path, tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]
) -> None:
    store, file = make("TS_1", a=places(0)), write(truth / "t.dat", places(0))
    common = ["evaluate", store.url, "--truth", file, "--radius", "12A"]
    code, _, err = cryosam(*common)
    assert code == 2
    assert err.count("\n") == 1
    common += ["--truth-format", "csv"]
    code, out, _ = cryosam(*common, "--curve", tmp_path / "c.csv", "--out", tmp_path / "f.csv")
    assert code == 0
    assert "radius               12 Å" in out
    assert "best F1              1.000" in out
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 7
    assert rows_of(tmp_path / "f.csv")[0]["f1"] == "1.0"
    for wrong, message in (
        (["--radius", "x"], "radius 'x'"),
        (["--radius", "none.yaml"], "none.yaml: no such file"),
        (["--share", "0"], "--share 0"),
        (["--curve", tmp_path / "c.pdf"], "c.pdf: curves go to .csv or .png"),
        (["--out", tmp_path / "f.txt"], "f.txt: figures go to .json or .csv"),
        (["--czii"], "CZII: none of its classes among the kinds"),
    ):
        code, _, err = cryosam(*common, *wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    code, _, err = cryosam(*common[:4])
    assert code == 2
    assert "no radius" in err
