"""Several tomograms of one command at once: the same results as one by one, and each fails, stops and goes on alone."""

from __future__ import annotations

import csv
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import mrcfile
import numpy as np
import pytest
import zarr
from benchmarks.simulation import job_of, simulate
from test_batch import statuses

from cryosam_dask.errors import ExecutionError, InputError, SettingsError, StoreError
from cryosam_dask.executors import DaskExecutor, SerialExecutor, UserClient
from cryosam_dask.executors.sharing import UNITS_PER_SLOT, Sharing
from cryosam_dask.models import cache
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.pipeline.at_once import THREAD, AtOnce, Crowd
from cryosam_dask.pipeline.batch import Summary, run_many
from cryosam_dask.pipeline.stopping import Failures
from cryosam_dask.planning import Bulk, Cluster, at_once, estimate_many
from cryosam_dask.stages.cost import Cost
from cryosam_dask.store import layout
from cryosam_dask.store.journal import commands
from cryosam_dask.store.lease import holder
from cryosam_dask.store.run_store import RunStore

SETTINGS = settings_for("texture+random-walker", {"match.count": 2, "match.ratios": [8], "features.dense_ratios": []})


CLICK = [7, 8, 8]


class Shared(SerialExecutor):
    """Runs units here, but several runs at once, each in its thread."""

    shares = True
    slots = 2

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__()
        self._stop = stop or threading.Event()

    def sibling(self, priority: int = 0, stop: threading.Event | None = None) -> Self:
        return type(self)(stop)

    def run(self, *given: Any) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        super().run(*given)


def crowd(count: int | None = None, executor: Any = None) -> Crowd:
    return Crowd(executor or Shared(), count, list)


# --- jobs in threads ---


def test_jobs_begin_in_order_and_no_more_at_once_than_may() -> None:
    going, most, guard, begun = 0, 0, threading.Lock(), []

    def work(number: int, _: Any) -> str:
        nonlocal going, most
        with guard:
            begun.append((number, threading.current_thread().name))
            going += 1
            most = max(most, going)
        threading.Event().wait(0.02)
        with guard:
            going -= 1
        return f"job {number}"

    jobs = AtOnce(Shared(), work, crowd(3), lambda number: f"t{number}")
    assert dict(jobs.ends(range(8))) == {i: f"job {i}" for i in range(8)}
    assert most == 3
    assert sorted(begun) == [(i, f"{THREAD}t{i}") for i in range(8)]


def test_what_a_job_raises_is_its_end_and_what_it_tells_is_heard_here() -> None:
    heard: list[tuple[int, int]] = []

    def work(number: int, _: Any) -> int:
        jobs.tell(lambda: heard.append((number, threading.get_ident())))
        if number == 1:
            raise InputError("bad")
        return number

    jobs = AtOnce(Shared(), work, crowd(2))
    ends = dict(jobs.ends(range(3)))
    assert isinstance(ends.pop(1), InputError)
    assert ends == {0: 0, 2: 2}
    assert sorted(heard) == [(i, threading.get_ident()) for i in range(3)]


def wait_to_be_stopped(number: int, executor: Any) -> int:
    """A job that ends at once if it is number 0, and else when it is stopped."""
    if number == 0:
        return 0
    assert executor._stop.wait(10)
    raise KeyboardInterrupt


def test_jobs_that_go_on_are_stopped_and_waited_for() -> None:
    jobs = AtOnce(Shared(), wait_to_be_stopped, crowd(3))
    ended = []
    for number, _ in jobs.ends(range(9)):
        ended.append(number)
        jobs.stop()
    assert ended == [0]
    assert not any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_an_interrupt_stops_them_too() -> None:
    jobs = AtOnce(Shared(), wait_to_be_stopped, crowd(3))
    ends = jobs.ends(range(9))
    assert next(ends) == (0, 0)
    with pytest.raises(KeyboardInterrupt):
        ends.throw(KeyboardInterrupt())
    assert not any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_nowhere_to_run_is_no_jobs_fault() -> None:
    """And workers that are yet to start are started here, not by several threads."""

    class Unreachable(Shared):
        @property
        def slots(self) -> int:  # type: ignore[override]
            raise ExecutionError("no worker joined")

    jobs = AtOnce(Unreachable(), lambda number, _: number, crowd(3, Unreachable()))
    with pytest.raises(ExecutionError, match="no worker joined"):
        next(jobs.ends(range(3)))
    assert not any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_an_executor_that_shares_nothing_runs_jobs_here() -> None:
    jobs = AtOnce(SerialExecutor(), lambda number, _: threading.get_ident(), crowd(4, SerialExecutor()))
    assert not jobs.threads
    assert dict(jobs.ends(range(2))) == dict.fromkeys(range(2), threading.get_ident())


