"""What the methods paragraph says of models, and what it cites for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cryosam_dask import models
from cryosam_dask.models import catalog
from cryosam_dask.models.info import About
from cryosam_dask.pipeline import settings_for
from cryosam_dask.report.facts import facts
from cryosam_dask.report.methods import methods
from cryosam_dask.report.queries import Budget, query

from .conftest import MakeRun

TOY = "Toy A. A trick with averages. Journal of Toys 1, 2026."


@pytest.fixture(scope="module")
def said(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`said(encoder, segmenter)`: the methods section of a run that is said to be made with these, references below."""
    store = make_run(tmp_path_factory.mktemp("methods") / "run.zarr")
    about, asked = facts(store), query(store, "ball", 1, "red", Budget.of(1), None, True)

    def section(encoder: str, segmenter: str) -> str:
        changed = {"features.encoder": encoder, "propagation.segmenter": segmenter}
        told = methods(store, about, [replace(asked, settings=settings_for("texture+random-walker", changed))])
        return "\n".join([*told.paragraphs, *told.references])

    return section


@pytest.mark.parametrize(
    ("rank", "cut", "reference"),
    [
        ("similarity", "cut by probabilities from a mixture of two groups of similarities [", "Efron B. Large-scale"),
        ("profile", "cut by the gap in their scores, became", "[1] Zhao Y"),
        ("descriptor", "cut by the highest expected F1 [", "Lipton ZC"),
    ],
)
def test_the_cut_is_told_as_it_was_found(
    rank: str, cut: str, reference: str, make_run: MakeRun, tmp_path: Path
) -> None:
    store = make_run(tmp_path / "run.zarr")
    asked = query(store, "ball", 1, "red", Budget.of(1), None, True)
    settings = settings_for("builtin", {"match.rank": rank, "match.count": "auto"})
    told = methods(store, facts(store), [replace(asked, settings=settings)])
    assert cut in "\n".join(told.paragraphs)
    numbered = [f"[{number}] {text}" for number, text in enumerate(told.references, 1)]
    assert any(reference in text for text in numbered)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder and a segmenter of which nothing is known but a row."""
    encoder: Any = replace(catalog.ENCODERS["texture"], name="toy", about=About("averages", (TOY,)))  # type: ignore[type-var]
    segmenter: Any = replace(catalog.SEGMENTERS["sam-vitb"], name="toy-disc", about=About("discs"))  # type: ignore[type-var]
    monkeypatch.setitem(catalog.ENCODERS, "toy", encoder)
    monkeypatch.setitem(catalog.SEGMENTERS, "toy-disc", segmenter)


@pytest.mark.parametrize("name", [*models.SEGMENTERS, "sam-vith=/w/own.pth", "toy-disc", "of-another-version"])
def test_sam_is_cited_for_sam_alone(said: Any, toys: None, name: str) -> None:
    text = said("texture", name)
    microscopy, mobile = name.endswith("-em-organelles"), name.startswith("mobile-sam")
    assert ("Segment anything." in text) == (name.startswith("sam-") or mobile)  # whose decoder is SAM's
    assert ("the Segment Anything Model [" in text) == (name.startswith("sam-") and not microscopy)
    assert ("trained on electron microscopy [" in text) == ("Segment Anything for Microscopy." in text) == microscopy
    assert ("MobileSAM" in text) == ("Faster Segment Anything:" in text) == mobile
    assert ("the Segment Anything Model 2 [" in text) == ("SAM 2: segment anything" in text) == name.startswith("sam2")
    assert ("a random walker [" in text) == ("Random walks for" in text) == (name == "random-walker")


@pytest.mark.parametrize("name", [*models.ENCODERS, "dino-vits8=/w/own.pth", "timm:vit_nothing", "toy", "of-another"])
def test_encoders_are_cited_by_what_they_are(said: Any, toys: None, name: str) -> None:
    text = said(name, "random-walker")
    for prefix, reference in {
        "dinov2-": "DINOv2: learning", "dinov3-": "DINOv3. arXiv", "dino-": "Emerging properties",
        "sam-": "Segment anything.", "timm:": "PyTorch image models", "toy": TOY,
    }.items():  # fmt: skip
        assert (reference in text) == name.startswith(prefix), prefix
    assert ("of a vision transformer [" in text) == (name not in ("texture", "toy", "of-another"))


def test_a_segmenter_of_volumes_has_no_planes_in_its_sentence(said: Any) -> None:
    text = said("texture", "particle-net")
    assert "looked at a box around each" in text
    assert "plane to plane" not in text
    assert "Tian Z" in text


def test_models_that_are_not_known_get_a_plain_sentence(said: Any) -> None:
    """Of a run that another version made; nothing is cited for them, and no path is told."""
    text = said("vit-x=/w/x.pth", "sam9=/w/y.pth")
    assert "were encoded as tokens of a slice encoder (vit-x" in text
    assert "self-prompting of a promptable segmentation model (sam9)" in text
    assert "/w/" not in text
    assert len(text.splitlines()) == 3 + 3, "paragraphs, and the references of the method, Dask and Zarr"


def test_references_are_numbered_in_their_order(said: Any, toys: None) -> None:
    text = said("toy", "sam-vitb")
    assert "encoded as averages [4]" in text
    assert "the Segment Anything Model [5]" in text
    assert text.splitlines()[-2:] == [TOY, models.SEGMENTERS["sam-vitb"].about.references[0]]
