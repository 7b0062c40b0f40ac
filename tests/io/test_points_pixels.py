"""What a pixel is in STAR files of particles: Warp's 2D stacks, RELION's, template matchers' and RELION 3.0's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import starfile

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points

VOXELS = np.array([[40.0, 100, 200], [12, 33.5, 101], [7.25, 60, 90]])  # z, y, x of 12 Å
FRAME: dict[str, Any] = {"voxel_size": 12.0, "shape": (60, 220, 240), "tomogram_name": "TS_1"}


def particles(pixel: float | Sequence[float], **columns: Any) -> pd.DataFrame:
    """`VOXELS` in pixels of `pixel` Å."""
    scaled = VOXELS * 12 / np.reshape(np.broadcast_to(pixel, 3), (3, 1))
    return pd.DataFrame({f"rlnCoordinate{axis}": scaled[:, 2 - i] for i, axis in enumerate("XYZ")}).assign(**columns)


def warp_stacks(pixel: float | Sequence[float] = 8.0, groups: Sequence[int] = (1, 1, 1)) -> pd.DataFrame:
    """Particles as Warp exports them: 2D stacks of `pixel` Å."""
    sizes = np.broadcast_to(pixel, 3)
    return particles(
        pixel,
        rlnTomoName="TS_1.tomostar",
        rlnTomoParticleName=[f"TS_1/{i}" for i in (1, 2, 3)],
        rlnImageName=[f"../particleseries/TS_1/TS_1_{size:.2f}A_{i:06d}.mrcs" for i, size in enumerate(sizes, start=1)],
        rlnOpticsGroup=list(groups),
    )


def optics(images: Sequence[float] = (8.0,), tilt_series: Sequence[float] = (2.0,)) -> pd.DataFrame:
    groups = list(range(1, len(images) + 1))
    return pd.DataFrame(
        {"rlnOpticsGroup": groups, "rlnTomoTiltSeriesPixelSize": tilt_series, "rlnImagePixelSize": images}
    )


def written(path: Path, table: pd.DataFrame, groups: pd.DataFrame | None = None, flat: bool = True) -> Path:
    blocks: dict[str, Any] = {"general": {"rlnTomoSubTomosAre2DStacks": 1}} if flat else {}
    starfile.write(blocks | ({} if groups is None else {"optics": groups}) | {"particles": table}, path)
    return path


def read(path: Path, **options: Any) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    table = read_points(path, **FRAME, notes=notes, **options)
    return table[["z", "y", "x"]].to_numpy(), notes


# Warp's 2D stacks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["both", "names", "stacks"])
def test_warps_2d_stacks_count_pixels_of_the_export(tmp_path: Path, mark: str) -> None:
    """Not the unbinned pixels that the optics table states besides; any of Warp's marks will do."""
    table = warp_stacks()
    if mark == "names":
        table = table.drop(columns="rlnImageName")
    if mark == "stacks":
        table = table.assign(rlnTomoName="TS_1").drop(columns="rlnTomoParticleName")
    found, notes = read(written(tmp_path / "p.star", table, optics(), flat=mark == "both"))
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert notes == []


def test_warps_2d_stacks_through_an_optimisation_set(tmp_path: Path) -> None:
    written(tmp_path / "particles.star", warp_stacks(), optics())
    text = "data_\n\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
    (tmp_path / "set.star").write_text(text)
    (tmp_path / "tomograms.star").write_text("data_global\n\n_rlnTomoName TS_1.tomostar\n")
    np.testing.assert_allclose(read(tmp_path / "set.star")[0], VOXELS, atol=1e-5)


def test_particles_of_several_optics_groups_have_their_own_pixels(tmp_path: Path) -> None:
    """Warp writes a group for each tilt series; exports of other sizes may have been joined."""
    table = warp_stacks((8.0, 4.0, 6.0), (2, 1, 3))
    groups = optics((4.0, 8.0, 6.0), (2.0, 2.0, 3.0))
    found, notes = read(written(tmp_path / "p.star", table, groups))
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert notes == []
    with pytest.raises(InputError, match=r"particles of the optics group 3, which has no rlnImagePixelSize"):
        read(written(tmp_path / "p.star", table, groups[:2]))
    with pytest.raises(InputError, match=r"several values of rlnImagePixelSize .*without rlnOpticsGroup: split"):
        read(written(tmp_path / "p.star", table.drop(columns="rlnOpticsGroup"), groups))


def test_warp_that_states_the_exports_pixel_as_the_tilt_series(tmp_path: Path) -> None:
    """As it does since July 2026."""
    found, notes = read(written(tmp_path / "p.star", warp_stacks(), optics((8.0,), (8.0,))))
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert notes == []


def relion_stacks(tomogram: str = "TS_1") -> pd.DataFrame:
    return particles(
        2.0,
        rlnTomoName=tomogram,
        rlnTomoParticleName=[f"{tomogram}/{i}" for i in (1, 2, 3)],
        rlnImageName=[f"Extract/job01/Subtomograms/{tomogram}/{i}_stack2d.mrcs" for i in (1, 2, 3)],
        rlnOpticsGroup=1,
    )


@pytest.mark.parametrize("tomogram", ["TS_1", "TS_1.tomostar"])
def test_relions_own_2d_stacks_count_unbinned_pixels(tmp_path: Path, tomogram: str) -> None:
    """RELION 5 writes the same columns; a project that began with Warp has its tomograms' names."""
    found, notes = read(written(tmp_path / "p.star", relion_stacks(tomogram), optics()))
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert notes == []
    without = relion_stacks(tomogram).drop(columns="rlnImageName")
    np.testing.assert_allclose(read(written(tmp_path / "p.star", without, optics()))[0], VOXELS, atol=1e-5)


@pytest.mark.parametrize("doubt", ["bare", "extracted again"])
def test_where_warp_or_relion_may_have_written_it_both_readings_are_said(tmp_path: Path, doubt: str) -> None:
    table = warp_stacks().drop(columns=["rlnTomoParticleName", "rlnImageName"])
    if doubt == "extracted again":
        table = warp_stacks().assign(rlnImageName=[f"Subtomograms/TS_1/{i}_stack2d.mrcs" for i in (1, 2, 3)])
    path = written(tmp_path / "p.star", table, optics())
    found, notes = read(path)
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    (note,) = notes
    assert "in pixels of 8 Å (rlnImagePixelSize)" in note
    assert "of 2 Å (rlnTomoTiltSeriesPixelSize)" in note
    assert "relion4" in note
    # the user decides
    found, notes = read(path, format="relion4")
    np.testing.assert_allclose(found, VOXELS / 4, atol=1e-5)
    assert notes == []
    assert read(path, format="warp")[1] == []


def test_stacks_whose_names_say_another_pixel_are_remarked_upon(tmp_path: Path) -> None:
    path = written(tmp_path / "p.star", warp_stacks(), optics((6.0,)))
    assert ["by the names of Warp's stacks" in note for note in read(path)[1]] == [True]
    path = written(tmp_path / "p.star", warp_stacks(), optics().drop(columns="rlnImagePixelSize"))
    found, (note,) = read(path)
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert "without rlnImagePixelSize: pixels of 8 Å by the stacks' names" in note


