"""Units of length by the names that files have for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from cryosam_dask.errors import InputError
from cryosam_dask.io import open_tomogram
from cryosam_dask.io.units import angstroms

NAMES = {
    1.0: "angstrom angstroms Angstrom ANGSTROMS Ångström Ångströms ångstroms Å \u212b A\u030a A",
    0.01: "picometer picometers picometre pm",
    10.0: "nanometer nanometers nanometre nanometres Nanometers nm",
    1e4: "micrometer micrometers micrometre micron microns Microns \u00b5m \u03bcm um",
    1e7: "millimeter millimetres mm",
    1e8: "centimeter centimeters cm",
    1e10: "meter meters metre metres m",
    2.54e8: "inch inches in",
}


@pytest.mark.parametrize(("name", "factor"), [(name, size) for size, names in NAMES.items() for name in names.split()])
def test_units_by_any_of_their_names(name: str, factor: float) -> None:
    assert angstroms(name) == factor
    assert angstroms(f" {name} ") == factor


@pytest.mark.parametrize("name", [None, "", " ", "pixel", "pixels", "px", "parsec", "s", "ms", "nms", "as", "voxels"])
def test_what_is_no_unit(name: str | None) -> None:
    assert angstroms(name) is None


def write(path: Path, volume: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, volume.astype("u2"), photometric="minisblack", **options)
    return path


IMAGEJ = [
    ("microns", 1e3, 1e-3),
    ("micron", 1e3, 1e-3),
    ("nanometers", 1, 1),
    ("angstroms", 0.1, 10),
    ("\\u00B5m", 1e3, 1e-3),
    ("\\u00C5", 0.1, 10),
    ("inch", 2.54e7, 1 / 2.54e7),
]


@pytest.mark.parametrize(("unit", "per_unit", "spacing"), IMAGEJ)
def test_units_of_imagej(unit: str, per_unit: float, spacing: float, volume: np.ndarray, tmp_path: Path) -> None:
    options = {"imagej": True, "resolution": (per_unit, per_unit)}
    path = write(tmp_path / "tomo.tif", volume, **options, metadata={"spacing": spacing, "unit": unit, "axes": "ZYX"})
    source = open_tomogram(path)
    assert source.voxel_size == (10.0, 10.0, 10.0)
    assert source.notes == ()


def test_imagej_goes_by_the_tags_unit_where_it_names_none(volume: np.ndarray, tmp_path: Path) -> None:
    options = {"imagej": True, "resolution": (1e7, 1e7), "resolutionunit": "CENTIMETER"}
    path = write(tmp_path / "tomo.tif", volume, **options, metadata={"spacing": 1e-7, "axes": "ZYX"})
    assert open_tomogram(path).voxel_size == (10.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 0.5, "unit": "parsec"}}, "unit 'parsec'"),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 0.5, "unit": "pixel"}}, "unit 'pixel'"),
        (
            {"imagej": True, "resolution": (1, 1), "metadata": {"spacing": 1, "unit": "nm", "zunit": "slices"}},
            "unit 'slices'",
        ),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "nm"}}, "it says z, y, x: none, 0.5, 0.5 in nm"),
        (
            {"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}},
            "it says z, y, x: none, 0.0138889, 0.0138889 in inch",
        ),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "0.0138889, 0.0138889, 0.0138889 in inch"),
        (
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 1,
             "PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "pixel"}},
            "unit 'pixel'",
        ),
        (
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 1e-3, "PhysicalSizeY": 1e-3}},
            "z, y, x: none, 0.001, 0.001 in µm",
        ),
    ],
)  # fmt: skip
def test_what_a_tiff_says_instead_is_named(
    options: dict[str, Any], words: str, volume: np.ndarray, tmp_path: Path
) -> None:
    path = write(tmp_path / "tomo.tif", volume, **options)
    with pytest.raises(InputError) as error:
        open_tomogram(path)
    message = str(error.value)
    assert words in message
    assert "--voxel-size" in message
    assert "\n" not in message
    assert open_tomogram(path, voxel_size=10).voxel_size == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("unit", ["nanometers", "Nanometre", "nm"])
def test_units_of_ome(unit: str, volume: np.ndarray, tmp_path: Path, write_zarr: Any) -> None:
    sizes = {f"PhysicalSize{axis}": 1.5 for axis in "XYZ"} | {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    path = write(tmp_path / "tomo.tif", volume, ome=True, metadata={"axes": "ZYX", **sizes})
    assert open_tomogram(path).voxel_size == (15.0, 15.0, 15.0)
    assert open_tomogram(write_zarr(volume, unit=unit, scale=(1.5, 1.5, 1.5))).voxel_size == (15.0, 15.0, 15.0)


def test_an_unknown_unit_of_an_ome_zarr_is_named(volume: np.ndarray, write_zarr: Any) -> None:
    with pytest.raises(InputError, match=r"units: furlong, furlong, furlong\); give it with --voxel-size"):
        open_tomogram(write_zarr(volume, unit="furlong"))


def test_what_an_hdf5_says_instead_is_named(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file["volume"] = volume
        file["volume"].attrs["element_size_um"] = (10.0, 100.0, 100.0)
    with pytest.raises(InputError, match=r"--voxel-size ÅNGSTRÖM \(it says element_size_um z, y, x: 10, 100, 100\)"):
        open_tomogram(path)
