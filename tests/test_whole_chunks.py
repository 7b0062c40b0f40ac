"""Arrays that are not compressed: whole chunks in frames that any decoder of Zstandard reads, without padding."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from cryosam_dask.errors import StoreError
from cryosam_dask.store import frames, whole_chunks
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.store.run_store import RunStore

SHAPE, CHUNKS = (21, 19, 9, 5), (16, 8, 4, 5)


def new(folder: str | Path, compress: bool = False) -> RunArray:
    store = RunStore.create(folder, {"shape": [1, 1, 1], "voxel_size": [1.0] * 3, "origin": [0.0] * 3})
    dims = ("z", "y", "x", "channel")
    return store.new_array("latents", shape=SHAPE, dtype="f2", chunks=CHUNKS, dims=dims, compress=compress)


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


@given(data=st.data(), item=st.sampled_from(["u1", "f2", "f4"]), large=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_frame_holds_its_chunk(data: st.DataObject, item: str, large: bool) -> None:
    chunk = tuple(data.draw(st.integers(1, most)) for most in (5, 6, 7, 30_000 if large else 9))
    part = tuple(data.draw(st.integers(1, side)) for side in chunk[:3])
    values = np.random.default_rng(0).integers(1, 100, chunk).astype(item)
    expected = np.zeros_like(values)
    here = tuple(slice(side) for side in part)
    expected[here] = values[here]
    frame = frames.frame(values[here], chunk, room=3)[:-3]
    for content in (Zstd().decode(frame), imagecodecs.zstd_decode(frame)):
        assert bytes(content) == expected.tobytes()
    # blocks' headers, and no byte of the padding
    assert len(frame) < values[here].nbytes + 8 * (1 + values.nbytes // (128 << 10)) + 8 * (1 + part[0] * (1 + part[1]))


@pytest.mark.parametrize("place", ["{}/run.zarr", "memory://whole-chunks/{}/run.zarr"])
def test_whole_chunks_are_read_back_and_by_zarr_alone(tmp_path: Path, place: str) -> None:
    array, values = new(place.format(tmp_path)), noise()
    assert whole_chunks.written(array._plain, (slice(0, 16), slice(8, 19)), values[:16, 8:])
    array[:16, :8] = values[:16, :8]
    array[16:] = values[16:]
    assert np.array_equal(array[...], values)
    assert array.nchunks_initialized == array.nchunks
    if "memory" not in place:
        assert np.array_equal(zarr.open_array(f"{tmp_path}/run.zarr/latents", mode="r")[...], values)


def test_what_is_no_whole_chunk_is_left_to_zarr(tmp_path: Path) -> None:
    array, values = new(tmp_path / "run.zarr"), noise()
    array[...] = np.float16(1)
    assert (np.asarray(array[...]) == 1).all()
    for part in ((slice(0, 16), slice(0, 7)), (slice(0, 16), slice(0, 8), 3), (slice(0, 16, 2),), (slice(3, 3),)):
        assert not whole_chunks.written(array._plain, part, values[part])
    array[:16, :7] = values[:16, :7]
    array[16:, 8:, 3] = values[16:, 8:, 3]
    array[3:3] = values[3:3]
    assert not whole_chunks.written(array._plain, slice(None), values.astype(np.float32))
    expected = np.ones_like(values)
    expected[:16, :7], expected[16:, 8:, 3] = values[:16, :7], values[16:, 8:, 3]
    assert np.array_equal(array[...], expected)
    compressed = new(tmp_path / "other.zarr", compress=True)
    assert not whole_chunks.written(compressed._plain, slice(None), values)


def test_a_damaged_or_cut_chunk_is_named(tmp_path: Path) -> None:
    array = new(tmp_path / "run.zarr")
    array[...] = noise()
    (path,) = (tmp_path / "run.zarr" / "latents" / "c" / "1" / "2").glob("2/0")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert array.check((1, 2, 2, 0)) == "checksum"
    path.write_bytes(content[:30])
    with pytest.raises(StoreError, match="chunk 1/2/2/0 of latents is damaged"):
        array[16:, 16:]
