"""The SAM segmenters that are known by name, an entry for each: SAM, the same with weights trained on electron
microscopy, and MobileSAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryosam_dask.models import mobile_sam, sam, weights
from cryosam_dask.models.info import About, Cost
from cryosam_dask.models.vit_catalog import SEGMENT_ANYTHING, TORCH_BYTES, VITS
from cryosam_dask.models.weights import Source
from cryosam_dask.types import PromptedSegmenter

DECODE = 4.5e9
"""Operations of SAM's decoder for a prompt on a plane, from the 0.032 s it took at 0.142 TFLOP/s."""

_TOKENS = 64 * 64
"""Patches that SAM sees, whatever the plane."""

PUBLISHED = {"propagation.rule": "plain", "propagation.merge": "union", "propagation.max_area": 1024}
"""The settings that the method was published with, for SAM."""

_ABOUT = About("the Segment Anything Model", (SEGMENT_ANYTHING,), PUBLISHED)
_MICRO_SAM = "Archit A, Freckmann L, Nair S, et al. Segment Anything for Microscopy. Nature Methods 22:579–591, 2025."
_EM = About("the Segment Anything Model trained on electron microscopy", (SEGMENT_ANYTHING, _MICRO_SAM), PUBLISHED)
_FASTER = (
    "Zhang C, Han D, Qiao Y, et al. Faster Segment Anything: towards lightweight SAM for mobile applications. "
    "arXiv:2306.14289, 2023."
)
_MOBILE = About("MobileSAM", (SEGMENT_ANYTHING, _FASTER), PUBLISHED)
_MOBILE_EM = About("MobileSAM trained on electron microscopy", (*_MOBILE.references, _MICRO_SAM), PUBLISHED)


class ImageEncoder(Protocol):
    """What an entry needs to know of a SAM's image encoder."""

    def source(self) -> Source | None: ...
    def activation_bytes(self, tokens: int) -> int: ...
    def operations(self, tokens: int) -> float: ...


@dataclass(frozen=True)
class TinyVit:
    """MobileSAM's image encoder, which is never used alone."""

    def source(self) -> None:
        return None

    def activation_bytes(self, tokens: int) -> int:
        """Bytes of a forward pass, measured: at its widest are the 256 channels of each of 256 × 256 pixels, thrice."""
        return 4 * 3 * 256 * 16 * tokens + TORCH_BYTES

    def operations(self, tokens: int) -> float:
        """Floating-point operations of one forward pass, as torch counts them."""
        return 77.5e9 * tokens / _TOKENS


class SamDecoded:
    """What segmenters with SAM's prompt encoder and mask decoder have in common, whatever their image encoder.

    parameters : of the model that single images need
    """

    parameters: int

    @property
    def weights_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return 256, 256

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        return 4 * 256**2

    def predict_cost(self, first: int, further: int) -> Cost:
        # The decoder always computes in float32.
        return Cost(float32_operations=(first + further) * DECODE)


@dataclass(frozen=True)
class Sam(SamDecoded):
    """A SAM; a `SegmenterInfo`.

    Attributes
    ----------
    kind : its name in `segment_anything`; encoder : its image encoder
    address : where the weights are; None for the address of the image encoder's
    """

    name: str
    kind: str
    parameters: int
    encoder: ImageEncoder
    about: About = _ABOUT
    address: Source | None = None
    version: None = None
    uses_torch: bool = True
    candidates: int = sam.CANDIDATES
    embedding_share: float = 0.92

    def source(self) -> Source | None:
        """A file that holds the image encoder, too."""
        return self.address or self.encoder.source()

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        file = weights.locate(self.name, None if path else self.source(), path)
        model = self._model(file.path)
        return sam.SamSegmenter(model, self.name, weights.identity(self.name, file.sha256), device, dtype)

    def _model(self, path: Path) -> Any:
        return sam.load(self.kind, path, self.name)

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return 256, 64, 64

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return self.encoder.activation_bytes(_TOKENS) + 3 * 4 * 1024**2

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # One batch is at work at a time, with the pixels' embeddings several times over, their enlargement and its
        # candidates' logits; of these one becomes a mask of the plane's size, in float32.
        pixels = plane[0] * plane[1]
        return min(prompts, sam.BATCH["cpu"]) * (28 << 20) + 6 * pixels + TORCH_BYTES // 3

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        return Cost(operations=self.encoder.operations(_TOKENS))


@dataclass(frozen=True)
class MobileSam(Sam):
    """MobileSAM; a `SegmenterInfo`."""

    def _model(self, path: Path) -> Any:
        return mobile_sam.load(path, self.name)


def _sam(size: str, parameters: int) -> Sam:
    name = f"sam-vit{size}"
    return Sam(name, f"vit_{size}", parameters, VITS[name])


def _microscopy(row: Sam, name: str, about: About, place: str, xxh128: str) -> Sam:
    """A model with the weights that micro-sam made of it; address and digest are those of micro-sam's registry."""
    url = f"https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io/{place}/files/{row.kind}.pt"
    address = Source(url, f"micro-sam-{row.kind}_em_organelles.pt", xxh128=xxh128)
    return replace(row, name=name, about=about, address=address)


_BASE, _LARGE, _HUGE = _sam("b", 93_735_472), _sam("l", 312_342_832), _sam("h", 641_090_608)
_TINY = MobileSam(
    *("mobile-sam", "vit_t", 9_808_452, TinyVit(), _MOBILE),
    Source(
        "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
        "mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
)
_ROWS = (
    *(_BASE, _LARGE, _HUGE, _TINY),
    _microscopy(_BASE, "sam-vitb-em-organelles", _EM, "noisy-ox/1.2", "f3bf2ed83d691456bae2c3f9a05fb438"),
    _microscopy(_LARGE, "sam-vitl-em-organelles", _EM, "humorous-crab/1.2", "810b084b6e51acdbf760a993d8619f2d"),
    _microscopy(_TINY, "mobile-sam-em-organelles", _MOBILE_EM, "greedy-whale/1", "253474720c497cce605e57c9b1d18fd9"),
)
SAMS = {row.name: row for row in _ROWS}
"""The SAM segmenters of the catalog by name."""
