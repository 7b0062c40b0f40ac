"""The page in a browser: clicks arrive at the right voxels; all steps, from the first click to the exported file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from view_page_support import WEBGL, XY, XZ, YZ, Page, bright_spot, write_spot
from view_server_support import StandInSession, ingested

from cryosam_dask.types import Shape3
from cryosam_dask.view.serve import Server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(WEBGL) as started:
        yield started


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """`open_page(url, size) -> Page`. Whatever went wrong in the browser fails the test."""
    pages: list[Page] = []

    def make(url: str, size: tuple[int, int] = (1280, 800)) -> Page:
        pages.append(Page(browser, url, size))
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
