"""A run's store: one zarr v3 group per tomogram, on local disk or behind an fsspec URL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.codecs import Crc32cCodec, ZstdCodec

from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout
from cryosam_dask.types import Array

Json = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """Names of queries become folders: letters, digits, `.`, `_`, `-`, at most 64, not starting with a sign."""
    if not _NAME.fullmatch(name) or name.endswith("_semantic"):
        raise StoreError(
            f"name {name!r} can't be used: expected up to 64 letters, digits, '.', '_' or '-', starting with a "
            "letter or digit and not ending in '_semantic'"
        )
    return name


class RunStore:
    """An open store. Cheap to open; workers open their own by `url`.

    Attributes
    ----------
    url : path or fsspec URL; root : the zarr group
    """

    def __init__(self, url: str, root: zarr.Group) -> None:
        self.url = url
        self.root = root
        self._open: dict[str, zarr.Array[Any]] = {}

    @classmethod
    def open(cls, url: str | Path, mode: Literal["r", "r+"] = "r") -> RunStore:
        """Open an existing store; `StoreError` if there is none, it is not ours, or of another format version."""
        url = str(url)
        try:
            root = zarr.open_group(url, mode=mode)
        except FileNotFoundError:
            raise StoreError(f"{url}: no run found here; make one with `cryosam run` or `cryosam ingest`") from None
        except PermissionError as error:
            raise StoreError(f"{url}: no permission to open it ({error.strerror})") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{url}: can't be opened as a zarr group: {_first_line(error)}") from None
        found = root.attrs.get("cryosam")
        if not isinstance(found, dict) or "format" not in found:
            raise StoreError(f"{url}: a zarr group, but not a run of cryosam_dask (no 'cryosam' attribute)")
        if found["format"] != layout.FORMAT:
            raise StoreError(
                f"{url}: store format {found['format']}, this version reads {layout.FORMAT}; "
                "run again into a new store, or use the version that made it"
            )
        return cls(url, root)

    @classmethod
    def create(cls, url: str | Path, attributes: Json) -> RunStore:
        """Create an empty store; `StoreError` if something is there already or it can't be written."""
        url = str(url)
        _check_free(url)
        try:
            root = zarr.create_group(url, attributes={"cryosam": {"format": layout.FORMAT, **attributes}})
        except (FileExistsError, zarr.errors.ContainsGroupError, zarr.errors.ContainsArrayError):
            raise StoreError(f"{url}: exists already; continue with the same settings, or give --overwrite") from None
        except OSError as error:
            raise StoreError(f"{url}: can't be written ({error.strerror or _first_line(error)})") from None
        return cls(url, root)

    @classmethod
    def exists(cls, url: str | Path) -> bool:
        """Whether a run, ours and of any version, is at `url`."""
        try:
            return "cryosam" in zarr.open_group(str(url), mode="r").attrs
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def info(self) -> Json:
        """What the root says of the run: input, shape, voxel size, statistics, versions."""
        found = self.root.attrs["cryosam"]
        assert isinstance(found, dict)
        return dict(found)

    def update_info(self, **values: Any) -> None:
        """Add to `info`. Only the driver does."""
        self.root.attrs["cryosam"] = {**self.info, **values}

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.info["shape"]
        return int(z), int(y), int(x)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Ångström per voxel along z, y, x."""
        z, y, x = self.info["voxel_size"]
        return float(z), float(y), float(x)

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel (0, 0, 0)'s centre in ångström, along z, y, x."""
        z, y, x = self.info["origin"]
        return float(z), float(y), float(x)

    def chunk_names(self, path: str) -> list[str]:
        """Names of the chunks that a one-dimensional array has on disk, by listing and without reading them."""
        import fsspec

        filesystem, root = fsspec.url_to_fs(self.url)
        try:
            return [str(key).rpartition("/")[2] for key in filesystem.ls(f"{root}/{path}/c", detail=False)]
        except FileNotFoundError:
            return []

    def read_chunk(self, path: str, index: int) -> bytes:
        """A chunk of a one-dimensional array as it is stored, compressed and with its checksum."""
        filesystem, key = self._chunk(path, index)
        return bytes(filesystem.cat_file(key))

    def write_chunk(self, path: str, index: int, stored: bytes) -> None:
        """Write a chunk of a one-dimensional array that has others already, as `read_chunk` gives it."""
        filesystem, key = self._chunk(path, index)
        filesystem.pipe_file(key, stored)

    def _chunk(self, path: str, index: int) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.url_to_fs(self.url)
        return filesystem, f"{root}/{path}/c/{index}"

    def __contains__(self, path: str) -> bool:
        return path in self.root

    def array(self, path: str) -> zarr.Array[Any]:
        """An array of the store; `StoreError` if it is not there."""
        # opening an array reads its metadata, which costs as much as a small chunk does
        if path not in self._open:
            found = self.root.get(path)
            if not isinstance(found, zarr.Array):
                raise StoreError(f"{self.url}: no array {path!r}; the stage that makes it has not run")
            self._open[path] = found
        return self._open[path]

    def read(self, path: str, part: Any = ...) -> Array:
        """A part of an array, in memory."""
        return np.asarray(self.array(path)[part])

    def group(self, path: str) -> zarr.Group:
        """A group of the store, made if it is not there."""
        return self.root.require_group(path)

    def new_array(
        self,
        path: str,
        *,
        shape: Sequence[int],
        dtype: DTypeLike,
        chunks: Sequence[int],
        dims: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        fill_value: float = 0,
    ) -> zarr.Array[Any]:
        """Create an array, replacing one of that name; zstd-compressed, each chunk with a crc32c checksum.

        Empty chunks are written too, so that a chunk that is not there is one that was lost.
        """
        self._open.pop(path, None)
        parent, _, name = path.rpartition("/")
        group = self.root.require_group(parent) if parent else self.root
        return group.create_array(
            name,
            shape=tuple(int(n) for n in shape),
            dtype=np.dtype(dtype),
            chunks=tuple(max(1, min(int(c), int(n))) for c, n in zip(chunks, shape, strict=True)),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            fill_value=fill_value,
            dimension_names=tuple(dims),
            attributes=dict(attributes or {}),
            overwrite=True,
            config={"write_empty_chunks": True},
        )

    def put(self, path: str, values: Array, dims: Sequence[str], attributes: Mapping[str, Any] | None = None) -> None:
        """Write a whole small array as one chunk."""
        array = self.new_array(
            path, shape=values.shape, dtype=values.dtype, chunks=values.shape, dims=dims, attributes=attributes
        )
        if values.size:
            array[...] = values

    def delete(self, path: str) -> None:
        """Remove an array or a group and all under it, if it is there."""
        self._open.clear()
        if path in self.root:
            del self.root[path]


def _check_free(url: str) -> None:
    """A new store goes where nothing is, or into an empty folder: it must not mix with other people's files."""
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
        taken = filesystem.isfile(path) or (filesystem.isdir(path) and bool(filesystem.ls(path, detail=False)))
    except PermissionError as error:
        raise StoreError(f"{url}: can't be written ({error.strerror})") from None
    if taken:
        raise StoreError(f"{url}: holds something that is not a run of cryosam_dask; choose another --out")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
