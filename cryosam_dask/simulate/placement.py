"""Where particles and membranes stand: random, apart from each other, inside the volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate.settings import GAP_VOXELS, SimulationSettings
from cryosam_dask.types import Shape3

Float64 = NDArray[np.float64]

_TRIES = 5000  # random positions tried for one particle
LEAFLET_NM = 2.0  # from the membrane's middle to a leaflet's head groups
MEMBRANE_HALF_NM = 3.5  # from its middle to the visible surface


@dataclass(frozen=True)
class Vesicle:
    """A spherical membrane: centre (z, y, x) and middle radius in voxels."""

    centre: tuple[float, float, float]
    radius: float


def place_vesicles(settings: SimulationSettings, rng: np.random.Generator) -> list[Vesicle]:
    """Vesicles of 20 to 45 nm radius, less in a small volume, centred in or near it; they don't touch each other."""
    shape = np.asarray(settings.shape, dtype=float)
    nm = 10 / settings.voxel_size
    clearance = 2 * (MEMBRANE_HALF_NM * nm + GAP_VOXELS)
    largest = min(45.0 * nm, 0.45 * float(shape[1:].min()))
    found: list[Vesicle] = []
    for _ in range(_TRIES):
        if len(found) == settings.membranes:
            break
        radius = float(rng.uniform(min(20.0 * nm, 0.7 * largest), largest))
        centre = rng.uniform(-0.3 * radius, shape - 1 + 0.3 * radius)
        if all(np.linalg.norm(centre - v.centre) > radius + v.radius + clearance for v in found):
            found.append(Vesicle((float(centre[0]), float(centre[1]), float(centre[2])), radius))
    if len(found) < settings.membranes:
        raise SettingsError(
            f"simulation: only {len(found)} of {settings.membranes} membranes fit in {settings.shape} voxels; "
            "ask for fewer membranes or a larger shape"
        )
    return found


def membrane_half_thickness(settings: SimulationSettings) -> float:
    """Half the visible thickness of a membrane, in voxels."""
    return MEMBRANE_HALF_NM * 10 / settings.voxel_size


def place_particles(
    settings: SimulationSettings,
    radii: list[float],
    vesicles: list[Vesicle],
    rng: np.random.Generator,
    room: Float64 | None = None,
) -> list[Float64]:
    """Centres (count, 3) in voxels for each species, with bounding radii `radii` in voxels.

    Bounding spheres keep `GAP_VOXELS` from each other, from vesicles and from the volume's faces; and, where `room`
    says how far each voxel is from where particles can't be, from that. Raises SettingsError when they don't fit.
    """
    centres: list[Float64] = [np.zeros((s.count, 3)) for s in settings.species]
    taken = np.zeros((0, 3))
    taken_radii = np.zeros(0)
    for k in sorted(range(len(radii)), key=lambda i: -radii[i]):  # the large ones first, while there is room
        for i in range(settings.species[k].count):
            centre = _free_place(settings.shape, radii[k], taken, taken_radii, vesicles,
                                 membrane_half_thickness(settings), rng, room)  # fmt: skip
            if centre is None:
                spec = settings.species[k]
                raise SettingsError(
                    f"simulation: only {i} of {spec.count} particles of {spec.name} ({spec.diameter:g} nm) fit in "
                    f"{settings.shape} voxels; ask for fewer particles or a larger shape"
                )
            centres[k][i] = centre
            taken = np.vstack([taken, centre])
            taken_radii = np.append(taken_radii, radii[k])
    return centres


def _free_place(
    shape: Shape3,
    radius: float,
    taken: Float64,
    taken_radii: Float64,
    vesicles: list[Vesicle],
    half_thickness: float,
    rng: np.random.Generator,
    room: Float64 | None,
) -> Float64 | None:
    low = radius + GAP_VOXELS
    for _ in range(_TRIES):
        centre = rng.uniform(low, np.asarray(shape) - 1 - low)
        if (np.linalg.norm(taken - centre, axis=1) < taken_radii + radius + GAP_VOXELS).any():
            continue
        if room is not None and room[tuple(np.rint(centre).astype(int))] < radius + GAP_VOXELS:
            continue
        walls = (abs(float(np.linalg.norm(centre - v.centre)) - v.radius) for v in vesicles)
        if all(wall >= half_thickness + radius + GAP_VOXELS for wall in walls):
            return centre
    return None
