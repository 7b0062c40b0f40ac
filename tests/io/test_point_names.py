"""Names in files of points: of tilt series, and odd ones, which every file gives back or refuses in one line."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import imodmodel
import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points.files import FORMATS, Frame, encode_picks
from cryosam_dask.io.points.names import matching, plain_name, series_names
from cryosam_dask.io.points.relion import listed_names
from cryosam_dask.types import Pick

PICKS = [Pick(1.0, 2.0, 3.0, 0.5, 1), Pick(4.0, 5.0, 6.0, 0.25, 2)]
FRAME: dict[str, Any] = {"voxel_size": 10.0, "shape": (40, 50, 60)}
ODD = ["#5", "a#5", "loop_", "data_x", "data_", "_x", ";x", "a b", "a\tb", 'a"b', "it's", '"q" z', "", " ", " a", "a "]
ODD += ["nan", "<NA>", "NA", "None", "002", "1e5", "é", "a\u00a0b", "a\u2028b", "a\nb", "a,b", "x" * 64, "é" * 200, "="]
ODD += ["\ud800", "save_", "$x", "[x]", "stop_", "a  b", "\\", "ß", "TS_01.mrc", "*", "True"]


@pytest.mark.parametrize(
    ("file", "series"),
    [
        ("TS_01_10.00Apx.mrc", "TS_01"),
        ("TS_01.mrc_10.00Apx.mrc", "TS_01"),
        ("Tomograms/job006/tomograms/rec_TS_02.mrc", "TS_02"),
        ("rec_Position_36_half1.mrc", "Position_36"),
        ("ts-001_Vol.mrc", "ts-001"),
        ("ts-001_EVN_Vol.mrc", "ts-001"),
        ("ts-001_b4_ODD.mrc", "ts-001"),
        ("TS_01_full_rec.mrc", "TS_01"),
        ("TS_01_full.rec", "TS_01"),
        ("TS_01.rec", "TS_01"),
        ("TS_01_bin4_rec.mrc", "TS_01"),
        ("TS_01_rec_bin4.mrc", "TS_01"),
        ("TS_01_rec_b4.mrc", "TS_01"),
        ("tomo03__bin4.hdf", "tomo03"),
        ("TS_01_10.00Apx_corrected.mrc", "TS_01"),
        ("TS_01_14.00Apx_refined.mrc", "TS_01"),
        ("TS_01_bin4_denoised.mrc", "TS_01"),
        # names that people give
        ("TS_01_b.mrc", "TS_01_b"),
        ("rec.mrc", "rec"),
        ("_rec.mrc", "_rec"),
        ("grid_b4.mrc", "grid_b4"),
        ("TS_01_B4.mrc", "TS_01_B4"),
        ("lamella_3A.mrc", "lamella_3A"),
        ("TS_5_4.mrc", "TS_5_4"),
        ("odd_even.mrc", "odd_even"),
        ("refined.mrc", "refined"),
        ("recovery_1.mrc", "recovery_1"),
        ("bin4.mrc", "bin4"),
    ],
)
def test_the_tilt_series_of_a_reconstruction(file: str, series: str) -> None:
    assert plain_name(file) == series


ADDED = ["_rec", "_full_rec", "_10.00Apx", "_bin4", "_b4", "_Vol", "_EVN", ".mrc", "_corrected", "_full"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["TS_1", "TS_2", "rec_TS_1", "a"]), st.lists(st.sampled_from(ADDED)))))
def test_names_of_series_never_collapse(parts: list[tuple[str, list[str]]]) -> None:
    own = list({(start + "".join(ends)).casefold(): start + "".join(ends) for start, ends in parts}.values())
    names, _ = series_names(own)
    assert len({name.casefold() for name in names}) == len(own)
    assert all(plain_name(name) == plain_name(one) for name, one in zip(names, own, strict=True))
    assert all(matching(name, names) == [name] for name in names)
    assert all(plain_name(plain_name(one)) == plain_name(one) for one in own)


def test_names_are_said() -> None:
    names, notes = series_names(["rec_TS_1", "TS_2_rec", "TS_2_bin4", "TS_3", "TS_4_rec"], asked={"TS_4_rec": "four"})
    assert names == ["TS_1", "TS_2_rec", "TS_2_bin4", "TS_3", "four"]
    assert notes == [
        "tomograms are called by their tilt series, not by their files: TS_1 (rec_TS_1)",
        "tomograms keep their files' names, as two would be called the same: TS_2_rec, TS_2_bin4",
    ]
    assert series_names(["TS_2_rec", "TS_5"], asked={"TS_5": "TS_2"})[0] == ["TS_2_rec", "TS_2"]
    with pytest.raises(InputError, match="TS_1 and TS_2 would both be called x"):
        series_names(["TS_1", "TS_2"], asked={"TS_1": "x", "TS_2": "x"})


def test_the_nearest_name_is_meant() -> None:
    known = ["TS_1_EVN_Vol", "TS_1_ODD_Vol", "a/TS_2.mrc", "TS_3.tomostar"]
    assert matching("TS_1_ODD_Vol", known) == ["TS_1_ODD_Vol"]
    assert matching("TS_1_rec", known) == known[:2]
    assert matching("TS_2_bin4", known) == ["a/TS_2.mrc"]
    assert matching("rec_TS_3", known) == ["TS_3.tomostar"]
    assert matching("rec_TS_3", known, series=False) == []


def test_points_of_a_tilt_series_are_those_of_its_reconstruction(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("tomogram,z,y,x\nTS_1,1,2,3\nTS_10,4,5,6\nTS_2_rec,7,8,9\nTS_2_bin4,10,11,12\n")
    for name in ("TS_1_full_rec", "rec_TS_1.mrc", "TS_1_bin4_rec", "TS_1_Vol"):
        assert read_points(tmp_path / "p.csv", tomogram_name=name)["z"].tolist() == [1]
    assert read_points(tmp_path / "p.csv", tomogram_name="TS_2_bin4.mrc")["z"].tolist() == [10]
    with pytest.raises(InputError, match="several of them 'TS_2_Vol'"):
        read_points(tmp_path / "p.csv", tomogram_name="TS_2_Vol")


def test_two_tomograms_are_not_one_of_relions(tmp_path: Path) -> None:
    sizes = {f"rlnTomoSize{axis}": [40, 40] for axis in "XYZ"}
    table = pd.DataFrame({"rlnTomoName": ["TS_1", "TS_2"], "rlnTomoTiltSeriesPixelSize": [2.0, 2.0], **sizes})
    starfile.write({"global": table}, tmp_path / "t.star")
    assert listed_names(tmp_path / "t.star", ["rec_TS_2", "TS_1_bin4"]) == ["TS_2", "TS_1"]
    with pytest.raises(InputError, match="rec_TS_1 and TS_1_bin4 are both TS_1"):
        listed_names(tmp_path / "t.star", ["rec_TS_1", "TS_1_bin4"])


names = st.one_of(
    st.sampled_from(ODD),
    st.text(st.sampled_from(list("ab1_#;'\" \t\"'.-é,[]$\u00a0\\\x85\x0b")), max_size=8),
    st.text(max_size=12),
)


def write(path: Path, format: str, name: str, **options: Any) -> bool:
    """Whether a file was written; else the refusal was one line, and nothing is there."""
    path.unlink(missing_ok=True)
    try:
        write_picks(PICKS, path, format=format, **FRAME, **options)
    except InputError as error:
        if len(str(error).splitlines()) != 1 or not str(error).isprintable() or path.exists():
            pytest.fail(f"{name!r}: {error}")
        return False
    return True


def all_odd(test: Any) -> Any:
    for name in ODD:
        test = example(name)(test)
    return settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])(test)


@pytest.mark.parametrize("kind", ["star", "relion5", "warp"])
@all_odd
@given(name=names)
def test_star_files_give_names_back(tmp_path: Path, kind: str, name: str) -> None:
    column, ending = ("rlnMicrographName", ".tomostar") if kind == "warp" else ("rlnTomoName", "")
    path = tmp_path / "p.star"
    if not write(path, kind, name, tomogram_name=name):
        return
    written = name.removesuffix(ending) + ending
    assert starfile.read(path, parse_as_string=[column])[column].tolist() == [written] * 2
    found = read_points(path, format=kind, **FRAME, tomogram_name=name)
    assert found["tomogram"].tolist() == [written] * 2
    assert found["z"].tolist() == [1, 4]
    if kind == "warp":  # which knows no quotes
        assert all(len(line.split()) == 7 for line in path.read_text().splitlines() if line.count(".") > 4)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@all_odd
@given(name=names)
def test_joint_tables_give_names_back(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"p.{kind}"
    try:
        content = encode_picks([(PICKS, Frame(tomogram=name)), (PICKS, Frame(tomogram="other"))], kind, joint=True)
    except InputError:
        assert not name or not name.isprintable() or len(name.encode()) > 255
        return
    path.write_bytes(content)
    text = {"dtype": {"tomogram": str}, "keep_default_na": False}
    table = pd.read_csv(path, **text) if kind == "csv" else pd.read_parquet(path)
    assert table["tomogram"].tolist() == [name] * 2 + ["other"] * 2
    assert read_points(path, tomogram_name="*")["tomogram"].tolist() == [name] * 2 + ["other"] * 2
    assert read_points(path, tomogram_name=name)["z"].tolist() == ([1, 4, 1, 4] if name in ("*", "other") else [1, 4])


@all_odd
@given(name=names)
def test_copick_gives_names_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.json"
    if not write(path, "copick", name, kind=name, tomogram_name=name):
        assert not name or not name.isprintable() or len(name.encode()) > 255
        return
    content = json.loads(path.read_text())
    assert (content["pickable_object_name"], content["run_name"]) == (name, name)
    found = read_points(path, **FRAME)
    assert (found["kind"].tolist(), found["tomogram"].tolist()) == ([name] * 2, [name] * 2)


@all_odd
@given(name=names)
def test_imod_gives_names_of_objects_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.mod"
    if not write(path, "imod", name, kind=name):
        assert not name or len(name.encode(errors="replace")) > 63 or name != name.strip() or not name.isprintable()
        return
    assert imodmodel.ImodModel.from_file(path).objects[0].header.name == name
    assert set(read_points(path, **FRAME)["kind"]) == {name}


@pytest.mark.parametrize("name", ["#5", "loop_", "data_x", "_x", ";x", "a b"])
def test_relion_names_are_quoted_where_they_must_be(tmp_path: Path, name: str) -> None:
    assert write(tmp_path / "p.star", "star", name, tomogram_name=name)
    assert f'"{name}"' in (tmp_path / "p.star").read_text()
    assert write(tmp_path / "p.star", "star", "TS_1", tomogram_name="TS_1")
    assert '"' not in (tmp_path / "p.star").read_text()


@pytest.mark.parametrize(("kind", "name"), [("star", "a\tb"), ("star", "it's"), ("warp", "a b"), ("star", "nan")])
def test_what_star_can_not_hold_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(name).replace("\\", "")[:2])) as error:
        write_picks(PICKS, tmp_path / "p.star", format=kind, **FRAME, tomogram_name=name)
    assert "can't stand in a STAR file" in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind, known in FORMATS.items() if known.encode])
def test_voxels_that_are_equal_to_rounding(tmp_path: Path, kind: str) -> None:
    rounded = (13.2812, 13.2813, 13.2812)
    path = tmp_path / "p"
    options: dict[str, Any] = {"format": kind, "shape": (40, 50, 60), "tomogram_name": "TS_1", "kind": "a"}
    write_picks(PICKS, path, voxel_size=rounded, **options)
    found = read_points(path, format=kind, voxel_size=rounded, shape=(40, 50, 60), tomogram_name="TS_1")
    np.testing.assert_allclose(found[["z", "y", "x"]], [[1, 2, 3], [4, 5, 6]], atol=3e-4 if kind == "eman2" else 1e-4)
    if kind == "warp":
        assert starfile.read(path)["rlnPixelSize"].tolist() == pytest.approx([13.281233] * 2, abs=1e-6)
        assert found["z"].tolist() == [1, 4]
    if kind == "copick":
        assert json.loads(path.read_text())["voxel_spacing"] == pytest.approx(13.281233, abs=1e-6)


@pytest.mark.parametrize(
    ("voxel", "shape", "same"),
    [
        ((10.0, 10.009, 10.0), (100, 100, 100), True),
        ((10.0, 10.02, 10.0), (100, 100, 100), False),  # more than 0.1 %
        ((10.0, 10.009, 10.0), (100, 4096, 100), False),  # more than half a voxel over the volume
        ((13.2812, 13.2813, 13.2812), (1000, 8192, 8192), True),
        ((10.0, 10.009, 10.0), None, True),
    ],
)
def test_what_rounding_can_not_explain_is_no_cube(tmp_path: Path, voxel: tuple, shape: Any, same: bool) -> None:
    expected: Any = contextlib.nullcontext() if same else pytest.raises(InputError, match="know one voxel size")
    with expected:
        write_picks(PICKS, tmp_path / "p.star", format="warp", voxel_size=voxel, shape=shape, tomogram_name="TS_1")
    write_picks(PICKS, tmp_path / "p.json", voxel_size=voxel, shape=shape, kind="a")
    assert (json.loads((tmp_path / "p.json").read_text())["voxel_spacing"] is not None) == same


def test_pixel_sizes_of_a_file_that_round_differently(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    optics = pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [13.2812, 13.281]})
    points = pd.DataFrame({f"rlnCoordinate{axis}": [10.0, 800.0] for axis in "XYZ"})
    starfile.write({"optics": optics, "particles": points}, path)
    found = read_points(path, voxel_size=13.2813, shape=(900, 900, 900))
    assert found["z"].tolist() == [10, 800]
    starfile.write({"optics": optics.assign(rlnTomoTiltSeriesPixelSize=[13.2812, 13.4]), "particles": points}, path)
    with pytest.raises(InputError, match="several tilt series pixel sizes"):
        read_points(path, voxel_size=13.2813, shape=(900, 900, 900))