def test_the_log_says_of_which_run_a_line_is(
    cryosam: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cryosam("-v", "plan", "none.mrc")[0] == 2  # from now on it logs
    log = logging.getLogger("cryosam_dask.test")
    jobs = AtOnce(Shared(), lambda number, _: log.info("of it"), crowd(2), lambda number: f"TS_{number}")
    assert not dict(jobs.ends([26]))
    log.info("of all")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("INFO TS_26: of it")
    assert lines[1].endswith("INFO of all")


# --- how many ---


@functools.cache
def narrow() -> list[Bulk]:
    """A run whose units fill 16 workers half of the time."""
    return [Bulk("wide", 160, Cost(1.0)), Bulk("narrow", 2, Cost(10.0)), Bulk("choose", 0, Cost(0.0), driver=1.0)] * 2


@pytest.mark.parametrize(("slots", "expected"), [(1, 2), (2, 3), (16, 4), (1000, 32)])
def test_as_many_go_on_as_keep_the_workers_busy(slots: int, expected: int) -> None:
    executor = Shared()
    executor.slots = slots
    assert Crowd(executor, None, narrow).most() == expected
    assert Crowd(executor, 5, narrow).most() == 5
    assert crowd(None, executor).most() == min(slots, 2) + 1  # where nothing can be planned


def test_without_a_worker_there_are_as_many_as_before() -> None:
    class Lost(Shared):
        slots = property(lambda self: next(answers))  # type: ignore[assignment]

    def ask() -> Iterator[int]:
        yield 2
        raise ExecutionError("no worker joined")

    answers = ask()
    asked = Crowd(Lost(), None, narrow)
    assert [asked.most(), asked.most()] == [3, 3]


@pytest.mark.parametrize("workers", [4, 16, 64])
def test_the_formula_for_many_runs_is_near_the_simulation(workers: int) -> None:
    cluster = Cluster(workers, 1e-4)
    for together in (1, at_once(narrow(), cluster)):
        planned = estimate_many(narrow(), cluster, 20, together)
        played = simulate(job_of(narrow(), 20, together).tasks, cluster)
        assert planned.seconds == pytest.approx(played.makespan, rel=0.15)
        assert planned.busy == pytest.approx(played.workers, rel=0.15)
    assert played.workers > 0.85
    assert planned.in_turn == pytest.approx(20 * estimate_many(narrow(), cluster, 1).seconds)


# --- what executors on the same workers know of each other ---


def test_workers_are_neither_starved_nor_flooded() -> None:
    sharing = Sharing()
    assert sharing.window("a", 10) == 10 * UNITS_PER_SLOT
    sharing.tell("b", 10)
    assert sharing.window("a", 10) == 10 * (UNITS_PER_SLOT - 1)
    sharing.tell("b", 10 * UNITS_PER_SLOT)
    assert sharing.window("a", 10) == 10
    sharing.tell("b", 0)
    assert sharing.window("a", 10) == 10 * UNITS_PER_SLOT


def test_one_gets_the_workers_alone_once_the_others_have_landed() -> None:
    sharing, waits = Sharing(), threading.Event()

    def land() -> None:
        waits.set()
        assert sharing.window("b", 10) == 0
        sharing.tell("b", 0)

    sharing.tell("b", 3)
    with sharing.alone("a", land):
        assert waits.is_set()
        assert sharing.window("a", 10) == 10 * UNITS_PER_SLOT
        assert sharing.window("b", 10) == 0
    assert sharing.window("b", 10) == 10 * UNITS_PER_SLOT

    def interrupt() -> None:
        raise KeyboardInterrupt

    sharing.tell("b", 3)
    with pytest.raises(KeyboardInterrupt), sharing.alone("a", interrupt):
        pass
    assert sharing.window("b", 10) == 10 * UNITS_PER_SLOT


# --- tomograms ---


@pytest.fixture(scope="module")
def tomograms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of 16 × 24 × 32 voxels, with two bright balls each."""
    folder = tmp_path_factory.mktemp("tomograms")
    for seed in range(2):
        z, y, x = np.indices((16, 24, 32))
        values = np.random.default_rng(seed).normal(size=z.shape)
        for a, b, c in (CLICK, (8, 15 - seed, 23)):
            values += 4.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 20)
        with mrcfile.new(folder / f"t{seed}.mrc", values.astype(np.float32)) as file:
            file.voxel_size = 10
    return sorted(folder.iterdir())


def go(tomograms: list[Path], out: Path, **options: Any) -> Summary:
    points = None if "query_from" in options else [CLICK]
    return run_many(tomograms, points, out, **{"settings": SETTINGS, "executor": SerialExecutor(), **options})


@pytest.fixture(scope="module")
def in_turn(tomograms: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """The tomograms run one after the other."""
    out = tmp_path_factory.mktemp("in-turn")
    return out, go(tomograms, out)


def arrays(run: Path) -> dict[str, bytes]:
    """All that a run holds, but its journal."""
    store = zarr.open_group(run, mode="r")
    members = store.members(max_depth=None)
    return {
        path: np.ascontiguousarray(member[:]).tobytes() for path, member in members if isinstance(member, zarr.Array)
    }


def test_on_a_cluster_the_results_are_the_same(
    tomograms: list[Path], in_turn: tuple[Path, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And models are loaded once in a worker's process, which is this one, whatever goes on there at once."""
    from distributed import Client

    before, summary = in_turn
    loaded: list[str] = []

    def counted(load: Callable[..., Any]) -> Callable[..., Any]:
        def noted(spec: str, *where: str) -> Any:
            loaded.append(spec)
            return load(spec, *where)

        return noted

    monkeypatch.setattr(cache, "load_encoder", counted(cache.load_encoder))
    monkeypatch.setattr(cache, "load_segmenter", counted(cache.load_segmenter))
    cache.clear()
    told: list[tuple[str, str]] = []
    with (
        Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client,
        DaskExecutor(UserClient(client), "cpu") as executor,
    ):
        together = go(
            *(tomograms, tmp_path),
            executor=executor,
            report=lambda row, number, count: told.append((row.name, row.status)),
        )
        assert client.status == "running"
        assert not executor.link.sharing._flying
    assert sorted(loaded) == ["random-walker", "texture"]
    # both began before one ended: as many as there are workers
    assert sorted(told[:2]) == [("t0", "pending"), ("t1", "pending")]
    assert [row.instances for row in together.rows] == [row.instances for row in summary.rows]
    assert (tmp_path / "picks.csv").read_bytes() == (before / "picks.csv").read_bytes()
    for row in together.rows:
        assert row.status == "done"
        assert arrays(tmp_path / f"{row.name}.zarr") == arrays(before / f"{row.name}.zarr")
        assert holder(row.run) is None


@pytest.fixture
def bad(tmp_path: Path, tomograms: list[Path]) -> Path:
    """A tomogram that is cut off."""
    path = tmp_path / "bad.mrc"
    path.write_bytes(tomograms[0].read_bytes()[:9000])
    return path


def test_an_interrupt_gives_leases_back_and_one_that_fails_does_not_stop_the_others(
    tomograms: list[Path], in_turn: tuple[Path, Summary], bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First Ctrl-C comes while one has failed and the other goes on; then the same command is given again."""
    out, going, query = tmp_path / "out", threading.Event(), in_turn[0] / "t0.zarr"

    def wait(self: Any, name: str) -> None:
        assert holder(self.url) is not None
        going.set()
        assert self._executor._stop.wait(10)
        raise KeyboardInterrupt

    def interrupt(row: Any, *_: Any) -> None:
        if row.status == "failed":
            assert going.wait(60)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Driver, "match", wait)
        with pytest.raises(KeyboardInterrupt):
            go([bad, tomograms[1]], out, query_from=query, executor=Shared(), report=interrupt)
    assert holder(out / "t1.zarr") is None
    assert not any(thread.name.startswith(THREAD) for thread in threading.enumerate())
    assert {command["outcome"] for command in commands(RunStore.open(out / "t1.zarr"))} == {"interrupted"}

    again = go([bad, tomograms[1]], out, query_from=query, executor=Shared())
    assert statuses(again) == {"bad": "failed", "t1": "done"}
    assert "bad.mrc" in again.rows[0].error
    assert again.stopped == ""
    labels = layout.labels("particle")
    assert (RunStore.open(again.rows[1].run).read(labels) == RunStore.open(in_turn[0] / "t1.zarr").read(labels)).all()


@pytest.mark.parametrize(
    ("error", "options", "reason"),
    [
        (InputError("bad"), {"fail_fast": True}, "first failure"),
        (StoreError("x: No space left on device"), {}, "can't be written"),
    ],
)
def test_those_that_go_on_stop_with_one_whose_failure_they_share(
    error: Exception,
    options: dict[str, Any],
    reason: str,
    tomograms: list[Path],
    in_turn: tuple[Path, Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = threading.Event()

    def ingest(self: Any, tomogram: str, **_: Any) -> None:
        if tomogram.endswith("t0.mrc"):
            assert began.wait(10)
            raise error
        began.set()
        assert self._executor._stop.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(Driver, "ingest", ingest)
    summary = go(tomograms, tmp_path / "out", query_from=in_turn[0] / "t0.zarr", executor=Shared(), **options)
    assert statuses(summary) == {"t0": "failed", "t1": "pending"}
    assert reason in summary.stopped
    assert holder(summary.rows[1].run) is None
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed", "pending"]


def test_failures_are_in_a_row_by_the_order_of_tomograms() -> None:
    failures = Failures([2, 4, 5, 7, 9])
    assert failures.add(9, ExecutionError("a")) == 1
    assert failures.add(4, ExecutionError("a")) == 1
    assert failures.add(2, InputError("its own")) == 0
    assert failures.add(7, ZeroDivisionError()) == 2
    assert failures.add(5, ExecutionError("a")) == 4


def test_fewer_than_one_at_once_is_refused(tomograms: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="0 tomograms at once: expected 1 or more"):
        go(tomograms, tmp_path / "out", at_once=0)
    assert not (tmp_path / "out").exists()
