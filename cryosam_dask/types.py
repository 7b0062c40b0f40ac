"""Shapes and contracts that all layers share. Axis order is (z, y, x) everywhere; indices are zero-based."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, Axis, Axis] = ("z", "y", "x")

Shape3 = tuple[int, int, int]
Point = tuple[float, float, float]

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Array = NDArray[Any]


class Prediction(NamedTuple):
    """Candidate masks of B prompts on one plane, M candidates each.

    Attributes
    ----------
    masks : (B, M, A, B') bool
        At the plane's own size.
    scores : (B, M) float32
        The model's own estimate of each mask's quality, larger is better.
    logits : (B, M, h, w) float32
        Confidence in the segmenter's own frame (`PromptedSegmenter.logits_shape`), > 0 inside; what `predict`
        takes back as `logits` on the next plane.
    """

    masks: Bool
    scores: Float32
    logits: Float32


@runtime_checkable
class SliceEncoder(Protocol):
    """Turns slices into a grid of tokens.

    Attributes
    ----------
    name : the name it is loaded by; identity : version or hash of the weights (part of the fingerprints)
    patch : pixels of a token's side; channels : C
    """

    name: str
    identity: str
    patch: int
    channels: int

    def encode(self, slices: Float32) -> Float32:
        """Encode slices (N, A, B), zero mean and unit deviation over the tomogram, A and B multiples of `patch`.

        Returns tokens (N, A / patch, B / patch, C), float32; token (i, j) stands for the pixels
        [i·patch, (i+1)·patch) × [j·patch, (j+1)·patch).
        """
        ...


@runtime_checkable
class PromptedSegmenter(Protocol):
    """Segments one object on a plane from a point, and optionally from the mask on the plane before.

    Attributes
    ----------
    name : the name it is loaded by; identity : version or hash of the weights (part of the fingerprints)
    batch : how many prompts one `predict` call serves best on this device
    """

    name: str
    identity: str
    batch: int

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one plane's embedding, for a plane of shape (A, B), without computing it."""
        ...

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        """The type embeddings are stored in."""
        ...

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Shape (h, w) of the logits for a plane of shape (A, B)."""
        ...

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        """Embed planes (N, A, B) uint8; returns (N, *embedding_shape((A, B))) of `embedding_dtype`."""
        ...

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        """Segment one plane of shape (A, B) = `plane` for B prompts.

        Parameters
        ----------
        embedding : one plane's embedding
        points : (B, 2) pixel positions (row, column) in the plane
        logits : (B, h, w) logits of the masks on the plane before, or None on the first plane
        """
        ...

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel of each of (B, h, w) logits: (B, 2) pixel positions (row, column) in the plane.

        Positions that stand for the segmenter's own padding are never returned.
        """
        ...


@dataclass(frozen=True)
class Pick:
    """One found particle: its centre of mass in voxels (z, y, x), its score, its label in the instance volume."""

    z: float
    y: float
    x: float
    score: float
    instance: int
