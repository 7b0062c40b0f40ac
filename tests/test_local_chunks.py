"""Chunks on the local disk are read and written past zarr: the same values, the same files, the same errors."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from cryosam_dask.errors import StoreError
from cryosam_dask.store import local_chunks
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.store.run_store import RunStore

SHAPE, CHUNKS = (13, 10, 9), (4, 4, 5)
VALUES = np.random.default_rng(0).integers(-99, 99, SHAPE)


def new(folder: str | Path, dtype: str = "f4", chunks: tuple[int, ...] = CHUNKS) -> RunArray:
    store = RunStore.create(folder, {"shape": [1, 1, 1], "voxel_size": [1.0] * 3, "origin": [0.0] * 3})
    array = store.new_array("tomogram", shape=SHAPE, dtype=dtype, chunks=chunks, dims=("z", "y", "x"))
    array[...] = VALUES.astype(dtype)
    return array


def file_of(folder: Path, index: str) -> Path:
    return folder / "run.zarr" / "tomogram" / "c" / index


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunArray]:
    return {kind: new(tmp_path_factory.mktemp(kind) / "run.zarr", kind) for kind in ("i1", "u2", "f2", "f4", "f8")}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_is_what_zarr_reads(arrays: dict[str, RunArray], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(arrays)))
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
    part = tuple(slice(*pair) for pair in ends)[: data.draw(st.integers(1, 3))]
    there = local_chunks.read(arrays[kind]._plain, part)
    assert there is not None
    assert there.dtype == np.dtype(kind)
    assert there.flags.writeable
    assert np.array_equal(there, VALUES[part].astype(kind))
    assert np.array_equal(arrays[kind][part], there)


def test_what_is_not_slices_or_not_on_the_disk_is_left_to_zarr(tmp_path: Path) -> None:
    array = new(tmp_path / "run.zarr")
    for part in (3, (slice(None), 3), slice(0, 9, 2), (Ellipsis, slice(2)), slice(4, 4), (slice(None),) * 4):
        assert local_chunks.read(array._plain, part) is None
    assert np.array_equal(array[3], VALUES[3])
    assert np.array_equal(array[..., :2], VALUES[..., :2])
    assert np.array_equal(array[::2, 1], VALUES[::2, 1])
    elsewhere = new("memory://local-chunks/run.zarr")
    assert local_chunks.read(elsewhere._plain, Ellipsis) is None
    assert np.array_equal(elsewhere[...], VALUES)
    with mock.patch.object(local_chunks, "MOST", 79):  # bytes; a chunk has 320
        assert local_chunks.read(array._plain, Ellipsis) is None


def framed(content: bytes) -> bytes:
    stored: bytes = Zstd(level=1).encode(content)
    return stored + google_crc32c.value(stored).to_bytes(4, "little")


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored[:20] + bytes([stored[20] ^ 1]) + stored[21:],
        lambda stored: stored[:-7],
        lambda stored: b"",
        lambda stored: stored + b"more",
        lambda stored: framed(bytes(316)),  # sound, and of another size than a chunk
        lambda stored: framed(bytes(324)),
        lambda stored: framed(bytes(1 << 20)),
        lambda stored: b"none" + google_crc32c.value(b"none").to_bytes(4, "little"),
        None,
    ],
)
def test_a_chunk_that_is_not_as_it_should_be_is_named(tmp_path: Path, change: Any) -> None:
    array, path = new(tmp_path / "run.zarr"), file_of(tmp_path, "1/2/0")
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=r"chunk 1/2/0 of tomogram is (damaged|missing)"):
        array[3:6]
    assert np.array_equal(array[:4], VALUES[:4])


def test_what_was_read_stays_as_it_is_and_threads_do_not_mix(tmp_path: Path) -> None:
    array = new(tmp_path / "run.zarr")
    first = array[:4, :4, :5]  # one whole chunk
    array[4:8, :4, :5]
    assert np.array_equal(first, VALUES[:4, :4, :5])
    together = threading.Barrier(4)

    def look(start: int) -> bool:
        together.wait()
        return all(np.array_equal(array[start:], VALUES[start:]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(4)))


def test_a_part_takes_its_own_memory_and_that_of_a_chunk(tmp_path: Path) -> None:
    import tracemalloc

    store = RunStore.create(tmp_path / "run.zarr", {"shape": [1] * 3, "voxel_size": [1.0] * 3, "origin": [0.0] * 3})
    array = store.new_array("tomogram", shape=(64, 128, 128), dtype="f4", chunks=(32, 64, 64), dims=("z", "y", "x"))
    array[...] = np.random.default_rng(0).random(array.shape, np.float32)
    tracemalloc.start()
    try:
        part = array[:, :8]
        assert tracemalloc.get_traced_memory()[1] < part.nbytes + 2.5 * (32 * 64 * 64 * 4)
        tracemalloc.reset_peak()
        again = array[:, 8:16]
        assert tracemalloc.get_traced_memory()[1] < part.nbytes + 2.5 * (32 * 64 * 64 * 4) + again.nbytes
    finally:
        tracemalloc.stop()


def latents(folder: Path, mode: Any = "r+") -> RunArray:
    if not folder.exists():
        store = RunStore.create(folder, {"shape": [1] * 3, "voxel_size": [1.0] * 3, "origin": [0.0] * 3})
        dims = ("z", "y", "x", "channel")
        store.new_array("latents", shape=(9, 7, 8, 3), dtype="f2", chunks=(4, 4, 4, 3), dims=dims, compress=False)
    return RunStore.open(folder, mode).array("latents")


def test_no_memory_is_kept_for_chunks_that_are_too_large(tmp_path: Path) -> None:
    array, ones = latents(tmp_path / "run.zarr"), np.ones((4, 7, 8, 3), np.float16)
    with (
        mock.patch.object(local_chunks, "MOST", 4 * 4 * 4 * 3 * 2 - 1),
        mock.patch.object(local_chunks, "memory", side_effect=AssertionError),
    ):
        array[:4] = ones
        assert np.array_equal(array[:4], ones)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    array, ones = latents(tmp_path / "run.zarr"), np.ones((4, 7, 8, 3), np.float16)
    array[:4] = ones

    def full(path: Path, content: Any) -> None:
        path.write_bytes(bytes(content[:9]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch.object(local_chunks, "_fill", full), pytest.raises(OSError, match="No space"):
        array[:4] = 2 * ones
    assert np.array_equal(array[:4], ones)
    assert not list(tmp_path.rglob("*.partial"))
    assert np.array_equal(zarr.open_array(f"{tmp_path}/run.zarr/latents", mode="r")[:4], ones)


def test_a_store_that_was_opened_to_read_is_not_written_to(tmp_path: Path) -> None:
    latents(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="read-only"):
        latents(tmp_path / "run.zarr", "r")[:4] = np.ones((4, 7, 8, 3), np.float16)
    assert not list((tmp_path / "run.zarr" / "latents").rglob("c/*"))
