"""Arrays of a run as the program opens them: a damaged or missing chunk is an error that names it, never zeros.

zarr reads a missing chunk as fill values, and its error for a damaged one does not name the chunk. All chunks of a run
are written, empty ones too. So a missing chunk was lost, or has not been written yet.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import StorePath, WrapperStore

from cryosam_dask.errors import StoreError
from cryosam_dask.store import local_chunks, whole_chunks

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

Index = tuple[int, ...]

CODECS = frozenset({"bytes", "zstd", "crc32c"})
"""The only codecs that the program writes. Arrays with others are refused: some codecs can run code when read."""

CHECK_EVERY = 1.0
"""Seconds after which a unit checks again, before it writes, that its stage has not been replaced."""

_CHUNK = re.compile(r"(?P<array>.+)/c/(?P<index>\d+(?:/\d+)*)")


def chunk_of(key: str) -> tuple[str, Index] | None:
    """Array and index of the chunk that a key of the store belongs to; None if it is not a chunk's key."""
    match = _CHUNK.fullmatch(key)
    return None if match is None else (match["array"], tuple(int(i) for i in match["index"].split("/")))


def chunk_key(array: str, index: Index) -> str:
    """The inverse of `chunk_of`."""
    return f"{array}/c/{'/'.join(map(str, index))}"


class _Guard(threading.local):
    check: Callable[[], None] | None = None
    checked = 0.0


_guard = _Guard()


@contextlib.contextmanager
def guarded(check: Callable[[], None]) -> Iterator[None]:
    """A context in which `check` is called now and then before this thread writes; an error that it raises prevents the
    write."""
    _guard.check, _guard.checked = check, time.monotonic()
    try:
        yield
    finally:
        _guard.check = None


def about_to_write() -> None:
    """Call this before something is changed in a store."""
    if _guard.check is not None and time.monotonic() - _guard.checked >= CHECK_EVERY:
        _guard.check()
        _guard.checked = time.monotonic()


