"""Vision transformers of timm as slice encoders: DINOv2, DINO, DINOv3, SAM's image encoder, and any other by name."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask.errors import ModelError, SettingsError
from cryosam_dask.models.checkpoint import load_into, read_state_dict
from cryosam_dask.models.devices import device_memory, to_device
from cryosam_dask.models.sam_attention import fuse
from cryosam_dask.types import Float32

if TYPE_CHECKING:
    import torch

PASS_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Patch tokens in one forward pass of an encoder, by kind of device; a slice with more goes alone."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types a model computes in; the half ones through autocast, with weights kept in float32."""


class TimmEncoder:
    """A timm vision transformer behind the `SliceEncoder` protocol.

    Slices become three equal channels with no further normalisation. Tokens are those of timm's `forward_features`
    (the final norm, or SAM's neck, applied) without the class and register tokens. Position embeddings are
    interpolated to the slice's own grid by timm (`dynamic_img_size`). Tokens equal those of the official code of
    DINOv2 and DINOv3, except that for DINOv2 without registers, at other sizes than 518 x 518, the official code
    interpolates positions without antialiasing and with a small offset.

    Parameters
    ----------
    module : a `VisionTransformer`, `Eva` or `VisionTransformerSAM` of timm that takes images of any size; it is moved
        to the device, and SAM's gets fused attention
    name, identity : as in the protocol
    device : "cpu", "cuda" or "cuda:N"
    dtype : one of `DTYPES`
    """

    def __init__(
        self, module: torch.nn.Module, name: str, identity: str, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        self.name = name
        self.identity = identity
        self.device = device
        self.dtype = check_dtype(dtype)
        self.patch, self.channels = geometry(module, name)
        self._module: Any = module.to(device).eval().requires_grad_(False)
        if has_dense_attention(module):
            fuse(module)
        self._prefix = int(getattr(module, "num_prefix_tokens", 0))
        self._inputs = int(getattr(module, "in_chans", 3))

    def encode(self, slices: Float32) -> Float32:
        """Tokens (N, A / patch, B / patch, C) float32 of slices (N, A, B); see `SliceEncoder.encode`.

        Raises
        ------
        ValueError
            A or B is not a multiple of the patch.
        ModelError
            The tokens are not finite, as may happen in float16.
        """
        tokens: Float32 = self.encode_tensor(slices).cpu().numpy()
        if not np.isfinite(tokens).all():
            raise not_finite(self.name, self.dtype)
        return tokens

    def encode_tensor(self, slices: Any) -> torch.Tensor:
        """The same on the device, see `TensorEncoder.encode_tensor`; ValueError as in `encode`."""
        import torch

        count, height, width = slices.shape
        if height % self.patch or width % self.patch or not height * width:
            raise ValueError(f"{self.name}: slices of {height} x {width} are not multiples of patch {self.patch}")
        grid = height // self.patch, width // self.patch
        step = slices_per_pass(grid, self.device)
        with torch.inference_mode(), device_memory(self.name, self.device):
            if 0 < count <= step:
                return self._forward(slices, grid)
            tokens = torch.empty((count, *grid, self.channels), device=self.device)
            for start in range(0, count, step):
                tokens[start : start + step] = self._forward(slices[start : start + step], grid)
            return tokens

    def _forward(self, slices: Any, grid: tuple[int, int]) -> torch.Tensor:
        with autocast(self.device, self.dtype):
            images = to_device(slices, self.device)
            features = self._module.forward_features(images[:, None].expand(-1, self._inputs, -1, -1))
            if features.ndim == 4:  # SAM's neck: channels before rows and columns
                features = features.permute(0, 2, 3, 1)
            else:
                features = features[:, self._prefix :].unflatten(1, grid)
            tokens: torch.Tensor = features.float().contiguous()
            return tokens


def not_finite(name: str, dtype: str) -> ModelError:
    """The error for tokens that are not finite, as may happen in float16."""
    return ModelError(f"{name} gave tokens that are not finite in {dtype}; use dtype float32")


def slices_per_pass(grid: tuple[int, int], device: str) -> int:
    """How many slices of axb tokens one forward pass takes."""
    return max(1, PASS_TOKENS[device.split(":")[0]] // (grid[0] * grid[1]))


def has_dense_attention(module: torch.nn.Module) -> bool:
    """Whether attention holds all pairs of tokens in memory as it is published (SAM's image encoder)."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    return isinstance(module, VisionTransformerSAM)


def check_dtype(dtype: str) -> str:
    """`dtype` if it is one of `DTYPES`, else a SettingsError."""
    if dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    return dtype


def autocast(device: str, dtype: str) -> Any:
    """Context in which torch computes in `dtype`; float32 leaves everything as it is."""
    import torch

    kind = device.split(":")[0]
    return torch.autocast(kind, getattr(torch, dtype)) if dtype != "float32" else contextlib.nullcontext()


def geometry(module: Any, name: str) -> tuple[int, int]:
    """(patch, channels) of a transformer of timm; a ModelError if it has no square grid of patches."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    if not isinstance(module, VisionTransformer | Eva | VisionTransformerSAM):
        raise ModelError(
            f"{name} is a {type(module).__name__}, expected a vision transformer with a plain grid of patches "
            f"(timm's VisionTransformer, Eva or VisionTransformerSAM)"
        )
    embedding: Any = module.patch_embed
    rows, columns = embedding.patch_size
    if rows != columns:
        raise ModelError(f"{name} has patches of {rows} x {columns} pixels, expected square ones")
    return int(rows), int(module.num_features)


def build(architecture: str, meta: bool = False, **overrides: Any) -> torch.nn.Module:
    """A timm model without its classifier, with random weights, for images of any size.

    Parameters
    ----------
    architecture : name of a timm model, with or without the tag of its weights
    meta : build on torch's meta device: shapes only, no memory
    overrides : arguments of the model's class (embed_dim, depth, …)

    Raises
    ------
    ModelError
        timm has no such model, or it can't take images of any size.
    """
    import timm
    import torch

    if not timm.is_model(architecture.split(".")[0]):
        raise ModelError(f"timm:{architecture}: timm {timm.__version__} has no such model")
    if not architecture.startswith("samvit"):  # SAM's encoder takes any size without being asked
        overrides = {"dynamic_img_size": True, **overrides}
    try:
        with torch.device("meta" if meta else "cpu"):
            return timm.create_model(architecture, pretrained=False, num_classes=0, **overrides)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ModelError(f"timm:{architecture} can't be built for slices of any size: {error}") from error


def load_checkpoint(module: torch.nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint file into a timm model: timm's own layout, or the official one of DINO, DINOv2, DINOv3 or SAM.

    The layouts are translated by the `checkpoint_filter_fn` of the model's module in timm, which also resamples the
    position embedding to the model's grid.

    Raises
    ------
    ModelError
        The file is no checkpoint, or not one of this model.
    """
    tensors = read_state_dict(path)
    _check_biases(module, tensors, name, path)
    translate = sys.modules[type(module).__module__].checkpoint_filter_fn
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints each bias it skips
            tensors = translate(tensors, module)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"weights file {path} does not fit {name}: {detail}; is it for another model?") from error
    load_into(module, tensors, name, path)


def _check_biases(module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str, path: Path) -> None:
    """Refuse a DINOv3 checkpoint whose query and value biases matter when the model has none (timm drops them)."""
    biases = [value for key, value in tensors.items() if key.endswith("attn.qkv.bias")]
    if "storage_tokens" not in tensors or any(key.endswith("q_bias") for key, _ in module.named_parameters()):
        return
    for bias in biases:
        query, _, value = bias.chunk(3)
        if query.any() or value.any():
            raise ModelError(
                f"weights file {path} has query and value biases that {name} lacks; use timm's …_qkvb model"
            )
