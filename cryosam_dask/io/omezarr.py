"""OME-Zarr tomograms, versions 0.4 (Zarr v2) and 0.5 (Zarr v3), local or behind any fsspec URL.

Specification: https://ngff.openmicroscopy.org/0.5/ (multiscales, axes, coordinate transformations).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import zarr

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.frame import (
    Block,
    Described,
    changed,
    check_block,
    check_volume,
    one_line_errors,
    size_and_type,
    unset_voxel_size,
    voxel_dtype,
)
from cryosam_dask.io.ngff import axes_and_units, spatial_axes, to_angstrom, transform
from cryosam_dask.io.omezarr_levels import finest_level
from cryosam_dask.io.omezarr_open import first_multiscale, level_array, ome_of, one_line, open_node
from cryosam_dask.storage.filesystem import publicly
from cryosam_dask.types import AXES, Array, Point, Shape3

_MOST_SAMPLED_CHUNKS = 4000
_LEVEL_DEPTH = 3  # groups between an image and its levels' arrays at most
_AT_ONCE = 1 << 25  # bytes of decoded chunks, or one chunk
_SAMPLE = 32  # voxels along a side of the three cubes that identify an image


@dataclass(frozen=True)
class ZarrSource(Described):
    """A tomogram in one resolution level of an OME-Zarr image; see `TomogramSource`.

    Besides the contract's attributes: `url` of the group, `level` (the array's path in it) and `spatial`, the
    array's axes that are z, y, x. Any other axis has length 1.
    """

    url: str
    level: str
    spatial: tuple[int, int, int]
    chunk: Shape3

    @property
    def scratch(self) -> int:
        """See `TomogramSource`: chunks as they are stored, decoded, and put together, and a copy that zarr makes."""
        chunk, whole = math.prod(self.chunk), math.prod(self.shape)
        return 4 * max(chunk * self.dtype.itemsize, min(_AT_ONCE, whole * self.dtype.itemsize))

    @one_line_errors()
    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`. Memory: the box and `_AT_ONCE` bytes, or a chunk or two."""
        publicly(self.url)
        node = open_node(self.url)
        if not isinstance(node, zarr.Group):
            raise changed(self.url, "an array", "a group")
        array = level_array(node, self.url, self.level)
        sides = tuple(array.shape[axis] for axis in self.spatial if axis < array.ndim)
        dtype, count = voxel_dtype(self.url, array.dtype), math.prod(self.shape)
        if (sides, dtype, math.prod(array.shape)) != (self.shape, self.dtype, count):
            now, known = size_and_type(array.shape, dtype), size_and_type(self.shape, self.dtype)
            raise changed(f"{self.url}/{self.level}", now, known)
        return _read_block(array, self, check_block(slices, self.shape))


@one_line_errors()
def open_omezarr(url: str, *, voxel_size: Point | None = None) -> ZarrSource:
    """Read and check the metadata of the OME-Zarr image at `url`; only three small cubes of voxels are loaded.

    Parameters
    ----------
    url : a directory or fsspec URL of the image's group (the finest level is read), or of one of its level's arrays
    voxel_size : Å (z, y, x), instead of the file's own

    Raises InputError where there is no such image, or it is not one 3D volume of real numbers, or it does not state its
    voxel size in a known unit and `voxel_size` is None.
    """
    url = url.rstrip("/")
    publicly(url)
    group, url, multiscale, dataset, level_notes = _find_level(url, voxel_size is not None)
    level = str(dataset["path"])
    array = level_array(group, url, level)
    where = f"{url}/{level}"
    names, units = axes_and_units(where, multiscale, array.ndim)
    spatial = spatial_axes(where, names, array.shape)
    z, y, x = (int(array.shape[axis]) for axis in spatial)
    check_volume(where, (z, y, x))
    _check_chunks(where, array)
    dtype = voxel_dtype(where, array.dtype)
    scale, shift = transform(where, multiscale, dataset, array.ndim)
    sizes, origin = to_angstrom(where, spatial, scale, shift, units, voxel_size)
    notes = () if voxel_size else unset_voxel_size(sizes)
    if (count := len(ome_of(group)["multiscales"])) > 1:
        notes += (f"{count} multiscale images in it; the first is read",)
    notes += level_notes
    source = ZarrSource(
        url=url,
        level=level,
        shape=(z, y, x),
        dtype=dtype,
        voxel_size=sizes,
        origin=origin,
        identity={},
        notes=notes,
        spatial=spatial,
        chunk=tuple(int(array.chunks[axis]) for axis in spatial),  # type: ignore[arg-type]
    )
    source.identity.update(_identity(source, array, multiscale))
    return source


