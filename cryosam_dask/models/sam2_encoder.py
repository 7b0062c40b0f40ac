"""SAM 2's modules for single images: timm's Hiera, the neck and the convolutions that make of it what is decoded.

What SAM 2 decodes from is in three resolutions: a pixel of the embedding (1/16 of the image), what is added to its
2 × 2 parts (1/8), and to the 4 × 4 parts (1/4; Ravi et al., SAM 2, 2024). All three are stored as one array
on the embedding's grid: the parts of a pixel are channels, in the order in which the decoder makes them. The memory
that SAM 2 keeps of a video is not used: a walk from plane to plane takes the logits of the plane before as its prompt.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

SIZE = 1024
"""Pixels of a side of the image that the published models see."""

CHANNELS = 256
"""Channels of the embedding, of the neck and of the decoder in the published models."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Sam2Encoder(nn.Module):
    """An image (1, 3, S, S) as from `Sam2.preprocess` → (1, 4 C, S / 16, S / 16): C channels of the embedding, 4 times
    C / 4 for the parts of its pixels, and 16 times C / 8 for the parts of those.

    Parameters
    ----------
    trunk : a `HieraDet` of timm
    channels : C; size : S
    """

    def __init__(self, trunk: Any, channels: int = CHANNELS, size: int = SIZE) -> None:
        super().__init__()
        self.img_size = size
        self.trunk = trunk
        trunk.head = nn.Identity()  # no published weights
        widths = [int(stage["num_chs"]) for stage in trunk.feature_info]
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in reversed(widths))
        self.conv_s1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv_s0 = nn.Conv2d(channels, channels // 8, 1)
        self.no_memory = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, image: Tensor) -> Tensor:
        quarter, half, middle, coarse = self.trunk.forward_intermediates(image, intermediates_only=True)
        to_coarse, to_middle, to_half, to_quarter = self.lateral
        above = functional.interpolate(to_coarse(coarse).float(), scale_factor=2.0, mode="nearest")
        embedding = to_middle(middle) + above + self.no_memory.flatten()[:, None, None]
        return torch.cat(
            [
                embedding.float(),
                _parts(_chained(to_half, self.conv_s1, half).float(), 1),
                _parts(_chained(to_quarter, self.conv_s0, quarter).float(), 2),
            ],
            1,
        )


def _chained(first: Any, second: Any, x: Tensor) -> Tensor:
    """Two 1 × 1 convolutions as one, as nothing stands between them: a tenth of the work, and no C channels at 1/4."""
    matrix = second.weight.flatten(1)
    weight = (matrix @ first.weight.flatten(1))[:, :, None, None]
    return functional.conv2d(x, weight, matrix @ first.bias + second.bias)


def _parts(x: Tensor, steps: int) -> Tensor:
    """(1, C, 2ⁿ h, 2ⁿ w) as (1, 4ⁿ C, h, w): of a pixel its 2 × 2 parts, of each of these its own, then channels."""
    channels, height, width = x.shape[1:]
    x = x.view(channels, height >> steps, *[2] * steps, width >> steps, *[2] * steps)
    places = [axis for step in range(steps) for axis in (2 + step, 3 + steps + step)]
    return x.permute(*places, 0, 1, 2 + steps).reshape(1, -1, height >> steps, width >> steps)


class Sam2(nn.Module):
    """What SAM 2 does with single images, named as in `segment_anything.modeling.Sam`.

    Parameters
    ----------
    encoder : a `Sam2Encoder`
    channels : C; heads, hidden : of the decoder's transformer
    """

    mask_threshold = 0.0

    def __init__(self, encoder: Sam2Encoder, channels: int = CHANNELS, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.image_encoder = encoder
        grid = encoder.img_size // 16
        self.prompt_encoder = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(encoder.img_size, encoder.img_size),
            mask_in_chans=16,
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=heads, mlp_dim=hidden)
        self.mask_decoder = MaskDecoder(transformer_dim=channels, transformer=transformer, num_multimask_outputs=3)
        self.mask_decoder.obj_score_token = nn.Embedding(1, channels)
        self.mask_decoder.iou_prediction_head.sigmoid_output = True

    def preprocess(self, image: Tensor) -> Tensor:
        """Standardize the channels of an image (…, 3, S, S) with values from 0 to 1."""
        mean, deviation = (image.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        return (image - mean) / deviation


def build(architecture: str) -> Sam2:
    """The published model around the `HieraDet` that timm calls `architecture`, on torch's present device."""
    return Sam2(Sam2Encoder(timm.create_model(architecture, pretrained=False, num_classes=0)))
