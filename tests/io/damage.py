"""Files as a fuzzer makes them, and what must hold for each: the readers' tests and the campaign share this.

A maker takes a random generator and writes one input: a sound file of some kind, most often damaged in its numbers,
its text or its bytes. `examine` reads the input as the pipeline does, voxels or points included, and tells what came
of it. It must be right (compared with a second, independent reading), or refused in one printable line, soon, with
memory in proportion to the file, without a warning, and without running anything that stands in it.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import importlib
import io
import json
import math
import pickle
import random
import re
import shutil
import struct
import tempfile
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pandas as pd
import starfile
import tifffile
import zarr

from cryosam_dask.errors import CryosamError
from cryosam_dask.io import open_tomogram, read_points

# What readers import when they need it is loaded before anything is measured.
importlib.import_module("scipy.spatial.transform")

Make = Callable[[random.Random, Path], Path]
LONGEST_MESSAGE = 500
SLOWEST = 2.0  # s of this process's time
BASE_BYTES, BYTES_PER_BYTE = 16 << 20, 100  # allocation allowed, and for each byte of the input
SHAPE = (50, 60, 70)  # voxels (z, y, x) of the tomogram that points are read for

VOLUME = np.random.default_rng(0).integers(0, 100, (5, 7, 11)).astype(np.int16)
INTEGERS = (0, 1, -1, 2, 3, 4, 7, 16, 101, 255, 256, 1000, 65535, 65536, 2**24, 2**31 - 1, -(2**31), -1024, 401, 630)
FLOATS = (0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1e38, -1.0, 4.2e-8, 1e9)


# Bytes ----------------------------------------------------------------------------------------------------------------


def damaged(r: random.Random, raw: bytes) -> bytes:
    """`raw` after one to four accidents."""
    data = bytearray(raw)
    for _ in range(r.randint(1, 4)):
        size = len(data)
        at = r.randrange(size) if size else 0
        length = r.choice((1, 2, 4, 8, 64, 1000))
        match r.randrange(9):
            case 0 if size:
                data[at] ^= 1 << r.randrange(8)
            case 1:
                data[at : at + 4] = struct.pack(r.choice(("<i", ">i")), r.choice(INTEGERS))
            case 2:
                data[at : at + length] = r.randbytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                del data[at:]
            case 5:
                data += bytes(length)
            case 6:
                data[at:at] = data[at : at + length]
            case 7:
                data += raw
            case _:
                data[at:at] = r.choice((b"\0", b"\r", b"\n", b"\xff", b"\x1b[2J", b'"', b"'", b"\xef\xbb\xbf", b","))
    return bytes(data)


# MRC ------------------------------------------------------------------------------------------------------------------

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_WORDS = {"n": (0, 1, 2), "mode": (3,), "start": (4, 5, 6), "m": (7, 8, 9), "axes": (16, 17, 18), "group": (22,)}
_WORDS |= {"nsymbt": (23,), "imod": (38, 39), "stamp": (53,)}
_FLOAT_WORDS = (*range(10, 16), 19, 20, *range(49, 52))


def make_mrc(r: random.Random, folder: Path) -> Path:
    path = folder / "tomo.mrc"
    order, mode = r.choice("<>"), r.choice(list(MODES))
    header = bytearray(1024)
    extended = r.choice((0, 0, 0, 1, 333, 1024))
    shape = VOLUME.shape
    words: dict[int, int] = {3: mode, 22: 1, 23: extended, 16: 1, 17: 2, 18: 3, 52: 0}
    words |= dict(zip((2, 1, 0), shape, strict=True)) | dict(zip((9, 8, 7), shape, strict=True))
    for word, value in words.items():
        struct.pack_into(f"{order}i", header, 4 * word, value)
    for word, n in zip((12, 11, 10), shape, strict=True):
        struct.pack_into(f"{order}f", header, 4 * word, n * 10.0)
    header[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    for _ in range(r.choice((0, 0, 1, 1, 2, 3))):
        kind = r.choice((*_WORDS, "float", "axes", "stamp", "magic"))
        if kind == "float":
            struct.pack_into(f"{order}f", header, 4 * r.choice(_FLOAT_WORDS), r.choice(FLOATS))
        elif kind == "axes" and r.random() < 0.7:
            for word, value in zip((16, 17, 18), r.choice(((0, 0, 0), (3, 2, 1), (2, 1, 3), (1, 2, 2))), strict=True):
                struct.pack_into(f"{order}i", header, 4 * word, value)
        elif kind == "magic":
            header[208:216] = r.choice((bytes(8), b"MAP \x11\x11\0\0", b"MAP junk", r.randbytes(8)))
        else:
            value = r.choice((*INTEGERS, r.randint(-20, 20)))
            struct.pack_into(
                r.choice((order, order, "<", ">")) + "i", header, 4 * r.choice(_WORDS.get(kind, (0,))), value
            )
    body = VOLUME.astype(np.dtype(MODES[mode]).newbyteorder(order)).tobytes()
    if mode == 0 and r.random() < 0.3:
        body = r.randbytes(len(body))
    if r.random() < 0.2:  # stated, and not there
        extended = 0
    raw = bytes(header) + bytes(extended) + body + bytes(r.choice((0, 0, 0, 1, 4096)))
    if r.random() < 0.3:
        raw = damaged(r, raw)
    path.write_bytes(raw)
    return path


def expected_mrc(raw: bytes, order: str, unsigned: bool) -> np.ndarray | None:
    """The volume (z, y, x) of the file read in one byte order by the words of the format, or None."""
    word = functools.partial(lambda i: struct.unpack_from(f"{order}i", raw, 4 * i)[0])
    columns, rows, sections = (word(i) for i in range(3))
    mode, extended, axes = word(3), word(23), [word(i) for i in (16, 17, 18)]
    if (
        min(columns, rows, sections) < 1
        or mode not in MODES
        or extended < 0
        or sorted(axes) not in ([0] * 3, [1, 2, 3])
    ):
        return None
    dtype = np.dtype("u1" if mode == 0 and unsigned else MODES[mode]).newbyteorder(order)
    count = columns * rows * sections
    if len(raw) == 1024 + count * dtype.itemsize:
        extended = 0
    if 1024 + extended + count * dtype.itemsize > len(raw):
        return None
    stored = np.frombuffer(raw, dtype, count, 1024 + extended).reshape(sections, rows, columns)
    axes = axes if any(axes) else [1, 2, 3]
    return stored.transpose([2 - axes.index(axis) for axis in (3, 2, 1)])


# Tables ---------------------------------------------------------------------------------------------------------------

NUMBERS = ("1", "2.5", "0", "-0", "1e2", " 3", "17.25", "4.0", "33")
ODD = ("nan", "inf", "1e999", "-1", "1_0", "0x10", "١٢", "True", "", "1,5", "--1", "1e", ".", "1 2", "9" * 400, "1d3")
ODD += ('"', "'", '"1"', "'1'", "#1", "a#b", "\x1b[2J", "\u202e", "é", "loop_", "data_x", "_rlnX", "None", "=1+1")
ENDS = ("\n", "\n", "\r\n", "\r")


def _value(r: random.Random) -> str:
    return r.choice(ODD) if r.random() < 0.04 else r.choice(NUMBERS)


def _encoded(r: random.Random, text: str) -> bytes:
    """The text as bytes, most often in UTF-8, often damaged."""
    pick = r.random()
    encoding = "utf-8" if pick < 0.85 else r.choice(("utf-8-sig", "utf-16", "latin-1"))
    raw = text.encode(encoding, "replace")
    return damaged(r, raw) if r.random() < 0.3 else raw


def make_csv(r: random.Random, folder: Path) -> Path:
    path = folder / "points.csv"
    names = ["z", "y", "x"]
    r.shuffle(names)
    names += [n for n in ("score", "instance", "kind", "", "Z", "x ", "#", "unnamed") if r.random() < 0.15]
    if r.random() < 0.1:
        names.pop(r.randrange(len(names)))
    end, sign = r.choice(ENDS), r.choice((",", ",", ",", ",", ", ", ";", "\t"))
    rows = [names, *([_value(r) for _ in names] for _ in range(r.choice((0, 1, 1, 2, 3, 5))))]
    for row in rows[1:]:
        if r.random() < 0.05:
            row.extend([_value(r)] * r.choice((1, 2, 3000)))
        elif r.random() < 0.05:
            row.pop()
    lines = [sign.join(row) for row in rows]
    for _ in range(r.choice((0, 0, 0, 1, 2))):
        odd = ("", "# a comment", "  ", "1,2,3", "z,y,x", '"', "," * 50, "x" * 5000, "\x1b[31m", "1" * 5000)
        lines.insert(r.randrange(len(lines) + 1), r.choice(odd))
    path.write_bytes(_encoded(r, end.join(lines) + r.choice((end, ""))))
    return path


def expected_csv(text: str) -> np.ndarray:
    """z, y, x by pandas' reader."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    table = pd.read_csv(
        io.StringIO(text), dtype=str, keep_default_na=False, skipinitialspace=True, comment="#", index_col=False
    )
    columns = {str(name).strip().lower(): table[name] for name in table.columns}
    return np.array([[float(v) for v in columns[axis]] for axis in "zyx"]).T.reshape(-1, 3)


