"""Zstandard frames that hold their content as it is: what does not compress is written without being tried.

Latents are noise to a compressor: it takes several times what writing them takes, and saves 8 %
(docs/decisions/codecs.md). A frame's blocks may be raw, or one byte repeated, so a frame is put together by copying,
and every decoder of Zstandard reads it. No library writes such frames; at its fastest level libzstd looks for matches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import Array

Bytes = NDArray[np.uint8]

_MAGIC = 0xFD2FB528
_SINGLE_SEGMENT = 0b1010_0000
"""Frame header descriptor: the content's size follows in four bytes, and no window (RFC 8878, 3.1.1.1.1)."""

_BLOCK = 128 << 10
"""The most that a block may hold (RFC 8878, 3.1.1.2.4)."""

_RAW, _REPEATED, _LAST = 0, 1, 1
MOST = (1 << 32) - 1
"""Bytes that such a frame can hold."""


def frame(values: Array, chunk: Sequence[int], room: int = 0, memory: Callable[[int], Bytes] | None = None) -> Bytes:
    """A frame of a chunk of four axes of which `values` are the first along each axis, and zeros the rest.

    `values` have all of the last axis. Behind the frame, `room` bytes are left. `memory` gives so many bytes to put it
    into; without it, they are new ones.
    """
    length = math.prod(chunk) * values.itemsize
    assert length <= MOST
    row = chunk[2] * chunk[3] * values.itemsize
    slices, rows = values.shape[:2]
    content = _rows(values)
    # each row is a record, and what a slice lacks of rows follows its last one
    beside, below = _zeros(row - content.shape[2]), _zeros((chunk[1] - rows) * row)
    record = _raw_size(content.shape[2]) + len(beside)
    part = rows * record + len(below)
    head = _number(_MAGIC, 4) + bytes([_SINGLE_SEGMENT]) + _number(length, 4)
    tail = _zeros((chunk[0] - slices) * chunk[1] * row) + _header(_LAST, _RAW, 0)
    size = len(head) + slices * part + len(tail) + room
    whole = np.empty(size, np.uint8) if memory is None else memory(size)
    out = whole[: len(whole) - room]
    out[: len(head)] = np.frombuffer(head, np.uint8)
    out[len(out) - len(tail) :] = np.frombuffer(tail, np.uint8)
    body = out[len(head) : len(out) - len(tail)].reshape(slices, part)
    body[:, part - len(below) :] = np.frombuffer(below, np.uint8)
    records = body[:, : part - len(below)].reshape(slices, rows, record)  # a view
    _put_raw(records, content)
    records[..., record - len(beside) :] = np.frombuffer(beside, np.uint8)
    return whole


def _rows(values: Array) -> Bytes:
    """Bytes (slices, rows, n) of values of four axes: without a copy if each row lies in one piece."""
    slices, rows = values.shape[:2]
    flat = values.reshape(slices, rows, -1)
    return (flat if flat.strides[2] == values.itemsize else np.ascontiguousarray(flat)).view(np.uint8)


def _put_raw(records: Bytes, content: Bytes) -> None:
    """Content (…, n) in raw blocks, at the beginning of each record."""
    at = 0
    for start in range(0, content.shape[-1], _BLOCK):
        block = content[..., start : start + _BLOCK]
        size = block.shape[-1]
        records[..., at : at + 3] = np.frombuffer(_header(0, _RAW, size), np.uint8)
        records[..., at + 3 : at + 3 + size] = block
        at += 3 + size


def _raw_size(length: int) -> int:
    """Bytes of raw blocks that hold so many."""
    return length + 3 * -(-length // _BLOCK)


def _zeros(length: int) -> bytes:
    """Blocks of zeros."""
    whole, rest = divmod(length, _BLOCK)
    blocks = (_header(0, _REPEATED, _BLOCK) + b"\0") * whole
    return blocks + _header(0, _REPEATED, rest) + b"\0" if rest else blocks


def _header(last: int, kind: int, size: int) -> bytes:
    return _number(last | kind << 1 | size << 3, 3)


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
