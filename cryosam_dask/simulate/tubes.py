"""Filaments and microtubules: subunits on a helix about a gently bent axis, drawn as Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cryosam_dask.simulate.membranes import does_not_fit
from cryosam_dask.simulate.scene import TRIES, Float64, Scene
from cryosam_dask.simulate.structures import Structure
from cryosam_dask.types import Bool, Float32

_SHORTEST_NM = 40.0  # of an axis inside the volume
_STEEPEST = np.radians(20.0)  # of an axis to the plane of y and x, as in thin ice


@dataclass(frozen=True)
class Helix:
    """How subunits stand around an axis; nanometres.

    strands : (phase in radians, shift along the axis) of each strand; rise, turn : from one subunit of a strand to the
        next, along and around the axis; radius : of the subunits' centres; volume : of a subunit, nm³
    sigma : of the Gaussian that stands for a subunit; outer, inner : radii of the wall; inner is 0 where there is none
    bend : the smallest radius of curvature
    """

    strands: tuple[tuple[float, float], ...]
    rise: float
    turn: float
    radius: float
    volume: float
    sigma: float
    outer: float
    inner: float
    bend: float


# Volumes are masses times 1.21 Å³/Da. Tubulin monomers, 55 kDa, are 4 nm apart along a protofilament, and the lattice
# of 13 protofilaments rises by three monomers in a turn (Amos & Schlieper 2005, Adv. Protein Chem. 71, 257). Actin,
# 42 kDa, rises by 2.75 nm and turns by -166.7° (Holmes et al. 1990, Nature 347, 44).
_HELICES = {
    "microtubule": Helix(
        strands=tuple((2 * np.pi * j / 13, 12.0 * j / 13) for j in range(13)),
        rise=4.0, turn=0.0, radius=10.5, volume=66.6, sigma=1.5, outer=12.5, inner=8.0, bend=3000.0,
    ),
    "filament": Helix(
        strands=((0.0, 0.0),),
        rise=2.75, turn=np.radians(-166.7), radius=2.4, volume=50.8, sigma=1.5, outer=4.0, inner=0.0, bend=400.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """A circular arc through a point (3,), nanometres: unit tangent, normal and binormal there; `length` about it."""

    point: Float64
    tangent: Float64
    normal: Float64
    binormal: Float64
    curvature: float
    length: float

    def at(self, along: Float64) -> tuple[Float64, Float64]:
        """Positions (N, 3) and normals (N, 3) at the arc's lengths (N,), from -length / 2 to length / 2."""
        angle = along * self.curvature
        sine = np.sinc(angle / np.pi)[:, None] * along[:, None]  # sin(angle) / curvature, also where it is 0
        height = (along * np.sin(angle / 2) * np.sinc(angle / 2 / np.pi))[:, None]  # (1 - cos(angle)) / curvature
        positions = self.point + sine * self.tangent + height * self.normal
        normals = np.cos(angle)[:, None] * self.normal - np.sin(angle)[:, None] * self.tangent
        return positions, normals


def _axis(structure: Structure, bend: float, extent: Float64, rng: np.random.Generator) -> Axis:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(-_STEEPEST, _STEEPEST)
    tangent = np.array([np.sin(elevation), np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth)])
    normal = rng.normal(size=3) * (0.3, 1.0, 1.0)  # bent in the plane of the ice, more or less
    normal -= normal @ tangent * tangent
    normal /= np.linalg.norm(normal)
    point = rng.uniform(0.1, 0.9, 3) * extent
    length = rng.uniform(*structure.sizes)
    return Axis(point, tangent, normal, np.cross(tangent, normal), rng.uniform(0, 1 / bend), length)