STAR_COLUMNS = [f"rlnCoordinate{axis}" for axis in "XYZ"]
STAR_MORE = ("rlnAutopickFigureOfMerit", "rlnTomoParticleId", "rlnOriginXAngst", "rlnMicrographName", "rlnCoordinateX")
CENTRED = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]


def make_warp_stacks(r: random.Random) -> list[str]:
    """Lines of a particles file as Warp's export of 2D stacks, with one or two optics groups."""
    sizes = r.sample(("4", "5.5", "10", "12.25"), r.choice((1, 1, 2)))
    lines = ["data_general", "", "_rlnTomoSubTomosAre2DStacks 1", "", "data_optics", "", "loop_", "_rlnOpticsGroup"]
    lines += ["_rlnTomoTiltSeriesPixelSize", "_rlnImagePixelSize"]
    lines += [f"{group} 2 {size}" for group, size in enumerate(sizes, start=1)]
    names = (*STAR_COLUMNS, "rlnTomoName", "rlnTomoParticleName", "rlnImageName", "rlnOpticsGroup")
    lines += ["", "data_particles", "", "loop_", *(f"_{name}" for name in names)]
    for i in range(1, r.choice((2, 3, 5))):
        group = r.choice((1, 1, 1, len(sizes), 3)) if r.random() < 0.2 else r.randint(1, len(sizes))
        size = float(sizes[min(group, len(sizes)) - 1])
        place = " ".join(_value(r).strip() or "1" for _ in STAR_COLUMNS)
        lines.append(f"{place} TS_1.tomostar TS_1/{i} TS_1_{size:.2f}A_{i:06d}.mrcs {group}")
    return lines


