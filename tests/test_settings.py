"""Settings: presets, changes by name, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from cryosam_dask.errors import SettingsError
from cryosam_dask.models import preset
from cryosam_dask.pipeline import settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.stages.base import fingerprint

PAIRS = [
    ("builtin", "texture", "random-walker"),
    ("paper", "dinov2-vitl14", "sam-vith"),
    ("mixed", "texture", "sam-vitb=/tmp/w.pth"),
    ("other", "timm:vit_tiny_patch16_224", "random-walker"),
]


@pytest.fixture
def paper() -> Settings:
    return settings_for("paper")


@pytest.mark.parametrize("pair", PAIRS)
def test_presets_survive_json(pair: tuple[str, str, str]) -> None:
    made = preset(*pair)
    data = json.loads(json.dumps(made.model_dump(mode="json"), allow_nan=False))
    assert Settings.model_validate(data) == made
    assert fingerprint(Settings.model_validate(data).model_dump(mode="json")) == fingerprint(data)


def test_the_paper_preset_is_what_the_paper_says(paper: Settings) -> None:
    assert (paper.features.encoder, paper.propagation.segmenter) == ("dinov2-vitl14", "sam-vith")
    assert paper.propagation.tau_iou == 0.5
    assert paper.propagation.max_area == 1024
    assert (paper.propagation.rule, paper.propagation.merge) == ("plain", "union")
    assert (paper.features.thickness, paper.features.standardize, paper.propagation.plane_thickness) == (1, "none", 1)
    assert paper.match.ratios == (16, 8, 4)
    assert (paper.match.rank, paper.match.count, paper.match.center) == ("similarity", 512, False)
    assert paper.label.overlap == 0.8


def test_presets_differ_where_the_models_do() -> None:
    builtin, paper, mixed = settings_for("builtin"), settings_for("paper"), settings_for("texture+sam-vitb")
    assert mixed.features == builtin.features
    assert mixed.match == settings_for("texture+random-walker").match
    assert (mixed.match.rank, builtin.match.rank, paper.match.rank) == ("profile", "descriptor", "similarity")
    assert mixed.propagation.model_copy(update={"segmenter": "sam-vith"}) == paper.propagation


@pytest.mark.parametrize("section", ["features", "propagation", "match", "label", None])
def test_settings_are_frozen(paper: Settings, section: str | None) -> None:
    model = getattr(paper, section) if section else paper
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, name, getattr(model, name))


def test_replace_changes_what_is_named_in_a_copy(paper: Settings) -> None:
    changed = paper.replace({"match.tau_sim": 0.25, "match.ratios": [8, 4], "propagation.max_area": None})
    assert (changed.match.tau_sim, changed.match.ratios, changed.propagation.max_area) == (0.25, (8, 4), None)
    assert paper == settings_for("paper")
    assert changed.features == paper.features
    assert changed.replace({"match.tau_sim": 0.5, "match.ratios": (16, 8, 4), "propagation.max_area": 1024}) == paper
    assert paper.replace({}) == paper


@pytest.mark.parametrize(
    "name", ["match.tau", "tau_sim", "match", "match.", ".tau_sim", "preset", "preset.x", "", "m.a.b"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(paper: Settings, name: str) -> None:
    with pytest.raises(SettingsError, match=r"no setting .*known: features\.encoder, .*match\.tau_sim"):
        paper.replace({name: 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features.thickness": 4}, "thickness must be odd"),
        ({"features.thickness": 0}, r"features\.thickness"),
        ({"features.thickness": 33}, r"features\.thickness"),
        ({"propagation.plane_thickness": 2}, "plane_thickness must be odd"),
        ({"features.dense_ratios": [2]}, r"dense_ratios \[2\] are not among ratios"),
        ({"features.ratios": [3]}, r"features\.ratios"),
        ({"features.tile": 16, "features.halo": 8}, "halo 8 must be less than half of tile 16"),
        ({"features.tile": 4}, r"features\.tile"),
        ({"features.slice_size": 8}, r"features\.slice_size"),
        ({"features.precision": "float64"}, r"features\.precision"),
        ({"features.standardize": "zca"}, r"features\.standardize"),
        ({"features.encoder": 3}, r"features\.encoder"),
        ({"match.ratios": [4, 8]}, "from coarse to fine"),
        ({"match.ratios": [8, 8]}, "from coarse to fine"),
        ({"match.ratios": []}, "from coarse to fine"),
        ({"match.ratios": [2]}, r"match\.ratios \[2\] are not among features\.ratios"),
        ({"features.ratios": [16, 8]}, r"match\.ratios \[4\] are not among features\.ratios"),
        ({"match.tau_sim": 1.0}, r"match\.tau_sim"),
        ({"match.tau_sim": math.nan}, r"match\.tau_sim"),
        ({"match.tau_sim": "high"}, r"match\.tau_sim"),
        ({"match.count": 0}, r"match\.count"),
        ({"match.count": "many"}, r"match\.count"),
        ({"match.count": 1.5}, r"match\.count"),
        ({"match.nms_radius": 0}, r"match\.nms_radius"),
        ({"match.nms_radius": math.inf}, r"match\.nms_radius"),
        ({"propagation.max_reach": math.inf}, r"propagation\.max_reach"),
        ({"propagation.max_drift": math.nan}, r"propagation\.max_drift"),
        ({"propagation.max_area": 0}, r"propagation\.max_area"),
        ({"propagation.min_votes": 4}, r"propagation\.min_votes"),
        ({"propagation.tau_iou": 1.1}, r"propagation\.tau_iou"),
        ({"propagation.group": 0}, r"propagation\.group"),
        ({"label.overlap": 0}, r"label\.overlap"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(
    paper: Settings, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        paper.replace(values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_unknown_keys_of_a_file_are_refused(paper: Settings) -> None:
    data = paper.model_dump()
    data["match"]["tau"] = 1
    with pytest.raises(ValidationError, match="tau"):
        Settings.model_validate(data)


def test_every_setting_that_is_changed_changes_the_fingerprint(paper: Settings) -> None:
    changes: dict[str, Any] = {
        "features.slice_size": 448, "features.thickness": 3, "features.standardize": "scale", "features.tile": 64,
        "propagation.tau_iou": 0.4, "propagation.rule": "guarded", "match.tau_sim": 0.1, "match.center": True,
        "match.count": "auto", "label.overlap": 0.5,
    }  # fmt: skip
    made = [paper, *(paper.replace({k: v}) for k, v in changes.items())]
    assert len({fingerprint(one.model_dump(mode="json")) for one in made}) == len(made)
