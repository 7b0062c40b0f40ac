"""`cryosam export` for labels, meshes and copick: the options reach what they are for."""

from __future__ import annotations

import json

import trimesh
import zarr
from typer.testing import CliRunner

from cryosam_dask.cli import app


def cryosam(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_labels_and_meshes(finished, tmp_path):
    for arguments in (
        [tmp_path / "l.zarr"],
        [tmp_path / "old", "--format", "ome-zarr-0.4", "--what", "semantic"],
        [tmp_path / "l.zarr", "--overwrite"],
        [tmp_path / "m", "--what", "meshes", "--smooth", "1"],
        [tmp_path / "p.ply"],
    ):
        done = cryosam("export", finished.url, *arguments)
        assert (done.exit_code, done.stdout.split(": ")[-1]) == (0, "written\n")
    assert zarr.open_array(str(tmp_path / "old" / "0"), mode="r").metadata.zarr_format == 2
    assert len(list((tmp_path / "m").iterdir())) == 3
    assert len(trimesh.load_mesh(tmp_path / "p.ply").vertices) > 1000


def test_a_copick_project_with_names_of_its_own(finished, tmp_path):
    names = ["--copick-run", "TS_9", "--object", "ribosome", "--user", "me", "--session", "3"]
    contents = ["--contents", "picks,meshes,tomogram", "--tomogram-type", "wbp"]
    done = cryosam("export", finished.url, tmp_path / "p", "--format", "copick", *names, *contents)
    assert done.exit_code == 0
    run = tmp_path / "p" / "ExperimentRuns" / "TS_9"
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*ribosome*")) == [
        "Meshes/me_3_ribosome.glb",
        "Picks/me_3_ribosome.json",
    ]
    assert (run / "VoxelSpacing8.000" / "wbp.zarr").is_dir()
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert [entry["name"] for entry in config["pickable_objects"]] == ["ribosome"]
