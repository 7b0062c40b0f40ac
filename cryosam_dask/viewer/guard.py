"""Who may ask for what: the token in the address, Host and Origin of a request, and the headers of every answer.

The page can start jobs and write files, so a request must prove that it comes from the page that was opened here:

- the first part of every path is a token of 192 bits, compared in constant time;
- `Host` must be a name that the server is known by, so that no foreign name can be made to point here (DNS rebinding);
- `Origin`, where a browser sends it, must be the same place; no answer allows another (no CORS).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from cryosam_dask.errors import InputError

TOKEN_BYTES = 24
LOOPBACK = ("localhost", "127.0.0.1", "::1")

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; frame-src "
    "'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'; frame-ancestors 'self'"
)
"""Content-Security-Policy: nothing from elsewhere. The viewer needs workers of blobs, WebAssembly, inline styles."""

VIEWER_POLICY = POLICY.replace("'wasm-unsafe-eval'", "'unsafe-eval'")
"""Of the viewer's own frame: it compiles how annotations are packed, from code of its own."""

DOCUMENT_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""Of a file that the run holds, such as its report: it runs apart from the page, and can ask the server for nothing."""

HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}

_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::\d{1,5})?")


@dataclass(frozen=True)
class Guard:
    """What a request must be like.

    token : first part of every path; hosts : names that `Host` may have, in lower case
    any_address : whether `Host` may be any IP address: no name leads there that could be made to point elsewhere
    framed_by : origins besides this one whose pages may show the page in a frame
    """

    token: str
    hosts: frozenset[str]
    any_address: bool = False
    framed_by: tuple[str, ...] = ()

    def refusal(self, path: str, host: str, origin: str | None, site: str | None, mode: str | None) -> str | None:
        """Why a request is refused, in one line; None if it is not.

        host, origin, site, mode : its headers Host, Origin, Sec-Fetch-Site and Sec-Fetch-Mode
        """
        if not self._knows(host):
            return f"this server is not {_printable(host)}; give --allow-host with that name to `cryosam view`"
        if origin is not None and not self._is_ours(origin, host):
            return "pages of other places can't ask here"
        if site == "cross-site" and mode not in (None, "navigate"):
            return "pages of other places can't ask here"
        if not self._is_token(path):
            return "this address lacks its token; open the one that `cryosam view` printed"
        return None

    def policy(self, policy: str = POLICY) -> str:
        """The Content-Security-Policy, with those who may frame the page."""
        return " ".join([policy, *self.framed_by])

    def _is_token(self, path: str) -> bool:
        given = path.split("/", 2)[1] if path.startswith("/") else ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode())

    def _knows(self, host: str) -> bool:
        name = _name(host)
        return name in self.hosts or (self.any_address and _is_address(name))

    def _is_ours(self, origin: str, host: str) -> bool:
        """Whether an origin is the place that was asked, or the proxy's in front of it."""
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        if parts.netloc.lower() == host.lower():
            return True
        # a proxy may have asked for the loopback name in its own name, which --base-url or --allow-host names
        return (parts.hostname or "") in self.hosts - set(LOOPBACK) and _name(host) in LOOPBACK


def make_token() -> str:
    """A token that can't be guessed, of characters that need no quoting in an address."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def make_guard(
    host: str, allowed: Iterable[str] = (), framed_by: Iterable[str] = (), token: str | None = None
) -> Guard:
    """The guard of a server that listens at `host`.

    allowed : further names that it is known by, of a proxy for instance
    """
    names = {*LOOPBACK, host.lower(), *(_checked(name) for name in allowed)}
    everywhere = _is_address(host) and ipaddress.ip_address(host).is_unspecified
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Guard(token or make_token(), frozenset(names - {""}), everywhere, tuple(framed_by))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _checked(name: str) -> str:
    cleaned = _name(f"[{name}]" if _is_address(name) and ":" in name else name)
    if not cleaned:
        raise InputError(f"--allow-host {_printable(name)}: expected the name of a host, e.g. hub.example.org")
    return cleaned


def _name(host: str) -> str:
    """The name in a Host header, in lower case, without its port and brackets; empty if it can't be one."""
    match = _HOST.fullmatch(host)
    return "" if match is None else (match["address"] or match["name"]).lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _printable(text: str) -> str:
    return "".join(c for c in text[:80] if c.isprintable()) or "what was asked for"