# The detector's pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["particles", "optics"])
@pytest.mark.parametrize(
    ("pixel", "stated"),
    [(24.0, {"rlnDetectorPixelSize": 24.0}), (3.0, {"rlnDetectorPixelSize": 6.0, "rlnMagnification": 20000.0})],
)
def test_pixels_of_the_detector(tmp_path: Path, where: str, pixel: float, stated: dict[str, float]) -> None:
    """Å alone, as pytom-match-pick writes them; µm with a magnification, as RELION 3.0 and Warp 1 do."""
    table, groups = particles(pixel, rlnMicrographName="TS_1", rlnOpticsGroup=1), None
    if where == "particles":
        table = table.assign(**stated)
    else:
        groups = pd.DataFrame({"rlnOpticsGroup": [1]}).assign(**stated)
    path = written(tmp_path / "p.star", table, groups, flat=False)
    found, notes = read(path)
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert notes == []
    with pytest.raises(InputError, match=r"coordinates in pixels of .* voxel size is needed"):
        read_points(path)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"rlnDetectorPixelSize": 0.0}, "a pixel size of 0 Å"),
        ({"rlnDetectorPixelSize": 5.0, "rlnMagnification": 1e-4}, "a pixel size of 5e\\+08 Å"),
        ({"rlnDetectorPixelSize": 5.0, "rlnMagnification": 0.0}, "rlnMagnification is 0, expected a number above 0"),
        ({"rlnDetectorPixelSize": "five"}, "rlnDetectorPixelSize is 'five'"),
    ],
)
def test_a_scale_that_no_detector_has_is_one_line(tmp_path: Path, stated: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "p.star", particles(24.0).assign(**stated), flat=False)
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_which_of_several_scales_is_taken(tmp_path: Path) -> None:
    """The tilt series', then the particles' own, then the detector's; those that contradict are named."""
    stated = {"rlnPixelSize": 3.0, "rlnDetectorPixelSize": 5.0, "rlnMagnification": 10000.0}
    groups = pd.DataFrame({"rlnOpticsGroup": [1], "rlnTomoTiltSeriesPixelSize": [2.0]})
    path = written(tmp_path / "p.star", particles(2.0, rlnOpticsGroup=1, **stated), groups, flat=False)
    found, notes = read(path)
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert [note.partition(": ")[2] for note in notes] == [
        "pixels of 2 Å by rlnTomoTiltSeriesPixelSize, of 3 Å by rlnPixelSize: the first is taken",
        "pixels of 2 Å by rlnTomoTiltSeriesPixelSize, of 5 Å by rlnDetectorPixelSize: the first is taken",
    ]
    found, notes = read(written(tmp_path / "p.star", particles(3.0, **stated), flat=False))
    np.testing.assert_allclose(found, VOXELS, atol=1e-5)
    assert ["of 3 Å by rlnPixelSize, of 5 Å by rlnDetectorPixelSize" in note for note in notes] == [True]
    # one that is not taken need not be right
    wrong = {"rlnPixelSize": 3.0, "rlnDetectorPixelSize": "None"}
    assert read(written(tmp_path / "p.star", particles(3.0, **wrong), flat=False))[1] == []
    # as Warp writes both for subtomograms, and with a tilt series' size of few decimals
    same = {"rlnPixelSize": 3.0, "rlnDetectorPixelSize": 3.001, "rlnMagnification": 10000.0}
    assert read(written(tmp_path / "p.star", particles(3.0, **same), flat=False))[1] == []


def test_unbinned_pixels_of_several_optics_groups(tmp_path: Path) -> None:
    table = particles((2.0, 3.0, 2.0), rlnTomoName="TS_1", rlnOpticsGroup=[1, 2, 1])
    groups = pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [2.0, 3.0]})
    np.testing.assert_allclose(read(written(tmp_path / "p.star", table, groups, flat=False))[0], VOXELS, atol=1e-5)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".star", ".csv"])
def test_a_single_tomogram_of_another_name_is_taken_with_a_note(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    for name in ("TS_99", "TS_1.tomostar", "x/ts_1.mrc", "tomogram"):
        if suffix == ".star":
            written(path, particles(12.0, rlnTomoName=name), flat=False)
        else:
            pd.DataFrame(VOXELS, columns=list("zyx")).assign(tomogram=name).to_csv(path, index=False)
        found, notes = read(path)
        np.testing.assert_allclose(found, VOXELS, atol=1e-5)
        if name == "TS_99":
            assert notes == [f"{path}: its points are of 'TS_99' by name, and are used with 'TS_1'"]
        else:
            assert notes == []
