"""The SAM segmenters that are known by name: an entry for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cryosam_dask.models import sam, weights
from cryosam_dask.models.info import About, Cost
from cryosam_dask.models.vit_catalog import SEGMENT_ANYTHING, TORCH_BYTES, VITS, Vit
from cryosam_dask.models.weights import Source
from cryosam_dask.types import PromptedSegmenter

DECODE = 4.5e9
"""Operations of SAM's decoder for a prompt on a plane, from the 0.032 s it took at 0.142 TFLOP/s."""

_TOKENS = 64 * 64
"""Patches that SAM sees, whatever the plane."""

PUBLISHED = {"propagation.rule": "plain", "propagation.merge": "union", "propagation.max_area": 1024}
"""The settings that the method was published with, for SAM."""

_ABOUT = About("the Segment Anything Model", (SEGMENT_ANYTHING,), PUBLISHED)


@dataclass(frozen=True)
class Sam:
    """A SAM; a `SegmenterInfo`.

    Attributes
    ----------
    kind : its name in `segment_anything`; encoder : its image encoder
    """

    name: str
    kind: str
    parameters: int
    encoder: Vit
    about: About = _ABOUT
    version: None = None
    uses_torch: bool = True
    candidates: int = sam.CANDIDATES
    embedding_share: float = 0.92

    @property
    def weights_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16)

    def source(self) -> Source | None:
        """The file that the image encoder is in, too."""
        return self.encoder.source()

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        file = weights.locate(self.name, None if path else self.source(), path)
        model = sam.load(self.kind, file.path, self.name)
        return sam.SamSegmenter(model, self.name, weights.identity(self.name, file.sha256), device, dtype)

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return 256, 64, 64

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return 256, 256

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return self.encoder.activation_bytes(_TOKENS) + 3 * 4 * 1024**2

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # One batch is at work at a time, with the pixels' embeddings several times over, their enlargement and its
        # candidates' logits; of these one becomes a mask of the plane's size, in float32.
        pixels = plane[0] * plane[1]
        return min(prompts, sam.BATCH["cpu"]) * (28 << 20) + 6 * pixels + TORCH_BYTES // 3

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        return 4 * 256**2

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        return Cost(operations=self.encoder.operations(_TOKENS))

    def predict_cost(self, first: int, further: int) -> Cost:
        # The decoder always computes in float32.
        return Cost(float32_operations=(first + further) * DECODE)


def _sam(size: str, parameters: int) -> Sam:
    name = f"sam-vit{size}"
    return Sam(name, f"vit_{size}", parameters, VITS[name])


SAMS = {row.name: row for row in (_sam("b", 93_735_472), _sam("l", 312_342_832), _sam("h", 641_090_608))}
"""The SAM segmenters of the catalog by name."""
