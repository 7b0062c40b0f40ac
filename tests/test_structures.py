"""Extended structures: membranes by one click, whose pieces are one instance each; and what reads such instances."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

import cryosam_dask as cs
from cryosam_dask import analysis
from cryosam_dask.errors import InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.outputs.labels import surfaces
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.report import write_report
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import borrow, query_file, structure
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (40, 56, 60)
WALLS = (14, 42)
CLICK = [20.0, 14.0, 30.0]
BALL = [20.0, 28.0, 44.0]
BUILTIN = settings_for("texture+random-walker", {"match.nms_radius": 14.0})
"""Few prompts, to be quick."""


def walls() -> NDArray[np.int64]:
    """1 and 2: two slightly curved membranes across the volume, six voxels thick."""
    _, y, x = np.indices(SHAPE)
    out = np.zeros(SHAPE, np.int64)
    for number, middle in enumerate(WALLS, 1):
        out[np.abs(y - middle - 2 * np.sin((x - 30) / 14)) <= 3] = number
    return out


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The membranes and one ball between them, in noise."""
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(0).normal(size=SHAPE) + 2.0 * (walls() > 0)
    values += 3.0 * ((z - BALL[0]) ** 2 + (y - BALL[1]) ** 2 + (x - BALL[2]) ** 2 < 5**2)
    path = tmp_path_factory.mktemp("structures") / "walls.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="module")
