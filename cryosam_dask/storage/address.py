"""Addresses of stores and tomograms: what one may contain, and which part of it may be shown or stored."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from cryosam_dask.errors import CryosamError, StoreError

_USERS = ("abfs", "abfss", "adl", "az", "wasb", "wasbs", "sftp", "ssh", "smb", "hdfs")
"""Protocols in which a name before an @ is a place or a person, not a key."""

_LINK = re.compile(r"(?P<before>\w+://)(?:[^\s/@'\"]*@)?(?P<rest>[^\s?#'\"<>]*)[?#]?[^\s'\"<>]*")
_SECRET_NAME = re.compile(r"secret|token|password|passwd|credential|access_key|account_key|sas", re.IGNORECASE)
_SHORTEST_SECRET = 8


def is_local(url: str) -> bool:
    """Whether an address is a path on this machine's (or a mounted) disk."""
    return "://" not in url or url.startswith(("file://", "local://"))


def public(url: str | Path) -> str:
    """An address as it may be shown, logged and stored: without a query, which in a signed link is a password."""
    text = str(url)
    if is_local(text):
        return text
    protocol, _, rest = text.partition("://")
    return f"{protocol}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def check_address(url: str | Path, kind: type[CryosamError] = StoreError) -> None:
    """Refuse an address that holds a password or a key, without repeating it; only http(s) may be signed by a query."""
    text = str(url)
    if is_local(text):
        return
    protocol, _, rest = text.partition("://")
    first = rest.partition("/")[0]
    named = first.rpartition("@")[0]
    # secret keys may hold a slash, so that what looks like a host may be half of a key
    cut = "@" in rest and ":" in first and not first.rpartition(":")[2].isdecimal() and not first.startswith("arn:")
    if ":" in named or (named and protocol.rpartition("::")[2] not in _USERS) or cut:
        raise kind(
            f"an address of {protocol}:// holds a password or a key, which would be written down with it: take it out "
            "and give it by the environment (for s3 AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    query = re.split("[?#]", rest, maxsplit=1)[1:]
    if (
        query
        and protocol not in ("http", "https")
        and any(name != "versionId" for name, _ in parse_qsl(query[0], keep_blank_values=True))
    ):
        raise kind(
            f"{public(text)}: expected nothing after a '?' in an address of {protocol}://; give keys and tokens by the "
            "environment"
        )


def check_store(url: str | Path) -> None:
    """Refuse an address that no store can have: as `check_address`, and without any query."""
    check_address(url)
    text = str(url)
    if public(text) != text:
        raise StoreError(f"{public(text)}: the address of a store ends before a '?'; signed links reach one file only")
    if text.startswith(("http://", "https://")):
        raise StoreError(f"{text}: stores can't be written or listed over http; use s3://, gs://, abfs:// or a disk")


def scrub(text: str) -> str:
    """A message of another package as one line, without user names, passwords and queries in links, and without any
    value that the environment or fsspec's configuration holds under a name that says it is secret."""
    line = " ".join(text.split())
    line = _LINK.sub(lambda match: match["before"] + match["rest"], line)
    for value in _secrets():
        line = line.replace(value, "…")
    return line


def _secrets() -> list[str]:
    import fsspec

    secrets = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    for options in fsspec.config.conf.values():
        secrets += [str(value) for name, value in options.items() if _SECRET_NAME.search(name) or name == "key"]
    # the longest first: one may be a part of another
    return sorted((value for value in secrets if len(value) >= _SHORTEST_SECRET), key=len, reverse=True)


def absolute(url: str) -> str:
    """An address that means the same in a process with another working directory."""
    return url if "://" in url else str(Path(url).absolute())


def local_path(url: str | Path) -> str:
    """A local address as a path: `file://` is taken off."""
    text = str(url)
    return unquote(urlsplit(text).path) if text.startswith("file://") else text
