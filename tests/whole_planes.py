"""What segmenters of tests have in common that look at a plane as it is: its embedding is the plane itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.models.info import About, Cost
from cryosam_dask.types import Array, Float32, Prediction


class _Planes:
    """Shapes and type of embeddings and logits, of a segmenter and of its entry alike."""

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return plane

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return plane


class WholePlanes(_Planes):
    """A `PromptedSegmenter` but for its name, its identity and `predict`."""

    batch = 4

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        return planes

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        best = logits.reshape(len(logits), -1).argmax(1)
        return np.stack(np.unravel_index(best, plane), 1).astype(np.float32)


class WholeBodies(WholePlanes):
    """One whose mask is a body: surest in the body's middle."""

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        masks = np.stack([self.body(embedding, point) for point in points])[:, None]
        inside = np.stack([ndimage.distance_transform_edt(mask[0]) for mask in masks])[:, None]
        confidence = np.where(masks, inside, -1).astype(np.float32)
        return Prediction(masks, 0.9 * masks.any((2, 3)).astype(np.float32), confidence)

    def body(self, plane: Array, point: Float32) -> NDArray[np.bool_]:
        """The mask at a point (row, column)."""
        raise NotImplementedError


@dataclass(frozen=True)
class WholePlanesInfo(_Planes):
    """The entry of such a segmenter but for `load`."""

    name: str
    version: str
    candidates: int = 1
    uses_torch: bool = False
    weights_bytes: int = 0
    embedding_share: float = 0.5
    about: ClassVar[About] = About("the truth")

    def source(self) -> None:
        return None

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return plane[0] * plane[1]

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        return 40 * prompts * plane[0] * plane[1]

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        return 4 * plane[0] * plane[1]

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        return Cost()

    def predict_cost(self, first: int, further: int) -> Cost:
        return Cost()
