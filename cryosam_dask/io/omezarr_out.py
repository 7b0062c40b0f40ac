"""OME-Zarr images that stand alone: version 0.5 on Zarr v3, and 0.4 on Zarr v2 for programs that read nothing newer.

Specifications: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.codecs import ZstdCodec

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io.atomic import replacing_folder
from cryosam_dask.io.frame import Block
from cryosam_dask.store import ome
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Point, Shape3

Version = Literal["0.4", "0.5"]
CHUNK: Shape3 = (128, 128, 128)
BOX: Shape3 = (128, 256, 512)
"""Voxels in memory at a time: whole chunks, 64 MiB of ids."""

_MARKERS = ("zarr.json", ".zgroup", ".zarray")


@dataclass(frozen=True)
class Level:
    """One resolution of an image: its shape (z, y, x), and a function that reads a block of it."""

    shape: Shape3
    read: Callable[[Block], Array]


def write_omezarr(
    path: Path,
    levels: Sequence[Level],
    *,
    dtype: DTypeLike,
    voxel_size: Point,
    origin: Point = (0.0, 0.0, 0.0),
    name: str = "",
    version: Version = "0.5",
    label: dict[str, Any] | None = None,
    sampled: bool = False,
    overwrite: bool = False,
) -> None:
    """Write an image whose levels are the arrays 0, 1, …; a folder that is complete or absent.

    Parameters
    ----------
    path : the folder; one that exists must be an OME-Zarr, and `overwrite` be true
    levels : full resolution first, each half as long as the one before
    dtype : of the voxels written; voxel_size, origin : Å (z, y, x) of level 0
    label : the `image-label` entry, for labels
    sampled : whether a level takes every other voxel of the one before, instead of means of eight

    Blocks of at most `BOX` voxels are in memory. Raises InputError for a folder that must not be replaced, StoreError
    where nothing can be written.
    """
    check_replaceable(path, overwrite)
    paths = [str(level) for level in range(len(levels))]
    scales = ome.multiscales(name or path.stem, "", len(levels), voxel_size, origin, sampled=sampled, paths=paths)
    entries: dict[str, Any] = {"multiscales": scales}
    if label is not None:
        entries["image-label"] = {**label, "version": version}
    if version == "0.4":
        scales[0]["version"] = version
    else:
        entries = {"ome": {"version": version, **entries}}
    with replacing_folder(path) as temporary:
        group = zarr.create_group(str(temporary), zarr_format=2 if version == "0.4" else 3, attributes=entries)
        for place, level in zip(paths, levels, strict=True):
            array = _array(group, place, level.shape, np.dtype(dtype), version)
            for box in geometry.boxes(level.shape, BOX):
                block = geometry.box_slices(box)
                array[block] = level.read(block).astype(dtype, copy=False)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """InputError unless `path` is free, or a Zarr that may be replaced; a run never is."""
    if not path.exists() and not path.is_symlink():
        return
    if RunStore.exists(path):
        raise InputError(f"{path}: a run, which no export replaces; choose another name")
    if not path.is_dir() or path.is_symlink() or not any((path / marker).is_file() for marker in _MARKERS):
        raise InputError(f"{path}: is there already, and no Zarr of its own; choose another name")
    if not overwrite:
        raise InputError(f"{path}: is there already; give --overwrite to replace it, or choose another name")


def _array(group: zarr.Group, name: str, shape: Shape3, dtype: np.dtype[Any], version: Version) -> zarr.Array[Any]:
    chunks = tuple(min(c, n) for c, n in zip(CHUNK, shape, strict=True))
    common: dict[str, Any] = {"shape": shape, "chunks": chunks, "dtype": dtype, "fill_value": 0}
    if version == "0.4":
        return group.create_array(
            name,
            **common,
            compressors=numcodecs.Blosc("zstd", clevel=1),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return group.create_array(name, **common, compressors=[ZstdCodec(level=1)], dimension_names=("z", "y", "x"))
