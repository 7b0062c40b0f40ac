"""Files and objects, wherever a run or a tomogram lies: the only module that knows fsspec.

A local path goes to the local disk as it is. Any other address (s3, gs, abfs, http…) goes through one connection per
process, which asks again when the storage does not answer, and whose errors are one line that holds no secret.

    zarr ─▶ FsspecStore ─▶ Patient (zarr's loop) ──┐
    we ──────────────────▶ Patient (blocking) ─────┴─▶ s3fs, gcsfs, … on fsspec's loop
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
from fsspec.asyn import AsyncFileSystem

from cryosam_dask.errors import CryosamError, StoreError
from cryosam_dask.storage import errors as faults
from cryosam_dask.storage.address import check_address, is_local, local_path, public
from cryosam_dask.storage.options import connection_options

if TYPE_CHECKING:
    from zarr.abc.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that an operation is tried again while storage fails, unless `CRYOSAM_STORAGE_PATIENCE` says otherwise."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_FIRST_CONTACT = 3.0  # seconds that storage which never answered is tried
_REQUEST_ATTEMPTS = 2  # of s3fs, close together, for each request: one operation may make many, as long listings do
_LISTED = 5  # seconds after which waiting is worth a warning


def filesystem(url: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of an address, with blocking calls, and the path on it.

    Listings are never cached: another process may have written. `StoreError` if the address holds a secret, or needs
    a package that is not installed.
    """
    text = str(url)
    if is_local(text):
        return fsspec.filesystem("file"), local_path(text)
    patient, path = _patient(text, asynchronous=False)
    return patient, path


def zarr_store(url: str | Path, *, read_only: bool) -> Store | str:
    """What zarr opens for an address: a path for the local disk, else a store with the same patience."""
    text = str(url)
    if is_local(text):
        return local_path(text)
    if text.startswith("memory:"):
        return text
    from cryosam_dask.storage.remote import RemoteStore

    patient, path = _patient(text, asynchronous=True)
    return RemoteStore(patient, read_only=read_only, path=path.rstrip("/"))


def look(url: str, count: int) -> tuple[bytes, int, str]:
    """The first `count` bytes of a remote file, its size, and what tells its version from another, "" if unknown.

    `FileNotFoundError` if it is not there, `StoreError` if it can't be read, or not in parts.
    """
    files, path = filesystem(url)
    if url.startswith(("http://", "https://")):
        return cast(tuple[bytes, int, str], files.look_over_http(path, count))
    info = files.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(public(url))
    size = int(info["size"])
    version = next((str(info[name]) for name in ("ETag", "etag", "md5Hash", "mtime") if info.get(name)), "")
    return bytes(files.cat_file(path, start=0, end=min(count, size))) if size else b"", size, version


def expect(url: str | Path) -> None:
    """Assume that the storage of an address works, as another process has used it: be patient from the first request.

    Without this, unreachable storage fails within seconds at the first request of a process, since then the address is
    most likely wrong.
    """
    if not is_local(str(url)):
        _answered.add(_place(str(url)))


def publicly(url: str | Path) -> None:
    """Allow the input at this address to be read without credentials if none are found, as public buckets permit.

    They are looked for once in a process, where the place's own package would (environment, files, the machine's role).
    """
    text = str(url)
    if not text.startswith(("s3://", "s3a://")):
        return
    place = _place(text)
    with _asking:
        if place not in _asked and not _has_credentials():
            with _lock:
                _anonymous.add(place)
                _connections.pop((os.getpid(), place), None)
        _asked.add(place)


def _has_credentials() -> bool:
    """Whether there are any for s3, or fsspec's configuration says how to do without."""
    if {"anon", "key", "profile", "session"} & set(fsspec.config.conf.get("s3", {})):
        return True
    try:
        from botocore.session import Session

        return Session().get_credentials() is not None
    except Exception:  # noqa: BLE001 - what is wrong is said when it is connected to
        return True


