"""Files of points at the edges: exports of runs, and prompts, which know the tomogram that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from typer.testing import CliRunner

from cryosam_dask import outputs
from cryosam_dask.cli import app
from cryosam_dask.cli.prompts import Prompts
from cryosam_dask.cli.runs import described
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io import open_tomogram
from cryosam_dask.io.points.files import FORMATS, read_points, write_picks
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore

SHAPE, VOXEL, ORIGIN = (33, 20, 25), 8.0, [0.0, 80.0, -16.0]
PLACES = np.array([[0.0, 0.0, 0.0], [32.0, 19.0, 24.0], [16.5, 10.0, 12.5]])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunStore]:
    """Makes runs with picks, of tomograms whose headers have an origin."""

    def make(name: str = "run", query: str = "apo_ferritin", places: np.ndarray = PLACES) -> RunStore:
        info = {"version": "9", "input": {"path": f"/data/{name}.mrc"}, "shape": list(SHAPE), "origin": ORIGIN}
        store = RunStore.create(tmp_path / "runs" / f"{name}.zarr", {**info, "voxel_size": [VOXEL] * 3})
        table = pd.DataFrame({column: np.zeros(len(places)) for column in picks.COLUMNS})
        table[["z", "y", "x"]] = places
        whole = dict.fromkeys(("instance", "size", "prompted", "group", "member"), np.int64)
        table = table.astype(whole).assign(score=np.linspace(1, 0.5, len(places)), instance=range(1, len(places) + 1))
        picks.write(store, query, table, {"segmented": len(places), "kept": len(places)})
        return store

    return make


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if each.encode])
def test_every_format_is_from_the_first_voxel_whatever_the_origin(run, tmp_path: Path, kind: str) -> None:
    store = run("TS_1")
    path = tmp_path / f"p{(FORMATS[kind].suffixes or FORMATS[kind].among)[0]}"
    outputs.export(store.url, path, format=kind)
    found = read_points(path, voxel_size=VOXEL, shape=SHAPE)
    np.testing.assert_array_equal(found[["z", "y", "x"]], PLACES)
    if kind in ("relion4", "relion5", "warp", "copick"):
        assert found["tomogram"].tolist() == ["TS_1" + (".tomostar" if kind == "warp" else "")] * 3
    if kind in ("copick", "imod"):
        assert set(found["kind"]) == {"apo-ferritin" if kind == "copick" else "apo_ferritin"}


def cli(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_names_from_the_command_line(run, tmp_path: Path) -> None:
    store = run("TS_1_10.00Apx")
    cli("export", store.url, tmp_path / "p.star", "--format", "warp", "--tomogram", "TS_1")
    assert starfile.read(tmp_path / "p.star")["rlnMicrographName"].tolist() == ["TS_1.tomostar"] * 3
    cli("export", store.url, tmp_path / "p.json", "--object", "apo", "--user", "me", "--session", "7")
    content = json.loads((tmp_path / "p.json").read_text())
    assert [content[key] for key in ("pickable_object_name", "user_id", "session_id")] == ["apo", "me", "7"]
    sizes = {f"rlnTomoSize{axis}": [n] for axis, n in zip("ZYX", (131, 81, 101), strict=True)}
    tomograms = {"rlnTomoName": ["TS_1"], "rlnTomoTiltSeriesPixelSize": [2.0], **sizes}
    starfile.write({"global": pd.DataFrame(tomograms)}, tmp_path / "tomograms.star")
    options = ("--format", "relion5", "--tomogram", "TS_1", "--tomograms", tmp_path / "tomograms.star")
    cli("export", store.url, tmp_path / "p.star", *options)
    first = starfile.read(tmp_path / "p.star").iloc[0]
    assert [first[f"rlnCenteredCoordinate{axis}Angst"] for axis in "ZYX"] == [-131, -81, -101]
    # else RELION's name of the tomogram is taken from there
    outputs.export(store.url, tmp_path / "q.star", format="relion5", tomograms=tmp_path / "tomograms.star")
    assert (tmp_path / "q.star").read_text().split("data_")[1] == (tmp_path / "p.star").read_text().split("data_")[1]
    with pytest.raises(InputError, match=r"no tomogram 'TS_2', there are: TS_1"):
        outputs.export(run("TS_2").url, tmp_path / "r.star", format="relion5", tomograms=tmp_path / "tomograms.star")
    starfile.write(
        {"global": pd.DataFrame(tomograms).loc[[0, 0]].assign(rlnTomoName=["a/T", "b/T"])}, tmp_path / "t.star"
    )
    with pytest.raises(InputError, match=r"several tomograms that could be 'T', there are: a/T, b/T"):
        outputs.export(store.url, tmp_path / "r.star", format="relion5", tomogram="T", tomograms=tmp_path / "t.star")


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if each.joint])
def test_a_folder_of_runs_goes_into_one_file(run, tmp_path: Path, kind: str) -> None:
    run("TS_1"), run("TS_2", places=PLACES[1:] / 2)
    path = tmp_path / f"p{(FORMATS[kind].suffixes or FORMATS[kind].among)[0]}"
    outputs.export(tmp_path / "runs", path, format=kind)
    for name, places in (("TS_1", PLACES), ("TS_2", PLACES[1:] / 2)):
        found = read_points(path, voxel_size=VOXEL, shape=SHAPE, tomogram_name=name)
        np.testing.assert_array_equal(found[["z", "y", "x"]], places)


def test_a_folder_of_runs_and_what_does_not_fit(run, tmp_path: Path) -> None:
    run("TS_1"), run("TS_2", query="other")
    with pytest.raises(InputError, match="imod holds the picks of one tomogram alone"):
        outputs.export(tmp_path / "runs", tmp_path / "p.mod")
    outputs.export(tmp_path / "runs", tmp_path / "p.csv", name="other")
    assert set(read_points(tmp_path / "p.csv")["tomogram"]) == {"TS_2"}
    notes = outputs.export(tmp_path / "runs", tmp_path / "p.csv", name="other")
    assert notes == ["left out, no picks called 'other': TS_1"]
    with pytest.raises(InputError, match=r"runs: a folder of runs; .* give one run for labels"):
        outputs.export(tmp_path / "runs", tmp_path / "l.mrc", name="other")
    with pytest.raises(StoreError, match="no picks called 'third' in any of its runs"):
        outputs.export(tmp_path / "runs", tmp_path / "p.csv", name="third")
    with pytest.raises(InputError, match="no name for all of them"):
        outputs.export(tmp_path / "runs", tmp_path / "p.csv", name="other", tomogram="TS_1")
    with pytest.raises(StoreError):
        outputs.export(tmp_path / "nothing", tmp_path / "q.csv")
    assert not (tmp_path / "q.csv").exists()


def test_prompts_are_read_in_the_frame_of_their_tomogram(tmp_path: Path) -> None:
    """Centred ångström of one of two tomograms, the one that is called as the file."""
    with mrcfile.new(tmp_path / "TS_2.mrc", np.zeros(SHAPE, np.int8)) as file:
        file.voxel_size = VOXEL
        file.header.origin = (5, 6, 7)
    frames = {"voxel_size": VOXEL, "shape": SHAPE}
    texts = []
    for name, places in (("TS_1", PLACES), ("TS_2", PLACES[2:])):
        table = pd.DataFrame(places, columns=list("zyx")).assign(score=1.0, instance=1)
        write_picks(table, tmp_path / f"{name}.star", format="relion5", tomogram_name=name, **frames)
        texts.append(starfile.read(tmp_path / f"{name}.star", parse_as_string=["rlnTomoName"]))
    starfile.write({"particles": pd.concat(texts)}, tmp_path / "p.star")
    source = open_tomogram(tmp_path / "TS_2.mrc")
    known = lambda: described(source, str(tmp_path / "TS_2.mrc"))  # noqa: E731
    assert Prompts(points=tmp_path / "p.star").read(known) == PLACES[2:].tolist()
    other = Prompts(point=["1,2,3"], points=tmp_path / "p.star", points_tomogram="TS_1")
    assert other.required(known) == [[1, 2, 3], *PLACES.tolist()]
    with pytest.raises(InputError, match="voxel size and shape"):
        Prompts(points=tmp_path / "p.star", points_tomogram="TS_1").read()


def test_a_tilt_series_is_known_by_the_tomogram_that_warp_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("tomogram,z,y,x\nTS_1.tomostar,1,2,3\nTS_10.tomostar,4,5,6\n")
    prompts = Prompts(points=tmp_path / "p.csv")
    for name in ("TS_1_10.00Apx", "TS_1.mrc_10.00Apx"):
        assert prompts.read(lambda name=name: {"tomogram_name": name}) == [[1, 2, 3]]


def test_kinds_from_a_file_of_several_tomograms(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("tomogram,z,y,x,kind\nTS_1,1,2,3,a\nTS_2,4,5,6,b\nTS_1,7,8,9,b\n")
    prompts = Prompts(kinds=tmp_path / "p.txt", points_format="csv", points_tomogram="TS_1")
    assert prompts.by_kind(lambda: {"tomogram_name": "rec"}) == {"a": [[1, 2, 3]], "b": [[7, 8, 9]]}


def test_prompts_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("z,y,x,kind\n1,2,3,a\n4,5,6,b\n")
    with pytest.raises(InputError, match="points of 2 kinds"):
        Prompts(points=tmp_path / "p.txt", points_format="csv").read()
    assert Prompts(points=tmp_path / "p.txt", points_format="csv", points_kind="b").read() == [[4, 5, 6]]


def test_the_command_line_looks_at_the_tomogram_for_its_points(tmp_path: Path) -> None:
    """Of several tomograms, at the one with the points; a point outside of it is told before anything is run."""
    for name in ("a", "b"):
        with mrcfile.new(tmp_path / f"{name}.mrc", np.zeros(SHAPE, np.int8)) as file:
            file.voxel_size = 2 * VOXEL if name == "a" else VOXEL
    write_picks([], tmp_path / "p.json", kind="apo", voxel_size=VOXEL)
    content = json.loads((tmp_path / "p.json").read_text())
    content["points"] = [{"location": {"x": 800.0, "y": 8.0, "z": 16.0}}]
    (tmp_path / "p.json").write_text(json.dumps(content))
    words = (
        "run",
        tmp_path,
        "--points",
        tmp_path / "p.json",
        "--models",
        "texture+random-walker",
        "--out",
        tmp_path / "out",
    )
    with pytest.raises(InputError, match=r"point 1,0\.5,50 is outside"):
        cli(*words)
    with pytest.raises(InputError, match="point 2,1,100 is outside"):
        cli(*words, "--in", tmp_path / "b.mrc")
