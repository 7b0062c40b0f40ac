"""The paper's tables on a small set laid out as EMPIAR-10499's files are, to the printed tables."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cryosam_dask.cli import app
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.base import Report
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import settings_for
from cryosam_dask.published import data, empiar, paper, work
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.paper import ALL, Config
from cryosam_dask.published.prefixes import all_picks, first_picks
from cryosam_dask.published.records import Records
from cryosam_dask.published.scores import results_of
from cryosam_dask.settings import Settings
from cryosam_dask.stages.base import Context, Stage, Unit
from cryosam_dask.store.run_store import RunStore

CHANGES: dict[str, Any] = {
    "match.rank": "similarity", "match.tau_sim": 0.0, "match.ratios": [8, 4], "match.count": 3, "match.center": True,
    "match.nms_radius": 10, "features.ratios": [8, 4], "features.dense_ratios": [], "features.thickness": 3,
    "propagation.plane_thickness": 3,
}  # fmt: skip
COUNTS = (1, 3, ALL)
TABLES = paper.tables(paper.TABLES, 1, COUNTS)


def settings_of() -> dict[str, Settings]:
    return {name: settings_for("texture+random-walker", CHANGES) for name in paper.ENCODERS}


def asked_for(
    warp_set: Path, out: Path, tables: Sequence[paper.Table] = TABLES, only: str | None = None, **options: Any
) -> Asked:
    entries = data.find(warp_set, kind="ribosome", only=only)
    return empiar.asked_for(out, entries, tables, settings_of(), pixel_size=2.5, **options)


def pair(warp_set: Path, out: Path, only: str | None = None, **options: Any) -> Asked:
    """Two configurations of each tomogram."""
    entries = data.find(warp_set, kind="ribosome", only=only)
    configs = [Config(), Config(matching="naive")]
    return Asked(out, entries, ("ribosome",), lambda index: configs, settings_of(), pixel_size=2.5, **options)


@pytest.fixture(scope="module")
def everything(warp_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All tables of one tomogram that is whole and one without positions."""
    asked = asked_for(warp_set, tmp_path_factory.mktemp("everything"), only="TS_026,TS_101")
    executor = Spy()
    said: list[str] = []
    assert work.run(asked, executor=executor, report=said.append) == ""
    return {
        "asked": asked,
        "ran": executor.ran,
        "again": executor.again,
        "said": said,
        "outcome": empiar.tabulate(asked, TABLES),
    }