def make_detector(r: random.Random) -> list[str]:
    """Lines of a file that states its detector's pixel, with a magnification or none."""
    stated = {"rlnDetectorPixelSize": r.choice(("5", "10", "24.5", "0", "-1", "x", "1e300"))}
    if r.random() < 0.5:
        stated["rlnMagnification"] = r.choice(("10000", "4237.5", "0", "1e-300", "nan"))
    lines = ["data_", "", "loop_", *(f"_{name}" for name in (*STAR_COLUMNS, *stated))]
    rows = range(r.choice((1, 2, 4)))
    return lines + [" ".join([*(_value(r).strip() or "1" for _ in STAR_COLUMNS), *stated.values()]) for _ in rows]


def make_star(r: random.Random, folder: Path) -> Path:
    path = folder / "points.star"
    if r.random() < 0.25:
        lines = r.choice((make_warp_stacks, make_detector))(r)
        path.write_bytes(_encoded(r, r.choice(ENDS).join(lines)))
        return path
    names = list(CENTRED if r.random() < 0.15 else STAR_COLUMNS)
    names += [name for name in STAR_MORE if r.random() < 0.15]
    r.shuffle(names)
    if r.random() < 0.05:
        names.pop()
    rows = [[_value(r).strip() for _ in names] for _ in range(r.choice((0, 1, 1, 2, 3, 5)))]
    if r.random() < 0.1:
        lines = ["data_", "", *(f"_{name} {_value(r)}" for name in names)]
    else:
        header = [f"_{name} #{i}" if r.random() < 0.7 else f"_{name}" for i, name in enumerate(names, start=1)]
        lines = ["data_particles", "", "loop_", *header, *("  ".join(row) for row in rows), ""]
    if r.random() < 0.2:
        size = r.choice(("2.5", "5", "0", "nan", "1e999", "-1"))
        lines = ["data_optics", "loop_", "_rlnOpticsGroup", "_rlnTomoTiltSeriesPixelSize", f"1 {size}", *lines]
    for _ in range(r.choice((0, 0, 0, 1, 2))):
        odd = ("", "# version 50001", "loop_", "data_", "data_particles", "_rlnX #1", "1 2 3", "; text", "'", '"a b"')
        odd += ("x" * 5000, "_" * 300, "\x1b[31m", "# coding: utf-16", "# -*- coding: rot13 -*-", "  ", "1 2 3 # note")
        lines.insert(r.randrange(len(lines) + 1), r.choice(odd))
    path.write_bytes(_encoded(r, r.choice(ENDS).join(lines)))
    return path


