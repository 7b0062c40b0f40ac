"""Candidates of prompts on a plane, whichever way a segmenter gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cryosam_dask.types import (
    Array,
    Candidates,
    Float32,
    HoldingSegmenter,
    Logits,
    Prediction,
    PromptedSegmenter,
    Window,
    WindowedSegmenter,
)


class _Predicted(NamedTuple):
    """Candidates out of a `Prediction`, for a segmenter that gives whole planes only."""

    segmenter: PromptedSegmenter
    prediction: Prediction
    b: int

    @property
    def scores(self) -> Float32:
        scores: Float32 = self.prediction.scores[self.b]
        return scores

    def mask(self, m: int) -> Window:
        mask = self.prediction.masks[self.b, m]
        return Window((mask.shape[0], mask.shape[1]), 0, 0, mask)

    def logits(self, m: int) -> Window:
        return Window.crop(self.prediction.logits[self.b, m].astype(np.float32))

    def peak(self, m: int) -> tuple[float, float]:
        plane = self.prediction.masks.shape[2:]
        row, col = self.segmenter.peak(self.prediction.logits[self.b, m][None], (plane[0], plane[1]))[0]
        return float(row), float(col)


def held(segmenter: PromptedSegmenter, embedding: Array) -> Any:
    """A plane's embedding as `candidates` takes it: on the segmenter's device, if that is what it offers."""
    return segmenter.hold(embedding) if isinstance(segmenter, HoldingSegmenter) else embedding


def candidates(
    segmenter: PromptedSegmenter,
    embedding: Any,
    plane: tuple[int, int],
    points: Float32,
    logits: Sequence[Logits] | None,
) -> Sequence[Candidates]:
    """The candidates of B prompts on one plane, whichever way the segmenter gives them; see `WindowedSegmenter`.

    embedding : as from `held`
    """
    if isinstance(segmenter, WindowedSegmenter):
        return segmenter.candidates(embedding, plane, points, logits)
    stacked = None if logits is None else np.stack([window.full() for window in logits])
    prediction = segmenter.predict(embedding, plane, points, stacked)
    return [_Predicted(segmenter, prediction, b) for b in range(len(points))]
