"""Writing whole chunks of arrays that are not compressed: chunks are put together here, past zarr's codecs.

zarr copies a chunk once for each codec, which takes longer than writing it (docs/decisions/codecs.md).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from cryosam_dask.store import frames, local_chunks
from cryosam_dask.store.local_chunks import chunk_bytes, is_ours, key_of, sides
from cryosam_dask.types import Array

if TYPE_CHECKING:
    from cryosam_dask.store.frames import Bytes

LEVEL = -131072
"""The level of Zstandard that stands for no compression: the lowest one there is."""


def written(array: zarr.Array[Any], selection: Any, values: Any) -> bool:
    """Write values to a part of an array that is made of whole chunks; False, and nothing done, if the array is
    compressed or the part is not made of them."""
    if not _uncompressed(array) or not isinstance(values, np.ndarray) or values.dtype != array.dtype:
        return False
    part = _whole(selection, array.shape, array.chunks)
    if part is None or values.shape != tuple(len(side) for side in part):
        return False
    spans = [range(side.start // n, -(-side.stop // n)) for side, n in zip(part, array.chunks, strict=True)]
    indices = list(itertools.product(*spans))
    if isinstance(array.store, LocalStore):
        # a disk takes one after the other, from the same memory
        kept = functools.partial(local_chunks.memory, "stored")
        memory = kept if chunk_bytes(array) <= local_chunks.MOST else None
        for index in indices:
            local_chunks.write(array.store, key_of(array, index), _encoded(array, part, index, values, memory))
        return True
    at_once = int(zarr.config.get("async.concurrency"))  # elsewhere each one is waited for
    for start in range(0, len(indices), at_once):
        some = indices[start : start + at_once]
        sync(_set(array, [(key_of(array, index), _encoded(array, part, index, values)) for index in some]))
    return True


def _uncompressed(array: zarr.Array[Any]) -> bool:
    """Whether chunks are four axes of numbers in a frame of Zstandard that is not to be compressed, and a checksum,
    and may be written."""
    if array.ndim != 4 or array.store.read_only or not is_ours(array):
        return False
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    return codecs[1].level == LEVEL and chunk_bytes(array) <= frames.MOST


def _whole(selection: Any, shape: Sequence[int], chunks: Sequence[int]) -> list[range] | None:
    """The part of an array that is selected by slices along each axis, if it is made of whole chunks."""
    part = sides(selection, shape)
    whole = part is not None and all(
        len(side) and side.start % chunk == 0 and (side.stop % chunk == 0 or side.stop == length)
        for side, chunk, length in zip(part, chunks, shape, strict=True)
    )
    return part if whole else None


def _encoded(
    array: zarr.Array[Any],
    part: Sequence[range],
    index: Sequence[int],
    values: Array,
    memory: Callable[[int], Bytes] | None = None,
) -> Bytes:
    """The chunk with an index, as it is stored."""
    here = tuple(
        slice(i * chunk - side.start, (i + 1) * chunk - side.start)
        for i, side, chunk in zip(index, part, array.chunks, strict=True)
    )
    content = frames.frame(values[here], array.chunks, room=4, memory=memory)
    checksum = google_crc32c.value(content[:-4])
    content[-4:] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
    return content


async def _set(array: zarr.Array[Any], chunks: Sequence[tuple[str, Bytes]]) -> None:
    new = default_buffer_prototype().buffer.from_array_like
    await asyncio.gather(*(array.store.set(key, new(content)) for key, content in chunks))
