"""A model that is added is its module and a row: settings, plans, runs, `info` and reports know it by its entry."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner
from whole_planes import WholePlanes, WholePlanesInfo

import cryosam_dask as cs
from cryosam_dask import models
from cryosam_dask.cli import app
from cryosam_dask.errors import ModelError
from cryosam_dask.models import catalog
from cryosam_dask.models.catalog import about_encoder, about_segmenter
from cryosam_dask.models.info import About, Cost
from cryosam_dask.models.vit_catalog import VITS
from cryosam_dask.models.weights import Source
from cryosam_dask.pipeline import settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.types import Array, Float32, Prediction, PromptedSegmenter, SliceEncoder

ROOT = Path(cs.__file__).parent
TRICK = "Toy A. A trick with averages. Journal of Toys 1, 2026."


class ToyEncoder:
    """The mean and the deviation of each 2 × 2 voxels."""

    name, identity, patch, channels = "toy", "toy-3", 2, 2

    def encode(self, slices: Float32) -> Float32:
        n, a, b = slices.shape
        blocks = slices.reshape(n, a // 2, 2, b // 2, 2)
        return np.stack([blocks.mean((2, 4)), blocks.std((2, 4))], -1).astype(np.float32)


@dataclass(frozen=True)
class ToyEncoderInfo:
    name: str = "toy"
    version: str = "toy-3"
    patch: int = 2
    channels: int = 2
    uses_torch: bool = False
    weights_bytes: int = 0
    about: ClassVar[About] = About(
        "means and deviations", (TRICK,), {"features.thickness": 3, "match.ratios": (4,), "match.count": 4}
    )

    def source(self) -> None:
        return None

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        return ToyEncoder()

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        return 8 * plane[0] * plane[1]

    def encode_cost(self, plane: tuple[int, int], tiles: Sequence[int]) -> Cost:
        return Cost(seconds=1000.0)


class ToySegmenter(WholePlanes):
    """What is brighter than the middle grey within 7 pixels of the point."""

    name, identity = "toy-disc", "toy-disc-1"

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        rows, columns = np.indices(plane)
        masks = np.stack([(np.hypot(rows - r, columns - c) < 7) & (embedding > 127) for r, c in points])[:, None]
        return Prediction(masks, masks.any((2, 3)).astype(np.float32), np.where(masks, 1, -1).astype(np.float32))


@dataclass(frozen=True)
class ToySegmenterInfo(WholePlanesInfo):
    name: str = "toy-disc"
    version: str = "toy-disc-1"
    about: ClassVar[About] = About("discs", defaults={"propagation.tau_iou": 0.25})

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        return ToySegmenter()


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec of a pair of models of which the catalog got a row each, and the program nothing else."""
    monkeypatch.setitem(catalog.ENCODERS, "toy", ToyEncoderInfo())
    monkeypatch.setitem(catalog.SEGMENTERS, "toy-disc", ToySegmenterInfo())
    return "toy+toy-disc"


def test_settings_are_those_that_the_entries_ask_for(toys: str) -> None:
    settings, plain = settings_for(toys), Settings.model_fields["match"].default
    assert (settings.features.encoder, settings.features.thickness) == ("toy", 3)
    assert settings.match == plain.model_copy(update={"ratios": (4,), "count": 4})
    assert (settings.propagation.segmenter, settings.propagation.tau_iou) == ("toy-disc", 0.25)
    assert settings.propagation.rule == "guarded", "the published rules are SAM's"
    with pytest.raises(ModelError, match=r"encoder 'toys' is unknown; did you mean toy\? Known: .*dinov2"):
        settings_for("toys+toy-disc")


def test_a_plan_goes_by_what_the_entries_say(toys: str, ball_tomogram: Path) -> None:
    asked = ["plan", str(ball_tomogram), "--models", toys, "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.output)
    seconds = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    assert 1000 * (37 + 62 + 90) <= seconds["features"] < 1.01 * 1000 * (37 + 62 + 90)
    embeddings = next(each for each in plan["stored"] if each["kind"] == "embeddings")
    assert embeddings["compressed"] == pytest.approx(embeddings["bytes"] / 2)


def test_a_run_is_made_with_them_and_told_in_their_words(toys: str, ball_tomogram: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "run.zarr", tmp_path / "report.html"
    models.clear()
    cs.run(ball_tomogram, [(20, 20, 20)], out, name="ball", models=toys, workers=0)
    tree = cs.open_run(out)
    assert tree["labels/ball/scale0"]["labels"].values[20, 20, 20] > 0
    result = CliRunner().invoke(app, ["info", str(out)])
    assert result.exit_code == 0, result.output
    assert "toy" in result.output
    assert CliRunner().invoke(app, ["report", str(out), "-o", str(page)]).exit_code == 0
    text = page.read_text()
    for words in (
        "were encoded as means and deviations [4] (toy, version 3, in float32)",
        "self-prompting of discs (toy-disc, version 1)",
        TRICK,
    ):
        assert words in text, words
    assert "Segment" not in text, "a segmenter that is not SAM"
    assert "vision transformer" not in text


def test_an_entry_names_settings_of_its_own_parts_that_exist() -> None:
    for name in models.ENCODERS:
        assert {key.split(".")[0] for key in about_encoder(name).defaults} <= {"features", "match"}
        settings_for(f"{name}+random-walker")
    for name in models.SEGMENTERS:
        parts = {"match"} if name in catalog.VOLUME_SEGMENTERS else {"propagation"}
        assert {key.split(".")[0] for key in about_segmenter(name).defaults} <= parts
        settings_for(f"texture+{name}")


def test_weights_have_an_address_or_the_model_a_version() -> None:
    for row in (*models.ENCODERS.values(), *models.SEGMENTERS.values()):
        if row.version is not None:
            assert row.source() is None
        elif row.name not in VITS or VITS[row.name].address is not None:
            assert isinstance(row.source(), Source)


def test_no_name_of_a_model_is_tested_outside_its_package() -> None:
    """But for the tables of the paper, which name the encoders that were compared, as data."""
    names = {*models.ENCODERS, *models.SEGMENTERS}
    families = {"sam", "dino", "dinov2", "dinov3", "timm", "timm:", "sam-", "dino-", "dinov2-", "dinov3-"}
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).as_posix()
        if part.startswith("models/") or part == "published/paper.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not constants & names, part
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Compare))
        tested = {leaf.value for call in calls for leaf in ast.iter_child_nodes(call) if isinstance(leaf, ast.Constant)}
        assert not (tested & families) - {"timm"}, part