def expected_star(path: Path, text: str) -> np.ndarray | None:
    """z, y, x by the starfile library, where the file is plain enough for it; None elsewhere."""
    if re.search(r"""['"#\r_]*['"\r]""", text) or "Angst" in text:
        return None
    if "rlnTomoTiltSeries" in text and "_rlnImagePixelSize" not in text:
        return None
    if re.search(r"#(?!\d+$)", text, re.MULTILINE):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            blocks = starfile.read(path, always_dict=True)
        except Exception:  # noqa: BLE001
            return None
    for block in blocks.values():
        if set(STAR_COLUMNS) <= set(block):
            found = np.array([np.atleast_1d(np.asarray(block[name], float)) for name in STAR_COLUMNS[::-1]]).T
            ratio = _expected_ratio(blocks, block)
            return None if ratio is None else np.round(found * ratio, 6)
    return None


def _expected_ratio(blocks: dict[str, Any], block: Any) -> Any:
    """Voxels of 10 Å per pixel, (n, 1) or a number; None where what the file is is in doubt."""
    sizes: Any = 10.0
    if {"rlnImageName", "rlnTomoName", "rlnTomoParticleName"} & set(block):
        optics, columns = blocks.get("optics", {}), ("rlnOpticsGroup", "rlnImagePixelSize")
        if not ({"rlnImageName", "rlnOpticsGroup"} <= set(block) and set(columns) <= set(optics)):
            return None
        names = np.atleast_1d(block["rlnImageName"]).tolist()
        if not all(re.search(r"_\d+\.\d\dA_\d{6}\.mrcs$", str(name)) for name in names):
            return None
        table = dict(zip(*(np.atleast_1d(optics[name]) for name in columns), strict=True))
        groups = np.atleast_1d(block["rlnOpticsGroup"])
        alone = next(iter(table.values())) if len(set(table.values())) == 1 else None  # all particles', whatever group
        sizes = np.array([table[group] if alone is None else alone for group in groups], float)[:, None]
    elif "rlnDetectorPixelSize" in block:
        sizes = np.atleast_1d(np.asarray(block["rlnDetectorPixelSize"], float))[:, None]
        if "rlnMagnification" in block:
            sizes = sizes * 1e4 / np.atleast_1d(np.asarray(block["rlnMagnification"], float))[:, None]
    ratio = sizes / 10.0
    return np.where(np.abs(ratio - 1) < 1e-6, 1.0, ratio)


# OME-Zarr -------------------------------------------------------------------------------------------------------------


