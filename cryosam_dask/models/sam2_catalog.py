"""The SAM 2.1 segmenters that are known by name: an entry for each."""

from __future__ import annotations

from dataclasses import dataclass

from cryosam_dask.models import sam, sam2, weights
from cryosam_dask.models.info import About, Cost
from cryosam_dask.models.sam_catalog import PUBLISHED, SamDecoded
from cryosam_dask.models.vit_catalog import TORCH_BYTES
from cryosam_dask.models.weights import Source
from cryosam_dask.types import PromptedSegmenter

_ABOUT = About(
    "the Segment Anything Model 2",
    ("Ravi N, Gabeur V, Hu Y-T, et al. SAM 2: segment anything in images and videos. arXiv:2408.00714, 2024.",),
    PUBLISHED,
)


@dataclass(frozen=True)
class Sam2(SamDecoded):
    """A SAM 2.1; a `SegmenterInfo`.

    Attributes
    ----------
    architecture : timm's name of its image encoder; width : channels of the encoder's first stage
    parameters : those that single images need
    operations : floating-point operations of its image encoder on a plane, as torch counts them
    """

    name: str
    architecture: str
    width: int
    parameters: int
    operations: float
    address: Source
    about: About = _ABOUT
    version: None = None
    uses_torch: bool = True
    candidates: int = sam.CANDIDATES
    embedding_share: float = 0.92

    def source(self) -> Source:
        return self.address

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        file = weights.locate(self.name, None if path else self.source(), path)
        model = sam2.load(self.architecture, file.path, self.name)
        return sam2.Sam2Segmenter(model, self.name, weights.identity(self.name, file.sha256), device, dtype)

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return 1024, 64, 64

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        # At its widest the first stage holds 256 × 256 tokens with their hidden layer of 4 × width, before and after
        # its activation; the allocator keeps more. Measured with width 96 and 112.
        return 4 * 256**2 * 18 * self.width + 3 * 4 * 1024**2 + TORCH_BYTES

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # As with SAM; the embedding in float32 comes on top, twice.
        pixels = plane[0] * plane[1]
        return min(prompts, sam.BATCH["cpu"]) * (28 << 20) + (32 << 20) + 6 * pixels + TORCH_BYTES // 3

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        return Cost(operations=self.operations)


def _sam2(size: str, width: int, parameters: int, giga: float, sha256: str) -> Sam2:
    file = f"sam2.1_hiera_{size}.pt"
    address = Source(f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{file}", file, sha256)
    name = f"sam2.1-{size.replace('_', '-')}"
    return Sam2(name, f"sam2_hiera_{size}", width, parameters, 1e9 * giga, address)


_ROWS = (
    _sam2("tiny", 96, 31_308_880, 286.8, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _sam2("small", 96, 38_406_736, 354.4, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _sam2("base_plus", 112, 73_196_560, 640.5, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    _sam2("large", 144, 216_793_024, 1815.2, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
)
SAM2S = {row.name: row for row in _ROWS}
"""The SAM 2.1 segmenters of the catalog by name."""
