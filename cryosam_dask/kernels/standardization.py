"""One linear map per view that brings tokens to zero mean and unit spread, fitted on a sample of a tomogram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.types import Float32

PORTION_VALUES = 1 << 18
"""Values of the tokens of a portion, at most."""


class Portion(NamedTuple):
    """Tokens as `Moments` takes them in.

    number : of tokens; mean : (C,); products : (C, C) or (C,) sums of products of deviations from that mean
    """

    number: int
    mean: NDArray[np.float64]
    products: NDArray[np.float64]


def portions(tokens: NDArray[np.floating], mixed: bool = True) -> Iterator[Portion]:
    """The portions of tokens (..., C), in their order. Raises ValueError for tokens that are not finite."""
    tokens = tokens.reshape(-1, tokens.shape[-1])
    step = max(1, PORTION_VALUES // tokens.shape[1])
    for start in range(0, len(tokens), step):
        block = tokens[start : start + step].astype(np.float64)
        if not np.isfinite(block).all():
            raise ValueError("tokens to standardise are not all finite")
        mean = block.mean(axis=0)
        block -= mean
        yield Portion(len(block), mean, block.T @ block if mixed else np.einsum("nc,nc->c", block, block))


class Moments:
    """Mean and second moments of tokens, of which any number at a time is added; in double precision.

    Portions merge exactly (Chan, Golub, LeVeque 1979): each is centred on its own mean before it is squared.

    Parameters
    ----------
    channels : C
    mixed : whether the products of unlike channels are wanted; else only squares are summed

    Attributes
    ----------
    count : tokens so far; mean : (C,); products : (C, C) or, unless `mixed`, (C,) sums of products of deviations
    """

    def __init__(self, channels: int, mixed: bool = True) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self.products = np.zeros((channels, channels) if mixed else channels)

    def add(self, tokens: NDArray[np.floating]) -> None:
        """Tokens (..., C). Raises ValueError for tokens that are not finite."""
        for portion in portions(tokens, self.products.ndim == 2):
            self.merge(portion)

    def merge(self, portion: Portion) -> None:
        """Add a portion of the tokens. Sums are rounded, so portions are to come in their tokens' order."""
        off, total = portion.mean - self.mean, self.count + portion.number
        share = self.count * portion.number / total
        self.products += portion.products + share * (np.outer(off, off) if self.products.ndim == 2 else off * off)
        self.mean += off * (portion.number / total)
        self.count = total


def fit_standardization(
    tokens: NDArray[np.floating] | Moments,
    mode: Literal["whiten", "scale", "none"] = "whiten",
    shrinkage: float = 0.1,
) -> tuple[Float32, Float32]:
    """Mean (C,) and matrix W (C, C) so that (t − mean) @ W has unit variance over a sample of tokens (n, C).

    The sample is given itself, or by its moments. "scale" divides each channel by its deviation. "whiten" also removes
    the correlation of channels, by the symmetric root of the inverse correlation matrix, which is first drawn towards
    the identity by `shrinkage` (in [0, 1]) so that directions that hold next to nothing are not blown up. Then noise
    spreads evenly over all directions and unlike places have a cosine near zero. A channel that is constant in the
    sample becomes zero.

    Raises ValueError for fewer than two tokens, for non-finite ones, for an unknown mode, and where moments lack the
    products that "whiten" needs.
    """
    if mode not in ("whiten", "scale", "none"):
        raise ValueError(f"unknown standardisation {mode!r}; expected whiten, scale or none")
    if isinstance(tokens, Moments):
        moments = tokens
    else:
        sample = np.asarray(tokens)
        if sample.ndim != 2 or len(sample) < 2 or not np.isfinite(sample).all():
            raise ValueError(f"tokens have shape {sample.shape}, expected (n >= 2, C), all finite")
        moments = Moments(sample.shape[1], mixed=mode == "whiten")
        moments.add(sample)
    if moments.count < 2:
        raise ValueError(f"moments of {moments.count} tokens, expected at least 2")
    mean = moments.mean
    if mode == "none":
        return np.zeros_like(mean, np.float32), np.eye(len(mean), dtype=np.float32)
    squares = moments.products if moments.products.ndim == 1 else moments.products.diagonal()
    deviation = np.sqrt(squares / moments.count)
    alive = deviation > 1e-6 * (np.abs(mean) + 1e-6)
    inverse = np.where(alive, 1 / np.where(alive, deviation, 1), 0.0)
    if mode == "scale":
        return mean.astype(np.float32), np.diag(inverse).astype(np.float32)
    if moments.products.ndim == 1:
        raise ValueError("whitening needs the products of unlike channels")
    scaled = inverse[:, None] * moments.products * inverse / moments.count
    correlation = (1 - shrinkage) * scaled + shrinkage * np.eye(len(mean))
    values, vectors = np.linalg.eigh(correlation)
    root = (vectors / np.sqrt(np.maximum(values, 1e-6))) @ vectors.T
    return mean.astype(np.float32), (inverse[:, None] * root).astype(np.float32)
