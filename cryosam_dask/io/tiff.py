"""Tomograms in TIFF stacks: pages are z, rows y, columns x, in the file's order; nothing is flipped.

tifffile reads the structure (pages, BigTIFF, ImageJ's one-page stacks, OME-XML). Voxels are read here with plain reads:
those of an uncompressed stack by ranges, else strip by strip or tile by tile, each decoded up to its own size at most.

TIFF 6.0 with Technical Notes 1 to 3 (compression, predictors); ImageJ's and OME's descriptions as tifffile has them.
"""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.boxes import opened
from cryosam_dask.io.flat import FlatSource, check_length, first_bytes, identity, sampled_hash
from cryosam_dask.io.frame import (
    ASK_VOXEL_SIZE,
    Block,
    Described,
    changed,
    check_block,
    check_volume,
    native,
    one_line_errors,
    regular_file,
    same_size,
    shown,
    size_and_type,
    unset_voxel_size,
    voxel_dtype,
)
from cryosam_dask.io.tiff_check import check_structure
from cryosam_dask.io.tiff_decode import COMPRESSIONS, paste, unpacked, unpredicted
from cryosam_dask.io.tiff_sizes import Told, voxel_size_of
from cryosam_dask.types import Array, Point, Shape3

MOST_SEGMENT_BYTES = 1 << 28
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY = (0, 1, 3)  # white is zero, black is zero, and numbers with a colour map, as ImageJ writes them
_SLICES, _MOST_CHANNELS = "ZQIT", 4  # more channels are slices that nobody called so
_KEPT = 4
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it would print of a file, unasked


@dataclass(frozen=True)
class _Stack:
    """The layout that the pages describe; `told` is the voxel size. `flat` is the place of the first voxel, where all
    lie together; else `offsets` and `counts` (pages, segments) tell where strips or tiles of `segment` (rows, columns)
    lie.
    """

    shape: Shape3
    stored: np.dtype[Any]
    told: Told
    notes: tuple[str, ...]
    flat: int | None
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    segment: tuple[int, int]
    tiled: bool
    compression: int
    predictor: int


