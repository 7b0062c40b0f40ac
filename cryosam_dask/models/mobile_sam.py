"""MobileSAM: timm's TinyViT as the image encoder of SAM, whose prompt encoder and mask decoder stay as they are.

MobileSAM's TinyViT differs from timm's in its last stage, which keeps the grid of the one before (1/16 of the image),
and has SAM's neck instead of a classifier (Zhang et al., Faster Segment Anything, 2023). Everything else, frames
included, is SAM's: `sam.SamSegmenter` serves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.models.checkpoint import load_into, read_state_dict

if TYPE_CHECKING:
    import torch

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
"""Channels, blocks, heads and sides of windows in the stages of the published model; the first one has convolutions."""


def build() -> Any:
    """The `segment_anything.modeling.Sam` with the encoder of MobileSAM and random weights.

    TinyViT is built for real, the rest on torch's meta device: tables of positions are no weights.
    """
    import torch
    from segment_anything import sam_model_registry

    from cryosam_dask.models.tiny_vit import TinyEncoder

    with torch.device("meta"):
        model = sam_model_registry["vit_b"](checkpoint=None)
    encoder = TinyEncoder(
        model.prompt_encoder.embed_dim,
        model.image_encoder.img_size,
        embed_dims=WIDTHS,
        depths=DEPTHS,
        num_heads=HEADS,
        window_sizes=WINDOWS,
    )
    model.image_encoder = encoder
    return model


def load(path: Path, name: str) -> Any:
    """`build` with the weights of an official checkpoint file.

    Raises
    ------
    ModelError
        The file is no checkpoint, or not one of this model.
    """
    tensors = translate(read_state_dict(path))
    model = build()
    load_into(model, tensors, name, path, assign=True)
    return model.float()


_NAMES = tuple(
    (re.compile(official), ours)
    for official, ours in (
        (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
        (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
        # timm has what joins two stages at the begin of the second one
        (r"^layers\.(\d+)\.downsample\.", lambda match: f"stages.{int(match[1]) + 1}.downsample."),
        (r"^layers\.(\d+)\.", r"stages.\1."),
    )
)
_UNUSED = re.compile(r"(norm_head|head)\.|.*\.attention_bias_idxs$")
"""The classifier, and tables of positions."""


def translate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an official checkpoint by the names that they have here."""
    return {_name(name): tensor for name, tensor in tensors.items() if not _UNUSED.match(_within(name) or "")}


def _within(name: str) -> str | None:
    """A name within the image encoder; None for one of another part."""
    return name.removeprefix("image_encoder.") if name.startswith("image_encoder.") else None


def _name(name: str) -> str:
    inner = _within(name)
    if inner is None or inner.startswith("neck."):
        return name
    for official, ours in _NAMES:
        inner = official.sub(ours, inner)
    return "image_encoder.trunk." + re.sub(r"\.c\.weight$", ".conv.weight", inner)
