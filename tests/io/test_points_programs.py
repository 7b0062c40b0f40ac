"""Files of PyTom, EMAN2, crYOLO and cryoSPARC: made by hand as these programs write them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points.files import FORMATS, Frame, encode_picks
from cryosam_dask.types import Pick

SHAPE = (121, 440, 441)
PICKS = [Pick(40, 100, 200, 0.5, 1), Pick(55.5, 310.25, 128, 0.25, 7)]
ZYX = [[pick.z, pick.y, pick.x] for pick in PICKS]


def places(table: Any) -> list[list[float]]:
    return table[["z", "y", "x"]].to_numpy().tolist()


def refusal(path: Path, content: str | bytes, **options: Any) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_points(path, **options)
    assert str(error.value).isprintable()
    return str(error.value)


# PyTom ----------------------------------------------------------------------------------------------------------------

PARTICLE = """<Particle Filename="Subtomograms/TS_07/particle_{i}.em">
    <Rotation X="30.0" Paradigm="ZXZ" Z1="10.0" Z2="20.0"/>
    <Shift X="0.5" Y="-1.0" Z="0.25"/>
    <PickPosition Origin="{origin}" X="{x}" Y="{y}" Z="{z}"/>
    <Wedge><SingleTiltWedge Smooth="0.0" Angle1="30.0" CutoffRadius="0.0" Angle2="30.0"/></Wedge>
    <InfoTomogram TomoName="tomogram" FolderName="1"/>
    <Score Type="FLCFScore" RemoveAutocorr="False" Value="0.{i}"><PeakPrior Smooth="-1" Radius="0.0"/></Score>
    <Class Name="{i}"/>
  </Particle>"""


def particles(*rows: tuple[float, float, float, str]) -> str:
    texts = [PARTICLE.format(i=i, z=z, y=y, x=x, origin=origin) for i, (z, y, x, origin) in enumerate(rows, start=1)]
    return "<!-- PyTom Version: 0.994 -->\n<ParticleList>\n  " + "\n  ".join(texts) + "\n</ParticleList>\n"


def test_pytom_as_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "pl.xml"
    path.write_text(particles((39.75, 101, 199.5, "rec/TS_07.em"), (1, 2, 3, "rec/TS_08.em")))
    table = read_points(path, tomogram_name="TS_07")
    assert places(table) == [[40, 100, 200]]
    assert table.iloc[0][["score", "instance", "class", "tomogram"]].tolist() == [0.1, 1, 1, "rec/TS_07.em"]
    assert table[["rot", "tilt", "psi"]].to_numpy().tolist() == [[80, 30, -110]]
    with pytest.raises(InputError, match=r"points of 2 tomograms \(rec/TS_07.em, rec/TS_08.em\), say which one"):
        read_points(path)
    path.write_text(particles((39.75, 101, 199.5, ""), (1, 2, 3, "")))
    assert read_points(path, kind="2")["z"].tolist() == [1.25]


def test_pytom_without_what_is_not_needed(tmp_path: Path) -> None:
    text = "<ParticleList><Particle><PickPosition X='3' Y='2' Z='1'/></Particle></ParticleList>"
    (tmp_path / "p.xml").write_text(text)
    table = read_points(tmp_path / "p.xml")
    assert list(table.columns) == ["z", "y", "x"]
    assert places(table) == [[1, 2, 3]]


def test_pytom_names_are_quoted_or_refused(tmp_path: Path) -> None:
    name = """<a> & 'b' "c".mrc"""
    (tmp_path / "p.xml").write_bytes(encode_picks([(PICKS, Frame(tomogram=name))], "pytom"))
    assert set(read_points(tmp_path / "p.xml")["tomogram"]) == {name}
    with pytest.raises(InputError, match="has signs that XML can't hold"):
        encode_picks([(PICKS, Frame(tomogram="a\x01b"))], "pytom")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<ParticleList>", "not readable XML: no element found"),
        ("<TiltSeries/>", "XML of TiltSeries, expected a PyTom ParticleList"),
        ("<ParticleList/>", "holds no points"),
        ("<ParticleList><Particle/></ParticleList>", "particle 1: no PickPosition"),
        (
            particles((1, 2, 3, "")).replace('Z="1"', 'Z="x"'),
            "particle 1: Z of its PickPosition is 'x', expected a number",
        ),
        (particles((1, 2, 3, "")).replace("ZXZ", "ZYZ"), "a rotation in ZYZ, expected ZXZ"),
        ('<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ParticleList/>', "XML with a document type"),
        ("", "empty, expected points as a PyTom particle list"),
    ],
)
def test_what_is_no_particle_list(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path / "p.xml", text)


# EMAN2 ----------------------------------------------------------------------------------------------------------------


def eman2(boxes: list[list[Any]], **more: Any) -> str:
    classes = {"0": {"name": "ribosome", "boxsize": 32}, "1": {"name": "apo", "boxsize": 64}}
    return json.dumps({"boxes_3d": boxes, "class_list": classes, **more})


def test_eman2_counts_unbinned_pixels_from_the_centre(tmp_path: Path) -> None:
    """By EMAN2's own formula: voxel = unbinned · apix_unbin / apix + n // 2."""
    path = tmp_path / "TS_07_info.json"
    frame = {"voxel_size": 12.0, "shape": SHAPE}
    unbinned = [[(v - n // 2) * 6 for v, n in zip(place[::-1], SHAPE[::-1], strict=True)] for place in ZYX]
    boxes = [[*unbinned[0], "manual", 0.0, 0], [*unbinned[1], "tm", 3.5, 1, 7.0]]
    path.write_text(eman2(boxes, apix_unbin=2.0, ali_loss=[1], tlt_params=[[0, 0, 0, 0, 0]]))
    table = read_points(path, kind="*", **frame)
    assert places(table) == ZYX
    assert table["kind"].tolist() == ["ribosome", "apo"]
    assert table["score"].tolist() == [0, 3.5]
    assert places(read_points(path, kind="apo", **frame)) == ZYX[1:]
    assert places(read_points(path, kind="apo", format="eman2", **frame)) == ZYX[1:]
    with pytest.raises(InputError, match=r"points of 2 kinds \(apo, ribosome\), say which one"):
        read_points(path, **frame)
    assert "its shape is needed" in refusal(path, path.read_bytes(), voxel_size=12.0)
    assert "voxel size is needed" in refusal(path, path.read_bytes(), shape=SHAPE)


def test_eman2_of_older_times(tmp_path: Path) -> None:
    """Voxels of the tomogram; entries of three numbers, classes that have a name alone, or none."""
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"boxes_3d": [[200, 100, 40], [128, 310.25, 55.5]], "class_list": {"0": "apo"}}))
    table = read_points(path)
    assert places(table) == ZYX
    assert table["kind"].tolist() == ["apo", "apo"]
    path.write_text(json.dumps({"boxes_3d": [[200, 100, 40, "manual", 0, 3]]}))
    assert read_points(path)["kind"].tolist() == ["particles_03"]


