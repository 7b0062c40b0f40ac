"""Starts the page's server, opens a browser, and shows the page in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryosam_dask.errors import InputError
from cryosam_dask.viewer.guard import is_loopback, make_guard

if TYPE_CHECKING:
    from cryosam_dask.viewer.app import Acting

BASE_URL = "CRYOSAM_VIEW_BASE_URL"
"""Environment variable: where a proxy shows what listens at a port here, `{port}` standing for it."""

MOST_BODY = 4 << 20
_STARTING = 20.0


class Server:
    """The page of a session, served from a thread of its own until `stop`.

    Parameters
    ----------
    session : what the page shows and acts on; it is not closed here
    host, port : where to listen; port 0: any that is free
    allowed : further names that the server is known by, of a proxy for instance
    base_url : where a proxy shows it, as `public_base` gives it; None: it is asked directly
    framed_by : origins besides its own whose pages may show the page in a frame

    Raises InputError where it can't listen.
    """

    def __init__(
        self,
        session: Acting,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        allowed: Iterable[str] = (),
        base_url: str | None = None,
        framed_by: Iterable[str] = (),
    ) -> None:
        self._session, self._host, self._base = session, host, base_url
        self._sockets = _listen(host, port)
        self.port = int(self._sockets[0].getsockname()[1])
        base = urlsplit(self._base_url())
        self.guard = make_guard(host, [*allowed, *filter(None, [base.hostname])], framed_by)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view-server", daemon=True)

    @property
    def url(self) -> str:
        """The page's address, with its token: who has it can use the page."""
        return f"{self._base_url().rstrip('/')}/{self.guard.token}/"

    def start(self) -> Server:
        """Begin to answer."""
        self._thread.start()
        self._started.wait(_STARTING)
        return self

    def stop(self) -> None:
        """End the server; open streams are closed. May be called again."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stopping.set)
        if self._thread.is_alive():
            self._thread.join(_STARTING)
        for each in self._sockets:
            each.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _base_url(self) -> str:
        if self._base is not None:
            return self._base.replace("{port}", str(self.port))
        name = self._host
        if name in ("0.0.0.0", "::"):
            name = socket.getfqdn()
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from tornado.httpserver import HTTPServer

        from cryosam_dask.viewer.app import Application

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        application = Application(self._session, self.guard)
        server = HTTPServer(
            application, max_body_size=MOST_BODY, max_buffer_size=2 * MOST_BODY, idle_connection_timeout=600
        )
        server.add_sockets(self._sockets)
        self._started.set()
        try:
            await self._stopping.wait()
        finally:
            server.stop()
            application.close()
            await server.close_all_connections()


def _listen(host: str, port: int) -> list[socket.socket]:
    from tornado.netutil import bind_sockets

    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: expected a number from 0 (any that is free) to {(1 << 16) - 1}")
    try:
        return bind_sockets(port, host)
    except socket.gaierror:
        raise InputError(
            f"--host {host}: no such address of this machine; expected 127.0.0.1, or one of its own"
        ) from None
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise InputError(f"--port {port}: can't listen at {host} ({reason}); choose another, or 0 for any") from None


def check(host: str, port: int, allowed: Iterable[str] = ()) -> None:
    """InputError where a page could not be served; to be called before anything is begun."""
    from cryosam_dask.viewer.client import folder

    folder()
    make_guard(host, allowed)
    for each in _listen(host, port):
        each.close()


def models_for(source: str) -> str:
    """The models that a page uses unless others are named: those of the run's features, else the built-in ones."""
    from cryosam_dask.store.run_store import RunStore
    from cryosam_dask.viewer.session import usual_models

    return usual_models(RunStore.open(source) if RunStore.exists(source) else None)


def notes(host: str) -> list[str]:
    """What a user should know of where the page can be reached."""
    if is_loopback(host):
        return []
    return [
        f"Everyone who reaches {host} and has the address can use the page, and the connection is not encrypted; "
        "better leave out --host and use ssh -L."
    ]


@contextlib.contextmanager
def browser(url: str) -> Iterator[bool]:
    """Open a page in the user's browser; whether there is one.

    The browser is given a file that only the user can read and that leads to the page: everyone on the machine sees the
    arguments of a program. The file is removed at the end.
    """
    try:
        chosen = webbrowser.get() if _has_screen() else None
    except webbrowser.Error:
        chosen = None
    if chosen is None:
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="cryosam-view-") as folder:
        path = Path(folder) / "open.html"
        path.touch(mode=0o600)
        link = html.escape(url, quote=True)
        path.write_text(
            '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>cryosam</title>'
            f'<meta http-equiv="refresh" content="0; url={link}"><a href="{link}">Open the page</a>',
            encoding="utf-8",
        )
        threading.Thread(target=chosen.open, args=(path.as_uri(),), daemon=True).start()
        yield True


def _has_screen() -> bool:
    """Whether a browser has somewhere to appear: not one in the terminal, where Ctrl-C is meant for us."""
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in wanted)


def public_base(environment: Mapping[str, str] | None = None) -> str | None:
    """Where a proxy shows what listens at a port of this machine, `{port}` standing for it; None without one.

    `CRYOSAM_VIEW_BASE_URL` says it. Else under JupyterHub, with jupyter-server-proxy, it is `/user/NAME/proxy/PORT` of
    the hub, if that states its own address (JUPYTERHUB_PUBLIC_URL). `InputError` if it does not.
    """
    known = os.environ if environment is None else environment
    if base := known.get(BASE_URL):
        return base
    prefix = known.get("JUPYTERHUB_SERVICE_PREFIX")
    if not prefix:
        return None
    if public := known.get("JUPYTERHUB_PUBLIC_URL"):
        return f"{public.rstrip('/')}/proxy/{{port}}"
    raise InputError(
        f"this runs under JupyterHub, whose address is not known here: set {BASE_URL} to where its proxy shows a port, "
        f"https://HUB{prefix}proxy/{{port}}"
    )
