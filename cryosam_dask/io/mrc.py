"""MRC tomograms, read box by box.

Voxels are read with plain reads, never through a memory map: if a file is cut, or a disk fails, while it is mapped, the
process dies, but a short read is an ordinary error.

A gzipped file is read in place, see `inflate`. The header is read in `mrc_header`.
"""

from __future__ import annotations

import io
from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.io.boxes import opened
from cryosam_dask.io.flat import (
    FlatSource,
    first_bytes,
    parts_between,
    sampled_hash,
    sampled_whole,
    samples_hash,
    samples_of,
)
from cryosam_dask.io.frame import one_line_errors, regular_file
from cryosam_dask.io.inflate import MOST_GROWTH, Inflated, Stream
from cryosam_dask.io.mrc_header import HEADER_BYTES, MrcHeader, read_header
from cryosam_dask.io.mrc_sign import byte_counts, sign_notes
from cryosam_dask.types import Point

_LOOKED_AT = 1 << 20  # bytes of a packed file's voxels that tell whether they are signed
_FARTHEST_LOOK = 1 << 24  # bytes before them


@one_line_errors()
def open_mrc(path: Path, *, voxel_size: Point | None = None, unsigned: bool | None = None) -> FlatSource:
    """Read and check the header of the MRC file at `path`; no voxel is loaded.

    Parameters
    ----------
    path : an MRC file on a local or mounted disk
    voxel_size : Å (z, y, x), instead of the header's
    unsigned : how to read mode 0, instead of what the header says

    Raises InputError for a file that is missing, empty, truncated, no MRC, not one real-valued volume, or that
    does not tell its voxel size when `voxel_size` is None.
    """
    size = regular_file(path).st_size
    raw = _whole_header(path, first_bytes(path, HEADER_BYTES))
    header = read_header(path, raw, size, voxel_size=voxel_size, unsigned=unsigned)
    samples = samples_of(path, size)
    notes: tuple[str, ...] = ()
    if header.sign is not None and not header.sign.told:
        counts = byte_counts(parts_between(size, samples, header.offset, header.offset + header.voxel_bytes))
        notes = sign_notes(header.sign, counts, sampled_whole(size))
    return _source(path, header, size, samples_hash(size, samples), None, notes)


@one_line_errors()
def open_gzipped_mrc(path: Path, *, voxel_size: Point | None = None, unsigned: bool | None = None) -> FlatSource:
    """Read and check the header of the MRC file that the gzip file at `path` holds; see `open_mrc`.

    Nothing is unpacked to a disk. A file that is cut is found at once by the size that gzip writes at the end; where
    that does not fit the header the data is decoded once, to see how many bytes there are.
    """
    size = regular_file(path).st_size
    if (magic := first_bytes(path, 2)) != b"\x1f\x8b":
        state = "not gzip-compressed, as its name says; give it the name of what it is" if magic else "empty"
        raise InputError(f"{path}: {state}")
    with opened(path, size) as file:
        start = bytearray(HEADER_BYTES)
        got = Inflated(file, path, Stream(0, size, HEADER_BYTES), keep=False).readinto(start)
        raw = _whole_header(path, bytes(start[:got]))
        stated = read_header(path, raw, None, voxel_size=voxel_size, unsigned=unsigned)
        unpacked, notes = _unpacked_bytes(path, file, size, stated)
        header = read_header(path, raw, unpacked, voxel_size=voxel_size, unsigned=unsigned)
        stream = Stream(0, size, header.offset + header.voxel_bytes, run=header.section_bytes)
        notes += _packed_sign_notes(path, file, stream, header)
    return _source(path, header, size, sampled_hash(path, size), stream, notes)


def _whole_header(path: Path, raw: bytes) -> bytes:
    if len(raw) < HEADER_BYTES:
        state = "empty" if not raw else "truncated or not an MRC"
        raise InputError(f"{path}: {state}: expected a header of {HEADER_BYTES} bytes, found {len(raw)}")
    return raw


def _unpacked_bytes(path: Path, file: io.FileIO, size: int, header: MrcHeader) -> tuple[int, tuple[str, ...]]:
    """How many bytes a gzip file of `size` decodes to, at most as many as the header promises: by what gzip says where
    these agree; else they are counted. A file without the extended header is always counted, since the last of
    several members may happen to be just as long."""
    most = size * MOST_GROWTH
    file.seek(max(0, size - 4))
    noted = int.from_bytes(file.read(4), "little")  # of the last member, modulo 2^32 (RFC 1952, ISIZE)
    length, shorter = header.offset + header.voxel_bytes, HEADER_BYTES + header.voxel_bytes
    if length <= most and noted == length % (1 << 32):
        return length, ()
    if shorter > most:
        return most, ()
    unpacked = Inflated(file, path, Stream(0, size, length, run=header.section_bytes)).measure()
    if unpacked == shorter and noted == shorter % (1 << 32):
        return unpacked, ()
    return min(unpacked, length), (
        "gzip's record of the size is not what the header says: it is longer, or was made in parts",
    )


def _packed_sign_notes(path: Path, file: io.FileIO, stream: Stream, header: MrcHeader) -> tuple[str, ...]:
    """`sign_notes` by the first voxels, since later voxels can't be decoded without the earlier ones."""
    if header.sign is None or header.sign.told:
        return ()
    looked_at = bytearray(min(_LOOKED_AT, header.voxel_bytes) if header.offset <= _FARTHEST_LOOK else 0)
    inflated = Inflated(file, path, Stream(0, stream.stop, header.offset + len(looked_at)), keep=False)
    inflated.seek(header.offset)
    rest = memoryview(looked_at)
    while rest and (got := inflated.readinto(rest)):
        rest = rest[got:]
    counts = byte_counts([bytes(looked_at[: len(looked_at) - len(rest)])])
    return sign_notes(header.sign, counts, len(looked_at) == header.voxel_bytes)


def _source(
    path: Path, header: MrcHeader, size: int, digest: str, packed: Stream | None, notes: tuple[str, ...]
) -> FlatSource:
    return FlatSource(
        path=path.absolute(),
        shape=header.shape,
        dtype=header.dtype,
        voxel_size=header.voxel_size,
        origin=header.origin,
        identity=header.identity(path.name, size, digest, "mrc.gz" if packed else "mrc"),
        notes=header.notes + notes,
        offset=header.offset,
        stored=header.stored,
        order=header.order,
        packed=packed,
    )
