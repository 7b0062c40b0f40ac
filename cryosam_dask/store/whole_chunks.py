"""Writing whole chunks of arrays that are not compressed: chunks are put together here, past zarr's codecs.

zarr copies a chunk once for each codec, which takes longer than writing it (docs/decisions/codecs.md).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from cryosam_dask.store import frames
from cryosam_dask.types import Array

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

    from cryosam_dask.store.frames import Bytes

LEVEL = -131072
"""The level of Zstandard that stands for no compression: the lowest one there is."""


def written(array: zarr.Array[Any], selection: Any, values: Any) -> bool:
    """Write values to a part of an array that is made of whole chunks; False, and nothing done, if the array is
    compressed or the part is not made of them."""
    if not _plain(array) or not isinstance(values, np.ndarray) or values.dtype != array.dtype:
        return False
    part = _whole(selection, array.shape, array.chunks)
    if part is None or values.shape != tuple(len(side) for side in part):
        return False
    starts = [range(side.start, side.stop, chunk) for side, chunk in zip(part, array.chunks, strict=True)]
    # a disk takes one after the other, whose memory is then used again; elsewhere each one is waited for
    at_once = 1 if isinstance(array.store, LocalStore) else int(zarr.config.get("async.concurrency"))
    for places in _batched(list(itertools.product(*starts)), at_once):
        chunks = [(_key(array, place), _encoded(array, part, place, values)) for place in places]
        sync(_set(array, chunks))
    return True


def _plain(array: zarr.Array[Any]) -> bool:
    """Whether chunks are four axes of numbers in a frame of Zstandard that is not to be compressed, and a checksum."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    if array.ndim != 4 or [type(codec) for codec in codecs] != [BytesCodec, ZstdCodec, Crc32cCodec]:
        return False
    little = array.dtype.newbyteorder("<") == array.dtype
    return codecs[1].level == LEVEL and little and int(np.prod(array.chunks)) * array.dtype.itemsize <= frames.MOST


def _whole(selection: Any, shape: Sequence[int], chunks: Sequence[int]) -> list[range] | None:
    """The part of an array that is selected by slices along each axis, if it is made of whole chunks."""
    slices = selection if isinstance(selection, tuple) else (selection,)
    slices = (*slices, *(slice(None),) * (len(shape) - len(slices)))
    if len(slices) != len(shape) or not all(isinstance(side, slice) for side in slices):
        return None
    part = [range(*side.indices(length)) for side, length in zip(slices, shape, strict=True)]
    whole = all(
        side.step == 1 and len(side) and side.start % chunk == 0 and (side.stop % chunk == 0 or side.stop == length)
        for side, chunk, length in zip(part, chunks, shape, strict=True)
    )
    return part if whole else None


def _encoded(array: zarr.Array[Any], part: Sequence[range], place: Sequence[int], values: Array) -> Buffer:
    """The chunk that begins at a place, as it is stored."""
    here = tuple(
        slice(start - side.start, start - side.start + chunk)
        for start, side, chunk in zip(place, part, array.chunks, strict=True)
    )
    content: Bytes = frames.frame(values[here], array.chunks, room=4)
    checksum = google_crc32c.value(content[:-4])
    content[-4:] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
    return default_buffer_prototype().buffer.from_array_like(content)


def _key(array: zarr.Array[Any], place: Sequence[int]) -> str:
    index = tuple(start // chunk for start, chunk in zip(place, array.chunks, strict=True))
    name: str = array.metadata.encode_chunk_key(index)
    return f"{array.path}/{name}" if array.path else name


async def _set(array: zarr.Array[Any], chunks: Sequence[tuple[str, Buffer]]) -> None:
    await asyncio.gather(*(array.store.set(key, buffer) for key, buffer in chunks))


def _batched(places: Sequence[tuple[int, ...]], size: int) -> list[Sequence[tuple[int, ...]]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
