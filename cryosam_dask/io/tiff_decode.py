"""Decode strips and tiles of TIFFs.

TIFF 6.0, sections 13 and 14, and Technical Notes 1 (LZW, predictors) and 3 (floating point predictor).
"""

from __future__ import annotations

import numpy as np

from cryosam_dask.io.codecs import decode
from cryosam_dask.types import Array

_DEFLATE, _ZSTD = (8, 32946, 50013), (34926, 50000)
_IMAGECODECS = {5: "lzw_decode", 32773: "packbits_decode"}
COMPRESSIONS = (1, *_DEFLATE, *_ZSTD, *_IMAGECODECS)


def unpacked(compression: int, raw: bytes, limit: int) -> bytes:
    """The decoded bytes of a strip or tile, `limit` at most; errors of the codec's library are passed on."""
    if compression == 1:
        return raw
    if compression in _DEFLATE:
        return decode("zlib", raw, limit)
    if compression in _ZSTD:
        return decode("zstd", raw, limit)
    import imagecodecs

    return bytes(getattr(imagecodecs, _IMAGECODECS[compression])(raw, out=limit))


def unpredicted(voxels: Array, predictor: int) -> Array:
    """Undo differences between neighbours (2), or between the bytes of real numbers, sorted by their weight (3)."""
    if predictor == 2:
        whole = np.dtype(f"u{voxels.dtype.itemsize}")
        native = voxels.astype(voxels.dtype.newbyteorder("="))
        return np.cumsum(native.view(whole), axis=1, dtype=whole).view(native.dtype)
    if predictor == 3:
        rows, columns = voxels.shape
        planes = np.cumsum(voxels.view(np.uint8), axis=1, dtype=np.uint8).reshape(rows, -1, columns)
        return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(voxels.dtype.newbyteorder(">"))[..., 0]
    return voxels


def paste(part: Array, page: Array, at: tuple[int, int]) -> None:
    """Copy what of `part` lies on `page`, whose (row, column) of its first voxel is `at`."""
    target, source = [], []
    for start, n, most in zip(at, part.shape, page.shape, strict=True):
        target.append(slice(max(start, 0), min(start + n, most)))
        source.append(slice(target[-1].start - start, target[-1].stop - start))
    page[tuple(target)] = part[tuple(source)]
