"""A tomogram from its settings: structures, then particles among them, then the cytosol, then the microscope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import ice
from cryosam_dask.simulate.beads import add_beads
from cryosam_dask.simulate.imaging import image
from cryosam_dask.simulate.maps import DensityMap, map_template
from cryosam_dask.simulate.membranes import LEAFLET_DENSITY, add_membranes
from cryosam_dask.simulate.packing import fill_cytosol, pack_particles
from cryosam_dask.simulate.placement import (
    LEAFLET_NM,
    Vesicle,
    membrane_half_thickness,
    place_particles,
    place_vesicles,
)
from cryosam_dask.simulate.scene import Float64, Scene
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.simulate.shapes import Template, template
from cryosam_dask.simulate.species import MAP
from cryosam_dask.simulate.structures import CLASS_OF, CLASSES
from cryosam_dask.simulate.tomogram import Particle, SimulatedTomogram
from cryosam_dask.simulate.tubes import add_tubes
from cryosam_dask.types import Bool, Float32, Shape3


class _Layout(NamedTuple):
    """Where the particles of each species stand: centres (count, 3) in voxels, rotations; labels of all."""

    centres: list[Float64]
    rotations: list[Rotation]
    labels: NDArray[np.int32]


def simulate(
    settings: SimulationSettings | None = None, maps: Mapping[str, DensityMap] | None = None
) -> SimulatedTomogram:
    """Simulate a tomogram.

    Particles stand at random, in rotations uniform on SO(3), not touching unless `settings.touching` says so; their
    density is seen through the tilt range and the contrast transfer function, and noise is added at the
    signal-to-noise ratio asked for (see `SimulationSettings.snr`). Masks come from each particle's own density,
    before any of that. `maps` has the density maps of the species whose shape is "map", by name.

    Raises SettingsError when the particles or structures don't fit in the volume, or a map is missing.
    """
    settings = settings or SimulationSettings()
    # separate streams: another snr keeps the layout, another count keeps the noise
    seeds = np.random.SeedSequence(settings.seed).spawn(5)
    layout_rng, noise_rng, structure_rng, packing_rng, cytosol_rng = (np.random.default_rng(s) for s in seeds)
    templates = _templates(settings, maps or {})
    vesicles = place_vesicles(settings, layout_rng)
    scene = Scene.empty(settings)
    _number_vesicles(scene, vesicles)
    _add_structures(scene, structure_rng)

    layout = _lay_out(scene, templates, vesicles, layout_rng, packing_rng)
    scene.density[scene.inside] += _paint(settings.shape, [t.density for t in templates], layout, order=3)
    for vesicle in vesicles:
        _add_membrane(scene, vesicle)
    cytosol = np.zeros(settings.shape, dtype=bool)
    if settings.cytosol:
        taken = (layout.labels > 0) | _blocked(scene)
        cytosol = fill_cytosol(settings, taken, scene.density, scene.offset, cytosol_rng)

    return _imaged(scene, layout, cytosol, noise_rng)


def _imaged(scene: Scene, layout: _Layout, cytosol: Bool, rng: np.random.Generator) -> SimulatedTomogram:
    """What the microscope makes of a scene whose density is complete, with the truth."""
    settings = scene.settings
    signal, noise = image(scene.density, _extra_density(scene), settings, rng)
    noise += signal  # noise becomes the tomogram
    scale = np.float32(1 / noise.std(dtype=np.float64))
    matrices = np.concatenate([np.zeros((0, 3, 3)), *(r.as_matrix() for r in layout.rotations if len(r))])
    return SimulatedTomogram(
        noise * scale,
        signal * scale,
        layout.labels,
        _semantic(scene, layout.labels, cytosol),
        _particles(settings, layout),
        settings,
        matrices,
        scene.labels,
        tuple(scene.structures),
    )


def _templates(settings: SimulationSettings, maps: Mapping[str, DensityMap]) -> list[Template]:
    templates = []
    for s in settings.species:
        if s.shape != MAP:
            templates.append(template(s, settings.voxel_size))
        elif s.name in maps:
            templates.append(map_template(s, maps[s.name], settings.voxel_size))
        else:
            raise SettingsError(f"simulation setting {s.name}.shape: a density map of that name has to be given, too")
    return templates


def _blocked(scene: Scene) -> Bool:
    """Where particles can't be: on structures, in lumens, and outside of the ice."""
    blocked: Bool = (scene.labels > 0) | scene.lumens
    if scene.settings.ice is not None:
        blocked |= ice.vacuum(scene.settings.ice, scene.settings.shape) > 0
    return blocked


def _number_vesicles(scene: Scene, vesicles: list[Vesicle]) -> None:
    """Number the walls of `settings.membranes`; their density comes after the particles', see `_add_membrane`."""
    for vesicle in vesicles:
        distance = np.abs(_to_wall(vesicle, scene.offset, scene.inside))
        scene.number("vesicle", distance <= membrane_half_thickness(scene.settings))


