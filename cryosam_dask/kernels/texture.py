"""Rotation-invariant texture of slices: Gaussian derivatives over an octave pyramid, on a grid of patches.

Every channel is unchanged when the slice is turned by a quarter or mirrored (exactly) and by any other angle (as far as
the grid allows): differences of Gaussians (signed, so that dark and bright objects point opposite ways), gradient
magnitudes, and the spread of the Hessian's eigenvalues, √((Lyy − Lxx)² + 4 Lxy²), each at several scales, and the log
energy of the two finest bands. The Hessian's other invariant, its trace, is what a difference of Gaussians measures
(heat equation: ∂G/∂t = ½ ∇²G), so it is not repeated.

Signed channels are linear: averaged over the slices of a cell they are true 3D band-pass filters, which is what carries
particles out of the noise.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Float32 = NDArray[np.float32]

PATCH = 4
SCALES: tuple[float, ...] = tuple(2.0 * 2 ** (k / 2) for k in range(8))  # deviations in pixels: 2 … 22.6
_DERIVATIVE_SCALES = (1, 3, 5)  # indices of SCALES, an octave apart
_PYRAMID_VARIANCE = 3.75  # of two [1 3 3 1]/8 reductions: 0.75 + 4 · 0.75 pixels²
_LOG_FLOOR = 1e-3
CHANNELS: tuple[str, ...] = (
    "energy0",
    "energy1",
    "gradient1.4",
    "spread1.4",
    *(f"band{scale:.1f}" for scale in SCALES[:-1]),
    "low",
    *(f"{kind}{SCALES[k]:.1f}" for k in _DERIVATIVE_SCALES for kind in ("gradient", "spread")),
)


def texture_tokens(slices: Float32) -> Float32:
    """Texture of slices (N, A, B), zero mean and unit deviation; A and B multiples of 4.

    Returns (N, A/4, B/4, C) float32, C = `len(CHANNELS)`; token (i, j) stands for the pixels [4i, 4i+4) × [4j, 4j+4).
    Each slice is treated alone; edges are continued by their own values.
    """
    if slices.ndim != 3 or any(side % PATCH or side == 0 for side in slices.shape[1:]):
        raise ValueError(f"slices have shape {slices.shape}, expected (N, A, B), A and B multiples of {PATCH}")
    out = np.empty((len(slices), *(n // PATCH for n in slices.shape[1:]), len(CHANNELS)), np.float32)
    for index in range(len(slices)):  # one slice at a time stays in the processor's cache
        part = slice(index, index + 1)
        _fill(np.ascontiguousarray(slices[part], np.float32), out[part])
    return out


def _fill(full: Float32, out: Float32) -> None:
    half = _reduce(full)
    smooth, scale_space = _reduce(half), []
    out[..., 0] = np.log(_mean2(_block_variance(full)) + np.float32(_LOG_FLOOR))
    out[..., 1] = np.log(_block_variance(half) + np.float32(_LOG_FLOOR))
    for channel, fine in enumerate(_derivatives(_blur(half, 0.6)), start=2):
        out[..., channel] = _mean2(fine)
    variance = _PYRAMID_VARIANCE
    for scale in SCALES:
        if scale * scale > variance + 0.5:  # the pyramid's own blur stands for the first scale
            smooth = _blur(smooth, np.sqrt(scale * scale - variance) / PATCH)
            variance = scale * scale
        scale_space.append(smooth)
    for channel, (fine, coarse) in enumerate(itertools.pairwise(scale_space), start=4):
        np.subtract(fine, coarse, out=out[..., channel])
    channel = 3 + len(SCALES)
    out[..., channel] = scale_space[-1]
    for k in _DERIVATIVE_SCALES:
        out[..., channel + 1], out[..., channel + 2] = _derivatives(scale_space[k])
        channel += 2


def _reduce(slices: Float32) -> Float32:
    """Half the size of (N, A, B), A and B even: [1 3 3 1]/8 along both, so that pixel i stands for 2i and 2i + 1."""
    for axis in (1, 2):
        widths = [(0, 0)] * 3
        widths[axis] = (1, 1)
        padded = np.moveaxis(np.pad(slices, widths, mode="edge"), axis, 0)
        n = len(padded) - 2
        outer = padded[0:n:2] + padded[3 : n + 2 : 2]
        inner = padded[1 : n + 1 : 2] + padded[2 : n + 2 : 2]
        slices = np.moveaxis(outer * np.float32(0.125) + inner * np.float32(0.375), 0, axis)
    return slices


def _mean2(slices: Float32) -> Float32:
    """Mean over blocks of 2 × 2 pixels."""
    rows = slices[:, ::2] + slices[:, 1::2]
    mean: Float32 = (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)
    return mean


def _block_variance(slices: Float32) -> Float32:
    """Variance within blocks of 2 × 2 pixels, never negative."""
    mean = _mean2(slices)
    return np.maximum(_mean2(slices * slices) - mean * mean, np.float32(0))


def _blur(slices: Float32, deviation: float) -> Float32:
    blurred: Float32 = gaussian_filter(slices, (0, deviation, deviation), mode="nearest", truncate=3.0)
    return blurred


def _derivatives(smooth: Float32) -> tuple[Float32, Float32]:
    """Gradient magnitude and spread of the Hessian's eigenvalues, by central differences."""
    e = np.pad(smooth, ((0, 0), (1, 1), (1, 1)), mode="edge")
    up, down, left, right = e[:, :-2, 1:-1], e[:, 2:, 1:-1], e[:, 1:-1, :-2], e[:, 1:-1, 2:]
    gradient = _length(down - up, right - left) * np.float32(0.5)
    mixed = (e[:, 2:, 2:] - e[:, 2:, :-2] - e[:, :-2, 2:] + e[:, :-2, :-2]) * np.float32(0.5)  # 2 Lxy
    return gradient, _length(down + up - left - right, mixed)


def _length(a: Float32, b: Float32) -> Float32:
    """√(a² + b²), of arrays that are needed no more. `np.hypot`, which guards against squares beyond what a float32
    holds, takes six times as long; densities are standard ones."""
    np.multiply(a, a, out=a)
    a += np.multiply(b, b, out=b)
    return np.sqrt(a, out=a)
