"""Orientations: kept from file to file, and right by other libraries and by the formulas of each program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import emfile
import eulerangles
import numpy as np
import pandas as pd
import pytest
import starfile
from scipy.spatial.transform import Rotation

from cryosam_dask.io import read_points, write_picks
from cryosam_dask.io.points import orientation
from cryosam_dask.io.points.files import FORMATS, Frame, encode_picks

FRAME = {"voxel_size": 10.0, "shape": (120, 440, 441)}
ANGLES = list(orientation.ANGLES)
SUFFIXES = {name: (kind.suffixes or kind.among)[0] for name, kind in FORMATS.items()}
HOLD = ["csv", "parquet", "star", "relion5", "warp", "copick", "ndjson", "dynamo", "em", "stopgap", "pytom"]
"""Formats that have orientations."""


def oriented(count: int = 9, seed: int = 0) -> pd.DataFrame:
    """Picks that lie anyhow; the first ones at the poles, where angles are not unique."""
    r = np.random.default_rng(seed)
    angles = Rotation.random(count, np.random.default_rng(seed)).as_euler("ZYZ", degrees=True)
    angles[:4] = [[0, 0, 0], [30, 0, 40], [30, 180, -50], [-170, 90, 180]]
    table = pd.DataFrame(r.integers(0, 119, (count, 3)).astype(float), columns=["z", "y", "x"])
    return table.assign(score=0.5, instance=range(1, count + 1)).assign(**dict(zip(ANGLES, angles.T, strict=True)))


def rotations(table: pd.DataFrame) -> np.ndarray:
    """Reference to tomogram, by scipy: RELION's matrix is the inverse of its intrinsic ZYZ rotation."""
    return Rotation.from_euler("ZYZ", table[ANGLES].to_numpy(), degrees=True).inv().as_matrix()


def write(table: pd.DataFrame, folder: Path, kind: str) -> Path:
    path = folder / f"{kind}{SUFFIXES[kind]}"
    write_picks(table, path, format=kind, tomogram_name="TS_1", kind="ribosome", **FRAME)
    return path


@pytest.mark.parametrize("kind", HOLD)
def test_orientations_come_back(tmp_path: Path, kind: str) -> None:
    table = oriented()
    back = read_points(write(table, tmp_path, kind), **FRAME)
    np.testing.assert_allclose(rotations(back), rotations(table), atol=1e-6)
    np.testing.assert_allclose(back[["z", "y", "x"]], table[["z", "y", "x"]], atol=1e-5)


@pytest.mark.parametrize("second", HOLD)
@pytest.mark.parametrize("first", HOLD)
def test_orientations_go_from_any_format_to_any_other(tmp_path: Path, first: str, second: str) -> None:
    table = oriented(seed=1)
    once = read_points(write(table, tmp_path, first), **FRAME)
    once = once.assign(score=0.5, instance=table["instance"])
    twice = read_points(write(once, tmp_path, second), **FRAME)
    np.testing.assert_allclose(rotations(twice), rotations(table), atol=2e-6)


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if name not in HOLD and each.encode])
def test_formats_without_orientations_write_positions(tmp_path: Path, kind: str) -> None:
    back = read_points(write(oriented(), tmp_path, kind), **FRAME)
    assert len(back) == 9
    if kind != "relion4":
        assert not set(ANGLES) & set(back.columns)


@pytest.mark.parametrize("kind", HOLD)
def test_picks_without_orientations_get_none(tmp_path: Path, kind: str) -> None:
    back = read_points(write(oriented().drop(columns=ANGLES), tmp_path, kind), **FRAME)
    assert not set(ANGLES) & set(back.columns)


def test_a_joint_file_of_which_some_have_orientations(tmp_path: Path) -> None:
    parts = [(oriented(), Frame(tomogram="TS_1")), (oriented().drop(columns=ANGLES), Frame(tomogram="TS_2"))]
    path = tmp_path / "p.csv"
    path.write_bytes(encode_picks(parts, "csv", joint=True))
    np.testing.assert_array_equal(read_points(path, tomogram_name="TS_1")[ANGLES], oriented()[ANGLES])
    assert not read_points(path, tomogram_name="TS_2")[ANGLES].to_numpy().any()


def test_dynamo_as_eulerangles_has_it(tmp_path: Path) -> None:
    table = oriented()
    path = write(table, tmp_path, "dynamo")
    theirs = np.array([line.split()[6:9] for line in path.read_text().splitlines()], dtype=float)
    back = eulerangles.convert_eulers(theirs, source_meta="dynamo", target_meta="relion")
    np.testing.assert_allclose(rotations(pd.DataFrame(back, columns=ANGLES)), rotations(table), atol=1e-6)
    free = table[ANGLES].iloc[4:]
    ours = eulerangles.convert_eulers(free.to_numpy(), source_meta="relion", target_meta="dynamo")
    np.testing.assert_allclose(
        Rotation.from_euler("zxz", ours, degrees=True).as_matrix(),
        Rotation.from_euler("zxz", theirs[4:], degrees=True).as_matrix(),
        atol=1e-6,
    )


def of_tom(phi_theta_psi: np.ndarray) -> np.ndarray:
    """STOPGAP's own formula: Rz(psi) · Rx(theta) · Rz(phi)."""
    turn = {"z": np.array([0, 0, 1.0]), "x": np.array([1.0, 0, 0])}
    phi, theta, psi = (
        Rotation.from_rotvec(np.radians(angles)[:, None] * turn[axis])
        for angles, axis in zip(phi_theta_psi.T, "zxz", strict=True)
    )
    return (psi * theta * phi).as_matrix()


