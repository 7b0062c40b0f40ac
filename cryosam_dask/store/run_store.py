"""A run's store: one zarr v3 group per tomogram, on local disk or behind an fsspec URL."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from cryosam_dask.errors import StoreError
from cryosam_dask.storage.address import check_store
from cryosam_dask.storage.disk import flush, remove_tree, walk
from cryosam_dask.storage.filesystem import filesystem, zarr_store
from cryosam_dask.storage.remote import as_known
from cryosam_dask.store import layout, whole_chunks
from cryosam_dask.store.arrays import RunArray, about_to_write, check_kind
from cryosam_dask.types import Array, Json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """Check the name of a query, which becomes a folder: up to 64 letters, digits, `.`, `_`, `-`, a letter or digit
    first."""
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
        self._open: dict[str, RunArray] = {}

    @classmethod
    def open(cls, url: str | Path, mode: Literal["r", "r+"] = "r") -> RunStore:
        """Open an existing store; `StoreError` if there is none, or it is another program's or format version's."""
        url = str(url)
        try:
            root = _root(url, mode)
        except FileNotFoundError:
            raise StoreError(f"{url}: no run found here; make one with `cryosam run` or `cryosam ingest`") from None
        except PermissionError as error:
            raise StoreError(f"{url}: no permission to open it ({error.strerror})") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{url}: can't be opened as a zarr group: {_first_line(error)}") from None
        description = root.attrs.get("cryosam")
        if not isinstance(description, dict) or "format" not in description:
            raise StoreError(f"{url}: a zarr group, but not a run of cryosam_dask (no 'cryosam' attribute)")
        if description["format"] != layout.FORMAT:
            raise StoreError(
                f"{url}: store format {description['format']}, this version reads {layout.FORMAT}; "
                "run again into a new store, or use the version that made it"
            )
        if description.get("removed"):
            raise StoreError(f"{url}: was being replaced when that was interrupted; the same command begins it anew")
        return cls(url, root)

    @classmethod
    def create(cls, url: str | Path, attributes: Json) -> RunStore:
        """Create an empty store; `StoreError` if something is there already, or the store can't be written."""
        url = str(url)
        check_store(url)
        _check_free(url)
        try:
            about = {"cryosam": {"format": layout.FORMAT, **attributes}}
            root = zarr.create_group(zarr_store(url, read_only=False), attributes=about)
        except (FileExistsError, zarr.errors.ContainsGroupError, zarr.errors.ContainsArrayError):
            raise StoreError(f"{url}: exists already; continue with the same settings, or give --overwrite") from None
        except OSError as error:
            raise StoreError(f"{url}: can't be written ({error.strerror or _first_line(error)})") from None
        store = cls(url, root)
        store._flush()
        return store

    @classmethod
    def remove(cls, url: str | Path) -> None:
        """Delete a run of this program and version. An interrupted removal is recognized, and can be ended later."""
        url = str(url)
        if not cls.is_removed(url):
            cls.open(url, "r+").root.attrs.put({"cryosam": {"format": layout.FORMAT, "removed": True}})
        store = cls(url, _root(url, "r+"))
        for name in store.names():
            if name != "zarr.json":
                store.delete(name)
        if store._folder is None:
            files, path = filesystem(url)
            files.rm(path, recursive=True)
            return
        (store._folder / "zarr.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a link to a folder stays
            store._folder.rmdir()

    @classmethod
    def is_removed(cls, url: str | Path) -> bool:
        """Whether the run at `url` is one whose removal was interrupted."""
        try:
            description = _root(str(url), "r").attrs.get("cryosam")
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return isinstance(description, dict) and description.get("removed") is True

    @classmethod
    def exists(cls, url: str | Path) -> bool:
        """Whether a run of this program, of any version, is at `url`."""
        try:
            return "cryosam" in _root(str(url), "r").attrs
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def info(self) -> Json:
        """The run's description in the root: input, shape, voxel size, statistics, versions."""
        description = self.root.attrs["cryosam"]
        assert isinstance(description, dict)
        return dict(description)

    def update_info(self, **values: Any) -> None:
        """Add to `info`; only the driver does that."""
        self.root.attrs["cryosam"] = {**self.info, **values}
        self._flush()

    def _three(self, name: str) -> tuple[float, float, float]:
        value: Any = self.info.get(name)
        try:
            z, y, x = value
            return float(z), float(y), float(x)
        except (TypeError, ValueError):
            raise StoreError(f"{self.url}: zarr.json is damaged: {name} is {value}, expected three numbers") from None

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self._three("shape")
        return int(z), int(y), int(x)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Ångström per voxel along z, y, x."""
        return self._three("voxel_size")

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of the centre of voxel (0, 0, 0) in ångström, along z, y, x."""
        return self._three("origin")

    def files(self, path: str = "") -> Iterator[tuple[str, int]]:
        """List all files under a group or an array: paths in the store and sizes in bytes, without links."""
        if self._folder is not None:
            yield from walk(self._folder, path)
            return
        files, root = filesystem(self.url)
        try:
            listing = files.find(f"{root}/{path}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return
        start = len(root.strip("/")) + 1
        yield from ((str(key).strip("/")[start:], int(about.get("size") or 0)) for key, about in listing.items())

    def chunk_names(self, path: str) -> list[str]:
        """Names of the chunks that a one-dimensional array has on disk, by listing and without reading them."""
        files, root = filesystem(self.url)
        try:
            return [str(key).rpartition("/")[2] for key in files.ls(f"{root}/{path}/c", detail=False)]
        except FileNotFoundError:
            return []

    def read_metadata(self, path: str) -> bytes:
        """Read the stored metadata of an array; `FileNotFoundError` if there is none."""
        files, root = filesystem(self.url)
        return bytes(files.cat_file(f"{root}/{path}/zarr.json"))

    def read_chunk(self, path: str, index: int) -> bytes:
        """A chunk of a one-dimensional array as it is stored, compressed and with its checksum."""
        files, key = self._chunk(path, index)
        return bytes(files.cat_file(key))

    def write_chunk(self, path: str, index: int, stored: bytes) -> None:
        """Write a chunk of a one-dimensional array that has others already, as `read_chunk` gives it."""
        files, key = self._chunk(path, index)
        if self._folder is None:
            files.pipe_file(key, stored)
            return
        # whole or not at all, as zarr writes
        temporary = Path(f"{key}.{secrets.token_hex(8)}.partial")
        try:
            temporary.write_bytes(stored)
            temporary.replace(key)
        finally:
            temporary.unlink(missing_ok=True)

    def keep(self, path: str) -> None:
        """Force a small array of two dimensions, of one chunk, to the disk: no power failure then takes it away."""
        if self._folder is not None:
            array, chunk = self._folder / path, self._folder / path / "c" / "0"
            flush(chunk / "0", chunk, array / "zarr.json", array, array.parent)

    def stamp(self, path: str) -> object:
        """What changes whenever a file of the store is written again, without reading it; None if it is not there."""
        if self._folder is not None:
            try:
                status = (self._folder / path).stat()
            except OSError:
                return None
            return status.st_mtime_ns, status.st_size, status.st_ino
        files, root = filesystem(self.url)
        try:
            told = files.info(f"{root}/{path}")
        except (OSError, ValueError):
            return None
        return _stamp(told)

    def stamps(self, path: str) -> dict[str, object]:
        """Stamps of all files under a group, by their paths in the store; in object storage by listing alone."""
        if self._folder is not None:
            return {file: self.stamp(file) for file, _ in walk(self._folder, path)}
        files, root = filesystem(self.url)
        try:
            listing = files.find(f"{root}/{path}", detail=True)
        except FileNotFoundError:
            return {}
        start = len(root.strip("/")) + 1
        return {str(key).strip("/")[start:]: _stamp(told) for key, told in listing.items()}

    def _chunk(self, path: str, index: int) -> tuple[Any, str]:
        files, root = filesystem(self.url)
        return files, f"{root}/{path}/c/{index}"

    def __contains__(self, path: str) -> bool:
        return self._get(path) is not None

    def array(self, path: str) -> RunArray:
        """An array of the store; `StoreError` if it is not there, or of a kind that this program does not write."""
        # opening an array reads its metadata, which costs as much as a small chunk does
        if path not in self._open:
            array = self._get(path)
            if not isinstance(array, zarr.Array):
                raise StoreError(f"{self.url}: no array {path!r}; the stage that makes it has not run")
            check_kind(self.url, path, array)
            self._open[path] = RunArray(array, self.url)
        return self._open[path]

    def close(self, path: str) -> None:
        """Forget an array's metadata, which is kept in memory."""
        self._open.pop(path, None)

    def _get(self, path: str) -> zarr.Array[Any] | zarr.Group | None:
        try:
            return self.root.get(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.url}: {path}/zarr.json is damaged ({_first_line(error)}); `cryosam verify {self.url} --repair` "
                "and then the same command make it again"
            ) from None

    def read(self, path: str, part: Any = ...) -> Array:
        """Read a part of an array into memory."""
        return np.asarray(self.array(path)[part])

    def group(self, path: str) -> zarr.Group:
        """A group of the store; it is created if it does not exist."""
        self._check_place(path)
        node = self._get(path)
        return node if isinstance(node, zarr.Group) else self.root.require_group(path)

    def groups(self, path: str) -> list[str]:
        """Names of the groups in a group, without other entries; empty if the group does not exist."""
        groups = []
        for name in self.names(path):
            with contextlib.suppress(StoreError):
                self._check_place(f"{path}/{name}")
                if isinstance(self._get(f"{path}/{name}"), zarr.Group):
                    groups.append(name)
        return groups

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
        compress: bool = True,
    ) -> RunArray:
        """Create an array, replacing one of that name; zstd-compressed, each chunk with a crc32c checksum.

        Without `compress` its chunks are the same, but nobody tries to make them smaller: for what is noise to a
        compressor. Empty chunks are written too, so that a chunk that is not there is one that was lost.
        """
        about_to_write()
        self._open.pop(path, None)
        self._check_place(path)
        parent, _, name = path.rpartition("/")
        group = as_known(self.group(parent) if parent else self.root)
        array = group.create_array(
            name,
            shape=tuple(int(n) for n in shape),
            dtype=np.dtype(dtype),
            chunks=tuple(max(1, min(int(c), int(n))) for c, n in zip(chunks, shape, strict=True)),
            compressors=[ZstdCodec(level=1 if compress else whole_chunks.LEVEL), Crc32cCodec()],
            fill_value=fill_value,
            dimension_names=tuple(dims),
            attributes=dict(attributes or {}),
            overwrite=True,
            config={"write_empty_chunks": True},
        )
        return RunArray(array, self.url)

    def put(self, path: str, values: Array, dims: Sequence[str], attributes: Mapping[str, Any] | None = None) -> None:
        """Write a whole small array as one chunk."""
        array = self.new_array(
            path, shape=values.shape, dtype=values.dtype, chunks=values.shape, dims=dims, attributes=attributes
        )
        if values.size:
            array[...] = values

    def delete(self, path: str) -> None:
        """Remove an array, or a group with all in it, or the rest that an interrupted removal left.

        Links are removed, not followed.
        """
        about_to_write()
        self._open.clear()
        self._check_place(path, last=False)
        if self._folder is not None:
            remove_tree(self._folder / path)
        elif isinstance(self.root.store, MemoryStore):
            with contextlib.suppress(KeyError):
                del self.root[path]
        else:
            files, root = filesystem(self.url)
            with contextlib.suppress(FileNotFoundError):
                files.rm(f"{root}/{path}", recursive=True)

    @property
    def _folder(self) -> Path | None:
        """The folder of a store on a local disk."""
        store = self.root.store
        return store.root if isinstance(store, LocalStore) else None

    def names(self, path: str = "") -> list[str]:
        """Names of all that is in the store's own folder, or in that of a group."""
        try:
            if self._folder is not None:
                return sorted(entry.name for entry in (self._folder / path).iterdir())
            files, root = filesystem(self.url)
            keys = files.ls(f"{root}/{path}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(key).rstrip("/").rpartition("/")[2] for key in keys})

    def _check_place(self, path: str, last: bool = True) -> None:
        """Check that a path stays inside of the store: it neither leads out of it nor goes through a link.

        last : check also that the last name is not a link
        """
        names = path.split("/")
        if any(name in ("", ".", "..") or "\0" in name or "\\" in name for name in names):
            raise StoreError(f"{self.url}: {path!r} is no place in a store")
        if self._folder is None:
            return
        for count in range(1, len(names) + last):
            here = "/".join(names[:count])
            if (self._folder / here).is_symlink():
                raise StoreError(f"{self.url}: {here} is a link, of which a run has none; remove it and run again")

    def _flush(self) -> None:
        """Force the root's metadata to the disk: without it nothing else can be found after a power failure."""
        if self._folder is not None:
            flush(self._folder / "zarr.json", self._folder)


def _check_free(url: str) -> None:
    """`StoreError` unless nothing is there, or an empty folder: a new store must not mix with other files."""
    try:
        files, path = filesystem(url)
        names = [str(key) for key in files.ls(path, detail=False)] if files.isdir(path) else []
        # a crash may have left what was to become the first file
        taken = files.isfile(path) or any(not name.endswith(".partial") for name in names)
    except PermissionError as error:
        raise StoreError(f"{url}: can't be written ({error.strerror})") from None
    if taken:
        raise StoreError(f"{url}: holds something that is not a run of cryosam_dask; choose another --out")


def _root(url: str, mode: Literal["r", "r+"]) -> zarr.Group:
    return zarr.open_group(zarr_store(url, read_only=mode == "r"), mode=mode, zarr_format=3)


def _stamp(told: Mapping[str, Any]) -> str:
    """What object storage says of a file that is another once it is written again."""
    return str({key: told.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created")})


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
