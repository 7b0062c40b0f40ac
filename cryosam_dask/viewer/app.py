"""The server of the page: addresses, and who answers them.

Everything lies beneath `/TOKEN/`, and the page asks by relative addresses, so that it also works behind a proxy that
puts a prefix before them. Nothing blocks the loop: files are read, and actions done, in threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from tornado.web import Application as Web
from tornado.web import url

from cryosam_dask.types import Json
from cryosam_dask.viewer import data, pages
from cryosam_dask.viewer.guard import Guard
from cryosam_dask.viewer.handler import Refused
from cryosam_dask.viewer.library import CLICK_VERSION, NAME, VERSION, Library, Readable
from cryosam_dask.viewer.threads import Threads

READERS = 6
ACTORS = 4
WAITING = 512
"""Threads that read for the viewer, threads that act on the run, and requests of either kind that may wait for one."""


class Acting(Readable, Protocol):
    """What the server needs of a session."""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have a function called, in any thread, whenever the snapshot changes; the returned function ends that."""

    def act(self, name: str, body: Json) -> Json:
        """Do what the page asks for; `CryosamError` if that can't be done."""

    def candidates(self, name: str) -> Json:
        """Candidates of a kind."""

    def picks(self, name: str) -> Json:
        """Picks of a kind."""


class Application(Web):
    """The page of a session.

    session : what it shows and acts on; guard : who may ask; library : the volumes
    """

    def __init__(self, session: Acting, guard: Guard) -> None:
        self.session, self.guard = session, guard
        self.latest = Latest(session)
        self.library = Library(session, self.latest.get)
        self.readers, self.actors = Threads("read", READERS, WAITING), Threads("act", ACTORS, WAITING)
        super().__init__(_routes(), default_handler_class=Refused, log_function=_no_log)

    def close(self) -> None:
        """End the threads; what waits is dropped."""
        self.latest.close()
        self.readers.close()
        self.actors.close()


class Latest:
    """The latest snapshot of a session, asked for once for each of its changes."""

    def __init__(self, session: Acting) -> None:
        self._session = session
        self._snapshot: Json | None = None
        self._changes = 0
        self._end = session.subscribe(self._forget)

    def get(self) -> Json:
        """The snapshot."""
        snapshot = self._snapshot
        if snapshot is None:
            changes = self._changes
            snapshot = self._session.snapshot()
            if changes == self._changes:  # else it may be older than the last change
                self._snapshot = snapshot
        return snapshot

    def text(self) -> bytes:
        """The snapshot as JSON, on one line."""
        return json.dumps(self.get(), separators=(",", ":")).encode()

    def close(self) -> None:
        """Ask for no more changes."""
        self._end()

    def _forget(self) -> None:
        self._changes += 1
        self._snapshot = None


def _no_log(handler: Any) -> None:
    """No line for each request: addresses hold the token."""


def _routes() -> list[Any]:
    beneath: list[tuple[str, Any]] = [
        ("", pages.Page),
        (r"static/(?P<name>[^/]+)", pages.Static),
        (r"v/x/(?P<name>[^/]*)", pages.Client),
        (r"(?:events|state|action|credentials)/x", pages.ClientServer),
        (r"api/state", pages.State),
        (r"api/events", pages.Events),
        (rf"api/(?P<what>candidates|picks)/(?P<name>{NAME})/(?P<version>{VERSION})", pages.Table),
        (r"api/(?P<action>[a-z]+(?:/[a-z]+)?)", pages.Action),
        (r"data/(?P<volume>[^/]+)/info", data.Info),
        (r"data/(?P<volume>[^/]+)/mesh/(?P<name>[^/]+)", data.Mesh),
        (r"data/(?P<volume>[^/]+)/(?P<scale>\d{1,2})/(?P<chunk>[^/]+)", data.Chunk),
        (rf"gallery/(?P<name>{NAME})/(?P<version>{VERSION})/(?P<label>\d{{1,10}})\.png", data.Picture),
        (rf"click/(?P<version>{CLICK_VERSION})\.png", data.ClickPicture),
        (r"report", pages.Report),
        (r"download/(?P<name>[^/]+)", pages.Download),
    ]
    return [url(r"/[^/]+/" + pattern, handler) for pattern, handler in beneath] + [url(r"/[^/]+", pages.Slash)]
