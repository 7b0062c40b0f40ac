"""The session of the page: what it shows is in the run, and what it acknowledged is on the disk."""

from __future__ import annotations

import errno
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryosam_dask import geometry
from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.pipeline.integrity import verify
from cryosam_dask.stages.click import Looker
from cryosam_dask.store import clicks as store_clicks
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.viewer import tables
from cryosam_dask.viewer.session import Session, place_of

BALLS = ((20, 20, 20), (18, 44, 24), (22, 22, 66), (14, 46, 70))
WALKER = "texture+random-walker"


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def ingested(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("session") / "r.zarr"
    Driver(out, SerialExecutor()).ingest(ball_tomogram)
    return out


@pytest.fixture(scope="module")
def finished(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which all balls were found without the page."""
    out = shutil.copytree(ingested, tmp_path_factory.mktemp("finished") / "r.zarr")
    driver, settings = Driver(out, SerialExecutor()), settings_for(WALKER, {"match.structure": "particle"})
    driver.features(settings)
    driver.query("ball", [BALLS[0]], settings)
    driver.match("ball")
    driver.segment("ball")
    return out


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Open a session on a copy of a run, or on the same copy again: `opened(run)`."""
    every: list[Session] = []

    def open_one(run: Path, models: str = WALKER, by: str | None = None) -> Session:
        out = tmp_path / run.name
        if not out.exists():
            shutil.copytree(run, out)
        every.append(Session(out, settings=settings_for(models), make_executor=SerialExecutor, device="cpu", by=by))
        return every[-1]

    yield open_one
    for session in every:
        session.close()


def kind_of(session: Session, name: str = "ball") -> dict[str, Any]:
    return next(kind for kind in session.snapshot()["kinds"] if kind["name"] == name)


def done(session: Session) -> list[dict[str, Any]]:
    """The clicks of the first kind, once their masks are there."""
    return until(
        lambda: (c := session.snapshot()["kinds"][0]["clicks"]) and not any(x["state"] == "pending" for x in c) and c
    )


# Clicks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", ["builtin", WALKER])
def test_the_mask_of_a_click_is_that_of_the_query(
    models: str, ingested: Path, opened: Callable[..., Session], tmp_path: Path
) -> None:
    session = opened(ingested, models)
    session.act("kind/add", {"name": "ball"})
    session.act("click/add", {"kind": "ball", "position": [20, 21, 19], "positive": True})
    (click,) = done(session)
    assert click["state"] == "done"
    before = session.preview(click["preview"])
    assert before is not None
    assert click["voxels"] == before.size
    assert click["box"] == list(before.box)
    radius = geometry.equivalent_radius(before.size)
    assert click["diameter_nm"] == pytest.approx(2 * radius, abs=0.01)  # voxels of 1 nm
    session.act("like", {"kind": "ball"})
    until(lambda: session.snapshot()["job"] is None, 120)
    shown = kind_of(session)
    assert shown["query"] == "made"
    assert shown["similarity"] is not None
    group = stored.read(RunStore.open(session.desk.url), layout.group(layout.query("ball"), 0))
    np.testing.assert_array_equal(group.mask(0), before.mask)
    assert tuple(group.box[0].tolist()) == before.box
    after = session.preview(shown["clicks"][0]["preview"])
    assert after is not None
    np.testing.assert_array_equal(after.mask, before.mask)


def test_a_first_look_is_followed_by_the_mask_that_stays(ingested: Path) -> None:
    settings = settings_for("builtin").replace({"propagation.precision": "float32"})
    looker = Looker(RunStore.open(ingested), settings, "cpu")
    try:
        masks = list(looker.masks((20.0, 20.0, 20.0), lambda: None))
    finally:
        looker.close()
    assert [mask.final for mask in masks] == [False, True]
    assert all(mask.instance is not None for mask in masks)


def test_clicks_queue_and_an_undone_one_is_not_looked_at(
    ingested: Path, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, ...]] = []
    masks = Looker.masks

    def slow(self: Looker, point: Any, check: Callable[[], None]) -> Any:
        seen.append(tuple(point))
        time.sleep(0.3)
        yield from masks(self, point, check)

    monkeypatch.setattr(Looker, "masks", slow)
    session = opened(ingested)
    session.act("kind/add", {"name": "ball"})
    ids = [session.act("click/add", {"kind": "ball", "position": list(ball)})["id"] for ball in BALLS[:3]]
    assert [c["state"] for c in kind_of(session)["clicks"]] == ["pending"] * 3
    session.act("click/undo", {"kind": "ball"})
    session.act("click/remove", {"kind": "ball", "id": ids[0]})
    (click,) = done(session)
    assert click["id"] == ids[1]
    time.sleep(0.4)
    assert tuple(map(float, BALLS[2])) not in seen


def test_a_session_that_begins_anew_has_everything(ingested: Path, opened: Callable[..., Session]) -> None:
    first = opened(ingested)
    first.act("kind/add", {"name": "ball", "color": "#102030"})
    first.act("click/add", {"kind": "ball", "position": [20, 20, 20], "positive": True})
    first.act("click/add", {"kind": "ball", "position": [5, 5, 5], "positive": False})
    first.act("cut", {"kind": "ball", "cut": 0.5})
    first.close()
    again = opened(ingested)
    shown = kind_of(again)
    assert shown["color"] == "#102030"
    assert [(c["position"], c["positive"]) for c in shown["clicks"]] == [([20, 20, 20], True), ([5, 5, 5], False)]
    assert store_clicks.ClickLog(RunStore.open(again.desk.url)).read().kinds["ball"].cut == 0.5
    assert verify(again.desk.url).sound


def test_two_sessions_see_each_other(finished: Path, opened: Callable[..., Session]) -> None:
    one, two = opened(finished, by="ada"), opened(finished, by="bob")
    told: list[int] = []
    end = two.subscribe(lambda: told.append(two.snapshot()["revision"]))
    one.act("kind/add", {"name": "rod"})
    until(lambda: any(kind["name"] == "rod" for kind in two.snapshot()["kinds"]), 10)
    table = one.picks("ball")
    one.act("review", {"kind": "ball", "decisions": [decision(table, 0, "accepted")]})
    two.act("review", {"kind": "ball", "decisions": [decision(table, 1, "rejected")]})
    until(lambda: kind_of(two)["decided"] == {"accepted": 1, "rejected": 1, "added": 0}, 10)
    one.act("kind/color", {"name": "ball", "color": "#0A0B0C"})
    until(lambda: kind_of(two)["color"] == "#0a0b0c", 10)
    assert len(kind_of(two)["clicks"]) == 1
    assert one.picks("ball")["verdicts"][:2] == two.picks("ball")["verdicts"][:2] == ["accepted", "rejected"]
    assert told == sorted(set(told))
    end()


def decision(table: dict[str, Any], row: int, verdict: str) -> dict[str, Any]:
    return {"instance": table["instances"][row], "position": table["positions"][row], "verdict": verdict}


def test_a_query_made_without_the_page_is_a_kind_and_can_be_clicked_on(
    finished: Path, opened: Callable[..., Session]
) -> None:
    session = opened(finished)
    shown = kind_of(session)
    assert shown["query"] == "made"
    assert [c["position"] for c in shown["clicks"]] == [list(BALLS[0])]
    assert shown["picks"] == {**shown["picks"], "count": 4, "complete": True}
    session.act("click/add", {"kind": "ball", "position": list(BALLS[2])})
    shown = kind_of(session)
    assert shown["query"] == "stale"
    assert [c["position"] for c in shown["clicks"]] == [list(BALLS[0]), list(BALLS[2])]
    session.act("like", {"kind": "ball"})
    until(lambda: session.snapshot()["job"] is None, 120)
    assert kind_of(session)["query"] == "made"
    session.act("kind/remove", {"name": "ball"})
    assert session.snapshot()["kinds"] == []
    session.act("kind/add", {"name": "ball"})
    assert kind_of(session)["query"] != "none"  # what the run has of it stayed


def test_candidates_and_picks_are_listed(finished: Path, opened: Callable[..., Session]) -> None:
    session = opened(finished)
    places = session.candidates("ball")
    assert places["states"].count("prompt") == 1
    assert places["states"].count("kept") == kind_of(session)["candidates"]["kept"] == 3
    assert places["scores"] == sorted(places["scores"], reverse=True)
    table = session.picks("ball")
    assert table["instances"] == [1, 2, 3, 4]
    assert table["doubts"][0] == 0  # clicked
    assert all(0 <= doubt <= 1 for doubt in table["doubts"])
    assert max(table["doubts"]) == max(table["doubts"][1:])


def test_doubtful_picks_are_near_the_boundary_or_of_another_size() -> None:
    scores, sizes = np.array([0.99, 0.9, 0.55, 0.9]), np.array([100.0, 100, 100, 200])
    doubts = tables.doubts(scores, sizes, 0.5, 100.0)
    assert doubts.argmax() in (2, 3)
    assert set(np.argsort(-doubts)[:2].tolist()) == {2, 3}


def test_the_commands_do_the_same_without_the_page(
    ingested: Path, opened: Callable[..., Session], tmp_path: Path, cryosam: Callable[..., tuple[int, str, str]]
) -> None:
    session = opened(ingested)
    session.act("kind/add", {"name": "ball"})
    session.act("click/add", {"kind": "ball", "position": list(BALLS[0]), "positive": True})
    session.act("click/add", {"kind": "ball", "position": [33.5, 8, 45], "positive": False})
    session.act("find", {"kind": "ball", "count": 3})
    until(lambda: session.snapshot()["job"] is None, 120)
    expected = picks.read(RunStore.open(session.desk.url), "ball")
    assert len(expected)
    other = tmp_path / "by hand.zarr"
    for line in session.snapshot()["commands"]:
        program, *words = shlex.split(line.replace(session.desk.url, shlex.quote(str(other))))
        assert program == "cryosam"
        code, _, error = cryosam(*words, *(["--workers", "0"]))
        assert code == 0, (line, error)
    assert picks.read(RunStore.open(other), "ball").equals(expected)


# Faults ---------------------------------------------------------------------------------------------------------------

DECIDES = """
import sys
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import settings_for
from cryosam_dask.viewer.session import Session
session = Session(sys.argv[1], settings=settings_for("texture+random-walker"), make_executor=SerialExecutor)
for i in range(1000):
    session.act("review", {"kind": "ball", "decisions": [
        {"instance": i + 1, "position": [20, 20, float(i % 80)], "verdict": "rejected" if i % 2 else "accepted"}]})
    session.act("click/add", {"kind": "ball", "position": [10, 10 + i / 50, 7]})
    print(i, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(finished: Path, opened: Callable[..., Session], tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / finished.name)
    with subprocess.Popen([sys.executable, "-c", DECIDES, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 20:
                process.kill()
                break
        last = max([20, *(int(line) for line in process.stdout)])
    session = opened(finished)
    clicked = [c["position"] for c in kind_of(session)["clicks"]]
    assert clicked[: last + 2] == [list(BALLS[0]), *([10, 10 + i / 50, 7] for i in range(last + 1))]
    decided = session.desk.decided(RunStore.open(out), "ball")
    every = {d.position[2]: d.verdict for d in tables.reviews.read(RunStore.open(out), "ball")}
    assert all(every[float(i)] == ("rejected" if i % 2 else "accepted") for i in range(last + 1))
    assert decided
    assert verify(str(out)).sound


def test_a_full_disk_is_said_and_nothing_is_shown_as_made(
    finished: Path, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(finished)
    table = session.picks("ball")
    session.act("review", {"kind": "ball", "decisions": [decision(table, 0, "accepted")]})
    session.act("kind/add", {"name": "rod"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunArray, "set_basic_selection", full)
        patch.setattr(RunArray, "set_orthogonal_selection", full)
        for action, body in (
            ("review", {"kind": "ball", "decisions": [decision(table, 1, "rejected")]}),
            ("kind/add", {"name": "cube"}),
            ("click/add", {"kind": "rod", "position": [1, 2, 3]}),
        ):
            with pytest.raises(CryosamError, match="No space left"):
                session.act(action, body)
    session.act("review", {"kind": "ball", "decisions": [decision(table, 2, "rejected")]})
    session.act("click/add", {"kind": "rod", "position": [4, 5, 6]})
    assert session.picks("ball")["verdicts"] == ["accepted", "undecided", "rejected", "undecided"]
    assert [kind["name"] for kind in session.snapshot()["kinds"]] == ["ball", "rod"] or {"ball", "rod"} == {
        kind["name"] for kind in session.snapshot()["kinds"]
    }
    assert [c["position"] for c in kind_of(session, "rod")["clicks"]] == [[4, 5, 6]]


@pytest.mark.parametrize(
    ("action", "body", "words"),
    [
        ("kind/add", {"name": "../out"}, "can't be used"),
        ("kind/add", {"name": "BALL"}, "there is a kind"),
        ("kind/add", {"name": "kinds"}, "image of all kinds"),
        ("kind/add", {"name": 7}, "expected a text"),
        ("kind/add", {"name": "rod", "color": "red"}, "expected #rrggbb"),
        ("kind/rename", {"name": "ball", "to": "rod"}, "keeps its name"),
        ("kind/color", {"name": "ball", "color": "red"}, "expected #rrggbb"),
        ("kind/color", {"name": "rod", "color": "#000000"}, "no kind"),
        ("click/add", {"kind": "rod", "position": [1, 2, 3]}, "no kind"),
        ("click/add", {"kind": "ball", "position": [99, 2, 3]}, "99"),
        ("click/add", {"kind": "ball", "position": [1, 2]}, "three numbers"),
        ("click/add", {"kind": "ball", "position": [1, 2, float("nan")]}, "nan"),
        ("click/remove", {"kind": "ball", "id": "nothing"}, "no click"),
        ("find", {"kind": "ball", "count": 0}, "1 or more"),
        ("find", {"kind": "ball", "cut": "high"}, "expected a number"),
        ("learn", {"kind": "ball"}, "nothing was decided"),
        ("resume", {}, "nothing was cancelled"),
        ("review", {"kind": "ball", "decisions": []}, "expected a list"),
        ("review", {"kind": "ball", "decisions": [{"position": [1, 2, 3], "verdict": "good"}]}, "verdict 'good'"),
        ("export", {"kind": "ball", "format": "pdf"}, "unknown format"),
        ("export", {"kind": "../../etc", "format": "csv"}, "can't be used"),
        ("no/such", {}, "no action"),
    ],
)
def test_bad_requests_are_one_line(
    action: str, body: dict[str, Any], words: str, finished: Path, opened: Callable[..., Session]
) -> None:
    session = opened(finished)
    with pytest.raises(CryosamError, match=words) as error:
        session.act(action, body)
    assert "\n" not in str(error.value)
    assert session.snapshot()["job"] is None


def test_fifty_kinds_and_ten_thousand_picks_are_quick(
    finished: Path, opened: Callable[..., Session], tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / finished.name)
    store = RunStore.open(out, "r+")
    table = picks.read(store, "ball")
    many = table.loc[np.arange(10_000) % len(table)].reset_index(drop=True)
    many["instance"] = np.arange(1, 10_001)
    many[["z", "y", "x"]] = np.random.default_rng(0).uniform(0, 36, (10_000, 3))
    picks.write(store, "ball", many, dict(store.group(layout.picks("ball")).attrs) | {"kept": 10_000})
    session = opened(finished)
    session.desk.log(store).write([{"do": "kind", "kind": f"k{i}", "color": "#000000"} for i in range(49)])
    session.act("click/undo", {"kind": "ball"})
    start = time.process_time()
    assert len(session.picks("ball")["verdicts"]) == 10_000
    assert time.process_time() - start < 3
    assert len(session.snapshot()["kinds"]) == 50
    start = time.process_time()
    session._look()
    assert time.process_time() - start < 1


def test_a_run_is_beside_its_tomogram(ball_tomogram: Path, finished: Path, tmp_path: Path) -> None:
    path = shutil.copy(ball_tomogram, tmp_path / "a b.mrc")
    assert place_of(str(path), None, {}) == (str(tmp_path / "a b.zarr"), str(path))
    assert place_of(str(finished), None, {})[1] == str(ball_tomogram)
    (tmp_path / "a b.zarr").mkdir()
    (tmp_path / "a b.zarr" / "other").touch()
    assert place_of(str(path), None, {})[0] == str(tmp_path / "a b_run.zarr")
    with pytest.raises(InputError):
        place_of(str(tmp_path / "nothing.mrc"), None, {})
    with pytest.raises(InputError, match="is a run already"):
        place_of(str(finished), "x.zarr", {})


def test_exports_go_beside_the_run(finished: Path, opened: Callable[..., Session]) -> None:
    session = opened(finished)
    for kind, file in (("csv", "ball.csv"), ("relion5", "ball.relion5.star"), ("ome-zarr", "ball.ome-zarr.zarr.zip")):
        assert session.act("export", {"kind": "ball", "format": kind})["files"] == [file]
        path = session.download(file)
        assert path is not None
        assert path.stat().st_size
    assert session.download("../r.zarr/zarr.json") is None
