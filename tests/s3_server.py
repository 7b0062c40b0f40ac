"""An S3 server on loopback (moto's) whose front fails on purpose, by counting requests.

`Storage.failing` says which requests go wrong and how:

    "slow down", "error"   503 SlowDown and 500 InternalError, without doing anything
    "denied", "expired"    403
    "reset"                the connection is reset, without doing anything
    "lost"                 it is done, and the connection reset in place of the answer
    "truncated"            it is done, and the answer's body ends in its middle
    "cut"                  the connection is reset in the middle of what is being sent
    "silent"               nothing happens for `SILENCE` seconds
    "forgetful"            says that all went well, without doing anything
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

BUCKET = "tomograms"
SILENCE = 3.0
ANSWERS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}
TRANSIENT = ("slow down", "error", "reset", "lost", "truncated", "cut")

Choose = Callable[[int, str, str], str | None]
"""(number of the request from 1, its method, its path and query) → what goes wrong with it, or None"""


def every(step: int, kinds: Sequence[str] = TRANSIENT) -> Choose:
    """Each `step`-th request, with the kinds in turn."""
    turns = itertools.cycle(kinds)
    return lambda number, method, path: next(turns) if number % step == 0 else None


def after(count: int, kind: str) -> Choose:
    """All requests after `count`."""
    return lambda number, method, path: kind if number > count else None


class Storage:
    """Attributes: `url` of the endpoint; `injected`, how often each fault happened; `asked`, paths of all requests;
    `requests`, how many those are."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.asked: list[str] = []
        self._choose: Choose | None = None
        self._first = 0
        self._lock = threading.Lock()
        app = DomainDispatcherApplication(create_backend_app)
        handler = type("Handler", (_Handler,), {"storage": self})
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def requests(self) -> int:
        return len(self.asked)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextlib.contextmanager
    def failing(self, choose: Choose) -> Iterator[Counter[str]]:
        """Requests within go wrong as `choose` says; gives what was injected."""
        with self._lock:
            self._choose, self._first, self.injected = choose, self.requests, Counter()
        try:
            yield self.injected
        finally:
            self._choose = None

    def what_now(self, method: str, path: str) -> str | None:
        with self._lock:
            self.asked.append(path)
            kind = self._choose(self.requests - self._first, method, path) if self._choose else None
            if kind is not None:
                self.injected[kind] += 1
            return kind


class _Handler(MotoRequestHandler):
    storage: Storage

    def log_request(self, *args: Any) -> None:
        """The server's log is not part of any test's output."""

    def log(self, *args: Any) -> None:
        """As above."""

    def run_wsgi(self) -> None:
        kind = self.storage.what_now(self.command, self.path)
        if kind is None:
            with contextlib.suppress(ConnectionError):
                super().run_wsgi()
            return
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            if self.headers.get("Expect", "").lower().strip() == "100-continue" and kind not in ("reset", "silent"):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            getattr(self, f"_{'answer' if kind in ANSWERS else kind}")(kind)

    def _answer(self, kind: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, code, message = ANSWERS[kind]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(f"{status} {code}", [("Content-Type", "application/xml")], body, len(body))

    def _send(self, status: str, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "connection")]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in kept)]
        lines += [f"Content-Length: {length}", "Connection: close", "", ""]
        self.wfile.write("\r\n".join(lines).encode() + (b"" if self.command == "HEAD" else body))

    def _done(self) -> tuple[str, list[tuple[str, str]], bytes]:
        parts, status, headers = run_wsgi_app(self.server.app, self.make_environ(), buffered=True)
        return status, list(headers.items()), b"".join(parts)

    def _reset(self, kind: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _lost(self, kind: str) -> None:
        self._done()
        self._reset(kind)

    def _truncated(self, kind: str) -> None:
        if self.command == "HEAD":  # its answer has no body
            self._lost(kind)
            return
        status, headers, body = self._done()
        self._send(status, headers, body[: len(body) // 2], max(len(body), 1))

    def _cut(self, kind: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self._reset(kind)

    def _forgetful(self, kind: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"<DeleteResult></DeleteResult>"
        self._send("200 OK", [("Content-Type", "application/xml")], body, len(body))

    def _silent(self, kind: str) -> None:
        threading.Event().wait(SILENCE)
        self._reset(kind)


def environment(url: str, secret: str = "test-secret-0123456789", key: str = "AKIATESTTESTTESTTEST") -> dict[str, str]:
    """What a shell would set to use the server, and nothing of the account that the tests run in."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def client(url: str) -> Any:
    """boto3's, which is not what the program uses."""
    import boto3

    names = {"aws_access_key_id": "AKIATESTTESTTESTTEST", "aws_secret_access_key": "test-secret-0123456789"}
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **names)
