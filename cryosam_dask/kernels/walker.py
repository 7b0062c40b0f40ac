"""The random walker with priors, on a small window of one plane.

A random walker (Grady 2006) that leaves a pixel along weak edges, with the intensity of the two classes as a prior
(Grady 2005): the probability x of "inside" solves (L + diag(a)) x = a·t, with L the Laplacian of the pixel grid under
the edge weights, t the prior's probability and a its strength. A seed is a pixel with a very large a. The matrix is
banded, as wide as the window's shorter side, so a banded Cholesky factorisation solves a window of 40×40 pixels in
half a millisecond; windows of larger objects are first averaged down to about that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.linalg.lapack import spbtrf, spbtrs

from cryosam_dask.kernels.quality import median, quality
from cryosam_dask.types import Bool, Float32, Window

SCALES = (3.0, 4.5, 7.0, 10.5, 16.0)
"""Radii, in pixels, at which a point alone is tried: half an octave apart, for objects 5 to 40 pixels wide."""

_SEED = 1e3
_GRID = 44


@dataclass(frozen=True)
class WalkParameters:
    """The weights of the random walk.

    data : strength of the intensity prior against one edge of the grid; smaller is smoother
    temper : factor on the log-odds of the intensities (smoothed noise is correlated, so each pixel counts less)
    memory : factor on the log-odds that come from the plane before
    edge : intensity step, in deviations of the local differences, across which the walk hardly goes
    """

    data: float = 0.3
    temper: float = 0.5
    memory: float = 1.0
    edge: float = 2.0


class Candidate(NamedTuple):
    """One mask on a window of the plane.

    row, col : the window's first pixel; mask : (a, b) bool; logits : (a, b) float32, > 0 inside the mask and
    ≤ 0 outside; score : 0 to 1, its `quality`.
    """

    row: int
    col: int
    mask: Bool
    logits: Float32
    score: float


class System:
    """The system (L + diag(a)) x = a·t of one grid, factorised once for any number of priors t.

    Parameters
    ----------
    strength : (h, w) the prior's strength a ≥ 0, not zero everywhere
    down, right : (h−1, w) and (h, w−1) edge weights > 0
    """

    def __init__(self, strength: Float32, down: Float32, right: Float32) -> None:
        self._turned = strength.shape[1] > strength.shape[0]  # the band is as wide as a row, so rows are to be short
        if self._turned:
            strength, down, right = strength.T, right.T, down.T
        h, w = strength.shape
        diagonal = strength.astype(np.float32, order="C", copy=True)
        diagonal[:-1] += down
        diagonal[1:] += down
        diagonal[:, :-1] += right
        diagonal[:, 1:] += right
        band = np.zeros((w + 1, h * w), np.float32, order="F")
        band[0] = diagonal.ravel()
        if w > 1:
            along = np.zeros((h, w), np.float32)  # 0 at a row's end: its last pixel has no edge to the next row's first
            np.negative(right, along[:, :-1])
            band[1] = along.ravel()
        if h > 1:
            band[w, : (h - 1) * w] = -down.ravel()
        self._strength = strength
        self._factor, info = spbtrf(band, lower=1, overwrite_ab=1)
        if info != 0:
            raise np.linalg.LinAlgError(f"random walker: the system is not positive definite (LAPACK info {info})")

    def solve(self, target: Float32) -> Float32:
        """Probability of "inside" on the grid, (h, w), for the prior's probability `target` (h, w)."""
        target = target.T if self._turned else target
        rhs = (self._strength * target).astype(np.float32, copy=False).reshape(-1, 1)
        x, _ = spbtrs(self._factor, rhs, lower=1, overwrite_b=1)
        walked: Float32 = x.reshape(self._strength.shape)
        return walked.T if self._turned else walked


def solve(target: Float32, strength: Float32, down: Float32, right: Float32) -> Float32:
    """Probability of "inside" on a grid of (h, w) pixels for one prior; see `System`."""
    return System(strength, down, right).solve(target)


def edge_weights(image: Float32, edge: float) -> tuple[Float32, Float32]:
    """Weights (down, right) of a grid's edges: 1 on flat ground, falling with the step's square."""
    down, right = (image[1:] - image[:-1]) ** 2, (image[:, 1:] - image[:, :-1]) ** 2
    size = down.size + right.size
    variance = (float(down.sum()) + float(right.sum())) / max(size, 1)
    scale = -1.0 / (2 * edge**2 * variance + 1e-12)
    floor = np.float32(1e-3)
    return np.exp(scale * down) + floor, np.exp(scale * right) + floor


def _sigmoid(x: Float32) -> Float32:
    odds: Float32 = np.exp(-np.minimum(np.maximum(x, -12), 12))
    odds += 1
    return np.reciprocal(odds, odds)