def test_eman2_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_picks(PICKS, path, format="eman2", voxel_size=12.0, shape=SHAPE, kind="ribosome")
    content = json.loads(path.read_text())
    assert content["apix_unbin"] == 12.0
    assert content["boxes_3d"][0] == [200 - 220, 100 - 220, 40 - 60, "cryosam", 0.5, 0]
    assert content["class_list"] == {"0": {"name": "ribosome", "boxsize": 32}}
    assert read_points(path, voxel_size=12.0, shape=SHAPE, kind="ribosome")["score"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (eman2([]), "holds no points"),
        (eman2([[1, 2]]), r"box 1 is [1, 2], expected x, y, z and more"),
        (eman2([[1, 2, "a"]]), "box 1: z is a, expected a number"),
        (eman2([[1, 2, 3, "manual", "x", 0]]), "box 1: score is x, expected a number"),
        (eman2([[1, 2, 3, "manual", 0, 0.5]]), "box 1: class is 0.5, expected a whole number"),
        (eman2([[1, 2, 3]], apix_unbin=0), "apix_unbin is 0 Å"),
        (json.dumps({"boxes_3d": 4}), "expected 'boxes_3d' to be a list"),
        (json.dumps({"class_list": {}}), "expected 'points' to be a list"),
    ],
)
def test_what_is_no_file_of_boxes(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path / "p.json", text, voxel_size=12.0, shape=SHAPE)


# crYOLO ---------------------------------------------------------------------------------------------------------------

CBOX = """
data_global

_cbox_format_version 1.0

data_cryolo

loop_
_CoordinateX #1
_CoordinateY #2
_CoordinateZ #3
_Width #4
_Height #5
_Depth #6
_EstWidth #7
_EstHeight #8
_Confidence #9
_NumBoxes #10
_Angle #11
181.0 80.0 40.0 38 40 38 37.0 37.0 0.75 9 <NA>
109.0 290.25 55.5 38 40 38 37.0 37.0 0.5 9 <NA>

data_cryolo_include

loop_
_slice_index #1
40
55
"""


def test_cryolo_has_corners_in_x_and_y_and_the_centre_in_z(tmp_path: Path) -> None:
    path = tmp_path / "p.cbox"
    path.write_text(CBOX)
    table = read_points(path)
    assert places(table) == ZYX
    assert table["score"].tolist() == [0.75, 0.5]
    path.write_text(CBOX.replace(" 0.75 9", " <NA> 9"))
    assert list(read_points(path).columns) == ["z", "y", "x"]


