"""The run's journal: what a command leaves behind, however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryosam_dask.errors import StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver
from cryosam_dask.store import journal
from cryosam_dask.store.run_store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run.zarr", {})


def entry_of(store: RunStore, command: str = "run a", outcome: str = "done") -> dict[str, Any]:
    written = journal.Journal(store, command, "3 workers", "1.2")
    stage = written.stage("match/a/r4", "cuda")
    stage.add_unit("first", 2.0, "node1:7", 100)
    stage.add_unit("second", 4.0, "node1:8", 300)
    stage.add_unit("third", 3.0, "node2:7", 200)
    stage.add_failure("second", "node2:7", "OSError: gone", given_up=False)
    stage.add_failure("fourth", "node2:7", "ValueError: no", given_up=True)
    written.close(outcome)
    return journal.commands(RunStore.open(store.url))[-1]


def test_an_entry_says_all(store: RunStore) -> None:
    entry = entry_of(store)
    assert entry["command"] == "run a"
    assert entry["version"] == "1.2"
    assert entry["executor"] == "3 workers"
    assert entry["outcome"] == "done"
    assert entry["user"]
    stage = entry["stages"]["match/a/r4"]
    assert stage["device"] == "cuda"
    assert stage["units"] == 3
    assert stage["unit_seconds"] == 9.0
    assert (stage["longest"], stage["longest_seconds"]) == ("second", 4.0)
    assert stage["workers"] == {"node1": 2, "node2": 1}
    assert stage["peak"] == 300
    assert (stage["retried"], stage["failed"]) == (1, 1)
    assert stage["failures"][1] == {"unit": "fourth", "worker": "node2:7", "error": "ValueError: no"}


def test_what_a_user_was_told_is_kept_once(store: RunStore) -> None:
    written = journal.Journal(store, "run a", "here", "1")
    written.stage("ingest", "cpu")
    for text in ("nothing reaches tau_sim", "3 candidates left out", "nothing reaches tau_sim"):
        written.note(text)
    written.close("done")
    (entry,) = journal.commands(RunStore.open(store.url))
    assert entry["notes"] == ["nothing reaches tau_sim", "3 candidates left out"]


def test_a_command_that_was_killed_leaves_its_entry(store: RunStore) -> None:
    written = journal.Journal(store, "run a", "here", "1")
    written.stage("ingest", "cpu")
    (entry,) = journal.commands(RunStore.open(store.url))
    assert entry["outcome"] == "running"
    assert entry["ended"] is None
    assert set(entry["stages"]) == {"ingest"}


def test_a_command_that_ran_nothing_leaves_none(store: RunStore) -> None:
    journal.Journal(store, "run a", "here", "1").close("done")
    assert journal.commands(RunStore.open(store.url)) == []


def test_the_oldest_entries_go(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_COMMANDS", 3)
    for i in range(5):
        entry_of(store, f"run {i}")
    assert [entry["command"] for entry in journal.commands(store)] == ["run 2", "run 3", "run 4"]


def test_many_failures_are_counted_and_some_are_told(store: RunStore) -> None:
    stage = journal.Journal(store, "run a", "here", "1").stage("ingest", "cpu")
    for i in range(100):
        stage.add_failure(f"unit {i}", "w:1", "OSError", given_up=False)
    assert stage.retried == 100
    assert len(stage.failures) == journal.MOST_FAILURES


def test_seconds_are_taken_together_by_the_kind_of_stage(store: RunStore) -> None:
    entry_of(store)
    entry_of(store, "run b")
    assert journal.seconds_per_unit(journal.commands(store)) == {"match": 3.0}


def test_a_damaged_journal_is_an_empty_one(store: RunStore) -> None:
    store.group(journal.GROUP).attrs["commands"] = "nonsense"
    assert journal.commands(store) == []


def test_a_command_within_another_belongs_to_it(tmp_path: Path, ball_tomogram: Path) -> None:
    driver = Driver(tmp_path / "run.zarr", SerialExecutor())
    with driver.command("outer"):
        driver.ingest(ball_tomogram)
    assert [entry["command"] for entry in journal.commands(driver.store)] == ["outer"]
    driver.ingest(ball_tomogram)  # nothing left to do
    assert len(journal.commands(driver.store)) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreError("the disk is full"), "failed: the disk is full"),
        (RuntimeError("odd\nmore"), "failed: RuntimeError: odd"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_how_a_command_ended(tmp_path: Path, ball_tomogram: Path, error: BaseException, outcome: str) -> None:
    driver = Driver(tmp_path / "run.zarr", SerialExecutor())

    def fail() -> None:
        with driver.command("all"):
            driver.ingest(ball_tomogram)
            raise error

    with pytest.raises(type(error)):
        fail()
    (entry,) = journal.commands(driver.store)
    assert entry["outcome"] == outcome
    assert entry["ended"] >= entry["began"]
