"""Models by name: the identity of their weights, loading them, and the device they run on."""

from __future__ import annotations

from typing import Literal

from cryosam_dask.errors import DeviceError, SettingsError
from cryosam_dask.models import weights
from cryosam_dask.models.catalog import (
    SEGMENTERS,
    TIMM_PREFIX,
    VITS,
    check_encoder,
    check_segmenter,
    random_walker,
    split_spec,
    texture,
)
from cryosam_dask.types import PromptedSegmenter, SliceEncoder


def _architecture(name: str) -> str:
    """timm's name, with the tag of the weights, of an encoder."""
    return VITS[name].architecture if name in VITS else name.removeprefix(TIMM_PREFIX)


def _source(name: str) -> weights.Source | None:
    """Where the weights of a model are fetched from; None if timm names no place."""
    if name in weights.KNOWN:
        return weights.KNOWN[name]
    import timm.models

    settings = timm.models.get_pretrained_cfg(_architecture(name))
    if settings is None or not settings.has_weights:
        return None
    if settings.hf_hub_id:
        hub = settings.hf_hub_id
        tag = f"{settings.architecture}.{settings.tag}" if settings.tag else settings.architecture
        repository = f"{hub}{tag}" if hub.endswith("/") else hub
        return weights.hub_source(repository, settings.hf_hub_filename or "model.safetensors")
    url = settings.url if isinstance(settings.url, str) else ""
    return weights.Source(url, url.rsplit("/", 1)[-1]) if url else None


def weights_identity(spec: str) -> str:
    """What stands for a model in fingerprints: its name, and the SHA-256 of the weights or the version of a built-in.

    The model is not loaded. Weights whose digest is published need not even be there; others are fetched.

    Raises
    ------
    ModelError
        The name is unknown, or weights without a published digest can't be had.
    """
    name, path = _checked(spec)
    if name == "texture":
        return texture().identity
    if name == "random-walker":
        return random_walker().identity
    source = None if path else _source(name)
    digest = weights.expected_sha256(source) or weights.locate(name, source, path).sha256
    return _identity(name, digest)


def _checked(spec: str) -> tuple[str, str | None]:
    """(name, path) of the spec of an encoder or a segmenter."""
    return check_segmenter(spec) if split_spec(spec)[0] in SEGMENTERS else check_encoder(spec)


def _identity(name: str, digest: str) -> str:
    return f"{name} sha256:{digest}"


def ensure_weights(spec: str) -> weights.WeightsFile | None:
    """Fetch and check the weights of a model without loading them; None for a model that has none.

    Worth calling once before units are sent to workers, so that a missing file is reported before anything runs.
    """
    name, path = _checked(spec)
    if name in ("texture", "random-walker"):
        return None
    return weights.locate(name, None if path else _source(name), path)


def load_encoder(spec: str, device: str = "cpu", dtype: str = "float32") -> SliceEncoder:
    """Load an encoder on a device ("cpu", "cuda" or "cuda:N"); `texture` runs on the CPU wherever it is asked to.

    Raises
    ------
    ModelError
        The name is unknown, or the weights are missing or not the expected ones.
    """
    name, path = check_encoder(spec)
    if name == "texture":
        return texture()
    from cryosam_dask.models import vit

    vit.check_dtype(dtype)
    module = vit.build(_architecture(name))
    vit.geometry(module, name)
    file = weights.locate(name, None if path else _source(name), path)
    vit.load_checkpoint(module, file.path, name)
    return vit.TimmEncoder(module, name, _identity(name, file.sha256), device, dtype)


def load_segmenter(spec: str, device: str = "cpu", dtype: str = "float32") -> PromptedSegmenter:
    """Load a segmenter on a device; `random-walker` runs on the CPU wherever it is asked to.

    Raises
    ------
    ModelError
        The name is unknown, or the weights are missing or not the expected ones.
    """
    name, path = check_segmenter(spec)
    if name == "random-walker":
        return random_walker()
    from cryosam_dask.models import sam

    file = weights.locate(name, None if path else _source(name), path)
    model = sam.load(name.removeprefix("sam-").replace("vit", "vit_"), file.path, name)
    return sam.SamSegmenter(model, name, _identity(name, file.sha256), device, dtype)


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
        found = f"{count} GPU" + ("s" if count > 1 else "") if count else "no CUDA GPU"
        raise DeviceError(f"device {device} is not there: found {found}; use --device cpu or auto")
    return device
