"""Neuroglancer's client, served from the package's own files, and answers to what it asks its Python server for.

The client expects a server that holds its state. Here the page holds it, so the client gets a stand-in for its stream
of events, which would take one of the six connections that a browser opens to a server, and its reports of each change
of view are not sent anywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.viewer.status import NotThereError

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
QUIET = "quiet.js"
QUIET_SCRIPT = """\
// the page around this frame holds the viewer's state: nothing is sent to a server, nothing comes from one
"use strict";
window.EventSource = class {
  constructor() { setTimeout(() => this.onopen && this.onopen({}), 0); }
  close() {}
};
const fetchOf = window.fetch.bind(window);
window.fetch = (input, init) => {
  const path = typeof input === "string" ? input : "";
  if (init && init.method === "POST" && /\\/(state|action)\\/x$/.test(path)) {
    return Promise.resolve(new Response('{"g": "0"}', { headers: { "Content-Type": "application/json" } }));
  }
  return fetchOf(input, init);
};
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")


@functools.cache
def folder() -> Path:
    """Where the client's files are; `InputError` says what to install if they are not there."""
    spec = importlib.util.find_spec("neuroglancer")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        client = Path(place) / "static" / "client"
        if (client / "index.html").is_file():
            return client
    raise InputError("the page needs the viewer Neuroglancer: pip install neuroglancer")


def client_file(name: str) -> tuple[bytes, str]:
    """A file of the client and its type; `NotThereError` for any other name."""
    if name == QUIET:
        return QUIET_SCRIPT.encode(), TYPES[".js"]
    content, kind = read_file(folder(), name or "index.html")
    if name in ("", "index.html"):
        content = content.replace(b"<script ", f'<script src="{QUIET}"></script><script '.encode(), 1)
    return content, kind


def read_file(place: Path, name: str) -> tuple[bytes, str]:
    """A file directly in a folder and its type; `NotThereError` for any name that is not of such a file."""
    path = place / name
    if not _NAME.fullmatch(name) or path.suffix not in TYPES or path.is_symlink() or not path.is_file():
        raise NotThereError(f"no file {name[:80]!r}")
    return path.read_bytes(), TYPES[path.suffix]
