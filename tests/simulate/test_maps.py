"""Density maps from files as species: their size, their place, and what is wrong with a bad one, in one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipy import ndimage

from cryosam_dask.errors import InputError, SettingsError
from cryosam_dask.io.density_maps import read_density_map
from cryosam_dask.simulate import SimulationSettings, density_map, map_species, simulate
from cryosam_dask.simulate.maps import LARGEST_SIDE, map_template


def shell(side: int = 48, voxel: float = 4.0, scale: float = 3.0, base: float = 10.0) -> np.ndarray:
    """A hollow ball of 12 nm beside the middle of its box, on a solvent that is not 0."""
    z, y, x = np.indices((side, side, side)) - (side - 1) / 2
    radius = np.sqrt((z - 2) ** 2 + (y + 3) ** 2 + x**2) * voxel / 10
    return (base + scale * ((radius < 6.0) & (radius > 3.5))).astype(np.float32)


def write(path: Path, data: np.ndarray, voxel: float | tuple[float, float, float] = 4.0) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that there are NaN or infinite values
        with mrcfile.new(path, data=data) as file:
            file.voxel_size = voxel
    return path


@pytest.mark.parametrize("voxel_size", [5.0, 10.0, 20.0])
def test_a_map_becomes_particles_of_its_own_size(tmp_path: Path, voxel_size: float) -> None:
    source = read_density_map(write(tmp_path / "m.mrc", shell()))
    assert source.diameter == pytest.approx(12.0, abs=0.6)
    assert source.data.min() == 0
    assert source.data[source.data > 0.5].mean() == pytest.approx(1, abs=0.01)
    settings = SimulationSettings(
        shape=(48, 80, 80), voxel_size=voxel_size, species=(map_species("ball", source, 4),),
        snr=None, membranes=0, touching=0.5,
    )  # fmt: skip
    made = simulate(settings, {"ball": source})
    sizes = np.bincount(made.labels.ravel())[1:] * (voxel_size / 10) ** 3
    np.testing.assert_allclose(sizes, 4 / 3 * np.pi * 6**3, rtol=0.15)  # the cavity is in the mask
    centres = ndimage.center_of_mass(made.labels > 0, made.labels, range(1, 5))
    np.testing.assert_allclose(centres, [p[:3] for p in made.particles], atol=0.7)


def test_the_template_is_hollow_and_resampled() -> None:
    source = density_map(shell(), 4.0)
    model = map_template(map_species("ball", source, 1), source, 8.0)
    middle = model.density.shape[0] // 2
    assert model.density[middle, middle, middle] < 0.1
    assert model.occupancy[middle, middle, middle] == 1
    assert model.density.max() == pytest.approx(1, abs=0.2)
    # mass is kept: what 4 Å voxels hold, 8 Å voxels hold
    assert model.density.sum() * 8.0**3 == pytest.approx(source.data.sum() * 4.0**3, rel=0.03)


def test_the_unit_of_a_map_does_not_matter() -> None:
    one, other = density_map(shell(), 4.0), density_map(shell(scale=0.01, base=-5.0), 4.0)
    np.testing.assert_allclose(one.data, other.data, atol=1e-3)
    assert one.diameter == other.diameter
    assert density_map(shell(), 4.0, level=12.0).diameter == pytest.approx(one.diameter)


def with_voxel(value: float) -> np.ndarray:
    data = shell()
    data[5, 5, 5] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((20, 20, 20), 3.0, np.float32), "same value everywhere"),
        (with_voxel(np.nan), "NaN or infinite"),
        (with_voxel(np.inf), "NaN or infinite"),
        (-shell(), "invert the map"),
        (shell()[8:36, 8:36, 8:36], "larger box"),
        (np.zeros((4, 20, 20), np.float32), "8 voxels or more"),
        (np.zeros((LARGEST_SIDE + 1, 8, 8), np.int8), f"{LARGEST_SIDE} voxels or fewer"),
    ],
    ids=["constant", "nan", "infinite", "dark", "cut", "thin", "large"],
)
def test_a_bad_map_is_one_line_that_names_it(tmp_path: Path, data: np.ndarray, message: str) -> None:
    path = write(tmp_path / "bad.mrc", data)
    with pytest.raises(InputError, match=message) as caught:
        read_density_map(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_levels_and_voxels_are_one_line(tmp_path: Path) -> None:
    good = write(tmp_path / "m.mrc", shell())
    (tmp_path / "cut.mrc").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "empty.mrc").write_bytes(b"")
    write(tmp_path / "oblong.mrc", shell(), (4.0, 4.0, 6.0))
    write(tmp_path / "unset.mrc", shell(), 0.0)
    for name in ("cut", "empty", "oblong", "unset", "none"):
        with pytest.raises(InputError, match=f"{name}.mrc") as caught:
            read_density_map(tmp_path / f"{name}.mrc")
        assert "\n" not in str(caught.value)
    assert read_density_map(tmp_path / "unset.mrc", voxel_size=4.0).voxel_size == 4.0
    with pytest.raises(InputError, match="level"):
        read_density_map(good, level=99.0)


def test_a_species_without_its_map_is_said() -> None:
    source = density_map(shell(), 4.0)
    settings = SimulationSettings(species=(map_species("ball", source, 1),))
    with pytest.raises(SettingsError, match=r"ball.*density map"):
        simulate(settings)
    with pytest.raises(SettingsError, match=r"ball\.diameter"):
        SimulationSettings(shape=(16, 64, 64), voxel_size=6.0, species=settings.species)
