"""Which codecs the chunks of an input may be stored with, and how much a chunk may grow when it is decoded.

An input comes from anywhere. Zarr looks codecs up by the names in the metadata, and some of them (`pickle` as a
filter of a Zarr v2 array) run code that stands in the chunk; a compressed chunk of some kilobytes can claim, or become,
gigabytes. So arrays are read with the codecs of this list only, and each decoder here stops at the size that the
chunk's shape calls for.
"""

from __future__ import annotations

import asyncio
import bz2
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numcodecs  # type: ignore[import-untyped]
import zarr
from numcodecs.abc import Codec as Numcodec  # type: ignore[import-untyped]
from zarr import codecs
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown, voxel_dtype

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

MOST_CHUNK_BYTES = 1 << 30
_MOST_CHUNKS_OF_SHARD = 1 << 18
_MOST_STREAMS = 1000


def guarded(where: str, array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return `array` such that it is read with known codecs only, each bounded by the chunk's size; nothing is decoded
    here.

    Raises InputError for an array of no numbers, of another codec or filter, or of chunks too large to be read one by
    one.
    """
    voxel_dtype(where, array.dtype)
    metadata = array.metadata
    _check_size(where, "chunks", getattr(array, "shards", None) or array.chunks, array.dtype.itemsize)
    if isinstance(metadata, ArrayV2Metadata):
        if metadata.filters:
            names = ", ".join(str(getattr(each, "codec_id", each)) for each in metadata.filters)
            raise _refused(where, f"filter {shown(names)}", "none")
        compressor = metadata.compressor
        if compressor is not None:
            name = str(getattr(compressor, "codec_id", compressor))
            if name not in _DECODERS:
                raise _refused(where, f"compressor {shown(name)}", ", ".join(_DECODERS))
            limit = math.prod(metadata.chunks) * array.dtype.itemsize
            metadata = replace(metadata, compressor=_BoundedV2(name, limit))
    else:
        metadata = replace(metadata, codecs=_bounded(where, metadata.codecs, array.shards or array.chunks))
    return zarr.Array(_async_array(metadata, array))


def _async_array(metadata: ArrayV2Metadata | ArrayV3Metadata, array: zarr.Array[Any]) -> Any:
    kind: Any = zarr.AsyncArray
    return kind(metadata=metadata, store_path=array.store_path)


def _refused(where: str, what: str, known: str) -> InputError:
    return InputError(f"{where}: stored with the {what}, which is not read (known: {known}): write it with another")


def _check_size(where: str, what: str, shape: Iterable[int], itemsize: int) -> None:
    sides = list(map(int, shape))
    if min(sides, default=1) < 1:
        raise InputError(f"{where}: damaged OME-Zarr metadata: {what} of {' x '.join(map(str, sides))} voxels")
    if math.prod(sides) * itemsize > MOST_CHUNK_BYTES:
        raise InputError(
            f"{where}: stored in {what} of {shown(' x '.join(map(str, sides)))} voxels, too large to be read one by "
            f"one (at most {MOST_CHUNK_BYTES >> 20} MiB): write it with smaller ones, e.g. 128 x 128 x 128"
        )


def _bounded(where: str, given: Iterable[Codec], shape: tuple[int, ...]) -> tuple[Codec, ...]:
    """The codecs of a Zarr v3 array, or of the chunks in its shards, each of a known kind."""
    bounded: list[Codec] = []
    for codec in given:
        if isinstance(codec, codecs.GzipCodec | codecs.ZstdCodec | codecs.BloscCodec):
            bounded.append(_BoundedV3(codec, str(codec.to_dict()["name"])))
        elif isinstance(codec, codecs.ShardingCodec):
            inner = codec.chunk_shape
            if len(inner) != len(shape) or min(inner) < 1:
                raise InputError(f"{where}: damaged OME-Zarr metadata: shards of {shape} in chunks of {inner} voxels")
            if math.prod(-(-n // c) for n, c in zip(shape, inner, strict=True)) > _MOST_CHUNKS_OF_SHARD:
                raise InputError(f"{where}: more than {_MOST_CHUNKS_OF_SHARD} chunks in a shard: write larger ones")
            if not all(type(each) in (codecs.BytesCodec, codecs.Crc32cCodec) for each in codec.index_codecs):
                raise _refused(where, "index of its shards compressed", "bytes, crc32c")
            bounded.append(replace(codec, codecs=_bounded(where, codec.codecs, inner)))
        elif type(codec) in (codecs.BytesCodec, codecs.Crc32cCodec, codecs.TransposeCodec):
            bounded.append(codec)
        else:
            name = codec.to_dict().get("name", type(codec).__name__)
            raise _refused(where, f"codec {shown(str(name))}", ", ".join((*_V3_NAMES, "gzip", "zstd", "blosc")))
    return tuple(bounded)


_V3_NAMES = ("bytes", "transpose", "sharding_indexed", "crc32c")


class _BoundedV2(Numcodec):  # type: ignore[misc]
    """A compressor of a Zarr v2 array that decodes `limit` bytes at most."""

    codec_id: ClassVar[str] = "bounded"

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError("inputs are only read")

    def decode(self, buf: Any, out: Any = None) -> bytes:
        return _DECODERS[self.name](memoryview(buf).cast("B"), self.limit)


@dataclass(frozen=True)
class _BoundedV3(BytesBytesCodec):
    """A compressor of a Zarr v3 array that decodes at most the bytes that a chunk can have, and some more."""

    codec: BytesBytesCodec
    name: str
    is_fixed_size = False

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        # Checksums, a shard's index or a second compressor can add some bytes to the voxels'.
        limit = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        data = chunk_data.as_numpy_array().data.cast("B")
        decoded = await asyncio.to_thread(_DECODERS[self.name], data, limit + limit // 8 + (1 << 20))
        return chunk_spec.prototype.buffer.from_bytes(decoded)


def _checked(claimed: int, limit: int) -> None:
    if not 0 <= claimed <= limit:
        raise ValueError(f"a chunk that decodes to {claimed} bytes, expected {limit} at most")


def _stream(make: Callable[[], Any]) -> Callable[[memoryview, int], bytes]:
    """A decoder made of one that can be told where to stop; streams one after the other are taken together."""

    def decode(data: memoryview, limit: int) -> bytes:
        parts: list[bytes] = []
        rest: memoryview | bytes = data
        while rest:
            if len(parts) == _MOST_STREAMS:  # each is a copy of what follows
                raise ValueError(f"more than {_MOST_STREAMS} compressed streams in a chunk")
            decoder = make()
            parts.append(decoder.decompress(rest, limit + 1))
            limit -= len(parts[-1])
            if limit < 0:
                raise ValueError("a chunk that decodes to more bytes than its voxels have")
            if not decoder.eof:
                raise ValueError("a compressed chunk that is cut")
            rest = decoder.unused_data.lstrip(b"\0")
        return b"".join(parts)

    return decode


def _blosc(data: memoryview, limit: int) -> bytes:
    """Blosc's header has the decoded and the stored size; its library trusts the second to be there."""
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"a Blosc chunk of {len(data)} bytes, which is not what its header says")
    _checked(int.from_bytes(data[4:8], "little"), limit)
    return bytes(numcodecs.blosc.decompress(data))


