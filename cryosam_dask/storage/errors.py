"""What an error of a storage package means: whether to try again, and how to say it in one line.

Exceptions are known by their classes' names and by the statuses that they carry, so that no package of a cloud has to
be installed, or imported, for it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryosam_dask.errors import CryosamError
from cryosam_dask.storage.address import public, scrub

DENIED = "access denied"
AGAIN = "; finished units are kept, run the same command again to go on"

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "NoAuthTokenError",
    "TokenRetrievalError",
    "SSOError",
    "LoginError",
    "UnknownCredentialError",
    "DefaultCredentialsError",
    "RefreshError",
}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "SSLError",
    "ProxyConnectionError",
    "ClientConnectorError",
    "ConnectionTimeoutError",
    "ConnectionRefusedError",
    "gaierror",
}
_TRANSIENT = {
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
    "FlexibleChecksumError",
    "ChecksumError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
    "ConnectionError",
    "TimeoutError",
    "UnfinishedError",
}
_BUSY = {"SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException", "InternalError"}
_DENIED = {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "403", "401"}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
_TRANSIENT_ERRNO = {errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.ENOTCONN}
_UNREACHABLE_ERRNO = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}


class UnfinishedError(Exception):
    """An operation did only a part of what it should; the message says what is left."""


@dataclass(frozen=True)
class Fault:
    """What an error means.

    Attributes
    ----------
    reason : the message in one line, without secrets; hint : what to do
    transient : whether it may be gone when it is tried again later; unreachable : no server answered at all
    missing : the error itself, if it says that something is not there (or is not a folder, or is one)
    error : the error itself, if it is already one for users
    """

    reason: str
    hint: str = ""
    transient: bool = False
    unreachable: bool = False
    missing: OSError | None = None
    error: CryosamError | None = None

    def sentence(self, verb: str, place: str, path: str, waited: float) -> str:
        """The error for users. `place` is the bucket or host; `path` the object; `waited` the seconds that were
        tried."""
        where = public(path) if "://" in path else f"{place.partition('://')[0]}://{path}" if path else place
        tried = f" for {waited:.0f} s" if waited >= 1 and self.transient else ""
        hint = self.hint or (AGAIN if self.transient and not self.unreachable else "")
        return f"{where}: can't {verb} it{tried}: {self.reason}{hint}"


def classify(error: BaseException) -> Fault:
    """Classify an error of a storage package by its own kind and by the kinds of its causes."""
    if isinstance(error, CryosamError):
        return Fault(str(error), error=error)
    chain = list(_chain(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    statuses = {status for cause in chain if (status := _status(cause)) is not None}
    codes = {code for cause in chain if (code := _code(cause))}
    numbers = {cause.errno for cause in chain if isinstance(cause, OSError) and cause.errno is not None}
    reason = _reason(error, chain)
    if isinstance(error, ImportError):
        return Fault(f"this kind of address needs another package: {reason}", "; for s3: pip install 's3fs'")
    if names & _NO_CREDENTIALS:
        return Fault(
            f"no usable credentials: {reason}",
            "; give them by the environment (for s3 AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), in "
            "each worker's too",
        )
    if codes & _DENIED or statuses & {401, 403} or (isinstance(error, PermissionError) and not codes):
        return Fault(f"{DENIED}: {reason}", "; check the credentials, then run the same command again")
    if names & _UNREACHABLE or numbers & _UNREACHABLE_ERRNO:
        return Fault(
            f"no answer: {reason}",
            "; check the address, AWS_ENDPOINT_URL and the network, then run the same command again",
            transient=True,
            unreachable=True,
        )
    if statuses & _TRANSIENT_STATUS or codes & _BUSY or names & _TRANSIENT or numbers & _TRANSIENT_ERRNO:
        return Fault(reason, transient=True)
    if isinstance(error, _MISSING):
        return Fault(reason, missing=type(error)(scrub(str(error))))
    return Fault(reason)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, under any of its packages' names for it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for name in ("status", "status_code", "code"):
        value: Any = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _reason(error: BaseException, chain: list[BaseException]) -> str:
    """The first message there is; a server's code and status, which are what people search for."""
    text = next((scrub(str(cause)) for cause in chain if str(cause).strip()), type(error).__name__)
    for cause in chain:
        words = dict.fromkeys(str(word) for word in (_status(cause), _code(cause)) if word)
        if words:
            details = " ".join(words)
            return text if details in text else f"{text} ({details})"
    return text
