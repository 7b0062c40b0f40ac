"""Points as plain text: columns with and without names, separators, units, and what the columns are taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points.files import FORMATS, Frame, encode_picks
from cryosam_dask.types import Pick

POINTS = np.array([[40, 100, 200], [55.5, 310.25, 128], [12, 33.5, 401.0]])  # z, y, x


def read(tmp_path: Path, text: str, name: str = "p.txt", **options: Any) -> tuple[Any, list[str]]:
    path, notes = tmp_path / name, []
    path.write_text(text)
    return read_points(path, notes=notes, **options), notes


def lines(separator: str = " ", before: str = "", after: str = "") -> str:
    rows = ([*before.split(), *map(str, place), *after.split()] for place in POINTS[:, ::-1].tolist())
    return "".join(separator.join(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["p.coords", "p.txt", "p.xyz", "P.TXT"])
@pytest.mark.parametrize("separator", [" ", "\t", ", ", ",", ";", "      "])
def test_columns_are_x_y_z_in_voxels(tmp_path: Path, name: str, separator: str) -> None:
    table, notes = read(tmp_path, lines(separator), name)
    np.testing.assert_array_equal(table, POINTS)
    assert list(table.columns) == ["z", "y", "x"]
    assert not notes


def test_a_fourth_column_is_the_score(tmp_path: Path) -> None:
    table, notes = read(tmp_path, "1, 2, 3, 0.9\n\n# a comment\n4, 5, 6, 0.8\n")
    assert table.to_dict("list") == {"z": [3, 6], "y": [2, 5], "x": [1, 4], "score": [0.9, 0.8]}
    assert not notes


def test_contours_and_objects_of_model2point(tmp_path: Path) -> None:
    contours, notes = read(tmp_path, "1 30.5 9 7\n1 31 8 7\n2 30 4 7\n")
    assert contours.to_dict("list") == {"z": [7, 7, 7], "y": [9, 8, 4], "x": [30.5, 31, 30]}
    assert "contour, x, y, z" in notes[0]
    text = "    1     1  30.50   9.00   7.00\n    1     2  31  8  7\n    2     1  10  20  30\n"
    objects, notes = read(tmp_path, text, kind="2")
    assert objects[["z", "y", "x"]].to_numpy().tolist() == [[30, 20, 10]]
    assert "object, contour, x, y, z" in notes[0]
    with pytest.raises(InputError, match=r"points of 2 kinds \(1, 2\), say which one"):
        read_points(tmp_path / "p.txt", notes=[])


def test_a_score_is_no_contour(tmp_path: Path) -> None:
    """Columns x of whole numbers that rise by chance: the fourth column is between 0 and 1, or x leaves the range."""
    assert read(tmp_path, "1 20 30 0.5\n2 20 30 0.25\n")[0]["x"].tolist() == [1, 2]
    assert read(tmp_path, "1 20 30 5\n90 20 30 7\n")[0]["x"].tolist() == [1, 90]


@pytest.mark.parametrize(
    "header",
    ["x y z", "X,Y,Z", "# x y z", '"x" "y" "z"', "#x\ty\tz", "# made by a script\n# x y z\n# in voxels"],
)
def test_names_of_columns(tmp_path: Path, header: str) -> None:
    table, _ = read(tmp_path, f"{header}\n" + lines("," if "," in header else " "))
    np.testing.assert_array_equal(table[["z", "y", "x"]], POINTS)


def test_names_tell_the_order_and_what_else_there_is(tmp_path: Path) -> None:
    table, notes = read(tmp_path, "# z y x confidence kind\n1 2 3 0.5 apo\n4 5 6 0.25 apo\n")
    assert table.to_dict("list") == {
        "z": [1, 4], "y": [2, 5], "x": [3, 6], "score": [0.5, 0.25], "kind": ["apo", "apo"],
    }  # fmt: skip
    assert not notes


def test_more_columns_without_names_are_left_out_with_a_word(tmp_path: Path) -> None:
    table, notes = read(tmp_path, "9 8 7 a b c\n6 5 4 a b c\n")
    assert table.to_dict("list") == {"z": [7, 4], "y": [8, 5], "x": [9, 6]}
    assert notes == ["columns 4 to 6 without names: left out; x, y, z are taken from the first three"]


def test_angstrom_where_that_is_asked_for(tmp_path: Path) -> None:
    text = "2400.0000, 1200.0000, 480.0000, 0.9\n1536.0000, 3723.0000, 666.0000, 0.8\n"
    with pytest.raises(InputError, match="columns x, y, z without a header are the format xyz"):
        read(tmp_path, text, "p.csv")
    options = {"format": "xyz", "voxel_size": 12.0}
    table, _ = read(tmp_path, text, "p.csv", unit="angstrom", **options)
    np.testing.assert_array_equal(table[["z", "y", "x"]], POINTS[:2])
    oblong, _ = read(tmp_path, text, "p.csv", unit="angstrom", format="xyz", voxel_size=(6, 12, 24))
    np.testing.assert_array_equal(oblong[["z", "y", "x"]], POINTS[:2] * [2, 1, 0.5])
    np.testing.assert_array_equal(read(tmp_path, text, "p.csv", **options)[0]["x"], [2400, 1536])
    with pytest.raises(InputError, match="positions in Å: the tomogram's voxel size is needed"):
        read(tmp_path, text, "p.csv", format="xyz", unit="angstrom")


def test_a_unit_that_a_format_does_not_have_is_refused(tmp_path: Path) -> None:
    write_picks([Pick(1, 2, 3, 1, 1)], tmp_path / "p.csv")
    with pytest.raises(
        InputError, match=r"positions in the format csv are in voxels, but ångström are asked for"
    ) as error:
        read_points(tmp_path / "p.csv", unit="angstrom")
    assert "\n" not in str(error.value)
    read_points(tmp_path / "p.csv", unit="voxel")
    with pytest.raises(InputError, match="format star are in the unit that the file tells"):
        read_points(tmp_path / "p.star", unit="voxel")
    with pytest.raises(InputError, match="the unit of points is nm, expected voxel or angstrom"):
        read_points(tmp_path / "p.csv", unit="nm")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2\n", "line 1: 2 values, expected x, y, z"),
        ("1 2 3\n4 5\n", "line 2: 2 values, expected 3"),
        ("1 2 3\n4 5 6 7\n", "line 2: 4 values, expected 3"),
        ("1 2 3\n\n4 five 6\n", "line 3: y is 'five', expected a number"),
        ("1,,3\n", "y is '', expected a number"),
        ("1,5 2,5 3,5\n", "is '5 2', expected a number"),
        ("C 1 2 3\n", "expected numbers x y z, or the columns' names"),
        ("a b c\n1 2 3\n", "expected numbers x y z, or the columns' names"),
        ("12\nwater\nO 1 2 3\n", "line 1: 1 values"),
        ("1 2 nan\n", "z is 'nan', expected a number"),
        ("# x y z\n", "holds no points"),
        ("x y z\n", "holds no points"),
    ],
)
def test_what_is_no_list_of_points(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "p.txt"))


def test_written_plainly() -> None:
    picks = [Pick(40, 100, 200, 0.5, 1), Pick(-0.0000001, 310.25, 1 / 3, 0.25, 2)]
    assert encode_picks([(picks, Frame())], "xyz") == b"200 100 40\n0.333333 310.25 0\n"


def test_what_lists_of_points_look_like() -> None:
    looks_like = FORMATS["xyz"].looks_like
    assert looks_like is not None
    assert all(map(looks_like, [b"1 2 3\n", b"# c\n\n1,2,3,4\n", b"x y z\n", b"\xef\xbb\xbf 1 2 3"]))
    assert not any(
        map(looks_like, [b"", b"tomograms/TS_01.mrc\n", b"The truth\n", b"1 2\n", b"12 May 2024\n", b"\0\0"])
    )