def test_cryolo_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.cbox"
    write_picks(PICKS, path)
    theirs = starfile.read(path)
    assert theirs["global"]["cbox_format_version"] == 1.0
    boxes = theirs["cryolo"]
    np.testing.assert_array_equal(boxes["CoordinateX"] + boxes["Width"] / 2, [200, 128])
    np.testing.assert_array_equal(boxes["CoordinateY"] + boxes["Height"] / 2, [100, 310.25])
    assert boxes["CoordinateZ"].tolist() == [40, 55.5]
    assert boxes["Confidence"].tolist() == [0.5, 0.25]
    assert theirs["cryolo_include"]["slice_index"].tolist() == [40, 55.5]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("40.0 38", "<NA> 38", "CoordinateZ is '<NA>', expected a number"),
        ("Width", "Breadth", "no boxes: expected a table with CoordinateX, CoordinateY, CoordinateZ, Width, Height"),
        (" 38 40 38", " 38 -40 38", "a box of size -40.0"),
        ("181.0", "x", "CoordinateX is 'x', expected a number"),
    ],
)
def test_what_are_no_boxes_of_cryolo(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert words in refusal(tmp_path / "p.cbox", CBOX.replace(old, new))


def test_boxes_of_a_micrograph_are_no_points_of_a_tomogram(tmp_path: Path) -> None:
    text = CBOX.replace("40.0 38", "<NA> 38").replace("55.5 38", "<NA> 38")
    assert "boxes of a micrograph: none has a CoordinateZ" in refusal(tmp_path / "p.cbox", text)


# cryoSPARC ------------------------------------------------------------------------------------------------------------


def cs(path: Path, fields: dict[str, Any]) -> Path:
    arrays = {name: np.asarray(values) for name, values in fields.items()}
    table = np.zeros(2, [(name, values.dtype) for name, values in arrays.items()])
    for name, values in arrays.items():
        table[name] = values
    with path.open("wb") as file:
        np.save(file, table)
    return path


def test_cryosparc_has_no_place_in_a_tomogram(tmp_path: Path) -> None:
    flat = {"uid": [1, 2], "location/center_x_frac": [0.1, 0.2], "location/center_y_frac": [0.1, 0.2]}
    content = cs(tmp_path / "p.cs", flat).read_bytes()
    assert "2 particles without a place in a tomogram (no location/center_z_frac)" in refusal(
        tmp_path / "p.cs", content
    )
    with pytest.raises(InputError, match="cryosparc is read, not written; picks are written as csv, star"):
        write_picks(PICKS, tmp_path / "q.cs")
    assert not (tmp_path / "q.cs").exists()


def test_cryosparc_with_three_coordinates(tmp_path: Path) -> None:
    fields = {
        f"location/center_{a}_frac": np.array(v)
        for a, v in zip("xyz", ([0.5, 0.25], [0.1, 0.2], [0, 1 / 3]), strict=True)
    }
    fields["location/micrograph_path"] = np.array([b"rec/TS_07.mrc", b"rec/TS_08.mrc"])
    path = cs(tmp_path / "p.cs", fields)
    assert places(read_points(path, shape=(30, 100, 200), tomogram_name="TS_08")) == [[10, 20, 50]]
    assert "its shape is needed" in refusal(path, path.read_bytes())


@pytest.mark.parametrize("content", [b"PK\3\4", b"\x93NUMPY\1\0\xff\xff", b"\x93NUMPY\x09\0", b"\x93NUMPY"])
def test_what_is_no_file_of_cryosparc(tmp_path: Path, content: bytes) -> None:
    assert "not a .cs file of cryoSPARC" in refusal(tmp_path / "p.cs", content)


def test_cryosparc_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "p.cs"
    with path.open("wb") as file:
        np.save(file, np.array([(1, {"a": 1})], [("uid", int), ("blob", object)]))
    assert "expected one table, of numbers and texts" in refusal(path, path.read_bytes())
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 3)))
    assert "expected one table, of numbers and texts" in refusal(path, path.read_bytes())
    whole = cs(path, {"uid": [1, 2]}).read_bytes()
    assert "truncated: 2 particles of 8 bytes" in refusal(path, whole[:-1])


# Of files that share a suffix with points -----------------------------------------------------------------------------


def test_what_lists_look_like() -> None:
    xml, sparc = FORMATS["pytom"].looks_like, FORMATS["cryosparc"].looks_like
    assert xml is not None
    assert sparc is not None
    assert xml(particles((1, 2, 3, "")).encode())
    assert not xml(b"<TiltSeries AreAnglesInverted='False'>")
    assert sparc(b"\x93NUMPY\1\0")
    assert not sparc(b"using System;")
