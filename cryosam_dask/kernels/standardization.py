"""One linear map per view that brings tokens to zero mean and unit spread, fitted on a sample of a tomogram."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cryosam_dask.types import Float32

SHRINKAGE = 0.05
"""Share of the channels' mean variance that is added before whitening, so that noise channels are not blown up."""


def fit_standardization(tokens: Float32, mode: Literal["none", "scale", "whiten"]) -> tuple[Float32, Float32]:
    """Mean (C,) and matrix (C, C) so that `(tokens − mean) @ matrix` is standardized, from tokens (n, C).

    "scale" gives each channel unit deviation; "whiten" also removes correlations (ZCA, which keeps each channel as near
    to itself as can be). A channel that is constant in the sample becomes zero.
    """
    mean = tokens.mean(0, dtype=np.float64)
    centered = tokens - mean
    deviation = centered.std(0)
    inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * (np.abs(mean) + 1e-6))
    if mode == "none":
        return np.zeros_like(mean, np.float32), np.eye(len(mean), dtype=np.float32)
    if mode == "scale":
        return mean.astype(np.float32), np.diag(inverse).astype(np.float32)
    scaled = centered * inverse
    covariance = scaled.T @ scaled / len(scaled) + SHRINKAGE * np.eye(len(mean))
    values, vectors = np.linalg.eigh(covariance)
    matrix = np.diag(inverse) @ (vectors / np.sqrt(values)) @ vectors.T
    return mean.astype(np.float32), matrix.astype(np.float32)
