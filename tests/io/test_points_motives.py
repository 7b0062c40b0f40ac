"""Dynamo's tables, and motive lists of TOM, AV3 and STOPGAP: against other libraries, and by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import dynamotable
import emfile
import numpy as np
import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points.files import ALL, FORMATS, Frame, encode_picks
from cryosam_dask.types import Pick

FRAME = {"voxel_size": 10.0, "shape": (120, 440, 440)}
PICKS = [Pick(40, 100, 200, 0.5, 1), Pick(55.5, 310.25, 128, 0.25, 2), Pick(12, 33.5, 401, 0.125, 9)]
ZYX = [[p.z, p.y, p.x] for p in PICKS]
KINDS = {"dynamo": ".tbl", "em": ".em", "stopgap": ".star"}


def places(table: Any) -> list[list[float]]:
    return table[["z", "y", "x"]].to_numpy().tolist()


def table(rows: list[dict[int, float]], width: int = 35) -> str:
    """A Dynamo table of columns, from 1."""
    return "".join(" ".join(f"{row.get(i, 0):g}" for i in range(1, width + 1)) + "\n" for row in rows)


def row(z: float, y: float, x: float, **more: float) -> dict[int, float]:
    return {24: x, 25: y, 26: z} | {int(key[1:]): value for key, value in more.items()}


def em(rows: np.ndarray, path: Path) -> Path:
    emfile.write(path, rows.reshape(1, *rows.shape).astype("f4"), {}, overwrite=True)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_voxel_is_one(tmp_path: Path, kind: str) -> None:
    """By hand: a file with a particle at 1, 1, 1, and one whose shift is added."""
    path = tmp_path / f"p{KINDS[kind]}"
    if kind == "dynamo":
        path.write_text(table([row(1, 1, 1, c20=7), row(40.75, 102, 200.5, c20=7, c4=0.5, c5=-1, c6=0.25)]))
    elif kind == "em":
        rows = np.zeros((2, 20))
        rows[:, 7:10] = [[1, 1, 1], [200.5, 102, 40.75]]
        rows[1, 10:13] = [0.5, -1, 0.25]
        em(rows, path)
    else:
        names = ["motl_idx", "tomo_num", "orig_x", "orig_y", "orig_z", "x_shift", "y_shift", "z_shift"]
        head = "data_stopgap_motivelist\n\nloop_\n" + "".join(f"_{name}\n" for name in names)
        path.write_text(f"{head}\n1 7 1 1 1 0 0 0\n2 7 200.5 102 40.75 0.5 -1 0.25\n")
    assert places(read_points(path, **FRAME)) == [[0, 0, 0], [40, 100, 200]]


def test_dynamo_as_its_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "p.tbl"
    write_picks(PICKS, path, format="dynamo", tomogram_name="TS_07")
    theirs = dynamotable.read(str(path))
    np.testing.assert_array_equal(theirs[["z", "y", "x"]], np.array(ZYX) + 1)
    assert theirs["tomo"].tolist() == [7, 7, 7]
    assert theirs["tag"].tolist() == [1, 2, 9]
    assert theirs["cc"].tolist() == [0.5, 0.25, 0.125]
    assert theirs["aligned_value"].tolist() == theirs["averaged_value"].tolist() == [1, 1, 1]
    assert theirs[["dx", "dy", "dz", "tdrot", "tilt", "narot"]].to_numpy().any() == np.False_
    dynamotable.write(theirs, str(path))
    again = read_points(path)
    assert places(again) == ZYX
    assert again["instance"].tolist() == [1, 2, 9]
    assert again["class"].tolist() == [1, 1, 1]


def test_em_as_its_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "p.em"
    write_picks(PICKS, path, tomogram_name="TS_07")
    _, theirs = emfile.read(path)
    assert theirs.shape == (1, 3, 20)
    np.testing.assert_array_equal(theirs[0, :, 7:10] + theirs[0, :, 10:13], np.array(ZYX)[:, ::-1] + 1)
    assert (theirs[0, :, 7:10] == np.round(theirs[0, :, 7:10])).all()
    assert theirs[0, :, [0, 3, 4, 19]].tolist() == [[0.5, 0.25, 0.125], [1, 2, 9], [7, 7, 7], [1, 1, 1]]
    assert places(read_points(em(theirs[0], tmp_path / "again.em"))) == ZYX


def test_em_of_another_machine(tmp_path: Path) -> None:
    """Big-endian, 64-bit."""
    rows = np.zeros((2, 20))
    rows[:, 7:10] = [[1, 2, 3], [4, 5, 6.5]]
    header = struct.pack(">4B3i", 3, 0, 0, 9, 20, 2, 1).ljust(512, b"\0")
    (tmp_path / "p.em").write_bytes(header + rows.astype(">f8").tobytes())
    assert places(read_points(tmp_path / "p.em")) == [[2, 1, 0], [5.5, 4, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_tomograms_go_by_their_numbers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p{KINDS[kind]}"
    parts = [(PICKS[:1], Frame(tomogram="TS_07")), (PICKS[1:], Frame(tomogram="rec/TS_012.mrc_10.00Apx.mrc"))]
    path.write_bytes(encode_picks(parts, kind, joint=True))
    assert not parts[0][1].notes
    for name, expected in (("TS_07", ZYX[:1]), ("TS_12.mrc", ZYX[1:]), ("tomo012", ZYX[1:]), ("7", ZYX[:1])):
        assert places(read_points(path, tomogram_name=name)) == expected
    for name in (None, "TS_17", "TS_7b"):
        with pytest.raises(InputError, match=r"points of 2 tomograms \(12, 7\)"):
            read_points(path, tomogram_name=name)
    assert read_points(path, tomogram_name=ALL)["tomogram"].tolist() == ["7", "12", "12"]


@pytest.mark.parametrize("kind", KINDS)
def test_tomograms_without_numbers_are_numbered(tmp_path: Path, kind: str) -> None:
    notes: list[str] = []
    path = tmp_path / f"p{KINDS[kind]}"
    write_picks(PICKS, path, format=kind, tomogram_name="lamella", notes=notes)
    assert read_points(path, tomogram_name="whatever")["tomogram"].tolist() == ["1"] * 3
    assert len(notes) == 1
    assert "1 is lamella, since its name does not end in one" in notes[0]
    parts = [(PICKS[:1], Frame(tomogram="day1_TS_7")), (PICKS[1:], Frame(tomogram="day2_TS_7"))]
    path.write_bytes(encode_picks(parts, kind, joint=True))
    assert read_points(path, tomogram_name=ALL)["tomogram"].tolist() == ["1", "2", "2"]
    assert "1 is day1_TS_7, 2 is day2_TS_7" in parts[0][1].notes[0]


def test_classes_come_along_or_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "p.tbl"
    path.write_text(table([row(3, 2, 2, c22=1, c20=1), row(4, 2, 2, c22=2, c20=1), row(5, 2, 2, c22=2, c20=2)]))
    assert read_points(path, tomogram_name="a_1")["class"].tolist() == [1, 2]
    assert read_points(path, tomogram_name="a_1", kind="2")["z"].tolist() == [3]
    with pytest.raises(InputError, match=r"points of 2 kinds \(1, 2\), none of them '3'"):
        read_points(path, tomogram_name="a_1", kind="3")


def test_dynamo_has_columns_that_are_no_numbers(tmp_path: Path) -> None:
    """daxis is a complex number at times, and tables may have more columns than are known."""
    cells = table([row(2, 3, 4)], width=45).split()
    cells[27] = "0.5+1.2i"
    (tmp_path / "p.tbl").write_text(",".join(cells))
    assert places(read_points(tmp_path / "p.tbl")) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3\n", "not a Dynamo table: line 1: 3 values, expected 26 or more"),
        (table([row(1, 2, 3)]).replace("0 0 0 3", "0 0 0 x"), "line 1: column 24 is 'x', expected a number"),
        (table([row(1, 2, 3, c1=1.5)]), "column instance: expected whole numbers"),
    ],
)
def test_what_is_no_dynamo_table(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.tbl").write_text(text)
    with pytest.raises(InputError, match=words):
        read_points(tmp_path / "p.tbl")


def test_what_is_no_motive_list(tmp_path: Path) -> None:
    path = tmp_path / "p.em"
    emfile.write(path, np.zeros((4, 5, 6), "f4"), {})
    assert not FORMATS["em"].looks_like(path.read_bytes())
    with pytest.raises(
        InputError, match=r"an EM file of 6 x 5 x 4 numbers .*expected a motive list: 20 x particles x 1"
    ):
        read_points(path)
    sound = encode_picks([(PICKS, Frame())], "em")
    assert FORMATS["em"].looks_like(sound)
    path.write_bytes(sound[:-4])
    with pytest.raises(InputError, match="truncated or damaged: 3 particles make 752 bytes, found 748"):
        read_points(path)
    path.write_bytes(b"\x01" + sound[1:])
    with pytest.raises(InputError, match="not an EM file"):
        read_points(path)
    rows = np.zeros((1, 20))
    rows[0, 17] = np.nan
    with pytest.raises(InputError, match="particle 1: row 18 is nan"):
        read_points(em(rows, path))
    path.write_bytes(sound[:512] + b"\x01\x00\xa0\x7f" + sound[516:])  # a signalling one, which casts warn of
    with pytest.raises(InputError, match="particle 1: row 1 is nan"):
        read_points(path)
    with pytest.raises(InputError, match="an instance above 16777216"):
        encode_picks([([Pick(1, 2, 3, 1, 2**24 + 1)], Frame())], "em")


def test_a_stopgap_list_is_known_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    write_picks(PICKS, path, format="stopgap", tomogram_name="TS_07")
    lines = path.read_text().splitlines()
    assert lines[lines.index("_class") + 1] == ""  # STOPGAP's reader passes over this line
    assert lines[lines.index("_class") + 3] == "2 7 1 2 B 129 311 56 0.25 0 0.25 0.5 0 0 0 1"
    assert places(read_points(path)) == places(read_points(path, format="stopgap")) == ZYX
    with pytest.raises(InputError, match="no particle coordinates: expected rlnCoordinateX/Y/Z"):
        read_points(path, format="relion4")
    write_picks(PICKS, path, format="star")
    with pytest.raises(InputError, match="not a STOPGAP motive list"):
        read_points(path, format="stopgap")
