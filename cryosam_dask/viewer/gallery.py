"""Close views of instances: three planes through each, side by side, with the mask outlined."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.store import layout
from cryosam_dask.types import Bool
from cryosam_dask.viewer.blocks import Blocks

SMALLEST, LARGEST = 32, 512
"""Pixels of a plane's side that may be asked for."""

ROOM = 1.7
"""Side of a view in units of the mask's longest."""

NARROWEST = 24
"""Voxels of a view's side, at least."""

SLICES = 1
"""Slices on both sides that a plane is averaged with, against noise."""

NARROWER = 0.7
"""Share of the window that is shown: the average of slices has less noise, so that contrast can be stronger."""

OUTLINE = (255, 214, 10)
Pixels = NDArray[np.uint8]


def view(blocks: Blocks, mask: Bool, box: Box, size: int, window: tuple[float, float] | None = None) -> bytes:
    """A PNG of the planes z (x right, y down), y (x right, z down) and x (z right, y down) through a mask's middle.

    size : pixels of each plane's side; window : densities shown as black and white, None: the volume's limits
    Voxels are shown as cubes' sides in proportion to the voxel size; what lies beyond the tomogram is black.
    """
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"size {size}: expected pixels from {SMALLEST} to {LARGEST}")
    from PIL import Image

    centre = _centre(mask, box)
    nm = [v / 10 for v in blocks.store.voxel_size]
    extent = max(max((b - a) * v for (a, b), v in zip(box, nm, strict=True)) * ROOM, NARROWEST * min(nm))
    panels = [_panel(blocks, mask, box, centre, axis, extent, size, window) for axis in (0, 1, 2)]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(panels, axis=1)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _centre(mask: Bool, box: Box) -> tuple[int, int, int]:
    """The voxel at the mask's centre of mass."""
    z, y, x = (
        a + round(float(np.average(np.arange(n), weights=mask.sum(tuple(i for i in range(3) if i != axis)))))
        for axis, ((a, _), n) in enumerate(zip(box, mask.shape, strict=True))
    )
    return z, y, x


def _panel(
    blocks: Blocks,
    mask: Bool,
    box: Box,
    centre: tuple[int, int, int],
    axis: int,
    extent: float,
    size: int,
    window: tuple[float, float] | None,
) -> Pixels:
    """One plane as (size, size, 3): the mean of a few slices, and the mask's outline in its middle one."""
    rows, columns = {0: (1, 2), 1: (0, 2), 2: (1, 0)}[axis]
    nm = [v / 10 for v in blocks.store.voxel_size]
    # the voxel at each pixel's centre, along rows and columns
    offsets = ((np.arange(size) + 0.5) / size - 0.5) * extent
    down, right = (centre[i] + offsets / nm[i] for i in (rows, columns))
    level = _level(blocks, extent / size / max(nm[rows], nm[columns]))
    image = _image(blocks, level, axis, centre[axis], (rows, down), (columns, right))
    grey = _stretched(image, blocks.limits, window)
    inside = _inside(mask, box, axis, centre[axis], (rows, down), (columns, right))
    pixels = np.repeat(grey[..., None], 3, axis=2)
    pixels[_outline(inside)] = OUTLINE
    return pixels


def _level(blocks: Blocks, voxels: float) -> int:
    """The coarsest level whose voxels are no larger than a pixel."""
    last = layout.level_count(blocks.store.shape) - 1
    return min(last, max(0, int(np.floor(np.log2(max(voxels, 1.0))))))


def _image(
    blocks: Blocks,
    level: int,
    axis: int,
    at: int,
    down: tuple[int, NDArray[np.float64]],
    right: tuple[int, NDArray[np.float64]],
) -> NDArray[np.float32]:
    """Bytes at positions on a plane, bilinear, NaN beyond the tomogram."""
    from scipy.ndimage import map_coordinates

    step, shape = 1 << level, layout.level_shape(blocks.store.shape, level)
    middle = min(at // step, shape[axis] - 1)
    bounds = {axis: (max(0, middle - SLICES), min(shape[axis], middle + SLICES + 1))}
    places = {}
    for i, positions in (down, right):
        # a level's voxel is the mean of `step` voxels, so its centre lies (step - 1) / 2 further on
        places[i] = (positions - (step - 1) / 2) / step
        low = int(np.clip(np.floor(places[i][0]), 0, shape[i] - 1))
        bounds[i] = (low, int(np.clip(np.ceil(places[i][-1]) + 1, low + 1, shape[i])))
    values = blocks.read(level, (bounds[0], bounds[1], bounds[2]))
    plane = values.mean(axis=axis, dtype=np.float32)
    if down[0] > right[0]:
        plane = plane.T
    grid = np.meshgrid(*(places[i] - bounds[i][0] for i in (down[0], right[0])), indexing="ij")
    image: NDArray[np.float32] = map_coordinates(plane, grid, order=1, mode="nearest")
    for i, where in ((down[0], np.s_[:, None]), (right[0], np.s_[None, :])):
        outside = (places[i] < -0.5) | (places[i] > shape[i] - 0.5)
        image[np.broadcast_to(outside[where], image.shape)] = np.nan
    return image


def _stretched(image: NDArray[np.float32], limits: tuple[float, float], window: tuple[float, float] | None) -> Pixels:
    """Bytes between the limits as grey values between the window."""
    low, high = limits if window is None else window
    densities = limits[0] + image / 255 * (limits[1] - limits[0])
    scaled = ((densities - (low + high) / 2) / max((high - low) * NARROWER, 1e-30) + 0.5) * 255
    return np.clip(np.nan_to_num(scaled, nan=0.0) + 0.5, 0, 255).astype(np.uint8)


def _inside(
    mask: Bool,
    box: Box,
    axis: int,
    at: int,
    down: tuple[int, NDArray[np.float64]],
    right: tuple[int, NDArray[np.float64]],
) -> Bool:
    """Whether the mask has the voxel at each position on a plane."""
    plane = np.take(mask, at - box[axis][0], axis=axis)
    if down[0] > right[0]:
        plane = plane.T
    indices = [np.round(positions).astype(np.int64) - box[i][0] for i, positions in (down, right)]
    known = [(index >= 0) & (index < n) for index, n in zip(indices, plane.shape, strict=True)]
    clipped = [np.clip(index, 0, n - 1) for index, n in zip(indices, plane.shape, strict=True)]
    return np.asarray(plane[np.ix_(*clipped)] & known[0][:, None] & known[1][None, :], bool)


def _outline(inside: Bool) -> Bool:
    """Pixels of a mask with a neighbour outside of it."""
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded
