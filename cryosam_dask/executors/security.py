"""Who may talk to a scheduler and its workers: certificates of the user, or temporary ones of our own clusters.

Whoever can connect to a Dask scheduler or worker can run code as its owner. With TLS both sides must show a certificate
that the cluster's own authority signed; without one there is no conversation.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from cryosam_dask.errors import SettingsError

if TYPE_CHECKING:
    from distributed import Security

logger = logging.getLogger(__name__)

TLS = "tls://"
_ROLES = ("client", "scheduler", "worker")


def security_from(
    ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
) -> Security | None:
    """The user's certificates (PEM files), or None if none are given.

    Raises
    ------
    SettingsError : only some of the three are given; a file can't be read, is not PEM, or does not belong to the others
    """
    from distributed import Security

    given = {"ca": ca, "cert": cert, "key": key}
    if all(path is None for path in given.values()):
        return None
    if missing := [name for name, path in given.items() if path is None]:
        names = ", ".join(f"--tls-{name}" for name in missing)
        raise SettingsError(f"TLS needs --tls-ca, --tls-cert and --tls-key together; missing: {names}")
    paths = {name: _pem(Path(str(path)).expanduser(), name) for name, path in given.items()}
    roles = {f"tls_{role}_{part}": str(paths[part]) for role in _ROLES for part in ("cert", "key")}
    security = Security(tls_ca_file=str(paths["ca"]), require_encryption=True, **roles)
    _check(security, f"{paths['cert']} and {paths['key']}", f"{paths['ca']}")
    return security


def configured_security() -> Security | None:
    """The certificates in `distributed.comm.tls` of Dask's configuration; None if there are none."""
    import dask
    from distributed import Security

    if not dask.config.get("distributed.comm.tls.ca-file", None):
        return None
    security = Security()
    where = "distributed.comm.tls of Dask's configuration"
    _check(security, where, where)
    return security


def temporary_security() -> Security:
    """Certificates for one cluster, made now and kept in memory: only those who are handed them can connect."""
    from distributed import Security

    security: Security = Security.temporary()
    return security


def secured(address: str, security: Security | None) -> tuple[str, Security | None]:
    """A scheduler's address with its protocol, and the certificates for it: those given, or of Dask's configuration.

    Raises
    ------
    SettingsError : certificates for a connection that is not encrypted, none for one that is, or no address
    """
    _check_address(address)
    if security is None:
        if not address.startswith(TLS):
            return address, None
        security = configured_security()
        if security is None:
            raise SettingsError(
                f"{address} wants a certificate; give --tls-ca, --tls-cert and --tls-key, or set distributed.comm.tls "
                "in Dask's configuration"
            )
    if "://" not in address:
        return f"{TLS}{address}", security
    if not address.startswith((TLS, "wss://")):
        raise SettingsError(
            f"the connection to {address} would not be encrypted, so certificates are of no use; expected "
            f"{TLS}{address.partition('://')[2]}, or no --tls-ca, --tls-cert, --tls-key"
        )
    return address, security


def _check_address(address: str) -> None:
    """`SettingsError` for an address without a host and a port: Dask would try it, and not close what it tried with."""
    from distributed.comm.addressing import parse_address, parse_host_port

    protocol, place = parse_address(address)
    if protocol in ("tcp", "tls"):
        try:
            parse_host_port(place)
        except ValueError:
            raise SettingsError(
                f"--scheduler {address}: expected tcp://HOST:PORT or tls://HOST:PORT, as the scheduler prints it"
            ) from None


def write_private(folder: Path, name: str, text: str) -> Path:
    """Write a file that only its owner can read, from its first byte on, in a folder that only its owner can enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


def _pem(path: Path, name: str) -> Path:
    """The path, if it holds PEM. What it holds is never shown."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"--tls-{name} {path}: can't be read ({error.strerror})") from None
    wanted = b"PRIVATE KEY-----" if name == "key" else b"CERTIFICATE-----"
    if b"-----BEGIN " not in text or wanted not in text:
        raise SettingsError(
            f"--tls-{name} {path}: expected {'a private key' if name == 'key' else 'a certificate'} in PEM format "
            f"(-----BEGIN …{wanted.decode()})"
        )
    if name == "key":
        if b"ENCRYPTED" in text:
            raise SettingsError(f"--tls-key {path}: the key has a passphrase, which workers can't be asked for")
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("%s: others than its owner may read this private key; chmod 600 it", path)
    return path


def _check(security: Security, pair: str, ca: str) -> None:
    """Load the certificates as a connection would."""
    try:
        security.get_connection_args("client")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(
            f"TLS: {pair} with the authority {ca} can't be loaded ({reason}); expected PEM files, with the key that "
            "belongs to the certificate"
        ) from None
