"""Picks and points: CSV and STAR round trips, RELION's conventions, and what bad files and points get."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io import check_points, read_points, write_picks
from cryosam_dask.io.points.files import ALL
from cryosam_dask.types import Pick

SHAPE = (35, 205, 94)
VOXEL = (10.52, 10.52, 10.52)
PICKS = [Pick(1 / 3, 204.0, 0.1 + 0.2, 0.987654321098765, 1), Pick(34.0, 0.0, 93.0, -0.25, 70000)]
COLUMNS = ["z", "y", "x", "score", "instance"]


def table(picks=PICKS) -> pd.DataFrame:
    return pd.DataFrame([vars(pick) for pick in picks])


def star(path, columns: dict, optics: dict | None = None):
    blocks = {"optics": pd.DataFrame(optics)} if optics else {}
    starfile.write({**blocks, "particles": pd.DataFrame(columns)}, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as error:
        read_points(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


coordinate = st.floats(0, 1e5, allow_nan=False)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(Pick, coordinate, coordinate, coordinate, st.floats(-1e9, 1e9), st.integers(0, 2**40)),
        min_size=1,
        max_size=5,
    )
)
def test_csv_reads_back_bit_for_bit(tmp_path, picks):
    write_picks(picks, tmp_path / "picks.csv")
    pd.testing.assert_frame_equal(read_points(tmp_path / "picks.csv"), table(picks), check_exact=True)


def test_csv_text_is_the_contract(tmp_path):
    write_picks([Pick(1.0, 2.5, 3.25, 0.5, 7)], tmp_path / "picks.csv")
    assert (tmp_path / "picks.csv").read_bytes() == b"z,y,x,score,instance\n1.0,2.5,3.25,0.5,7\n"
    write_picks([], tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_bytes() == b"z,y,x,score,instance\n"


def test_a_table_is_written_as_picks_are(tmp_path):
    write_picks(PICKS, tmp_path / "a.csv")
    write_picks(table()[COLUMNS[::-1]].assign(more=1), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with pytest.raises(ValueError, match="lack the columns"):
        write_picks(table().drop(columns="score"), tmp_path / "c.csv")
    with pytest.raises(ValueError, match="NaN"):
        write_picks([Pick(math.nan, 0, 0, 0, 1)], tmp_path / "c.csv")
    assert names(tmp_path) == ["a.csv", "b.csv"]


def test_points_alone_and_further_columns(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\ufeff# clicked\nX, Y ,z,kind,radius\n3,2.5,1e0,ribosome,12.5\n\n30,20,10,ferritin,6\n", "utf-8")
    assert "points of 2 kinds (ferritin, ribosome), say which one" in refusal(path)
    assert read_points(path, kind="ferritin")["radius"].tolist() == [6]
    points = read_points(path, kind=ALL)
    assert list(points.columns) == ["z", "y", "x", "kind", "radius"]
    np.testing.assert_array_equal(points[["z", "y", "x"]], [[1, 2.5, 3], [10, 20, 30]])
    assert points["kind"].tolist() == ["ribosome", "ferritin"]
    assert points["radius"].tolist() == [12.5, 6.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"z,y,x\n", "holds no points"),
        (b"a,y,x\n1,2,3\n", "no column z: expected a header with z,y,x, found 'a, y, x'"),
        (b"10,20,30\n1,2,3\n", "no column z, y, x"),
        (b"z,y,x\n1,2,3\n1,two,3\n", "row 2: y is 'two', expected a number"),
        (b"z,y,x\n1,,3\n", "row 1: y is ''"),
        (b"z,y,x\n1,2\n", "row 1: x is ''"),
        (b"z,y,x\n1,2,nan\n", "row 1: x is 'nan'"),
        (b"z,y,x\n1,2,inf\n", "row 1: x is 'inf'"),
        (b"z,y,x\n1,-2,3\n", "row 1: y is -2, outside"),
        (b"z,y,x\n1,2,3,4\n", "not a readable CSV"),
        (b"z,y,x\n1,2,3\n1,2,3,4\n", "not a readable CSV"),
        (b"z,y,x,instance\n1,2,3,1.5\n", "instance: expected whole numbers"),
        (b"z,y,x,score\n1,2,3,high\n", "score is 'high'"),
        (b"MAP \0\0\0\0" * 300, "not a text file"),
        (b"\xff\xfe\xfd", "not a text file"),
        (b'z,y,x\n"1,2,3\n', "not a readable CSV"),
    ],
)
def test_bad_csv(tmp_path, content, words):
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    assert words in refusal(path)


def test_missing_file_folder_and_unknown_format(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.csv")
    assert "no such file" in refusal(tmp_path / "none.star")
    (tmp_path / "folder.csv").mkdir()
    assert "can't be read: Is a directory" in refusal(tmp_path / "folder.csv")
    message = refusal(tmp_path / "points.doc")
    assert "'.doc'" in message
    assert "csv, star, relion4, relion5" in message
    with pytest.raises(InputError, match="unknown format 'xml'"):
        write_picks(PICKS, tmp_path / "picks.csv", format="xml")
    with pytest.raises(InputError, match=r"tells no format.*\.csv, \.star"):
        write_picks(PICKS, tmp_path / "picks.dat")
    write_picks(PICKS, tmp_path / "picks.dat", format="CSV")
    assert len(read_points(tmp_path / "picks.dat", format="csv")) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picks.csv"
    write_picks(PICKS, path)
    before = path.read_bytes()

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"can't be written: No space left on device"):
        write_picks(PICKS[:1], path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["picks.csv"]
    with pytest.raises(StoreError, match="No such file"):
        write_picks(PICKS, tmp_path / "missing" / "picks.csv")


def test_written_files_obey_the_umask(tmp_path):
    write_picks(PICKS, tmp_path / "picks.csv")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "picks.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["star", "relion4", "relion5"])
@pytest.mark.parametrize("voxel", [10.52, (7.0, 8.0, 9.5)])
def test_star_round_trip(tmp_path, kind, voxel):
    frame = {"voxel_size": voxel, "shape": SHAPE}
    write_picks(PICKS, tmp_path / "picks.star", format=kind, tomogram_name="TS 01", **frame)
    back = read_points(tmp_path / "picks.star", **frame)
    assert back.pop("tomogram").tolist() == ["TS 01"] * 2
    pd.testing.assert_frame_equal(back, table(), check_exact=False, atol=1e-6, rtol=0)
    write_picks(back, tmp_path / "again.star", format=kind, tomogram_name="TS 01", **frame)
    again = read_points(tmp_path / "again.star", **frame).drop(columns="tomogram")
    pd.testing.assert_frame_equal(again, back, check_exact=True)


def test_star_pixels_are_zero_based_x_y_z(tmp_path):
    """RELION's first voxel is coordinate 0."""
    write_picks([Pick(0, 1, 2, 0.5, 3)], tmp_path / "picks.star", tomogram_name="007")
    blocks = starfile.read(tmp_path / "picks.star", always_dict=True, parse_as_string=["rlnTomoName"])
    assert list(blocks) == ["particles"]
    assert list(blocks["particles"].columns)[:4] == ["rlnTomoName", *(f"rlnCoordinate{axis}" for axis in "XYZ")]
    assert blocks["particles"].iloc[0].to_dict() == {
        "rlnTomoName": "007",
        "rlnCoordinateX": 2,
        "rlnCoordinateY": 1,
        "rlnCoordinateZ": 0,
        "rlnAutopickFigureOfMerit": 0.5,
        "rlnTomoParticleId": 3,
    }
    assert read_points(tmp_path / "picks.star").iloc[0].to_list() == [0, 1, 2, 0.5, 3, "007"]


