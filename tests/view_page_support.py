"""The page in a browser: opened, looked at, clicked in, and measured on its pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from PIL import Image

from cryosam_dask.types import Shape3

WEBGL = (
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-quic",
)
"""Arguments of a Chromium that draws with WebGL 2 in software, and asks for nothing by itself."""

PATIENCE = 60.0
XY, YZ, XZ = 0, 1, 2
"""Panels of slices, as Neuroglancer has them in its document."""


class Page:
    """A page of `cryosam view` in a browser, at a size in pixels.

    complete : whether all that the page asks for is there; otherwise it is neither waited for nor missed
    """

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = (1280, 800), *, complete: bool = True) -> None:
        self.tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.errors: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(f"{error}"))
        self.tab.on("response", self._note)
        self.complete = complete
        self.tab.goto(url)
        self.until("cryosam?.viewer?.shape")
        self.settled()

    def _note(self, response: Any) -> None:
        if self.complete and response.status >= 400 and "/api/" not in response.url:
            self.errors.append(f"{response.status} {response.url.partition('/data/')[2] or response.url[-60:]}")

    def js(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page, `cryosam` being what it shows."""
        return self.tab.evaluate(f"(() => {{ const {{ cryosam }} = globalThis; return {expression}; }})()")

    def until(self, expression: str, patience: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + patience
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never: {expression}; {self.errors[:3]}"
            self.tab.wait_for_timeout(30)

    def settled(self) -> None:
        """Wait until everything in the viewer is loaded and drawn."""
        self.tab.wait_for_timeout(120)  # layers follow what the page shows a moment later
        if not self.complete:
            return
        layers = "cryosam.viewer.viewer.layerManager.managedLayers"
        self.until(f"cryosam.viewer.viewer.isReady() && {layers}.length && {layers}.every((l) => !/^old/.test(l.name))")
        frames = "new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))"
        self.tab.evaluate(frames)
        self.tab.wait_for_timeout(50)

    def go_to(self, position: Sequence[float]) -> None:
        self.js(f"cryosam.viewer.goTo({[float(v) for v in position]})")
        self.settled()

    def view(self, **state: Any) -> None:
        """Change the viewer's own state, e.g. crossSectionScale."""
        self.tab.evaluate("(state) => { globalThis.cryosam.viewer.viewer.state.restoreState(state); }", state)
        self.settled()

    def panel(self, number: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a panel of slices, in pixels of the page."""
        boxes = self.tab.evaluate(
            """() => {
              const frame = document.querySelector("#viewer");
              const at = frame.getBoundingClientRect();
              return [...frame.contentDocument.querySelectorAll(".neuroglancer-panel")].map((panel) => {
                const box = panel.getBoundingClientRect();
                return [box.left + at.left, box.top + at.top, box.width, box.height];
              });
            }"""
        )
        return tuple(boxes[number])

    def middle(self, number: int) -> tuple[float, float]:
        """Where a panel shows the viewer's position."""
        left, top, width, height = self.panel(number)
        return left + width / 2, top + height / 2

    def picture(self) -> np.ndarray:
        """What is seen, (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")).astype(int)

    def color_at(self, x: float, y: float, around: int = 1) -> np.ndarray:
        """The mean colour of a few pixels."""
        pixels = self.picture()[round(y) - around : round(y) + around + 1, round(x) - around : round(x) + around + 1]
        return pixels.reshape(-1, 3).mean(0)

    def click(self, position: Sequence[float], number: int = XY) -> None:
        """Click on a voxel: the view is brought there first."""
        self.go_to(position)
        self.tab.mouse.click(*self.middle(number))

    def close(self) -> None:
        self.tab.close()


def bright_spot(page: Page, number: int) -> tuple[float, float]:
    """The middle of the only bright spot in a panel, in pixels of the page."""
    left, top, width, height = (round(v) for v in page.panel(number))
    grey = page.picture()[top + 40 : top + height - 60, left + 60 : left + width - 60].min(2)
    rows, columns = np.nonzero(grey > 128)
    assert len(rows), "no bright spot in sight"
    return left + 60 + columns.mean() + 0.5, top + 40 + rows.mean() + 0.5


def write_spot(path: Path, shape: Shape3, voxel_size: tuple[float, float, float], at: Shape3) -> Path:
    """A tomogram that is dark but for one voxel. voxel_size : z, y, x in Å"""
    values = np.random.default_rng(0).normal(scale=0.01, size=shape).astype(np.float32)
    values[at] = 1
    with mrcfile.new(path, values) as file:
        file.voxel_size = voxel_size[::-1]
    return path
