"""Every format of tomograms: the voxels that its own library reads, box by box, with the voxel size that it tells."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from cryosam_dask.errors import InputError
from cryosam_dask.io import TomogramSource, inflate, open_tomogram, tiff
from cryosam_dask.io.flat import FlatSource

ALL = (slice(None), slice(None), slice(None))
BOXES = (ALL, (slice(1, 4), slice(2, 7), slice(3, 9)), (slice(4, 5), slice(0, 7), slice(10, 11)), (slice(2, 2),) * 3)
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", ">u2", ">i2", ">f4", ">f8", "i8"]


def refusal(path: str | Path, **options: Any) -> str:
    """The one line in which opening, or reading all of it, ends."""
    with pytest.raises(InputError) as error:
        open_tomogram(path, **options).read(ALL)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def check(path: str | Path, volume: np.ndarray, **options: Any) -> TomogramSource:
    """Open, send, and read in boxes."""
    source = open_tomogram(path, **options)
    assert isinstance(source, TomogramSource)
    assert source.shape == volume.shape
    assert source.dtype.isnative
    travelled = pickle.dumps(source)
    assert len(travelled) < 3000
    again = pickle.loads(travelled)
    for box in BOXES:
        block = again.read(box)
        assert block.dtype == source.dtype
        assert block.flags.c_contiguous
        assert block.flags.owndata or block.base is None
        np.testing.assert_array_equal(block, volume[box])
    assert json.loads(json.dumps(source.identity)) == open_tomogram(path, **options).identity
    return source


# Gzipped MRC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mrc.gz", ".rec.gz", ".map.gz", ".MRC.GZ"])
def test_a_gzipped_mrc_is_what_mrcfile_reads(suffix: str, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"tomo{suffix}"
    with mrcfile.new(path, volume, compression="gzip") as file:
        file.voxel_size = (4.5, 3.0, 2.0)
    source = check(path, volume)
    assert source.voxel_size == (2.0, 3.0, 4.5)
    assert source.identity["format"] == "mrc.gz"
    assert source.notes == ()


@pytest.fixture
def mountains(tmp_path: Path, mrc_content: Callable[..., bytes]) -> tuple[np.ndarray, bytes]:
    """A volume of 14 MB, compressible to a half, and its MRC file."""
    values = np.random.default_rng(1).integers(0, 50, (45, 210, 380)).astype(np.float32)
    return values, mrc_content(values, 2)


def test_boxes_in_any_order_take_a_pass_or_two(
    mountains: tuple[np.ndarray, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded in all is counted: ingest's boxes take about twice the file, and backwards not a pass each."""
    values, raw = mountains
    path = tmp_path / "tomo.mrc.gz"
    path.write_bytes(gzip.compress(raw, 1))
    decoded = 0
    real = inflate.Inflated._next

    def counted(self: inflate.Inflated, most: int) -> bytes:
        nonlocal decoded
        data = real(self, most)
        decoded += len(data)
        return data

    monkeypatch.setattr(inflate.Inflated, "_next", counted)
    monkeypatch.setattr(inflate, "_CLOSEST", 1 << 16)
    source = open_tomogram(path)
    boxes = [(slice(z, z + 16), slice(y, y + 70), slice(0, 380)) for z in (0, 16, 32) for y in (0, 70, 140)]
    for box in boxes:
        np.testing.assert_array_equal(source.read(box), values[box])
    assert decoded < 2.5 * len(raw)
    decoded = 0
    for box in reversed(boxes):
        np.testing.assert_array_equal(source.read(box), values[box])
    assert decoded < 4 * len(raw)


@pytest.mark.parametrize("pack", ["one", "many", "padded", "bgzf-like"])
def test_gzip_files_of_several_members(pack: str, mountains: tuple[np.ndarray, bytes], tmp_path: Path) -> None:
    values, raw = mountains
    step = {"many": 5_000_001, "padded": 5_000_001, "bgzf-like": 65_280}.get(pack, len(raw))
    parts = [gzip.compress(raw[a : a + step], 1) for a in range(0, len(raw), step)]
    path = tmp_path / "tomo.rec.gz"
    path.write_bytes((bytes(700) if pack == "padded" else b"").join(parts) + (bytes(512) if pack == "padded" else b""))
    source = open_tomogram(path)
    for box in ((slice(40, 45), slice(5, 9), slice(0, 380)), (slice(3, 6), slice(0, 210), slice(9, 300)), ALL):
        np.testing.assert_array_equal(source.read(box), values[box])


