"""A linear discriminant of features: the direction in which what is of a kind differs most from what is not.

Its product with F factors over the three views as that of the query does, so that a refined query costs what a query
costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def discriminant(wanted: Float64, unwanted: Float64, covariance: Float64, shrinkage: float = 0.5) -> Float64:
    """w = (Σ + λI)⁻¹ (μ₊ − μ₋), of unit length (Fisher 1936, with a shrunk covariance as by Ledoit and Wolf 2004).

    Parameters
    ----------
    wanted, unwanted : (m, D) and (k, D) features; their means are μ₊ and μ₋
    covariance : (D, D) Σ of features all over the tomogram: decisions are too few to tell it
    shrinkage : s of (1 − s) Σ + s (tr Σ / D) I, 0 < s ≤ 1; with 1 the direction is that between the means
    """
    mean = float(np.trace(covariance)) / len(covariance)
    shrunk = (1 - shrinkage) * covariance
    shrunk[np.diag_indices_from(shrunk)] += shrinkage * max(mean, np.finfo(float).tiny)
    direction = np.linalg.solve(shrunk, wanted.mean(axis=0) - unwanted.mean(axis=0))
    return np.asarray(direction / max(float(np.linalg.norm(direction)), np.finfo(float).tiny))
