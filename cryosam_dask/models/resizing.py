"""Images resized on the device that they are on, equal in each pixel to what the host makes of them.

Models that were published with Pillow's resizing are fed what they were trained with (`resize`), slices of a tomogram
are what `kernels.images` makes of them (`resample`), and no image is made on the host.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Interpolation

if TYPE_CHECKING:
    import torch

BITS = 22
"""Bits behind the point of Pillow's weights for 8-bit images (`PRECISION_BITS` in its Resample.c)."""


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An image (A, B) uint8 resized to `size`, uint8, as by Pillow's `Image.resize(…, Resampling.BILINEAR)`.

    A triangle as wide as a pixel of the smaller image, in whole numbers, each time rounded to 8 bits, so that every
    device gives the same. Along a row first, then along a column; newer versions of Pillow do it the other way round
    where an image becomes smaller and that is quicker, which changes some pixels by one grey level.
    """
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            image = _along(image, axis, size[axis])
    return image


def resample(images: torch.Tensor, rows: Interpolation, columns: Interpolation) -> torch.Tensor:
    """Bilinear (n, len(rows), len(columns)) of images (n, A, B) in single precision, as `kernels.images.resample`.

    The same operations in the same order, each rounded on its own, so that every device gives the same.
    """
    import torch

    for axis, side in ((1, rows), (2, columns)):
        last = images.shape[axis] - 1
        lower, upper, fraction = (
            torch.from_numpy(values).to(images.device, non_blocking=True)  # no wait for what is queued before
            for values in (side.lower, np.minimum(side.lower + 1, last), side.fraction.astype(np.float32))
        )
        near, far = images.index_select(axis, lower), images.index_select(axis, upper)
        images = far.sub_(near).mul_(fraction[:, None] if axis == 1 else fraction).add_(near)
    return images


def _along(image: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    import torch

    sources, weights = (torch.from_numpy(table).to(image.device) for table in _taps(image.shape[axis], length))
    # below 2³¹: weights add up to 2²², but for rounding
    total: torch.Tensor | None = None
    for source, weight in zip(sources, weights, strict=True):
        part = image.index_select(axis, source).int()
        part *= weight if axis else weight[:, None]
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.add_(1 << (BITS - 1)).bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _taps(source: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Pixels that each of `length` is made of, and their weights in 2⁻²²: (taps, length) both."""
    scale = source / length
    support = max(scale, 1.0)
    centre = (np.arange(length) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
    taps = first + np.arange(count.max())[:, None]
    weights = np.maximum(1 - np.abs((taps - centre + 0.5) / support), 0) * (taps < first + count)
    weights = np.floor(0.5 + weights / weights.sum(0) * (1 << BITS))
    return np.minimum(taps, source - 1), weights.astype(np.int32)
