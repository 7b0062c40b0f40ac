"""Formats of points: each convention against files of its own library or made by hand, and round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imodmodel
import numpy as np
import pandas as pd
import pytest
import starfile
from imodmodel import models

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points.files import ALL, FORMATS, Frame, encode_picks
from cryosam_dask.types import Pick

ODD, EVEN = (35, 205, 93), (36, 204, 94)
CUBIC, OBLONG = (10.52, 10.52, 10.52), (7.0, 8.25, 9.5)
SUFFIXES = {name: (kind.suffixes or kind.among)[0] for name, kind in FORMATS.items()}
WRITTEN = [name for name, kind in FORMATS.items() if kind.encode]
EXACT = {"csv", "ndjson", "parquet"}
NO_SCORES = {"ndjson", "xyz"}
NO_INSTANCES = {"eman2", "cryolo"}
ONE_VOXEL_SIZE = {"warp", "eman2"}
NUMBERS = {"dynamo", "em", "stopgap"}
"""Formats that number tomograms."""
LARGEST_INSTANCE = {"em": 2**24}


def picks(shape: tuple[int, int, int]) -> list[Pick]:
    """The first and the last voxel's centre, half-voxel positions, the middle, and one of no short number."""
    last = [side - 1.0 for side in shape]
    middle = [side / 2 for side in shape]
    return [
        Pick(0.0, 0.0, 0.0, 0.875, 1),
        Pick(*last, 0.5, 2),
        Pick(0.5, 10.5, 20.5, 0.25, 3),
        Pick(*middle, -1.5, 70000),
        Pick(1 / 3, 100.1, 0.1 + 0.2, 0.987654321, 2**31 - 1),
    ]


def picks_for(kind: str, shape: tuple[int, int, int]) -> list[Pick]:
    """`picks`, with no instance above what a format can hold."""
    largest = LARGEST_INSTANCE.get(kind, 2**31)
    return [replace(pick, instance=min(pick.instance, largest)) for pick in picks(shape)]


