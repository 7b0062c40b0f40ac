"""Ingest through the driver, on files as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import zarr

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels import images
from cryosam_dask.pipeline import Driver
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array


def write(path: Path, values: Array, voxel_size: float = 10.0) -> Path:
    with mrcfile.new(path, values, overwrite=True) as file:
        file.voxel_size = voxel_size
    return path


def ingest(path: Path | str, out: Path, **options: Any) -> RunStore:
    Driver(out, SerialExecutor(), overwrite=options.pop("overwrite", False)).ingest(path, **options)
    return RunStore.open(out)


@pytest.fixture
def tomogram() -> Array:
    return np.random.default_rng(0).normal(3, 2, size=(70, 45, 270)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16", "int8", "float16"])
def test_voxels_arrive_unchanged(tomogram: Array, tmp_path: Path, dtype: str) -> None:
    values = (tomogram * 5 + 50).astype(dtype)
    store = ingest(write(tmp_path / "t.mrc", values), tmp_path / "run.zarr")
    found = store.read(layout.tomogram())
    assert found.dtype == np.dtype(dtype)
    assert (found == values).all()
    assert store.voxel_size == (10.0, 10.0, 10.0)


def test_levels_are_means_of_2x2x2_voxels_with_ome_metadata(tomogram: Array, tmp_path: Path) -> None:
    store = ingest(write(tmp_path / "t.mrc", tomogram), tmp_path / "run.zarr")
    level = store.read(layout.tomogram(1))
    assert level.shape == (35, 23, 135)
    assert level[3, 4, 5] == pytest.approx(tomogram[6:8, 8:10, 10:12].mean(), abs=1e-5)
    assert level[-1, -1, -1] == pytest.approx(tomogram[68:, 44:, 268:].mean(), abs=1e-5)
    ome = zarr.open_group(tmp_path / "run.zarr", mode="r").attrs["ome"]
    assert isinstance(ome, dict)
    scales = ome["multiscales"][0]
    assert ome["version"] == "0.5"
    assert [axis["unit"] for axis in scales["axes"]] == ["angstrom"] * 3
    assert [d["path"] for d in scales["datasets"]] == ["scale0/tomogram", "scale1/tomogram"]
    assert scales["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [20.0] * 3},
        {"type": "translation", "translation": [5.0] * 3},
    ]


def test_statistics_come_from_the_one_pass(tomogram: Array, tmp_path: Path) -> None:
    tomogram[0, 0, 0] = 1e6  # one hot voxel must not ruin the percentiles
    found = ingest(write(tmp_path / "t.mrc", tomogram), tmp_path / "run.zarr").info["statistics"]
    assert found["mean"] == pytest.approx(tomogram.mean(dtype=float), rel=1e-6)
    assert found["std"] == pytest.approx(tomogram.std(dtype=float), rel=1e-6)
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(tomogram, [0.5, 99.5]), abs=0.05)
    assert (found["minimum"], found["maximum"]) == (tomogram.min(), 1e6)


def test_chunks_carry_checksums_and_a_flipped_bit_is_found(tomogram: Array, tmp_path: Path) -> None:
    store = ingest(write(tmp_path / "t.mrc", tomogram), tmp_path / "run.zarr")
    chunk = next((tmp_path / "run.zarr" / layout.tomogram() / "c").rglob("[0-9]*/[0-9]*/[0-9]*"))
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(Exception, match="checksum"):
        store.read(layout.tomogram())


def test_a_second_ingest_does_nothing_and_another_file_is_refused(tomogram: Array, tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.mrc", tomogram), tmp_path / "run.zarr"
    ingest(path, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("c/*") if p.is_file()}
    ingest(path, out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("c/*") if p.is_file()} == before
    other = write(tmp_path / "other.mrc", tomogram + 1)
    with pytest.raises(StoreError, match=r"ingest was made with other settings .*--overwrite"):
        ingest(other, out)
    assert (RunStore.open(out).read(layout.tomogram()) == tomogram).all()
    assert (ingest(other, out, overwrite=True).read(layout.tomogram()) == tomogram + 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_named_and_nothing_is_left(tomogram: Array, tmp_path: Path, bad: float) -> None:
    tomogram[40, 5, 6] = bad
    with pytest.warns(RuntimeWarning), mrcfile.new(tmp_path / "t.mrc", tomogram) as file:
        file.voxel_size = 10
    with pytest.raises(InputError, match=r"1 voxels .* the first at z,y,x = 40,5,6"):
        ingest(tmp_path / "t.mrc", tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_constant_volume_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "t.mrc", np.full((8, 9, 10), 7, np.float32))
    with pytest.raises(InputError, match="expected a tomogram with contrast"):
        ingest(path, tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_folder_that_is_no_run_is_never_removed(tomogram: Array, tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.mrc", tomogram), tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("…")
    with pytest.raises(StoreError, match="precious"):
        ingest(path, out, overwrite=True)
    assert (out / "thesis.txt").exists()


def test_a_store_of_another_version_is_refused(tomogram: Array, tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.mrc", tomogram), tmp_path / "run.zarr"
    ingest(path, out)
    RunStore.open(out, "r+").update_info(format=99)
    with pytest.raises(StoreError, match="store format 99, this version reads 1"):
        ingest(path, out)


def test_existing_ome_zarr_is_read_as_input(tomogram: Array, tmp_path: Path) -> None:
    first = ingest(write(tmp_path / "t.mrc", tomogram, 7.5), tmp_path / "first.zarr")
    second = ingest(tmp_path / "first.zarr", tmp_path / "second.zarr")
    assert second.voxel_size == (7.5, 7.5, 7.5)
    assert (second.read(layout.tomogram()) == first.read(layout.tomogram())).all()


def test_halving_handles_odd_sizes_and_integers() -> None:
    values = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    half = images.halve(values)
    assert half.shape == (2, 2, 2)
    assert half.dtype == np.int16
    assert half[1, 1, 1] == 26
    assert half[0, 0, 0] == round(float(values[:2, :2, :2].mean()))


def test_eight_bit_contrast_clips_and_never_wraps() -> None:
    values = np.array([[[-100, 0, 5, 10, 900]]], np.float32)
    assert images.to_uint8(values, 0, 10).ravel().tolist() == [0, 0, 128, 255, 255]
