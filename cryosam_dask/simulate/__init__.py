"""Simulates cryo-ET tomograms with known truth: positions, species and masks of the particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.simulate.imaging import image, padding
from cryosam_dask.simulate.placement import (
    LEAFLET_NM,
    Vesicle,
    membrane_half_thickness,
    place_particles,
    place_vesicles,
)
from cryosam_dask.simulate.settings import DISTRACTORS, TARGETS, SimulationSettings, Species, preset
from cryosam_dask.simulate.shapes import Template, template
from cryosam_dask.types import Bool, Float32, Shape3

__all__ = [
    "DISTRACTORS", "TARGETS", "Particle", "SimulatedTomogram", "SimulationSettings", "Species", "preset", "simulate",
]  # fmt: skip

Float64 = NDArray[np.float64]

_LEAFLET_DENSITY = np.float32(0.7)  # to the solvent, relative to that of a protein


class Particle(NamedTuple):
    """A particle of the truth: the centre of mass of its mask in voxels (z, y, x), its label and its species."""

    z: float
    y: float
    x: float
    instance: int
    species: str


@dataclass(frozen=True)
class SimulatedTomogram:
    """A tomogram and its truth; volumes are (z, y, x) of the settings' shape.

    tomogram : float32, zero mean and unit deviation
    signal : float32, the tomogram without its noise, in the same units
    labels : int32, instance ids of the particles from 1, in the order of `particles`; 0 elsewhere
    semantic : uint8, 1 + the species' position in the settings; the last number is membrane; 0 is solvent
    particles : one entry for each particle
    settings : those that the tomogram was simulated with
    """

    tomogram: Float32
    signal: Float32
    labels: NDArray[np.int32]
    semantic: NDArray[np.uint8]
    particles: tuple[Particle, ...]
    settings: SimulationSettings

    def of(self, species: str) -> tuple[Particle, ...]:
        """The particles of one species. Raises InputError when there is no such species."""
        names = [s.name for s in self.settings.species]
        if species not in names:
            raise InputError(f"truth: no species {species!r}; there are {', '.join(names)}")
        return tuple(p for p in self.particles if p.species == species)

    def centres(self, species: str) -> Float64:
        """Centres (M, 3) of one species, in voxels (z, y, x)."""
        return np.array([p[:3] for p in self.of(species)], dtype=np.float64).reshape(-1, 3)

    def labels_of(self, species: str) -> NDArray[np.int32]:
        """`labels` with the other species' particles set to 0."""
        keep = np.zeros(len(self.particles) + 1, dtype=np.int32)
        ids = [p.instance for p in self.of(species)]
        keep[ids] = ids
        return keep[self.labels]


def simulate(settings: SimulationSettings | None = None) -> SimulatedTomogram:
    """Simulate a tomogram.

    Particles get random positions without contact, and rotations uniform on SO(3). The tilt range and the contrast
    transfer function filter their density, and noise is added at the signal-to-noise ratio of the settings
    (see `SimulationSettings.snr`). Masks are computed from the density before that filter. Raises SettingsError when
    the particles don't fit in the volume.
    """
    settings = settings or SimulationSettings()
    # separate streams: another snr keeps the layout, another count keeps the noise
    layout_rng, noise_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(settings.seed).spawn(2))
    templates = [template(s, settings.voxel_size) for s in settings.species]
    vesicles = place_vesicles(settings, layout_rng)
    centres = place_particles(settings, [t.radius for t in templates], vesicles, layout_rng)

    padded, offset = padding(settings)
    inside = tuple(slice(o, o + n) for o, n in zip(offset, settings.shape, strict=True))
    rotation_seed = int(layout_rng.integers(2**31))
    occupancy = _paint(settings.shape, [t.occupancy for t in templates], centres, rotation_seed, order=1)
    density = np.zeros(padded, dtype=np.float32)
    density[inside] = _paint(settings.shape, [t.density for t in templates], centres, rotation_seed, order=3)
    membrane = np.zeros(settings.shape, dtype=bool)
    for vesicle in vesicles:
        _add_membrane(density, membrane, vesicle, offset, settings)

    labels, particles = _label(occupancy, templates, centres, settings)
    names = {s.name: k for k, s in enumerate(settings.species, start=1)}
    lookup = np.array([0] + [names[p.species] for p in particles], dtype=np.uint8)
    semantic = lookup[labels]
    semantic[membrane & (labels == 0)] = len(names) + 1

    signal, noise = image(density if settings.contrast == "bright" else -density, settings, noise_rng)
    noise += signal  # noise becomes the tomogram
    scale = np.float32(1 / noise.std(dtype=np.float64))
    return SimulatedTomogram(noise * scale, signal * scale, labels, semantic, particles, settings)