def _add_structures(scene: Scene, rng: np.random.Generator) -> None:
    """Draw `settings.structures` in the order given, cut off where the ice ends."""
    settings = scene.settings
    for structure in settings.structures:
        kind = CLASS_OF[structure.kind]
        if kind == "membrane":
            add_membranes(scene, structure, rng)
        elif kind == "gold":
            add_beads(scene, structure, _blocked(scene), rng)
        else:
            add_tubes(scene, structure, rng)
    if settings.ice is not None:
        scene.density *= 1 - ice.vacuum(settings.ice, settings.shape, scene.offset, scene.density.shape)
        scene.labels[ice.vacuum(settings.ice, settings.shape) > 0.5] = 0


def _lay_out(
    scene: Scene,
    templates: list[Template],
    vesicles: list[Vesicle],
    layout_rng: np.random.Generator,
    packing_rng: np.random.Generator,
) -> _Layout:
    settings = scene.settings
    if settings.touching is not None:
        return _Layout(*pack_particles(settings, templates, _blocked(scene), packing_rng))
    room = None
    if settings.structures or settings.ice is not None:
        room = ndimage.distance_transform_edt(~_blocked(scene))
    centres = place_particles(settings, [t.radius for t in templates], vesicles, layout_rng, room)
    turns = np.random.default_rng(int(layout_rng.integers(2**31)))
    rotations = [Rotation.random(len(c), turns) if len(c) else Rotation.identity(0) for c in centres]
    layout = _Layout(centres, rotations, np.zeros(settings.shape, dtype=np.int32))
    occupancy = _paint(settings.shape, [t.occupancy for t in templates], layout, order=1)
    instance = 0
    for model, places in zip(templates, centres, strict=True):
        for place in places:
            instance += 1
            box, ball = _ball(place, model.radius + 1, settings.shape)
            layout.labels[box][ball & (occupancy[box] >= 0.5)] = instance  # spheres are apart: only its own density
    return layout


def _paint(shape: Shape3, images: list[Float32], layout: _Layout, order: int) -> Float32:
    """The species' images at the centres, in their rotations, summed in a volume of `shape`."""
    import dask
    from acryo import Molecules, TomogramSimulator

    simulator = TomogramSimulator(order=order, scale=1.0)
    for k, (picture, places, turns) in enumerate(zip(images, layout.centres, layout.rotations, strict=True)):
        if len(places):
            simulator.add_molecules(Molecules(places, turns), picture, name=str(k))
    if not simulator.components:
        return np.zeros(shape, dtype=np.float32)
    with dask.config.set(scheduler="synchronous"):  # never on a cluster that happens to be connected
        return np.asarray(simulator.simulate(shape), dtype=np.float32)


def _particles(settings: SimulationSettings, layout: _Layout) -> tuple[Particle, ...]:
    places = [(place, s.name) for s, centres in zip(settings.species, layout.centres, strict=True) for place in centres]
    return tuple(
        Particle(float(place[0]), float(place[1]), float(place[2]), i, name)
        for i, (place, name) in enumerate(places, 1)
    )


def _semantic(scene: Scene, labels: NDArray[np.int32], cytosol: Bool) -> NDArray[np.uint8]:
    species = scene.settings.species
    lookup = np.array([0] + [k for k, s in enumerate(species, 1) for _ in range(s.count)], dtype=np.uint8)
    semantic = lookup[labels]
    first = len(species) + 1
    classes = np.array([0] + [first + CLASSES.index(CLASS_OF[s.kind]) for s in scene.structures], dtype=np.uint8)
    free = labels == 0
    semantic[free] = classes[scene.labels[free]]
    semantic[cytosol] = first + CLASSES.index("cytosol")
    return semantic


def _extra_density(scene: Scene) -> Float32 | None:
    """The density that signal-to-noise ratios leave out: gold, and vacuum around the ice."""
    settings = scene.settings
    if settings.ice is None or settings.ice.thickness == (1.0, 1.0):
        return scene.gold
    around = ice.VACUUM * ice.vacuum(settings.ice, settings.shape, scene.offset, scene.density.shape)
    return around if scene.gold is None else around + scene.gold


def _to_wall(vesicle: Vesicle, offset: Shape3, box: tuple[slice, ...]) -> Float32:
    """Distance in voxels to a vesicle's middle, negative inside, in a box of the padded volume."""
    centre = np.asarray(vesicle.centre) + np.asarray(offset)
    axes = np.ogrid[box]
    squared = sum(((a - c) ** 2).astype(np.float32) for a, c in zip(axes, centre, strict=True))
    return np.asarray(np.sqrt(squared) - np.float32(vesicle.radius))


def _add_membrane(scene: Scene, vesicle: Vesicle) -> None:
    """Add two leaflets to the padded density, which they cross without a cut, in place."""
    distance = _to_wall(vesicle, scene.offset, tuple(slice(0, n) for n in scene.density.shape))
    voxel = scene.settings.voxel_size / 10
    width = max(0.8, 0.5 * voxel) / voxel
    for leaflet in (-LEAFLET_NM / voxel, LEAFLET_NM / voxel):
        scene.density += LEAFLET_DENSITY * np.exp(-0.5 * np.square((distance - leaflet) / width), dtype=np.float32)


def _ball(centre: Float64, radius: float, shape: Shape3) -> tuple[tuple[slice, ...], Bool]:
    """The box about a sphere, cut to the volume, and the sphere's voxels in it."""
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius).astype(int) + 1, shape)
    axes = np.ogrid[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    squared = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    return box, np.asarray(squared <= radius**2)
