"""The image encoder of MobileSAM, as a module: see `mobile_sam`."""

from __future__ import annotations

from typing import Any

from segment_anything.modeling.common import LayerNorm2d
from timm.models import tiny_vit
from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """An image (1, 3, S, S) as from `Sam.preprocess` → the embedding (1, C, S / 16, S / 16).

    Parameters
    ----------
    channels : C; size : S
    shape : widths, depths, heads and windows, as arguments of timm's `TinyVit`
    """

    def __init__(self, channels: int, size: int, **shape: Any) -> None:
        super().__init__()
        self.img_size = size
        # The class itself, as MobileSAM's own package puts its TinyViT in the place of timm's among timm's names.
        build: Any = tiny_vit.TinyVit
        self.trunk = build(num_classes=0, drop_path_rate=0.0, **shape)
        self.trunk.head = nn.Identity()
        self.trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(self.trunk.num_features, channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.neck(self.trunk.forward_features(image))
        return embedding
