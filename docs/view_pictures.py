"""Takes the pictures of `cryosam view` in the documentation: `python docs/view_pictures.py [FOLDER]`.

It simulates a tomogram, goes through the page's steps in a browser at two sizes of its window, and makes a short
animated picture of them. It needs what the tests need: `pip install .[test]`, and a Chromium.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browsers import chromium
from view_page_support import WEBGL, Page

from cryosam_dask.demo import write_simulation
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.viewer.serve import Server
from cryosam_dask.viewer.session import Session

SMALL, LARGE = (1280, 800), (1920, 1080)
ANIMATED = (800, 500)
SECONDS = (1.2, 1.8, 1.8, 1.8, 2.5)
"""For which each frame of the animated picture stays."""
DONE = "!cryosam.snapshot.job"


class Camera:
    """Takes pictures of a page into a folder."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.frames: list[Image.Image] = []

    def picture(self) -> Image.Image:
        self.page.settled()
        self.page.tab.wait_for_timeout(400)
        return Image.open(io.BytesIO(self.page.tab.screenshot())).convert("RGB")

    def keep(self, name: str) -> None:
        """A picture for the documentation."""
        self.picture().quantize(256).save(self.folder / f"view-{name}.png", optimize=True)

    def frame(self) -> None:
        """A frame of the animated picture."""
        self.frames.append(self.picture().resize(ANIMATED, Image.Resampling.LANCZOS).quantize(64))

    def animate(self) -> None:
        first, *others = self.frames
        durations = [round(1000 * seconds) for seconds in SECONDS[: len(self.frames)]]
        first.save(
            self.folder / "view.gif", save_all=True, append_images=others, duration=durations, loop=0, optimize=True
        )


def steps(camera: Camera, places: list[list[float]]) -> None:
    """From the first click to the decisions."""
    page, tab = camera.page, camera.page.tab
    tab.fill("#kind-name", "ribosome")
    tab.press("#kind-name", "Enter")
    page.until("cryosam.snapshot.kinds.length === 1")
    camera.frame()
    for number, place in enumerate(places[:2]):
        page.click([round(v) for v in place])
        page.until(f"cryosam.snapshot.kinds[0].clicks[{number}]?.state === 'done'")
        tab.mouse.move(700, 20)
        if number == 0:
            camera.frame()
    camera.keep("click")
    tab.click("#like")
    page.until(f"cryosam.snapshot.kinds[0].similarity && {DONE}", 600)
    camera.frame()
    tab.click("#find")
    page.until(f"cryosam.snapshot.kinds[0].picks?.complete && {DONE} && cryosam.candidates", 600)
    camera.keep("find")
    tab.uncheck("#showSimilarity")
    camera.frame()
    tab.click("#step-review")
    tab.wait_for_selector("#card img")
    for key in "aara":
        tab.keyboard.press(key)
        tab.wait_for_timeout(200)
    page.until("cryosam.picks.verdicts.filter((v) => v !== 'undecided').length === 4")
    camera.frame()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, chromium(WEBGL) as browser:
        tomogram, truth = Path(made) / "tomo.mrc", Path(made) / "truth.csv"
        changes: dict[str, Any] = {"shape": (72, 176, 200), "seed": 3, "contrast": "dark"}
        write_simulation(tomogram, "ribosome", changes, count=18, truth=truth, species="ribosome")
        table = pd.read_csv(truth)
        middle = table[table.z.between(20, 52) & table.y.between(40, 136) & table.x.between(40, 160)]
        session = Session(tomogram, Path(made) / "run.zarr", make_executor=lambda: SerialExecutor("cpu"))
        with contextlib.closing(session), Server(session) as server:
            camera = Camera(Page(browser, server.url, SMALL), folder)
            steps(camera, middle[["z", "y", "x"]].to_numpy().tolist())
            camera.animate()
            camera.page.close()
            large = Camera(Page(browser, server.url, LARGE), folder)
            large.page.tab.click("#step-review")
            large.page.tab.wait_for_selector("#card img")
            large.keep("review")
            large.page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
