"""The CZII challenge's classes on a small set laid out as the challenge's folder is, to the printed table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from cryosam_dask.cli import app
from cryosam_dask.errors import InputError, SettingsError
from cryosam_dask.published import data
from cryosam_dask.published.czii import with_classes

VOXEL = 10.012
SHAPE = (20, 36, 38)
PARTICLES: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "TS_5_4": {"ribosome": ((9, 9, 10), (10, 27, 9)), "thyroglobulin": ((10, 9, 29),), "beta-amylase": ()},
    "TS_69_2": {"ribosome": ((10, 18, 20),)},
}
SETTINGS = {
    "match.rank": "similarity", "match.tau_sim": 0.0, "match.ratios": [4], "match.count": 3, "match.center": True,
    "features.ratios": [4], "features.dense_ratios": [], "features.thickness": 3, "propagation.plane_thickness": 3,
}  # fmt: skip


def picks(kind: str, run: str, points: Sequence[tuple[int, int, int]]) -> str:
    """Picks as copick keeps them: ångström from the corner, x y z."""
    entries = [
        {"location": {"x": x * VOXEL, "y": y * VOXEL, "z": z * VOXEL}, "transformation_": np.eye(4).tolist(),
         "instance_id": 0}
        for z, y, x in points
    ]  # fmt: skip
    about = {"pickable_object_name": kind, "user_id": "curation", "session_id": "0", "run_name": run,
             "voxel_spacing": None, "unit": "angstrom", "points": entries}  # fmt: skip
    return json.dumps(about)


@pytest.fixture(scope="session")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/static with OME-Zarr 0.4 of zarr v2, train/overlay with copick's picks."""
    folder = tmp_path_factory.mktemp("czii")
    z, y, x = np.indices(SHAPE)
    for seed, (run, kinds) in enumerate(PARTICLES.items()):
        values = np.random.default_rng(seed).normal(size=SHAPE)
        for points in kinds.values():
            for a, b, c in points:
                values += 4.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 20)
        place = folder / "train" / "static" / "ExperimentRuns" / run / "VoxelSpacing10.000"
        for name in ("denoised", "wbp"):
            axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
            scale = [{"type": "scale", "scale": [VOXEL] * 3}]
            image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
            root = zarr.create_group(place / f"{name}.zarr", zarr_format=2, attributes={"multiscales": [image]})
            root.create_array("0", data=values.astype(np.float32), chunks=(20, 20, 20))
        overlay = folder / "train" / "overlay" / "ExperimentRuns" / run / "Picks"
        overlay.mkdir(parents=True)
        for kind, points in kinds.items():
            if points:
                (overlay / f"{kind}.json").write_text(picks(kind, run, points))
    return folder


def invoke(challenge: Path, out: Path, *words: str) -> Any:
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    common = ["benchmark", "czii", "--data", str(challenge), "--out", str(out), "--workers", "0"]
    return CliRunner().invoke(app, [*common, "--models", "texture+random-walker", *options, *words])


def test_the_challenges_folder(challenge: Path) -> None:
    one, two = data.find(challenge)
    assert (one.name, two.name) == ("TS_5_4", "TS_69_2")
    assert one.tomogram.endswith("TS_5_4/VoxelSpacing10.000/denoised.zarr")
    assert set(one.truths) == {"ribosome", "thyroglobulin"}
    assert {truth.format for truth in one.truths.values()} == {"copick"}
    assert data.find(challenge / "train", which="*/wbp.zarr")[0].tomogram.endswith("wbp.zarr")


def test_each_class_of_each_tomogram_to_the_printed_table(challenge: Path, tmp_path: Path) -> None:
    result = invoke(challenge, tmp_path)
    assert result.exit_code == 0, result.output
    rows = {
        cells[1]: cells
        for line in result.stdout.splitlines()
        if line.startswith("|") and (cells := [c.strip() for c in line.split("|")])
    }
    assert rows["ribosome"][3:5] == ["2 of 2", "75"]
    assert rows["thyroglobulin"][3:5] == ["1 of 1", "65"]
    assert rows["thyroglobulin"][10] == "2"
    assert "apo-ferritin" not in rows
    assert "Score, the weighted mean of F4" in result.stdout
    content = json.loads((tmp_path / "czii.json").read_text())
    share = next(iter(content["shares"].values()))
    classes = {one["name"]: one for one in share["score"]["classes"]}
    counted = classes["ribosome"]
    precision = counted["true_positives"] / (counted["true_positives"] + counted["false_positives"])
    recall = counted["true_positives"] / 3
    f4 = 17 * precision * recall / (16 * precision + recall)
    assert counted["true_positives"] >= 1
    assert counted["f_beta"] == pytest.approx(f4)
    assert rows["ribosome"][7] == f"{100 * f4:.1f}"
    records = sorted(path.name for path in (tmp_path / "results" / "TS_5_4").glob("*.json"))
    assert len(records) == 2
    assert len(list((tmp_path / "runs" / "TS_5_4").glob("*.zarr"))) == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json") if path.parent != tmp_path}
    again = invoke(challenge, tmp_path)
    assert again.stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    some = invoke(challenge, tmp_path, "--object", "thyroglobulin", "--tables-only")
    assert "| ribosome" not in some.stdout
    assert "| thyroglobulin" in some.stdout


def test_the_portals_names_are_the_challenges_classes(challenge: Path) -> None:
    entry = data.Entry("TS_1", "t.zarr", {name: data.Truth(Path("p")) for name in ("Cytosolic_ribosome", "membrane")})
    (found,) = with_classes([entry])
    assert list(found.truths) == ["ribosome"]
    (none,) = with_classes([data.Entry("TS_1", "t.zarr", {"membrane": data.Truth(Path("p"))})])
    assert none.error == "no positions of the classes, but such of membrane"
    (none,) = with_classes([data.Entry("TS_1", "t.mrc", {"": data.Truth(Path("p"))})])
    assert none.error == "no positions of the classes, but such that name no class"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--prompts", "single,110"], SettingsError),
        (["--prompts", "x"], SettingsError),
        (["--object", "dna"], InputError),
    ],
)
def test_options_that_can_not_be(challenge: Path, tmp_path: Path, words: list[str], error: type[Exception]) -> None:
    result = invoke(challenge, tmp_path / "out", *words)
    assert isinstance(result.exception, error)
    assert not (tmp_path / "out").exists()
