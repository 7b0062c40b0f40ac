"""SAM 2.1 on single planes, behind the `PromptedSegmenter` protocol.

Frames. A plane (A, B) is stretched to the model's S × S pixels (1024), each side for itself, so nothing is padded.
Logits are S / 4 pixels square and cover the plane; they come to its pixels in one bilinear step. Planes, points and the
logits of the plane before go to the model as `SAM2ImagePredictor` sends them, so that results equal those of the public
code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.models import sam_masks
from cryosam_dask.models.checkpoint import load_into, read_state_dict
from cryosam_dask.models.devices import device_memory
from cryosam_dask.models.sam import SamSegmenter
from cryosam_dask.models.sam_decoder import MaskDecoder
from cryosam_dask.models.vit import autocast

if TYPE_CHECKING:
    import torch

LIMIT = 32.0
"""Logits of the plane before are cut to ± this, as `SAM2ImagePredictor` returns them."""


class Sam2MaskDecoder(MaskDecoder):
    """The decoder of SAM 2: it also knows whether the object is there, which isn't asked for, and adds finer features.

    The image of `decode` is (1, N, 4 C): pixels of the embedding and their parts, as from `Sam2Encoder`.
    """

    def decode(
        self, image: torch.Tensor, coordinates: torch.Tensor, labels: torch.Tensor, previous: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (b, 3, h, w) and scores (b, 3) of b prompts; see `MaskDecoder.decode`."""
        import torch

        channels = self._positions.shape[-1]
        embedding, *parts = torch.tensor_split(image, (channels, 2 * channels), -1)
        half, quarter = (part.view(*part.shape[:2], 4, -1) for part in parts)
        previous = None if previous is None else previous.clamp(-LIMIT, LIMIT)
        there = self._decoder.obj_score_token.weight
        scores, tokens, keys = self._look(embedding, coordinates, labels, previous, (there,))
        return self._masks(tokens, keys, (half, quarter)), scores


class Sam2Segmenter(SamSegmenter):
    """SAM 2.1's image encoder, prompt encoder and mask decoder; parameters as of `SamSegmenter`.

    model : a `sam2_encoder.Sam2`
    """

    decoder = Sam2MaskDecoder
    parts = 4

    def frame(self, plane: tuple[int, ...]) -> tuple[int, int]:
        """(S, S): a plane is stretched to the whole image."""
        return self._size, self._size

    def sides(self, plane: tuple[int, int]) -> tuple[sam_masks.Side, sam_masks.Side]:
        """How the plane's rows and columns are made of the logits': in one step, so the image is as large as these."""
        rows, columns = (
            sam_masks.side(length, cells, cells, cells) for length, cells in zip(plane, self._logits_shape, strict=True)
        )
        return rows, columns

    def _embed_on_device(self, plane: NDArray[np.uint8]) -> torch.Tensor:
        """The embedding (1024, 64, 64) of one plane, preprocessed as by `SAM2ImagePredictor.set_image`."""
        import torch
        from torch.nn.functional import interpolate

        if plane.dtype != np.uint8:
            raise ValueError(f"{self.name}: planes are {plane.dtype}, expected uint8")
        with torch.inference_mode(), device_memory(self.name, self.device):
            grey = torch.tensor(plane, device=self.device)[None, None].float() / 255
            # The three channels are equal and resized one by one, so one is enough.
            grey = interpolate(grey, self.frame(plane.shape), mode="bilinear", antialias=True)
            image = self._model.preprocess(grey.expand(1, 3, -1, -1))
            with autocast(self.device, self.dtype):
                embedding: torch.Tensor = self._model.image_encoder(image)[0]
            return embedding


def load(architecture: str, path: Path, name: str) -> Any:
    """The `Sam2` around timm's `architecture` with the weights of an official checkpoint file.

    It is built on torch's meta device first, so that no random numbers are made.

    Raises
    ------
    ModelError
        The file is no checkpoint, or not one of this model.
    """
    import torch

    from cryosam_dask.models.sam2_encoder import build

    tensors = translate(read_state_dict(path))
    with torch.device("meta"):
        model = build(architecture)
    load_into(model, tensors, name, path, assign=True)
    return model.float()


_NAMES = tuple(
    (re.compile(official), ours)
    for official, ours in (
        (r"^image_encoder\.trunk\.(.*\.mlp)\.layers\.0\.", r"image_encoder.trunk.\1.fc1."),
        (r"^image_encoder\.trunk\.(.*\.mlp)\.layers\.1\.", r"image_encoder.trunk.\1.fc2."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"image_encoder.lateral.\1."),
        (r"^sam_mask_decoder\.conv_s0\.", "image_encoder.conv_s0."),
        (r"^sam_mask_decoder\.conv_s1\.", "image_encoder.conv_s1."),
        (r"^no_mem_embed$", "image_encoder.no_memory"),
        (r"^sam_mask_decoder\.transformer\.(.*\.mlp)\.layers\.0\.", r"mask_decoder.transformer.\1.lin1."),
        (r"^sam_mask_decoder\.transformer\.(.*\.mlp)\.layers\.1\.", r"mask_decoder.transformer.\1.lin2."),
        (r"^sam_(mask_decoder|prompt_encoder)\.", r"\1."),
    )
)
_UNUSED = re.compile(
    r"memory_(attention|encoder)\.|maskmem_tpos_enc|no_mem_pos_enc|no_obj_(ptr|embed_spatial)|obj_ptr_(proj|tpos_proj)\."
    r"|mask_downsample\.|sam_mask_decoder\.pred_obj_score_head\."
)
"""What serves videos: memory, and whether the object is there."""


def translate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an official checkpoint that single images need, by the names of `Sam2`."""
    renamed = {}
    for name, tensor in tensors.items():
        if _UNUSED.match(name):
            continue
        for official, ours in _NAMES:
            name, changed = official.subn(ours, name)
            if changed:
                break
        renamed[name] = tensor
    return renamed