def places(table: pd.DataFrame) -> np.ndarray:
    return table[["z", "y", "x"]].to_numpy()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        read_points(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("shape", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("voxel", [CUBIC, OBLONG], ids=["cubic", "oblong"])
def test_picks_come_back(tmp_path: Path, kind: str, shape: tuple, voxel: tuple) -> None:
    path, frame = tmp_path / f"p{SUFFIXES[kind]}", {"voxel_size": voxel, "shape": shape}
    written = picks_for(kind, shape)
    names = {"tomogram_name": "TS_1", "kind": "ribosome"}
    if kind in ONE_VOXEL_SIZE and voxel == OBLONG:
        with pytest.raises(InputError, match=r"know one voxel size, the tomogram's is 7 x 8\.25 x 9\.5 Å"):
            write_picks(written, path, format=kind, **frame, **names)
        assert not path.exists()
        return
    write_picks(written, path, format=kind, **frame, **names)
    back = read_points(path, **frame)
    expected = np.array([(pick.z, pick.y, pick.x) for pick in written])
    halves = slice(0, 4)
    np.testing.assert_array_equal(places(back)[halves], expected[halves])
    np.testing.assert_allclose(places(back), expected, rtol=0, atol=0 if kind in EXACT else 5e-6)
    if kind in NO_SCORES:
        assert list(back.columns) == ["z", "y", "x"]
        return
    np.testing.assert_allclose(back["score"], [pick.score for pick in written], rtol=0, atol=1e-6)
    if kind in NO_INSTANCES:
        assert "instance" not in back
        back = back.assign(instance=range(1, len(back) + 1))
    else:
        assert back["instance"].tolist() == [pick.instance for pick in written]
    assert back["instance"].dtype == np.int64
    again = tmp_path / f"again{SUFFIXES[kind]}"
    write_picks(back, again, format=kind, **frame, **names)
    np.testing.assert_array_equal(places(read_points(again, **frame)), places(back))


@pytest.mark.parametrize("kind", WRITTEN)
def test_points_beyond_the_border_come_back(tmp_path: Path, kind: str) -> None:
    path, frame = tmp_path / f"p{SUFFIXES[kind]}", {"voxel_size": 10, "shape": ODD, "tomogram_name": "TS_1"}
    written = [Pick(-1.5, 100, 50, 1, 1), Pick(30, 206.25, -0.75, 1, 2)]
    write_picks(written, path, format=kind, kind="ribosome", **frame)
    np.testing.assert_allclose(places(read_points(path, **frame)), [(p.z, p.y, p.x) for p in written], atol=5e-6)


@pytest.mark.parametrize("kind", WRITTEN)
def test_no_picks_make_a_file_that_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p{SUFFIXES[kind]}"
    frame = {"voxel_size": 10, "shape": EVEN}
    write_picks([], path, format=kind, tomogram_name="TS_1", kind="ribosome", **frame)
    assert ("empty" if kind in {*NO_SCORES, "dynamo"} else "no points") in refusal(path, **frame)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("relion5", {"shape": EVEN, "tomogram_name": "a"}, "voxel size"),
        ("relion5", {"voxel_size": 10, "tomogram_name": "a"}, "voxel size and shape"),
        ("relion5", {"voxel_size": 10, "shape": EVEN}, "need the tomogram's name"),
        ("warp", {"voxel_size": 10}, "need the tomogram's name"),
        ("warp", {"tomogram_name": "a"}, "voxel size"),
        ("eman2", {"shape": EVEN}, "voxel size"),
        ("eman2", {"voxel_size": 10}, "its shape is needed"),
        ("copick", {"voxel_size": 10}, "the object's name"),
        ("copick", {"kind": "ribosome"}, "voxel size"),
    ],
)
def test_what_a_format_needs_is_asked_for(tmp_path: Path, kind: str, given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_picks(picks(EVEN), tmp_path / "p", format=kind, **given)
    assert not any(tmp_path.iterdir())


# Several tomograms and kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if each.joint])
def test_a_joint_file_gives_each_tomogram_its_points(tmp_path: Path, kind: str) -> None:
    """Odd and even sizes and several voxel sizes in one file: each is converted by its own."""
    frames = {name: (shape, size) for name, shape, size in (("TS_1", ODD, 10.0), ("TS_2", EVEN, 13.5))}
    path = tmp_path / f"p{SUFFIXES[kind]}"
    parts = [(picks_for(kind, shape), Frame((size,) * 3, shape, name)) for name, (shape, size) in frames.items()]
    path.write_bytes(encode_picks(parts, kind, joint=True))
    called = {"warp": ["TS_1.tomostar", "TS_2.tomostar"]}.get(kind, ["1", "2"] if kind in NUMBERS else ["TS_1", "TS_2"])
    frame = {"voxel_size": 10.0, "shape": ODD}
    assert f"points of 2 tomograms ({', '.join(called)}), say which one" in refusal(path, **frame)
    assert "none of them 'TS_3'" in refusal(path, tomogram_name="TS_3", **frame)
    every = read_points(path, tomogram_name=ALL, **frame)
    assert every["tomogram"].tolist() == [called[0]] * 5 + [called[1]] * 5
    close = 5e-6 if kind == "em" else 1e-6  # em has 24 bits
    np.testing.assert_allclose(places(every)[:5], [(p.z, p.y, p.x) for p in picks(ODD)], rtol=0, atol=close)
    for name, (shape, size) in frames.items():
        found = read_points(path, tomogram_name=name, voxel_size=size, shape=shape)
        np.testing.assert_allclose(places(found), [(p.z, p.y, p.x) for p in picks(shape)], rtol=0, atol=close)


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if not each.joint])
def test_a_format_of_one_tomogram_says_so(kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} holds the picks of one tomogram alone; of several: csv, star"):
        encode_picks([(picks(ODD), Frame()), (picks(ODD), Frame())], kind, joint=True)


def test_a_name_that_could_be_two_is_asked_about(tmp_path: Path) -> None:
    """The folder tells them apart, and a tomogram's file name has none."""
    path = tmp_path / "p.csv"
    path.write_text("tomogram,z,y,x\nday1/TS_1.mrc,1,2,3\nday2/TS_1.mrc,4,5,6\nTS_2,7,8,9\n")
    assert "several of them 'TS_1'" in refusal(path, tomogram_name="TS_1")
    assert read_points(path, tomogram_name="day2/TS_1.mrc")["z"].tolist() == [4]
    assert read_points(path, tomogram_name="TS_2.mrc")["z"].tolist() == [7]