def test_centred_coordinates_are_from_half_the_size(tmp_path):
    """Å of (index − size / 2), RELION 5's centre, for even and odd sizes."""
    frame = {"voxel_size": (2.0, 3.0, 4.0), "shape": (4, 5, 6)}
    write_picks([Pick(2, 0, 5, 1, 1)], tmp_path / "picks.star", format="relion5", tomogram_name="TS_1", **frame)
    row = starfile.read(tmp_path / "picks.star").iloc[0]
    assert row["rlnCenteredCoordinateZAngst"] == 0
    assert row["rlnCenteredCoordinateYAngst"] == -7.5
    assert row["rlnCenteredCoordinateXAngst"] == 8
    assert "voxel size and shape" in refusal(tmp_path / "picks.star")
    with pytest.raises(InputError, match="voxel size and shape"):
        write_picks(PICKS, tmp_path / "more.star", format="relion5", shape=SHAPE, tomogram_name="TS_1")
    with pytest.raises(InputError, match="need the tomogram's name"):
        write_picks(PICKS, tmp_path / "more.star", format="relion5", **frame)
    assert names(tmp_path) == ["picks.star"]


def test_unbinned_pixels_are_scaled_to_the_tomogram(tmp_path):
    """A RELION 4 particle file counts pixels of the tilt series, here binned by 4 in the tomogram."""
    columns = {f"rlnCoordinate{axis}": [value] for axis, value in zip("XYZ", (40, 80, 120), strict=True)}
    path = star(tmp_path / "p.star", columns, optics={"rlnOpticsGroup": [1], "rlnTomoTiltSeriesPixelSize": [2.5]})
    assert read_points(path, voxel_size=10).iloc[0].to_list() == [30, 20, 10]
    assert "--voxel-size" in refusal(path)
    mixed = {"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [2.5, 3]}
    assert "several tilt series pixel sizes" in refusal(star(path, columns, optics=mixed), voxel_size=10)


def test_refined_shifts_are_applied(tmp_path):
    """Position − Aᵀ·shift; a turn of the subtomogram by 90° about z carries a shift along x to −y, so y grows."""
    columns = {f"rlnCoordinate{axis}": [50.0] for axis in "XYZ"}
    shifts = {"rlnOriginXAngst": [20.0], "rlnOriginYAngst": [0.0], "rlnOriginZAngst": [-10.0]}
    angles = {"rlnTomoSubtomogramRot": [90.0], "rlnTomoSubtomogramTilt": [0.0], "rlnTomoSubtomogramPsi": [0.0]}
    path = star(tmp_path / "p.star", {**columns, **shifts})
    assert "--voxel-size" in refusal(path)
    assert read_points(path, voxel_size=10).iloc[0].to_list() == [51, 50, 48]
    star(path, {**columns, **shifts, **angles})
    assert read_points(path, voxel_size=10).iloc[0].to_list() == [51, 52, 50, 90, 0, 0]  # and lies as its subtomogram
    star(path, {**columns, **{name: [0.0] for name in shifts}})
    assert read_points(path).iloc[0].to_list() == [50, 50, 50]


def test_several_tomograms_in_one_star(tmp_path):
    columns = {"rlnTomoName": ["01", "02", "01"], **{f"rlnCoordinate{axis}": [1.0, 2.0, 3.0] for axis in "XYZ"}}
    path = star(tmp_path / "p.star", columns)
    assert "points of 2 tomograms (01, 02), say which one" in refusal(path)
    assert "none of them '03'" in refusal(path, tomogram_name="03")
    assert read_points(path, tomogram_name="01")["z"].to_list() == [1, 3]
    assert read_points(path, tomogram_name="02")["z"].to_list() == [2]
    # One tomogram alone is taken, whatever its name: names differ between programs.
    star(path, {**columns, "rlnTomoName": ["a"] * 3})
    assert len(read_points(path, tomogram_name="b")) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello\n", "no data block"),
        ("data_\n", "found no columns"),
        ("data_\n\nloop_\n", "found no columns"),
        ("data_particles\n\nloop_\n_rlnMicrographName #1\n_rlnScore #2\na 1\n", "found rlnMicrographName, rlnScore"),
        (
            "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n1 2 a\n",
            "row 1: rlnCoordinateZ is 'a'",
        ),
        ("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n1 2\n", "not a readable STAR"),
        (
            "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n1 2 nan\n",
            "rlnCoordinateZ is 'nan'",
        ),
        ("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n-1 2 3\n", "x is -1, outside"),
        ("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n\n", "holds no points"),
        ("data_\n\n_rlnCoordinateX 1 2 3\n", "not a readable STAR"),
        ("z,y,x\n1,2,3\n", "no data block"),
    ],
)
def test_bad_star(tmp_path, text, words):
    path = tmp_path / "p.star"
    path.write_text(text)
    assert words in refusal(path)


