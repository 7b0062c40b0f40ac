"""The built-in segmenter: a point- and mask-prompted random walker. No weights, no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.kernels import walker
from cryosam_dask.types import Array, Float32, Prediction


class RandomWalkerSegmenter:
    """Segments by a random walk over a small window around the prompt (`cryosam_dask.kernels.walker`).

    A point alone gives one candidate per scale of `walker.SCALES`; a point with logits gives one candidate.
    An embedding is the plane, lightly smoothed, in float16; logits have the plane's own size, and are 0 away from the
    prompt's window. Objects may be brighter or darker than their surroundings.

    Parameters
    ----------
    smoothing : deviation in pixels of the Gaussian that planes are smoothed with
    parameters : the walk's weights
    """

    name = "random-walker"
    batch = 1  # a batch saves nothing here

    def __init__(self, smoothing: float = 1.7, parameters: walker.WalkParameters | None = None) -> None:
        self.smoothing = smoothing
        self.parameters = parameters or walker.WalkParameters()
        self.identity = f"random-walker-1 smoothing={smoothing} {self.parameters}"

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """The plane's own shape."""
        return plane

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        """float16."""
        return np.dtype(np.float16)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """The plane's own shape."""
        return plane

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        """Smooth planes (N, A, B) uint8; (N, A, B) float16."""
        sigma = (0.0, self.smoothing, self.smoothing)
        smooth: Array = ndimage.gaussian_filter(planes.astype(np.float32), sigma).astype(np.float16)
        return smooth

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        """Segment B points (row, column) on one plane; see `PromptedSegmenter.predict`."""
        count = len(walker.SCALES) if logits is None else 1
        shape = (len(points), count, *plane)
        masks, confidence = np.zeros(shape, bool), np.zeros(shape, np.float32)
        scores = np.zeros(shape[:2], np.float32)
        for b, (row, col) in enumerate(np.asarray(points, float)):
            if logits is None:
                found = walker.from_point(embedding, row, col, self.parameters)
            else:
                one = walker.from_mask(embedding, row, col, logits[b], self.parameters)
                found = [] if one is None else [one]
            for m, candidate in enumerate(found):
                h, w = candidate.mask.shape
                at = (b, m, slice(candidate.row, candidate.row + h), slice(candidate.col, candidate.col + w))
                masks[at], confidence[at] = candidate.mask, candidate.logits
                scores[b, m] = candidate.score
        return Prediction(masks, scores, confidence)

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel (row, column) of each of (B, h, w) logits, as (B, 2) float32."""
        best = logits.reshape(len(logits), -1).argmax(1)
        return np.stack(np.unravel_index(best, plane), 1).astype(np.float32)
