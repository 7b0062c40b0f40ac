"""Many tomograms: which are meant, what they are called, one query in all, failures, and going on."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cryosam_dask.errors import DeviceError, ExecutionError, InputError, SettingsError, StoreError
from cryosam_dask.executors.base import Executor
from cryosam_dask.executors.connection import ConnectionLostError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.listing import natural, run_names
from cryosam_dask.io.points.files import read_points
from cryosam_dask.pipeline import Driver, batch, settings_for
from cryosam_dask.pipeline.batch import Row, Summary, find_tomograms, run_many
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (24, 40, 48)
CLICK = [11, 12, 12]


def write_balls(path: Path, seed: int, scale: float = 1.0, voxel_size: float = 10.0) -> Path:
    """A small tomogram with two bright balls."""
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(seed).normal(size=SHAPE)
    for a, b, c in (CLICK, (12, 26 - seed, 34)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 36)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, (values * scale).astype(np.float32), overwrite=True) as file:
        file.voxel_size = voxel_size
    return path


def go(tomograms: list[str | Path], out: Path, **options: Any) -> Summary:
    points = None if "query_from" in options else [CLICK]
    options = {"models": "texture+random-walker", "executor": SerialExecutor(), **options}
    return run_many(tomograms, points, out, **options)


def statuses(summary: Summary) -> dict[str, str]:
    return {row.name: row.status for row in summary.rows}


class Untouchable:
    """An executor that must not be used for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the executor's {name} was used")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tomograms: a good one, one with a NaN, and one that is cut off. Tests copy what they change."""
    made = tmp_path_factory.mktemp("tomograms")
    write_balls(made / "tomo_2.mrc", 0)
    with mrcfile.open(write_balls(made / "tomo_10.mrc", 1), mode="r+") as file:
        file.data[3, 4, 5] = np.nan
    whole = write_balls(made / "tomo_11.mrc", 2).read_bytes()
    (made / "tomo_11.mrc").write_bytes(whole[: len(whole) // 2])
    return made


# --- which tomograms ---


def test_a_folder_gives_its_tomograms_by_natural_order(tmp_path: Path) -> None:
    for name in ("t10.mrc", "t2.rec", "t1.MAP", ".hidden.mrc", "series.st", "series.ali", "notes.txt", "t3.mrc.bak"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "image.zarr").mkdir()
    (tmp_path / "image.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "plain").mkdir()
    RunStore.create(tmp_path / "run.zarr", {})
    found = [Path(path).name for path in find_tomograms([tmp_path])]
    assert found == ["image.zarr", "t1.MAP", "t2.rec", "t10.mrc"]


def test_what_may_stand_for_many(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zattrs").write_text("{}")
    assert batch.is_many([tmp_path])
    assert batch.is_many(["all.txt"])
    assert batch.is_many(["a.mrc", "b.mrc"])
    assert not batch.is_many(["a.mrc"])
    assert not batch.is_many(["s3://bucket/folder"])
    assert not batch.is_many([tmp_path / "a.zarr"])
    assert not batch.is_many([tmp_path / "a.zarr" / "1"])


def test_numbers_in_names_sort_by_value() -> None:
    names = ["b", "a10", "A2", "a2b", "10", "9", "a", "2024_x", "x²"]
    assert sorted(names, key=natural) == ["9", "10", "2024_x", "a", "A2", "a2b", "a10", "b", "x²"]


def test_a_list_is_relative_to_its_file_and_may_have_comments(tmp_path: Path) -> None:
    a, b = tmp_path / "data" / "a.mrc", tmp_path / "b #1.mrc"
    a.parent.mkdir()
    a.write_bytes(b"")
    b.write_bytes(b"")
    listing = tmp_path / "lists" / "all.txt"
    listing.parent.mkdir()
    text = f"﻿# the good ones\n\n../data/a.mrc\n  {b}\r\n../data\ns3://bucket/c.zarr\n  # file:///no\nfile://{a}\n"
    listing.write_text(text, encoding="utf-8")
    found = find_tomograms([listing])
    assert [Path(path).name for path in found] == ["a.mrc", "b #1.mrc", "c.zarr"]
    assert found[2] == "s3://bucket/c.zarr"


def test_each_tomogram_comes_once(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(b"")
    (tmp_path / "link.mrc").symlink_to(path)
    (tmp_path / "sub").mkdir()
    found = find_tomograms([path, tmp_path, tmp_path / "sub" / ".." / "a.mrc", "s3://b/c.zarr/", "s3://b/c.zarr"])
    assert found == [str(path), "s3://b/c.zarr/"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "none.mrc", "none.mrc: no such file or folder"),
        (lambda f: _text(f, ""), "names no tomograms"),
        (lambda f: _text(f, "# nothing\n"), "names no tomograms"),
        (lambda f: _text(f, "\nnone.mrc\n"), r"list.txt: line 2: .*none.mrc: no such file"),
        (lambda f: _text(f, "list.txt\n"), "is a list itself"),
        (lambda f: _text(f, "a\0b\n"), "line 1: not a path"),
        (lambda f: _bytes(f, b"\xff\xfe\x00"), "not a text file in UTF-8"),
        (lambda f: f, "no tomograms in this folder"),
    ],
)
def test_what_can_not_be_found_is_named(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_tomograms([make(tmp_path)])


def test_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no tomograms: give MRC files"):
        find_tomograms([])


def _text(folder: Path, text: str) -> Path:
    return _bytes(folder, text.encode())


def _bytes(folder: Path, content: bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(content)
    return path


def test_results_never_collide() -> None:
    assert run_names(["/d/a.mrc", "/d/b.ome.zarr", "s3://k/c.zarr/0"]) == ["a", "b", "c"]
    assert run_names(["/d/1/rec.mrc", "/d/2/rec.mrc", "/d/2/x.mrc"]) == ["1_rec", "2_rec", "x"]
    assert run_names(["/d/1/REC.mrc", "/e/2/rec.mrc"]) == ["1_REC", "2_rec"]
    with pytest.raises(InputError, match=r"would be called d_a; rename one"):
        run_names(["/d/a.mrc", "/d/a.rec"])
    with pytest.raises(InputError, match=r"would be called 1_a"):
        run_names(["/d/1/a.mrc", "/e/1/a.mrc"])


# --- running them ---


def test_failures_are_reported_and_a_second_command_goes_on(folder: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "in", tmp_path / "out"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    told: list[tuple[str, str, int]] = []
    first = go([own], out, report=lambda row, number, count: told.append((row.name, row.status, number)))
    assert statuses(first) == {"tomo_2": "done", "tomo_10": "failed", "tomo_11": "failed"}
    assert first.exit_code == 1
    assert "1 voxels of 0:24, 0:40, 0:48 are NaN" in first.rows[1].error
    assert "\n" not in first.rows[1].error
    assert "tomo_11.mrc" in first.rows[2].error
    assert told == [
        ("tomo_2", "pending", 1),
        ("tomo_2", "done", 1),
        ("tomo_10", "pending", 2),
        ("tomo_10", "failed", 2),
        ("tomo_11", "failed", 3),
    ]
    words = first.in_words().splitlines()
    assert words[-2] == f"3 tomograms: 1 done, 2 failed; {first.rows[0].instances} instances"
    assert words[-1] == "the same command again goes on with what is not complete"
    with (out / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == ["done", "failed", "failed"]
    assert table[1]["error"] == first.rows[1].error
    assert not (out / "tomo_10.zarr").exists()

    write_balls(own / "tomo_10.mrc", 1)
    write_balls(own / "tomo_11.mrc", 2)
    second = go([own], out)
    assert statuses(second) == {"tomo_2": "skipped", "tomo_10": "done", "tomo_11": "done"}
    assert second.exit_code == 0
    assert second.rows[0].instances == first.rows[0].instances

    third = go([own], out, executor=Untouchable())
    assert set(statuses(third).values()) == {"skipped"}
    assert [row.instances for row in third.rows] == [row.instances for row in second.rows]
    assert "3 tomograms: 3 complete before" in third.in_words()
    _check_picks(third, out)


def _check_picks(summary: Summary, out: Path) -> None:
    with (out / "picks.csv").open(newline="") as file:
        every = list(csv.DictReader(file))
    assert list(every[0]) == ["tomogram", "z", "y", "x", "score", "instance"]
    for row in summary.rows:
        own = picks.read(RunStore.open(row.run), "particle")
        listed = [pick for pick in every if pick["tomogram"] == row.name]
        assert len(listed) == len(own) == row.instances
        assert [float(pick["z"]) for pick in listed] == own["z"].tolist()
        star = read_points(out / "picks.star", tomogram_name=row.name)
        assert star[["z", "y", "x"]].to_numpy() == pytest.approx(own[["z", "y", "x"]].to_numpy(), abs=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path, Summary]:
    """Two good tomograms, run: their paths, the folder of results, and the summary. Tests must not change them."""
    base = tmp_path_factory.mktemp("pair")
    paths = [write_balls(base / "in" / f"t{i}.mrc", i) for i in range(2)]
    return paths, base / "out", go(list(paths), base / "out")


def test_the_particle_is_found_in_the_other_tomogram(pair: tuple[list[Path], Path, Summary]) -> None:
    _, _, summary = pair
    table = picks.read(RunStore.open(summary.rows[1].run), "particle")
    points = table[["z", "y", "x"]].to_numpy()
    for centre in (CLICK, (12, 25, 34)):
        assert np.linalg.norm(points - centre, axis=1).min() < 3
    assert not table["prompted"].any()
    assert picks.read(RunStore.open(summary.rows[0].run), "particle")["prompted"].sum() == 1


def test_a_finished_run_gives_its_query_to_others(pair: tuple[list[Path], Path, Summary], tmp_path: Path) -> None:
    paths, out, summary = pair
    applied = go([paths[1]], tmp_path / "more", query_from=summary.rows[0].run)
    assert statuses(applied) == {"t1": "done"}
    one, other = (RunStore.open(run) for run in (summary.rows[1].run, applied.rows[0].run))
    assert (one.read(layout.labels("particle")) == other.read(layout.labels("particle"))).all()
    # among them the donor itself, which goes on with its own, and what was made from it before
    again = go(list(paths), out, query_from=summary.rows[0].run)
    assert statuses(again)["t1"] == "skipped"
    assert statuses(again)["t0"] in ("done", "skipped")


def test_a_lender_is_not_run_with_settings_that_are_not_its_own(
    pair: tuple[list[Path], Path, Summary], tmp_path: Path
) -> None:
    paths, out, _ = pair
    lender = shutil.copytree(out / "t0.zarr", tmp_path / "t0.zarr")
    settings = settings_for("texture+random-walker", {"match.count": 1})
    summary = go([paths[0]], tmp_path, query_from=lender, settings=settings, overwrite=True)
    assert statuses(summary) == {"t0": "failed"}
    assert "made here with other settings (match.count: auto → 1)" in summary.rows[0].error


def test_a_reference_beside_the_list_comes_first(pair: tuple[list[Path], Path, Summary], tmp_path: Path) -> None:
    paths, out, _ = pair
    summary = go([paths[0].parent], out, reference=paths[0], executor=Untouchable())
    assert [row.name for row in summary.rows] == ["t0", "t1"]
    assert set(statuses(summary).values()) == {"skipped"}
    with pytest.raises(InputError, match="a reference is the tomogram that the points are in"):
        go([paths[1]], tmp_path, reference=paths[0], query_from=out / "t0.zarr")


def test_other_settings_are_refused_tomogram_by_tomogram(pair: tuple[list[Path], Path, Summary]) -> None:
    paths, out, _ = pair
    settings = settings_for("texture+random-walker", {"match.count": 7})
    before = (out / "summary.csv").read_text()
    with pytest.raises(StoreError, match=r"match.count: auto → 7"):
        go(list(paths), out, settings=settings)
    assert "match.count" in (out / "summary.csv").read_text()
    (out / "summary.csv").write_text(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_from": None}, "give points in the reference, or a run to take the query from"),
        ({"name": "../x"}, "can't be used"),
        ({"query_from": "none.zarr"}, "none.zarr: no run found here"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((InputError, StoreError), match=message):
        go([folder], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_click_outside_the_reference_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside the tomogram"):
        run_many([folder / "tomo_2.mrc"], [[0, 0, 99]], tmp_path / "out", models="texture+random-walker", workers=0)
    assert not (tmp_path / "out").exists()


def test_results_are_not_written_into_a_tomogram(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "t.zarr", {})
    write_balls(tmp_path / "r.mrc", 0)
    with pytest.raises(InputError, match="would be written into it"):
        go([tmp_path / "r.mrc", tmp_path / "t.zarr"], tmp_path)


# --- what stops it: the driver is replaced, since only the order of events matters ---


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, pair: tuple[list[Path], Path, Summary]) -> Callable[..., Summary]:
    """`failing(out, error, …)`: run tomograms t0, t1, … of which t1, … raise the error when they are ingested."""
    paths, _, made = pair

    def run(out: Path, *errors: BaseException, **options: Any) -> Summary:
        copies = [out / "in" / f"t{i}.mrc" for i in range(1, len(errors) + 1)]
        for copy in copies:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(paths[1].read_bytes())
        raised = iter(errors)

        def ingest(self: Driver, *_: Any, **__: Any) -> None:
            raise next(raised)

        monkeypatch.setattr(Driver, "ingest", ingest)
        return go(list(copies), out / "out", query_from=made.rows[0].run, **options)

    return run


def test_a_defect_keeps_its_traceback_and_the_others_run(failing: Callable[..., Summary], tmp_path: Path) -> None:
    summary = failing(
        tmp_path, ZeroDivisionError("oh\nno"), InputError("bad"), OSError(errno.EIO, "Input/output error")
    )
    assert [row.status for row in summary.rows] == ["failed"] * 3
    assert summary.rows[0].error == "ZeroDivisionError: oh (a defect of the program; see t1.traceback.txt)"
    assert summary.rows[1].error == "bad"
    assert "Input/output error" in summary.rows[2].error
    text = (tmp_path / "out" / "t1.traceback.txt").read_text()
    assert "ZeroDivisionError: oh" in text
    assert "in ingest" in text
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == ["t1.traceback.txt"]
    assert summary.stopped == ""


def _worker_full() -> StoreError:
    """As it comes from another process: without its cause."""
    return StoreError(f"r.zarr: {os.strerror(errno.ENOSPC)} while features ran z 0:16; mend that")


def _own_full() -> Exception:
    error = StoreError("t.mrc: can't be written")
    error.__cause__ = OSError(errno.EDQUOT, "quota")
    return error


def _lost() -> Exception:
    try:
        try:
            raise ConnectionLostError("closed")
        except ConnectionLostError:
            raise OSError("nobody there")  # noqa: B904 - as it comes about
    except OSError as error:
        lost = ExecutionError("the connection to the scheduler was lost")
        lost.__cause__ = error
        return lost


@pytest.mark.parametrize(
    ("errors", "options", "tried", "reason"),
    [
        ([_worker_full(), InputError("b")], {}, 1, "can't be written"),
        ([_own_full(), InputError("b")], {}, 1, "can't be written"),
        ([_lost(), InputError("b")], {}, 1, "the scheduler is gone"),
        ([DeviceError("no GPU"), InputError("b")], {}, 1, "the models can't run"),
        ([InputError("a"), InputError("b")], {"fail_fast": True}, 1, "first failure"),
        ([ExecutionError("a")] * 5, {}, 3, "3 tomograms in a row failed"),
        ([InputError("a")] * 5, {}, 5, ""),
        ([ExecutionError("a"), ExecutionError("a"), InputError("b"), ExecutionError("a")], {}, 4, ""),
    ],
)
def test_what_the_next_would_fail_of_too_stops_it(
    errors: list[Exception],
    options: dict[str, Any],
    tried: int,
    reason: str,
    failing: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    summary = failing(tmp_path, *errors, **options)
    assert [row.status for row in summary.rows] == ["failed"] * tried + ["pending"] * (len(errors) - tried)
    assert reason in summary.stopped
    assert bool(reason) == bool(summary.stopped)
    assert summary.exit_code == 1
    assert summary.stopped in summary.in_words()


def test_an_interrupt_passes_through_and_leaves_a_summary(failing: Callable[..., Summary], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        failing(tmp_path, InputError("a"), KeyboardInterrupt(), InputError("c"))
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed", "pending", "pending"]


def test_a_reference_without_a_query_stops_all(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        go([folder], tmp_path / "out", reference=folder / "tomo_10.mrc")
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["name"], row["status"]) for row in table] == [
        ("tomo_10", "failed"),
        ("tomo_2", "pending"),
        ("tomo_11", "pending"),
    ]


def test_the_executor_is_closed_only_by_who_opened_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Executor] = []
    monkeypatch.setattr(SerialExecutor, "close", lambda self: closed.append(self))
    with pytest.raises(InputError):
        go([folder / "tomo_10.mrc"], tmp_path / "a")
    assert closed == []
    with pytest.raises(InputError):
        run_many([folder / "tomo_10.mrc"], [CLICK], tmp_path / "b", models="texture+random-walker", workers=0)
    assert len(closed) == 1


def test_nowhere_to_run_is_no_tomograms_fault(pair: tuple[list[Path], Path, Summary], tmp_path: Path) -> None:
    paths, _, made = pair
    with pytest.raises(SettingsError, match="workers -1 is not possible"):
        run_many(
            list(paths), None, tmp_path / "out", query_from=made.rows[0].run, models="texture+random-walker", workers=-1
        )
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"pending"}


def test_a_row_in_words() -> None:
    row = Row("/d/t.mrc", "t", "/o/t.zarr", "done", 12, 61.4)
    assert row.in_words() == "done, 12 instances, 61 s"
    assert Summary("/o", (row,)).in_words() == "t  done, 12 instances, 61 s\n1 tomogram: 1 done; 12 instances"
