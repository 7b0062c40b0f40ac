"""Voxels of HDF5 datasets: which are read, and how their chunks are decoded within bounds.

Compressed chunks are decoded here, each up to its own size at most; HDF5's own decoder allocates as much as a chunk
claims.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.codecs import decode
from cryosam_dask.io.frame import shown
from cryosam_dask.types import Array

MOST_CHUNK_BYTES = 1 << 28
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = {_DEFLATE: "gzip", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32", _LZF: "lzf"}
_ORDERS: list[list[int]] = [[], [_DEFLATE], [_SHUFFLE], [_SHUFFLE, _DEFLATE], [_SHUFFLE, _LZF], [_LZF]]
_MOST_LZF_BYTES = 1 << 24  # decoded by HDF5 itself, to 90 times its bytes at most


def check_stored(where: str, data: Any) -> None:
    """Raise InputError unless a dataset's voxels are in its file, in chunks that can be decoded within bounds."""
    if data.is_virtual or data.external:
        raise InputError(f"{where}: its voxels lie in other files, which are not read: copy them into one (h5repack)")
    if data.chunks is None:
        return
    filters = _filters(data)
    unknown = [shown(label) for code, label in filters if code not in _FILTERS]
    if unknown or [code for code, _ in filters if code != _FLETCHER32] not in _ORDERS:
        raise InputError(
            f"{where}: stored with {', '.join(unknown) or 'filters in an odd order'}, which is not read (known: "
            f"{', '.join(_FILTERS.values())}): write it again, e.g. h5repack -f SHUF -f GZIP=4"
        )
    limit = _MOST_LZF_BYTES if any(code == _LZF for code, _ in filters) else MOST_CHUNK_BYTES
    if math.prod(data.chunks) * data.dtype.itemsize > limit:
        raise InputError(
            f"{where}: stored in chunks of {' x '.join(map(str, data.chunks))} voxels, too large to be read one by one "
            f"(at most {limit >> 20} MiB): write it with smaller ones, e.g. h5repack -l CHUNK=64x64x64"
        )


def _filters(data: Any) -> list[tuple[int, str]]:
    plist = data.id.get_create_plist()
    filters = (plist.get_filter(i) for i in range(plist.get_nfilters()))
    return [(int(code), name.decode("ascii", "replace") or f"filter {code}") for code, _, _, name in filters]


def read_box(path: Path, data: Any, box: list[slice]) -> Array:
    """A box of a dataset, in its stored type."""
    codes = [code for code, _ in _filters(data)] if data.chunks else []
    if not codes or _LZF in codes:
        if data.chunks and codes:
            _check_sizes(path, data, box)
        return np.asarray(data[tuple(box)])
    out = np.empty([part.stop - part.start for part in box], data.dtype)
    for corner in _corners(data, box):
        chunk = _chunk(path, data, corner, codes)
        target, source = [], []
        for start, n, part in zip(corner, data.chunks, box, strict=True):
            a, b = max(start, part.start), min(start + n, part.stop)
            target.append(slice(a - part.start, b - part.start))
            source.append(slice(a - start, b - start))
        out[tuple(target)] = chunk[tuple(source)] if chunk is not None else data.fillvalue
    return out


def _corners(data: Any, box: list[slice]) -> Iterator[tuple[int, ...]]:
    """First voxels of the chunks that a box touches."""
    yield from product(*(range(p.start // n * n, p.stop, n) for p, n in zip(box, data.chunks, strict=True)))


def _stored_chunk(path: Path, data: Any, corner: tuple[int, ...]) -> Any:
    """Where a chunk is, None if it was never written; refused where it takes far more bytes than its voxels."""
    chunk = data.id.get_chunk_info_by_coord(corner)
    if chunk.byte_offset is None:
        return None
    most = math.prod(data.chunks) * data.dtype.itemsize
    if chunk.size > most + most // 8 + 4096:
        raise InputError(f"{path}: damaged: a chunk of {chunk.size} bytes at {corner}, for {most} bytes of voxels")
    return chunk


def _check_sizes(path: Path, data: Any, box: list[slice]) -> None:
    """Look at each chunk of a box before HDF5 decodes it."""
    for corner in _corners(data, box):
        _stored_chunk(path, data, corner)


def _chunk(path: Path, data: Any, corner: tuple[int, ...], codes: list[int]) -> Array | None:
    """A chunk, decoded: filters are undone in the reverse order; bit i of the mask says that filter i was left out."""
    if _stored_chunk(path, data, corner) is None:
        return None
    mask, raw = data.id.read_direct_chunk(corner)
    item, expected = data.dtype.itemsize, math.prod(data.chunks) * data.dtype.itemsize
    try:
        for place in reversed(range(len(codes))):
            if mask >> place & 1:
                continue
            if codes[place] == _DEFLATE:
                raw = decode("zlib", raw, expected + 4)
            elif codes[place] == _FLETCHER32:
                raw = raw[:-4]
            elif item > 1:
                whole = len(raw) // item * item
                planes = np.frombuffer(raw, np.uint8, whole).reshape(item, -1)
                raw = np.ascontiguousarray(planes.T).tobytes() + bytes(raw[whole:])
    except (ValueError, zlib.error) as err:
        raise InputError(f"{path}: damaged at {corner}: {shown(str(err))}") from err
    if len(raw) != expected:
        raise InputError(f"{path}: damaged at {corner}: {len(raw)} bytes in a chunk, expected {expected}")
    return np.frombuffer(raw, data.dtype).reshape(data.chunks)