def finished(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with one click on the first membrane, and what it said. Tests must not change it."""
    out = tmp_path_factory.mktemp("structures") / "run.zarr"
    driver = cs.run(tomogram, [CLICK], out, name="membrane", settings=BUILTIN, workers=0)
    return out, driver.notes


@pytest.fixture
def copied(finished: tuple[Path, list[str]], tmp_path: Path) -> Path:
    out = tmp_path / "run.zarr"
    shutil.copytree(finished[0], out)
    return out


def dice(a: NDArray[Any], b: NDArray[Any]) -> float:
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


def test_one_click_finds_each_membrane_as_one_instance(finished: tuple[Path, list[str]]) -> None:
    store = RunStore.open(finished[0])
    labels, truth = store.read(layout.labels("membrane")), walls()
    table = picks.read(store, "membrane")
    assert table["instance"].tolist() == [1, 2]
    assert np.unique(labels).tolist() == [0, 1, 2]
    clicked = int(labels[20, 14, 30])
    assert dice(labels == clicked, truth == 1) > 0.8
    assert dice(labels == 3 - clicked, truth == 2) > 0.8
    assert table["prompted"].to_numpy()[clicked - 1] == 1
    assert table["prompted"].sum() == 1


def test_it_is_said_what_was_decided_and_how_to_decide_otherwise(finished: tuple[Path, list[str]]) -> None:
    assert structure.structure_of(RunStore.open(finished[0]), "membrane") == "extended"
    (said,) = [note for note in finished[1] if "--structure" in note]
    assert said.startswith("membrane: taken as an extended structure: the clicked mask is a thin sheet, ")
    assert said.endswith("if it is a particle, give --structure particle")
    assert any(note.endswith("joined to 2 where they touch") for note in finished[1])


def test_picks_are_of_the_unions(finished: tuple[Path, list[str]]) -> None:
    store = RunStore.open(finished[0])
    labels, table = store.read(layout.labels("membrane")), picks.read(store, "membrane")
    pieces = picks.pieces(store, "membrane")
    assert len(pieces) > 2
    assert set(pieces[:, 0].tolist()) == {1, 2}
    for row in table.itertuples():
        voxels = np.argwhere(labels == row.instance)
        assert row.size == len(voxels)
        np.testing.assert_allclose([row.z, row.y, row.x], voxels.mean(0))
        assert [row.instance, row.group, row.member] in pieces.tolist()
    assert table["score"].is_monotonic_decreasing
    assert table["score"].between(structure.MOST_UNLIKE, 1).all()
    assert cs.open_run(finished[0])["picks/membrane"].to_dataset().to_dataframe()["size"].tolist() == list(
        table["size"]
    )


def test_tables_and_meshes_are_of_whole_structures(finished: tuple[Path, list[str]]) -> None:
    store = RunStore.open(finished[0])
    table = picks.read(store, "membrane")
    for masks in ("painted", "whole"):
        measured = analysis.instance_table(finished[0], "membrane", masks=masks)
        np.testing.assert_array_equal(measured["voxels"], table["size"])
    meshes = list(surfaces(store, "membrane", origin=store.origin))
    assert sorted(surface.label for surface in meshes) == [1, 2]
    for surface in meshes:
        assert np.ptp(surface.vertices[:, 0]) > 500  # ångström; x, y, z


def test_the_same_command_again_runs_nothing(tomogram: Path, copied: Path) -> None:
    again = cs.run(tomogram, [CLICK], copied, name="membrane", settings=BUILTIN, workers=0)
    assert not any(again.timings.values())


def test_what_it_is_can_be_said(tomogram: Path, copied: Path, cryosam: Any) -> None:
    arguments = ("query", copied, "--point", "20,14,30", "--name", "membrane", "--workers", "0", "--set")
    arguments += ("match.nms_radius=14",)
    code, _, err = cryosam(*arguments, "--structure", "particle")
    assert code == 2
    assert "match.structure: auto → particle" in err
    code, _, err = cryosam(*arguments, "--structure", "particle", "--overwrite")
    assert code == 0
    assert structure.structure_of(RunStore.open(copied), "membrane") == "particle"
    code, _, err = cryosam(*arguments, "--structure", "round")
    assert code == 2
    assert "match.structure: Input should be 'auto', 'particle' or 'extended', got 'round'" in err


def test_a_click_on_a_ball_is_of_a_particle_unless_it_is_said_not_to_be(copied: Path) -> None:
    driver = Driver(copied, SerialExecutor())
    driver.query("ball", [BALL], BUILTIN)
    assert structure.structure_of(driver.store, "ball") == "particle"
    assert not any("structure" in note for note in driver.notes)
    driver.query("tube", [BALL], BUILTIN.replace({"match.structure": "extended"}))
    assert structure.structure_of(driver.store, "tube") == "extended"


def test_runs_of_earlier_versions_are_of_particles_and_go_on(tomogram: Path, copied: Path) -> None:
    store = RunStore.open(copied, "r+")
    attributes = store.group(layout.query("membrane")).attrs
    del attributes[structure.STRUCTURE]
    settings: Any = dict(attributes["settings"])
    del settings["match"]["structure"]
    attributes["settings"] = settings
    assert structure.structure_of(store, "membrane") == "particle"
    driver = Driver(copied, SerialExecutor())
    driver.query("membrane", [CLICK], BUILTIN)  # no other settings
    assert structure.structure_of(store, "membrane") == "particle"
    assert driver.notes == []


def test_a_borrowed_query_is_of_what_it_was_of(copied: Path, finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    loan = borrow.take(RunStore.open(finished[0]), "membrane")
    query_file.write(loan, tmp_path / "membrane.json")
    loan = query_file.renamed(query_file.read(tmp_path / "membrane.json"), "lent")
    driver = Driver(copied, SerialExecutor())
    driver.borrow("lent", loan)
    store, match = RunStore.open(copied), MatchSettings(ratios=(4,))
    assert structure.structure_of(store, "lent") == "extended"
    assert structure.likeness(store, "lent", match) == structure.likeness(store, "membrane", match)
    driver.match("lent")
    driver.segment("lent")
    labels, truth = driver.store.read(layout.labels("lent")), walls()
    assert dice(labels > 0, truth > 0) > 0.8
    driver.borrow("whole", query_file.renamed(loan, "whole"), BUILTIN.replace({"match.structure": "particle"}))
    assert structure.structure_of(driver.store, "whole") == "particle"


def test_a_likeness_that_is_no_cosine_is_refused(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    loan = borrow.take(RunStore.open(finished[0]), "membrane")
    loan.params[structure.LIKENESS] = 3.0
    query_file.write(loan, tmp_path / "membrane.json")
    with pytest.raises(InputError, match="the likeness of its places is no cosine"):
        query_file.read(tmp_path / "membrane.json")


def test_a_membrane_competes_with_particles(tomogram: Path, copied: Path, tmp_path: Path) -> None:
    points = {"membrane": [CLICK], "ball": [BALL]}
    out = tmp_path / "kinds.zarr"
    cs.run(tomogram, points, out, settings=BUILTIN, workers=0)
    store = RunStore.open(out)
    kinds, truth = store.read(layout.labels(layout.KINDS)), walls()
    assert dice(kinds == 1, truth > 0) > 0.8
    assert kinds[20, 28, 44] == 2
    assert len(picks.read(store, "membrane")) == 2
    assert ((kinds == 1) == (store.read(layout.labels("membrane")) > 0)).all()


def test_the_report_tells_of_it(copied: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(str(copied), page)
    text = page.read_text()
    assert "that overlap or touch were joined to 2 instances of an extended structure" in text