def subunits(helix: Helix, axis: Axis) -> Float64:
    """(N, 3) nanometres of the subunits' centres."""
    start = np.arange(-axis.length / 2, axis.length / 2, helix.rise)
    points = []
    for phase, shift in helix.strands:
        positions, normals = axis.at(start + shift % helix.rise)
        angle = (phase + helix.turn * np.arange(len(start)))[:, None]
        points.append(positions + helix.radius * (np.cos(angle) * normals + np.sin(angle) * axis.binormal))
    return np.concatenate(points)


def deposit(points: Float64, weight: float, volume: Float32) -> None:
    """Share out a weight for each point (N, 3), in voxels, among the eight voxels around it, in place."""
    inside = ((points >= 0) & (points < np.asarray(volume.shape) - 1)).all(axis=1)
    corner = np.floor(points[inside]).astype(np.int64)
    part = points[inside] - corner
    for step in np.ndindex(2, 2, 2):
        share = np.prod(np.where(step, part, 1 - part), axis=1)
        np.add.at(volume, tuple((corner + step).T), (weight * share).astype(np.float32))


def _within(scene: Scene, axis: Axis, radius: float) -> Bool:
    """The tomogram's voxels within a radius (nm) of the axis."""
    along = np.arange(-axis.length / 2, axis.length / 2 + scene.voxel / 2, scene.voxel / 2)
    positions, _ = axis.at(along)
    reach = radius + scene.voxel
    positions = positions[((positions > -reach) & (positions < scene.extent + reach)).all(axis=1)]
    mask = np.zeros(scene.settings.shape, dtype=bool)
    for p in positions:
        padded, inner, outer = scene.window(p - radius, p + radius)
        z, y, x = scene.grid(padded)
        ball = (z - p[0]) ** 2 + (y - p[1]) ** 2 + (x - p[2]) ** 2 <= radius**2
        mask[outer] |= ball[inner]
    return mask


def _is_free(scene: Scene, axis: Axis, radius: float) -> bool:
    """Whether enough of the axis is inside and nothing that has been drawn is within its radius."""
    along = np.arange(-axis.length / 2, axis.length / 2, scene.voxel)
    positions, normals = axis.at(along)
    inside = ((positions >= 0) & (positions < scene.extent)).all(axis=1)
    if inside.sum() * scene.voxel < min(_SHORTEST_NM, 0.5 * axis.length):
        return False
    reach, gap = (
        radius + 2 * scene.voxel,
        max(2.0, 2 * scene.voxel),
    )  # gap : nanometres between points that are looked at
    for shell in np.linspace(0, reach, int(np.ceil(reach / gap)) + 1):
        for angle in np.linspace(0, 2 * np.pi, int(np.ceil(2 * np.pi * shell / gap)) + 1)[:-1]:
            if scene.hits(positions + shell * (np.cos(angle) * normals + np.sin(angle) * axis.binormal)):
                return False
    return not scene.hits(positions)


def add_tubes(scene: Scene, structure: Structure, rng: np.random.Generator) -> None:
    """Draw filaments or microtubules, apart from what has been drawn. A microtubule's mask is its wall; its lumen is
    kept empty.

    Raises SettingsError when they don't fit.
    """
    helix = _HELICES[structure.kind]
    drawn = np.zeros_like(scene.density)
    for i in range(structure.count):
        for _ in range(TRIES):
            axis = _axis(structure, helix.bend, scene.extent, rng)
            if _is_free(scene, axis, helix.outer):
                break
        else:
            raise does_not_fit(scene, structure, i)
        lumen = _within(scene, axis, helix.inner) if helix.inner else np.zeros(scene.labels.shape, dtype=bool)
        scene.number(structure.kind, _within(scene, axis, helix.outer) & ~lumen)
        scene.lumens |= lumen
        deposit(subunits(helix, axis) / scene.voxel + scene.offset, helix.volume / scene.voxel**3, drawn)
    spread = (helix.sigma / scene.voxel) ** 2 - 1 / 6  # sharing out among voxels widens by 1/6 of a voxel squared
    scene.density += ndimage.gaussian_filter(drawn, max(0.3, spread) ** 0.5, truncate=3.5)