def test_a_large_gzip_is_read_in_little_memory(tmp_path: Path, mrc_content: Callable[..., bytes]) -> None:
    """96 MB in 0.1: what is kept, counted by the copies of the decoder, stays below 8 MB, and a box takes a box."""
    import tracemalloc

    path = tmp_path / "tomo.mrc.gz"
    head = mrc_content(np.zeros((2, 2, 2), np.float32), 2)[:1024]
    sizes = struct.pack("<3i", 500, 400, 120)
    head = sizes + head[12:28] + struct.pack("<3i3f", 500, 400, 120, 5e3, 4e3, 1.2e3) + head[52:]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for z in range(120):
            file.write(np.full((400, 500), z, np.float32).tobytes())
    source = open_tomogram(path)
    tracemalloc.start()
    for z in range(0, 120, 32):
        block = source.read((slice(z, z + 32), slice(100, 150), slice(0, 500)))
        assert (block == np.arange(z, min(z + 32, 120))[:, None, None]).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < block.nbytes * 4 / 3 + 3.2e6 + 6e6
    assert isinstance(source, FlatSource)
    kept = next(places for key, places in inflate._files.items() if key[-1] == source.packed)
    assert len(kept._places) <= inflate._RECENT + inflate._ROUGH + 2


def test_gzip_files_that_are_cut_damaged_or_no_mrc(
    mountains: tuple[np.ndarray, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, raw = mountains
    path = tmp_path / "tomo.mrc.gz"
    packed = gzip.compress(raw, 1)

    def message(content: bytes) -> str:
        path.write_bytes(content)
        return refusal(path)

    assert "truncated: its compressed data ends in the middle" in message(packed[: len(packed) // 2])
    assert "truncated: expected a header of 1024 bytes" not in message(packed[:-4])
    assert "truncated: expected" in message(gzip.compress(raw[:-8], 1))
    assert "truncated" in message(packed[:300])
    assert "empty" in message(b"")
    assert "empty" in message(gzip.compress(b""))
    assert "not an MRC" in message(gzip.compress(b"text " * 999))
    assert "not gzip-compressed, as its name says" in message(raw)
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # the checksum
    assert "can't be decoded" in message(bytes(flipped))
    flipped = bytearray(packed)
    flipped[len(packed) // 2 : len(packed) // 2 + 50] = bytes(50)
    assert "damaged" in message(bytes(flipped))
    path.write_bytes(packed)
    source = open_tomogram(path)
    path.write_bytes(packed[:-1])
    with pytest.raises(InputError, match="can't be read any more"):
        source.read(ALL)


def test_a_bomb_is_measured_by_its_bytes(tmp_path: Path, mrc_content: Callable[..., bytes]) -> None:
    """A header that calls for 16 TB in some kilobytes is refused before anything is decoded or allocated."""
    head = bytearray(mrc_content(np.zeros((2, 2, 2), np.float32), 2)[:1024])
    head[:12] = struct.pack("<3i", 16000, 16000, 16000)
    path = tmp_path / "tomo.mrc.gz"
    path.write_bytes(gzip.compress(bytes(head) + bytes(10_000_000)))
    assert "truncated: expected 16384000001024 bytes" in refusal(path, voxel_size=10)


def test_bzip2_and_remote_gzip_are_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "tomo.mrc.bz2").write_bytes(bz2.compress(b"x"))
    assert "unpack it first" in refusal(tmp_path / "tomo.mrc.bz2")
    assert "download it first" in refusal("https://127.0.0.1:9/tomo.mrc.gz")
    assert "read from a disk only: download it first" in refusal("s3://bucket/tomo.tif")


# TIFF -----------------------------------------------------------------------------------------------------------------


TIFFS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "pages": {"metadata": None},
    "deflate": {"compression": "zlib"},
    "deflate-predicted": {"compression": "zlib", "predictor": 2, "rowsperstrip": 3},
    "deflate-big-endian": {"compression": "zlib", "byteorder": ">", "predictor": 2},
    "lzw": {"compression": "lzw"},
    "lzw-predicted": {"compression": "lzw", "predictor": 2, "rowsperstrip": 3},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "strips": {"rowsperstrip": 2, "metadata": None},
    "tiles": {"tile": (16, 16)},
    "tiles-deflate": {"tile": (16, 32), "compression": "zlib", "predictor": 2},
    "one-description": {"truncate": True},
    "imagej-one-description": {"imagej": True, "truncate": True},
    "ome": {"ome": True},
    "ome-deflate": {"ome": True, "compression": "zlib"},
    "imagej": {"imagej": True},
    "big-ome-big-endian": {"bigtiff": True, "ome": True, "byteorder": ">"},
}


@pytest.mark.parametrize("kind", list(TIFFS))
def test_tiff_stacks_of_every_layout(kind: str, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.tif"
    tifffile.imwrite(path, volume.astype("u2"), photometric="minisblack", **TIFFS[kind])
    np.testing.assert_array_equal(tifffile.imread(path), volume)
    assert "no usable voxel size; give it with --voxel-size" in refusal(path)
    source = check(path, volume, voxel_size=10)
    assert source.dtype == np.uint16
    # five pages without a name for their axis are channels to OME and ImageJ, and slices here
    assert [note.partition(";")[0] for note in source.notes] == (
        ["its 5 pages are called channels"] if {"ome", "imagej"} & set(kind.split("-")) else []
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_types(dtype: str, compression: str | None, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.tiff"
    whole = np.dtype(dtype).kind in "iu" and compression
    tifffile.imwrite(path, volume.astype(dtype), compression=compression, predictor=2 if whole else None)
    assert check(path, volume, voxel_size=10).dtype == np.dtype(dtype).newbyteorder("=")


def test_real_numbers_sorted_by_weight(volume: np.ndarray, tmp_path: Path) -> None:
    """Predictor 3 (TIFF Technical Note 3), encoded here by its words; tifffile alone can't write it."""
    values = (volume * np.float32(0.37)).astype("<f4")
    pages = []
    for page in values:
        planes = page.astype(">f4").view(np.uint8).reshape(7, 11, 4).transpose(0, 2, 1).reshape(7, 44)
        pages.append(zlib.compress(np.diff(planes, axis=1, prepend=np.zeros((7, 1), np.uint8)).tobytes()))
    path = tmp_path / "tomo.tif"
    options: dict[str, Any] = {"shape": values.shape, "dtype": "<i4", "compression": "zlib", "predictor": 2}
    tifffile.imwrite(path, iter(pages), **options, metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags[317].overwrite(3)
            page.tags[339].overwrite(3)
    check(path, values, voxel_size=10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (1 / 1.5, 1 / 1.2), "metadata": {"spacing": 2.0, "unit": "nm"}}, (20, 12, 15)),
        ({"imagej": True, "resolution": (1000, 1000), "metadata": {"spacing": 0.001, "unit": "um"}}, (10, 10, 10)),
        ({"imagej": True, "resolution": (8e2, 8e2), "metadata": {"spacing": 1, "unit": "\\u00B5m"}}, (1e4, 12.5, 12.5)),
        ({"imagej": True, "resolution": (0.1, 0.1), "metadata": {"spacing": 12.5, "unit": "angstrom"}}, (12.5, 10, 10)),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"unit": "nm"}}, (10, 10, 10)),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"spacing": -9, "unit": "nm", "zunit": "A"}}, (9, 10, 10)),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "nm"}}, None),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 0.5, "unit": "pixel"}}, None),
        ({"imagej": True}, None),
        (
            {"ome": True, "metadata": {"PhysicalSizeX": 1.5, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 12.0,
             "PhysicalSizeYUnit": "Å", "PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "µm"}},
            (20, 12, 15),
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 1}}, (1e4, 1e3, 1e3)),
        ({"ome": True, "metadata": {"PhysicalSizeX": 1e-3, "PhysicalSizeY": 1e-3}}, None),
        ({"resolution": (1e7, 1e7), "resolutionunit": "CENTIMETER"}, (10, 10, 10)),
        ({"resolution": (1e7, 2e7), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    ],
)  # fmt: skip
def test_voxel_sizes_of_tiffs(options: dict[str, Any], expected: Any, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.tif"
    tifffile.imwrite(path, volume.astype("u2"), photometric="minisblack", **options)
    if expected is None:
        assert "--voxel-size" in refusal(path)
    else:
        source = open_tomogram(path)
        assert source.voxel_size == expected
        assert any("along z" in note for note in source.notes) == ("resolutionunit" in options)
    assert open_tomogram(path, voxel_size=(1, 2, 3)).voxel_size == (1, 2, 3)


def test_tiffs_that_are_no_tomograms(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.tif"

    def message(data: np.ndarray, **options: Any) -> str:
        tifffile.imwrite(path, data, **options)
        return refusal(path, voxel_size=10)

    small = volume.astype("u1")
    assert "colour" in message(np.stack([small] * 3, -1), photometric="rgb")
    assert "not one stack" in message(small[0], photometric="minisblack")
    assert "not one stack" in message(np.stack([small] * 2), photometric="minisblack", imagej=True)
    assert "whole bytes" in message(small > 50, photometric="minisblack")
    assert "complex" in message(small.astype("c8"), photometric="minisblack")
    assert "JPEG" in _compressed_as(path, 7, small)
    assert "page 3 ends at byte" in _truncated(path, small)
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    path.write_bytes(b"text")
    assert "not a TIFF" in refusal(path)
    with pytest.raises(InputError, match="'unsigned' applies to MRC files only"):
        open_tomogram(path, unsigned=True)


def _compressed_as(path: Path, code: int, data: np.ndarray) -> str:
    """Deflated pages that say to be of another compression."""
    tifffile.imwrite(path, data, compression="zlib", metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags[259].overwrite(code)
    return refusal(path, voxel_size=10)


def _truncated(path: Path, data: np.ndarray) -> str:
    """The last pages' voxels lie beyond the file's end."""
    tifffile.imwrite(path, data, compression="zlib", metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[3].tags[273].overwrite(1 << 20)
    return refusal(path, voxel_size=10)


def test_a_strip_that_decodes_to_too_much_is_refused(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.tif"
    bomb = [zlib.compress(bytes(50_000_000))] * 5
    tifffile.imwrite(path, iter(bomb), shape=(5, 7, 11), dtype="u1", compression="zlib", metadata=None)
    assert "a strip or tile of 48610 bytes for 77" in refusal(path, voxel_size=10)
    tifffile.imwrite(path, iter(bomb), shape=(5, 150, 200), dtype="u1", compression="zlib", metadata=None)
    assert "damaged at page 0: a chunk that decodes to more bytes" in refusal(path, voxel_size=10)
    short = [zlib.compress(bytes(70))] * 5
    tifffile.imwrite(path, iter(short), shape=(5, 7, 11), dtype="u1", compression="zlib", metadata=None)
    assert "damaged at page 0: 70 bytes, expected 77" in refusal(path, voxel_size=10)


def test_strips_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 9, (6, 64, 30)).astype("u2")
    path = tmp_path / "tomo.tif"
    tifffile.imwrite(path, values, compression="zlib", rowsperstrip=8)
    seen: list[tuple[int, int]] = []
    real = tiff._segment

    def noted(path: Path, file: io.FileIO, stack: Any, page: int, index: int, down: int) -> Any:
        seen.append((page, index))
        return real(path, file, stack, page, index, down)

    monkeypatch.setattr(tiff, "_segment", noted)
    box = (slice(2, 4), slice(9, 24), slice(1, 29))
    np.testing.assert_array_equal(open_tomogram(path, voxel_size=10).read(box), values[box])
    assert seen == [(2, 1), (2, 2), (3, 1), (3, 2)]


@pytest.mark.parametrize("suffix", ["tif", "h5"])
@pytest.mark.parametrize("change", ["shape", "type"])
def test_another_volume_in_a_file_of_the_same_size_is_not_read(
    change: str, suffix: str, volume: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"tomo.{suffix}"

    def write(data: np.ndarray) -> None:
        if suffix == "tif":
            tifffile.imwrite(path, data, compression="zlib", photometric="minisblack")
        else:
            with h5py.File(path, "w") as file:
                file["v"] = data
        os.truncate(path, 1 << 15)

    write(volume)
    source = open_tomogram(path, voxel_size=10)
    write(volume.transpose(0, 2, 1) if change == "shape" else volume.astype("f4") / 2)
    with pytest.raises(InputError, match=r"can't be read any more: 5 x 7 x 11 .* int16 when opened, now 5 x "):
        source.read(ALL)


# HDF5 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 3, 4)},
        {"chunks": (2, 3, 4), "compression": "gzip"},
        {"chunks": (5, 7, 11), "compression": "gzip", "shuffle": True},
        {"chunks": (2, 3, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (4, 4, 4), "shuffle": True},
        {"chunks": (4, 4, 4), "fletcher32": True},
        {"chunks": (4, 4, 4), "compression": "lzf"},
        {"chunks": (4, 4, 4), "compression": "lzf", "shuffle": True},
    ],
)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f2", "<f4", "f8"])
def test_hdf5_layouts_and_types(options: dict[str, Any], dtype: str, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("some/where", data=volume.astype(dtype), **options)
        file["note"] = "text"
    assert "no usable voxel size; give it with --voxel-size" in refusal(path)
    assert check(path, volume, voxel_size=10).dtype == np.dtype(dtype).newbyteorder("=")
    assert check(f"{path}/some/where", volume, voxel_size=10).identity["dataset"] == "some/where"


def test_an_emans_hdf(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.hdf"
    with h5py.File(path, "w") as file:
        image = file.create_group("MDF/images/0")
        image["image"] = volume.astype("f4")
        for axis, size in zip("xyz", (4.5, 3.0, 2.0), strict=True):
            image.attrs[f"EMAN.apix_{axis}"] = np.float32(size)
    assert check(path, volume).voxel_size == (2.0, 3.0, 4.5)
    with h5py.File(path, "r+") as file:
        file["MDF/images/0"].attrs["EMAN.stored_renderbits"] = np.int32(8)
        file["MDF/images/1/image"] = volume
    scaled, several = open_tomogram(path).notes
    assert "scaled" in scaled
    assert several.startswith("2 images in it; the first is read")
    assert open_tomogram(path / "MDF/images/1/image", voxel_size=10).notes == ()


def test_an_export_of_ilastiks(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "exported_data", data=volume.transpose(2, 1, 0)[..., None], chunks=(4, 4, 4, 1), compression="gzip"
        )
        data.attrs["axistags"] = json.dumps({"axes": [{"key": key, "resolution": 0} for key in "xyzc"]})
        file["another"] = volume
    check(path, volume, voxel_size=10)
    with h5py.File(path, "r+") as file:
        file["exported_data"].attrs["element_size_um"] = (0.002, 0.003, 0.0045)
    assert check(path, volume).voxel_size == (20.0, 30.0, 45.0)
    with h5py.File(path, "r+") as file:
        file["exported_data"].attrs["element_size_um"] = (1.0, 1.0, 1.0)
    assert "voxels of 1 µm, as programs write" in open_tomogram(path).notes[0]


def test_chunks_that_were_never_written_are_the_fill_value(tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (4, 6, 8), "i2", chunks=(2, 3, 4), compression="gzip", fillvalue=7)
        data[:2, :3, :4] = 1
    found = open_tomogram(path, voxel_size=10).read(ALL)
    assert (found[:2, :3, :4] == 1).all()
    assert found.sum() == 24 + 7 * (192 - 24)


def test_hdf5_files_with_several_volumes_or_none(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file["a/first"], file["b"], file["flat"] = volume, volume, volume[0]
    message = refusal(path, voxel_size=10)
    assert "2 volumes, expected one" in message
    assert "a/first (5, 7, 11)" in message
    assert "name one as tomo.h5/" in message
    check(path / "a" / "first", volume, voxel_size=10)
    assert "no dataset there" in refusal(path / "c", voxel_size=10)
    assert "no dataset there" in refusal(path / "a", voxel_size=10)
    assert "not 3D" in refusal(path / "flat", voxel_size=10)
    with h5py.File(path, "w") as file:
        file["flat"], file["complex"] = volume[0], volume[0].astype("c8")
    assert "no volumes, expected one" in refusal(path, voxel_size=10)
    for data, word in ((volume.astype("c8"), "several numbers|complex"), (volume.astype("S4"), "type")):
        with h5py.File(path, "w") as file:
            file["odd"] = data
        assert "expected integers or real numbers" in refusal(path, voxel_size=10), word


def test_nothing_outside_an_hdf5_file_is_read(volume: np.ndarray, tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "tomo.h5"
    with h5py.File(secret, "w") as file:
        file["v"] = volume
    (tmp_path / "raw.bin").write_bytes(volume.tobytes())
    layout = h5py.VirtualLayout(volume.shape, volume.dtype)
    layout[...] = h5py.VirtualSource(secret, "v", volume.shape)
    with h5py.File(path, "w") as file:
        file["external"], file["soft"] = h5py.ExternalLink(secret, "v"), h5py.SoftLink("/external")
        file["folder"] = h5py.ExternalLink(secret, "/")
        file.create_dataset("raw", volume.shape, volume.dtype, external=[(tmp_path / "raw.bin", 0, volume.nbytes)])
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "soft", "folder/v"):
        assert "behind a link, which is not followed" in refusal(path / name, voxel_size=10)
    for name in ("raw", "virtual"):
        assert "lie in other files" in refusal(path / name, voxel_size=10)
    assert "2 volumes" in refusal(path, voxel_size=10)


def test_hdf5_filters_and_chunks_have_limits(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("v", data=volume, chunks=(2, 3, 4), scaleoffset=0)
    assert "stored with scaleoffset, which is not read" in refusal(path, voxel_size=10)
    with h5py.File(path, "w") as file:
        file.create_dataset("v", (2000, 2000, 2000), "u1", chunks=(800, 800, 800), compression="gzip")
    assert "too large to be read one by one" in refusal(path, voxel_size=10)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (8, 8, 8), "u1", chunks=(8, 8, 8), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(100_000_000)))
    assert "a chunk of 97" in refusal(path, voxel_size=10)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (64, 64, 64), "u1", chunks=(64, 64, 64), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(100_000_000)))
    assert "decodes to more bytes" in refusal(path, voxel_size=10)
    path.write_bytes(path.read_bytes()[:1500])
    assert "can't be read as HDF5" in refusal(path, voxel_size=10)
    path.write_bytes(b"text")
    assert "not an HDF5 file" in refusal(path, voxel_size=10)


# NumPy ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays(dtype: str, order: Any, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.npy"
    np.save(path, np.asarray(volume.astype(dtype), order=order))
    assert "tell its voxel size; give it with --voxel-size" in refusal(path)
    assert check(path, volume, voxel_size=10).dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_archives(save: Any, order: Any, volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.npz"
    save(path, tomogram=np.asarray(volume, order=order), angles=np.arange(60.0), size=10)
    check(path, volume, voxel_size=10)
    check(path / "tomogram", volume, voxel_size=10)
    save(path, a=volume, b=volume[None])
    message = refusal(path, voxel_size=10)
    assert "2 volumes, expected one" in message
    assert "a (5, 7, 11)" in message
    check(path / "b", volume, voxel_size=10)
    assert "no array 'c'" in refusal(path / "c", voxel_size=10)


def test_booleans_are_zeros_and_ones(volume: np.ndarray, tmp_path: Path, write_zarr: Callable[..., str]) -> None:
    mask = volume > 50
    np.save(tmp_path / "mask.npy", mask)
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file.create_dataset("m", data=mask, chunks=(2, 3, 4), compression="gzip")
    for path in (tmp_path / "mask.npy", tmp_path / "mask.h5", Path(write_zarr(mask))):
        source = open_tomogram(path, voxel_size=10)
        assert source.dtype == np.uint8
        np.testing.assert_array_equal(source.read(ALL), mask)


def test_numpy_files_that_are_no_tomograms(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.npy"

    def message(data: np.ndarray) -> str:
        np.save(path, data, allow_pickle=True)
        return refusal(path, voxel_size=10)

    assert "not 3D" in message(volume[0])
    assert "not 3D" in message(np.stack([volume] * 2))
    assert "transform" in message(volume.astype("c8"))
    assert "several numbers a voxel" in message(np.zeros((4, 4, 4), [("r", "u1"), ("g", "u1")]))
    assert "type object" in message(np.full((4, 4, 4), None))
    assert "expected integers or real" in message(volume.astype("M8[s]"))
    np.save(path, volume)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    assert "truncated: expected 898 bytes" in refusal(path, voxel_size=10)
    path.write_bytes(raw + b"1")
    assert "1 bytes longer" in open_tomogram(path, voxel_size=10).notes[0]
    for content, word in ((b"", "empty"), (b"text", "not a NumPy array"), (raw[:20], "damaged NumPy header")):
        path.write_bytes(content)
        assert word in refusal(path, voxel_size=10)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999, 99999)}"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert "truncated" in refusal(path, voxel_size=10)


def test_archives_that_lie(volume: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tomo.npz"
    for content in (b"", b"text", b"PK\x05\x06" + bytes(10)):
        path.write_bytes(content)
        assert "not a NumPy archive" in refusal(path, voxel_size=10)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", b"x" * 500)
    assert "packed in another way" in refusal(path, voxel_size=10)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (9000, 9000, 9000)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head.getvalue() + bytes(1000))
    assert "truncated" in refusal(path, voxel_size=10)
    np.savez(path, a=volume)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"PK\x03\x04", b"PK\x03\x05"))
    assert "damaged archive" in refusal(path, voxel_size=10)


# One tomogram in all of them ------------------------------------------------------------------------------------------


def in_every_format(volume: np.ndarray, folder: Path) -> list[Path]:
    """A float32 volume, as a file of each format."""
    named = {
        suffix: folder / f"as_{suffix.replace('.', '_')}.{suffix}" for suffix in ("mrc", "mrc.gz", "tif", "ome.tif")
    }
    named |= {suffix: folder / f"as_{suffix}.{suffix}" for suffix in ("h5", "hdf", "npy", "npz")}
    for suffix, kind in (("mrc", None), ("mrc.gz", "gzip")):
        with mrcfile.new(named[suffix], volume, compression=kind) as file:
            file.voxel_size = 10
    tifffile.imwrite(
        named["tif"], volume, imagej=True, resolution=(1, 1), metadata={"axes": "ZYX", "spacing": 1.0, "unit": "nm"}
    )
    sizes = {f"PhysicalSize{axis}{what}": value for axis in "XYZ" for what, value in (("", 10.0), ("Unit", "Å"))}
    tifffile.imwrite(named["ome.tif"], volume, ome=True, compression="zlib", metadata={"axes": "ZYX", **sizes})
    for suffix, name in (("h5", "exported_data"), ("hdf", "MDF/images/0/image")):
        with h5py.File(named[suffix], "w") as file:
            file.create_dataset(name, data=volume, chunks=(5, 7, 11), compression="gzip", shuffle=True)
    np.save(named["npy"], np.asfortranarray(volume))
    np.savez_compressed(named["npz"], volume)
    return list(named.values())


def test_ingest_gives_the_same_run_from_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, in boxes; the voxel size is given where the file has none."""
    from cryosam_dask import cli
    from cryosam_dask.store import layout
    from cryosam_dask.store.run_store import RunStore

    monkeypatch.setattr(layout, "INGEST_BOX", (32, 32, 64))
    volume = np.random.default_rng(2).normal(size=(37, 45, 70)).astype(np.float32)
    for path in in_every_format(volume, tmp_path):
        given = ["--voxel-size", "10"] if path.suffix in (".h5", ".hdf", ".npy", ".npz") else []
        out = tmp_path / "runs" / f"{path.name}.zarr"
        monkeypatch.setattr("sys.argv", ["cryosam", "ingest", str(path), "--out", str(out), "--workers", "0", *given])
        with contextlib.suppress(SystemExit):
            cli.main()
        assert "ingested" in capsys.readouterr().out
        run = RunStore.open(out)
        np.testing.assert_array_equal(run.read(layout.tomogram()), volume)
        assert run.voxel_size == (10.0, 10.0, 10.0)
        assert run.info["input"]["name"] == path.name + ("/arr_0" if path.suffix == ".npz" else "")


def test_folders_and_lists_hold_every_format(volume: np.ndarray, tmp_path: Path) -> None:
    from cryosam_dask.io.listing import find_tomograms, run_names

    paths = in_every_format(volume.astype("f4"), tmp_path)
    (tmp_path / "notes.gz").write_bytes(b"")
    (tmp_path / "tilts.st").write_bytes(b"")
    found = find_tomograms([tmp_path])
    assert {Path(path) for path in found} == {path for path in paths if path.suffix != ".npz"}
    assert sorted(run_names(found)) == sorted(
        f"as_{name}" for name in ("h5", "hdf", "mrc", "mrc_gz", "npy", "ome_tif", "tif")
    )
    inside = [f"{tmp_path / 'as_h5.h5'}/exported_data", str(tmp_path / "as_npz.npz")]
    assert find_tomograms(inside) == inside
    assert run_names(inside) == ["as_h5_exported_data", "as_npz"]
    (tmp_path / "list.txt").write_text("as_h5.h5/exported_data\nas_npz.npz/arr_0\n")
    assert len(find_tomograms([tmp_path / "list.txt"])) == 2
    with pytest.raises(InputError, match="no such file or folder"):
        find_tomograms([tmp_path / "as_mrc.mrc" / "more"])


def test_what_is_decoded_together_is_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units take as many boxes as a chunk, a page or a packed section spans, within bounds; others one each."""
    from cryosam_dask.stages import ingest
    from cryosam_dask.store import layout

    monkeypatch.setattr(layout, "INGEST_BOX", (32, 32, 64))
    volume = np.random.default_rng(3).normal(size=(70, 80, 100)).astype(np.float32)
    with mrcfile.new(tmp_path / "t.mrc", volume) as file:
        file.voxel_size = 10
    with mrcfile.new(tmp_path / "t.mrc.gz", volume, compression="gzip") as file:
        file.voxel_size = 10
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("v", data=volume, chunks=(64, 20, 100), compression="gzip")
    tifffile.imwrite(tmp_path / "t.tif", volume, compression="zlib", rowsperstrip=40)

    def units(name: str) -> list[tuple[int, ...]]:
        stage = ingest.plan(open_tomogram(tmp_path / name, voxel_size=10), str(tmp_path / name), {})
        marks = sorted(mark for unit in stage.units for mark in unit.marks)
        assert marks == list(range(stage.count)) == list(range(3 * 3 * 2))
        assert all(len(unit.writes) == len(unit.marks) for unit in stage.units)
        return [unit.marks for unit in stage.units]

    assert len(units("t.mrc")) == 18
    assert units("t.mrc.gz") == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11), (12, 13, 14, 15, 16, 17)]
    assert units("t.h5")[0] == (0, 1, 6, 7)
    assert len(units("t.tif")) == 6
    monkeypatch.setattr(ingest, "MOST_TOGETHER", 32 * 64 * 100 * 4)
    assert units("t.mrc.gz")[:2] == [(0, 1, 2, 3), (4, 5)]
    monkeypatch.setattr(ingest, "MOST_TOGETHER", 1)
    assert len(units("t.mrc.gz")) == 18
