"""Masks that may not be one particle are said to be so, whichever segmenter made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mrcfile
import numpy as np
import pytest
from scipy import ndimage
from whole_planes import WholePlanes, WholePlanesInfo

from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels import doubt, hypotheses
from cryosam_dask.models import cache, catalog
from cryosam_dask.models.info import About
from cryosam_dask.models.random_walker import RandomWalkerInfo
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.report import write_report
from cryosam_dask.stages import doubts
from cryosam_dask.store import journal
from cryosam_dask.types import Array, Bool, Float32, Prediction, PromptedSegmenter

SHAPE = (36, 48, 96)
ALONE, PAIR, NOTHING = [17.0, 24, 14], [17.0, 24, 40], [18.0, 24, 79]


def ball(centre: tuple[float, float, float], radius: float, shape: tuple[int, int, int] = (40, 40, 40)) -> Bool:
    return np.asarray(sum((a - c) ** 2 for a, c in zip(np.indices(shape), centre, strict=True)) < radius**2)


# Kernels --------------------------------------------------------------------------------------------------------------


def test_two_bodies_that_touch_are_told_from_bodies_of_any_one_shape() -> None:
    z, y, x = np.indices((40, 40, 40)) - 20
    shell = ball((20, 20, 20), 14) & ~ball((20, 20, 20), 10)
    tube = (abs(z) < 14) & (y**2 + x**2 < 100) & (y**2 + x**2 > 36)
    rod = (abs(z) < 17) & (y**2 + x**2 < 16)
    disc = (abs(z) < 4) & (y**2 + x**2 < 256)
    bean = ball((20, 16, 20), 9) | ball((20, 24, 20), 9)
    for name, one in {"shell": shell, "tube": tube, "rod": rod, "disc": disc, "bean": bean}.items():
        assert not doubt.two_bodies(one), name
    assert doubt.two_bodies(ball((20, 10, 20), 8) | ball((20, 25, 20), 8))
    assert doubt.two_bodies(ball((20, 10, 20), 10) | ball((20, 26, 20), 7))
    both = np.pad(shell, ((0, 0), (0, 20), (0, 0))) | ball((20, 42, 20), 9, (40, 60, 40))
    assert doubt.two_bodies(both)
    large = np.kron(ball((20, 10, 20), 8) | ball((20, 25, 20), 8), np.ones((4, 4, 4), bool))
    assert doubt.two_bodies(large)
    assert not doubt.two_bodies(np.ones((3, 3, 3), bool))  # too small to tell


def test_a_border_is_a_change_of_density_that_other_places_do_not_have() -> None:
    mask = ball((7, 7, 7), 7, (15, 15, 15))
    by = doubt.reach_of(int(mask.sum()))
    density = np.random.default_rng(0).normal(size=[15 + 2 * by] * 3).astype(np.float32)
    assert not doubt.has_border(mask, density)
    at = (slice(by, by + 15),) * 3
    for contrast in (1.0, -1.0):
        body = density.copy()
        body[at] += contrast * mask
        assert doubt.has_border(mask, body)
        body[:by] = np.nan  # the tomogram ends above
        assert doubt.has_border(mask, body)
        shifted = np.roll(body, 9, 1)
        assert not doubt.has_border(mask, shifted)
    assert doubt.has_border(mask, np.full_like(density, np.nan))  # nothing is known: nothing is said


def test_sizes_that_differ_much_are_said_for_several_prompts() -> None:
    assert doubts.of_sizes([1400]) == [[]]
    assert doubts.of_sizes([1400, 1200, 2400]) == [[], [], []]
    (leaked, *others) = doubts.of_sizes([5429, 1381, 1200])
    assert leaked == ["its mask has 5429 voxels where 1381 are typical"]
    assert others == [[], []]
    assert all(doubts.of_sizes([5429, 1381]))  # of two, either may be the wrong one


# A run ----------------------------------------------------------------------------------------------------------------


class Greedy(WholePlanes):
    """Segments all that is as dense and touches, and a disc where nothing is: it leaks as a vision model may."""

    name, identity = "greedy", "greedy-1"

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        smooth = ndimage.gaussian_filter(embedding.astype(np.float32), 1.5)
        every = ndimage.label(smooth > np.median(smooth) + 30)[0]
        masks = []
        for row, col in np.rint(points).astype(int):
            at = np.indices(plane)
            disc = (at[0] - row) ** 2 + (at[1] - col) ** 2 < 49
            masks.append(every == every[row, col] if every[row, col] else disc)
        stack = np.stack(masks)[:, None]
        return Prediction(stack, np.full(stack.shape[:2], 0.9, np.float32), np.where(stack, 4, -4).astype(np.float32))

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        return np.array([ndimage.center_of_mass(one > 0) for one in logits], np.float32)


@dataclass(frozen=True)
class GreedyInfo(WholePlanesInfo):
    name: str = Greedy.name
    version: str = Greedy.identity
    about: ClassVar[About] = RandomWalkerInfo().about  # planes of five slices

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        return Greedy()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setitem(catalog.SEGMENTERS, "greedy", GreedyInfo())
    cache.clear()
    values = np.random.default_rng(0).normal(size=SHAPE)
    for centre in ((17, 24, 14), (17, 24, 40), (17, 24, 58)):
        values += 3.0 * ball(centre, 8, SHAPE)
    path = tmp_path / "TS_1.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    driver = Driver(tmp_path / "run.zarr", SerialExecutor())
    driver.ingest(path)
    driver.features(SETTINGS)
    return driver


SETTINGS = settings_for("texture+random-walker", {"match.rank": "similarity", "match.structure": "particle"})


def test_a_leak_into_a_neighbour_and_a_mask_of_nothing_are_said(driver: Driver, tmp_path: Path) -> None:
    leaking = settings_for("texture+greedy", {"match.rank": "similarity", "match.structure": "particle"})
    said = {}
    for name, point in {"alone": ALONE, "pair": PAIR, "nothing": NOTHING}.items():
        before = len(driver.notes)
        driver.query(name, [point], leaking)
        said[name] = doubts.read(driver.store, name)
        notes = driver.notes[before:]
        place = ",".join(f"{v:g}" for v in point)
        expected = [f"the prompt {place}: {' and '.join(said[name][0])}; {doubts.HELPS}"] if said[name][0] else []
        assert notes == expected
    assert said == {"alone": [[]], "pair": [[doubts.TWO]], "nothing": [[hypotheses.BORDERLESS]]}
    noted = [note for entry in journal.commands(driver.store) for note in entry["notes"]]
    assert len(noted) == 2
    write_report(driver.url, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("In doubt:") == 2
    assert doubts.TWO in page
