"""Write instance labels as MRC and as TIFF, for programs that read nothing else."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.atomic import replacing
from cryosam_dask.io.frame import Block
from cryosam_dask.io.omezarr_out import Level
from cryosam_dask.types import Array, Point, Shape3

# Largest id that a mode holds exactly. Mode 0 is left out: programs disagree on its sign.
_MODES = ((1, 2**15 - 1, np.int16), (6, 2**16 - 1, np.uint16), (2, 2**24, np.float32))
_HEADER_BYTES = 1024
_TIFF_TYPES = (np.uint8, np.uint16, np.uint32)
_TIFF_SLAB = 1 << 24
"""Voxels of the planes that are read together."""


@dataclass
class _Statistics:
    """Running sums over written voxels; the rest of the volume is background."""

    written: int = 0
    total: float = 0.0
    squares: float = 0.0
    smallest: float = math.inf
    largest: float = 0.0

    def add(self, block: Array) -> None:
        values = block.astype(np.float64)
        self.written += block.size
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))


def label_mode(max_id: int) -> tuple[int, np.dtype[Any]]:
    """The smallest MRC mode that holds ids up to `max_id` exactly, with its dtype; InputError above 2^24."""
    for mode, largest, dtype in _MODES:
        if max_id <= largest:
            return mode, np.dtype(dtype)
    raise InputError(f"instance id {max_id}: an MRC holds ids up to {_MODES[-1][1]} exactly; use the OME-Zarr labels")


def write_mrc_labels(
    path: str | PathLike[str],
    shape: Shape3,
    blocks: Iterable[tuple[Block, Array]],
    *,
    max_id: int,
    voxel_size: Point,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> None:
    """Write instance ids (0 = background) as an MRC volume, one block in memory at a time.

    Parameters
    ----------
    path : the file; one that exists is replaced when the new one is complete
    shape : (z, y, x) of the volume
    blocks : (slices (z, y, x), integer array of their shape), not overlapping; voxels in no block are background
    max_id : the largest id among the blocks; it decides the mode
    voxel_size, origin : Å (z, y, x)

    Raises StoreError where the file can't be written (nothing is left behind), InputError for ids above 2^24.
    """
    path = Path(path)
    mode, dtype = label_mode(max_id)
    statistics = _Statistics()
    with replacing(path) as temporary:
        _check_space(path, math.prod(shape) * dtype.itemsize + _HEADER_BYTES)
        mrcfile.new_mmap(temporary, shape, mrc_mode=mode).close()
        _reserve(temporary)
        for slices, block in blocks:
            _write_block(temporary, shape, dtype, slices, block, max_id)
            if block.size:
                statistics.add(block)
        _write_header(temporary, statistics, voxel_size, origin)


def write_tiff_labels(path: str | PathLike[str], level: Level, *, max_id: int, voxel_size: Point) -> None:
    """Write instance ids (0 = background) as an OME-TIFF, one compressed page a section, in the 64-bit form of TIFF.

    Parameters
    ----------
    path : the file; one that exists is replaced when the new one is complete
    level : the labels; a few sections are read at a time
    max_id : the largest id; it decides the type
    voxel_size : Å (z, y, x); a TIFF has no origin

    Raises StoreError where the file can't be written; nothing is left behind.
    """
    import tifffile

    dtype = next(np.dtype(kind) for kind in _TIFF_TYPES if max_id <= np.iinfo(kind).max)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", voxel_size, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "Å" for axis in "ZYX"}
    with replacing(Path(path)) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as file:
        file.write(
            _sections(level, dtype),
            shape=level.shape,
            dtype=dtype,
            photometric="minisblack",
            compression="zlib",
            metadata={"axes": "ZYX", "Name": "labels", **sizes, **units},
        )


def _sections(level: Level, dtype: np.dtype[Any]) -> Iterator[Array]:
    depth, rows, columns = level.shape
    thickness = max(1, min(32, _TIFF_SLAB // (rows * columns)))
    for start in range(0, depth, thickness):
        block = level.read((slice(start, start + thickness), slice(0, rows), slice(0, columns)))
        yield from block.astype(dtype)


def _check_space(path: Path, expected: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < expected:
        raise StoreError(f"{path}: disk full: the labels need {expected} bytes, {free} are free")


def _reserve(path: Path) -> None:
    """Make the file's blocks real: writing through a map into a hole of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _write_block(path: Path, shape: Shape3, dtype: np.dtype[Any], slices: Block, block: Array, max_id: int) -> None:
    if block.size and (int(block.min()) < 0 or int(block.max()) > max_id):
        raise ValueError(f"labels from {block.min()} to {block.max()}, expected 0 to {max_id}")
    # A map of its own for each block: a map's pages count as this process's memory for as long as it lives.
    volume = np.memmap(path, dtype, mode="r+", offset=_HEADER_BYTES, shape=shape)
    if volume[slices].shape != block.shape:
        raise ValueError(f"block of shape {block.shape} for {slices} of {shape}")
    volume[slices] = block
    volume.flush()


def _write_header(path: Path, statistics: _Statistics, voxel_size: Point, origin: Sequence[float]) -> None:
    with mrcfile.mmap(path, mode="r+") as mrc:
        count = mrc.data.size
        mean = statistics.total / count
        mrc.voxel_size = tuple(reversed(voxel_size))
        for axis, position in zip("zyx", origin, strict=True):
            mrc.header.origin[axis] = position
        mrc.header.dmin = 0.0 if statistics.written < count else statistics.smallest
        mrc.header.dmax = statistics.largest
        mrc.header.dmean = mean
        mrc.header.rms = math.sqrt(max(statistics.squares / count - mean**2, 0.0))
        mrc.add_label("cryosam_dask: instance ids, 0 = background")
