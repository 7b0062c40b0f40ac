"""MRC tomograms behind any fsspec URL, read by ranges: no copy is made, neither on disk nor in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import unquote

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.flat import (
    SAMPLE_BYTES,
    in_file,
    parts_between,
    sample_starts,
    sampled_whole,
    samples_hash,
)
from cryosam_dask.io.frame import Block, Described, check_block, one_line_errors
from cryosam_dask.io.mrc_header import HEADER_BYTES, MrcHeader, read_header
from cryosam_dask.io.mrc_sign import Counts, byte_counts, sign_notes
from cryosam_dask.storage.address import check_address, public
from cryosam_dask.storage.filesystem import filesystem, look, publicly
from cryosam_dask.types import Array, Point, Shape3

_PIECE = 4 << 20  # bytes of one request: few enough to ask again, enough that the way to and fro counts little
_TOGETHER = 4
_GAP = 1 << 16  # bytes between two rows that are quicker read than asked around
_KEPT = 64


@dataclass(frozen=True)
class RemoteMrcSource(Described):
    """A tomogram in an MRC file on object storage or a web server; see `TomogramSource`.

    Besides the contract's attributes: `url` as it was given, signature and all, `offset`, `stored` and `order` as of
    `FlatSource`.
    """

    url: str
    offset: int
    stored: np.dtype[Any]
    order: tuple[int, int, int]
    chunk: Shape3 = (1, 1, 1)

    @property
    def scratch(self) -> int:
        """See `TomogramSource`."""
        row = self.shape[self.order.index(2)] * self.stored.itemsize
        return max(_TOGETHER * _PIECE, 2 * row)

    def __repr__(self) -> str:
        return f"RemoteMrcSource({public(self.url)!r}, shape={self.shape})"

    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`. Memory: the box twice where it is not z, y, x in this machine's byte order, else
        once, and what is under way beside it, 16 MB or two rows."""
        block = check_block(slices, self.shape)
        on_disk, box = in_file(self.order, self.shape, block)
        out = np.empty([part.stop - part.start for part in box], self.stored)
        if out.size:
            pieces = _pieces(on_disk, box, self.stored.itemsize)
            while batch := list(islice(pieces, _TOGETHER)):
                ranges = [(self.offset + piece.start, self.offset + piece.stop) for piece in batch]
                for piece, data in zip(batch, _fetch(self.url, ranges), strict=True):
                    piece.put(out, data)
        if not self.stored.isnative:
            out = out.byteswap(inplace=True).view(self.dtype)
        return np.ascontiguousarray(out.transpose(self.order))


@one_line_errors()
def open_remote_mrc(url: str, *, voxel_size: Point | None = None, unsigned: bool | None = None) -> RemoteMrcSource:
    """Read and check the header of the MRC file at `url`, and the samples that identify it; see `open_mrc`.

    Its identity is that of the same file on a local disk. The header and the samples of an object are kept as long as
    its size and its version stay the same.

    Raises InputError if there is no such file or it is not a readable MRC, StoreError if the storage can't be read.
    """
    check_address(url, InputError)
    shown = public(url)
    publicly(url)
    try:
        start, size, version = look(url, HEADER_BYTES)
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file") from None
    if len(start) < HEADER_BYTES:
        state = "empty" if not start else "truncated or not an MRC"
        raise InputError(f"{shown}: {state}: expected a header of {HEADER_BYTES} bytes, found {len(start)}")
    header: MrcHeader = read_header(shown, start, size, voxel_size=voxel_size, unsigned=unsigned)
    digest, counts = _sampled(url, start, size, version, header)
    sign_note = () if header.sign is None else sign_notes(header.sign, counts, sampled_whole(size))
    return RemoteMrcSource(
        url=url,
        shape=header.shape,
        dtype=header.dtype,
        voxel_size=header.voxel_size,
        origin=header.origin,
        identity=header.identity(unquote(shown.rpartition("/")[2]), size, digest),
        notes=header.notes + sign_note,
        offset=header.offset,
        stored=header.stored,
        order=header.order,
    )


_known: dict[tuple[str, bytes, int, str], tuple[str, Counts]] = {}
_lock = threading.Lock()


def _sampled(url: str, start: bytes, size: int, version: str, header: MrcHeader) -> tuple[str, Counts]:
    """The hash of the samples, and how often each byte is in their voxels of 8 bits; each unit opens the file again,
    and need not fetch a megabyte for it each time."""
    key = (public(url), start, size, version)
    if version and key in _known:
        return _known[key]
    ranges = [(first, min(first + SAMPLE_BYTES, size)) for first in sample_starts(size)]
    samples = _fetch(url, ranges)
    voxels = parts_between(size, samples, header.offset, header.offset + header.voxel_bytes) if header.sign else []
    sampled = samples_hash(size, samples), byte_counts(voxels)
    with _lock:
        if len(_known) >= _KEPT:
            _known.clear()
        _known[key] = sampled
    return sampled


def _fetch(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Fetch ranges of bytes in one request, and check that each is as long as requested."""
    publicly(url)
    files, path = filesystem(url)
    try:
        parts = files.cat_ranges([path] * len(ranges), [a for a, _ in ranges], [b for _, b in ranges], on_error="raise")
        for data in parts:
            if isinstance(data, Exception):  # fsspec's asynchronous file systems only raise since 2026.9
                raise data
    except FileNotFoundError:
        raise InputError(f"{public(url)}: can't be read any more, it was there when opened") from None
    for (start, stop), data in zip(ranges, parts, strict=True):
        if len(data) != stop - start:
            raise InputError(
                f"{public(url)}: expected {stop - start} bytes from {start}, found {len(data)}; it was cut or replaced "
                "since it was opened"
            )
    return [bytes(data) for data in parts]


@dataclass(frozen=True)
class _Piece:
    """Bytes `start` to `stop` of the voxels, which hold rows `y` to `y + rows` of section `z` of a box, or `sections`
    whole ones; `skip` bytes of them come before the first voxel, and rows begin `stride` bytes apart."""

    start: int
    stop: int
    z: int
    y: int
    sections: int
    rows: int
    stride: int

    def put(self, out: Array, data: bytes) -> None:
        """Copy the voxels to where they belong in the box."""
        target = out[self.z : self.z + self.sections, self.y : self.y + self.rows]
        row = target.shape[2] * out.itemsize
        lines = math.prod(target.shape[:2])
        padded = np.frombuffer(data.ljust(lines * self.stride, b"\0"), np.uint8).reshape(lines, self.stride)
        target[...] = np.ascontiguousarray(padded[:, :row]).view(out.dtype).reshape(target.shape)


def _pieces(shape: Sequence[int], box: Sequence[slice], item: int) -> Iterator[_Piece]:
    """Cut a box of a file of `shape` (sections, rows, columns) into requests of about `_PIECE` bytes.

    Whole sections go together, then rows of one section; rows of which the box holds a part only are read with what is
    between them, unless that is more than `_GAP`.
    """
    _, ny, nx = shape
    (z0, y0, x0), (sections, rows, columns) = (part.start for part in box), (part.stop - part.start for part in box)
    stride = nx * item

    def piece(z: int, y: int, depth: int, height: int) -> _Piece:
        start = (((z0 + z) * ny + y0 + y) * nx + x0) * item
        lines = (depth - 1) * ny + height
        return _Piece(start, start + (lines - 1) * stride + columns * item, z, y, depth, height, stride)

    if rows == ny and stride * ny <= _PIECE and stride - columns * item <= _GAP:
        depth = _PIECE // (stride * ny)
        for z in range(0, sections, depth):
            yield piece(z, 0, min(depth, sections - z), ny)
        return
    height = max(1, _PIECE // stride) if stride - columns * item <= _GAP else 1
    for z in range(sections):
        for y in range(0, rows, height):
            yield piece(z, y, 1, min(height, rows - y))
