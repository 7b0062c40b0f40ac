"""The connection to a scheduler: how it is made, how its loss is noticed, and which events are heard over it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import ssl
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import one_line

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
CANCELLED = (concurrent.futures.CancelledError, asyncio.CancelledError)

_INTRODUCTION = 10.0
"""Seconds that a server at an address has to identify itself; schedulers do so at once, unless they are busy."""

_TLS_OPTIONS = "--tls-ca, --tls-cert and --tls-key"
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


class ConnectionLostError(Exception):
    """The scheduler does not answer any more. Never leaves the executor."""


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """A context in which every exception of a lost connection becomes a `ConnectionLostError`."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, ClosedClientError, *CANCELLED) as error:
        raise ConnectionLostError(one_line(error)) from error


def connect(address: str, timeout: float = CONNECT_TIMEOUT, security: Security | None = None) -> Client:
    """Connect to a scheduler; `ExecutionError` if it does not answer within `timeout` seconds, or not to us."""
    try:
        with contextlib.suppress(AssertionError):  # its thread did not start within 10 s: a machine that stands still
            return _client(address, timeout, security)
        return _client(address, timeout, security)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ExecutionError(_why_not(address, timeout, error, security is not None)) from error


def _client(address: str, timeout: float, security: Security | None) -> Client:
    """A client, or an error and nothing that is left of it."""
    from distributed import Client

    client: Any = Client.__new__(Client)
    try:
        client.__init__(address, timeout=timeout, security=security, set_as_default=False)
    except BaseException:
        disconnect(client)
        raise
    return cast("Client", client)


def disconnect(client: Client) -> None:
    """Close a client whatever state it is in, and its thread.

    A client that is left open is closed by the garbage collector at any moment, for example while another client
    starts; it then waits for ever for a lock that its own thread holds.
    """
    try:
        client.close(timeout=2)
    except Exception:  # noqa: BLE001 - its own attempt to connect again may have ended in anything
        with contextlib.suppress(Exception):
            client._handle_report_task = None  # what has failed in there would fail each attempt to close
            client.close(timeout=2)
    with contextlib.suppress(Exception):  # it may have failed before it had one
        client.status = "closed"
        client._loop_runner.stop()


def _why_not(address: str, timeout: float, error: Exception, has_certificate: bool) -> str:
    """Words for a connection that was not made: nobody there, or somebody who speaks or trusts otherwise."""
    encrypted = address.startswith(("tls://", "wss://"))
    there = _listener(address)
    if there == "tls" and not (encrypted and has_certificate):
        return (
            f"the scheduler at {address} wants an encrypted connection and a certificate; give its address as tls://…, "
            f"and {_TLS_OPTIONS}"
        )
    if there == "tls":
        return (
            f"the scheduler at {address} and this program don't accept each other's certificates ({one_line(error)}); "
            f"check that {_TLS_OPTIONS} are of the authority that the scheduler uses"
        )
    if there == "plain" and encrypted:
        return (
            f"the scheduler at {address} does not encrypt its connections; give its address as tcp://… without "
            f"{_TLS_OPTIONS}, or start it with --tls-ca-file, --tls-cert and --tls-key"
        )
    return (
        f"no Dask scheduler answers at {address} within {timeout:g} s ({one_line(error)}); check the address and "
        "that the scheduler runs, or leave --scheduler out to run on this machine"
    )


def _listener(address: str) -> str:
    """Who is at an address: "tls", "plain", or "nobody" that answers."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent, only who it is asked
    try:
        where = (host.strip("[]"), int(port))
        with socket.create_connection(where, _INTRODUCTION) as plain, context.wrap_socket(plain):
            return "tls"
    except ssl.SSLError as error:
        return "plain" if error.reason in _NOT_TLS else "tls"
    except (OSError, ValueError):  # silence as well: a stopped process, somebody else's server
        return "nobody"


@contextlib.contextmanager
def quiet_dask() -> Iterator[None]:
    """Keep Dask's own log off the screen while we own its connection; what matters of it is in our errors."""
    import distributed  # noqa: F401 - sets its loggers up, which must come first

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        if not logger.isEnabledFor(logging.DEBUG):
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@dataclass(frozen=True)
class Began:
    """A task began: its key, the worker's address, its host and process id, and when, by this process's clock."""

    key: str
    worker: str
    process: str
    at: float


@dataclass(frozen=True)
class Left:
    """A worker left the scheduler, with the keys of the tasks that it held."""

    worker: str
    keys: frozenset[str]


class News:
    """The events heard from a scheduler: our tasks that begin, and workers that leave.

    Attributes
    ----------
    topic : what workers announce the tasks under, see `worker_calls.announce`
    """

    _EVERYTHING = "all"

    def __init__(self, client: Client) -> None:
        self.topic = f"cryosam-{uuid.uuid4().hex}"
        self.client = client
        self._heard: deque[Began | Left] = deque()  # filled by the connection's own thread
        self._closed = False
        self._theirs: Any = getattr(client, "_event_handlers", {}).get(self._EVERYTHING)
        while isinstance(ended := getattr(self._theirs, "__self__", None), News) and ended._closed:
            self._theirs = ended._theirs  # clients keep what no longer listens
        client.subscribe_topic(self.topic, self._began)
        client.subscribe_topic(self._EVERYTHING, self._happened)

    def take(self) -> list[Began | Left]:
        """The new events, in the order in which the scheduler sent them."""
        events = []
        with contextlib.suppress(IndexError):
            while True:
                events.append(self._heard.popleft())
        return events

    def _began(self, event: tuple[float, Any]) -> None:
        _, said = event
        self._heard.append(Began(str(said["key"]), said["worker"], said["process"], time.monotonic()))

    def _happened(self, event: tuple[float, Any]) -> Any:
        _, said = event
        if isinstance(said, dict) and said.get("action") == "remove-worker" and not self._closed:
            keys = {*said.get("processing-tasks", ()), *said.get("lost-computed-tasks", ())}
            self._heard.append(Left(said["worker"], frozenset(map(str, keys))))
        return self._theirs(event) if self._theirs is not None else None

    def close(self) -> None:
        """Stop listening, and restore the handler that listened before."""
        self._closed = True
        self.client.unsubscribe_topic(self.topic)
        if self._theirs is not None:
            self.client.subscribe_topic(self._EVERYTHING, self._theirs)
        else:
            self.client.unsubscribe_topic(self._EVERYTHING)