def test_a_tomograms_name_is_no_comment(tmp_path: Path) -> None:
    parts = [(picks(ODD)[:1], Frame(tomogram=name)) for name in ("TS#1", "TS, 2")]
    (tmp_path / "p.csv").write_bytes(encode_picks(parts, "csv", joint=True))
    assert read_points(tmp_path / "p.csv", tomogram_name=ALL)["tomogram"].tolist() == ["TS#1", "TS, 2"]


def test_classes_come_along_or_are_chosen(tmp_path: Path) -> None:
    columns = {**{f"rlnCoordinate{axis}": [1.0, 2.0, 3.0] for axis in "XYZ"}, "rlnClassNumber": [1, 2, 1]}
    starfile.write({"particles": pd.DataFrame(columns)}, tmp_path / "p.star")
    assert read_points(tmp_path / "p.star")["class"].tolist() == [1, 2, 1]
    assert read_points(tmp_path / "p.star", kind="1")["z"].tolist() == [1, 3]
    assert "points of 2 kinds (1, 2), none of them '3'" in refusal(tmp_path / "p.star", kind="3")


# RELION 5 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def relion5(tmp_path: Path) -> Path:
    """A project of RELION 5: two tomograms of sizes that binning by 4 does not divide, one point in each voxel 0."""
    job = tmp_path / "Extract" / "job012"
    job.mkdir(parents=True)
    sizes = {"TS_01": (1023, 1440, 401), "TS_03": (1024, 1441, 400)}
    common = {"rlnTomoTiltSeriesPixelSize": 1.35, "rlnVoltage": 300.0, "rlnTomoTomogramBinning": 4.0}
    tomograms = pd.DataFrame(
        [
            {"rlnTomoName": name, "rlnTomoSizeX": x, "rlnTomoSizeY": y, "rlnTomoSizeZ": z, **common}
            for name, (x, y, z) in sizes.items()
        ]
    )
    starfile.write({"global": tomograms}, job / "tomograms.star")
    rows = []
    for name, sides in sizes.items():
        for voxel in ((0, 0, 0), (10, 20, 30.5)):  # x, y, z in voxels of the tomogram binned by 4
            centred = [(4 * v - side / 2) * 1.35 for v, side in zip(voxel, sides, strict=True)]
            rows.append([name, *centred])
    labels = ["rlnTomoName", *(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")]
    particles = pd.DataFrame(rows, columns=labels).assign(
        rlnOpticsGroup=1, rlnTomoParticleName="TS_01/1", rlnAngleRot=0.0
    )
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnTomoTiltSeriesPixelSize": [1.35], "rlnImageSize": [64]})
    starfile.write({"optics": optics, "particles": particles}, job / "particles.star", float_format="%.6f")
    named = {
        "rlnTomoParticlesFile": "Extract/job012/particles.star",
        "rlnTomoTomogramsFile": "Extract/job012/tomograms.star",
    }
    text = "\ndata_\n\n" + "".join(f"_{key}    {value}\n" for key, value in named.items())
    (job / "optimisation_set.star").write_text(text)
    return job


@pytest.mark.parametrize("by", ["set", "tomograms"])
@pytest.mark.parametrize("name", ["TS_01", "TS_03"])
def test_relion5_counts_from_the_unbinned_centre(relion5: Path, by: str, name: str) -> None:
    frame = {"voxel_size": 5.4, "shape": (100, 360, 256), "tomogram_name": name}
    file = "optimisation_set.star" if by == "set" else "particles.star"
    more = {} if by == "set" else {"tomograms": relion5 / "tomograms.star"}
    np.testing.assert_array_equal(places(read_points(relion5 / file, **frame, **more)), [[0, 0, 0], [30.5, 20, 10]])


def test_relion5_without_sizes_takes_the_tomogram_at_hand(relion5: Path) -> None:
    """Right where the binning divides the size (y of TS_01, z of TS_03), off by what it leaves elsewhere."""
    frame = {"voxel_size": 5.4, "shape": (101, 360, 256)}
    found = read_points(relion5 / "particles.star", tomogram_name="TS_01", **frame)
    np.testing.assert_allclose(places(found)[1], [30.5 + (101 - 401 / 4) / 2, 20, 10 + (256 - 1023 / 4) / 2])


def test_relion5_is_written_from_the_unbinned_centre(relion5: Path, tmp_path: Path) -> None:
    frame = {"voxel_size": 5.4, "shape": (100, 360, 256), "tomogram_name": "TS_01"}
    path, sizes = tmp_path / "p.star", relion5 / "tomograms.star"
    write_picks([Pick(30.5, 20, 10, 1, 1)], path, format="relion5", tomograms=sizes, **frame)
    ours, theirs = starfile.read(path), starfile.read(relion5 / "particles.star")["particles"]
    for axis in "XYZ":
        column = f"rlnCenteredCoordinate{axis}Angst"
        assert ours[column].iloc[0] == pytest.approx(theirs[column].iloc[1], abs=1e-6)
    assert ours["rlnTomoName"].tolist() == ["TS_01"]
    with pytest.raises(InputError, match=r"tomograms\.star: no tomogram 'rec', there are: TS_01, TS_03"):
        write_picks([], path, format="relion5", tomograms=sizes, **{**frame, "tomogram_name": "rec"})


def test_an_optimisation_set_that_leads_nowhere(relion5: Path) -> None:
    whole = (relion5 / "optimisation_set.star").read_text()
    (relion5 / "optimisation_set.star").write_text(whole.replace("Extract/", "a" * 5000))
    assert "it names aaaa" in refusal(relion5 / "optimisation_set.star")
    (relion5 / "optimisation_set.star").write_text(whole)
    (relion5 / "particles.star").unlink()
    assert "it names Extract/job012/particles.star, which is not there" in refusal(relion5 / "optimisation_set.star")
    assert "no particle coordinates" in refusal(relion5 / "tomograms.star")


def test_what_is_no_tomograms_file(relion5: Path) -> None:
    frame = {"voxel_size": 5.4, "tomogram_name": "TS_01"}
    message = refusal(relion5 / "particles.star", tomograms=relion5 / "particles.star", **frame)
    assert "no tomograms: expected a table with rlnTomoName" in message


def test_the_convention_asked_for_is_the_one_read(tmp_path: Path) -> None:
    """A file with both kinds of columns, which do not agree."""
    columns = {f"rlnCoordinate{axis}": [1.0] for axis in "XYZ"} | {
        f"rlnCenteredCoordinate{a}Angst": [0.0] for a in "XYZ"
    }
    starfile.write({"particles": pd.DataFrame(columns)}, tmp_path / "p.star")
    frame = {"voxel_size": 2.0, "shape": (4, 5, 6)}
    assert places(read_points(tmp_path / "p.star", format="relion4", **frame)).tolist() == [[1, 1, 1]]
    assert places(read_points(tmp_path / "p.star", format="relion5", **frame)).tolist() == [[2, 2.5, 3]]
    starfile.write({"particles": pd.DataFrame(columns).iloc[:, :3]}, tmp_path / "p.star")
    assert "expected rlnCenteredCoordinateX/Y/ZAngst" in refusal(tmp_path / "p.star", format="relion5", **frame)


# Warp and M -----------------------------------------------------------------------------------------------------------


def test_warp_writes_pixels_of_the_tomogram(tmp_path: Path) -> None:
    write_picks([Pick(1, 2.5, 3, 0.5, 4)], tmp_path / "p.star", format="warp", voxel_size=10, tomogram_name="TS_1")
    assert starfile.read(tmp_path / "p.star").iloc[0].to_dict() == {
        "rlnCoordinateX": 3,
        "rlnCoordinateY": 2.5,
        "rlnCoordinateZ": 1,
        "rlnMicrographName": "TS_1.tomostar",
        "rlnPixelSize": 10,
        "rlnAutopickFigureOfMerit": 0.5,
        "rlnTomoParticleId": 4,
    }


def test_warps_template_matching_gives_fractions(tmp_path: Path) -> None:
    """As `MatchFull` writes: Å of the voxel over Å of the volume, and the tilt series' name."""
    shape = (50, 81, 60)
    voxels = np.array([[10.0, 40.5, 30.0], [49, 80, 59], [0, 0, 0]])
    table = pd.DataFrame({f"rlnCoordinate{axis}": voxels[:, 2 - i] / shape[2 - i] for i, axis in enumerate("XYZ")})
    table = table.assign(rlnAngleRot=1.0, rlnMicrographName="TS_1.tomostar", rlnAutopickFigureOfMerit=[9.5, 8, 7])
    starfile.write(table, tmp_path / "p.star", float_format="%.9f")
    found = read_points(tmp_path / "p.star", shape=shape, voxel_size=10, tomogram_name="TS_1")
    np.testing.assert_allclose(places(found), voxels, atol=1e-6)
    assert found["score"].tolist() == [9.5, 8, 7]
    assert "its shape is needed" in refusal(tmp_path / "p.star")
    # pixels, if one of them is beyond 1
    starfile.write(table.assign(rlnCoordinateX=1.5), tmp_path / "p.star")
    assert read_points(tmp_path / "p.star", shape=shape)["x"].tolist() == [1.5] * 3


def test_warps_export_counts_its_own_pixels(tmp_path: Path) -> None:
    """Subtomograms exported at 4 Å from a tomogram of 10 Å."""
    table = pd.DataFrame({f"rlnCoordinate{axis}": [25.0, 0.5] for axis in "XYZ"})
    table = table.assign(
        rlnMicrographName="TS_1.tomostar", rlnPixelSize=4.0, rlnOriginX=0.0, rlnOriginY=5.0, rlnOriginZ=0
    )
    starfile.write(table.iloc[:1], tmp_path / "p.star")
    assert places(read_points(tmp_path / "p.star", voxel_size=10)).tolist() == [[10, 8, 10]]
    assert "--voxel-size" in refusal(tmp_path / "p.star")


@pytest.mark.parametrize("asked", [None, "warp"])
def test_ms_particles_are_ångström(tmp_path: Path, asked: str | None) -> None:
    """Two points of a trajectory, of which M takes the mean."""
    table = pd.DataFrame(
        {
            **{f"wrpCoordinate{axis}1": [x, 10.0] for axis, x in zip("XYZ", (300.0, 200.0, 95.0), strict=True)},
            **{f"wrpCoordinate{axis}2": [x, 10.0] for axis, x in zip("XYZ", (300.0, 200.0, 105.0), strict=True)},
            "wrpAngleRot1": [0.0, 0.0],
            "wrpRandomSubset": [1, 2],
            "wrpSourceName": ["TS_1.tomostar", "TS_2.tomostar"],
            "wrpSourceHash": ["a1", "b2"],
        }
    )
    starfile.write(table, tmp_path / "p.star")
    found = read_points(tmp_path / "p.star", voxel_size=(10, 10, 20), tomogram_name="TS_1", format=asked)
    assert places(found).tolist() == [[10, 20, 15]]
    assert found["tomogram"].tolist() == ["TS_1.tomostar"]
    assert "points of 2 tomograms (TS_1.tomostar, TS_2.tomostar), say which one" in refusal(
        tmp_path / "p.star", voxel_size=10
    )
    assert "--voxel-size" in refusal(tmp_path / "p.star", tomogram_name="TS_1")


# IMOD -----------------------------------------------------------------------------------------------------------------


def test_imod_counts_edges_in_plane_and_centres_across(tmp_path: Path) -> None:
    """The centre of voxel (k, j, i) is x = i + 0.5, y = j + 0.5, z = k."""
    write_picks([Pick(1, 2, 3, 0.75, 9), Pick(0, 0, 0.5, 0.25, 4)], tmp_path / "p.mod", voxel_size=OBLONG, shape=ODD)
    table = imodmodel.read(tmp_path / "p.mod")
    assert table[["x", "y", "z"]].to_numpy().tolist() == [[3.5, 2.5, 1], [1, 0.5, 0]]
    model = models.ImodModel.from_file(tmp_path / "p.mod")
    assert (model.header.xmax, model.header.ymax, model.header.zmax) == (93, 205, 35)
    assert model.header.flags.z_coordinates_start_from_negative_half
    assert (model.header.units, model.header.pixelsize) == (-9, pytest.approx(0.95))
    assert [contour.header.surf for contour in model.objects[0].contours] == [9, 4]
    assert model.objects[0].header.flags.scattered
    values = [item.value for item in model.objects[0].extra]
    assert values == [0.75, 0.25, 0.75]  # of the contours; then the limits
    assert model.minx is None


def imod_model(path: Path, points: list[list[float]], flags: int = 0, maxima=(0, 0, 0), minx: Any = None) -> Path:
    model = models.ImodModel.from_dataframe(pd.DataFrame(points, columns=["x", "y", "z"]))
    model.header.flags = models.ModelFlags(flags)
    model.header.xmax, model.header.ymax, model.header.zmax = maxima
    model.minx = minx
    model.to_file(path)
    return path


def minx(otrans=(0, 0, 0), ctrans=(0, 0, 0), scale=(1, 1, 1)) -> models.MINX:
    rest = {"oscale": (1, 1, 1), "orot": (0, 0, 0), "crot": (0, 0, 30)}
    return models.MINX(otrans=otrans, ctrans=ctrans, cscale=scale, **rest)


pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # imodmodel's own
OTRANS, FLIPPED, ROTATED = 1 << 14, 1 << 16, 1 << 17


def test_imod_models_of_imodmodel_are_read(tmp_path: Path) -> None:
    imodmodel.write(pd.DataFrame({"x": [0.5, 3.25], "y": [0.5, 2.0], "z": [0.0, 1.5]}), tmp_path / "p.mod")
    found = read_points(tmp_path / "p.mod")
    assert places(found).tolist() == [[0, 0, 0], [1.5, 1.5, 2.75]]
    assert list(found.columns) == ["z", "y", "x", "kind"]


def test_imod_models_of_a_part_of_the_image_are_moved(tmp_path: Path) -> None:
    """On a part that begins at voxel (z, y, x) = (2, 5, 10) of 4 Å: 3dmod keeps the origin less that corner."""
    part = minx(otrans=(7, 8, 9), ctrans=(7 - 40, 8 - 20, 9 - 8), scale=(4, 4, 4))
    path = imod_model(tmp_path / "p.mod", [[0.5, 0.5, 0]], OTRANS, minx=part)
    assert places(read_points(path, voxel_size=4, shape=(50, 60, 70))).tolist() == [[2, 5, 10]]
    # without the flag, the old translation is not the image's origin
    path = imod_model(tmp_path / "p.mod", [[0.5, 0.5, 0]], 0, minx=part)
    assert places(read_points(path)).tolist() == [[0, 0, 0]]


def test_imod_models_of_another_binning_are_scaled(tmp_path: Path) -> None:
    """A voxel of the binned volume covers two: the centre of the first is the edge between voxels 0 and 1."""
    frame = {"voxel_size": 5, "shape": (50, 60, 70)}
    path = imod_model(
        tmp_path / "p.mod", [[0.5, 0.5, 0], [35, 30, 24.5]], OTRANS, (35, 30, 25), minx(scale=(10, 10, 10))
    )
    assert places(read_points(path, **frame)).tolist() == [[0.5, 0.5, 0.5], [49.5, 59.5, 69.5]]
    # the same pixels: another volume, or points beyond; nothing is scaled
    path = imod_model(tmp_path / "p.mod", [[0.5, 0.5, 0]], OTRANS, (35, 30, 25), minx(scale=(5, 5, 5)))
    assert places(read_points(path, **frame)).tolist() == [[0, 0, 0]]


def test_imod_models_on_turned_views(tmp_path: Path) -> None:
    """Y and Z exchanged, as 3dmod does; a rotation is never saved."""
    path = imod_model(tmp_path / "p.mod", [[1.5, 10, 20.5]], FLIPPED)
    assert places(read_points(path)).tolist() == [[10, 20, 1]]
    path = imod_model(tmp_path / "p.mod", [[1.5, 10, 20.5]], ROTATED)
    assert "rotated view" in refusal(path)


def test_imod_objects_are_kinds(tmp_path: Path) -> None:
    objects = []
    for name, points in (("ribosome", [[1, 1, 1], [2, 2, 2]]), ("", [[3, 3, 3]]), ("empty", [])):
        contours = [models.Contour(points=np.array(points, float))] if points else []
        objects.append(models.Object(header=models.ObjectHeader(name=name), contours=contours))
    models.ImodModel(objects=objects).to_file(tmp_path / "p.mod")
    assert "points of 2 kinds (object 2, ribosome), say which one" in refusal(tmp_path / "p.mod")
    assert len(read_points(tmp_path / "p.mod", kind="ribosome")) == 2
    assert read_points(tmp_path / "p.mod", kind="object 2")["z"].tolist() == [3]
    assert len(read_points(tmp_path / "p.mod", kind=ALL)) == 3


# copick ---------------------------------------------------------------------------------------------------------------


def test_copick_is_ångström_from_the_first_voxel(tmp_path: Path) -> None:
    frame = {"voxel_size": (2, 3, 4), "shape": ODD, "tomogram_name": "TS_1", "kind": "ribosome"}
    write_picks([Pick(1, 2, 3.5, 0.5, 7)], tmp_path / "p.json", user="me", session="12", **frame)
    assert json.loads((tmp_path / "p.json").read_text()) == {
        "pickable_object_name": "ribosome",
        "user_id": "me",
        "session_id": "12",
        "run_name": "TS_1",
        "voxel_spacing": None,  # copick knows cubes alone
        "unit": "angstrom",
        "points": [
            {
                "location": {"x": 14.0, "y": 6.0, "z": 2.0},
                "transformation_": np.eye(4).tolist(),
                "instance_id": 7,
                "score": 0.5,
            }
        ],
        "trust_orientation": False,
    }
    write_picks([], tmp_path / "p.json", **(frame | {"voxel_size": 10.5}))
    assert json.loads((tmp_path / "p.json").read_text())["voxel_spacing"] == 10.5


def copick_file(path: Path, *points: Any, **fields: Any) -> Path:
    content = {"pickable_object_name": "apo", "user_id": "u", "session_id": "1", "points": list(points)}
    path.write_text(json.dumps(content | fields))
    return path


def at(x: float, y: float, z: float, **fields: Any) -> dict[str, Any]:
    return {"location": {"x": x, "y": y, "z": z}, **fields}


def test_copick_points_say_what_they_say(tmp_path: Path) -> None:
    path = copick_file(tmp_path / "p.json", at(30, 20, 10), at(1, 2, 3), run_name=None)
    found = read_points(path, voxel_size=10)
    assert places(found).tolist() == [[1, 2, 3], [0.3, 0.2, 0.1]]
    assert list(found.columns) == ["z", "y", "x", "kind"]
    path = copick_file(tmp_path / "p.json", at(30, 20, 10, score=0.25), at(1, 2, 3, instance_id=5), run_name="TS_1")
    found = read_points(path, voxel_size=10, tomogram_name="other")
    assert found["score"].tolist() == [0.25, 1]
    assert found["instance"].tolist() == [0, 5]
    assert found["tomogram"].tolist() == ["TS_1"] * 2
    assert "points of 1 kind (apo), none of them 'ribosome'" in refusal(path, voxel_size=10, kind="ribosome")
    # refined shifts: a full position is the location and the translation
    shifted = [[0, 1, 0, 5], [1, 0, 0, -10], [0, 0, 1, 2.5], [0, 0, 0, 1]]
    path = copick_file(tmp_path / "p.json", at(30, 20, 10, transformation_=shifted), at(1, 2, 3, transformation_=None))
    assert places(read_points(path, voxel_size=10)).tolist() == [[1.25, 1, 3.5], [0.3, 0.2, 0.1]]
    assert "--voxel-size" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "expected 'points' to be a list"),
        ('{"points": 3}', "expected 'points' to be a list, found 3"),
        ('{"points": [3]}', "point 1: expected 'location' to be an object"),
        ('{"points": [{"location": {"x": 1, "y": 2}}]}', "point 1: z is None, expected a number"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": NaN}}]}', "z is nan"),
        ('{"points": [{"location": {"x": true, "y": 2, "z": 1}}]}', "x is True"),
        ('{"points": [{"location": {"x": 1, "y": -2, "z": 1}}]}', "y is -0.2, outside"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": 1e999}}]}', "z is inf"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": 1' + "0" * 400 + "}}]}", "expected a number"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": 1}, "score": "high"}]}', "score is high"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": 1}, "transformation_": [[1, 0]]}]}', "4 rows of 4 numbers"),
        ('{"points": [{"location": {"x": 1, "y": 2, "z": 1}, "transformation_": 3}]}', "4 rows of 4 numbers"),
        ('{"points": [], "unit": "nanometer"}', "points in nanometer, expected angstrom"),
        ('{"points": []}', "holds no points"),
        ("[" * 100000, "not readable JSON: too deep"),
        ("{", "not readable JSON"),
        ("", "empty, expected points as copick's JSON"),
    ],
)
def test_bad_copick(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.json").write_text(content)
    assert words in refusal(tmp_path / "p.json", voxel_size=10)


# CryoET Data Portal ---------------------------------------------------------------------------------------------------


def test_ndjson_is_voxels_x_y_z(tmp_path: Path) -> None:
    write_picks([Pick(1, 2.5, 1 / 3, 0.5, 7)], tmp_path / "p.ndjson")
    (line,) = (tmp_path / "p.ndjson").read_text().splitlines()
    assert json.loads(line) == {"type": "point", "location": {"x": 1 / 3, "y": 2.5, "z": 1.0}}


def test_ndjson_of_the_portal_is_read(tmp_path: Path) -> None:
    turn = {"xyz_rotation_matrix": np.eye(3).tolist()}
    lines = [{"type": "orientedPoint", **at(3, 2, 1.5), **turn}, {"type": "orientedPoint", **at(6.25, 5, 4), **turn}]
    (tmp_path / "p.ndjson").write_text("\n".join(map(json.dumps, lines)))  # the last line does not end
    assert places(read_points(tmp_path / "p.ndjson")).tolist() == [[1.5, 2, 3], [4, 5, 6.25]]
    lines = [{"type": "instancePoint", **at(3, 2, 1), "instance_id": number} for number in (4, 9)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    assert read_points(tmp_path / "p.jsonl")["instance"].tolist() == [4, 9]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"type": "mesh"}', "line 1: mesh is no point"),
        ('{"location": {}}', "line 1: expected 'type' to be a text"),
        ('{"type": "point", "location": {"x": 1, "y": 2, "z": 3}}\n{"type"', "line 2: not readable JSON"),
        ('{"type": "point", "location": {"x": 1, "y": 2, "z": "3"}}', "line 1: z is 3, expected a number"),
        ('{"type": "instancePoint", "location": {"x": 1, "y": 2, "z": 3}, "instance_id": 1.5}', "a whole number"),
    ],
)
def test_bad_ndjson(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.ndjson").write_text(content)
    assert words in refusal(tmp_path / "p.ndjson")


# Parquet --------------------------------------------------------------------------------------------------------------


def test_parquet_of_pandas_is_read(tmp_path: Path) -> None:
    """Other types, names and order, an index, and columns that are of no use."""
    table = pd.DataFrame(
        {
            "X": np.array([3, 6], np.int16),
            "y": np.array([2.5, 5], np.float32),
            "z": [1.0, 4.0],
            "Kind": ["a", "a"],
            "note": ["far", "near"],
            "when": pd.to_datetime(["2026-01-01", "2026-01-02"]),
            "radius": [7.5, 8.5],
        },
        index=[5, 9],
    )
    table.to_parquet(tmp_path / "p.parquet")
    found = read_points(tmp_path / "p.parquet")
    assert places(found).tolist() == [[1, 2.5, 3], [4, 5, 6]]
    assert found["kind"].tolist() == ["a", "a"]
    assert found["radius"].tolist() == [7.5, 8.5]
    assert "note" not in found.columns


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"z": [1.0], "y": [2.0]}, "no column x of numbers: expected z, y, x, found z, y"),
        ({"z": [1.0], "y": [2.0], "x": ["3"]}, "no column x of numbers"),
        ({"z": [1.0], "y": [2.0], "x": [None]}, "no column x of numbers"),
        ({"z": [1.0, 2.0], "y": [2.0, 2.0], "x": pd.array([1, None], "Int64")}, "x has 1 empty values"),
        ({"z": [1.0], "y": [2.0], "x": [np.inf]}, "x is 'inf', expected a number"),
        ({"z": [1.0], "y": [2.0], "x": [3.0], "X": [4.0]}, "the column x comes twice"),
        ({"z": [1.0], "y": [2.0], "x": [3.0], "instance": [0.5]}, "instance: expected whole numbers"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict, words: str) -> None:
    pd.DataFrame(columns).to_parquet(tmp_path / "p.parquet")
    assert words in refusal(tmp_path / "p.parquet")
