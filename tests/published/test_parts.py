"""What a benchmark is made of: published figures, samples of prompts, names of tomograms, layouts, positions."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.base import plain_name
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.published import data, paper
from cryosam_dask.published.data import Truth
from cryosam_dask.published.names import same_tomogram, star_names
from cryosam_dask.published.sampling import prompt_count, prompt_order
from cryosam_dask.published.truth import read_positions

SHAPE = (24, 40, 44)


def test_every_published_f1_follows_from_the_precision_and_recall_beside_it() -> None:
    lines = [line.published for table in paper.tables(("1", "2", "3")) for line in table.lines]
    assert len(lines) == 13 + 6 + 4
    for one in lines:
        assert one.precision is not None
        assert one.recall is not None
        assert one.f1 is not None
        low, high = (
            2 * (one.precision + d) * (one.recall + d) / (one.precision + one.recall + 2 * d) for d in (-0.05, 0.05)
        )
        assert low - 0.051 <= one.f1 <= high + 0.051


def test_tables_are_of_the_tomograms_that_the_paper_says() -> None:
    limits = {table.name: table.limit for table in paper.tables(paper.TABLES)}
    assert limits == {"1": None, "2": 20, "3": 20, "fig5": 20}


def test_the_same_row_of_two_tables_is_one_configuration_and_others_have_other_keys() -> None:
    configs = [c for table in paper.tables(paper.TABLES) for c in table.configs]
    assert len(configs) == 6 + 6 + 4 + 2
    assert len(set(configs)) == 6 + 4 + 2 + 2
    assert len({c.key for c in configs}) == len(set(configs))


@given(st.integers(1, 400), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_smaller_samples_are_inside_larger_ones(count: int, seed: int) -> None:
    order = prompt_order(count, seed, "TS_026", "ribosome")
    assert sorted(order) == list(range(count))
    sizes = [prompt_count(count, share) for share in paper.SHARES]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert 1 <= sizes[-1] <= count
    assert abs(sizes[-1] - 0.7 * count) <= 0.5 or sizes[-1] == 1


def test_a_sample_depends_on_seed_and_tomogram_alone() -> None:
    one = prompt_order(50, 0, "TS_026", "ribosome")
    assert (one == prompt_order(50, 0, "TS_026", "ribosome")).all()
    others = [(1, "TS_026", "ribosome"), (0, "TS_027", "ribosome"), (0, "TS_026", "proteasome")]
    assert all((one != prompt_order(50, *other)).any() for other in others)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("TS_026.mrc", "TS_026"),
        ("TS_026.tomostar", "TS_026"),
        ("TS_026.mrc.tomostar", "TS_026"),
        ("reconstruction/TS_026_10.00Apx.mrc", "TS_026"),
        ("TS_026.mrc_6.80Apx.mrc", "TS_026"),
        ("tilts\\00255.mrc.tomostar", "00255"),
        ("TS_5_4.zarr", "TS_5_4"),
        ("TS_026", "TS_026"),
        ("lamella_3A.mrc", "lamella_3A"),
        ("TS_026_6.80A.mrc", "TS_026"),
        (".mrc", ".mrc"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_names_are_the_same_up_to_suffixes_and_no_further() -> None:
    names = ["TS_02.tomostar", "TS_026.tomostar", "TS_0261.tomostar"]
    assert same_tomogram("TS_026.mrc_10.00Apx.mrc", names) == ["TS_026.tomostar"]
    assert same_tomogram("ts_026_rec_bin6.mrc", names) == ["TS_026.tomostar"]
    assert same_tomogram("TS_03.mrc", names) == []
    assert same_tomogram("00255_6.80Apx.mrc", ["255.tomostar"]) == []


def test_names_in_a_star_file_are_texts_even_where_they_look_like_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n1\n\ndata_particles\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n"
        "_rlnCoordinateZ\n_rlnMicrographName\n1 2 3 00255\n4 5 6 00255\n7 8 9 00256\n"
    )
    assert star_names(path) == ["00255", "00256"]


def test_a_folder_of_warp_and_one_star_file(warp_set: Path) -> None:
    found = data.find(warp_set, kind="ribosome")
    assert [entry.name for entry in found] == ["TS_026", "TS_027", "TS_101"]
    assert found[0].truths["ribosome"].tomogram_name == "TS_026.tomostar"
    assert found[0].tomogram.endswith("TS_026.mrc_10.00Apx.mrc")
    assert "has no rows of it" in found[2].error


@pytest.mark.parametrize(("only", "names"), [("1", ["TS_026"]), ("TS_027, TS_026.mrc", ["TS_026", "TS_027"])])
def test_some_tomograms(warp_set: Path, only: str, names: list[str]) -> None:
    assert [entry.name for entry in data.find(warp_set, kind="ribosome", only=only)] == names


@pytest.mark.parametrize("only", ["0", "TS_999"])
def test_tomograms_that_are_not_there(warp_set: Path, only: str) -> None:
    with pytest.raises(InputError, match="--tomograms"):
        data.find(warp_set, kind="ribosome", only=only)


def test_two_folders_of_tomograms_are_asked_about(warp_set: Path, tmp_path: Path) -> None:
    both = tmp_path / "set"
    shutil.copytree(warp_set, both)
    shutil.copytree(both / "reconstruction", both / "deconv")
    with pytest.raises(InputError, match=r"tomograms in 2 folders .* --which"):
        data.find(both, kind="ribosome")
    assert all("/deconv/" in e.tomogram for e in data.find(both, kind="ribosome", which="*/deconv/*"))


def test_two_files_of_positions_are_asked_about(warp_set: Path, tmp_path: Path) -> None:
    both = tmp_path / "set"
    shutil.copytree(warp_set, both)
    shutil.copy(both / "run_ct17_it034_data.star", both / "other.star")
    with pytest.raises(InputError, match=r"2 files of positions .* --truth"):
        data.find(both, kind="ribosome")
    found = data.find(both, kind="ribosome", truth=both / "other.star")
    assert found[0].truths["ribosome"].path == both / "other.star"


def test_results_inside_the_data_set_and_other_files_are_no_part_of_it(warp_set: Path, tmp_path: Path) -> None:
    both = tmp_path / "set"
    shutil.copytree(warp_set, both)
    out = both / "results"
    (out / "results" / "TS_026").mkdir(parents=True)
    (out / "results" / "TS_026" / "ribosome-x.csv").write_text("z,y,x\n1,2,3\n")
    (out / "other.star").touch()
    shutil.copy(both / "reconstruction" / "TS_026.mrc_10.00Apx.mrc", out / "label.mrc")
    (both / "TS_026.json").write_text("{}")
    found = data.find(both, kind="ribosome", out=out)
    assert [entry.name for entry in found] == ["TS_026", "TS_027", "TS_101"]
    assert found[0].truths["ribosome"].path.name == "run_ct17_it034_data.star"


def test_links_to_folders_are_followed_once(warp_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(warp_set / "run_ct17_it034_data.star", folder)
    (folder / "tomograms").symlink_to(warp_set / "reconstruction")
    (folder / "tomograms again").symlink_to(warp_set / "reconstruction")
    (folder / "round").symlink_to(folder)
    assert [entry.name for entry in data.find(folder, kind="ribosome")] == ["TS_026", "TS_027", "TS_101"]


def test_a_file_of_positions_for_each_tomogram(warp_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(warp_set / "reconstruction", folder)
    for name in ("TS_026", "TS_027"):
        (folder / f"{name}.csv").write_text("z,y,x\n11,10,11\n")
    found = data.find(folder, kind="ribosome")
    assert [e.truths["ribosome"].path.name for e in found[:2]] == ["TS_026.csv", "TS_027.csv"]
    assert found[2].error == "no file of positions"


def test_a_star_file_of_other_tomograms(warp_set: Path, tmp_path: Path) -> None:
    star = tmp_path / "p.star"
    star.write_text((warp_set / "run_ct17_it034_data.star").read_text().replace("TS_0", "lamella_"))
    with pytest.raises(InputError, match=r"names none of the tomograms .*lamella_26"):
        data.find(warp_set, kind="ribosome", truth=star)


def portal(root: Path, *kinds: str, spacing: str = "VoxelSpacing6.802", ids: tuple[str, ...] = ("100",)) -> Path:
    run = root / "10003" / "TS_07" / "Reconstructions" / spacing
    for number in ids:
        (run / "Tomograms" / number / "TS_07.zarr").mkdir(parents=True)
        (run / "Tomograms" / number / "TS_07.mrc").touch()
    (run / "Annotations" / "101").mkdir(parents=True)
    for kind in kinds:
        (run / "Annotations" / "101" / f"{kind}-1.0_orientedpoint.ndjson").touch()
        (run / "Annotations" / "101" / f"{kind}-1.0.json").touch()
    return root


def test_a_folder_of_the_portal(tmp_path: Path) -> None:
    (found,) = data.find(portal(tmp_path, "cytosolic_ribosome", "membrane"), kind="ribosome")
    assert found.name == "TS_07"
    assert found.tomogram.endswith("Tomograms/100/TS_07.zarr")
    truth = found.truths["ribosome"]
    assert (truth.path.name, truth.format) == ("cytosolic_ribosome-1.0_orientedpoint.ndjson", "ndjson")


def test_several_tomograms_of_a_run_are_asked_about(tmp_path: Path) -> None:
    root = portal(tmp_path, "cytosolic_ribosome", ids=("100", "101"))
    (found,) = data.find(root, kind="ribosome")
    assert "2 tomograms" in found.error
    assert "--which" in found.error
    (found,) = data.find(root, kind="ribosome", which="*/Tomograms/101/*")
    assert not found.error
    assert "/101/" in found.tomogram


def test_a_kind_that_is_not_annotated(tmp_path: Path) -> None:
    (found,) = data.find(portal(tmp_path, "membrane"), kind="ribosome")
    assert found.error == "no positions of 'ribosome' (there are: membrane)"


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        data.find(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no tomograms in it"):
        data.find(tmp_path)


def positions(folder: Path, points: list[tuple[float, float, float]], **options: object) -> np.ndarray:
    with mrcfile.new(folder / "t.mrc", np.zeros(SHAPE, np.float32), overwrite=True) as file:
        file.voxel_size = 10
    path = folder / "p.csv"
    path.write_text("z,y,x\n" + "".join(f"{z},{y},{x}\n" for z, y, x in points))
    found = read_positions(Truth(path), open_tomogram(folder / "t.mrc"), **options)  # type: ignore[arg-type]
    return found.points


def test_positions_in_unbinned_pixels_are_asked_about_and_then_scaled(tmp_path: Path) -> None:
    points = [(44.0, 80.0, 160.0), (48.0, 120.0, 44.0)]
    with pytest.raises(InputError, match=r"2 of 2 positions lie outside .* 24 × 40 × 44 .* --truth-pixel-size"):
        positions(tmp_path, points)
    assert positions(tmp_path, points, pixel_size=2.5) == pytest.approx(np.array(points) / 4)


def test_few_positions_outside_are_left_out(tmp_path: Path) -> None:
    grid = list(itertools.product((2, 12, 22), (4, 20, 38), (4, 20, 40)))
    found = positions(tmp_path, [*grid, (12, 20, 44)])  # type: ignore[list-item]
    assert len(found) == len(grid)


def test_positions_that_refinement_moved_below_zero_are_left_out(warp_set: Path, tmp_path: Path) -> None:
    text = (warp_set / "run_ct17_it034_data.star").read_text()
    rows = "".join(f"{8 + i}.0 40.0 40.0 TS_026.tomostar\n" for i in range(40))
    (tmp_path / "p.star").write_text(f"{text}{rows}-2.5 40.0 40.0 TS_026.tomostar\n")
    (one, *_) = data.find(warp_set, kind="ribosome", truth=tmp_path / "p.star")
    found = read_positions(one.truths["ribosome"], open_tomogram(one.tomogram), 2.5)
    assert len(found.points) == 3 + 40
    assert found.notes == ("1 of 44 positions lie outside of the tomogram and are left out",)
    assert found.points[0] == pytest.approx([9, 9, 10])


def test_positions_in_a_corner_are_remarked_upon(tmp_path: Path) -> None:
    grid = [(float(z), float(y), float(x)) for z, y, x in itertools.product((2, 4, 6), (4, 8, 12), (3, 7, 14))]
    with mrcfile.new(tmp_path / "t.mrc", np.zeros(SHAPE, np.float32)) as file:
        file.voxel_size = 10
    path = tmp_path / "p.csv"
    path.write_text("z,y,x\n" + "".join(f"{z},{y},{x}\n" for z, y, x in grid))
    found = read_positions(Truth(path), open_tomogram(tmp_path / "t.mrc"))
    assert "--truth-pixel-size" in found.notes[0]
    path.write_text("z,y,x\n" + "".join(f"{z / 24},{y / 40},{x / 44}\n" for z, y, x in grid))
    with pytest.raises(InputError, match=r"p\.csv: all 27 points lie within 2 voxels of the corner"):
        read_positions(Truth(path), open_tomogram(tmp_path / "t.mrc"))


def test_what_was_assumed_of_positions_is_noted(tmp_path: Path) -> None:
    """A file that states two sizes of its pixels."""
    with mrcfile.new(tmp_path / "t.mrc", np.zeros(SHAPE, np.float32)) as file:
        file.voxel_size = 10
    names = [f"rlnCoordinate{axis}" for axis in "XYZ"] + ["rlnPixelSize", "rlnDetectorPixelSize"]
    header = "".join(f"_{name}\n" for name in names)
    (tmp_path / "p.star").write_text(f"data_\n\nloop_\n{header}40 30 20 10 5\n20 10 8 10 5\n")
    found = read_positions(Truth(tmp_path / "p.star"), open_tomogram(tmp_path / "t.mrc"))
    assert found.points.tolist() == [[20, 30, 40], [8, 10, 20]]
    assert ["of 10 Å by rlnPixelSize, of 5 Å by rlnDetectorPixelSize" in note for note in found.notes] == [True]
