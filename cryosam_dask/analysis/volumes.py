"""Volumes that are read box by box: labels of a run, files and arrays."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.outputs.results import check_painted
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Bool, Shape3

BLOCK: Shape3 = (32, 256, 256)
"""Voxels of a volume that are looked at together; whole chunks of a run's labels."""

CACHED_BLOCK: Shape3 = (32, 128, 128)
CACHED_BYTES = 48 << 20
"""What one task keeps of the blocks that it read last."""


class Volume(Protocol):
    """A volume (z, y, x) that pickles small and is read by boxes."""

    shape: Shape3

    def read(self, box: Box) -> Array: ...


class RunVolume:
    """An array of a run; opened where it is used."""

    def __init__(self, store: RunStore, path: str) -> None:
        z, y, x = (int(n) for n in store.array(path).shape)
        self.url, self.path, self.shape = store.url, path, (z, y, x)
        self._store: RunStore | None = store

    def read(self, box: Box) -> Array:
        if self._store is None:
            self._store = RunStore.open(self.url)
        return self._store.read(self.path, geometry.box_slices(box))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}


class FileVolume:
    """A tomogram or mask in a file."""

    def __init__(self, source: TomogramSource) -> None:
        self.source, self.shape = source, source.shape

    def read(self, box: Box) -> Array:
        return self.source.read(geometry.box_slices(box))


class ArrayVolume:
    """Any array that can be sliced: NumPy, Dask, zarr, xarray."""

    def __init__(self, array: Any) -> None:
        z, y, x = (int(n) for n in array.shape)
        self.array, self.shape = array, (z, y, x)

    def read(self, box: Box) -> Array:
        return np.asarray(self.array[geometry.box_slices(box)])


class Held:
    """Which voxels of a mask or labels are not background: a byte each to keep."""

    def __init__(self, volume: Volume) -> None:
        self.shape, self._volume = volume.shape, volume

    def read(self, box: Box) -> Array:
        return inside(self._volume.read(box))


class Cached:
    """A volume of which the blocks that were read last are kept: boxes of neighbours read each chunk once."""

    def __init__(self, volume: Volume, block: Shape3 = CACHED_BLOCK, limit: int = CACHED_BYTES) -> None:
        self.shape = volume.shape
        self._volume, self._block, self._limit = volume, block, limit
        self._kept: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self._bytes = 0

    def read(self, box: Box) -> Array:
        grid = [range(a // n, -(-b // n)) for (a, b), n in zip(box, self._block, strict=True)]
        if math.prod(map(len, grid)) * math.prod(self._block) > self._limit // 8:
            return self._volume.read(box)
        out: Array | None = None
        for index in itertools.product(*grid):
            values, own = self._get(index)
            common = geometry.intersect(own, box)
            assert common is not None
            if common == box:
                return values[geometry.box_slices(_from(box, own))]
            out = np.empty([b - a for a, b in box], values.dtype) if out is None else out
            out[geometry.box_slices(_from(common, box))] = values[geometry.box_slices(_from(common, own))]
        return out if out is not None else self._volume.read(box)

    def _get(self, index: tuple[int, ...]) -> tuple[Array, Box]:
        z, y, x = (
            (i * n, min((i + 1) * n, length)) for i, n, length in zip(index, self._block, self.shape, strict=True)
        )
        if index in self._kept:
            self._kept.move_to_end(index)
        else:
            self._kept[index] = self._volume.read((z, y, x))
            self._bytes += self._kept[index].nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return self._kept[index], (z, y, x)


def _from(box: Box, start: Box) -> Box:
    """A box counted from where another begins."""
    z, y, x = ((a - s, b - s) for (a, b), (s, _) in zip(box, start, strict=True))
    return z, y, x


def inside(values: Array) -> Bool:
    """Which voxels a mask or labels hold: all but 0 and NaN."""
    return np.asarray((values != 0) & (values == values), bool)


def checked_box(store: RunStore, role: str, given: Any) -> Box:
    """A box ((z0, z1), (y0, y1), (x0, x1)) that a user gave, voxels; `InputError` where it is none in the tomogram."""
    try:
        box = np.asarray(given)
        whole = box.astype(np.int64)
        if box.shape != (3, 2) or (whole != box).any():
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{role}: expected ((z0, z1), (y0, y1), (x0, x1)) in voxels, found {given!r}") from None
    if (whole[:, 0] < 0).any() or (whole[:, 0] >= whole[:, 1]).any() or (whole[:, 1] > store.shape).any():
        raise InputError(f"{role}: {given!r} is not inside the tomogram of {store.shape} voxels (z, y, x)")
    z, y, x = ((int(a), int(b)) for a, b in whole)
    return z, y, x


def labels_of(store: RunStore, image: str) -> RunVolume:
    """The finished labels of a query, `NAME`, or their union, `NAME_semantic`."""
    check_painted(store, image.removesuffix("_semantic"))
    return RunVolume(store, layout.labels(image))


def named_volume(store: RunStore, what: Any, role: str) -> tuple[str, Volume]:
    """The volume that the user gave as a mask or as labels, and a name for it.

    what : a query of the run, `NAME` or `NAME_semantic`; a file or URL that `open_tomogram` reads; an array (z, y, x)

    Raises `InputError` where it is none of these or has another shape than the run.
    """
    volume: Volume
    if isinstance(what, str | PathLike):
        name, volume = _by_name(store, str(what), role)
    else:
        # only xarray's names are the user's: Dask's are hashes
        dims, array = getattr(what, "dims", ()), what
        name = str((dims and what.name) or "mask")
        if set(dims) == set(AXES):
            array = array.transpose(*AXES)
        if len(getattr(array, "shape", ())) != 3:
            raise InputError(
                f"{role}: expected a query's name, a file or an array (z, y, x), found {type(what).__name__}"
            )
        volume = ArrayVolume(array)
    if tuple(volume.shape) != store.shape:
        raise InputError(f"{role} {name}: shape {tuple(volume.shape)}, the tomogram has {store.shape}")
    return name, volume


def _by_name(store: RunStore, text: str, role: str) -> tuple[str, Volume]:
    known = store.groups(layout.LABELS)
    if text in known:
        return text, labels_of(store, text)
    if "://" in text or Path(text).expanduser().exists():
        # masks seldom tell a voxel size; the shape is what is compared
        source = open_tomogram(text, voxel_size=store.voxel_size)
        return Path(text).name.split(".")[0] or "mask", FileVolume(source)
    raise InputError(
        f"{role} {text}: neither labels of {store.url} (it has {', '.join(known) or 'none'}) nor a file that is there"
    )
