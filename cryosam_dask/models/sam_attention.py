"""SAM's image encoder with fused attention: the same results without the scores of all pairs of tokens in memory.

SAM adds a bias to the score of query q at (h, w) and the key at (i, j): rows[h - i] · q + columns[w - j] · q
("decomposed relative positions", Li et al., MViTv2, 2022). The public code holds scores, scores with bias and their
softmax for all heads at once; here `scaled_dot_product_attention` gets the bias as its mask, for a few heads and lines
of queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BIAS_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Bias held at a time, by kind of device: within a CPU's caches; enough to fill a GPU."""


def fuse(encoder: Any) -> None:
    """Give each block of SAM's image encoder fused attention; the class and other models stay as they are.

    `encoder` is an `ImageEncoderViT` of segment_anything or a `VisionTransformerSAM` of timm, which name things alike;
    one of another kind has no blocks with relative positions and stays as it is, too.
    """
    for block in getattr(encoder, "blocks", ()):
        if block.attn.use_rel_pos:
            block.attn.forward = MethodType(_forward, block.attn)


def _forward(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """What `segment_anything.modeling.image_encoder.Attention` gives for x (B, H, W, C), within rounding.

    On the CPU attention itself is always float32: half precision gains in the linear layers only, and is slower here.
    """
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    batch, height, width, _ = x.shape
    qkv = attention.qkv(x).view(batch, height * width, 3, attention.num_heads, -1)
    if x.device.type == "cpu":
        qkv = qkv.float()
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, channels of a head)
    rows = get_rel_pos(height, height, attention.rel_pos_h).to(qkv.dtype)
    columns = get_rel_pos(width, width, attention.rel_pos_w).to(qkv.dtype)
    out = torch.empty_like(qkv[:, :, 0])
    grid = query.unflatten(2, (height, width))
    with torch.autocast(x.device.type, enabled=False):
        along_rows = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)[..., :, None]
        along_columns = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)[..., None, :]
        for heads, lines in _pieces(query, height, width):
            bias = along_rows[:, heads, lines] + along_columns[:, heads, lines]
            tokens = slice(lines.start * width, lines.stop * width)
            attended = torch.nn.functional.scaled_dot_product_attention(
                query[:, heads, tokens],
                key[:, heads],
                value[:, heads],
                attn_mask=bias.flatten(4).flatten(2, 3),
                scale=attention.scale,
            )
            out[:, tokens, heads] = attended.transpose(1, 2)
    projected: torch.Tensor = attention.proj(out.view(batch, height, width, -1))
    return projected


def _pieces(query: torch.Tensor, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """(heads, lines of queries) to do together so that their bias keeps to `BIAS_BYTES`, if one line does."""
    batch, count, tokens, _ = query.shape
    line = batch * width * tokens * query.element_size()
    lines = max(1, BIAS_BYTES[query.device.type] // line)
    heads = max(1, min(count, lines // height))
    lines = min(lines, height)
    for head in range(0, count, heads):
        for start in range(0, height, lines):
            yield slice(head, min(head + heads, count)), slice(start, min(start + lines, height))