class Trap:
    """Unpickling one makes the file `SPRUNG`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (SPRUNG,))


SPRUNG = Path(tempfile.gettempdir()) / f"sprung-{random.SystemRandom().getrandbits(64):x}"


@functools.cache
def sound_images() -> tuple[dict[str, bytes], ...]:
    """The files of sound images of `VOLUME`: both versions, every readable codec, sharded, of several axes, and of two
    levels in both orders."""
    v2 = (
        None,
        numcodecs.Blosc(),
        numcodecs.Zstd(),
        numcodecs.GZip(),
        numcodecs.Zlib(),
        numcodecs.BZ2(),
        numcodecs.LZ4(),
    )
    v3: tuple[Any, ...] = (None, zarr.codecs.BloscCodec(), zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec())
    options: list[tuple[int, dict[str, Any]]] = [(2, {"compressors": each}) for each in v2]
    options += [(3, {"compressors": each}) for each in v3]
    options += [(3, {"compressors": each, "shards": (4, 8, 12)}) for each in v3[1:]]
    options += [(3, {"filters": zarr.codecs.TransposeCodec(order=(2, 0, 1))}), (2, {"order": "F"})]
    images = [(version, more, ("0",)) for version, more in options]
    images += [(version, {}, levels) for version in (2, 3) for levels in (("0", "1"), ("1", "0"))]
    found = []
    for version, more, levels in images:
        axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
        steps = [{"type": "scale", "scale": [10.0, 10.0, 10.0]}, {"type": "translation", "translation": [1, 2, 3]}]
        coarse = [{"type": "scale", "scale": [20.0, 20.0, 20.0]}]
        scales = {"0": steps, "1": coarse}
        datasets = [{"path": level, "coordinateTransformations": scales[level]} for level in levels]
        image = {"axes": axes, "datasets": datasets}
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(name, mode="w", zarr_format=version)
            array = group.create_array("0", shape=VOLUME.shape, chunks=(4, 4, 4), dtype=VOLUME.dtype, **more)
            array[...] = VOLUME
            if "1" in levels:
                group.create_array("1", shape=(3, 4, 6), chunks=(3, 4, 6), dtype="i2")[...] = VOLUME[::2, ::2, ::2]
            meta = {"multiscales": [{"version": "0.4" if version == 2 else "0.5", **image}]}
            group.attrs.update(meta if version == 2 else {"ome": meta})
            paths = sorted(path for path in Path(name).rglob("*") if path.is_file())
            found.append({str(path.relative_to(name)): path.read_bytes() for path in paths})
    return tuple(found)


JSONS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    4,
    64,
    2**20,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    -2.0,
    1e308,
)
JSONS += (
    math.nan,
    math.inf,
    -math.inf,
    "",
    "0",
    "1",
    ".",
    "..",
    "../../other",
    "/etc/passwd",
    "0/../..",
    "..\\..",
    "c:0",
)
JSONS += (
    "NaN",
    "Infinity",
    "0x7fc00000",
    "a" * 3000,
    "\x1b[2J\x1b]0;x\x07",
    "\u202eevil",
    "\ud800",
    "z",
    "scale",
    "nm",
)
JSONS += ([], {}, [0], [1, 1, 1], [0, 0, 0], [-1, -1, -1], [2**40] * 3, [1, 2], [[1]], {"a": 1}, ["z", "y", "x"])
JSONS += ("|O", "|V8", "<U4", "<M8[ns]", "<c8", ">f8", "|b1", "<f4", "<i8", "<f2", "float32", "string", "bool", "r8")
JSONS += ({"id": "pickle"}, {"id": "json2"}, {"id": "msgpack2"}, {"id": "vlen-utf8"}, {"id": "gzip"}, {"id": "lzma"})
JSONS += ({"id": "astype", "encode_dtype": "|O", "decode_dtype": "|O"}, {"id": "delta", "dtype": "|V1000000"})
JSONS += ([{"id": "pickle"}], [{"id": "zlib"}, {"id": "pickle", "protocol": 4}], [{"id": "bz2"}], {"id": "os.system"})
JSONS += (
    [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}],
    [{"name": "vlen-bytes"}],
    {"name": "os"},
)
JSONS += ([{"name": "numcodecs.pickle"}], [{"name": "bytes"}, {"name": "numcodecs.lzma", "configuration": {}}])
JSONS += (functools.reduce(lambda inner, _: [inner], range(60), 0), [{"path": "0"}] * 200)


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        found.append((node, key))
        _places(node[key], found)
    return found


def _damaged_json(r: random.Random, raw: bytes) -> bytes:
    value = json.loads(raw)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        places = _places(value, [])
        if not places:
            break
        node, key = r.choice(places)
        match r.randrange(5):
            case 0:
                del node[key]
            case 1:
                other, place = r.choice(places)
                node[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else 0
            case 2 if type(node[key]) in (int, float):
                node[key] = r.choice(INTEGERS) if r.random() < 0.6 else r.choice(FLOATS)
            case _:
                node[key] = r.choice(JSONS)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def make_omezarr(r: random.Random, folder: Path) -> Path:
    path = folder / "tomo.zarr"
    files = dict(r.choice(sound_images()))
    metadata = [name for name in files if name.rpartition("/")[2] in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
    chunks = [name for name in files if name not in metadata]
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        pick = r.randrange(10)
        name = r.choice(metadata if pick < 6 else chunks)
        if name not in files:
            continue
        if pick < 5:
            try:
                files[name] = _damaged_json(r, files[name])
            except (ValueError, IndexError, KeyError, TypeError):
                files[name] = damaged(r, files[name])
        elif pick == 5 or pick < 8:
            files[name] = damaged(r, files[name])
        elif pick == 8:
            del files[name]
        else:
            files[name] = r.choice((b"", pickle.dumps(Trap()), files[r.choice(metadata)], r.randbytes(40), bomb(r)))
    for name, raw in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(raw)
    path.mkdir(exist_ok=True)
    return path


def bomb(r: random.Random) -> bytes:
    """A small chunk that says that it is, or becomes, 64 MiB."""
    return bombs()[r.randrange(len(bombs()))]


@functools.cache
def bombs() -> tuple[bytes, ...]:
    zeros = bytes(64 << 20)
    blosc = numcodecs.Blosc("zstd", 9).encode(zeros)
    claims = struct.pack("<BBBBIII", 2, 1, 1, 4, 2**31 - 1, 2**18, 16)
    zstd_claim = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\x00\x00"
    rle = b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10\x00" * 512 + b"\x01\x00\x00"  # no size told: blocks of 128 KiB
    compressed = (
        gzip.compress(zeros),
        zlib.compress(zeros),
        bz2.compress(zeros),
        numcodecs.Zstd().encode(zeros),
        blosc,
    )
    lz4 = numcodecs.LZ4().encode(zeros)
    return (*compressed, lz4, b"\xff\xff\xff\x7f" + lz4[4:], claims, zstd_claim, rle)


# TIFF, HDF5, NumPy, gzip ----------------------------------------------------------------------------------------------


@functools.cache
def sound_tiffs() -> tuple[bytes, ...]:
    found = []
    for options in (
        {"imagej": True, "resolution": (1, 1), "metadata": {"spacing": 1.5, "unit": "nm"}},
        {"imagej": True, "resolution": (1e3, 1e3), "metadata": {"spacing": 1e-3, "unit": "microns"}},
        {"imagej": True, "resolution": (1, 1), "metadata": {"spacing": 1, "unit": "\\u00C5", "zunit": "pixels"}},
        {"resolution": (1e7, 1e7), "resolutionunit": "CENTIMETER", "metadata": None},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 1e-3, "PhysicalSizeY": 1e-3, "PhysicalSizeZ": 1e-3}},
        {"compression": "zlib", "predictor": 2, "rowsperstrip": 3, "metadata": None},
        {"bigtiff": True, "byteorder": ">", "metadata": None},
        {"tile": (16, 16), "compression": "zlib"},
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, VOLUME.astype("u2"), photometric="minisblack", **options)
        found.append(file.getvalue())
    return tuple(found)


@functools.cache
def sound_hdf5s() -> tuple[bytes, ...]:
    found = []
    for version in ("earliest", "latest"):
        for options in ({}, {"chunks": (2, 3, 4)}, {"chunks": (2, 3, 4), "compression": "gzip", "shuffle": True}):
            file = io.BytesIO()
            with h5py.File(file, "w", libver=version) as written:
                data = written.create_dataset("MDF/images/0/image", data=VOLUME, **options)
                data.attrs["element_size_um"] = (1e-3, 1e-3, 1e-3)
            found.append(file.getvalue())
    return tuple(found)


@functools.cache
def sound_arrays(suffix: str) -> tuple[bytes, ...]:
    found = []
    for array in (VOLUME, np.asfortranarray(VOLUME.astype(">f4")), VOLUME > 50):
        for save in [np.save] if suffix == "npy" else [np.savez, np.savez_compressed]:
            file = io.BytesIO()
            save(file, array)
            found.append(file.getvalue())
    return tuple(found)


def make_gz(r: random.Random, folder: Path) -> Path:
    path = make_mrc(r, folder)
    raw = gzip.compress(path.read_bytes(), mtime=0)
    path.unlink()
    return _written(r, folder / "tomo.mrc.gz", raw)


def make_tiff(r: random.Random, folder: Path) -> Path:
    return _written(r, folder / "tomo.tif", r.choice(sound_tiffs()))


def make_hdf5(r: random.Random, folder: Path) -> Path:
    return _written(r, folder / "tomo.hdf", r.choice(sound_hdf5s()))


def make_npy(r: random.Random, folder: Path) -> Path:
    return _written(r, folder / "tomo.npy", r.choice(sound_arrays("npy")))


def make_npz(r: random.Random, folder: Path) -> Path:
    return _written(r, folder / "tomo.npz", r.choice(sound_arrays("npz")))


def _written(r: random.Random, path: Path, raw: bytes) -> Path:
    path.write_bytes(damaged(r, raw) if r.random() < 0.8 else raw)
    return path


def expected_tiff(path: Path) -> np.ndarray:
    return np.asarray(tifffile.imread(path, _multifile=False)).squeeze()


def expected_hdf5(path: Path) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return np.asarray(file["MDF/images/0/image"][...])


def expected_array(path: Path) -> np.ndarray:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return np.asarray(found)
    with found:
        return np.asarray(found[found.files[0]])


def expected_gz(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    return next(each for order in "<>" if (each := expected_mrc(raw, order, False)) is not None)


EXPECTED: dict[str, Callable[[Path], np.ndarray]] = {
    "tiff": expected_tiff,
    "hdf5": expected_hdf5,
    "npy": expected_array,
    "npz": expected_array,
    "gz": expected_gz,
}
"""Other libraries' readings, which may raise where ours does not look, such as at a checksum."""


