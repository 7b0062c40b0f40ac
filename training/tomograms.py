"""Simulates the tomograms that the built-in network is trained on, once, to a folder: see `--help`.

Seeds and shapes are of the tune split (`cryosam_dask.simulate.splits`), so that what is held out is never trained on.
A tomogram that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import SettingsError
from cryosam_dask.kernels.images import halve
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, preset, simulate
from cryosam_dask.simulate.splits import require_split
from cryosam_dask.simulate.structures import CLASS_OF, CLASSES, Structure

SHAPE = (72, 160, 160)
STRUCTURES_FROM = 1000
"""The first seed from which a quarter of the tomograms are of structures."""

FINEST = 8.0
"""Ångström; smaller voxels are simulated in larger volumes and averaged to twice their size."""


def settings_of(seed: int) -> SimulationSettings:
    """What the tomogram of a seed is made of: half "random", the fixed species in crowds and apart, and structures."""
    rng = np.random.default_rng([seed, 3])
    drawn = rng.uniform()
    if drawn >= 0.75 and seed >= STRUCTURES_FROM:
        chosen = structures_of(seed, rng)
    elif drawn < 0.25:
        chosen = preset("crowded", seed=seed, shape=SHAPE)
        count = int(rng.integers(6, 16))
        chosen = replace(
            chosen,
            species=tuple(replace(s, count=count, diameter=s.diameter) for s in chosen.species),
            touching=float(rng.choice([0.0, 0.3, 0.6])),
            cytosol=float(rng.choice([0.0, 0.08, 0.15])),
            voxel_size=float(rng.choice([8.0, 10.0, 10.0, 13.5])),
            snr=float(np.exp(rng.uniform(np.log(0.2), np.log(2.0)))),
            defocus=float(rng.uniform(1.5, 6.0)),
        )
    else:
        chosen = preset("random", seed=seed, shape=SHAPE)
        if chosen.voxel_size < FINEST:
            chosen = preset("random", seed=seed, shape=(96, 224, 224))
        # more particles of each kind than a picture needs: a kind is told by its like
        more = float(rng.uniform(1.5, 4.0))
        chosen = replace(
            chosen, species=tuple(replace(s, count=min(60, round(more * s.count))) for s in chosen.species)
        )
    require_split(chosen, "tune")
    return chosen


def structures_of(seed: int, rng: np.random.Generator) -> SimulationSettings:
    """Many filaments, microtubules or membranes among a few random particles."""
    chosen = preset("random", seed=seed, shape=SHAPE)
    thin = rng.uniform() < 0.6
    kinds = {"filament": (8, 24), "microtubule": (1, 4)} if thin else {"vesicle": (2, 6), "sheet": (0, 2)}
    structures = tuple(Structure(kind, int(rng.integers(*counts))) for kind, counts in kinds.items())
    return replace(
        chosen,
        voxel_size=float(rng.choice([8.0, 10.0, 13.5])),
        structures=tuple(s for s in structures if s.count),
        species=tuple(replace(s, count=min(s.count, 8)) for s in chosen.species),
    )


def made(seed: int) -> SimulatedTomogram | None:
    """The tomogram of a seed, with fewer particles where they don't fit; None if even a quarter does not."""
    chosen = settings_of(seed)
    for _ in range(4):
        try:
            return simulate(chosen)
        except SettingsError:
            fewer = tuple(replace(s, count=max(2, round(0.6 * s.count))) for s in chosen.species)
            chosen = replace(chosen, species=fewer)
    return None


def arrays_of(tomogram: SimulatedTomogram) -> dict[str, Any]:
    """What training reads.

    density : (z, y, x) float16, zero mean and unit deviation, particles bright
    labels : (z, y, x) uint16, 0, particles from 1 to M, then structures
    kinds : (M + S,) of each label, a number from 1: the species first, then `CLASSES`
    """
    settings = tomogram.settings
    density = tomogram.tomogram if settings.contrast == "bright" else -tomogram.tomogram
    count = len(tomogram.particles)
    labels = tomogram.labels.astype(np.uint16)
    free = (labels == 0) & (tomogram.structure_labels > 0)
    labels[free] = (tomogram.structure_labels[free] + count).astype(np.uint16)
    cytosol = tomogram.semantic == tomogram.number_of("cytosol")
    species = {s.name: k for k, s in enumerate(settings.species, 1)}
    kinds = [species[p.species] for p in tomogram.particles]
    kinds += [len(species) + 1 + CLASSES.index(CLASS_OF[s.kind]) for s in tomogram.structures]
    if settings.voxel_size < FINEST:
        density, labels, cytosol = halve(density), labels[1::2, 1::2, 1::2], cytosol[1::2, 1::2, 1::2]
        density = (density - density.mean()) / density.std()
    return {
        "density": density.astype(np.float16),
        "labels": labels,
        "cytosol": np.packbits(cytosol),
        "kinds": np.array(kinds, np.int16),
        "species": len(species),
        "settings": json.dumps(settings.to_dict()),
    }


def make(seed: int, folder: Path) -> str:
    """Write the tomogram of a seed as NAME.npz, at once."""
    path = folder / f"{seed:06d}.npz"
    if path.exists():
        return "there"
    tomogram = made(seed)
    if tomogram is None:
        return "does not fit"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays_of(tomogram))
    part.rename(path)
    return f"{len(tomogram.particles)} particles"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    seeds = range(chosen.first, chosen.first + chosen.count)
    with ProcessPoolExecutor(chosen.processes) as pool:
        for seed, said in zip(seeds, pool.map(make, seeds, [chosen.folder] * len(seeds)), strict=True):
            print(seed, said, flush=True)


if __name__ == "__main__":
    main()