def _find_level(url: str, sized: bool) -> tuple[zarr.Group, str, dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The image's group, its address, its first multiscale, and the dataset asked for, with notes (`finest_level`)."""
    node = open_node(url)
    if isinstance(node, zarr.Group):
        multiscale = first_multiscale(url, node)
        return node, url, multiscale, *finest_level(node, url, multiscale, sized)
    head, tail = url, ""
    for _ in range(_LEVEL_DEPTH):
        head, _slash, name = head.rpartition("/")
        if not head or head.endswith("/"):
            break
        tail = f"{name}/{tail}".rstrip("/")
        try:
            parent = open_node(head)
            multiscale = first_multiscale(head, parent) if isinstance(parent, zarr.Group) else {"datasets": []}
        except InputError:
            continue
        for dataset in multiscale["datasets"]:
            if isinstance(parent, zarr.Group) and dataset["path"] == tail:
                return parent, head, multiscale, dataset, ()
    raise InputError(
        f"{url}: a bare Zarr array of shape {node.shape}, expected an OME-Zarr image: a group with 'multiscales'"
    )


def _check_chunks(where: str, array: zarr.Array[Any]) -> None:
    """Refuse chunks so small that reading would never end; the size of larger chunks is checked where they are
    decoded."""
    chunks = math.prod(-(-min(n, _SAMPLE) // c) for n, c in zip(array.shape, array.chunks, strict=True))
    if chunks > _MOST_SAMPLED_CHUNKS:
        raise InputError(
            f"{where}: stored in chunks of {' x '.join(map(str, array.chunks))} voxels, too small to be read in good "
            "time: write it with larger ones, e.g. 128 x 128 x 128"
        )


def _read_block(array: zarr.Array[Any], source: ZarrSource, block: Block) -> Array:
    """Read a block in pieces of `_AT_ONCE` bytes of chunks, since zarr decodes all chunks of a request at once."""
    out = np.empty([part.stop - part.start for part in block], source.dtype)
    if not out.size:
        return out
    left = sorted(source.spatial)
    for piece in _pieces(array, source, block):
        selection: list[int | slice] = [0] * array.ndim
        for axis, part in zip(source.spatial, piece, strict=True):
            selection[axis] = part
        try:
            values = np.asarray(array[tuple(selection)])
        except StoreError:  # the storage, not what lies in it
            raise
        except Exception as err:
            place = ", ".join(f"{axis} {part.start}:{part.stop}" for axis, part in zip(AXES, piece, strict=True))
            raise InputError(f"{source.url}/{source.level}: damaged at {place}: {one_line(err)}") from err
        target = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(piece, block, strict=True))
        out[target] = values.transpose([left.index(axis) for axis in source.spatial])
    return out


def _pieces(array: zarr.Array[Any], source: ZarrSource, block: Block) -> Iterator[Block]:
    """Cut a block at borders of chunks: along x as much as fits, then along y, then along z."""
    chunks = [array.chunks[axis] for axis in source.spatial]
    room = max(1, _AT_ONCE // (math.prod(array.chunks) * array.dtype.itemsize))
    sides: list[list[slice]] = []
    for part, chunk in reversed(list(zip(block, chunks, strict=True))):
        first, last = part.start // chunk, -(-part.stop // chunk)
        step = max(1, min(room, last - first))
        room //= step
        cuts = [max(part.start, n * chunk) for n in range(first, last, step)]
        sides.append([slice(a, b) for a, b in zip(cuts, [*cuts[1:], part.stop], strict=True)])
    x, y, z = sides
    yield from product(z, y, x)


def _identity(source: ZarrSource, array: zarr.Array[Any], multiscale: dict[str, Any]) -> dict[str, Any]:
    """The identity: metadata, and voxels at both ends and in the middle, so that a copy elsewhere is the same
    tomogram."""
    digest = hashlib.sha256(json.dumps(multiscale, sort_keys=True, default=str).encode())
    for place in (0.0, 0.5, 1.0):
        starts = [int(place * max(n - _SAMPLE, 0)) for n in source.shape]
        z, y, x = (slice(a, min(a + _SAMPLE, n)) for a, n in zip(starts, source.shape, strict=True))
        digest.update(_read_block(array, source, (z, y, x)).tobytes())
    return {
        "format": "ome-zarr",
        "name": source.url.rpartition("/")[2],
        "level": source.level,
        "sha256_sampled": digest.hexdigest(),
        "shape": list(source.shape),
        "dtype": source.dtype.name,
        "voxel_size": list(source.voxel_size),
    }
