"""Tomograms in HDF5 files: EMAN2's `.hdf`, ilastik's exports, and any file with one volume in it.

A file may come from anywhere, so nothing that leads out of it is followed: soft and external links, data in other
files (external storage, virtual datasets), filters that are plugins. Compressed chunks are decoded here, each up to its
own size at most; HDF5's own decoder allocates as much as a chunk claims.

Layouts: EMAN2 (libEM/hdfio2.cpp): `MDF/images/0/image`, attributes `EMAN.apix_x` … of the group above, in Å. ilastik:
`exported_data`, with vigra's `axistags`. `element_size_um`: (z, y, x) in µm, as Fiji's HDF5 plugin reads and writes it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.io.flat import first_bytes, identity, sampled_hash
from cryosam_dask.io.frame import (
    ASK_VOXEL_SIZE,
    Block,
    Described,
    changed,
    check_block,
    check_volume,
    one_line_errors,
    owned,
    plausible_voxel,
    regular_file,
    same_size,
    shown,
    size_and_type,
    squeezed,
    unset_voxel_size,
    voxel_dtype,
)
from cryosam_dask.io.hdf5_chunks import check_stored, read_box
from cryosam_dask.types import AXES, Array, Point, Shape3

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_EMAN, _ILASTIK = "MDF/images/0/image", "exported_data"
_MOST_OBJECTS, _DEEPEST, _LISTED = 10_000, 16, 8


@dataclass(frozen=True)
class Hdf5Source(Described):
    """A tomogram in a dataset of an HDF5 file; see `TomogramSource`.

    Besides the contract's attributes: `path`, `dataset` (its path in the file) and `spatial`, the dataset's axes
    that are z, y, x. Any other axis has length 1.
    """

    path: Path
    dataset: str
    spatial: tuple[int, int, int]
    chunk: Shape3

    @property
    def scratch(self) -> int:
        """See `TomogramSource`: a chunk as it is stored, decoded, and turned."""
        return 4 * math.prod(self.chunk) * self.dtype.itemsize

    @one_line_errors()
    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`. Memory: the box, twice where its type is turned, and a few times one chunk."""
        block = check_block(slices, self.shape)
        same_size(self.path, self.identity["bytes"])
        with _opened(self.path) as file:
            data = _checked(self.path, file, self.dataset)
            volume = _volume(f"{self.path}/{self.dataset}", data)
            if volume != (self.spatial, self.shape, self.dtype):
                raise changed(self.path, size_and_type(*volume[1:]), size_and_type(self.shape, self.dtype))
            box = [slice(0, 1)] * data.ndim
            for axis, part in zip(self.spatial, block, strict=True):
                box[axis] = part
            values = read_box(self.path, data, box)
        if values.dtype.kind == "b":
            values = values.view(np.uint8) != 0
        if self.spatial == (0, 1, 2) == tuple(range(values.ndim)) and values.dtype == self.dtype:
            return values
        left = sorted(self.spatial)
        turned = values.reshape([values.shape[axis] for axis in left])
        return owned(turned.transpose([left.index(axis) for axis in self.spatial]), self.dtype)


