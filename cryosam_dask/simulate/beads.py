"""Gold beads. The tilt series spreads their strong density into streaks, as it does in real tomograms."""

from __future__ import annotations

import numpy as np

from cryosam_dask.simulate.membranes import does_not_fit
from cryosam_dask.simulate.scene import TRIES, Scene
from cryosam_dask.simulate.structures import Structure
from cryosam_dask.types import Bool

GOLD_DENSITY = np.float32(8.0)
"""To the solvent, relative to that of protein: mean inner potentials of about 25 V (gold), 5 V (ice) and 7.5 V."""


def add_beads(scene: Scene, structure: Structure, blocked: Bool, rng: np.random.Generator) -> None:
    """Draw beads where nothing is blocked. Raises SettingsError when they don't fit."""
    if scene.gold is None:
        scene.gold = np.zeros_like(scene.density)
    for i in range(structure.count):
        for _ in range(TRIES):
            radius = rng.uniform(*structure.sizes) / 2
            centre = radius + rng.uniform(size=3) * np.maximum(scene.extent - 2 * radius - scene.voxel, 0)
            padded, inner, outer = scene.window(centre - 2 * radius - 1, centre + 2 * radius + 1)
            z, y, x = scene.grid(padded)
            distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - radius
            mask = distance[inner] <= 0
            near = distance[inner] <= 2 * scene.voxel
            if mask.any() and not (near & (blocked[outer] | (scene.labels[outer] > 0))).any():
                break
        else:
            raise does_not_fit(scene, structure, i)
        soft = max(0.3, 0.35 * scene.voxel)
        scene.gold[padded] += GOLD_DENSITY / (1 + np.exp(np.clip(distance / soft, -30, 30))).astype(np.float32)
        scene.number(structure.kind, mask, outer)
