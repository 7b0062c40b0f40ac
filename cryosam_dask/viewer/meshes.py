"""Surfaces of instances for the viewer."""

from __future__ import annotations

import math

import numpy as np

from cryosam_dask.geometry import Box
from cryosam_dask.io.mesh import surface_of
from cryosam_dask.types import Bool, Point
from cryosam_dask.viewer import precomputed

MOST_VOXELS = 1 << 22
"""Voxels of a box from which a surface is drawn; a larger mask is taken in coarser voxels."""


def mesh_of(mask: Bool, box: Box, size: Point) -> bytes:
    """The surface of a mask as a fragment of the viewer's meshes; size : of a voxel, nm (z, y, x)."""
    step = 1
    while math.prod(-(-n // step) for n in mask.shape) > MOST_VOXELS:
        step += 1
    if step > 1:
        mask, box = _coarser(mask, box, step)
    coarse = (size[0] * step, size[1] * step, size[2] * step)
    # a coarse voxel's centre lies (step - 1) / 2 voxels beyond that of its first voxel
    origin = (size[0] * (step - 1) / 2, size[1] * (step - 1) / 2, size[2] * (step - 1) / 2)
    surface = surface_of(mask, box, coarse, origin, label=0, score=0.0)
    return precomputed.mesh(surface.vertices, surface.faces, size)


def _coarser(mask: Bool, box: Box, step: int) -> tuple[Bool, Box]:
    """The mask in voxels of step³, of which one counts where any of its voxels does, and its box in these."""
    z, y, x = ((a // step, -(-b // step)) for a, b in box)
    around = [(a - low * step, high * step - b) for (a, b), (low, high) in zip(box, (z, y, x), strict=True)]
    padded = np.pad(mask, around)
    parts = padded.reshape([n for side in padded.shape for n in (side // step, step)])
    return np.asarray(parts.any((1, 3, 5)), bool), (z, y, x)