@one_line_errors()
def open_hdf5(path: Path, *, name: str = "", voxel_size: Point | None = None) -> Hdf5Source:
    """Read and check the description of a volume in the HDF5 file at `path`; no voxel is loaded.

    Parameters
    ----------
    path : an HDF5 file on a local or mounted disk
    name : path of the dataset in it; without one EMAN2's first image, ilastik's export, or the only volume
    voxel_size : Å (z, y, x), instead of the file's

    Raises InputError for a file that is missing, truncated, no HDF5, without a volume or with several, one that needs
    other files, and where nobody tells the voxel size.
    """
    size = regular_file(path).st_size
    if not (start := first_bytes(path, 8)).startswith(_SIGNATURE):
        raise InputError(f"{path}: {'not an HDF5 file: it does not begin as one' if start else 'empty'}")
    with _opened(path) as file:
        name = name.strip("/") or _only_volume(path, file)
        data = _checked(path, file, name)
        where = f"{path}/{name}"
        spatial, shape, dtype = _volume(where, data)
        own, told = _voxel_size(file, name, data)
        notes = _notes(file, name) + (() if voxel_size or not own else unset_voxel_size(own))
        z, y, x = (int(data.chunks[axis]) if data.chunks else 1 for axis in spatial)
    sizes = voxel_size or own
    if sizes is None:
        why = f" (it says {shown(told)})" if told else ""
        raise InputError(f"{where}: the file gives no usable voxel size; {ASK_VOXEL_SIZE}{why}")
    known = identity("hdf5", path.name, size, sampled_hash(path, size), shape, dtype, sizes, dataset=name)
    return Hdf5Source(
        path=path.absolute(),
        dataset=name,
        shape=shape,
        dtype=dtype,
        voxel_size=sizes,
        origin=(0.0, 0.0, 0.0),
        identity=known,
        notes=notes,
        spatial=spatial,
        chunk=(z, y, x),
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; errors of HDF5 become one line. Files on shared disks need not be locked to be read."""
    import h5py

    try:
        with warnings.catch_warnings(), h5py.File(path, "r", locking=False, rdcc_nbytes=0) as file:
            warnings.simplefilter("ignore")
            yield file
    except CryosamError:
        raise
    except Exception as err:
        raise InputError(f"{path}: damaged, or can't be read as HDF5: {shown(str(err)) or type(err).__name__}") from err


def _only_volume(path: Path, file: Any) -> str:
    for usual in (_EMAN, _ILASTIK):
        if _node(file, usual) is not None:
            return usual
    datasets = [(name, data.shape) for name, data in _datasets(path, file)]
    volumes = [name for name, shape in datasets if len(squeezed(shape)) == 3 and min(squeezed(shape)) > 1]
    if len(volumes) == 1:
        return volumes[0]
    listed = [f"{name} {shape}" for name, shape in datasets[:_LISTED]] + ["…"] * (len(datasets) > _LISTED)
    raise InputError(
        f"{path}: {len(volumes) or 'no'} volumes, expected one (it holds {shown(', '.join(listed)) or 'no datasets'})"
        + (f"; name one as {path.name}/{shown(volumes[0])}" if volumes else "")
    )


def _datasets(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    """Datasets and their paths, by links that stay in the file, in the order of their names."""
    import h5py

    waiting: list[tuple[str, Any]] = [("", file)]
    seen = 0
    while waiting:
        at, group = waiting.pop(0)
        for name in group:
            seen += 1
            if seen > _MOST_OBJECTS:
                raise InputError(f"{path}: more than {_MOST_OBJECTS} objects in it: name the one, as {path.name}/PATH")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            node, where = group.get(name), f"{at}/{name}".lstrip("/")
            if isinstance(node, h5py.Dataset) and node.shape is not None:
                yield where, node
            elif isinstance(node, h5py.Group) and where.count("/") < _DEEPEST:
                waiting.append((where, node))


def _node(file: Any, name: str) -> Any:
    """What lies at a path, going by hard links alone; None if nothing does."""
    import h5py

    node = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(part, getlink=True), h5py.HardLink):
            return None
        node = node.get(part)
    return node


def _checked(path: Path, file: Any, name: str) -> Any:
    """The dataset of that path, with all its voxels in this file, in chunks that can be decoded within bounds."""
    import h5py

    data, where = _node(file, name), f"{path}/{shown(name)}"
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        listed = [name for name, _ in _datasets(path, file)][: _LISTED + 1]
        raise InputError(
            f"{where}: no dataset there, or one behind a link, which is not followed; "
            f"it holds {shown(', '.join(listed)) or 'none'}"
        )
    check_stored(where, data)
    return data


def _volume(where: str, data: Any) -> tuple[tuple[int, int, int], Shape3, np.dtype[Any]]:
    """The axes of a dataset that are z, y, x, their lengths, and the type that it is read in."""
    dtype = voxel_dtype(where, data.dtype)
    spatial = _spatial(where, data)
    shape: Shape3 = tuple(int(data.shape[axis]) for axis in spatial)  # type: ignore[assignment]
    check_volume(where, shape)
    return spatial, shape, dtype


def _spatial(where: str, data: Any) -> tuple[int, int, int]:
    """Which axes are z, y, x: by `axistags` where there are any, else the ones longer than 1, in this order."""
    tags = _attribute(data, "axistags")
    if isinstance(tags, bytes | str):
        try:
            keys = [str(axis["key"]) for axis in json.loads(tags)["axes"]]
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise InputError(f"{where}: damaged axistags {shown(tags)}") from err
        others = [n for key, n in zip(keys, data.shape, strict=False) if key not in AXES]
        if len(keys) == data.ndim and all(keys.count(axis) == 1 for axis in AXES) and set(others) <= {1}:
            return (keys.index("z"), keys.index("y"), keys.index("x"))
        raise InputError(f"{where}: not one volume: axes {shown(', '.join(keys))}, shape {data.shape}")
    axes = [axis for axis, n in enumerate(data.shape) if n != 1 or data.ndim <= 3]
    if len(axes) != 3:
        raise InputError(f"{where}: not 3D: shape {data.shape}, expected z, y, x")
    return (axes[0], axes[1], axes[2])


def _voxel_size(file: Any, name: str, data: Any) -> tuple[Point | None, str]:
    """Å (z, y, x) by EMAN2's attributes or by `element_size_um`; None if neither is plausible, and what they state."""
    eman = _node(file, name.rpartition("/")[0]) if name.endswith("/image") else None
    candidates: list[tuple[str, float, list[Any]]] = []
    if eman is not None:
        candidates.append(("EMAN.apix", 1.0, [_attribute(eman, f"EMAN.apix_{axis}") for axis in AXES]))
    micrometres = _attribute(data, "element_size_um")
    if isinstance(micrometres, np.ndarray) and micrometres.size == 3 and micrometres.dtype.kind in "iuf":
        candidates.append(("element_size_um", 1e4, list(micrometres.ravel())))
    told = []
    for what, factor, given in candidates:
        try:
            z, y, x = (float(np.asarray(side).item()) for side in given)
        except (TypeError, ValueError):
            continue
        sizes = (_rounded(z * factor), _rounded(y * factor), _rounded(x * factor))
        if all(map(plausible_voxel, sizes)):
            return sizes, ""
        told.append(f"{what} z, y, x: {z:g}, {y:g}, {x:g}")
    return None, "; ".join(told)


def _rounded(size: float) -> float:
    """Six digits, which is what people and single precision write."""
    return float(f"{size:.6g}")


def _notes(file: Any, name: str) -> tuple[str, ...]:
    group = _node(file, name.rpartition("/")[0]) if "/" in name else None
    notes: tuple[str, ...] = ()
    if group is not None and _attribute(group, "EMAN.stored_renderbits"):
        notes = ("EMAN2 stored it as whole numbers, scaled; they are read as they are (the same up to a linear map)",)
    if name == _EMAN and group is not None and (count := len(group.parent)) > 1:
        notes += (f"{count} images in it; the first is read, the next would be named …/MDF/images/1/image",)
    return notes


def _attribute(node: Any, name: str) -> Any:
    """A small attribute's value; None where it is not there, large, or can't be read."""
    try:
        if name not in node.attrs or node.attrs.get_id(name).get_storage_size() > 1 << 16:
            return None
        value = node.attrs[name]
    except Exception:  # noqa: BLE001 - of a damaged file
        return None
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OSU" else value
