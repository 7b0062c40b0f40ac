"""Models of the classes that SAM's packages have, of any size: what the tests of segmenters compare with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def sam_of(modeling: Any, encoder: Any, pixels: int, grid: int, channels: int, **transformer: int) -> Any:
    """A Sam around an image encoder of `pixels` a side, whose embeddings have `channels` on `grid` × `grid` places.

    modeling : `segment_anything.modeling`, or that of a package with the same classes
    transformer : `depth`, `mlp_dim` and `num_heads` of the mask decoder's
    """
    return modeling.Sam(
        image_encoder=encoder,
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(pixels, pixels),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(embedding_dim=channels, **transformer),
            transformer_dim=channels,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def image_encoder(**sizes: Any) -> Any:
    """SAM's image encoder with the published kinds of layers, of other sizes."""
    from segment_anything.modeling import ImageEncoderViT

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    return ImageEncoderViT(norm_layer=norm, qkv_bias=True, use_rel_pos=True, **sizes)