def test_a_star_file_that_was_mended_is_read_anew(tmp_path):
    path = tmp_path / "p.star"
    good = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n1 2 3\n"
    path.write_text(good.replace("1 2 3", "1 2"))
    assert "not a readable STAR" in refusal(path)
    path.write_text(good)
    assert read_points(path).iloc[0].to_list() == [3, 2, 1]


def test_star_of_single_values_is_one_point(tmp_path):
    (tmp_path / "p.star").write_text("data_\n\n_rlnCoordinateX 1\n_rlnCoordinateY 2\n_rlnCoordinateZ 3\n")
    assert read_points(tmp_path / "p.star").iloc[0].to_list() == [3, 2, 1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["csv", "star"]), st.integers(0, 400), st.binary(max_size=6), st.integers(0, 400))
def test_damaged_points_end_in_one_line_or_a_read(tmp_path, kind, place, junk, cut):
    path = tmp_path / f"p.{kind}"
    write_picks(PICKS, path)
    raw = path.read_bytes()
    path.write_bytes((raw[:place] + junk + raw[place + len(junk) :])[: max(len(raw) - cut, 0)])
    try:
        points = read_points(path)
    except InputError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return
    assert np.isfinite(points[["z", "y", "x"]].to_numpy()).all()


def test_points_inside_pass_as_float_rows():
    inside = check_points([(0, 0, 0), (34, 204, 93)], SHAPE)
    assert inside.shape == (2, 3)
    assert inside.dtype == np.float64
    np.testing.assert_array_equal(check_points((34.0, 0.5, 1), SHAPE), [[34, 0.5, 1]])
    np.testing.assert_array_equal(check_points(table()[::-1][["x", "y", "z"]], SHAPE)[0], [34, 0, 93])