def test_tom_stopgap_and_pytom_have_one_rotation(tmp_path: Path) -> None:
    table = oriented()
    _, list_of_em = emfile.read(write(table, tmp_path, "em"))
    stopgap = starfile.read(write(table, tmp_path, "stopgap"))
    text = write(table, tmp_path, "pytom").read_text()
    turned = [line.split('"') for line in text.splitlines() if "<Rotation" in line]
    pytom = np.array([[parts[5], parts[1], parts[7]] for parts in turned], dtype=float)
    for angles in (list_of_em[0][:, [16, 18, 17]], stopgap[["phi", "the", "psi"]].to_numpy(), pytom):
        np.testing.assert_allclose(of_tom(angles), rotations(table), atol=1e-6)


@pytest.mark.parametrize("kind", ["copick", "ndjson"])
def test_matrices_turn_the_reference_into_the_particle(tmp_path: Path, kind: str) -> None:
    table = oriented()
    text = write(table, tmp_path, kind).read_text()
    if kind == "copick":
        content = json.loads(text)
        assert content["trust_orientation"] is True
        matrices = [np.array(point["transformation_"])[:3, :3] for point in content["points"]]
    else:
        points = [json.loads(line) for line in text.splitlines()]
        assert {point["type"] for point in points} == {"orientedPoint"}
        matrices = [np.array(point["xyz_rotation_matrix"]) for point in points]
    np.testing.assert_allclose(matrices, rotations(table), atol=1e-9)


def test_an_orientation_that_is_not_trusted_is_none(tmp_path: Path) -> None:
    path = write(oriented(), tmp_path, "copick")
    path.write_text(path.read_text().replace('"trust_orientation": true', '"trust_orientation": false'))
    assert not set(ANGLES) & set(read_points(path, **FRAME).columns)


def test_matrices_that_are_no_rotations_are_left_out_with_a_word(tmp_path: Path) -> None:
    notes: list[str] = []
    mirror = {"type": "orientedPoint", "location": {"x": 1, "y": 2, "z": 3}}
    mirror |= {"xyz_rotation_matrix": np.diag([1, 1, -1]).tolist()}
    (tmp_path / "p.ndjson").write_text(json.dumps(mirror))
    assert list(read_points(tmp_path / "p.ndjson", notes=notes).columns) == ["z", "y", "x"]
    assert "the matrices of 1 points are no rotations: orientations are left out" in notes[0]


# RELION's two orientations --------------------------------------------------------------------------------------------


def relion(folder: Path, particle: Any, subtomogram: Any) -> Path:
    columns: dict[str, Any] = {f"rlnCoordinate{axis}": np.full(len(particle), 50.0) for axis in "XYZ"}
    for prefix, angles in (("rlnAngle", particle), ("rlnTomoSubtomogram", subtomogram)):
        if angles is not None:
            columns |= {f"{prefix}{name}": angles[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    starfile.write({"particles": pd.DataFrame(columns)}, folder / "p.star", float_format="%.8f")
    return folder / "p.star"


def of_relion(angles: np.ndarray) -> np.ndarray:
    """`Euler::anglesToMatrix3`, entry by entry."""
    (cp, ct, cc), (sp, st, sc) = np.cos(np.radians(angles)).T, np.sin(np.radians(angles)).T
    rows = [
        [cc * ct * cp - sc * sp, cc * ct * sp + sc * cp, -cc * st],
        [-sc * ct * cp - cc * sp, -sc * ct * sp + cc * cp, sc * st],
        [st * cp, st * sp, ct],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def test_a_particle_turns_within_its_subtomogram(tmp_path: Path) -> None:
    """`getMatrix3x3` in particle_set.cpp: A = A(subtomogram) · A(particle)."""
    particle, subtomogram = (oriented(seed=seed)[ANGLES].to_numpy() for seed in (2, 3))
    subtomogram = np.roll(subtomogram, 3, axis=0)  # poles with what is no pole
    back = read_points(relion(tmp_path, particle, subtomogram))
    np.testing.assert_allclose(rotations(back), of_relion(subtomogram) @ of_relion(particle), atol=1e-6)
    written = read_points(write(back.assign(score=0, instance=1), tmp_path, "dynamo"))
    np.testing.assert_allclose(rotations(written), rotations(back), atol=1e-6)


def test_relion_with_one_of_the_two(tmp_path: Path) -> None:
    angles = oriented()[ANGLES].to_numpy()
    np.testing.assert_allclose(read_points(relion(tmp_path, angles, None))[ANGLES], angles, atol=1e-6)
    np.testing.assert_allclose(
        rotations(read_points(relion(tmp_path, 0 * angles, angles))), of_relion(angles), atol=1e-6
    )
    assert not set(ANGLES) & set(read_points(relion(tmp_path, 0 * angles, 0 * angles)).columns)


def test_m_has_angles_along_the_trajectory(tmp_path: Path) -> None:
    columns = {f"wrpCoordinate{axis}1": [100.0, 200.0] for axis in "XYZ"}
    columns |= {"wrpAngleRot1": [10.0, 20], "wrpAngleTilt1": [30.0, 40], "wrpAnglePsi1": [50.0, 60]}
    starfile.write({"": pd.DataFrame(columns)}, tmp_path / "p.star")
    assert read_points(tmp_path / "p.star", voxel_size=10.0)[ANGLES].to_numpy().tolist() == [[10, 30, 50], [20, 40, 60]]


def test_angles_go_around(tmp_path: Path) -> None:
    """Angles of some turns more, as minimisers leave them, and the sum of 90° and 180°."""
    columns = orientation.of_zxz(np.array([[-180.0, 400.0, 900.0], [0.0, 0.0, 90.0]]))
    assert np.stack([columns[name] for name in ANGLES], axis=1).tolist() == [[-90, 40, 90], [90, 0, 180]]