def _lz4(data: memoryview, limit: int) -> bytes:
    """LZ4 as numcodecs writes it: one block, with its decoded size before it in four bytes."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 5 or size < 1:
        raise ValueError(f"no LZ4 chunk in {len(data)} bytes")
    _checked(size, limit)
    decoded = _whole("lz4_decode", data[4:], size)
    if len(decoded) != size:
        raise ValueError(f"an LZ4 chunk that decodes to {len(decoded)} bytes, where its header says {size}")
    return decoded


def _zstd(data: memoryview, limit: int) -> bytes:
    """Zstandard frames one after the other, whether or not they tell their sizes."""
    return _whole("zstd_decode", data, limit)


def _whole(decoder: str, data: memoryview, limit: int) -> bytes:
    """What a decoder of imagecodecs makes of `data` in a buffer of `limit` bytes, which it never leaves."""
    import imagecodecs

    try:
        return bytes(getattr(imagecodecs, decoder)(data, out=limit))
    except RuntimeError as error:  # of libraries' own kinds
        if "Destination buffer is too small" in str(error):
            raise ValueError("a chunk that decodes to more bytes than its voxels have") from error
        raise ValueError(str(error)) from error


_DECODERS: dict[str, Callable[[memoryview, int], bytes]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "gzip": _stream(lambda: zlib.decompressobj(wbits=31)),
    "zlib": _stream(zlib.decompressobj),
    "bz2": _stream(bz2.BZ2Decompressor),
    "lz4": _lz4,
}


def decode(name: str, data: bytes, limit: int) -> bytes:
    """Decode `data` with the codec of that name to at most `limit` bytes.

    Raises ValueError, or an error of the codec's library, for data that is cut or damaged, or decodes to more.
    """
    return _DECODERS[name](memoryview(data), limit)
