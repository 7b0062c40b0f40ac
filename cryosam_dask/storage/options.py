"""How to connect to remote storage."""

from __future__ import annotations

from typing import Any

import fsspec

_CONNECT_TIMEOUT, _READ_TIMEOUT = 5, 30


def connection_options(kind: Any) -> dict[str, Any]:
    """How to connect, besides what fsspec's configuration and the environment say, which comes first."""
    protocols = kind.protocol if isinstance(kind.protocol, tuple | list) else (kind.protocol,)
    own: dict[str, Any] = {}
    for name in protocols:
        own.update(fsspec.config.conf.get(name, {}))
    if "s3" in protocols:
        config = {
            "connect_timeout": _CONNECT_TIMEOUT,
            "read_timeout": _READ_TIMEOUT,
            "retries": {"mode": "standard", "total_max_attempts": 1},  # one owner of the patience, or waits multiply
            **own.get("config_kwargs", {}),
        }
        # with one request at a time for an object its size need not be asked for before it is read
        return {"use_listings_cache": False, "max_concurrency": own.get("max_concurrency", 1), "config_kwargs": config}
    if "http" in protocols:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT)
        return {"client_kwargs": {"timeout": timeout, **own.get("client_kwargs", {})}}
    return {"use_listings_cache": False}
