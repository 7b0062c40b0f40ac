"""Model weights: where they come from, where they are kept, and how they are checked before they are used.

A weights file is one of three kinds.

- *Known*: its SHA-256 stands in `KNOWN`. It is checked after the download and before every load.
- *Pinned*: no published SHA-256 was found to compare with (DINO, DINOv3, and any other model of timm). The hash seen at
  the first use is written beside the file (`FILE.sha256`, the format of `sha256sum`) and checked before every later
  load. This notices a file that changed or was cut; it can't tell whether the first download was the right one.
- *Given*: a path in the model's spec, `NAME=PATH`. It is the user's choice and is compared with nothing.

In every case the hash of the file in use goes into the fingerprints (`registry.weights_identity`).
Files are kept in `$CRYOSAM_CACHE`, else in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ModelError

if TYPE_CHECKING:
    import torch

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
    """

    url: str
    file: str
    sha256: str | None = None


def _dinov2(size: str, sha256: str, registers: bool = False) -> Source:
    file = f"dinov2_vit{size}14{'_reg4' if registers else ''}_pretrain.pth"
    return Source(f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14/{file}", file, sha256)


def _dino(stem: str) -> Source:
    return Source(f"https://dl.fbaipublicfiles.com/dino/{stem}/{stem}.pth", f"{stem}.pth")


def _sam(file: str, sha256: str) -> Source:
    return Source(f"https://dl.fbaipublicfiles.com/segment_anything/{file}", file, sha256)


_SAM_B = _sam("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912")
_SAM_L = _sam("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622")
_SAM_H = _sam("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e")

KNOWN: dict[str, Source] = {
    "dinov2-vits14": _dinov2("s", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "dinov2-vitb14": _dinov2("b", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "dinov2-vitl14": _dinov2("l", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    "dinov2-vitg14": _dinov2("g", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
    "dinov2-vits14-reg": _dinov2("s", "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb", True),
    "dinov2-vitb14-reg": _dinov2("b", "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", True),
    "dinov2-vitl14-reg": _dinov2("l", "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51", True),
    "dinov2-vitg14-reg": _dinov2("g", "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", True),
    "dino-vits16": _dino("dino_deitsmall16_pretrain"),
    "dino-vits8": _dino("dino_deitsmall8_pretrain"),
    "dino-vitb16": _dino("dino_vitbase16_pretrain"),
    "dino-vitb8": _dino("dino_vitbase8_pretrain"),
    "sam-vitb": _SAM_B,
    "sam-vitl": _SAM_L,
    "sam-vith": _SAM_H,
}
"""Weights by model name. The digests are those that independent projects publish for the official files."""


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
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return Source(f"{endpoint}/{repository}/resolve/main/{file}", f"{repository.replace('/', '--')}--{file}")


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
            found = "a directory" if given.is_dir() else "no such file"
            raise ModelError(f"weights of {name}: expected a file at {given}, found {found}; check {name}=PATH")
        return WeightsFile(given, file_sha256(given))
    if source is None:
        raise ModelError(f"weights of {name}: no address is known for them; give a local file as {name}=PATH")
    target = cache_dir() / source.file
    if not target.is_file():
        with _download_lock:
            if not target.is_file():
                _download(name, source, target)
    return WeightsFile(target, _verified(name, source, target))


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


def _pin_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _pinned(target: Path) -> str | None:
    pin = _pin_file(target)
    words = pin.read_text().split() if pin.is_file() else []
    return words[0] if words else None


def _verified(name: str, source: Source, target: Path) -> str:
    """Check a cached file against its published or pinned digest; pin it if it has neither. Returns the digest."""
    found = file_sha256(target)
    expected = source.sha256 or _pinned(target)
    if expected is None:
        _pin(target, found)
    elif found != expected:
        kind = "published" if source.sha256 else f"recorded at the first use in {_pin_file(target).name}"
        raise ModelError(
            f"weights of {name}: {target} has SHA-256 {found}, expected {expected} ({kind}); delete the file to "
            f"download it again, or use a file of your own with {name}=PATH"
        )
    return found


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

    terminal = sys.stderr.isatty()
    pooch.get_logger().setLevel("INFO" if terminal else "WARNING")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token and "/resolve/main/" in source.url else {}
    store = pooch.create(
        path=target.parent,
        base_url="",
        registry={source.file: source.sha256},
        urls={source.file: source.url},
        retry_if_failed=RETRIES,
    )
    try:
        store.fetch(source.file, downloader=pooch.HTTPDownloader(progressbar=terminal, headers=headers))
    except (ValueError, OSError) as error:  # requests' own errors are OSErrors
        digest = f"SHA-256 {source.sha256}" if source.sha256 else "no published SHA-256"
        raise ModelError(
            f"weights of {name} could not be downloaded ({_reason(error, source.url)}); put {source.url} at {target} "
            f"({digest}), or give a local file as {name}=PATH; --models builtin needs no weights"
        ) from error


def _reason(error: Exception, url: str) -> str:
    """Why a download failed, in one short line."""
    text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    if "Max retries exceeded" in text:
        return f"no connection to {url.split('/')[2]}"
    if text.startswith(("401", "403")):
        return f"{text}: the server wants a login; accept the model's licence there and set HF_TOKEN"
    return text


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint (.safetensors or a PyTorch file) as a flat dict of tensors on the CPU.

    PyTorch files are read with `weights_only=True`: nothing in them is executed. A dict inside `model`, `state_dict`
    or `teacher` is unwrapped.

    Raises
    ------
    ModelError
        The file is cut, or is no checkpoint.
    """
    tensors = _unwrap(_read(path))
    if not tensors:
        raise ModelError(f"weights file {path}: expected a dict of tensors, found none; it is no checkpoint")
    return tensors


def _read(path: Path) -> Any:
    import pickle

    import torch
    from safetensors import SafetensorError

    malformed = (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, ValueError, KeyError, OSError)
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of header size, then JSON
            import safetensors.torch

            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except malformed as error:
        size = path.stat().st_size if path.is_file() else 0
        raise ModelError(
            f"weights file {path} ({size:,} bytes) is cut or is no checkpoint ({type(error).__name__}); expected a "
            f"PyTorch or safetensors file, download it again"
        ) from error


def _unwrap(read: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(read, dict):
        return {}
    for key in ("model", "state_dict", "teacher"):
        if isinstance(read.get(key), dict):
            return _unwrap(read[key])
    return {key: value for key, value in read.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def load_into(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str, path: Path, assign: bool = False
) -> None:
    """Load all of `module`'s weights from `tensors`; a classifier (`head…`) in the file is left out.

    `assign` puts the tensors themselves into the module, as one built on the meta device needs.

    Raises
    ------
    ModelError
        A tensor is missing, has another shape, or has no place in the model.
    """
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False, assign=assign)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        detail = lines[0] if lines else str(error).splitlines()[0]
        raise ModelError(
            f"weights file {path} does not fit {name}: {detail} ({len(lines)} such); is it for another model size?"
        ) from error
    unexpected = [key for key in unexpected if not key.startswith(("head", "fc_norm"))]
    if missing or unexpected:
        raise ModelError(
            f"weights file {path} does not fit {name}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} with no place in the model {unexpected[:3]}; is it for another model?"
        )
