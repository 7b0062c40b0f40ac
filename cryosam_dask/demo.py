"""The demonstration: a simulated tomogram, one click, the built-in models, figures against the truth, a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import outputs
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.progress import Progress
from cryosam_dask.io.atomic import replacing, write_text
from cryosam_dask.io.density_maps import read_density_map
from cryosam_dask.io.points.files import read_points
from cryosam_dask.pipeline import run
from cryosam_dask.simulate import DensityMap, SimulatedTomogram, SimulationSettings, map_species, simulate
from cryosam_dask.simulate import preset as settings_of
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

RADIUS_SHARE = 0.5
"""Largest distance of a match as a share of the particle's diameter."""
MAP_COUNT = 20
"""Particles of each density map, unless a number is given."""


@dataclass(frozen=True)
class Simulation:
    """A simulation that was written: the tomogram, a species, a place to click on (z,y,x voxels), the species' diameter
    in voxels, and the kind of each structure, from number 1."""

    tomogram: Path
    species: str
    click: str
    diameter: float
    structures: tuple[str, ...] = ()


def write_simulation(
    path: Path,
    preset: str,
    changes: dict[str, Any],
    *,
    count: int | None = None,
    truth: Path | None = None,
    labels: Path | None = None,
    species: str | None = None,
    maps: Mapping[str, Path] | None = None,
    structures: Path | None = None,
) -> Simulation:
    """Simulate a tomogram and write it as MRC, with its truth where asked.

    preset, changes : of `simulate.preset`; truth : CSV `z,y,x,score,instance,species`; labels : MRC of instance ids
    species : only this one in truth and labels, and the one to click on (else the first); count : how many of it
    maps : files of density maps, by name: the species instead of the preset's, `count` of each, or `MAP_COUNT`
    structures : MRC of the numbers of membranes, filaments and gold, in the order of `Simulation.structures`
    """
    settings, sources = _settings(preset, changes, maps or {}, species, count)
    chosen = species or next((s.name for s in settings.species), "")
    made = simulate(settings, sources)
    particles = made.particles if species is None else made.of(species)
    if not made.of(chosen):
        raise InputError(f"no {chosen} in this simulation; there are {', '.join(s.name for s in settings.species)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_mrc(path, made.tomogram, settings)
        if truth is not None:
            rows = [f"{p.z:.3f},{p.y:.3f},{p.x:.3f},1,{p.instance},{p.species}" for p in particles]
            write_text(truth, "\n".join(["z,y,x,score,instance,species", *rows]) + "\n")
        if labels is not None:
            _write_mrc(labels, (made.labels if species is None else made.labels_of(species)).astype(np.int16), settings)
        if structures is not None:
            _write_mrc(structures, made.structure_labels.astype(np.int16), settings)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: can't be written ({error.strerror})") from None
    diameter = next(s.diameter for s in settings.species if s.name == chosen)
    kinds = tuple(s.kind for s in made.structures)
    return Simulation(path, chosen, _click(made, chosen), diameter * 10 / settings.voxel_size, kinds)


def _settings(
    preset: str, changes: dict[str, Any], maps: Mapping[str, Path], species: str | None, count: int | None
) -> tuple[SimulationSettings, dict[str, DensityMap]]:
    """The settings of a preset with changes, of density maps instead of its species where there are any; the maps."""
    sources = {name: read_density_map(file) for name, file in maps.items()}
    if sources:
        many = MAP_COUNT if count is None else count
        changes = changes | {"species": tuple(map_species(name, source, many) for name, source in sources.items())}
    settings = settings_of(preset, **changes)
    if count is not None and not sources and settings.species:
        chosen = species or settings.species[0].name
        crowd = tuple(replace(s, count=count) if s.name == chosen else s for s in settings.species)
        settings = replace(settings, species=crowd)
    return settings, sources


def _write_mrc(path: Path, data: Array, settings: SimulationSettings) -> None:
    import mrcfile

    with replacing(path) as temporary, mrcfile.new(temporary, data=data, overwrite=True) as file:
        file.voxel_size = settings.voxel_size


def _click(made: SimulatedTomogram, species: str) -> str:
    """A place on the particle nearest to the middle, far from the edges, where masks are cut: its centre, or the mask's
    nearest voxel where the centre is a hole."""
    middle = np.asarray(made.settings.shape) / 2
    particle = min(made.of(species), key=lambda p: float(np.linalg.norm(np.asarray(p[:3]) - middle)))
    place = np.array([round(v) for v in particle[:3]])
    if made.labels[tuple(place)] != particle.instance:
        voxels = np.argwhere(made.labels == particle.instance)
        place = voxels[np.linalg.norm(voxels - particle[:3], axis=1).argmin()]
    return ",".join(str(v) for v in place)


def demo(
    out: Path, *, seed: int, snr: float, species: str, workers: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Simulate, run, evaluate and draw, all under `out`; returns the figures with the paths of what was written."""
    from cryosam_dask.picture import slices_picture

    start = time.perf_counter()
    truth, true_labels, store_path = out / "truth.csv", out / "truth_labels.mrc", out / "run.zarr"
    simulation = write_simulation(
        out / "tomogram.mrc", "default", {"seed": seed, "snr": snr}, truth=truth, labels=true_labels, species=species
    )
    point = [float(v) for v in simulation.click.split(",")]
    run(
        simulation.tomogram,
        [point],
        store_path,
        name=species,
        models="builtin",
        workers=workers,
        progress=progress,
        overwrite=True,
    )
    radius = RADIUS_SHARE * simulation.diameter
    figures = outputs.evaluate(store_path, truth, radius, name=species, truth_labels=true_labels)
    outputs.export(store_path, out / "picks.csv", name=species)
    outputs.export(store_path, out / "picks.star", name=species)
    outputs.export(store_path, out / "labels.mrc", name=species)
    picture = out / "picture.png"
    store = RunStore.open(store_path)
    slices_picture(
        store.array(layout.tomogram()),
        store.array(layout.labels(species)),
        picks.read(store, species)[["z", "y", "x"]].to_numpy(),
        picture,
        prompt=(point[0], point[1], point[2]),
        truth=read_points(truth)[["z", "y", "x"]].to_numpy(),
        voxel_size=store.voxel_size[2],
    )
    seconds = time.perf_counter() - start
    return {**figures, "radius": radius, "picture": str(picture), "run": str(store_path), "seconds": seconds}