def _paint(shape: Shape3, images: list[Float32], centres: list[Float64], rotation_seed: int, order: int) -> Float32:
    """The images at the centres (voxels), each in its own random rotation, summed in a volume of `shape`."""
    import dask
    from acryo import Molecules, TomogramSimulator
    from scipy.spatial.transform import Rotation

    simulator = TomogramSimulator(order=order, scale=1.0)
    rng = np.random.default_rng(rotation_seed)
    for k, (picture, places) in enumerate(zip(images, centres, strict=True)):
        if len(places):
            simulator.add_molecules(Molecules(places, Rotation.random(len(places), rng)), picture, name=str(k))
    if not simulator.components:
        return np.zeros(shape, dtype=np.float32)
    with dask.config.set(scheduler="synchronous"):  # never on a cluster that happens to be connected
        return np.asarray(simulator.simulate(shape), dtype=np.float32)


def _label(
    occupancy: Float32, templates: list[Template], centres: list[Float64], settings: SimulationSettings
) -> tuple[NDArray[np.int32], tuple[Particle, ...]]:
    labels = np.zeros(settings.shape, dtype=np.int32)
    particles: list[Particle] = []
    for spec, model, places in zip(settings.species, templates, centres, strict=True):
        for place in places:
            instance = len(particles) + 1
            box, ball = _ball(place, model.radius + 1, settings.shape)
            labels[box][ball & (occupancy[box] >= 0.5)] = instance  # spheres are apart: only its own density
            particles.append(Particle(float(place[0]), float(place[1]), float(place[2]), instance, spec.name))
    return labels, tuple(particles)


def _ball(centre: Float64, radius: float, shape: Shape3) -> tuple[tuple[slice, ...], Bool]:
    """The box about a sphere, cut to the volume, and the sphere's voxels in it."""
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius).astype(int) + 1, shape)
    axes = np.ogrid[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    squared = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    return box, np.asarray(squared <= radius**2)


def _add_membrane(density: Float32, mask: Bool, vesicle: Vesicle, offset: Shape3, settings: SimulationSettings) -> None:
    """Add two leaflets to the padded density, which they cross without a cut, and the wall to the mask, in place."""
    centre = np.asarray(vesicle.centre) + np.asarray(offset)
    axes = np.ogrid[tuple(slice(0, n) for n in density.shape)]
    squared = sum(((a - c) ** 2).astype(np.float32) for a, c in zip(axes, centre, strict=True))
    distance = np.sqrt(squared) - np.float32(vesicle.radius)
    voxel = settings.voxel_size / 10
    width = max(0.8, 0.5 * voxel) / voxel
    for leaflet in (-LEAFLET_NM / voxel, LEAFLET_NM / voxel):
        density += _LEAFLET_DENSITY * np.exp(-0.5 * np.square((distance - leaflet) / width), dtype=np.float32)
    inside = tuple(slice(o, o + n) for o, n in zip(offset, mask.shape, strict=True))
    mask |= np.abs(distance[inside]) <= membrane_half_thickness(settings)