@dataclass(frozen=True)
class TiffSource(Described):
    """A tomogram in a TIFF whose pages are compressed or lie apart; see `TomogramSource`.

    Each process reads the places of the pages again, and keeps those of the last few files.
    """

    path: Path
    chunk: Shape3

    @property
    def scratch(self) -> int:
        """See `TomogramSource`: a strip or tile as it is stored, decoded, and turned."""
        return 4 * math.prod(self.chunk) * self.dtype.itemsize

    @one_line_errors()
    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`. Memory: the box and a few times one strip or tile (256 MB at most)."""
        block = check_block(slices, self.shape)
        out = np.empty([part.stop - part.start for part in block], self.dtype)
        if not out.size:
            return out
        stack = _stack(self.path, self.identity["bytes"])
        now, known = size_and_type(stack.shape, native(stack.stored)), size_and_type(self.shape, self.dtype)
        if now != known:
            raise changed(self.path, now, known)
        z, y, x = block
        (rows, columns), across = stack.segment, -(-self.shape[2] // stack.segment[1])
        with opened(self.path, self.identity["bytes"]) as file:
            for page in range(z.start, z.stop):
                for down in range(y.start // rows, -(-y.stop // rows)):
                    for right in range(x.start // columns, -(-x.stop // columns)):
                        part = _segment(self.path, file, stack, page, down * across + right, down)
                        paste(part, out[page - z.start], (down * rows - y.start, right * columns - x.start))
        return out


@one_line_errors()
def open_tiff(path: Path, *, voxel_size: Point | None = None) -> FlatSource | TiffSource:
    """Read and check the pages' descriptions of the TIFF at `path`; no voxel is loaded.

    `voxel_size` is Å (z, y, x), instead of the file's. Raises InputError for a file that is missing, truncated, no
    TIFF, not one stack of grey pages, and where nobody tells the voxel size.
    """
    size = regular_file(path).st_size
    if not (start := first_bytes(path, 4)).startswith(_STARTS):
        raise InputError(f"{path}: {'not a TIFF file: it does not begin as one' if start else 'empty'}")
    stack = _stack(path, size)
    dtype = voxel_dtype(str(path), stack.stored)
    check_volume(str(path), stack.shape)
    told = stack.told
    sizes = voxel_size or told.sizes
    if sizes is None:
        why = f" ({told.why})" if told.why else ""
        raise InputError(f"{path}: the file gives no usable voxel size; {ASK_VOXEL_SIZE}{why}")
    notes = stack.notes + (() if voxel_size else told.notes + unset_voxel_size(sizes))
    known = identity("tiff", path.name, size, sampled_hash(path, size), stack.shape, dtype, sizes)
    common: dict[str, Any] = {"path": path.absolute(), "shape": stack.shape, "dtype": dtype, "voxel_size": sizes}
    common |= {"origin": (0.0, 0.0, 0.0), "identity": known, "notes": notes}
    if stack.flat is None:
        return TiffSource(**common, chunk=(1, *stack.segment))
    check_length(path, stack.flat, stack.shape, stack.stored, size)
    return FlatSource(**common, offset=stack.flat, stored=stack.stored, order=(0, 1, 2))


class _Bounded(io.FileIO):
    """A file that reads no more bytes than it has, so that a damaged count of bytes is never allocated."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


_stacks: OrderedDict[tuple[Any, ...], _Stack] = OrderedDict()
_lock = threading.Lock()


def _stack(path: Path, size: int) -> _Stack:
    status = same_size(path, size)
    key = (str(path), status.st_dev, status.st_ino, size, status.st_mtime_ns)
    with _lock:
        if key in _stacks:
            return _stacks[key]
    stack = _parsed(path)
    with _lock:
        _stacks[key] = stack
        while len(_stacks) > _KEPT:
            _stacks.popitem(last=False)
    return stack


def _parsed(path: Path) -> _Stack:
    import tifffile

    # other programs' layouts are not looked for; newer tifffile lets a few of these flags not be set
    fixed = {name for name, value in vars(tifffile.TiffFile).items() if isinstance(value, property)}
    flags = {f"is_{name}" for name in tifffile.TIFF.FILE_FLAGS - {"imagej", "ome", "shaped", "bigtiff"}}
    others: dict[str, Any] = dict.fromkeys(flags - fixed, False)
    try:
        with warnings.catch_warnings(), _Bounded(path) as file:
            warnings.simplefilter("ignore")
            check_structure(path, file, regular_file(path).st_size)
            file.seek(0)
            with tifffile.TiffFile(file, _multifile=False, **others) as tiff:  # other files are not opened
                return _described(path, tiff)
    except InputError:
        raise
    except OSError as err:
        raise InputError(f"{path}: can't be read: {err.strerror or shown(str(err))}") from err
    except Exception as err:
        raise InputError(f"{path}: damaged TIFF: {shown(str(err)) or type(err).__name__}") from err


def _described(path: Path, tiff: Any) -> _Stack:
    if not tiff.series:
        raise InputError(f"{path}: no images in it")
    series = tiff.series[0]
    page = series.keyframe
    if page.samplesperpixel != 1 or page.photometric not in _GREY or "S" in series.axes:
        raise InputError(f"{path}: a colour image, expected grey voxels")
    dtype = page.dtype
    if dtype is None or dtype.kind == "b" or dtype.itemsize * 8 != page.bitspersample:
        kind = f"format {shown(page.sampleformat)}, {shown(page.bitspersample)} bits"
        raise InputError(f"{path}: voxels of another type ({kind}), expected integers or real numbers of whole bytes")
    sides = [(axis, n) for axis, n in zip(series.axes, series.shape, strict=True) if n != 1 or axis in "YX"]
    axes = "".join(axis for axis, _ in sides)
    channels = axes[:1] == "C" and sides[0][1] > _MOST_CHANNELS
    if len(sides) != 3 or axes[1:] != "YX" or not (axes[0] in _SLICES or channels):
        described = " x ".join(f"{n} {axis}" for axis, n in zip(series.axes, series.shape, strict=True))
        raise InputError(f"{path}: not one stack of pages (found {shown(described)}), expected z, y, x")
    z, y, x = (int(n) for _, n in sides)
    notes: tuple[str, ...] = ()
    if axes[0] in "TC":
        notes += (f"its {z} pages are called {'time points' if axes[0] == 'T' else 'channels'}; read as z",)
    if len(tiff.series) > 1:
        notes += (f"{len(tiff.series)} image series in it; the first is read",)
    if page.photometric == 0:
        notes += ("its numbers mean darkness (white is zero); read as they are",)
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
    segment = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    stack = _Stack(
        shape=(z, y, x),
        stored=np.dtype(dtype).newbyteorder(tiff.byteorder),
        told=voxel_size_of(tiff),
        notes=notes,
        flat=series.dataoffset if plain and not page.is_tiled else None,
        offsets=np.empty((0, 0), np.uint64),
        counts=np.empty((0, 0), np.uint64),
        segment=(int(segment[0]), int(segment[1])),
        tiled=bool(page.is_tiled),
        compression=int(page.compression),
        predictor=int(page.predictor),
    )
    return stack if stack.flat is not None else _with_segments(path, stack, series, page)


def _with_segments(path: Path, stack: _Stack, series: Any, page: Any) -> _Stack:
    """The places of all strips or tiles, checked to be as many as the pages need, and not too large each."""
    z, y, x = stack.shape
    rows, columns = stack.segment
    if min(rows, columns) < 1 or page.imagedepth != 1 or page.fillorder != 1 or stack.predictor not in (1, 2, 3):
        raise InputError(f"{path}: stored as few TIFFs are (volumes in a page, reversed bits, an odd predictor)")
    if stack.compression not in COMPRESSIONS:
        name = shown(str(getattr(page.compression, "name", page.compression)))
        raise InputError(f"{path}: compressed as {name}, which is not read (known: deflate, LZW, PackBits, Zstandard)")
    if rows * columns * stack.stored.itemsize > MOST_SEGMENT_BYTES:
        raise InputError(
            f"{path}: strips or tiles of {rows} x {columns} voxels, too large to be read one by one (at most "
            f"{MOST_SEGMENT_BYTES >> 20} MiB): write it with smaller ones"
        )
    each = -(-y // rows) * -(-x // columns)
    pages = list(series.pages)
    if len(pages) != z or any(p is None or len(p.dataoffsets) != each for p in pages):
        raise InputError(f"{path}: damaged TIFF: pages without their {each} strips or tiles")
    if any(len(p.databytecounts) != each for p in pages):
        raise InputError(f"{path}: damaged TIFF: pages without the sizes of their {each} strips or tiles")
    offsets, counts = (
        np.array([getattr(p, name) for p in pages], np.uint64) for name in ("dataoffsets", "databytecounts")
    )
    size = regular_file(path).st_size
    ends = offsets.astype(float) + counts.astype(float)
    if ends.max() > size:
        at = int(np.argmax(ends.max(1) > size))
        raise InputError(f"{path}: truncated: page {at} ends at byte {int(ends[at].max())}, the file has {size}")
    return replace(stack, offsets=offsets, counts=counts)


def _segment(path: Path, file: io.FileIO, stack: _Stack, page: int, index: int, down: int) -> Array:
    """A strip or tile as (rows, columns) in native byte order."""
    columns, item = stack.segment[1], stack.stored.itemsize
    rows = stack.segment[0] if stack.tiled else min(stack.segment[0], stack.shape[1] - down * stack.segment[0])
    limit = stack.segment[0] * columns * item
    count = int(stack.counts[page, index])
    if count > 2 * limit + 1024:
        raise InputError(f"{path}: damaged TIFF: page {page} has a strip or tile of {count} bytes for {limit}")
    file.seek(int(stack.offsets[page, index]))
    raw = file.read(count)
    try:
        data = unpacked(stack.compression, raw, limit)
    except InputError as err:
        raise InputError(f"{path}: {err}") from err
    except Exception as err:
        raise InputError(f"{path}: damaged at page {page}: {shown(str(err)) or type(err).__name__}") from err
    if len(data) < rows * columns * item:
        raise InputError(f"{path}: damaged at page {page}: {len(data)} bytes, expected {rows * columns * item}")
    voxels = np.frombuffer(data, stack.stored, rows * columns).reshape(rows, columns)
    return unpredicted(voxels, stack.predictor)