def test_points_beyond_the_border_are_points_but_no_prompts(tmp_path):
    """As annotations of the data portal have them, and refinement leaves them."""
    path = tmp_path / "points.csv"
    path.write_text("z,y,x\n-2.5,100,50\n17,205.25,93.5\n17,30,-1\n")
    points = read_points(path, shape=SHAPE, voxel_size=VOXEL)
    np.testing.assert_array_equal(points, [[-2.5, 100, 50], [17, 205.25, 93.5], [17, 30, -1]])
    with pytest.raises(InputError, match=r"point -2\.5,100,50 is outside the tomogram .*; 3 of 3 points are"):
        check_points(points, SHAPE)
    path.write_text("z,y,x\n-3,5,8\n")  # in a corner
    assert read_points(path, shape=SHAPE)["z"].tolist() == [-3]


def test_points_that_count_from_the_centre_are_noticed(tmp_path):
    path = tmp_path / "points.csv"
    voxels = np.random.default_rng(0).uniform(0, np.array(SHAPE) - 1, (50, 3))
    pd.DataFrame(voxels - np.array(SHAPE) / 2, columns=list("zyx")).to_csv(path, index=False)
    assert "outside the tomogram, as most points are" in refusal(path)
    assert "do these count from the tomogram's centre?" in refusal(path, shape=SHAPE)


@pytest.mark.parametrize("point", [(-1, 0, 0), (35, 0, 90), (0, 205, 0), (0, 0, 93.5), (0, 0, -1e-9), (math.nan, 0, 0)])
def test_a_point_outside_is_told_with_the_range(point):
    with pytest.raises(InputError, match="is outside the tomogram") as error:
        check_points([(1, 1, 1), point], SHAPE)
    message = str(error.value)
    assert "valid: z 0 to 34, y 0 to 204, x 0 to 93" in message
    assert "1 of 2 points" in message
    assert "order" not in message


def test_reversed_order_is_noticed():
    with pytest.raises(InputError, match="looks like x,y,z order, cryosam takes Z,Y,X: try 17,103,41"):
        check_points((41, 103, 17), SHAPE)


@pytest.mark.parametrize("points", [[], [(1, 2)], (1, 2, 3, 4), "1,2,3", [[[1, 2, 3]]], ["a"], None])
def test_what_is_no_point(points):
    with pytest.raises(InputError, match="Z,Y,X"):
        check_points(points, SHAPE)
