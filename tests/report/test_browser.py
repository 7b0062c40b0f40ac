"""The page in a browser without a network, at two window sizes: it loads whole, fits, and answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryosam_dask.io.points.files import read_points
from cryosam_dask.report import write_report

DESKTOP, PHONE = (1440, 900), (390, 844)
COUNT = 8


@pytest.fixture(scope="module")
def page_file(make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = make_run(folder / "run.zarr", names=("ball", "other"), count=COUNT)
    truth = folder / "truth.csv"
    truth.write_text("z,y,x\n20,30,40\n10,11,12\n")
    write_report(store.url, folder / "report.html", truth=truth, radius=10)
    return folder / "report.html"


class Window:
    """A page in a browser window of its own, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int]) -> None:
        self.path, self.said, self.asked = path, list[str](), list[str]()
        width, height = size
        self.page = browser.new_page(viewport={"width": width, "height": height}, offline=True)
        self.page.set_default_timeout(120_000)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.absolute().as_uri())

    def check(self) -> None:
        """Nothing was asked for from elsewhere, and no error said."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith("data:")] == [self.path.absolute().as_uri()]


@pytest.fixture(scope="module", params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Window:
    return Window(browser, page_file, request.param)


@pytest.fixture
def page(window: Window) -> Iterator[Any]:
    yield window.page
    window.check()


def test_everything_is_there_and_fits(page: Any) -> None:
    assert page.locator("h1").inner_text() == "TS_01.mrc"
    headings = page.locator("h2").all_inner_texts()
    assert [h for h in headings if h != "State of the run"] == [
        "Methods", "Slices", "ball", "other", "Timings", "Run and settings",
    ]  # fmt: skip
    pictures = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert len(pictures) > 40
    assert all(whole and width > 0 and height > 0 for whole, width, height in pictures)
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    # all three slices are seen, each with its mask exactly over it, and the z and x slices are of equal height
    boxes = page.evaluate(
        "[...document.querySelectorAll('#q1 > .panel')].map(p => [p, ...p.children].map(c => {"
        "const r = c.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]}))"
    )
    assert len(boxes) == 3
    for panel, *layers in boxes:
        assert panel[2] > 20
        assert len(layers) == 3
        assert np.allclose(layers, panel, atol=0.5)
    assert boxes[0][0][3] == pytest.approx(boxes[1][0][3], abs=2)
    assert boxes[0][0][2] / boxes[0][0][3] == pytest.approx(90 / 64, rel=0.02)


def test_it_is_painted_in_light_and_dark(page: Any) -> None:
    from PIL import Image

    brightness = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)
        assert pixels.std() > 8
        assert len(np.unique(pixels)) > 30
        brightness.append(np.median(pixels))
    page.emulate_media(color_scheme="light")
    assert brightness[0] > 200
    assert brightness[1] < 60


def test_the_table_sorts_searches_and_is_given_whole(page: Any, tmp_path: Path) -> None:
    table = page.locator("#picks-1")

    def scores() -> list[float]:
        return [float(text) for text in table.locator("tbody tr:not([hidden]) td:nth-child(5)").all_inner_texts()]

    given = scores()
    assert given == sorted(given, reverse=True)
    assert len(given) == COUNT
    header = table.locator("th", has_text="Score")
    for order in ("descending", "ascending"):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        assert scores() == sorted(given, reverse=order == "descending")
    table.locator("th button", has_text="Instance").click()
    assert header.get_attribute("aria-sort") is None
    search = page.get_by_label("Search the picks of ball")
    search.fill("yes")
    assert len(scores()) == 1
    search.fill("")
    assert len(scores()) == COUNT
    with page.expect_download() as wanted:
        page.locator("[data-for=picks-1] a").click()
    wanted.value.save_as(tmp_path / "picks.csv")
    assert wanted.value.suggested_filename == "ball_picks.csv"
    assert len(read_points(tmp_path / "picks.csv")) == COUNT


def test_slices_are_leafed_through_and_layers_taken_off(page: Any) -> None:
    slides = page.locator("#gallery .slides > figure")
    shown = page.locator("#gallery .slides > figure:visible")
    assert slides.count() == 15
    assert shown.count() == 1
    before = page.locator("#gallery output").inner_text()
    page.get_by_label("Next slice").click()
    assert shown.count() == 1
    assert page.locator("#gallery output").inner_text() != before
    mask = shown.locator(".mask")
    assert mask.is_visible()
    page.locator("#slices .masks").uncheck()
    assert not mask.is_visible()
    page.emulate_media(media="print")
    assert shown.count() == 15
    page.emulate_media(media="screen")


def test_hostile_names_do_nothing(browser: Any, hostile_page: Path) -> None:
    window = Window(browser, hostile_page, PHONE)
    assert "<script>" in window.page.locator("h1").inner_text()
    assert window.page.evaluate("typeof window.hit") == "undefined"
    assert window.page.locator("script").count() == 1
    width, inner = window.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    window.check()
