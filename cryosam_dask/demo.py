"""The demonstration: a simulated tomogram, one click, the built-in models, figures against the truth, a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import outputs
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.progress import Progress
from cryosam_dask.io.atomic import replacing, write_text
from cryosam_dask.io.points.files import read_points
from cryosam_dask.pipeline import run
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

RADIUS_SHARE = 0.5
"""Largest distance of a match as a share of the particle's diameter."""


@dataclass(frozen=True)
class Simulation:
    """A simulation that was written: the tomogram, its species, and a place to click on."""

    tomogram: Path
    species: str
    click: str
    diameter: float


def write_simulation(
    path: Path,
    preset: str,
    changes: dict[str, Any],
    *,
    count: int | None = None,
    truth: Path | None = None,
    labels: Path | None = None,
    species: str | None = None,
) -> Simulation:
    """Simulate a tomogram and write it as MRC, with its truth where asked.

    preset, changes : of `simulate.preset`; truth : CSV `z,y,x,score,instance,species`; labels : MRC of instance ids
    species : only this one in truth and labels, and the one to click on (else the first); count : how many of it
    """
    import mrcfile

    from cryosam_dask.simulate import preset as settings_of
    from cryosam_dask.simulate import simulate

    settings = settings_of(preset, **changes)
    chosen = species or settings.species[0].name
    if count is not None:
        crowd = tuple(replace(s, count=count) if s.name == chosen else s for s in settings.species)
        settings = replace(settings, species=crowd)
    simulated = simulate(settings)
    particles = simulated.particles if species is None else simulated.of(species)
    if not simulated.of(chosen):
        raise InputError(f"no {chosen} in this simulation; there are {', '.join(s.name for s in settings.species)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, mrcfile.new(temporary, data=simulated.tomogram, overwrite=True) as file:
            file.voxel_size = settings.voxel_size
        if truth is not None:
            rows = [f"{p.z:.3f},{p.y:.3f},{p.x:.3f},1,{p.instance},{p.species}" for p in particles]
            write_text(truth, "\n".join(["z,y,x,score,instance,species", *rows]) + "\n")
        if labels is not None:
            image = simulated.labels if species is None else simulated.labels_of(species)
            with replacing(labels) as temporary, mrcfile.new(temporary, image.astype(np.int16), overwrite=True) as file:
                file.voxel_size = settings.voxel_size
    except OSError as error:
        raise StoreError(f"{error.filename or path}: can't be written ({error.strerror})") from None
    diameter = next(s.diameter for s in settings.species if s.name == chosen)
    # the one nearest to the middle: far from the edges, where masks are cut
    centres = simulated.centres(chosen)
    middle = centres[np.linalg.norm(centres - np.asarray(settings.shape) / 2, axis=1).argmin()]
    click = ",".join(str(round(v)) for v in middle)
    return Simulation(path, chosen, click, diameter * 10 / settings.voxel_size)


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
