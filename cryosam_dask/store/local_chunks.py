"""Chunks on the local disk, read and written past zarr: in the thread that asks, through memory that it uses again.

zarr hands each chunk from thread to thread, and takes memory for it once for each codec and from the system each time.
That takes longer than decoding it (docs/decisions/codecs.md). What is not as it should be is left to zarr, which says
what is wrong.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from cryosam_dask.types import Array

Bytes = NDArray[np.uint8]

MOST = 8 << 20
"""Bytes of a chunk, at most, that a thread keeps memory for; zarr reads larger ones."""

_CHECKSUM = 4


class _Memory(threading.local):
    def __init__(self) -> None:
        self.kept: dict[str, Bytes] = {}


_memory = _Memory()


def memory(purpose: str, size: int) -> Bytes:
    """Memory of this thread, which it is given again when it asks for the same purpose."""
    if len(_memory.kept.get(purpose, ())) < size:
        _memory.kept.pop(purpose, None)  # before there is more
        _memory.kept[purpose] = np.empty(size + size // 16, np.uint8)  # chunks differ a little
    return _memory.kept[purpose][:size]


def read(array: zarr.Array[Any], selection: Any) -> Array | None:
    """A part of an array that slices select; None if that is not for here, or a chunk is missing or damaged."""
    part = sides(selection, array.shape)
    if not part or not _is_here(array) or not all(map(len, part)):
        return None
    out = np.empty([len(side) for side in part], array.dtype)
    chunks = array.chunks
    spans = [range(side.start // n, -(-side.stop // n)) for side, n in zip(part, chunks, strict=True)]
    for index in itertools.product(*spans):
        inside, outside = zip(*map(_overlap, part, index, chunks), strict=True)
        if not _decode(array, index, inside, out[outside]):
            return None
    return out


def write(store: LocalStore, key: str, content: Bytes) -> None:
    """Write a chunk's file, whole or not at all."""
    path = store.root / key
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.partial")  # as zarr calls them
    try:
        try:
            _fill(temporary, content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fill(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sides(selection: Any, shape: Sequence[int]) -> list[range] | None:
    """The part of an array that slices without steps select along each axis; None for any other selection."""
    slices = selection if isinstance(selection, tuple) else (selection,)
    if slices and slices[-1] is Ellipsis:
        slices = slices[:-1]
    slices = (*slices, *(slice(None),) * (len(shape) - len(slices)))
    if len(slices) != len(shape) or not all(isinstance(side, slice) for side in slices):
        return None
    part = [range(*side.indices(length)) for side, length in zip(slices, shape, strict=True)]
    return part if all(side.step == 1 for side in part) else None


def key_of(array: zarr.Array[Any], index: Sequence[int]) -> str:
    """The key in the store of the chunk with an index."""
    name: str = array.metadata.encode_chunk_key(tuple(index))
    return f"{array.path}/{name}" if array.path else name


def is_ours(array: zarr.Array[Any]) -> bool:
    """Whether chunks are little-endian numbers by Zstandard, with a checksum, as this program writes all of them."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    little = array.dtype.newbyteorder("<") == array.dtype
    return little and [type(codec) for codec in codecs] == [BytesCodec, ZstdCodec, Crc32cCodec]


def chunk_bytes(array: zarr.Array[Any]) -> int:
    """Bytes of a decoded chunk."""
    return math.prod(array.chunks) * array.dtype.itemsize


def _is_here(array: zarr.Array[Any]) -> bool:
    """Whether its chunks are on the local disk, and of a size that memory is kept for."""
    return chunk_bytes(array) <= MOST and isinstance(array.store, LocalStore) and is_ours(array)


def _overlap(side: range, index: int, chunk: int) -> tuple[slice, slice]:
    """What a part of an array has of a chunk along an axis: in the chunk, and in the part."""
    start = index * chunk
    first, last = max(side.start, start), min(side.stop, start + chunk)
    return slice(first - start, last - start), slice(first - side.start, last - side.start)


def _decode(array: zarr.Array[Any], index: Sequence[int], inside: tuple[slice, ...], out: Array) -> bool:
    """Put what is wanted of a chunk into `out`; False if it is missing or damaged."""
    size, store = chunk_bytes(array), array.store
    assert isinstance(store, LocalStore)
    stored = _stored(store.root / key_of(array, index), 2 * size + 1024)
    if stored is None or google_crc32c.value(stored[:-_CHECKSUM]) != int.from_bytes(stored[-_CHECKSUM:], "little"):
        return False
    content = memory("decoded", size)
    decode: Any = imagecodecs.zstd_decode
    try:
        if len(decode(stored[:-_CHECKSUM], out=content)) != size:
            return False
    except RuntimeError:  # of its own kind
        return False
    out[...] = content.view(array.dtype).reshape(array.chunks)[inside]
    return True


def _stored(path: Path, most: int) -> Bytes | None:
    """A file's bytes, in this thread's memory; None if it is not there, too short or too long for a chunk."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if not _CHECKSUM < size <= most:
                return None
            content = memory("stored", size)
            done = 0
            while done < size:
                count = file.readinto(content[done:].data)
                if not count:
                    return None
                done += count
            return content
    except OSError:
        return None


def _fill(path: Path, content: Bytes) -> None:
    with path.open("wb", buffering=0) as file:
        done = 0
        while done < len(content):
            done += file.write(content[done:].data)