class Spy(SerialExecutor):
    """Counts units by store and stage, and remembers the stages of those that ran again."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[tuple[str, str]] = Counter()
        self.again: set[str] = set()
        self._known: set[tuple[str, str, str]] = set()

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        self.ran.update((context.url, stage.name) for _ in units)
        keys = {(context.url, stage.name, unit.name) for unit in units}
        if keys & self._known:
            self.again.add(stage.name)
        self._known |= keys
        super().run(stage, context, units, report)


def test_printed_tables_have_the_papers_figures_beside_ours(everything: dict[str, Any]) -> None:
    text = everything["outcome"].text
    assert not everything["outcome"].complete
    for title in ("Table 1", "Table 2", "Table 3", "Figure 5", "Protocol"):
        assert f"## {title}" in text
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| CryoSAM")]
    assert len(lines) == 6
    assert lines[0][2:4] == ["< 1% (single prompt)", "1 of 2"]
    assert [line[5] for line in lines] == ["53.1", "57.8", "58.2", "58.1", "58.0", "58.5"]
    assert [line[9] for line in lines] == ["54.2", "65.0", "65.5", "65.6", "65.5", "67.4"]
    assert "| EMAN2" in text
    assert "TS_101 failed: /" in text
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
    assert {"SAM", "DINO", "DINOv2", "Naive", "Hierarchical", "K = 1", "K = 3", "K = all"} <= rows
    for stated in ("seed 0", "125 Å", "not stated in the paper", "DINOv2 = texture", "this process, CPU"):
        assert stated in text


def test_a_tomogram_without_positions_is_said_once_and_is_no_end(everything: dict[str, Any]) -> None:
    assert sum("TS_101" in line for line in everything["said"]) == 1
    assert all(len(row.scores) == 1 for row in rows_of(everything, "3"))


def test_a_tomogram_that_no_table_is_of_is_not_looked_at(warp_set: Path, everything: dict[str, Any]) -> None:
    said: list[str] = []
    asked = asked_for(warp_set, everything["asked"].out, TABLES[2:3], only="TS_026,TS_101")
    assert work.run(asked, executor=Spy(), report=said.append) == ""
    assert said == []


def rows_of(everything: dict[str, Any], name: str) -> list[Any]:
    table = next(table for table in TABLES if table.name == name)
    return results_of(table, everything["asked"], "ribosome", 125.0)


def test_figures_follow_from_picks_and_positions(everything: dict[str, Any]) -> None:
    records = everything["asked"].records
    record = records.read("TS_026", "ribosome", Config().key)
    found = records.picks(record)[["z", "y", "x"]].to_numpy() * 10
    distances = np.linalg.norm(found[:, None] - np.array(record.truth)[None] * 10, axis=-1)
    hits = (distances.min(axis=0) <= 125).sum()
    row = next(row for row in rows_of(everything, "2") if row.line.label == "DINOv2")
    assert row.scores[0].recall == hits / 3
    assert row.scores[0].precision == hits / len(found)
    assert row.scores[0].truth == 3
    assert row.scores[0].prompts == 1
    assert len(record.prompts) == 1
    assert record.prompts[0] == record.truth[record.prompted[0]]


def test_more_prompts_are_more_of_the_same_annotations(everything: dict[str, Any]) -> None:
    records = everything["asked"].records
    single = records.read("TS_026", "ribosome", Config().key)
    most = records.read("TS_026", "ribosome", Config(share=0.7).key)
    assert set(single.prompted) < set(most.prompted)
    assert len(most.prompted) == 2


def test_no_pick_is_there_for_being_a_prompt(everything: dict[str, Any]) -> None:
    """All of them are proposals of the matching, so there are no more than K."""
    records = everything["asked"].records
    for share in paper.SHARES:
        assert len(records.picks(records.read("TS_026", "ribosome", Config(share=share).key))) <= 3
    stores = sorted((everything["asked"].out / "runs" / "TS_026").glob("DINOv2-*.zarr"))
    assert len(stores) == 1
    store = RunStore.open(stores[0])
    lent = [name for name in store.groups("picks") if name.startswith("DINOv2-70pct")]
    assert store.read(f"picks/{lent[0]}/prompted").sum() == 0


def test_features_are_made_once_for_each_encoder(everything: dict[str, Any]) -> None:
    for stage in ("ingest", "features"):
        often = {url: n for (url, name), n in everything["ran"].items() if name == stage}
        assert len(often) == 3
        assert len({Path(url).name.partition("-")[0] for url in often}) == 3
        assert stage not in everything["again"]
    matched = [name for url, name in everything["ran"] if name.startswith("match/") and "DINOv2-" in url]
    assert len({name.split("/")[1] for name in matched}) == 6 + 2 + 2


def test_the_same_command_runs_nothing_again(warp_set: Path, everything: dict[str, Any]) -> None:
    executor = Spy()
    asked = asked_for(warp_set, everything["asked"].out, only="TS_026,TS_101")
    work.run(asked, executor=executor)
    assert executor.ran.total() == 0
    assert empiar.tabulate(asked, TABLES).text == everything["outcome"].text


def test_results_of_another_seed_or_other_settings_are_in_no_table(warp_set: Path, everything: dict[str, Any]) -> None:
    for options in ({"seed": 1}, {"reading": {"voxel_size": 9.0}}):
        other = asked_for(warp_set, everything["asked"].out, only="TS_026", **options)
        rows = results_of(TABLES[0], other, "ribosome", 125.0)
        assert not any(row.scores for row in rows)


def test_results_of_other_positions_are_in_no_table(warp_set: Path, everything: dict[str, Any], tmp_path: Path) -> None:
    out, star = everything["asked"].out, tmp_path / "moved.star"
    star.write_text((warp_set / "run_ct17_it034_data.star").read_text().replace("40.000", "48.000"))
    for truth, there in ((star, 0), (None, 1)):
        asked = empiar.asked_for(
            out, data.find(warp_set, kind="ribosome", truth=truth, only="TS_026"), TABLES, settings_of(), pixel_size=2.5
        )
        assert [len(row.scores) for row in results_of(TABLES[2], asked, "ribosome", 125.0)] == 4 * [there]


def test_files_say_what_is_printed(everything: dict[str, Any]) -> None:
    out = everything["asked"].out
    assert (out / "tables.md").read_text() == everything["outcome"].text + "\n"
    content = json.loads((out / "tables.json").read_text())
    assert set(content["tables"]) == {"1", "2", "3", "fig5"}
    one = content["tables"]["1"][-1]
    assert (one["published"]["f1"], one["tomograms"], one["expected"]) == (67.4, 1, 2)
    assert one["failed"][0]["tomogram"] == "TS_101"
    with (out / "tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 6 + 6 + 4 + 6
    assert {row["status"] for row in rows} == {"done", "failed"}
    picture = (out / "figure5.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_minutes_count_what_is_shared_for_each_and_matching_for_itself(everything: dict[str, Any]) -> None:
    records = everything["asked"].records
    one, two = (records.read("TS_026", "ribosome", c.key) for c in (Config(), Config(matching="naive")))
    assert set(one.seconds) == {"ingest", "features", "embeddings", "query", "matching", "segmentation"}
    assert all(value > 0 for value in (*one.seconds.values(), *two.seconds.values()))
    assert one.seconds["features"] == two.seconds["features"]
    assert one.seconds["matching"] != two.seconds["matching"]
    assert (one.device, "CPU on" in one.executor) == ("cpu", True)


@pytest.mark.parametrize("share", [None, 0.10])
def test_smaller_k_from_a_run_with_the_largest_is_the_run_with_that_k(
    everything: dict[str, Any], share: float | None
) -> None:
    """K = 3 is what the settings of Table 1 say; both by files and in the store, bit for bit."""
    records = everything["asked"].records
    table = next(table for table in TABLES if table.name == "fig5")
    many = next(c for c in table.configs if c.share == share)
    direct = records.picks(records.read("TS_026", "ribosome", Config(share=share).key))
    taken = records.picks(records.read("TS_026", "ribosome", many.key), 3)
    pd.testing.assert_frame_equal(direct, taken[list(direct.columns)], check_exact=True)
    largest = records.picks(records.read("TS_026", "ribosome", many.key), ALL)
    assert len(largest) > len(taken)
    store = RunStore.open(next((everything["asked"].out / "runs" / "TS_026").glob("DINOv2-*.zarr")))
    prompts = "single" if share is None else "10pct"
    (name,) = (n for n in store.groups("picks") if n.startswith(f"DINOv2-{prompts}-hierarchical-kall"))
    found = first_picks(store, name, settings_of()["DINOv2"], ALL)
    pd.testing.assert_frame_equal(found, all_picks(store, name), check_exact=True)


def test_every_k_of_many_overlapping_instances(warp_set: Path, tmp_path: Path) -> None:
    """Duplicates are decided anew for each K: a later proposal may have a better mask of the same particle."""
    settings = {
        "DINOv2": settings_for("texture+random-walker", CHANGES | {"match.nms_radius": 5, "label.overlap": 0.5})
    }
    entries = data.find(warp_set, kind="ribosome", only="TS_027")
    counts = (5, 12)
    configs = [Config(counts=counts), Config(counts=counts[:1])]
    asked = Asked(tmp_path, entries, ("ribosome",), lambda index: configs, settings, pixel_size=2.5)
    assert work.run(asked, executor=SerialExecutor()) == ""
    many = asked.records.read("TS_027", "ribosome", configs[0].key)
    assert many is not None
    assert many.status == "done"
    store = RunStore.open(next((tmp_path / "runs" / "TS_027").glob("*.zarr")))
    kept = []
    for k in counts:
        (name,) = (n for n in store.groups("picks") if n.startswith(f"DINOv2-single-hierarchical-k{k}-"))
        taken = asked.records.picks(many, k)[["z", "y", "x", "score"]]
        direct = all_picks(store, name).astype(str).astype(float)  # scores are in single precision
        pd.testing.assert_frame_equal(direct, taken, check_exact=True)
        kept.append(len(taken))
    assert kept[-1] < counts[-1]  # there were duplicates to decide about


def test_what_is_complete_stays_when_its_process_is_killed(warp_set: Path, tmp_path: Path, counting: Any) -> None:
    options = [word for key, value in CHANGES.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["benchmark", "empiar-10499", "--data", str(warp_set), "--out", str(tmp_path), "--tomograms", "TS_027",
             "--table", "fig5", "--proposals", "2", "--truth-pixel-size", "2.5", "--workers", "0",
             "--models", "texture+random-walker", *options]  # fmt: skip
    script = "import sys; from cryosam_dask.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.DEVNULL)
    first = tmp_path / "results" / "TS_027" / f"ribosome-{Config(counts=(2,)).key}.json"
    end = time.monotonic() + 600
    while not first.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists()
    before = first.read_bytes()
    executor = counting()
    tables = paper.tables(("fig5",), counts=(2,))
    asked = asked_for(warp_set, tmp_path, tables, only="TS_027")
    assert work.run(asked, executor=executor) == ""
    assert first.read_bytes() == before
    assert all(stage not in ("ingest", "features") for _, stage, _ in executor.ran)
    assert empiar.tabulate(asked, tables).complete


def test_the_command_line_goes_on_with_the_same_folder(warp_set: Path, everything: dict[str, Any]) -> None:
    """With all of it complete, the command only prints; its settings are the same ones."""
    options = [word for key, value in CHANGES.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = [
        "benchmark",
        "empiar-10499",
        "--data",
        str(warp_set),
        "--out",
        str(everything["asked"].out),
        "--tomograms",
        "TS_026",
        "--truth-pixel-size",
        "2.5",
        "--ablation",
        "1",
        "--proposals",
        "all,3,1",
        "--models",
        "texture+random-walker",
        "--encoder",
        "SAM=texture",
        "--encoder",
        "dino=texture",
        *options,
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1 of 1" in result.stdout
    assert "TS_026:" not in result.output
    some = CliRunner().invoke(app, [*words, "--table", "fig5", "--tables-only", "--radius", "1"])
    assert some.exit_code == 0
    assert "## Table 1" not in some.stdout
    assert "within 1 Å" in some.stdout
    survey = CliRunner().invoke(app, [*words, "--dry-run"])
    assert "20 × 36 × 38" in survey.stdout
    assert "ribosome 3" in survey.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--table", "4"], "--table 4: expected 1, 2, 3, fig5"),
        (["--encoder", "CLIP=x"], "NAME one of SAM, DINO, DINOv2"),
        (["--encoder", "SAM"], "expected NAME=MODEL"),
        (["--proposals", "0"], "expected whole numbers from 1, or 'all'"),
        (["--radius", "0"], "expected ångström above 0"),
        (["--truth-pixel-size", "-1"], "--truth-pixel-size"),
        (["--tomograms", "TS_5"], "--tomograms: no TS_5"),
    ],
)
def test_options_that_can_not_be(warp_set: Path, tmp_path: Path, words: list[str], says: str) -> None:
    common = ["benchmark", "empiar-10499", "--data", str(warp_set), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*common, "--models", "texture+random-walker", *words])
    assert result.exit_code != 0
    assert says in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_read_or_written_nothing_runs(warp_set: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 1 tomograms can be used; TS_101: .* has no rows of it"):
        work.run(pair(warp_set, tmp_path / "out", only="TS_101"), executor=SerialExecutor())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't be made"):
        work.run(pair(warp_set, tmp_path / "file" / "out"), executor=SerialExecutor())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "out" / "results").mkdir(parents=True)
    (tmp_path / "out" / "results" / "TS_027").touch()
    with pytest.raises(StoreError, match="results/TS_027: can't be made"):
        work.run(pair(warp_set, tmp_path / "out"), executor=SerialExecutor())
    assert not (tmp_path / "out" / "runs").exists()


class Failing(SerialExecutor):
    """Fails in the features of one tomogram."""

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        if stage.name == "features" and "/TS_026/" in context.url:
            raise ZeroDivisionError("a defect")
        super().run(stage, context, units, report)


def test_a_tomogram_that_fails_is_a_row_and_goes_on_interrupted_anywhere(
    warp_set: Path, tmp_path: Path, everything: dict[str, Any], counting: Any
) -> None:
    """No unit runs twice, and in the end all is as if nothing had happened."""
    asked = pair(warp_set, tmp_path, only="TS_026,TS_027", discard=True)
    configs = asked.configs(0)
    assert work.run(asked, executor=Failing()) == ""
    for config in configs:
        failed = asked.records.read("TS_026", "ribosome", config.key)
        assert failed is not None
        assert failed.status == "failed"
        assert "a defect" in failed.error
        done = asked.records.read("TS_027", "ribosome", config.key)
        assert done is not None
        assert done.status == "done"
    assert not list((tmp_path / "runs" / "TS_027").glob("*.zarr"))  # discarded; the results are kept

    executor, interruptions = counting(), 0
    while True:
        executor.limit = executor.ran.total() + 9
        try:
            work.run(asked, executor=executor)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 3
    assert all("/TS_026/" in url for url, _, _ in executor.ran)
    # a group of a segmentation that waits for planes comes back with the same name
    assert {stage.partition("/")[0] for (_, stage, _), n in executor.ran.items() if n > 1} <= {"segment"}
    for config in configs:
        record = asked.records.read("TS_026", "ribosome", config.key)
        before = everything["asked"].records.read("TS_026", "ribosome", config.key)
        assert record is not None
        assert (record.status, record.request) == ("done", before.request)
        mine, plain = asked.records.picks(record), everything["asked"].records.picks(before)
        pd.testing.assert_frame_equal(mine, plain, check_exact=True)
    assert not list((tmp_path / "runs").rglob("*.zarr"))


def test_a_damaged_record_is_none(everything: dict[str, Any], tmp_path: Path) -> None:
    records, path = Records(tmp_path), tmp_path / "TS_026" / f"ribosome-{Config().key}.json"
    records.write(everything["asked"].records.read("TS_026", "ribosome", Config().key), None)
    assert records.read("TS_026", "ribosome", Config().key) is not None
    path.write_text(path.read_text()[:-20])
    assert records.read("TS_026", "ribosome", Config().key) is None