def _log_odds(image: Float32, inside: Float32, outside: Bool, temper: float) -> Float32:
    """Log-odds of the inside class at each pixel: two Gaussian classes of equal variance.

    inside : weights of the pixels that are surely inside; outside : pixels that are surely outside. The outside's
    centre is the median, so that a neighbour in the ring does not count.
    """
    mu_in = float((image * inside).sum() / max(float(inside.sum()), 1e-6))
    ring = image[outside]
    mu_out = float(median(ring if ring.size else image.ravel()))
    deviation = 1.4826 * float(median(np.abs(ring - mu_out))) if ring.size else float(image.std())
    gap = mu_in - mu_out
    variance = max(deviation, 0.25 * abs(gap), 1e-3) ** 2
    odds: Float32 = temper * gap / variance * (image - (mu_in + mu_out) / 2)
    return odds


def _component(mask: Bool, row: int, col: int) -> Bool:
    """The component of `mask` at, or nearest to, a pixel; its holes filled."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    if count > 1:
        label = labels[row, col]
        if label == 0:
            rows, cols = np.nonzero(mask)
            nearest = int(np.argmin((rows - row) ** 2 + (cols - col) ** 2))
            label = labels[rows[nearest], cols[nearest]]
        mask = labels == label
    if not _has_holes(mask):
        return mask
    filled: Bool = ndimage.binary_fill_holes(mask)
    return filled


def _has_holes(mask: Bool) -> bool:
    """Whether one component (of pixels that share sides) has a hole.

    By Euler's formula on its pixels as closed squares: vertices − edges + faces is 1 less the number of holes, which
    are components of the ground that share sides.
    """
    held = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    held[1:-1, 1:-1] = mask
    beside = held[:, 1:] | held[:, :-1]
    edges = np.count_nonzero(beside) + np.count_nonzero(held[1:] | held[:-1])
    vertices = np.count_nonzero(beside[1:] | beside[:-1])
    return bool(vertices - edges + np.count_nonzero(mask) < 1)


def _quality_on(plane: Float32, row: int, col: int, mask: Bool) -> float:
    """`quality` of a window's mask, on the plane's pixels up to 12 around the mask."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return 0.0
    margin = 12
    r0, c0 = max(row + int(rows[0]) - margin, 0), max(col + int(cols[0]) - margin, 0)
    image = plane[r0 : row + int(rows[-1]) + margin + 1, c0 : col + int(cols[-1]) + margin + 1].astype(np.float32)
    held = np.zeros(image.shape, bool)
    cut = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    top, left = row + int(rows[0]) - r0, col + int(cols[0]) - c0
    held[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return quality(image, held)


class _Window(NamedTuple):
    row: int
    col: int
    image: Float32
    step: int
    coarse: Float32


def _window(plane: Float32, low: tuple[int, int], high: tuple[int, int]) -> _Window:
    """Cut pixels [low, high) out of the plane, clipped to it, and average down to at most about _GRID pixels."""
    r0, c0 = max(low[0], 0), max(low[1], 0)
    r1, c1 = min(high[0], plane.shape[0]), min(high[1], plane.shape[1])
    image = plane[r0:r1, c0:c1].astype(np.float32)
    step = max(1, -(-max(image.shape) // _GRID))
    return _Window(r0, c0, image, step, shrink(image, step))


def shrink(image: Float32, step: int) -> Float32:
    """Mean of blocks of step×step pixels; the last ones repeat the edge."""
    if step == 1:
        return image
    h, w = image.shape
    padded = np.pad(image, ((0, -h % step), (0, -w % step)), mode="edge")
    blocks: Float32 = padded.reshape(padded.shape[0] // step, step, -1, step).mean((1, 3))
    return blocks


def enlarge(image: Float32, step: int, shape: tuple[int, int]) -> Float32:
    """The inverse of `shrink`: linear between the blocks' centres, edges clamped."""
    if step == 1:
        return image
    for axis, size in enumerate(shape):
        at = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, image.shape[axis] - 1)
        low = np.minimum(at.astype(int), max(image.shape[axis] - 2, 0))
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (at - low).astype(np.float32)
        part = part[:, None] if axis == 0 else part[None]
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


class _Walked(NamedTuple):
    """Probabilities at the plane's own pixels, 0 to 1 exclusive, and what follows from them."""

    window: _Window
    inside: Float32
    mask: Bool
    score: float

    def candidate(self) -> Candidate:
        logits = np.log(self.inside / (1 - self.inside))
        logits = np.where(self.mask, np.maximum(logits, 1e-3), np.minimum(logits, 0)).astype(np.float32, copy=False)
        return Candidate(self.window.row, self.window.col, self.mask, logits, self.score)


def _finish(plane: Float32, window: _Window, coarse: Float32, row: float, col: float) -> _Walked:
    """Mask and score at the plane's own pixels from the coarse grid's probabilities."""
    inside = enlarge(coarse, window.step, window.image.shape[:2])
    inside = np.minimum(np.maximum(inside, 1e-4), 1 - 1e-4)
    at = (
        min(max(round(row - window.row), 0), inside.shape[0] - 1),
        min(max(round(col - window.col), 0), inside.shape[1] - 1),
    )
    mask = _component(inside > 0.5, *at)
    return _Walked(window, inside, mask, _quality_on(plane, window.row, window.col, mask))


def from_point(plane: Float32, row: float, col: float, how: WalkParameters) -> list[Candidate]:
    """Segment what lies under a point: one candidate for each of `SCALES`.

    A point is seldom at the middle: the best scale and those next to it are walked again from the centre of the best
    mask.
    """
    walked = [_at_scale(plane, row, col, radius, how) for radius in SCALES]
    best = max(range(len(SCALES)), key=lambda i: walked[i].score)
    rows, cols = np.nonzero(walked[best].mask)
    if rows.size:
        window = walked[best].window
        centre = float(rows.mean()) + window.row, float(cols.mean()) + window.col
        for i in range(max(best - 1, 0), min(best + 2, len(SCALES))):
            walked[i] = _at_scale(plane, *centre, SCALES[i], how)
    return [w.candidate() for w in walked]


def _at_scale(plane: Float32, row: float, col: float, radius: float, how: WalkParameters) -> _Walked:
    """Segment what lies under a point, taken to be about `radius` pixels in radius.

    The class means come from a disc and a ring around the point first, then from the mask that these gave. Pixels
    beyond 1.8 radii are seeds of the outside, the point itself is a seed of the inside.
    """
    reach = int(np.ceil(1.8 * radius)) + 2
    r, c = round(row), round(col)
    window = _window(plane, (r - reach, c - reach), (r + reach + 1, c + reach + 1))
    image, step = window.coarse, window.step
    rows = (np.arange(image.shape[0]) + 0.5) * step - 0.5 + window.row - row
    cols = (np.arange(image.shape[1]) + 0.5) * step - 0.5 + window.col - col
    squared = rows[:, None] ** 2 + cols[None] ** 2
    beyond = squared > (1.8 * radius) ** 2
    strength = np.where(beyond, np.float32(_SEED), np.float32(how.data * step * step))
    seed = int(np.abs(rows).argmin()), int(np.abs(cols).argmin())
    strength[seed] = 10.0
    down, right = edge_weights(image, how.edge)
    inside = np.exp(-squared / (2 * (0.45 * radius) ** 2)).astype(np.float32)
    outside = (squared > (1.25 * radius) ** 2) & (squared <= (1.9 * radius + 1) ** 2)
    system = System(strength, down, right)
    for last in (False, True):
        target = _sigmoid(_log_odds(image, inside, outside, how.temper))
        target[beyond], target[seed] = 0, 1
        walked = system.solve(target)
        if not last:
            inside = np.where(walked > 0.5, walked, np.float32(0))
            outside = walked < 0.2
    return _finish(plane, window, walked, row, col)


def from_mask(plane: Float32, row: float, col: float, before: Window, how: WalkParameters) -> Candidate | None:
    """Segment the object that had `before` as its logits on the neighbouring plane; None when these have no inside.

    The mask before, most where it is surest, says what inside looks like on this plane; its surroundings say what
    outside looks like; and its log-odds are the prior that the intensities on this plane are weighed against.
    """
    held = before.block > 0
    rows = np.flatnonzero(held.any(1))
    if rows.size == 0:
        return None
    cols = np.flatnonzero(held.any(0))
    (r0, r1), (c0, c1) = (
        (int(i[0]) + low, int(i[-1]) + 1 + low) for i, low in ((rows, before.row), (cols, before.col))
    )
    margin = 5 + (r1 - r0 + c1 - c0) // 8
    window = _window(plane, (r0 - margin, c0 - margin), (r1 + margin, c1 + margin))
    image, step = window.coarse, window.step
    prior = shrink(before.cut(window.row, window.col, window.image.shape).astype(np.float32), step)
    held = prior > 0
    if not held.any():
        return None
    inside = np.where(held, _sigmoid(prior) - 0.45, 0).astype(np.float32) ** 2
    far = ndimage.distance_transform_edt(~held) * step
    outside = (far > 2) & (far <= margin)
    beyond = far > margin
    strength = np.where(beyond, _SEED, how.data * step * step).astype(np.float32)
    prior = np.where(held, np.clip(prior, 0, 3), -np.minimum(far, 3)).astype(np.float32)
    odds = _log_odds(image, inside, outside, how.temper) + how.memory * prior
    target = _sigmoid(odds)
    target[beyond] = 0
    walked = solve(target, strength, *edge_weights(image, how.edge))
    return _finish(plane, window, walked, row, col).candidate()