# What must hold -------------------------------------------------------------------------------------------------------

MAKERS: dict[str, Make] = {"mrc": make_mrc, "star": make_star, "csv": make_csv, "omezarr": make_omezarr}
MAKERS |= {"gz": make_gz, "tiff": make_tiff, "hdf5": make_hdf5, "npy": make_npy, "npz": make_npz}
POINTS: dict[str, Callable[[Path], np.ndarray | None]] = {}
"""Second readings (n, 3) z, y, x of the formats of points that `damage_points` adds; None where there is none."""


@contextmanager
def traced() -> Iterator[None]:
    """Count allocations, for `examine` to check. It slows everything down."""
    tracemalloc.start()
    try:
        yield
    finally:
        # CPython 3.11 can crash where another thread allocates at this moment: a chunk beside a damaged one may still
        # be at work.
        time.sleep(0.5)
        tracemalloc.stop()


@dataclass(frozen=True)
class Outcome:
    """What came of an input: `refused` is the error's message, None where it was read."""

    refused: str | None
    seconds: float
    allocated: int
    size: int


def examine(kind: str, path: Path) -> Outcome:
    """Read the input; AssertionError, or whatever the reader raised, where that is not how it should end."""
    size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())
    refused, result = None, None
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            result = _read(kind, path)
        except CryosamError as error:
            refused = str(error)
    seconds = time.process_time() - start
    allocated = tracemalloc.get_traced_memory()[1] - before
    assert not heard, f"warned: {heard[0].message}"
    assert not SPRUNG.exists(), "ran what stands in the file"
    assert seconds < SLOWEST, f"{seconds:.1f} s"
    assert allocated <= BASE_BYTES + BYTES_PER_BYTE * size, f"{allocated} bytes allocated for a file of {size}"
    if refused is not None:
        assert refused, "nothing said"
        assert refused.isprintable(), f"not one printable line: {refused!r}"
        assert len(refused) < LONGEST_MESSAGE, f"{len(refused)} signs: {refused}"
    else:
        _check_right(kind, path, result)
    return Outcome(refused, seconds, allocated, size)


