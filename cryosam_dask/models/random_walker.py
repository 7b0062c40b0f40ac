"""The built-in segmenter: a point- and mask-prompted random walker. No weights, no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.kernels import walker
from cryosam_dask.models.info import About, Cost
from cryosam_dask.types import Array, Float32, Prediction, PromptedSegmenter, Window

SMOOTH = 40e-9
"""Seconds per pixel of an embedding, on one core."""

WALK_FIRST, WALK_NEXT = 10e-3, 3e-3
"""Seconds of a point alone, and of a point with the mask of the plane before, on one core."""


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
        self.identity = f"random-walker-2 smoothing={smoothing} {self.parameters}"

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
        windows = None if logits is None else [Window(plane, 0, 0, before) for before in logits]
        return Prediction.of(self.candidates(embedding, plane, points, windows), count, plane, plane)

    def candidates(
        self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Sequence[Window] | None
    ) -> list[WalkedCandidates]:
        """The masks of `predict`, on the prompts' windows; see `WindowedSegmenter.candidates`."""
        per_point = []
        for b, (row, col) in enumerate(np.asarray(points, float).tolist()):
            if logits is None:
                walked = walker.from_point(embedding, row, col, self.parameters)
            else:
                candidate = walker.from_mask(embedding, row, col, logits[b], self.parameters)
                walked = [] if candidate is None else [candidate]
            per_point.append(WalkedCandidates(plane, walked))
        return per_point

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel (row, column) of each of (B, h, w) logits, as (B, 2) float32."""
        best = logits.reshape(len(logits), -1).argmax(1)
        return np.stack(np.unravel_index(best, plane), 1).astype(np.float32)


class WalkedCandidates(NamedTuple):
    """The masks that walks from one prompt on a plane found, each on its own window; see `Candidates`."""

    plane: tuple[int, int]
    walked: list[walker.Candidate]

    @property
    def scores(self) -> Float32:
        """(M,) float32."""
        return np.array([candidate.score for candidate in self.walked], np.float32)

    def mask(self, m: int) -> Window:
        """The mask, on the walk's window."""
        candidate = self.walked[m]
        return Window(self.plane, candidate.row, candidate.col, candidate.mask)

    def logits(self, m: int) -> Window:
        """The logits, on the walk's window."""
        candidate = self.walked[m]
        return Window(self.plane, candidate.row, candidate.col, candidate.logits)

    def peak(self, m: int) -> tuple[float, float]:
        """The most confident pixel, inside the mask: there logits are positive."""
        candidate = self.walked[m]
        row, col = divmod(int(candidate.logits.argmax()), candidate.logits.shape[1])
        return float(candidate.row + row), float(candidate.col + col)


_ABOUT = About(
    "a random walker",
    (
        "Grady L. Random walks for image segmentation. "
        "IEEE Transactions on Pattern Analysis and Machine Intelligence 28, 2006.",
    ),
    {"propagation.tau_iou": 0.3, "propagation.plane_thickness": 5},
)


@dataclass(frozen=True)
class RandomWalkerInfo:
    """The entry of the random walker in the catalog; a `SegmenterInfo`."""

    name: str = RandomWalkerSegmenter.name
    candidates: int = len(walker.SCALES)
    uses_torch: bool = False
    weights_bytes: int = 0
    embedding_share: float = 0.6
    about: About = _ABOUT

    @property
    def version(self) -> str:
        return RandomWalkerSegmenter().identity

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return RandomWalkerSegmenter().embedding_dtype

    def source(self) -> None:
        """None: there are no weights."""

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        """The segmenter, which runs on the CPU wherever it is asked to."""
        return RandomWalkerSegmenter()

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return RandomWalkerSegmenter().embedding_shape(plane)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return RandomWalkerSegmenter().logits_shape(plane)

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return 9 * plane[0] * plane[1]

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # One prompt at a time, on a window of about 64 pixels.
        return 40 * min(64**2, plane[0] * plane[1]) + (1 << 20)

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        # A window about 64 pixels wide; only a mask that leaks is larger.
        return 4 * min(64**2, plane[0] * plane[1])

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        return Cost(plane[0] * plane[1] * SMOOTH)

    def predict_cost(self, first: int, further: int) -> Cost:
        return Cost(first * WALK_FIRST + further * WALK_NEXT)
