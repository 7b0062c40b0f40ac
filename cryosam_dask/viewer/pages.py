"""Handlers of the page, its state and events, its actions, and Neuroglancer's client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import zlib
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tornado.iostream import StreamClosedError

from cryosam_dask.errors import InputError
from cryosam_dask.viewer.client import client_file, read_file
from cryosam_dask.viewer.guard import DOCUMENT_POLICY, VIEWER_POLICY
from cryosam_dask.viewer.handler import FOREVER, Handler
from cryosam_dask.viewer.status import NotThereError

STATIC = Path(__file__).parent / "static"
PING_SECONDS = 15.0
PAUSE_SECONDS = 0.1
"""Between two messages of the same stream, so that many changes in a row become one."""

JSON = "application/json"
PART = 1 << 20
"""Bytes of a file that are in memory at a time."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_VERSIONED = re.compile(r".*[0-9a-f]{16}.*")


@functools.cache
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class _File(Handler):
    def send_file(self, content: bytes, kind: str) -> None:
        """Send a file; the browser asks next time whether it has changed."""
        tag = _digest(content)
        if not self.unchanged(tag):
            self.send(content, kind, tag=tag)


class Page(_File):
    """The page."""

    async def answer(self) -> None:  # type: ignore[override]
        self.send_file(*read_file(STATIC, "index.html"))


class Slash(Handler):
    """The page's address without its last slash, without which relative addresses would be wrong."""

    async def answer(self) -> None:  # type: ignore[override]
        self.redirect(f"{self.application.guard.token}/")


class Static(_File):
    """A file of the page."""

    async def answer(self, *, name: str) -> None:  # type: ignore[override]
        self.send_file(*read_file(STATIC, name))


class Client(_File):
    """A file of Neuroglancer's client."""

    policy = VIEWER_POLICY

    async def answer(self, *, name: str) -> None:  # type: ignore[override]
        content, kind = await self.in_thread(self.application.readers, client_file, name)
        if _VERSIONED.fullmatch(name):
            self.send(content, kind, cache=FOREVER)
        else:
            self.send_file(content, kind)


class ClientServer(Handler):
    """What the client asks its own server for, which holds nothing."""

    async def answer(self) -> None:  # type: ignore[override]
        self.set_status(HTTPStatus.NO_CONTENT)

    async def post(self) -> None:
        self.send(b'{"g":"0"}', JSON)


class State(Handler):
    """The snapshot."""

    async def answer(self) -> None:  # type: ignore[override]
        self.send(await self.in_thread(self.application.readers, self.application.latest.text), JSON)


class Events(Handler):
    """The snapshot whenever it changes, as server-sent events.

    They are packed as one stream, where a snapshot is little more than its difference from the one before.
    """

    _closed = False
    _packer: Any = None

    async def head(self) -> None:  # type: ignore[override]
        self.set_header("Content-Type", "text/event-stream")

    async def answer(self) -> None:  # type: ignore[override]
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        if "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self._gone = changed
        changed.set()
        end = self.application.session.subscribe(lambda: _wake(loop, changed))
        try:
            while not self._closed:
                await self._message(changed)
        except StreamClosedError:
            pass
        finally:
            end()

    async def _message(self, changed: asyncio.Event) -> None:
        """Send the next snapshot, or a ping after a while without."""
        try:
            await asyncio.wait_for(changed.wait(), PING_SECONDS)
        except TimeoutError:
            await self._tell(b": ping\n\n")
            return
        changed.clear()
        if self._closed:
            return
        text = await self.in_thread(self.application.readers, self.application.latest.text)
        await self._tell(b"data: " + text + b"\n\n")
        await asyncio.sleep(PAUSE_SECONDS)

    async def _tell(self, text: bytes) -> None:
        """Send a message. The next one waits until the browser's connection has taken this one."""
        if self._packer is not None:
            text = self._packer.compress(text) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        self.write(text)
        await self.flush()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._closed = True
        if (gone := getattr(self, "_gone", None)) is not None:
            gone.set()


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


class Table(Handler):
    """Candidates or picks of a kind. The version in the address is for the browser; verdicts are always fresh."""

    async def answer(self, *, what: str, name: str, version: str) -> None:  # type: ignore[override]
        table = getattr(self.application.session, what)
        text = await self.in_thread(self.application.readers, lambda: json.dumps(table(name)).encode())
        self.send(text, JSON)


class Action(Handler):
    """Something that the page asks the session to do."""

    async def post(self, action: str) -> None:
        await self._do(self._act(action))

    async def _act(self, action: str) -> None:
        body = _parsed(self.request.body)
        # begun is done: it does not end with the connection
        future = self.application.actors.begin(self.application.session.act, action, body)
        done = await asyncio.wrap_future(future)
        self.send(json.dumps({"ok": True, **(done or {})}).encode(), JSON)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise InputError("the request's body is not JSON") from None
    if not isinstance(parsed, dict):
        raise InputError("the request's body is not an object of JSON")
    return parsed


class Report(Handler):
    """The run's report, apart from the page: it can't ask for anything."""

    policy = DOCUMENT_POLICY

    async def answer(self) -> None:  # type: ignore[override]
        path = self.application.session.report()
        if path is None:
            raise NotThereError("there is no report yet")
        self.send(await self.in_thread(self.application.readers, path.read_bytes), "text/html; charset=utf-8")


class Download(Handler):
    """A file that the session has exported."""

    policy = DOCUMENT_POLICY

    async def answer(self, *, name: str) -> None:  # type: ignore[override]
        path = self.application.session.download(name)
        if path is None:
            raise NotThereError(f"no file {name[:80]!r}")
        self.set_header("Content-Disposition", f'attachment; filename="{_UNSAFE.sub("_", path.name)}"')
        self.set_header("Content-Type", "application/octet-stream")
        readers = self.application.readers
        with await self.in_thread(readers, path.open, "rb") as file:
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            with contextlib.suppress(StreamClosedError):
                while content := await self.in_thread(readers, file.read, PART):
                    self.write(content)
                    await self.flush()