def forget() -> None:
    """Drop all connections; they are made anew, with the environment and the configuration of that time.

    What is still under way on the old ones says nothing about the new ones.
    """
    global _times
    with _lock:
        _times += 1
        _connections.clear()
        _answered.clear()
        _down.clear()
        _asked.clear()
        _anonymous.clear()


def patience() -> float:
    """Seconds that one operation may take to get through."""
    try:
        return float(os.environ["CRYOSAM_STORAGE_PATIENCE"])
    except (KeyError, ValueError):
        return PATIENCE


class Patient(AsyncFileSystem):  # type: ignore[misc]
    """A remote filesystem that tries again what fails for a while, with exponential back-off and jitter.

    Its calls run on the event loop of the filesystem that it wraps, whichever thread makes them, so that zarr, our own
    calls and all threads of a process share one set of connections. What is not there is a `FileNotFoundError`; all
    else that goes wrong is a `StoreError`, at once where trying again can't help (no permission, no credentials).
    It is pickled as its address alone; where it is unpickled it connects anew, with the credentials found there.
    """

    cachable = False

    def __init__(self, inner: AsyncFileSystem, place: str, address: str, *, asynchronous: bool = False) -> None:
        super().__init__(asynchronous=asynchronous, use_listings_cache=False)
        self.protocol = inner.protocol
        self._inner = inner
        self._at, self._times = place, _times
        self._address = address

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (self._address, self.asynchronous)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and self._inner is other._inner

    def __hash__(self) -> int:
        return hash(self._at)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        return await self._try("read", path, lambda: self._inner._cat_file(path, start=start, end=end))

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """`mode="create"`: `FileExistsError` if something is there, `NotImplementedError` if storage can't tell."""
        if mode == "overwrite":
            await self._try("write", path, lambda: self._inner._pipe_file(path, value))
            return
        if "mode" not in inspect.signature(self._inner._pipe_file).parameters:
            raise NotImplementedError(f"{self._at} has no conditional writes")
        try:
            await self._try("write", path, lambda: self._inner._pipe_file(path, value, mode=mode))
        except FileExistsError:
            # it may be ours: written, and the answer lost on its way
            if await self._cat_file(path) != value:
                raise

    async def _info(self, path: str, **kwargs: Any) -> Any:
        return await self._try("look at", path, lambda: self._inner._info(path))

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    async def _isfile(self, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == "file")
        except FileNotFoundError:
            return False

    async def _isdir(self, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == "directory")
        except FileNotFoundError:
            return False

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return await self._try("list", path, lambda: self._inner._ls(path, detail=detail))

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        return await self._try(
            "list", path, lambda: self._inner._find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail)
        )

    async def _rm(self, path: str, recursive: bool = False, **kwargs: Any) -> None:
        """Deleting what is not there is no error. Some services answer that all went well and name the objects that
        they could not delete beside it, so what is left is listed."""

        async def remove() -> None:
            if recursive and not await self._under(path):
                return
            try:
                await self._inner._rm(path, recursive=recursive)
            except FileNotFoundError:
                return
            if recursive and (left := await self._under(path)):
                raise faults.UnfinishedError(f"{len(left)} objects are still there")

        await self._try("delete", path, remove)

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        await self._rm(path)

    async def _under(self, path: str) -> Any:
        """All objects under a path, in one request where there are none (s3fs's `find` takes three)."""
        if "s3" in self.protocol and hasattr(self._inner, "_lsdir"):
            return await self._inner._lsdir(path, delimiter="")
        try:
            return await self._inner._find(path)
        except FileNotFoundError:
            return []

    async def _look_over_http(self, url: str, count: int) -> tuple[bytes, int, str]:
        """A range of bytes is asked for with GET: signed links do not allow HEAD, and servers that do not serve ranges
        show it before the whole file is sent."""

        async def ask() -> tuple[bytes, int, str]:
            session = await self._inner.set_session()
            wanted = {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
            async with session.get(self._inner.encode_url(url), headers=wanted) as answer:
                if answer.status == 404:
                    raise FileNotFoundError(public(url))
                version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status == 416 and total in ("", "0"):
                    return b"", 0, version
                answer.raise_for_status()
                if answer.status == 206 and total.isdecimal():
                    return await answer.read(), int(total), version
                if answer.content_length is not None and answer.content_length <= count:
                    start = await answer.read()
                    return start, len(start), version
            raise StoreError(f"{public(url)}: this server does not serve parts of a file; download it first")

        return cast(tuple[bytes, int, str], await self._try("read", url, ask))

    def look_over_http(self, url: str, count: int) -> tuple[bytes, int, str]:
        """See `look`."""
        return cast(tuple[bytes, int, str], fsspec.asyn.sync(self.loop, self._look_over_http, url, count))

    async def _try(self, verb: str, path: str, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run one operation until it gets through, or there is no use in going on."""
        began, attempt = time.monotonic(), 0
        while True:
            try:
                result = await self._on_its_loop(operation)
            except Exception as error:  # noqa: BLE001 - storage raises whatever its packages do
                fault = faults.classify(error)
            else:
                self._answers()
                if attempt:
                    logger.info("%s: answers again after %.1f s", self._at, time.monotonic() - began)
                return result
            if fault.missing is not None:
                self._answers()
                raise fault.missing from None
            if fault.error is not None:
                raise fault.error
            waited = time.monotonic() - began
            short = self._at in _down or (fault.unreachable and self._at not in _answered)
            most = min(_FIRST_CONTACT, patience()) if short else patience()
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**attempt)
            if not fault.transient or waited >= most:
                if fault.transient and not short and self._times == _times:
                    _down.add(self._at)
                raise StoreError(fault.sentence(verb, self._at, path, waited)) from None
            logger.log(
                logging.WARNING if waited > _LISTED else logging.DEBUG,
                "%s: can't %s %s now (%s), trying again",
                *(self._at, verb, path, fault.reason),
            )
            attempt += 1
            await asyncio.sleep(min(pause, most - waited))

    def _answers(self) -> None:
        if self._times == _times:
            _answered.add(self._at)
            _down.discard(self._at)

    async def _on_its_loop(self, operation: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop = self._inner.loop
        if asyncio.get_running_loop() is loop:
            return await operation()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(operation(), loop))


_connections: dict[tuple[int, str], AsyncFileSystem] = {}
_answered: set[str] = set()
_asked: set[str] = set()
_anonymous: set[str] = set()
_down: set[str] = set()
"""Places that an operation gave up on, until one gets through: what is left to tidy up need not wait as long again."""
_times = 0
"""How often connections were dropped."""
_lock, _asking = threading.Lock(), threading.Lock()


def _patient(url: str, *, asynchronous: bool) -> tuple[Patient, str]:
    check_address(url)
    place = _place(url)
    try:
        kind = fsspec.get_filesystem_class(place.partition("://")[0])
        path = str(kind._strip_protocol(url))
        inner = _connection(kind, url, place)
    except CryosamError:
        raise
    except Exception as error:  # noqa: BLE001 - storage raises whatever its packages do
        raise StoreError(faults.classify(error).sentence("reach", place, public(url), 0.0)) from None
    return Patient(inner, place, public(url), asynchronous=asynchronous), path


def _connection(kind: Any, url: str, place: str) -> AsyncFileSystem:
    """The process's own filesystem of a place. A forked child must not use its parent's."""
    key = (os.getpid(), place)
    with _lock:
        if key not in _connections:
            nobody = {"anon": True} if place in _anonymous else {}
            connection = kind(
                **kind._get_kwargs_from_urls(url), **connection_options(kind), **nobody, skip_instance_cache=True
            )
            if not connection.async_impl:
                from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

                connection = AsyncFileSystemWrapper(connection, asynchronous=False)
            if "s3" in connection.protocol:
                connection.retries = _REQUEST_ATTEMPTS
            _connections[key] = connection
        return _connections[key]


def _place(url: str) -> str:
    """Protocol and bucket or host."""
    shown = public(url)
    protocol, _, rest = shown.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


def _rebuild(url: str, asynchronous: bool) -> Patient:
    return _patient(url, asynchronous=asynchronous)[0]
