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
from typing import Any

import numpy as np

from cryosam_dask.geometry import Interpolation, interpolation
from cryosam_dask.kernels.backend import NUMPY, Backend
from cryosam_dask.types import Array, Bool, Float32

BLOCK_VALUES = 1 << 17


@dataclass(frozen=True)
class ViewBlock:
    """The part of one view that a block of positions needs.

    Attributes
    ----------
    dots : (k, n, r, c), products of the tokens that `rows` and `columns` touch with k vectors (`token_dots`)
    gram : (n, r, c, 4), their Gram maps
    """

    dots: Float32
    gram: Float32
    rows: Interpolation
    columns: Interpolation

    def part(self, slices: slice, rows: slice, columns: slice) -> ViewBlock:
        """That of a part of the positions."""
        row, column = self.rows.part(rows.start, rows.stop), self.columns.part(columns.start, columns.stop)
        r = slice(row.start - self.rows.start, row.stop - self.rows.start)
        c = slice(column.start - self.columns.start, column.stop - self.columns.start)
        return ViewBlock(self.dots[:, slices, r, c], self.gram[slices, r, c], row, column)


@dataclass(frozen=True)
class Target:
    """What one view is compared with: its (C,) part of F_Q, and of the mean feature where F and F_Q are centred."""

    query: Float32
    mean: Float32 | None = None

    @property
    def vectors(self) -> Float32:
        """(C, k) to multiply tokens with: the query; or the query less the mean, and the mean."""
        if self.mean is None:
            return self.query[:, None]
        return np.stack([self.query - self.mean, self.mean], axis=1)


def gram_maps(tokens: Any, backend: Backend = NUMPY) -> Any:
    """Products of neighbouring tokens (n, r, c, C): (n, r, c, 4) in the order self, down, right, cross.

    Entries of the last row or column whose neighbour does not exist are 0; no interpolation weighs them. The tokens
    are an array of the backend's, in single or half precision; so are the products, in single precision.
    """
    out = backend.zeros((*tokens.shape[:3], 4))
    high, wide, channels = (int(n) for n in tokens.shape[1:])
    step = max(1, backend.block_values // max(1, wide * channels))
    for index in range(len(tokens)):
        for start in range(0, high, step):  # these rows and the next one stay in the cache
            stop = min(start + step, high)
            image = backend.single(tokens[index, start : stop + 1])
            maps, rows, pairs = out[index, start:stop], stop - start, len(image) - 1
            own, above, below = image[:rows], image[:pairs], image[1:]
            maps[..., 0] = backend.dots(own, own)
            maps[:pairs, :, 1] = backend.dots(above, below)
            maps[:, :-1, 2] = backend.dots(own[:, :-1], own[:, 1:])
            maps[:pairs, :-1, 3] = backend.dots(above[:, :-1], below[:, 1:])
            maps[:pairs, :-1, 3] += backend.dots(above[:, 1:], below[:, :-1])
    return out


def upsample(latents: Array, rows: Interpolation, columns: Interpolation) -> Float32:
    """Dense features of a view's block: (n, len(rows), len(columns), C) from (n, r, c, C)."""
    values = np.einsum("ir,nrcz->nicz", rows.weights, latents.astype(np.float32), optimize=True)
    out: Float32 = np.einsum("jc,nicz->nijz", columns.weights, values, optimize=True)
    return out


def token_dots(latents: Array, vectors: Float32) -> Float32:
    """Products of tokens (n, r, c, C) with each column of (C, k): (k, n, r, c)."""
    *grid, channels = latents.shape
    tokens = latents.reshape(-1, channels)
    out = np.empty((len(tokens), vectors.shape[1]), np.float32)
    # in single precision a few hundred kilobytes at a time: they stay in the cache, and no copy of all is made
    rows = max(1, BLOCK_VALUES // channels)
    for start in range(0, len(tokens), rows):
        part = slice(start, start + rows)
        np.matmul(tokens[part].astype(np.float32), vectors, out=out[part])
    return np.ascontiguousarray(out.T).reshape(-1, *grid)


def squared_norm(block: ViewBlock) -> Float32:
    """‖up(latents)‖² at the block's positions, (n, rows, columns), from the Gram maps."""
    wr, wc = block.rows.weights**2, block.columns.weights**2
    pr, pc = block.rows.pairs, block.columns.pairs
    self_, down, right, cross = np.moveaxis(block.gram, -1, 0)
    out: Float32 = wr @ (self_ @ wc.T + 2 * right @ pc.T) + 2 * pr @ (down @ wc.T + cross @ pc.T)
    return out


def view_terms(block: ViewBlock, target: Target) -> tuple[Float32, Float32]:
    """One view's share of the cosine's numerator and of its denominator's ‖F‖², each (n, rows, columns)."""
    dots = block.rows.weights @ block.dots @ block.columns.weights.T
    norm = squared_norm(block)
    mean = target.mean
    if mean is None:
        return dots[0], norm
    return dots[0] - float((target.query - mean) @ mean), norm - 2 * dots[1] + float(mean @ mean)


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


def average_slices(tokens: Float32, ratio: int, counts: Array | None = None) -> Float32:
    """Mean of each run of `ratio` slices, (ceil(n / ratio), r, c, C); the last run possibly shorter.

    counts : (n,) of how many slices each entry is the sum, where some were added up before
    """
    counts = np.ones(len(tokens)) if counts is None else counts
    out = np.empty((-(-len(tokens) // ratio), *tokens.shape[1:]), np.float32)
    for mean, start in zip(out, range(0, len(tokens), ratio), strict=True):
        run = slice(start, start + ratio)
        mean[...] = mean_of(tokens[run], int(counts[run].sum()))
    return out


def mean_of(images: Any, count: int) -> Any:
    """The sum of some images (k, …) over `count`, in single precision."""
    if len(images) == 1:
        return images[0] / count
    total = images[0] + images[1]
    for index in range(2, len(images)):
        total += images[index]
    total /= count
    return total
