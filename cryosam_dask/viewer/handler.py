"""What all handlers share: the guard before each request, headers, errors as one line, answers that are packed."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, TypeVar

from tornado.web import HTTPError, RequestHandler

from cryosam_dask.errors import CryosamError
from cryosam_dask.viewer.guard import HEADERS, POLICY
from cryosam_dask.viewer.status import NotThereError, status_of
from cryosam_dask.viewer.threads import Threads

T = TypeVar("T")
log = logging.getLogger(__name__)

FOREVER = "private, max-age=31536000, immutable"
"""Cache-Control of what has its version in its address."""

PACKED_FROM = 512
"""Bytes from which an answer may be packed."""

_TRIED = 1 << 14
"""Bytes that are packed first, to see whether the rest is worth it."""

RETRY_SECONDS = "1"


class RefusedError(HTTPError):
    """403, with a reason for the user."""

    def __init__(self, reason: str) -> None:
        super().__init__(HTTPStatus.FORBIDDEN)
        self.words = reason


class Handler(RequestHandler):
    """Base of all handlers. `answer` or `act` of a subclass does the work; errors become a status and one line."""

    application: Any
    policy = POLICY
    _future: Future[Any] | None = None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", self.application.guard.policy(self.policy))
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        headers = self.request.headers
        reason = self.application.guard.refusal(
            self.request.path,
            self.request.host,
            headers.get("Origin"),
            headers.get("Sec-Fetch-Site"),
            headers.get("Sec-Fetch-Mode"),
        )
        if reason is not None:
            raise RefusedError(reason)

    async def answer(self, **names: str) -> None:
        """Answer a GET."""
        raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED)

    async def get(self, **names: str) -> None:
        await self._do(self.answer(**names))

    async def head(self, **names: str) -> None:
        await self._do(self.answer(**names))

    async def _do(self, work: Any) -> None:
        try:
            await work
        except CryosamError as error:
            self.fail(status_of(error), str(error))
        except asyncio.CancelledError:  # who asked has gone
            self.fail(HTTPStatus.SERVICE_UNAVAILABLE, "not answered")

    async def in_thread(self, threads: Threads, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread; not if the browser goes away before its turn comes."""
        self._future = future = threads.begin(function, *arguments)
        return await asyncio.wrap_future(future)

    def on_connection_close(self) -> None:
        if self._future is not None:
            self._future.cancel()

    def fail(self, status: int, words: str) -> None:
        """Answer with an error: JSON with one line, or a page with it where a person looks at it."""
        self.clear()
        self.set_status(status)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.set_header("Retry-After", RETRY_SECONDS)
        if self.request.headers.get("Sec-Fetch-Dest") in ("document", "iframe", "frame"):
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.finish(f"<!doctype html><meta charset=utf-8><title>cryosam</title><p>{html.escape(words)}</p>")
        else:
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps({"error": words}))

    def send(self, content: bytes, kind: str, *, cache: str | None = None, tag: str | None = None) -> None:
        """Answer with content, packed where the browser can unpack it and it gets smaller.

        cache : Cache-Control; tag : a version, by which the browser may ask whether what it has is still right
        """
        self.set_header("Content-Type", kind)
        if cache is not None:
            self.set_header("Cache-Control", cache)
        if tag is not None:
            self.set_header("ETag", f'"{tag}"')
            self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Vary", "Accept-Encoding")
        if "gzip" in self.request.headers.get("Accept-Encoding", "") and (packed := pack(content)) is not None:
            self.set_header("Content-Encoding", "gzip")
            content = packed
        self.finish(content)

    def unchanged(self, tag: str | None) -> bool:
        """Whether the browser has this version already; then it is told so."""
        if tag is None or self.request.headers.get("If-None-Match") != f'"{tag}"':
            return False
        self.set_header("ETag", f'"{tag}"')
        self.set_header("Cache-Control", "private, no-cache")
        self.set_status(HTTPStatus.NOT_MODIFIED)
        self.finish()
        return True

    def compute_etag(self) -> None:
        """No digest of every answer."""

    def write_error(self, status_code: int, **about: Any) -> None:
        error = (about.get("exc_info") or (None, None))[1]
        words = (
            error.words
            if isinstance(error, RefusedError)
            else _WORDS.get(status_code, "the server failed; see its log")
        )
        self.fail(status_code, words)

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        """Log defects, without the address, which holds the token."""
        if not isinstance(value, HTTPError):
            log.error("%s %s failed", self.request.method, type(self).__name__, exc_info=(kind, value, trace))


class Refused(Handler):
    """Answers all other addresses: 403 without the token, else 404."""

    def prepare(self) -> None:
        super().prepare()
        error = NotThereError("nothing is at this address")
        self.fail(status_of(error), str(error))


_WORDS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "the request is malformed",
    HTTPStatus.NOT_FOUND: "nothing is at this address",
    HTTPStatus.METHOD_NOT_ALLOWED: "this address does not answer such requests",
}


def pack(content: bytes) -> bytes | None:
    """Content as gzip; None if that is hardly smaller. Noise is not: only its beginning is tried."""
    if len(content) < PACKED_FROM:
        return None
    if len(content) > 2 * _TRIED:
        start = (len(content) // 2) & ~3
        if len(zlib.compress(content[start : start + _TRIED], 1)) > 0.75 * _TRIED:
            return None
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = packer.compress(content) + packer.flush()
    return packed if len(packed) < 0.9 * len(content) else None
