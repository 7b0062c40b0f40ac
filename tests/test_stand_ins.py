"""Encoders and segmenters that know the truth, up to noise: what the search makes of models that see well, or badly."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from whole_planes import WholeBodies, WholePlanesInfo

import cryosam_dask as cs
from cryosam_dask import models
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.models import catalog
from cryosam_dask.models.info import About, Cost
from cryosam_dask.outputs.queries import export_query
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.report import write_report
from cryosam_dask.settings import Settings
from cryosam_dask.stages import structure
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Float32, PromptedSegmenter, SliceEncoder

SHAPE = (36, 64, 64)
RADIUS = 6
CHANNELS = 24
GREYS = (0.0, 1.0, 2.0, 3.0)
"""Of the background and of three kinds, in a noise that leaves no doubt."""


# --- the models ---


def seeded(*seen: Array) -> np.random.Generator:
    """Noise that belongs to what is seen, as a model's answer does."""
    return np.random.default_rng([zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in seen])


@dataclass(frozen=True)
class KnowingEncoder:
    """A vector for each grey level, all with a part in common, and noise of `noise` times their energy."""

    levels: tuple[float, ...]
    noise: float
    name: str = "knowing"
    identity: str = "knowing-1"
    patch: int = 4
    channels: int = CHANNELS

    def encode(self, slices: Float32) -> Float32:
        vectors = np.random.default_rng(5).normal(size=(1 + len(self.levels), self.channels))
        vectors = vectors[:1] + vectors[1:]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        out = []
        for plane in slices:
            kinds = np.abs(plane[..., None] - np.array(self.levels, np.float32)).argmin(-1)
            a, b = (n // self.patch for n in plane.shape)
            tokens = vectors[kinds].reshape(a, self.patch, b, self.patch, -1).mean((1, 3))
            out.append(tokens + seeded(plane).normal(size=tokens.shape) * np.sqrt(self.noise / self.channels))
        return np.array(out, np.float32)


class KnowingSegmenter(WholeBodies):
    """The connected body of one grey level that the point is in, with noise at its border."""

    name, identity = "knowing-bodies", "knowing-bodies-1"

    def body(self, plane: Array, point: Float32) -> NDArray[np.bool_]:
        row, column = np.clip(np.rint(point).astype(int), 0, np.array(plane.shape) - 1)
        bodies, _ = ndimage.label(np.abs(plane.astype(int) - int(plane[row, column])) < 30)
        body = bodies == bodies[row, column]
        if body.mean() > 0.3:  # the background
            return np.zeros(plane.shape, bool)
        border = ndimage.binary_dilation(body) & ~ndimage.binary_erosion(body, border_value=1)
        return body ^ (border & (seeded(plane, point).uniform(size=body.shape) < 0.2))


@dataclass(frozen=True)
class KnowingEncoderInfo:
    """The entry of `KnowingEncoder`; levels in deviations from the tomogram's mean."""

    levels: tuple[float, ...]
    noise: float
    name: str = "knowing"
    patch: int = 4
    channels: int = CHANNELS
    uses_torch: bool = False
    weights_bytes: int = 0
    about: ClassVar[About] = About("the truth", defaults={"match.count": "auto"})

    @property
    def version(self) -> str:
        return "knowing-1"

    def source(self) -> None:
        return None

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        return KnowingEncoder(self.levels, self.noise)

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        return 100 * plane[0] * plane[1]

    def encode_cost(self, plane: tuple[int, int], tiles: Sequence[int]) -> Cost:
        return Cost()


@dataclass(frozen=True)
class KnowingSegmenterInfo(WholePlanesInfo):
    """The entry of `KnowingSegmenter`."""

    name: str = KnowingSegmenter.name
    version: str = KnowingSegmenter.identity

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        return KnowingSegmenter()


# --- tomograms ---


@dataclass(frozen=True)
class Scene:
    """A tomogram that is its own truth: the kind of each voxel, and the centres of the particles of each kind."""

    path: Path
    kinds: NDArray[np.int64]
    centres: dict[int, NDArray[np.int64]]

    @property
    def levels(self) -> tuple[float, ...]:
        """Grey levels in deviations from the mean."""
        values = np.array(GREYS)[self.kinds]
        return tuple(((np.array(GREYS) - values.mean()) / values.std()).tolist())


def write(path: Path, kinds: NDArray[np.int64], centres: dict[int, NDArray[np.int64]], seed: int) -> Scene:
    values = np.array(GREYS)[kinds] + 0.05 * np.random.default_rng(seed).normal(size=kinds.shape)
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return Scene(path, kinds, centres)


def balls(path: Path, counts: dict[int, int], seed: int) -> Scene:
    """Balls of several kinds that do not touch."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).transpose(1, 2, 3, 0)
    places = np.array([(z, y, x) for z in (9, 26) for y in range(9, 64, 15) for x in range(9, 64, 15)])
    rng.shuffle(places)
    kinds, centres = np.zeros(SHAPE, np.int64), {}
    for kind, count in counts.items():
        own, places = places[:count] + rng.integers(-1, 2, (count, 3)), places[count:]
        centres[kind] = own
        for centre in own:
            kinds[((grid - centre) ** 2).sum(-1) <= RADIUS**2] = kind
    return write(path, kinds, centres, seed)


def use(scene: Scene, noise: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec of models that know a tomogram's truth up to this noise."""
    models.clear()
    monkeypatch.setitem(catalog.ENCODERS, "knowing", KnowingEncoderInfo(scene.levels, noise))
    monkeypatch.setitem(catalog.SEGMENTERS, KnowingSegmenter.name, KnowingSegmenterInfo())
    return f"knowing+{KnowingSegmenter.name}"


def search(spec: str, **changed: Any) -> Settings:
    """Settings for balls, which are farther apart than prompts."""
    return settings_for(spec, {"match.nms_radius": 7.0, "match.structure": "particle", **changed})


def right(run: Path, centres: NDArray[np.int64]) -> tuple[int, int]:
    """How many of the picks are within half a radius of one of the centres, and how many are not."""
    points = picks.read(RunStore.open(run), "ball")[["z", "y", "x"]].to_numpy()
    near = [np.linalg.norm(centres - point, axis=1).min() < RADIUS / 2 if len(centres) else False for point in points]
    return int(np.sum(near)), len(near) - int(np.sum(near))


def unsure(driver: Driver) -> list[str]:
    return [note for note in driver.notes if "stands out from the background, so only" in note]


# --- what is found ---


@pytest.mark.parametrize("noise", [0.3, 1.5, 2.5])
def test_the_kind_is_found_and_few_others(noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = balls(tmp_path / "t.mrc", {1: 11, 2: 11, 3: 10}, 0)
    settings = search(use(scene, noise, monkeypatch))
    driver = cs.run(scene.path, [scene.centres[1][0]], tmp_path / "r.zarr", name="ball", settings=settings, workers=0)
    good, false = right(tmp_path / "r.zarr", scene.centres[1])
    assert good >= 10
    assert false <= 2
    assert not unsure(driver)
    assert any("are of the kind with a probability of" in note for note in driver.notes)


def test_nothing_is_made_of_a_tomogram_without_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of other kinds, which stand out from the background too."""
    clicked, other = balls(tmp_path / "a.mrc", {1: 4, 2: 4}, 0), balls(tmp_path / "b.mrc", {2: 14, 3: 14}, 1)
    settings = search(use(clicked, 1.0, monkeypatch))
    donor = Driver(tmp_path / "a.zarr", SerialExecutor())
    donor.ingest(clicked.path)
    donor.features(settings)
    donor.query("ball", [clicked.centres[1][0].tolist()], settings)
    export_query(tmp_path / "a.zarr", tmp_path / "ball.json")
    use(other, 1.0, monkeypatch)
    driver = cs.run(other.path, None, tmp_path / "b.zarr", query=tmp_path / "ball.json", name="ball", workers=0)
    assert len(picks.read(RunStore.open(tmp_path / "b.zarr"), "ball")) <= 3
    assert RunStore.open(tmp_path / "b.zarr").group(layout.query("ball")).attrs[structure.OWN] > 0.7, "of the donor"
    (note,) = unsure(driver)
    assert note.startswith("ball: little or nothing stands out from the background")
    assert "match.count" in note
    write_report(tmp_path / "b.zarr", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert note.removeprefix("ball: ").capitalize()[:60] in page
    assert "Scores are the similarity with the query" in page


def test_features_of_mere_noise_give_few_picks_and_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = balls(tmp_path / "t.mrc", {1: 11, 2: 11, 3: 10}, 0)
    settings = search(use(scene, 40.0, monkeypatch), **{"match.tau_sim": 0.1})
    driver = cs.run(scene.path, [scene.centres[1][0]], tmp_path / "r.zarr", name="ball", settings=settings, workers=0)
    assert right(tmp_path / "r.zarr", scene.centres[1])[1] <= 3
    assert unsure(driver)


def test_an_extended_structure_is_covered_from_one_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, y, x = np.indices(SHAPE)
    wall = np.abs(y - 20 - 5 * np.sin(x / 14)) <= 3
    scene = balls(tmp_path / "balls.mrc", {2: 16}, 0)
    kinds = np.where(y > 36, scene.kinds, 0)
    kinds[wall] = 1
    scene = write(tmp_path / "wall.mrc", kinds, {}, 0)
    settings = settings_for(use(scene, 1.0, monkeypatch), {"match.structure": "extended", "match.nms_radius": 28.0})
    cs.run(scene.path, [(18, 20, 0)], tmp_path / "r.zarr", name="wall", settings=settings, workers=0)
    labels = RunStore.open(tmp_path / "r.zarr").read(layout.labels("wall")) > 0
    assert 2 * (labels & wall).sum() / (labels.sum() + wall.sum()) >= 0.8