class Behind:
    """Does one thing at a time behind the thread that works, which waits before it hands over the next one.

    It is checked as a write of the thread that works. Leaving the context waits for the end; what was raised behind is
    raised here.
    """

    def __enter__(self) -> Behind:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None
        return self

    def do(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function behind, once the one before it has ended."""
        self._wait()
        about_to_write()
        self._last = self._pool.submit(function, *args)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()


class RunArray(zarr.Array[Any]):
    """A zarr array of a run. Reading damaged or missing chunks raises `StoreError` with their names.

    Reads cost no more than zarr's: a missing chunk is noticed when it is asked for, and which chunk is damaged is only
    looked for after a read has failed. All chunks are written, empty ones too.
    """

    def __init__(self, array: zarr.Array[Any], url: str) -> None:
        super().__init__(_over(array, _Complete(array.store, url)))
        # a part of a chunk is written over what was there before, which may be nothing
        self._plain = zarr.Array(_over(array, array.store))
        self._url = url

    def get_basic_selection(self, *args: Any, **kwargs: Any) -> Any:
        return self._read("get_basic_selection", args, kwargs)

    def get_orthogonal_selection(self, *args: Any, **kwargs: Any) -> Any:
        return self._read("get_orthogonal_selection", args, kwargs)

    def get_coordinate_selection(self, *args: Any, **kwargs: Any) -> Any:
        return self._read("get_coordinate_selection", args, kwargs)

    def set_basic_selection(self, *args: Any, **kwargs: Any) -> None:
        self._write("basic_selection", args, kwargs)

    def set_orthogonal_selection(self, *args: Any, **kwargs: Any) -> None:
        self._write("orthogonal_selection", args, kwargs)

    def set_coordinate_selection(self, *args: Any, **kwargs: Any) -> None:
        self._write("coordinate_selection", args, kwargs)

    def check(self, index: Index) -> str | None:
        """What is wrong with a chunk: "missing", "truncated", "checksum", "undecodable"; None if it is sound."""
        try:
            self._complete.get_block_selection(index)
        except StoreError as error:
            if isinstance(error, MissingChunkError):
                return "missing"
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            return kind_of(error)
        return None

    @property
    def _complete(self) -> zarr.Array[Any]:
        """The same array, with zarr's own errors."""
        return zarr.Array(self.async_array)

    def _read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not any(kwargs.values()):
            part = local_chunks.read(self._plain, args[0])  # only slices, which mean the same to all of them
            if part is not None:
                return part
        try:
            return getattr(super(), name)(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            self._explain(name, args[:1], error)
            raise

    def _write(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        about_to_write()
        if len(args) == 2 and not any(kwargs.values()) and whole_chunks.written(self._plain, *args):
            return
        try:
            getattr(self._plain, f"set_{name}")(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            self._explain(f"get_{name}", args[:1], error, writing=True)
            raise

    def _explain(self, name: str, selection: tuple[Any, ...], error: BaseException, writing: bool = False) -> None:
        """Raise an error that names the damaged chunks of a selection; return if none is damaged."""
        tracer = _Tracer(self._plain.store)
        getattr(zarr.Array(_over(self._plain, tracer)), name)(*selection)
        faults = [(index, kind) for index in tracer.chunks if (kind := self.check(index)) is not None]
        damaged = [(index, kind) for index, kind in faults if not (writing and kind == "missing")]
        if damaged:
            raise damaged_error(self._url, self.path, damaged) from error


class MissingChunkError(StoreError):
    """A chunk that was asked for is missing."""


def damaged_error(url: str, array: str, damaged: list[tuple[Index, str]]) -> StoreError:
    """The error for damaged chunks of an array."""
    index, kind = damaged[0]
    words = {"missing": "is missing", "checksum": "is damaged (its checksum differs)"}.get(kind, f"is damaged ({kind})")
    more = f", as {len(damaged) - 1} more of this array" if len(damaged) > 1 else ""
    make = MissingChunkError if kind == "missing" else StoreError
    return make(
        f"{url}: chunk {'/'.join(map(str, index))} of {array} {words}{more}; "
        f"`cryosam verify {url} --repair` and then the same command make it again"
    )


def kind_of(error: BaseException) -> str:
    """What kind of damage a failed decoding stands for."""
    text = str(error).lower()
    if "checksum" in text:
        return "checksum"
    return "truncated" if "buffer" in text or "size" in text or "truncated" in text else "undecodable"


def check_kind(url: str, path: str, array: zarr.Array[Any]) -> None:
    """`StoreError` for an array that this program can't have written."""
    described: dict[str, Any] = dict(array.metadata.to_dict())
    if (version := described["zarr_format"]) != 3:
        raise StoreError(f"{url}: {path} is of zarr format {version}, which this program does not write")
    names = {str(codec["name"] if isinstance(codec, dict) else codec) for codec in described["codecs"]}
    if strange := sorted(names - CODECS):
        raise StoreError(f"{url}: {path} is encoded with {', '.join(strange)}, which this program does not write")
    if array.dtype.kind not in "biuf":
        raise StoreError(f"{url}: {path} holds {array.dtype}, expected numbers")


def grid(array: zarr.Array[Any]) -> Index:
    """Chunks of an array along its axes."""
    return tuple(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))


def _over(array: zarr.Array[Any], store: Store) -> zarr.AsyncArray[Any]:
    """The same array on another store, which writes empty chunks as well."""
    metadata: Any = array.metadata
    view: zarr.AsyncArray[Any] = zarr.AsyncArray(
        metadata=metadata,
        store_path=StorePath(store, array.path),
        config={"order": "C", "write_empty_chunks": True},
    )
    return view


class _Complete(WrapperStore[Any]):
    """A store in which chunks that are not there are errors."""

    def __init__(self, store: Store, url: str = "") -> None:
        super().__init__(store)
        self._url = url

    def _with_store(self, store: Store) -> _Complete:
        return _Complete(store, self._url)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        buffer: Buffer | None = await self._store.get(key, prototype, byte_range)
        if buffer is None and (chunk := chunk_of(key)) is not None:
            raise damaged_error(self._url, chunk[0], [(chunk[1], "missing")])
        return buffer


class _Tracer(WrapperStore[Any]):
    """A store without chunks that notes which ones it is asked for."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._asked: dict[Index, None] = {}

    @property
    def chunks(self) -> Iterator[Index]:
        yield from self._asked

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if (chunk := chunk_of(key)) is None:
            buffer: Buffer | None = await self._store.get(key, prototype, byte_range)
            return buffer
        self._asked[chunk[1]] = None
        return None
