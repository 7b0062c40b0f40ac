"""Inputs that want something: to run code, to fill the memory, to leave their folder, to block, to write on a terminal;
and files that go wrong while they are read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import damage
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError
from cryosam_dask.io import boxes, codecs, frame, listing, open_tomogram, read_points

ALL = (slice(None), slice(None), slice(None))
AXES = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
SCALE = [{"type": "scale", "scale": [10.0] * 3}]


def refusal(path: str | Path, **options: Any) -> str:
    """The one line that opening or reading `path` ends in."""
    read: Any = read_points if str(path).endswith((".csv", ".star")) else open_tomogram
    with pytest.raises(InputError) as error:
        read(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < damage.LONGEST_MESSAGE
    return message


def write_image(
    path: Path, array: dict[str, Any], chunks: dict[str, bytes], level: str = "0", image: dict[str, Any] | None = None
) -> Path:
    """An image of Zarr v2 from its metadata and its chunks."""
    folder = path / "tomo.zarr"
    (folder / level).mkdir(parents=True)
    multiscale = {"version": "0.4", "axes": AXES, "datasets": [{"path": level, "coordinateTransformations": SCALE}]}
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [{**multiscale, **(image or {})}]}))
    standard = {"shape": [4, 4, 4], "chunks": [4, 4, 4], "dtype": "<f4", "fill_value": 0, "order": "C", "filters": None}
    standard |= {"compressor": None, "zarr_format": 2}
    (folder / level / ".zarray").write_text(json.dumps({**standard, **array}))
    for name, raw in chunks.items():
        (folder / level / name).write_bytes(raw)
    return folder


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        {"filters": [{"id": "pickle"}]},
        {"filters": [{"id": "pickle"}], "dtype": "|O"},
        {"filters": [{"id": "pickle"}], "compressor": {"id": "zlib", "level": 1}},
        {"compressor": {"id": "pickle"}},
        {"compressor": {"id": "pickle"}, "dtype": "|O"},
    ],
)
def test_no_pickle_of_an_input_is_loaded(array: dict[str, Any], tmp_path: Path) -> None:
    raw = pickle.dumps(damage.Trap())
    if array.get("compressor", {}).get("id") == "zlib":
        raw = numcodecs.Zlib().encode(raw)
    image = write_image(tmp_path, array, {"0.0.0": raw})
    message = refusal(image)
    assert (
        "'pickle'" in message
        or "filter pickle" in message
        or "compressor pickle" in message
        or "type object" in message
    )
    assert not damage.SPRUNG.exists()


def test_the_trap_is_one_and_the_guard_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling runs what the chunk holds, as zarr and numcodecs did before their newest versions."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    image = write_image(tmp_path, {}, {"0.0.0": pickle.dumps(damage.Trap())})
    plain = zarr.open_group(image, mode="r")["0"]
    assert isinstance(plain, zarr.Array)
    for change in ({"filters": (numcodecs.Pickle(),)}, {"compressor": numcodecs.Pickle()}):
        metadata: Any = dataclasses.replace(plain.metadata, **change)
        array = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=plain.store_path))
        with pytest.raises(InputError, match=r"stored with the (filter|compressor) pickle, which is not read"):
            codecs.guarded("tomo.zarr/0", array)
        assert not damage.SPRUNG.exists()
        pickle.loads(Path(image, "0", "0.0.0").read_bytes())
        assert damage.SPRUNG.exists()
        damage.SPRUNG.unlink()


@pytest.mark.parametrize("filters", [["vlen-utf8", "pickle"], ["pickle", "vlen-utf8"], ["vlen-bytes", "pickle"]])
def test_an_array_of_objects_is_refused_before_it_is_decoded(filters: list[str], tmp_path: Path) -> None:
    array = {"dtype": "|O", "fill_value": "", "filters": [{"id": each} for each in filters]}
    refusal(write_image(tmp_path, array, {"0.0.0": pickle.dumps(damage.Trap())}))
    assert not damage.SPRUNG.exists()


@pytest.mark.parametrize("name", ["numcodecs.pickle", "numcodecs.lzma", "numcodecs.astype", "os.system", "vlen-bytes"])
def test_codecs_of_version_3_are_those_of_the_list(name: str, write_zarr: Any, volume: np.ndarray) -> None:
    url = write_zarr(volume)
    path = Path(url, "0", "zarr.json")
    meta = json.loads(path.read_text())
    meta["codecs"].append({"name": name, "configuration": {}})
    path.write_text(json.dumps(meta))
    message = refusal(url)
    assert name.rpartition(".")[2] in message.lower() or "codec" in message.lower()


def test_codecs_inside_shards_are_checked_too(tmp_path: Path, volume: np.ndarray, write_zarr: Any) -> None:
    url = write_zarr(volume)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not in Zarr's specification, as some versions say
        lzma = zarr.codecs.numcodecs.LZMA()
    shards = {"shape": (8, 8, 8), "chunks": (4, 4, 4), "shards": (8, 8, 8), "dtype": "i2"}
    zarr.create_array(f"{url}/1", compressors=lzma, **shards)
    group = zarr.open_group(url)
    group.attrs["ome"] = {
        "multiscales": [{"axes": AXES, "datasets": [{"path": "1", "coordinateTransformations": SCALE}]}]
    }
    assert "codec numcodecs.lzma, which is not read" in refusal(url)


# Memory and time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "zstd", "blosc", "lz4"])
def test_a_chunk_that_grows_beyond_its_voxels_is_refused(codec: str, tmp_path: Path) -> None:
    zeros = bytes(48 << 20)
    raw = numcodecs.get_codec({"id": codec}).encode(zeros)
    del zeros
    image = write_image(tmp_path, {"compressor": {"id": codec}}, {"0.0.0": raw})
    with damage.traced():
        assert "damaged at z 0:4, y 0:4, x 0:4: a chunk that decodes to" in refusal(image)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
def test_version_3_is_bounded_as_well(codec: str, write_zarr: Any, volume: np.ndarray) -> None:
    url = write_zarr(volume)
    path = Path(url, "0", "zarr.json")
    meta = json.loads(path.read_text())
    meta["codecs"][1] = {"name": codec, "configuration": {"level": 1}}
    if codec == "blosc":
        meta["codecs"][1]["configuration"] = {
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "shuffle",
            "typesize": 2,
            "blocksize": 0,
        }
    path.write_text(json.dumps(meta))
    chunks = [path for path in Path(url, "0", "c").rglob("*") if path.is_file()]
    with damage.traced():
        for bomb in damage.bombs():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for chunk in chunks:
                chunk.write_bytes(bomb)
            assert "damaged at z 0:5" in refusal(url)
            assert tracemalloc.get_traced_memory()[1] - before < 24 << 20


def zstd_frame(values: bytes, told: bool) -> bytes:
    """A Zstandard frame of one raw block, with or without the size in its header."""
    head = b"\xa0" + len(values).to_bytes(4, "little") if told else b"\x00\x58"
    return b"\x28\xb5\x2f\xfd" + head + (len(values) << 3 | 1).to_bytes(3, "little") + values


@pytest.mark.parametrize("told", [True, False])
def test_frames_with_and_without_their_size_are_read(told: bool, tmp_path: Path) -> None:
    values = np.arange(64, dtype="<f4").reshape(4, 4, 4)
    skipped = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
    for place, raw in enumerate((zstd_frame(values.tobytes(), told), skipped + zstd_frame(values.tobytes(), told))):
        image = write_image(tmp_path / str(place), {"compressor": {"id": "zstd"}}, {"0.0.0": raw})
        np.testing.assert_array_equal(open_tomogram(image).read(ALL), values)
    half = values.tobytes()
    image = write_image(
        tmp_path / "two",
        {"compressor": {"id": "zstd"}},
        {"0.0.0": zstd_frame(half[:128], told) + zstd_frame(half[128:], told)},
    )
    np.testing.assert_array_equal(open_tomogram(image).read(ALL), values)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_decoder_stays_in_a_buffer_of_its_limit(codec: str) -> None:
    """However large a chunk is or says that it is: not one byte more, and no memory in proportion to its claim."""
    values = np.arange(1024, dtype="<f4").tobytes()
    raw = numcodecs.get_codec({"id": codec}).encode(values)
    for limit in (len(values), len(values) + 1, 4 * len(values)):
        assert codecs.decode(codec, raw, limit) == values
    for limit in (1, 100, len(values) - 1):
        with pytest.raises(ValueError, match="a chunk that decodes to"):
            codecs.decode(codec, raw, limit)
    with damage.traced():
        for bomb in damage.bombs():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(ValueError):
                codecs.decode(codec, bomb, 1 << 20)
            assert tracemalloc.get_traced_memory()[1] - before < 2 << 20


def test_an_lz4_chunk_is_as_long_as_its_header_says() -> None:
    values = np.arange(1024, dtype="<f4").tobytes()
    raw = numcodecs.LZ4().encode(values)
    for size in (0, len(values) - 1, len(values) + 1):
        with pytest.raises(ValueError, match="LZ4"):
            codecs.decode("lz4", size.to_bytes(4, "little") + raw[4:], 2 * len(values))
    for short in (b"", raw[:3], raw[:4]):
        with pytest.raises(ValueError, match=f"no LZ4 chunk in {len(short)} bytes"):
            codecs.decode("lz4", short, len(values))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_damaged_chunks_are_errors_and_no_more(codec: str) -> None:
    r = random.Random(5)
    values = np.random.default_rng(5).integers(0, 9, 20000).astype("u1").tobytes()
    raw = numcodecs.get_codec({"id": codec}).encode(values)
    for _ in range(300):
        limit = r.choice((1, len(values) // 2, len(values), 2 * len(values)))
        with contextlib.suppress(ValueError):
            assert len(codecs.decode(codec, damage.damaged(r, raw), limit)) <= limit


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 10, 20])
@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "zstd", "blosc", "lz4"])
def test_a_cut_chunk_is_refused(codec: str, cut: int, tmp_path: Path) -> None:
    raw = numcodecs.get_codec({"id": codec}).encode(np.arange(64, dtype="<f4").reshape(4, 4, 4))
    assert "damaged at" in refusal(write_image(tmp_path / "end", {"compressor": {"id": codec}}, {"0.0.0": raw[:-cut]}))
    assert "damaged at" in refusal(write_image(tmp_path / "start", {"compressor": {"id": codec}}, {"0.0.0": raw[:cut]}))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ({"chunks": [1 << 12, 1 << 12, 1 << 12]}, "too large to be read one by one (at most 1024 MiB)"),
        ({"chunks": [1, 1, 1], "shape": [500, 500, 500]}, "chunks of 1 x 1 x 1 voxels, too small"),
        ({"chunks": [0, 4, 4]}, ""),
        ({"chunks": [-4, 4, 4]}, ""),
        ({"shape": [1 << 20, 1 << 20, 1 << 20]}, "no tomogram is that large"),
        ({"shape": [0, 4, 4]}, "not 3D"),
        ({"dtype": "|V1000000"}, ""),
        ({"dtype": "<U4"}, ""),
        ({"fill_value": "x"}, ""),
    ],
)
def test_shapes_that_cannot_be_meant(array: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(write_image(tmp_path, array, {}))


def test_metadata_of_a_gigabyte_is_not_read(write_zarr: Any, volume: np.ndarray) -> None:
    url = write_zarr(volume)
    for name in ("zarr.json", "0/zarr.json"):
        path = Path(url, name)
        before = path.read_bytes()
        os.truncate(path, 1 << 30)
        assert f"{1 << 30} bytes of metadata, expected" in refusal(url)
        path.write_bytes(before)
    assert open_tomogram(url).shape == volume.shape


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
@pytest.mark.parametrize("name", ["tomo.mrc", "points.csv", "points.star", "tomo.zarr/zarr.json"])
def test_a_pipe_does_not_block(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert "a pipe, socket or device, expected a file" in refusal(path.parent if ".zarr" in name else path)


def test_text_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("z,y,x\n")
    os.truncate(path, 1 << 29)
    assert "too large for points" in refusal(path)


# Places --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../other", "/etc", "0/../../other", "..\\other", "", ".", "0//1", "C:0", "0\x00", "\u202e0"]
)
def test_an_image_does_not_lead_out_of_its_folder(path: str, tmp_path: Path) -> None:
    """Even where there is an image at the other place."""
    (tmp_path / "other").mkdir()
    zarr.create_array(str(tmp_path / "other"), data=np.ones((4, 4, 4), "f4"), zarr_format=2)
    datasets = [{"path": path, "coordinateTransformations": SCALE}]
    image = write_image(tmp_path, {}, {}, image={"datasets": datasets})
    assert "a path that is not inside the image" in refusal(image)


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "two\nlines", "right\u202eleft", "long" * 60, os.fsdecode(b"\xff\xfe")])
@pytest.mark.parametrize("suffix", [".mrc", ".csv", ".star", ".zarr"])
def test_a_file_name_cannot_write_on_the_terminal(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.mkdir() if suffix == ".zarr" else path.write_bytes(b"nonsense")
    refusal(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("long" * 80 + ".mrc", "can't be read.*File name too long"),
        ("~nobody-of-that-name/tomo.mrc", "no such user; ./~nobody-of-that-name/tomo.mrc is a file of that name"),
    ],
)
def test_paths_that_can_not_be_looked_at_end_in_one_line(name: str, words: str) -> None:
    for look in (open_tomogram, lambda path: listing.find_tomograms([path])):
        with pytest.raises(InputError, match=words):
            look(name)
    with pytest.raises(InputError, match=words):
        listing.is_many([name])


def test_a_folder_that_may_not_be_entered_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "is_dir", denied)
    assert "can't be read: Permission denied" in refusal(tmp_path / "tomo.mrc")


def test_a_link_to_itself_in_a_folder_is_a_tomogram_that_is_not_there(write_mrc: Any, volume: np.ndarray) -> None:
    path = write_mrc(volume, 1)
    (path.parent / "loop.mrc").symlink_to(path.parent / "loop.mrc")
    assert listing.find_tomograms([path.parent]) == [str(path.parent / "loop.mrc"), str(path)]
    assert "can't be read: Too many levels of symbolic links" in refusal(path.parent / "loop.mrc")


def test_printable_is_short_and_plain() -> None:
    assert frame.printable("plain: 5 Å, “quoted”") == "plain: 5 Å, “quoted”"
    assert frame.printable("a\n b\t c") == "a b c"
    assert frame.printable("\x1b[31m\ud800") == "\\x1b[31m\\ud800"
    long = frame.printable("start" + "\x1b" * 10**6 + "end")
    assert len(long) <= 480
    assert (long[:5], long[-3:]) == ("start", "end")
    assert len(frame.shown(["x"] * 10**5)) <= 80


@pytest.mark.parametrize(
    "image",
    [
        {"datasets": [{"path": "0", "coordinateTransformations": 5}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [10**400] * 3}]}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [True] * 3}]}]},
        {
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [*SCALE, {"type": "translation", "translation": [1e308] * 3}] * 2,
                }
            ]
        },
        {"axes": [{"name": "\x1b[2J" * 1000}] * 3},
    ],
)
def test_metadata_of_odd_types(image: dict[str, Any], tmp_path: Path) -> None:
    refusal(write_image(tmp_path, {}, {}, image=image))


# Files that change ---------------------------------------------------------------------------------------------------


def test_a_file_cut_while_it_is_read_ends_in_words(
    write_mrc: Any, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a memory map the process would die here."""
    path = write_mrc(volume, 2)
    source = open_tomogram(path)

    class Cut(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            os.truncate(path, 1500)
            return super().readinto(buffer)

    monkeypatch.setattr(boxes.io, "FileIO", Cut)
    with pytest.raises(InputError, match=r"can't be read any more: it ends at section 0, row 0; it was cut"):
        source.read(ALL)


def test_a_disk_that_fails_while_it_is_read_ends_in_words(
    write_mrc: Any, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_tomogram(write_mrc(volume, 2))

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(boxes.io, "FileIO", Failing)
    with pytest.raises(InputError, match=r"can't be read any more.*Input/output error"):
        source.read(ALL)


def test_a_read_in_pieces_is_put_together(write_mrc: Any, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give less than was asked for."""
    source = open_tomogram(write_mrc(volume, 2))

    class Slow(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            return super().readinto(memoryview(buffer)[:7])

    monkeypatch.setattr(boxes.io, "FileIO", Slow)
    np.testing.assert_array_equal(source.read(ALL), volume)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_not_read(change: int, write_mrc: Any, volume: np.ndarray) -> None:
    path = write_mrc(volume, 2)
    source = open_tomogram(path)
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(InputError, match=r"can't be read any more: \d+ bytes when opened, now \d+ bytes"):
        source.read(ALL)


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory, mrc_content: Any) -> tuple[Path, np.ndarray]:
    values = np.arange(3 * 5 * 9000).reshape(3, 5, 9000) % 30011
    path = tmp_path_factory.mktemp("rows") / "rows.mrc"
    path.write_bytes(mrc_content(values, 2, order=">"))
    return path, values


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000)), min_size=3, max_size=3), st.integers(1, 1 << 17))
def test_any_box_of_long_rows(long_rows: tuple[Path, np.ndarray], sides: list[tuple[int, int]], scratch: int) -> None:
    """Read row by row, or cut out of whole ones, whatever the box and the scratch."""
    path, values = long_rows
    block = tuple(slice(min(a, n), min(b, n)) for (a, b), n in zip(sides, (3, 5, 9000), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "SCRATCH_BYTES", scratch)
        np.testing.assert_array_equal(open_tomogram(path).read(block), values[block])


# Tables --------------------------------------------------------------------------------------------------------------

STAR = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("z,y,x\n" + "1,2,3\n" * 1000 + "1,2,\0003\n", "line 1002: a control character"),
        ("\x0b\nz,y,x\n1,2,3\n", "line 1: a control character"),
        ("z,z,y,x\n1,2,3,4\n", "the column z comes twice"),
        ("Z,y,x,z\n1,2,3,4\n", "the column z comes twice"),
        ("z;y;x\n1;2;3\n", "separated by commas, not by ';'"),
        ("z\ty\tx\n1\t2\t3\n", "separated by commas, not by '\\t'"),
        ("z,y,x\n1_0,2,3\n", "z is '1_0', expected a number"),
        ("z,y,x\n١,2,3\n", "expected a number"),
        ('z,y,x\n1,2,"3\n4,5,6"\n', "line 2: unexpected end of data"),
        ("z,y,x\n1,2,\x1b[2J\n", "line 2: a control character"),
        ("z,y,x\n1,2,\u202e3\n", "x is '\\u202e3'"),
        ("z,y,x\n1,2," + "9" * 5000 + "\n", "expected a number"),
        ("z,y,x" + ",c" * 10**5 + "\n1,2,3\n", "100003 columns"),
        ("# only\n\n# comments\n", "holds no points"),
        ("z,y,x\n1,5,2,5,3,5\n", "line 2: 6 values, expected 3"),
    ],
)
def test_tables_that_would_be_misread(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content, encoding="utf-8", newline="")
    assert words in refusal(path)


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(",z,y,x,\n0,1,2,3,\n1,4,5,6,\n")
    table = read_points(tmp_path / "p.csv")
    assert list(table.columns) == ["z", "y", "x"]
    np.testing.assert_array_equal(table, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", [".csv", ".star"])
def test_every_row_is_read_however_lines_end(end: str, suffix: str, tmp_path: Path) -> None:
    text = "z,y,x\n3,2,1\n6,5,4\n" if suffix == ".csv" else f"{STAR}1 2 3\n4 5 6\n"
    path = tmp_path / f"points{suffix}"
    path.write_bytes(text.replace("\n", end).encode())
    np.testing.assert_array_equal(read_points(path), [[3, 2, 1], [6, 5, 4]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (STAR + "1 2 3\n4 5\n", "line 8: 2 values, expected 3"),
        (STAR + "1 2 3 4\n", "line 7: 4 values, expected 3"),
        (STAR + "True False True\n", "is 'True', expected a number"),
        (STAR + "_rlnCoordinateX #4\n1 2 3 4\n", "rlnCoordinateX again"),
        (STAR + "1 2 3\nloop_\n_rlnX\n5\n", "a second table in one block"),
        (STAR + "1 2 3\n\n" + STAR + "4 5 6\n", "a second block data_"),
        (STAR + "1 2 '3\n", "line 7: a quote that does not end"),
        (STAR + "1 2 3\n;\ntext\n;\n", "line 8: 1 values, expected 3"),
        (STAR + "1 2 1e999\n", "is '1e999', expected a number"),
        (STAR + "1 2 \x00\n", "a text file"),
        ("data_\nloop_\n" + "".join(f"_c{i}\n" for i in range(3000)), "more than 1000 columns"),
    ],
)
def test_star_files_that_would_be_misread(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text(content, encoding="utf-8", newline="")
    assert words in refusal(path)


def test_star_values_are_whole(tmp_path: Path) -> None:
    """A `#` starts a comment only where a value could start, and quotes hold what stands in them together."""
    names = STAR.replace("_rlnCoordinateX #1", "_rlnTomoName #1\n_rlnCoordinateX #2")
    path = tmp_path / "p.star"
    path.write_text(names + "TS#01 1 2 3 # first\n'TS 02' 4 5 6\n\"TS'3\" 7 8 9\ndata_4 1 1 1\n# coding: utf-16\n")
    assert "points of 4 tomograms (TS 02, TS#01, TS'3, data_4), say which one" in refusal(path)
    for name, row in {"TS#01": [3, 2, 1], "TS 02": [6, 5, 4], "TS'3": [9, 8, 7], "data_4": [1, 1, 1]}.items():
        np.testing.assert_array_equal(read_points(path, tomogram_name=name)[["z", "y", "x"]], [row])


def test_many_blocks_and_long_lines_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text("".join(f"data_{i}\n" for i in range(20000)) + "loop_\n_a\n" + "'" * 10**6 + "\n")
    assert "a quote that does not end" in damage.examine("star", path).refused
    path.write_text(STAR + " ".join(["1"] * 10**6))
    assert "1000000 values, expected 3" in damage.examine("star", path).refused
