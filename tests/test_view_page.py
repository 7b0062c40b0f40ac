"""The page in a browser: clicks arrive at the right voxels; all steps, from the first click to the exported file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsers import chromium
from view_page_support import WEBGL, XY, XZ, YZ, Page, bright_spot, write_spot
from view_server_support import StandInSession, add_picks, ball, ingested

from cryosam_dask.demo import write_simulation
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.store import picks, reviews
from cryosam_dask.store.clicks import ClickLog
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Shape3
from cryosam_dask.viewer.serve import Server
from cryosam_dask.viewer.session import Session

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(WEBGL) as started:
        yield started


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """`open_page(url, size) -> Page`. Whatever went wrong in the browser fails the test."""
    pages: list[Page] = []

    def make(url: str, size: tuple[int, int] = (1280, 800), **options: bool) -> Page:
        pages.append(Page(browser, url, size, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.close()
        assert not page.errors


def empty_kind(name: str = "ball") -> dict[str, Any]:
    """A kind of which there is nothing yet, as a snapshot has it."""
    nothing = {"similarity": None, "candidates": None, "picks": None, "clicks": []}
    decided = {"accepted": 0, "rejected": 0, "added": 0}
    return {"name": name, "color": "#ff0000", "query": "none", "refined": False, "decided": decided, **nothing}


def look(session: StandInSession) -> None:
    """Give a session the rest of what a snapshot says of its run."""
    store = session.store
    run = {"tomogram": "t.mrc", "shape": list(store.shape), "voxel_size": list(store.voxel_size), "features": False}
    session.change(run={**session.state["run"], **run, "report": False}, kinds=[empty_kind()])
    session.state["tomogram"] |= {"range": [-0.5, 1.5], "window": [0, 1]}


# Clicks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "voxel_size"), [((37, 63, 91), (10, 10, 10)), ((41, 71, 55), (20, 10, 13))], ids=["odd", "anisotropic"]
)
def test_a_click_arrives_at_the_voxel_that_is_seen_there(
    open_page: Callable[..., Page], tmp_path: Path, shape: Shape3, voxel_size: tuple[float, float, float]
) -> None:
    spot = (shape[0] - 14, 20, shape[2] - 21)
    session = StandInSession(ingested(write_spot(tmp_path / "t.mrc", shape, voxel_size, spot), tmp_path / "r.zarr"))
    look(session)
    with Server(session) as server:
        page = open_page(server.url)
        page.view(showAxisLines=False, showScaleBar=False, showDefaultAnnotations=False)
        for panel, off in ((XY, (0, 9, -8)), (XZ, (5, 0, 7)), (YZ, (-6, 4, 0))):
            for scale in (0.22, 0.7):
                page.view(crossSectionScale=scale)
                page.go_to([a + b for a, b in zip(spot, off, strict=True)])
                page.tab.mouse.click(*bright_spot(page, panel))
                page.tab.wait_for_timeout(150)
                name, body = session.acted[-1]
                assert (name, body["position"], body["positive"]) == ("click/add", list(spot), True), (panel, scale)
        assert len(session.acted) == 6


def test_clicks_show_their_masks_in_the_colour_of_their_kind(
    open_page: Callable[..., Page], ball_run: RunStore
) -> None:
    session = StandInSession(ball_run)
    look(session)
    mask, box = ball((20, 20, 20))
    session.previews["c1.1"] = Instance(0, box, mask, 1.0, {})
    told = {"state": "done", "doubts": [], "diameter_nm": 13.0, "voxels": int(mask.sum()), "box": list(box)}
    clicks = [{"id": "c1", "position": [20, 20, 20], "positive": True, "preview": "c1.1", **told}]
    session.change(kinds=[{**empty_kind(), "clicks": clicks}])
    with Server(session) as server:
        page = open_page(server.url)
        picture = "document.querySelector('#clicks img')"
        page.until(f"{picture}?.naturalHeight > 0")
        sides = page.tab.evaluate(
            f"(({{ x, y, width, height }}) => [x, y, width, height])({picture}.getBoundingClientRect())"
        )
        left, top, width, height = sides
        assert width == height == 32
        seen = page.picture()[int(top) : int(top + height), int(left) : int(left + width)]
        assert (seen[..., 0] - seen[..., 2] > 60).sum() > 20, "the outline of the mask is yellow"
        # the colour is the run's, which all pages show
        page.tab.fill("#kind-list input[type=color]", "#00ff80")
        page.tab.wait_for_timeout(50)
        name, body = session.acted[-1]
        assert (name, body["name"], body["color"]) == ("kind/color", "ball", "#00ff80")


# What goes wrong, and what is large -----------------------------------------------------------------------------------


class ManyPicks(StandInSession):
    """A session with as many picks as one likes, some of them doubtful."""

    count = 40

    def picks(self, name: str) -> dict[str, Any]:
        n, rng = self.count, np.random.default_rng(0)
        shape = self.store.shape
        return {
            "instances": list(range(1, n + 1)),
            "positions": rng.integers(0, shape, (n, 3)).tolist(),
            "scores": np.linspace(1, 0, n).tolist(),
            "doubts": np.linspace(0, 1, n).tolist(),
            "voxels": [100] * n,
            "diameter_nm": [5.0] * n,
            "verdicts": ["undecided"] * n,
        }


@pytest.fixture(scope="module")
def ball_run(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = ingested(ball_tomogram, tmp_path_factory.mktemp("balls") / "r.zarr")
    add_picks(store, "ball", [(20, 20, 20), (18, 44, 24)])
    return store


def found(session: ManyPicks, count: int, kinds: int = 1) -> ManyPicks:
    """A session in which something was found."""
    look(session)
    session.count = count
    picked = {"query": "made", "picks": {"version": "p1", "count": count, "complete": True}}
    others = [empty_kind(f"kind-{i}") for i in range(kinds - 1)]
    session.change(kinds=[*others, {**empty_kind(), **picked}])
    return session


def test_a_decision_counts_when_it_is_saved_and_not_before(open_page: Callable[..., Page], ball_run: RunStore) -> None:
    session = found(ManyPicks(ball_run), 40)
    with Server(session) as server:
        page = open_page(server.url, complete=False)
        page.tab.click("#step-review")
        page.tab.wait_for_selector("#card .facts")
        page.tab.route("**/api/review", lambda route: route.abort())
        page.tab.keyboard.press("a")
        page.tab.keyboard.press("r")
        page.until("/2 decisions not saved yet/.test(document.querySelector('#saved').innerText)")
        assert page.js("cryosam.picks.verdicts.every((v) => v === 'undecided')")
        assert page.tab.locator(".thumb.waits").count() == 2
        page.tab.unroute("**/api/review")
        page.until("/All decisions are saved/.test(document.querySelector('#saved').innerText)")
        told = [each for name, body in session.acted if name == "review" for each in body["decisions"]]
        assert [(each["instance"], each["verdict"]) for each in told] == [(40, "accepted"), (39, "rejected")]
        assert page.js("cryosam.picks.verdicts.slice(-2)") == ["rejected", "accepted"]
        # back to the last one, which is then decided otherwise
        page.tab.keyboard.press("b")
        page.tab.keyboard.press("a")
        page.until("cryosam.picks.verdicts.at(-2) === 'accepted'")


def test_picks_can_be_reviewed_as_they_are_segmented(open_page: Callable[..., Page], ball_run: RunStore) -> None:
    class SoFar(ManyPicks):
        def picks(self, name: str) -> dict[str, Any]:
            return super().picks(name) | {"complete": self.state["kinds"][0]["picks"]["complete"]}

    def segmented(count: int, complete: bool = False) -> None:
        session.count = count
        about = {"version": "p2" if complete else f"p1.{count}", "count": count, "complete": complete}
        session.change(kinds=[{**session.state["kinds"][0], "picks": about}])

    session = found(SoFar(ball_run), 3)
    segmented(3)
    with Server(session) as server:
        page = open_page(server.url, complete=False)
        numbers = "[...document.querySelectorAll('.thumb')].map((t) => Number(t.dataset.key.split(' ')[1]))"
        page.tab.click("#step-review")
        page.until("document.querySelectorAll('.thumb').length === 3")
        assert "3 picks so far" in page.tab.inner_text("#panel-review")
        assert page.tab.locator("#learn").count() == 0
        before, seen = page.tab.evaluate(numbers), page.tab.get_attribute(".thumb img", "src")
        segmented(6)
        page.until("document.querySelectorAll('.thumb').length === 6")
        # what is there stays where it is, with the picture that it has
        assert page.tab.evaluate(numbers)[:3] == before
        assert page.tab.get_attribute(".thumb img", "src") == seen
        place = page.js("cryosam.picks.positions[2]")
        page.tab.keyboard.press("r")
        page.until("cryosam.picks.verdicts[2] === 'rejected'")
        # a decision is about a place: the number is another pick's when all are there
        (told,) = [body["decisions"] for name, body in session.acted if name == "review"]
        assert told == [{"instance": 0, "position": place, "verdict": "rejected"}]
        segmented(7, complete=True)
        page.until("document.querySelectorAll('.thumb').length === 7")
        page.tab.wait_for_selector("#learn")
        page.until("cryosam.selected === '7'")


def test_the_page_says_that_the_server_is_gone_and_comes_back(
    open_page: Callable[..., Page], ball_run: RunStore
) -> None:
    session = found(ManyPicks(ball_run), 40)
    server = Server(session).start()
    page = open_page(server.url, complete=False)
    server.stop()
    page.until("!document.querySelector('#banner').hidden")
    assert "does not answer" in page.tab.inner_text("#banner")
    again = Server(session, port=server.port)
    again.guard = server.guard
    with again:
        page.until("cryosam.linked")
        session.change(messages=[{"id": 1, "kind": "error", "text": "the disk is full"}])
        page.until("/the disk is full/.test(document.querySelector('#status').innerText)")


def test_a_page_in_the_background_holds_no_connection(open_page: Callable[..., Page], ball_run: RunStore) -> None:
    def turn(state: str) -> None:
        page.tab.evaluate(
            f"Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }})"
        )
        page.tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    session = found(ManyPicks(ball_run), 3)
    with Server(session) as server:
        nobody = session.listeners
        page = open_page(server.url, complete=False)
        assert session.listeners == nobody + 1
        turn("hidden")
        end = time.monotonic() + 30
        while session.listeners > nobody:
            assert time.monotonic() < end
            page.tab.wait_for_timeout(50)
        session.change(messages=[{"id": 1, "kind": "note", "text": "meanwhile"}])
        turn("visible")
        page.until("/meanwhile/.test(document.querySelector('#status').innerText)")
        assert session.listeners == nobody + 1
        assert page.js("document.querySelector('#banner').hidden")


def test_what_the_server_says_is_text(open_page: Callable[..., Page], ball_run: RunStore) -> None:
    evil = "<img src=x onerror='window.hit=1'><b>bold</b>"
    session = found(ManyPicks(ball_run), 3)
    click = {"id": "1", "position": [3, 3, 3], "positive": True, "state": "failed", "preview": None, "doubts": [evil]}
    kinds = [{**session.state["kinds"][0], "name": evil, "clicks": [click], "picks": None}]
    messages = [{"id": 1, "kind": "error", "text": evil}]
    job = {"id": "1", "words": evil, "stage": evil, "done": 1, "total": 2, "seconds_left": 3.0, "cancelling": False}
    session.change(kinds=kinds, messages=messages, job=job, commands=[evil], resumable=evil)
    session.change(run={**session.state["run"], "tomogram": evil, "path": evil})
    with Server(session) as server:
        page = open_page(server.url)
        for step in ("find", "review", "export", "click"):
            page.tab.click(f"#step-{step}")
            page.tab.wait_for_timeout(50)
            assert page.tab.locator("img, b b").count() == 0
        assert page.js("window.hit ?? 0") == 0
        assert evil in page.tab.inner_text("#kind-list")
        assert evil in page.tab.inner_text("#status")


def test_ten_thousand_picks_and_fifty_kinds(open_page: Callable[..., Page], ball_run: RunStore) -> None:
    session = found(ManyPicks(ball_run), 10_000, kinds=50)
    with Server(session) as server:
        page = open_page(server.url, complete=False)
        page.tab.click("#step-review")
        page.tab.wait_for_selector("#card .facts")
        assert page.tab.locator(".thumb").count() < 60  # those in sight
        assert page.js("document.querySelector('#sheet').offsetHeight") > 100_000
        start = time.monotonic()
        for _ in range(10):
            page.tab.keyboard.press("a")
        page.until("cryosam.picks.verdicts.filter((v) => v === 'accepted').length === 10")
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
def test_everything_fits(open_page: Callable[..., Page], ball_run: RunStore, size: tuple[int, int]) -> None:
    with Server(found(ManyPicks(ball_run), 2)) as server:
        page = open_page(server.url, size)
        for step in ("click", "find", "review", "export"):
            page.tab.click(f"#step-{step}")
            page.settled()
            too_wide = """[...document.querySelectorAll("body, #side, #panel, #toolbar, #steps, #card, main")]
              .filter((e) => !e.hidden && e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.tagName)"""
            assert page.js(too_wide) == []
            assert page.js("document.querySelector('#toolbar').offsetHeight") < 45
            assert page.js("document.querySelector('#stage').offsetHeight") > 400


# All steps ------------------------------------------------------------------------------------------------------------


def redness(color: np.ndarray) -> float:
    return float(color[0] - color[1:].mean())


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, ...]]]:
    """A small tomogram, and voxels in the middle of ribosomes."""
    folder = tmp_path_factory.mktemp("simulated")
    changes = {"shape": (49, 117, 131), "seed": 3, "membranes": 0, "contrast": "dark"}
    write_simulation(folder / "tomo.mrc", "ribosome", changes, count=10, truth=folder / "truth.csv", species="ribosome")
    truth = pd.read_csv(folder / "truth.csv")
    inside = truth[truth.z.between(13, 36) & truth.y.between(14, 90) & truth.x.between(14, 106)]
    return folder / "tomo.mrc", [tuple(round(float(v)) for v in row) for row in inside[["z", "y", "x"]].to_numpy()]


def test_from_the_first_click_to_the_exported_file(
    open_page: Callable[..., Page], simulation: tuple[Path, list[tuple[int, ...]]], tmp_path: Path
) -> None:
    tomogram, places = simulation
    url = tmp_path / "r.zarr"
    session = Session(tomogram, url, make_executor=lambda: SerialExecutor("cpu"))
    with contextlib.closing(session), Server(session) as server:
        page = open_page(server.url)
        tab = page.tab

        # 1: the tomogram is seen. 2: a click, and its mask
        tab.fill("#kind-name", "ribosome")
        tab.press("#kind-name", "Enter")
        page.until("cryosam.snapshot.kinds[0]?.name === 'ribosome'")
        page.go_to(places[0])
        x, y = page.middle(XY)
        beside = (x + 12, y - 12)  # apart from the ring and the lines of the axes
        before = redness(page.color_at(*beside))
        tab.mouse.click(x, y)
        page.until("cryosam.snapshot.kinds[0].clicks[0]?.state === 'done'")
        page.settled()
        assert redness(page.color_at(*beside)) > before + 30
        assert "nm" in tab.inner_text("#clicks")
        tab.keyboard.press("2")
        page.click((2, 3, 4))
        page.until("cryosam.snapshot.kinds[0].clicks.length === 2")
        assert ClickLog(RunStore.open(url)).read().kinds["ribosome"].points(False) == [[2, 3, 4]]
        tab.click("#undo")
        page.until("cryosam.snapshot.kinds[0].clicks.length === 1")
        assert ClickLog(RunStore.open(url)).read().kinds["ribosome"].points(True) == [list(map(float, places[0]))]

        # 3: the similarity map
        tab.click("#like")
        page.until("cryosam.snapshot.kinds[0].similarity && !cryosam.snapshot.job")
        tab.fill("#threshold", "0")
        page.settled()
        yellow = page.picture()[..., 2].astype(int)
        tab.uncheck("#showSimilarity")
        page.settled()
        assert (page.picture()[..., 2] - yellow > 20).sum() > 500  # what was under the map is grey again

        # 4: all of them, and the cut
        tab.click("#find")
        page.until("cryosam.snapshot.kinds[0].picks?.complete && !cryosam.snapshot.job && cryosam.candidates")
        store = RunStore.open(url)
        assert page.js("cryosam.snapshot.kinds[0].picks.count") == len(picks.read(store, "ribosome"))
        tab.focus(".histogram")
        tab.keyboard.press("ArrowRight")
        page.until(
            "cryosam.snapshot.kinds[0].candidates.cut.chosen !== cryosam.snapshot.kinds[0].candidates.cut.automatic"
        )

        # 5: decisions, by keys and in the viewer
        tab.click("#step-review")
        tab.wait_for_selector("#card img")
        order = tab.evaluate("[...document.querySelectorAll('.thumb')].map((t) => Number(t.dataset.key.split(' ')[1]))")
        for key in "aar":
            tab.keyboard.press(key)
        page.until("cryosam.picks.verdicts.filter((v) => v !== 'undecided').length === 3")
        told = reviews.read(RunStore.open(url), "ribosome")
        assert [(d.instance, d.verdict) for d in told] == list(
            zip(order[:3], ["accepted", "accepted", "rejected"], strict=True)
        )
        last = page.js("(({ instances, positions }) => [instances.at(-1), positions.at(-1)])(cryosam.picks)")
        page.click(last[1])
        page.until(f"cryosam.selected === '{last[0]}'")
        tab.click("text=Add missing")
        page.click((4, 5, 6))
        page.until("cryosam.snapshot.kinds[0].decided.added === 1")
        assert reviews.read(RunStore.open(url), "ribosome")[-1].position == (4, 5, 6)

        # 6: learn. 7: export
        tab.click("#learn")
        page.until("cryosam.snapshot.kinds[0].refined && !cryosam.snapshot.job")
        tab.click("#step-export")
        tab.select_option("#format", "csv")
        tab.click("#export")
        with tab.expect_download() as download:
            tab.click("#files a")
        assert len(pd.read_csv(download.value.path())) == len(picks.read(RunStore.open(url), "ribosome"))
        assert f"cryosam query {url} --name ribosome" in tab.inner_text("#commands")
