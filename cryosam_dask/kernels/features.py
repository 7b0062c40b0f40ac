"""Cosine similarity and masked pooling straight from latent views: F, with its 3C channels a voxel, is never built.

A view's latents are (slices, rows, columns, C); `rows` and `columns` below are `geometry.Interpolation`s from its
tokens to the wanted positions. Upsampling is separable, so it is two small matrix products on scalar maps:

    F_Q · up(Z)  = up(F_Q · Z)
    ‖up(Z)‖²     = Wr² self Wc²ᵀ + 2 Wr² right Pcᵀ + 2 Pr down Wc²ᵀ + 2 Pr cross Pcᵀ

with W the interpolation matrices, W² their squares by element and P the products w_lower · w_upper. `cross` is the sum
of the diagonal and the anti-diagonal product, which only occur together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryosam_dask.geometry import Interpolation, interpolation
from cryosam_dask.types import Array, Bool, Float32


@dataclass(frozen=True)
class ViewBlock:
    """The part of one view that a block of positions needs.

    Attributes
    ----------
    latents : (n, r, c, C), the tokens `rows` and `columns` touch; gram : (n, r, c, 4), or None if not needed
    """

    latents: Array
    gram: Array | None
    rows: Interpolation
    columns: Interpolation


def gram_maps(tokens: Float32) -> Float32:
    """Products of neighbouring tokens (n, r, c, C): (n, r, c, 4) in the order self, down, right, cross.

    Entries of the last row or column whose neighbour does not exist are 0; no interpolation weighs them.
    """
    n, r, c, _ = tokens.shape
    out = np.zeros((n, r, c, 4), np.float32)
    out[..., 0] = np.einsum("nrcz,nrcz->nrc", tokens, tokens)
    out[:, :-1, :, 1] = np.einsum("nrcz,nrcz->nrc", tokens[:, :-1], tokens[:, 1:])
    out[:, :, :-1, 2] = np.einsum("nrcz,nrcz->nrc", tokens[:, :, :-1], tokens[:, :, 1:])
    out[:, :-1, :-1, 3] = np.einsum("nrcz,nrcz->nrc", tokens[:, :-1, :-1], tokens[:, 1:, 1:])
    out[:, :-1, :-1, 3] += np.einsum("nrcz,nrcz->nrc", tokens[:, :-1, 1:], tokens[:, 1:, :-1])
    return out


def upsample(latents: Array, rows: Interpolation, columns: Interpolation) -> Float32:
    """Dense features of a view's block: (n, len(rows), len(columns), C) from (n, r, c, C)."""
    values = np.einsum("ir,nrcz->nicz", rows.weights, latents.astype(np.float32), optimize=True)
    out: Float32 = np.einsum("jc,nicz->nijz", columns.weights, values, optimize=True)
    return out


def squared_norm(block: ViewBlock) -> Float32:
    """‖up(latents)‖² at the block's positions, (n, rows, columns), from the Gram maps."""
    assert block.gram is not None
    wr, wc = block.rows.weights**2, block.columns.weights**2
    pr, pc = block.rows.pairs, block.columns.pairs
    self_, down, right, cross = np.moveaxis(block.gram, -1, 0)
    out: Float32 = wr @ (self_ @ wc.T + 2 * right @ pc.T) + 2 * pr @ (down @ wc.T + cross @ pc.T)
    return out


def project(block: ViewBlock, vectors: Float32) -> Float32:
    """up(latents) · v for each column v of (C, k): (k, n, rows, columns)."""
    n, r, c, channels = block.latents.shape
    maps = (block.latents.reshape(-1, channels).astype(np.float32) @ vectors).reshape(n, r, c, -1)
    out: Float32 = block.rows.weights @ np.moveaxis(maps, -1, 0) @ block.columns.weights.T
    return out


def view_terms(block: ViewBlock, query: Float32, mean: Float32 | None) -> tuple[Float32, Float32]:
    """One view's share of the cosine's numerator and of its denominator's ‖F‖², each (n, rows, columns).

    `query` is this view's (C,) part of F_Q. With `mean` (C,), both are of F − μ and F_Q − μ.
    """
    norm = squared_norm(block)
    if mean is None:
        return project(block, query[:, None])[0], norm
    centered = query - mean
    dots = project(block, np.stack([centered, mean], axis=1))
    return dots[0] - float(centered @ mean), norm - 2 * dots[1] + float(mean @ mean)


def cosine(numerator: Float32, squared: Float32, query_norm: float) -> Float32:
    """numerator / (‖F_Q‖ · √squared), 0 where a norm vanishes; eq. 6 of the CryoSAM paper."""
    denominator = query_norm * np.sqrt(np.maximum(squared, 0))
    # below this, ‖F‖² is what rounding left of zero
    flat = denominator <= 1e-6 * query_norm
    return np.where(flat, 0, numerator / np.where(flat, 1, denominator)).astype(np.float32)


def pool_view(latents: Array, mask: Bool, rows: Interpolation, columns: Interpolation) -> Float32:
    """Sum of a view's dense features over a mask (n, rows, columns): (C,), through the adjoint of the upsampling."""
    weights = rows.weights.T @ mask.astype(np.float32) @ columns.weights
    return np.tensordot(weights, latents.astype(np.float32), axes=3)


def token_weights(length: int, tokens: int) -> Float32:
    """Summed interpolation weight of each token over all voxels of an axis, (tokens,)."""
    full = interpolation(np.arange(length, dtype=float), length, tokens)
    out = np.zeros(tokens, np.float32)
    out[full.start : full.stop] = full.weights.sum(0)
    return out


def average_slices(tokens: Float32, ratio: int) -> Float32:
    """Mean of each run of `ratio` slices, (ceil(n / ratio), r, c, C); the last run possibly shorter."""
    starts = np.arange(0, len(tokens), ratio)
    counts = np.diff(np.append(starts, len(tokens)))
    sums = np.add.reduceat(tokens, starts, axis=0)
    return (sums / counts[:, None, None, None]).astype(np.float32)
