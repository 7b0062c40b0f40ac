"""Open groups, images and arrays of an OME-Zarr; errors of a store, of a network and of damaged files become one
line."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import WrapperStore

from cryosam_dask.errors import CryosamError, InputError, StoreError
from cryosam_dask.io.codecs import guarded
from cryosam_dask.io.frame import regular_file, shown
from cryosam_dask.storage.errors import DENIED
from cryosam_dask.storage.filesystem import zarr_store

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_METADATA_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
_MOST_METADATA = 1 << 24  # bytes; an image's take some thousands


def open_node(url: str) -> zarr.Group | zarr.Array[Any]:
    """The Zarr node at `url`; errors of a store or a network become one line."""
    _check_metadata_files(url)
    try:
        store = zarr_store(url, read_only=True)
    except StoreError as err:  # the address: nothing has been asked for yet
        raise InputError(str(err)) from None
    hidden: list[StoreError] = []
    if isinstance(store, Store):
        store = _Unlisted(store, hidden)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return zarr.open(store=store, mode="r")
    except CryosamError:
        raise
    except FileNotFoundError as err:
        if hidden:
            raise hidden[0] from None
        raise InputError(f"{url}: no Zarr group or array there") from err
    except Exception as err:
        raise InputError(f"{url}: can't be opened as Zarr: {one_line(err)}") from err


class _Unlisted(WrapperStore[Store]):
    """Storage that answers "access denied" for a missing key, as buckets with a private listing do. For metadata, which
    exists in two versions of which one is always missing, that answer means "missing". For a chunk it is an error, as
    it is for an image without any metadata; `denied` then has the storage's message.
    """

    def __init__(self, store: Store, denied: list[StoreError]) -> None:
        super().__init__(store)
        self._denied = denied

    def _with_store(self, store: Store) -> _Unlisted:
        return _Unlisted(store, self._denied)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            return await self._store.get(key, prototype, byte_range)
        except StoreError as err:
            if key.rpartition("/")[2] not in _METADATA_FILES or DENIED not in str(err):
                raise
            self._denied.append(err)
            return None

    async def exists(self, key: str) -> bool:
        return await self.get(key, default_buffer_prototype(), RangeByteRequest(0, 1)) is not None


def one_line(err: Exception) -> str:
    return shown(str(err)) or type(err).__name__


def _check_metadata_files(folder: str) -> None:
    """Refuse a local `folder` whose metadata would fill the memory, or block: they are read whole."""
    if "://" in folder or "::" in folder:
        return
    for path in (Path(folder, name) for name in _METADATA_FILES):
        if os.access(path, os.F_OK) and (size := regular_file(path).st_size) > _MOST_METADATA:
            raise InputError(f"{path}: {size} bytes of metadata, expected {_MOST_METADATA} at most")


def ome_of(group: zarr.Group) -> dict[str, Any]:
    """The part of the attributes that OME-Zarr defines; before version 0.5 that is all of them."""
    attrs: dict[str, Any] = dict(group.attrs)
    ome = attrs.get("ome", attrs)
    return ome if isinstance(ome, dict) else {}


def first_multiscale(url: str, group: zarr.Group) -> dict[str, Any]:
    """The first multiscale of the group, checked to list at least one dataset with a path."""
    attrs: dict[str, Any] = dict(group.attrs)
    ome = ome_of(group)
    if "image-label" in ome:
        raise InputError(f"{url}: a labels image, expected a tomogram: give the image it belongs to")
    if "labels" in ome or url.endswith("/labels"):
        raise InputError(f"{url}: a collection of labels, expected a tomogram: give the image it belongs to")
    scales = ome.get("multiscales")
    first = scales[0] if isinstance(scales, list) and scales else None
    if not isinstance(first, dict):
        held = shown(", ".join(sorted({*attrs, *ome})) or "none")
        several = "bioformats2raw.layout" in {*attrs, *ome}
        raise InputError(
            f"{url}: not an OME-Zarr image: no 'multiscales' among its attributes ({held})"
            + (f"; it holds several, give one as {url}/0" if several else "")
        )
    datasets = first.get("datasets")
    if not (isinstance(datasets, list) and datasets and all(_has_path(d) for d in datasets)):
        raise InputError(f"{url}: damaged OME-Zarr metadata: 'multiscales' lists no datasets with a path")
    outside = next((d["path"] for d in datasets if not _is_inside(d["path"])), None)
    if outside is not None:
        raise InputError(f"{url}: its metadata lists the array {shown(outside)!r}, a path that is not inside the image")
    return first


def _has_path(dataset: Any) -> bool:
    return isinstance(dataset, dict) and isinstance(dataset.get("path"), str)


def _is_inside(path: str) -> bool:
    """Whether a path in the metadata is a plain one below the image's folder, on every system."""
    parts = path.split("/")
    return path.isprintable() and not {"", ".", ".."} & set(parts) and not set(path) & set("\\:")


def level_array(group: zarr.Group, url: str, level: str) -> zarr.Array[Any]:
    """The level's array, checked and `guarded`."""
    where = f"{url}/{level}"
    _check_metadata_files(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # newer zarr takes such an array for one without any chunk, which is damage here
            warnings.filterwarnings("error", message=".*stored chunk shape", category=UserWarning)
            node = group[level]
            if isinstance(node, zarr.Array):
                return guarded(where, node)
    except CryosamError:
        raise
    except KeyError as err:
        raise InputError(f"{url}: its metadata lists the array {shown(level)!r}, which is not there") from err
    except Exception as err:
        raise InputError(f"{where}: can't be opened as Zarr: {one_line(err)}") from err
    raise InputError(f"{url}: its metadata lists {shown(level)!r}, which is not an array")
