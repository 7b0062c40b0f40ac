"""Tomograms in NumPy's files: `.npy`, and `.npz` that hold one volume.

Only headers are read by NumPy, which takes them as literals; nothing is ever unpickled. Voxels are read by ranges, out
of a compressed `.npz` as `inflate` does.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Axes are z, y, x, in C or in Fortran
order; the format has no voxel size.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from cryosam_dask.errors import InputError
from cryosam_dask.io.boxes import opened
from cryosam_dask.io.flat import FlatSource, check_length, first_bytes, identity, sampled_hash
from cryosam_dask.io.frame import (
    ASK_VOXEL_SIZE,
    check_volume,
    one_line_errors,
    regular_file,
    shown,
    squeezed,
    voxel_dtype,
)
from cryosam_dask.io.inflate import MOST_GROWTH, Inflated, Stream
from cryosam_dask.types import Point

_MAGIC = b"\x93NUMPY"
_HEADER = 1 << 14  # NumPy itself reads headers of 10,000 signs at most
_MOST_MEMBERS = 1000
_LOCAL = struct.Struct("<4s5H3I2H")  # a zip member's own header (APPNOTE.TXT, 4.3.7)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int


@one_line_errors()
def open_npy(path: Path, *, voxel_size: Point | None = None) -> FlatSource:
    """Read and check the header of the `.npy` file at `path`; no voxel is loaded.

    `voxel_size` is Å (z, y, x). Raises InputError for a file that is missing, truncated, no NumPy array, not one
    real-valued volume, and where `voxel_size` is None.
    """
    size = regular_file(path).st_size
    header = _header(str(path), first_bytes(path, _HEADER))
    return _source(path, str(path), header, size, header.size, None, voxel_size)


@one_line_errors()
def open_npz(path: Path, *, name: str = "", voxel_size: Point | None = None) -> FlatSource:
    """Open the one volume of the `.npz` file at `path`, or the one called `name`; see `open_npy`."""
    size = regular_file(path).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except OSError as err:
        raise InputError(f"{path}: can't be read: {err.strerror or err}") from err
    except Exception as err:
        raise InputError(f"{path}: not a NumPy archive, or damaged: {shown(str(err))}") from err
    if len(members) > _MOST_MEMBERS:
        raise InputError(f"{path}: {len(members)} arrays, expected one volume")
    if name:
        members = [member for member in members if member.filename == f"{name}.npy"]
        if not members:
            raise InputError(f"{path}: no array {shown(name)!r} in it")
    with opened(path, size) as file:
        arrays = [_member(path, file, member, size) for member in members]
    volumes = [array for array in arrays if len(squeezed(array[1].shape)) == 3]
    if len(volumes) != 1:
        held = [f"{array[0].filename[:-4]} {array[1].shape}" for array in arrays]
        raise InputError(
            f"{path}: {len(volumes)} volumes, expected one; it holds {shown(', '.join(held)) or 'no arrays'}"
            + (f"; name one as {path.name}/NAME" if len(volumes) > 1 else "")
        )
    member, header, start, stream = volumes[0]
    where = f"{path}/{member.filename[:-4]}"
    length = header.size + math.prod(header.shape) * header.dtype.itemsize
    if stream is None:
        end = start + min(member.file_size, member.compress_size)
        return _source(path, where, header, end, start + header.size, None, voxel_size)
    check_length(
        path, header.size, header.shape, header.dtype, min(member.file_size, member.compress_size * MOST_GROWTH)
    )
    section = math.prod(sorted(squeezed(header.shape))[1:]) * header.dtype.itemsize
    whole = Stream(stream.start, stream.stop, length, section, raw=True)
    return _source(path, where, header, length, header.size, whole, voxel_size)


def _member(
    path: Path, file: io.FileIO, info: zipfile.ZipInfo, size: int
) -> tuple[zipfile.ZipInfo, _Header, int, Stream | None]:
    """A member's array header, where its bytes begin, and the stream that they are packed in."""
    where = f"{path}/{shown(info.filename)}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: encrypted, or packed in another way than NumPy does: save it again")
    raw = b""
    if 0 <= info.header_offset < size:
        file.seek(info.header_offset)
        raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or not raw.startswith(b"PK\x03\x04"):
        raise InputError(f"{where}: damaged archive: nothing at byte {info.header_offset}")
    start = info.header_offset + _LOCAL.size + sum(_LOCAL.unpack(raw)[-2:])
    if start + info.compress_size > size:
        raise InputError(f"{where}: truncated: expected {info.compress_size} bytes from {start}, the file has {size}")
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(start)
        return info, _header(where, file.read(min(_HEADER, info.compress_size))), start, None
    stream = Stream(start, start + info.compress_size, _HEADER, raw=True)
    head = bytearray(_HEADER)
    got = Inflated(file, path, stream, keep=False).readinto(head)
    return info, _header(where, bytes(head[:got])), start, stream


def _header(where: str, raw: bytes) -> _Header:
    if not raw.startswith(_MAGIC):
        raise InputError(f"{where}: {'not a NumPy array: it does not begin as one' if raw else 'empty'}")
    file = io.BytesIO(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(file)
            read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(file)
    except Exception as err:
        raise InputError(f"{where}: damaged NumPy header: {shown(str(err))}") from err
    if any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"{where}: damaged NumPy header: shape {shown(shape)}")
    return _Header(shape, bool(fortran), dtype, file.tell())


def _source(
    path: Path, where: str, header: _Header, stop: int, offset: int, packed: Stream | None, voxel_size: Point | None
) -> FlatSource:
    dtype = voxel_dtype(where, header.dtype)
    sides = squeezed(header.shape)
    if len(sides) != 3:
        raise InputError(f"{where}: not 3D: an array of shape {shown(header.shape)}, expected z, y, x")
    shape = (sides[0], sides[1], sides[2])
    notes = check_length(path, offset, shape, header.dtype, stop)
    check_volume(where, shape)
    if voxel_size is None:
        raise InputError(f"{where}: a NumPy file does not tell its voxel size; {ASK_VOXEL_SIZE}")
    size = regular_file(path).st_size
    form, name = ("npy", path.name) if path.suffix.lower() == ".npy" else ("npz", where[len(str(path.parent)) + 1 :])
    return FlatSource(
        path=path.absolute(),
        shape=shape,
        dtype=dtype,
        voxel_size=voxel_size,
        origin=(0.0, 0.0, 0.0),
        identity=identity(form, name, size, sampled_hash(path, size), shape, dtype, voxel_size, offset=offset),
        notes=notes,
        offset=offset,
        stored=header.dtype,
        order=(2, 1, 0) if header.fortran else (0, 1, 2),
        packed=packed,
    )
