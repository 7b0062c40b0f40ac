"""Models by name: the identity of their weights, loading them, and the device they run on."""

from __future__ import annotations

from typing import Literal

from cryosam_dask.errors import DeviceError, SettingsError
from cryosam_dask.models import weights
from cryosam_dask.models.catalog import SEGMENTERS, encoder_entry, segmenter_entry, split_spec
from cryosam_dask.models.info import Entry
from cryosam_dask.types import PromptedSegmenter, SliceEncoder, VolumeSegmenter


def weights_identity(spec: str) -> str:
    """What identifies a model in fingerprints: its name, and the SHA-256 of the weights or the version of a built-in.

    The model is not loaded. Weights whose digest is published need not even be there; others are fetched.

    Raises
    ------
    ModelError
        The name is unknown, or weights without a published digest can't be had.
    """
    entry, path = _entry(spec)
    if entry.version is not None:
        return entry.version
    source = None if path else entry.source()
    digest = weights.expected_sha256(source) or weights.locate(entry.name, source, path).sha256
    return weights.identity(entry.name, digest)


def _entry(spec: str) -> tuple[Entry, str | None]:
    """The entry of the spec of an encoder or a segmenter, and the path of its weights if that is given."""
    return segmenter_entry(spec) if split_spec(spec)[0] in SEGMENTERS else encoder_entry(spec)


def ensure_weights(spec: str) -> weights.WeightsFile | None:
    """Fetch and check the weights of a model without loading them; None for a model that has none.

    Worth calling once before units are sent to workers, so that a missing file is reported before anything runs.
    """
    entry, path = _entry(spec)
    if entry.version is not None:
        return None
    return weights.locate(entry.name, None if path else entry.source(), path)


def load_encoder(spec: str, device: str = "cpu", dtype: str = "float32") -> SliceEncoder:
    """Load an encoder on a device ("cpu", "cuda" or "cuda:N"); one without torch runs on the CPU anyway.

    Raises
    ------
    ModelError
        The name is unknown, or the weights are missing or not the expected ones.
    """
    entry, path = encoder_entry(spec)
    return entry.load(path, device, dtype)


def load_segmenter(spec: str, device: str = "cpu", dtype: str = "float32") -> PromptedSegmenter | VolumeSegmenter:
    """Load a segmenter, of planes or of boxes, on a device; one without torch runs on the CPU anyway.

    Raises
    ------
    ModelError
        The name is unknown, or the weights are missing or not the expected ones.
    """
    entry, path = segmenter_entry(spec)
    return entry.load(path, device, dtype)


def gpu_count() -> int:
    """CUDA devices that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def preferred_precision(device: str) -> Literal["float32", "bfloat16", "float16"]:
    """The type in which models of torch run fastest on a device of this process without losing what matters.

    Half precision where the device has arithmetic for it: bfloat16 (whose range is that of float32) on GPUs from
    compute capability 8 and on CPUs with AVX512-BF16 or AMX, float16 on older GPUs, else float32.
    """
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu; not there in all versions
    fast = any(bool(getattr(torch.cpu, name, bool)()) for name in flags)
    return "bfloat16" if fast else "float32"


def resolve_device(device: str, uses_torch: bool = True) -> str:
    """The device to compute on: "cpu", "cuda" or "cuda:N" for `device` auto, cpu, cuda or cuda:N.

    `auto` takes the GPU where there is one. With `uses_torch=False` (built-in models only) `auto` is the CPU, and
    torch is not imported.

    Raises
    ------
    SettingsError
        `device` has another form.
    DeviceError
        A GPU was asked for and is not there, or the models can't use one. There is no silent fall-back.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise SettingsError(f"device {device!r} is unknown; expected auto, cpu, cuda or cuda:N")
    if kind == "cpu" or (kind == "auto" and not uses_torch):
        return "cpu"
    if not uses_torch:
        raise DeviceError(f"device {device}: the built-in models run on the CPU only; use --device cpu or auto")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return "cuda" if count else "cpu"
    if int(number or 0) >= count:
        available = f"{count} GPU" + ("s" if count > 1 else "") if count else "no CUDA GPU"
        raise DeviceError(f"device {device} is not there: found {available}; use --device cpu or auto")
    return device
