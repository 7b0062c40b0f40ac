"""Jobs of the page: one at a time, cancelled as by Ctrl-C, resumed, and in nobody's way."""

from __future__ import annotations

import math
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.pipeline.integrity import verify
from cryosam_dask.stages import propose, segment
from cryosam_dask.store import layout, marks, picks, reviews
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.viewer.jobs import BusyError, Job, JobCancelled, JobProgress, Jobs
from cryosam_dask.viewer.session import Session

WALKER = "texture+random-walker"
SETTINGS = {"match.structure": "particle"}


def idle(session: Session, seconds: float = 120.0) -> dict[str, Any]:
    """The snapshot once no job runs."""
    end = time.monotonic() + seconds
    while (snapshot := session.snapshot())["job"] is not None:
        assert time.monotonic() < end, "the job does not end"
        time.sleep(0.02)
    return snapshot


class Gate(SerialExecutor):
    """Lets units through one by one, once it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.units: list[str] = []

    def run(self, stage: Any, context: Any, units: Any, report: Any) -> None:
        def reported(unit: Any, outcome: Any) -> None:
            self.units.append(f"{stage.name}: {unit.name}")
            if not self.open.is_set():
                self.reached.set()
                assert self.open.wait(60)
            report(unit, outcome)

        super().run(stage, context, units, reported)


@pytest.fixture(scope="module")
def featured(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jobs") / "r.zarr"
    driver = Driver(out, SerialExecutor())
    driver.ingest(ball_tomogram)
    driver.features(settings_for(WALKER, SETTINGS))
    return out


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def session(featured: Path, tmp_path: Path, gate: Gate) -> Iterator[Session]:
    out = shutil.copytree(featured, tmp_path / "r.zarr")
    opened = Session(
        out, settings=settings_for(WALKER, {**SETTINGS, "propagation.group": 2}), make_executor=lambda: gate
    )
    opened.act("kind/add", {"name": "ball"})
    opened.act("click/add", {"kind": "ball", "position": [20, 20, 20], "positive": True})
    yield opened
    gate.open.set()
    opened.close()


def test_progress_is_told_and_a_cancelled_job_goes_on_where_it_was(session: Session, gate: Gate) -> None:
    session.act("like", {"kind": "ball"})
    assert idle(session)["kinds"][0]["similarity"] is not None
    gate.open.clear()
    session.act("find", {"kind": "ball", "count": 4})
    assert gate.reached.wait(60)
    while not any(unit.startswith("segment/instances") for unit in gate.units):
        gate.reached.clear()
        gate.open.set()
        gate.open.clear()
        gate.reached.wait(1)
    job = session.snapshot()["job"]
    assert job["words"] == "Finding all of ball"
    assert session.act("cancel", {}) == {"cancelled": True}
    assert session.snapshot()["job"]["cancelling"]
    with pytest.raises(BusyError, match="busy: Finding all of ball"):
        session.act("features", {})
    session.act("click/add", {"kind": "ball", "position": [1, 2, 3], "positive": False})  # goes on meanwhile
    session.act("click/undo", {"kind": "ball"})
    gate.open.set()
    snapshot = idle(session)
    assert "cancelled" in snapshot["messages"][-1]["text"]
    assert snapshot["resumable"] == "Finding all of ball"
    before = len([unit for unit in gate.units if unit.startswith("segment/instances")])
    session.act("resume", {})
    snapshot = idle(session)
    assert snapshot["resumable"] is None
    assert snapshot["kinds"][0]["picks"]["complete"]
    again = [unit for unit in gate.units if unit.startswith("segment/instances")]
    assert len(again) > before
    assert verify(session.desk.url).sound


def begin_segmenting(session: Session) -> None:
    """Have the run as it is in the midst of the segmentation: no picks yet, and one of the groups not done."""
    store = RunStore.open(session.desk.url, "r+")
    store.delete(layout.picks("ball"))
    stage = segment.PROPOSALS.stage_name("ball")
    last = int(np.flatnonzero(marks.done(store, stage))[-1])
    store.delete(f"{layout.marks(stage)}/c/{last}")
    session._look()


def test_picks_appear_while_they_are_segmented(session: Session) -> None:
    session.act("find", {"kind": "ball", "count": 4})
    complete = idle(session)["kinds"][0]["picks"]
    expected = session.picks("ball")
    begin_segmenting(session)
    shown = session.snapshot()["kinds"][0]["picks"]
    assert not shown["complete"]
    assert 0 < shown["count"] < complete["count"]
    assert shown["version"] != complete["version"]
    table = session.picks("ball")
    assert len(table["instances"]) == shown["count"]
    known = [tuple(position) for position in expected["positions"]]
    assert all(tuple(position) in known for position in table["positions"])
    assert not table["complete"]
    # what is decided now is about a place, and stands when all are there
    session.act("review", {"kind": "ball", "decisions": [{"position": table["positions"][0], "verdict": "rejected"}]})
    session.act("find", {"kind": "ball", "count": 4})
    assert idle(session)["kinds"][0]["picks"]["complete"]
    again = session.picks("ball")
    assert again["complete"]
    assert again["verdicts"].count("rejected") == 1
    assert again["verdicts"][known.index(tuple(table["positions"][0]))] == "rejected"


def test_another_number_of_picks_keeps_what_is_segmented(
    session: Session, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.act("find", {"kind": "ball", "count": 4})
    shown = idle(session)["kinds"][0]
    scores = session.candidates("ball")["scores"]
    before = picks.read(RunStore.open(session.desk.url), "ball")
    gate.units.clear()
    session.act("find", {"kind": "ball", "count": 2})
    fewer = idle(session)["kinds"][0]
    assert fewer["candidates"]["version"] != shown["candidates"]["version"]
    assert fewer["picks"]["count"] < shown["picks"]["count"]
    ran = [unit for unit in gate.units if not unit.startswith("label")]
    assert len([unit for unit in ran if unit.startswith("segment/instances")]) <= 1  # a group that lost a member
    assert not [unit for unit in ran if unit.startswith(("query", "project", "match", "rank"))]
    kept = picks.read(RunStore.open(session.desk.url), "ball")
    assert set(zip(kept.z, kept.y, kept.x, strict=True)) <= set(zip(before.z, before.y, before.x, strict=True))
    ranked, candidates = [], propose.candidates
    monkeypatch.setattr(propose, "candidates", lambda *of: ranked.append(of) or candidates(*of))
    session.act("find", {"kind": "ball", "cut": scores[3]})  # by score
    assert idle(session)["kinds"][0]["picks"]["count"] == shown["picks"]["count"]
    assert len(ranked) == 1
    after = picks.read(RunStore.open(session.desk.url), "ball")
    np.testing.assert_allclose(after[["z", "y", "x"]], before[["z", "y", "x"]])
    assert verify(session.desk.url).sound


def test_what_was_decided_is_learned_from(session: Session) -> None:
    session.act("find", {"kind": "ball", "count": 4})
    idle(session)
    table = session.picks("ball")
    told = [
        {"instance": table["instances"][i], "position": table["positions"][i], "verdict": verdict}
        for i, verdict in ((1, "accepted"), (2, "rejected"))
    ]
    session.act("review", {"kind": "ball", "decisions": told})
    session.act("learn", {"kind": "ball"})
    shown = idle(session)["kinds"][0]
    assert shown["refined"]
    verdicts = session.picks("ball")["verdicts"]
    assert verdicts.count("accepted") == 1
    assert "rejected" not in verdicts
    assert len(reviews.read(RunStore.open(session.desk.url), "ball")) == 2


def test_decisions_are_made_again_by_the_commands(
    session: Session, featured: Path, tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]
) -> None:
    def replayed(commands: list[str], run: str) -> RunStore:
        for line in commands:
            _, *words = shlex.split(line.replace(session.desk.url, run))
            code, _, error = cryosam(*words, *([] if words[0] == "review" else ["--workers", "0"]))
            assert code == 0, (line, error)
        return RunStore.open(run)

    session.act("find", {"kind": "ball", "count": 4})
    idle(session)
    begin_segmenting(session)
    early = session.picks("ball")
    decide(session, {"position": early["positions"][1], "verdict": "rejected"})  # has no number yet
    session.act("find", {"kind": "ball", "count": 4})
    idle(session)
    table = session.picks("ball")
    accepted, other = (i for i, verdict in enumerate(table["verdicts"]) if i and verdict == "undecided")
    decide(session, decision(table, accepted, "accepted"))
    decide(session, {"position": [5, 6.25, 70], "verdict": "rejected"}, {"position": [6, 60, 8], "verdict": "added"})
    undecided = str(shutil.copytree(session.desk.url, tmp_path / "undecided.zarr"))
    RunStore.open(undecided, "r+").delete(layout.REVIEWS)
    *others, review = session.snapshot()["commands"]
    assert not any("review" in line for line in others)
    assert f"--accept {table['instances'][accepted]} --reject " in review
    assert told(replayed([review], undecided)) == told(RunStore.open(session.desk.url))
    session.act("learn", {"kind": "ball"})
    idle(session)
    decide(session, decision(table, accepted, "undecided"), {"position": [6, 60, 8], "verdict": "rejected"})
    again = session.picks("ball")
    distances = [math.dist(position, table["positions"][other]) for position in again["positions"]]
    where = int(np.argmin(distances))
    assert again["instances"][where] != table["instances"][other]
    decide(session, decision(again, where, "accepted"))
    expected = RunStore.open(session.desk.url)
    fresh = replayed(session.snapshot()["commands"], str(shutil.copytree(featured, tmp_path / "fresh.zarr")))
    assert told(fresh) == told(expected)
    assert picks.read(fresh, "ball").equals(picks.read(expected, "ball"))


def decision(table: dict[str, Any], row: int, verdict: str) -> dict[str, Any]:
    return {"instance": table["instances"][row], "position": table["positions"][row], "verdict": verdict}


def decide(session: Session, *decisions: dict[str, Any]) -> None:
    session.act("review", {"kind": "ball", "decisions": list(decisions)})


def told(store: RunStore) -> list[tuple[Any, ...]]:
    """What stands about picks and places, and by whom."""
    standing = reviews.standing(store, "ball")
    return sorted((tuple(np.round(each.position, 2)), each.verdict, each.by) for each in standing)


def test_the_same_clicks_keep_their_query_and_others_replace_it(session: Session, gate: Gate) -> None:
    session.act("like", {"kind": "ball"})
    idle(session)
    gate.units.clear()
    session.act("like", {"kind": "ball"})
    idle(session)
    assert gate.units == []
    session.act("click/add", {"kind": "ball", "position": [18, 44, 24], "positive": True})
    session.act("like", {"kind": "ball"})
    assert idle(session)["kinds"][0]["query"] == "made"
    assert any(unit.startswith("query/ball") for unit in gate.units)
    assert not any(unit.startswith("features") for unit in gate.units)


def test_a_run_that_another_process_writes_is_read_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(session.desk.url):
        with pytest.raises(BusyError, match="is being written by"):
            session.act("like", {"kind": "ball"})
        session.act("click/add", {"kind": "ball", "position": [18, 44, 24], "positive": True})
        assert len(session.snapshot()["kinds"][0]["clicks"]) == 2
    session.act("like", {"kind": "ball"})
    assert idle(session)["kinds"][0]["query"] == "made"


def test_an_error_of_a_job_is_a_message(session: Session) -> None:
    session.desk.settings = settings_for("texture+random-walker", {**SETTINGS, "match.tau_sim": 0.999})
    session.act("find", {"kind": "ball"})
    message = idle(session)["messages"][-1]
    assert message["kind"] == "error"
    assert "match.tau_sim" in message["text"]
    session.desk.settings = settings_for(WALKER, SETTINGS)
    session.act("kind/add", {"name": "other"})
    with pytest.raises(InputError, match="no click"):
        session.act("like", {"kind": "other"})


def test_a_tomogram_is_ingested_by_itself(ball_tomogram: Path, tmp_path: Path) -> None:
    path = shutil.copy(ball_tomogram, tmp_path / "t.mrc")
    session = Session(path, settings=settings_for(WALKER), make_executor=SerialExecutor)
    try:
        snapshot = idle(session)
        assert snapshot["run"] == {
            **snapshot["run"],
            "path": str(tmp_path / "t.zarr"),
            "shape": [37, 62, 90],
            "ingested": True,
            "voxel_size": [10.0, 10.0, 10.0],
        }
        low, high = snapshot["tomogram"]["range"]
        assert low < snapshot["tomogram"]["window"][0] < snapshot["tomogram"]["window"][1] < high
    finally:
        session.close()
    again = Session(path, settings=settings_for(WALKER), make_executor=SerialExecutor)
    try:
        assert again.snapshot()["job"] is None
    finally:
        again.close()


def test_slices_are_shown_as_they_come(featured: Path, tmp_path: Path, gate: Gate) -> None:
    source = RunStore.open(featured).info["input"]["path"]
    gate.open.clear()
    session = Session(source, tmp_path / "new.zarr", settings=settings_for(WALKER), make_executor=lambda: gate)
    try:
        assert gate.reached.wait(60)
        session._look()
        assert session.snapshot()["tomogram"]["version"] == "part1"
        assert session.snapshot()["job"]["stage"] == "ingest"
        session.act("kind/add", {"name": "early"})
        session.act("click/add", {"kind": "early", "position": [5, 5, 5]})
        with pytest.raises(BusyError):
            session.act("like", {"kind": "early"})
        gate.open.set()
        snapshot = idle(session)
        assert snapshot["tomogram"]["version"] != "part1"
        assert [kind["name"] for kind in snapshot["kinds"]] == ["early"]
    finally:
        gate.open.set()
        session.close()


def test_jobs_run_one_at_a_time_and_end_as_they_are_told() -> None:
    ended: list[tuple[str, BaseException | None]] = []
    begun, go = threading.Event(), threading.Event()
    jobs = Jobs(SerialExecutor, lambda: None, lambda job, error: ended.append((job.words, error)), lambda: None)

    def units(executor: Any, progress: JobProgress) -> None:
        line = progress.stage("features", 10, 2, "cpu")
        for _ in range(8):
            line.advance()
            begun.set()
            assert go.wait(10)

    job = Job("first", units)
    jobs.start(job)
    assert begun.wait(10)
    with pytest.raises(BusyError):
        jobs.start(Job("second", units))
    assert (job.stage, job.done, job.total) == ("features", 3, 10)
    assert job.seconds_left is not None
    jobs.cancel()
    go.set()
    assert jobs.wait(10)
    assert job.done < 10
    assert isinstance(ended[0][1], JobCancelled)

    def fails(executor: Any, progress: JobProgress) -> None:
        raise ValueError("no\nsense")

    jobs.start(Job("third", fails))
    assert jobs.wait(10)
    assert isinstance(ended[1][1], CryosamError)
    assert "\n" not in str(ended[1][1])
    jobs.close()
    with pytest.raises(BusyError):
        jobs.start(job)
