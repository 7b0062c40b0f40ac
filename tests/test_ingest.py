"""Ingest through the driver, on files as people have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels import images
from cryosam_dask.pipeline import Driver
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Shape3


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


def test_doubles_beyond_single_precision_are_named_as_such(tomogram: Array, tmp_path: Path) -> None:
    values = tomogram.astype(np.float64)
    values[40, 5, 6] = -1e39
    np.save(tmp_path / "t.npy", values)
    with pytest.raises(InputError, match=r"1 voxels .* too large for single precision, the first at z,y,x = 40,5,6"):
        ingest(tmp_path / "t.npy", tmp_path / "run.zarr", voxel_size=10)
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


@pytest.mark.parametrize("dtype", ["float32", "int16", "int8"])
def test_boxes_give_the_same_image_levels_and_statistics_as_the_whole(
    tomogram: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """45 × 270 in boxes of 16 × 64: odd ends along every axis, two levels."""
    path = write(tmp_path / "t.mrc", (tomogram * 5 + 50).astype(dtype))
    whole = ingest(path, tmp_path / "whole.zarr")
    monkeypatch.setattr(layout, "INGEST_BOX", (32, 16, 64))
    monkeypatch.setattr(layout, "CHUNK", (32, 16, 32))
    boxed = ingest(path, tmp_path / "boxed.zarr")
    assert boxed.array(layout.STATISTICS).shape[0] == 3 * 3 * 5
    assert whole.array(layout.STATISTICS).shape[0] == 3
    assert layout.level_count(boxed.shape) == 2
    for level in range(2):
        assert (boxed.read(layout.tomogram(level)) == whole.read(layout.tomogram(level))).all()
    found, expected = boxed.info["statistics"], whole.info["statistics"]
    for name in ("mean", "std", "minimum", "maximum"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12)
    assert [found["low"], found["high"]] == pytest.approx([expected["low"], expected["high"]], abs=0.2)


@given(st.integers(0, 5), st.tuples(st.integers(2, 10_000), st.integers(2, 10_000), st.integers(2, 10_000)))
def test_boxes_are_whole_chunks_on_every_level_and_of_bounded_size(level: int, shape: Shape3) -> None:
    for box, chunk in zip(layout.INGEST_BOX, layout.level_chunks(level), strict=True):
        assert chunk >= 1
        assert (box >> level) % chunk == 0
    assert layout.level_count(shape) <= 6
    boxes = layout.image_boxes(shape)
    assert sum(math.prod(b - a for a, b in box) for box in boxes) == math.prod(shape)
    assert max(math.prod(b - a for a, b in box) for box in boxes) * 4 <= 128 << 20


def test_a_bad_voxel_is_named_by_its_place_in_the_file(
    tomogram: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "INGEST_BOX", (32, 16, 64))
    tomogram[40:42, 20, 200] = np.nan
    with pytest.warns(RuntimeWarning), mrcfile.new(tmp_path / "t.mrc", tomogram) as file:
        file.voxel_size = 10
    with pytest.raises(InputError, match=r"2 voxels of 32:64, 16:32, 192:256 .* the first at z,y,x = 40,20,200"):
        ingest(tmp_path / "t.mrc", tmp_path / "run.zarr")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
@settings(max_examples=30, deadline=None)
def test_merged_statistics_are_those_of_all_voxels(sizes: list[int], seed: int, integers: bool) -> None:
    """Blocks of unlike sizes and means, small enough that their quantiles are exact."""
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(rng.normal(0, 5), 3, (n, 5, 7)).astype(np.float32) for n in sizes]
    if integers:
        blocks = [np.rint(block).astype(np.int16) for block in blocks]
    every = np.concatenate([block.ravel() for block in blocks]).astype(float)
    if every.std() == 0:
        return
    found = images.merge_summaries(np.stack([images.summarize(block) for block in blocks]))
    assert found.mean == pytest.approx(every.mean(), rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(every.std(), rel=1e-12)
    assert (found.minimum, found.maximum) == (every.min(), every.max())
    for value, share in ((found.low, 0.005), (found.high, 0.995)):
        assert (every < value - 1).mean() <= share + 1 / every.size
        assert (every <= value + 1).mean() >= share - 1 / every.size


def test_bisected_percentiles_are_those_of_the_whole_mixture() -> None:
    """The direct computation: the mixture of the blocks' distribution functions on all of their quantiles."""
    rng = np.random.default_rng(0)
    rows = np.stack([images.summarize(rng.normal(k, 1 + k, (k + 1, 9, 8))) for k in range(7)])
    counts, quantiles = rows[:, 0], rows[:, 3:]
    grid, levels = np.unique(quantiles), np.linspace(0, 1, quantiles.shape[1])
    mixture = sum(c * np.interp(grid, q, levels) for c, q in zip(counts, quantiles, strict=True)) / counts.sum()
    expected = np.interp([0.02, 0.7], mixture, grid)
    found = images.merge_summaries(rows, 2, 70)
    assert [found.low, found.high] == pytest.approx(expected, rel=1e-12)


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


@pytest.mark.parametrize("size", [(42, 70), (126, 14), (9, 10), (14, 210), (1, 1)])
@pytest.mark.parametrize("shape", [(3, 9, 10), (1, 200, 70), (2, 1, 3)])
def test_resizing_is_the_bilinear_one_of_pytorch(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    import torch

    slices = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(slices)[:, None], size, mode="bilinear")
    assert images.resize(slices, size) == pytest.approx(expected[:, 0].numpy(), abs=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", "u1"])
def test_means_of_slices_of_any_type_and_order(dtype: str, order: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 200, (7, 8, 9)).astype(dtype).transpose(order)
    windows = [(0, 1), (0, 3), (2, 7), (5, 7)]
    expected = np.stack([(values[a:b].astype(float).mean(0) - 5) * 0.5 for a, b in windows])
    found = images.mean_slices(values, windows, 5, 0.5)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