def _read(kind: str, path: Path) -> Any:
    if kind in ("csv", "star", *POINTS):
        return read_points(
            path, voxel_size=10.0, shape=SHAPE, notes=[], **({"tomogram_name": "*"} if kind in POINTS else {})
        )
    try:
        source = open_tomogram(path)
    except CryosamError as error:
        if "--voxel-size" not in str(error):
            raise
        source = open_tomogram(path, voxel_size=10.0)
    block = tuple(slice(max(n // 2 - 24, 0), min(n // 2 + 24, n)) for n in source.shape)
    return source, block, source.read(block)


def _check_right(kind: str, path: Path, result: Any) -> None:
    """Compare with a second reading, where there is one."""
    if kind in ("csv", "star", *POINTS):
        found = result[["z", "y", "x"]].to_numpy()
        assert np.isfinite(found).all()
        below = (found < -0.1 * np.array(SHAPE)).any(axis=1)  # as far as a particle at the border never is
        several = "tomogram" in result and result["tomogram"].nunique() > 1  # in the frame of one they may be anywhere
        assert several or 2 * below.sum() <= len(found), "counted from somewhere else"
        if kind in POINTS:
            expected = POINTS[kind](path)
            assert expected is None or np.allclose(found, expected, rtol=1e-9, atol=1e-6), f"{found} for {expected}"
            return
        text = path.read_bytes().decode("utf-8-sig")
        expected = expected_csv(text) if kind == "csv" and '"' not in text else None
        if kind == "star":
            expected = expected_star(path, text)
        assert expected is None or np.array_equal(found, expected), f"{found} for {expected}"
        return
    source, block, voxels = result
    assert voxels.shape == tuple(part.stop - part.start for part in block)
    assert voxels.dtype == source.dtype
    assert voxels.flags.owndata
    assert all(map(math.isfinite, (*source.voxel_size, *source.origin)))
    if kind == "mrc":
        raw, unsigned = path.read_bytes(), source.dtype == np.dtype("u1")
        both = [expected_mrc(raw, order, unsigned) for order in "<>"]
        right = [each for each in both if each is not None and each.shape == source.shape]
    elif kind in EXPECTED:
        try:
            right = [EXPECTED[kind](path)]
        except Exception:  # noqa: BLE001
            return
    else:
        right = [_expected_zarr(source)]
    assert any(voxels.tobytes() == each[block].astype(source.dtype).tobytes() for each in right), "other voxels"


def _expected_zarr(source: Any) -> np.ndarray:
    """The level as Zarr itself reads it, which is safe only where the reader under test has accepted it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_group(source.url, mode="r")[source.level]
        assert math.prod(array.shape) < 1 << 24, "accepted, but too large to compare"
        values = np.asarray(array[...])
    others = tuple(axis for axis in range(values.ndim) if axis not in source.spatial)
    left = sorted(source.spatial)
    return values.squeeze(others).transpose([left.index(axis) for axis in source.spatial])


def run_case(kind: str, r: random.Random, folder: Path) -> Outcome:
    """Make an input in the empty `folder`, examine it, and leave the folder empty where all is well."""
    path = MAKERS[kind](r, folder)
    outcome = examine(kind, path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcome
