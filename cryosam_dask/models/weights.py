"""Model weights: where they come from, where they are kept, and how they are checked before they are used.

A weights file is one of three kinds.

- *Known*: its SHA-256 stands on the model's entry. It is checked after the download and before every load.
- *Pinned*: no published SHA-256 was found to compare with (DINO, DINOv3, micro-sam, and any other model of timm). The
  hash seen at the first use is written beside the file (`FILE.sha256`, the format of `sha256sum`) and checked before
  every later load. This notices a file that changed or was cut; it can't tell whether the first download was the right
  one. Where an XXH128 is published instead (micro-sam), the file has to have that before it is pinned: it tells a wrong
  or a damaged file, but not one that was forged to have it.
- *Given*: a path in the model's spec, `NAME=PATH`. It is the user's choice and is compared with nothing; what guards
  against code in it is that PyTorch files are read with `weights_only=True`, and safetensors hold no code.

Downloads come by https alone (http from this machine's own loopback), go to a temporary file, and get their name only
with the right hash. In every case the hash of the file in use goes into the fingerprints (`registry.weights_identity`).
Files are kept in `$CRYOSAM_CACHE`, else in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from cryosam_dask.errors import ModelError

CACHE_VARIABLE = "CRYOSAM_CACHE"
"""Environment variable that names the directory of downloaded weights."""

RETRIES = 2
"""Further attempts after a download that broke."""

_download_lock = threading.Lock()


@dataclass(frozen=True)
class Source:
    """A file of weights on the network.

    Attributes
    ----------
    url : address of the file; file : its name in the cache
    sha256 : hexadecimal digest, or None where none is published (see the module's notes on pinning)
    xxh128 : hexadecimal digest that is published instead; None where none is
    """

    url: str
    file: str
    sha256: str | None = None
    xxh128: str | None = None

    @property
    def published(self) -> str:
        """What is published to check the file by, in words."""
        other = f"XXH128 {self.xxh128}" if self.xxh128 else "no published SHA-256"
        return f"SHA-256 {self.sha256}" if self.sha256 else other


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine that passed its check: where it is and its SHA-256."""

    path: Path
    sha256: str


def cache_dir() -> Path:
    """Directory of downloaded weights: `$CRYOSAM_CACHE`, else `cryosam-dask` in the user's cache directory."""
    import platformdirs

    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("cryosam-dask")) / "weights"


def hub_source(repository: str, file: str = "model.safetensors") -> Source:
    """A file of a Hugging Face repository (no published SHA-256: pinned at the first use).

    Its name in the cache is made of the repository's, as most files there have the same name.
    """
    url = f"{_hub_endpoint()}/{repository}/resolve/main/{file}"
    return Source(url, f"{repository}/{file}".replace("/", "--"))


def _hub_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def locate(name: str, source: Source | None, path: str | None) -> WeightsFile:
    """The checked weights file of the model `name`: `path` if given, else the cached or downloaded `source`.

    Raises
    ------
    ModelError
        There is no such file, it can't be downloaded, or it is not the expected one.
    """
    if path is not None:
        given = Path(path).expanduser()
        if not given.is_file():
            actual = "a directory" if given.is_dir() else "no such file"
            raise ModelError(f"weights of {name}: expected a file at {given}, found {actual}; check {name}=PATH")
        return WeightsFile(given, file_sha256(given))
    if source is None:
        raise ModelError(f"weights of {name}: no address is known for them; give a local file as {name}=PATH")
    target = cache_dir() / source.file
    if not target.is_file():
        with _download_lock:
            if not target.is_file():
                _download(name, source, target)
    return WeightsFile(target, _verified(name, source, target))


def identity(name: str, sha256: str) -> str:
    """What identifies a model with weights in fingerprints."""
    return f"{name} sha256:{sha256}"


def expected_sha256(source: Source | None) -> str | None:
    """The digest that `source` must have: the published one, else the pinned one, else None. Opens no weights."""
    if source is None:
        return None
    return source.sha256 or _pinned(cache_dir() / source.file)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; computed once per process as long as its size and time of change stay."""
    try:
        status = path.stat()
        return _sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"weights file {path} can't be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _xxh128(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _pin_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _pinned(target: Path) -> str | None:
    pin = _pin_file(target)
    if not pin.is_file():
        return None
    try:
        with pin.open("rb") as file:
            words = file.read(1024).split()
    except OSError as error:
        raise ModelError(f"{pin} can't be read: {error.strerror or error}") from error
    if not words or not re.fullmatch(rb"[0-9a-f]{64}", words[0]):
        # Taking it for absent would trust whatever file lies beside it.
        raise ModelError(f"{pin} holds no SHA-256, it is damaged; delete it and {target.name} to download them again")
    return words[0].decode()


def _verified(name: str, source: Source, target: Path) -> str:
    """Check a cached file against its published or pinned digest; pin it if it has neither. Returns the digest."""
    digest = file_sha256(target)
    expected = source.sha256 or _pinned(target)
    if expected is None:
        if source.xxh128 and (other := _xxh128(target)) != source.xxh128:
            raise ModelError(
                f"weights of {name}: {target} has XXH128 {other}, expected {source.xxh128} (published); delete the "
                f"file to download it again, or use a file of your own with {name}=PATH"
            )
        _pin(target, digest)
    elif digest != expected:
        kind = "published" if source.sha256 else f"recorded at the first use in {_pin_file(target).name}"
        raise ModelError(
            f"weights of {name}: {target} has SHA-256 {digest}, expected {expected} ({kind}); delete the file to "
            f"download it again, or use a file of your own with {name}=PATH"
        )
    return digest


def _pin(target: Path, digest: str) -> None:
    pin = _pin_file(target)
    partial = pin.with_name(f"{pin.name}.{os.getpid()}")
    try:
        partial.write_text(f"{digest}  {target.name}\n")
        partial.replace(pin)
    except OSError as error:
        raise ModelError(f"can't write {pin}: {error.strerror or error}; set {CACHE_VARIABLE}") from error


def _download(name: str, source: Source, target: Path) -> None:
    """Fetch `source` to `target`. Pooch writes to a temporary file and moves it, so `target` is never a part."""
    import pooch

    _check_secure(name, source.url)
    terminal = sys.stderr.isatty()
    pooch.get_logger().setLevel("INFO" if terminal else "WARNING")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token and source.url.startswith(f"{_hub_endpoint()}/") else {}

    def check_redirect(response: Any, **_: Any) -> None:
        if response.is_redirect:
            _check_secure(name, urljoin(response.url, response.headers["location"]))

    downloader = pooch.HTTPDownloader(progressbar=terminal, headers=headers, hooks={"response": check_redirect})
    store = pooch.create(
        path=target.parent,
        base_url="",
        registry={source.file: source.sha256 or (f"xxh128:{source.xxh128}" if source.xxh128 else None)},
        urls={source.file: source.url},
        retry_if_failed=RETRIES,
    )
    try:
        store.fetch(source.file, downloader=downloader)
        _share(target)
    except (ValueError, OSError) as error:  # requests' own errors are OSErrors
        raise ModelError(
            f"weights of {name} could not be downloaded ({_reason(error, source.url)}); put {source.url} at {target} "
            f"({source.published}), or give a local file as {name}=PATH; --models builtin needs no download"
        ) from error


def _check_secure(name: str, url: str) -> None:
    """Refuse an address where somebody on the way could put another file."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        raise ModelError(
            f"weights of {name}: {parts.scheme or 'no'}://{parts.hostname}: expected an https address; give a local "
            f"file as {name}=PATH"
        )


def _share(path: Path) -> None:
    """The mode that any new file has: temporary ones, which this one was, are their owner's alone."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.touch()
    path.chmod(stat.S_IMODE(new.stat().st_mode))
    new.unlink()


def _reason(error: Exception, url: str) -> str:
    """Why a download failed, in one short line."""
    text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    if "Max retries exceeded" in text:
        return f"no connection to {url.split('/')[2]}"
    if text.startswith(("401", "403")):
        return f"{text}: the server wants a login; accept the model's licence there and set HF_TOKEN"
    return text
