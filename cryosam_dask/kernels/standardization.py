"""One linear map per view that brings tokens to zero mean and unit spread, fitted on a sample of a tomogram."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import Float32


def fit_standardization(
    tokens: NDArray[np.floating], mode: Literal["whiten", "scale", "none"] = "whiten", shrinkage: float = 0.1
) -> tuple[Float32, Float32]:
    """Mean (C,) and matrix W (C, C) so that (t − mean) @ W has unit variance over a sample of tokens (n, C).

    "scale" divides each channel by its deviation. "whiten" also removes the correlation of channels, by the symmetric
    root of the inverse correlation matrix, which is first drawn towards the identity by `shrinkage` (in [0, 1]) so that
    directions that hold next to nothing are not blown up. Then noise spreads evenly over all directions and unlike
    places have a cosine near zero. A channel that is constant in the sample becomes zero.

    Raises ValueError for fewer than two tokens, for non-finite ones and for an unknown mode.
    """
    sample = np.asarray(tokens, np.float64)
    if sample.ndim != 2 or len(sample) < 2 or not np.isfinite(sample).all():
        raise ValueError(f"tokens have shape {sample.shape}, expected (n >= 2, C), all finite")
    mean = sample.mean(axis=0)
    deviation = sample.std(axis=0)
    alive = deviation > 1e-6 * (np.abs(mean) + 1e-6)
    inverse = np.where(alive, 1 / np.where(alive, deviation, 1), 0.0)
    if mode == "none":
        return np.zeros_like(mean, np.float32), np.eye(len(mean), dtype=np.float32)
    if mode == "scale":
        return mean.astype(np.float32), np.diag(inverse).astype(np.float32)
    if mode != "whiten":
        raise ValueError(f"unknown standardisation {mode!r}; expected whiten, scale or none")
    scaled = (sample - mean) * inverse
    correlation = (1 - shrinkage) * (scaled.T @ scaled) / len(sample) + shrinkage * np.eye(len(mean))
    values, vectors = np.linalg.eigh(correlation)
    root = (vectors / np.sqrt(np.maximum(values, 1e-6))) @ vectors.T
    return mean.astype(np.float32), (inverse[:, None] * root).astype(np.float32)
