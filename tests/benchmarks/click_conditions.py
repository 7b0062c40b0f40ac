"""What the benchmark of clicks simulates: conditions by name, and their seeds in two splits.

Seeds of a condition begin at 900 000 (tune) and 1 900 000 (held out) plus the condition's own number. Those who train
take seeds below 900 000, so that even the tuned part has been seen by no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.simulate import SimulationSettings, Species, Structure, random_species, require_split
from cryosam_dask.simulate.splits import FIRST_HELD_OUT, Split, families_of, split_of_seed
from cryosam_dask.types import Shape3

SHAPE: Shape3 = (96, 256, 256)
PARTICLES = 40  # of each kind, in `SHAPE` voxels of 10 Å; fewer in less
FIRST_SEED: dict[Split, int] = {"tune": 900_000, "held-out": 1_900_000}
SEEDS = 100  # that a condition has for itself
PHANTOMS = {"large": ("lobed", 25.0), "cylinder": ("hollow-cylinder", 15.0), "sphere": ("hollow-sphere", 12.0)}
FOURTH = {"rod": ("rod", 20.0), "disc": ("disc", 18.0)}  # in turn
Recipe = Callable[[int, Shape3], SimulationSettings]


@dataclass(frozen=True)
class Condition:
    """What tomograms of one name are like, and what is clicked in them.

    recipe : seed, shape → settings
    number : of its own seeds: they begin at `number * SEEDS`
    structure : class of structures that is clicked, "membrane" or so; None: every kind of particle
    absent : queries are applied to tomograms without the kind
    """

    recipe: Recipe
    number: int
    words: str
    structure: str | None = None
    absent: bool = False

    def settings(self, split: Split, index: int, shape: Shape3) -> SimulationSettings:
        """Of the tomogram `index` (from 0) of a split. Raises SettingsError for what is not of the split."""
        settings = self.recipe(FIRST_SEED[split] + self.number * SEEDS + index, shape)
        require_split(settings, split)
        return settings

    def kinds(self, settings: SimulationSettings) -> list[str]:
        """Names of what is clicked."""
        return [s.name for s in settings.species if s.count] if self.structure is None else [self.structure]


def shape_of(text: str) -> Shape3:
    """`96,256,256` as a shape; InputError for anything else."""
    sides = text.split(",")
    if len(sides) != 3 or not all(side.strip().isdecimal() for side in sides):
        raise InputError(f"shape {text!r}: expected three whole numbers Z,Y,X, as in 96,256,256")
    return int(sides[0]), int(sides[1]), int(sides[2])


def conditions_of(names: list[str]) -> list[str]:
    """These conditions, or all where there are no names; InputError for one that isn't known."""
    if unknown := sorted(set(names) - set(CONDITIONS)):
        raise InputError(f"condition {unknown[0]!r}: expected some of {', '.join(CONDITIONS)}")
    return names or list(CONDITIONS)


def particles_of(shape: Shape3, voxel_size: float, most: int = PARTICLES) -> int:
    """How many of a kind: `most` in `SHAPE` voxels of 10 Å, as many for each nm³ in less, never more."""
    share = float(np.prod(shape)) * voxel_size**3 / (float(np.prod(SHAPE)) * 1000)
    return max(4, round(most * min(share, 1.0)))


def _depth(shape: Shape3, voxel_size: float = 10.0) -> float:
    return shape[0] * voxel_size / 10


def _named_by_family(species: tuple[Species, ...]) -> tuple[Species, ...]:
    """Species that are called as their families, so that figures of many tomograms can be put together."""
    families = [s.shape for s in species]
    return tuple(replace(s, name=s.shape if families.count(s.shape) == 1 else s.name) for s in species)


def _largest(shape: Shape3, voxel_size: float) -> float:
    """Nanometres of the largest random shape, which fits into thin ice, too."""
    return max(min(26.0, 0.32 * _depth(shape, voxel_size)), 10.5)


def shapes(seed: int, shape: Shape3, **changes: Any) -> SimulationSettings:
    """Four random shapes of 10 to 26 nm, apart from each other unless changed."""
    voxel = changes.get("voxel_size", 10.0)
    species = random_species(seed, 4, particles_of(shape, voxel), _largest(shape, voxel))
    values: dict[str, Any] = {"shape": shape, "seed": seed, "snr": 0.5, "membranes": 0}
    return SimulationSettings.from_dict(values | {"species": _named_by_family(species)} | changes)


def phantoms(seed: int, shape: Shape3, **changes: Any) -> SimulationSettings:
    """A large lobed body, a hollow cylinder, a hollow sphere, and a rod or a disc; other members for other seeds."""
    fourth = list(FOURTH)[seed % len(FOURTH)]
    count = particles_of(shape, 10.0)
    first = 0 if split_of_seed(seed) == "tune" else FIRST_HELD_OUT  # seeds of the shapes are of the split, too
    species = tuple(
        Species(name, family, diameter, count, seed=first + (seed + k * 99_991) % FIRST_HELD_OUT)
        for k, (name, (family, diameter)) in enumerate([*PHANTOMS.items(), (fourth, FOURTH[fourth])])
    )
    values: dict[str, Any] = {"shape": shape, "seed": seed, "membranes": 0, "species": species}
    return SimulationSettings.from_dict(values | changes)


def structures(seed: int, shape: Shape3, *kinds: tuple[str, int, tuple[float, float] | None], **changes: Any) -> Any:
    """Structures (kind, count, size as shares of the depth) among a few particles of three random shapes."""
    depth = min(_depth(shape), 96.0)
    room = max(0.25, shape[1] * shape[2] / (SHAPE[1] * SHAPE[2]))
    drawn = tuple(
        Structure(kind, max(1, round(count * room)), size and (size[0] * depth, size[1] * depth))
        for kind, count, size in kinds
    )
    species = random_species(seed, 3, max(2, particles_of(shape, 10.0, 8)), min(26.0, 0.4 * depth))
    values: dict[str, Any] = {"shape": shape, "seed": seed, "snr": 0.5, "membranes": 0}
    values |= {"touching": 0.0, "species": _named_by_family(species), "structures": drawn}
    return SimulationSettings.from_dict(values | changes)


CROWD: dict[str, Any] = {"touching": 0.5, "cytosol": 0.12, "snr": 0.5}
_VESICLES = (("vesicle", 3, (0.2, 0.34)),)
_MEMBRANES = (("double-membrane", 1, (0.16, 0.3)), ("sheet", 1, None), ("vesicle", 2, (0.18, 0.28)))
_THIN = {"thickness": (0.6, 0.8), "direction": 30.0, "gradient": 0.8}

# `number` says which seeds: conditions of one number have the same particles at the same places
CONDITIONS: dict[str, Condition] = {
    "phantoms-0.3": Condition(partial(phantoms, snr=0.3), 0, "four fixed types apart, SNR 0.3"),
    "phantoms-1": Condition(partial(phantoms, snr=1.0), 0, "four fixed types apart, SNR 1"),
    "phantoms-crowded": Condition(partial(phantoms, **CROWD), 1, "four fixed types touching, in cytosol, SNR 0.5"),
    "apart-0.3": Condition(partial(shapes, snr=0.3), 2, "random shapes apart, SNR 0.3"),
    "apart-1": Condition(partial(shapes, snr=1.0), 2, "random shapes apart, SNR 1"),
    "crowded": Condition(partial(shapes, **CROWD), 3, "random shapes touching, in cytosol, SNR 0.5"),
    "dark": Condition(partial(shapes, contrast="dark"), 4, "particles darker than the ice"),
    "voxels-6.8": Condition(partial(shapes, voxel_size=6.8), 5, "voxels of 6.8 Å"),
    "voxels-13.5": Condition(partial(shapes, voxel_size=13.5), 6, "voxels of 13.5 Å"),
    "thin-ice": Condition(partial(shapes, ice=_THIN), 7, "ice of changing thickness, intensity with a gradient"),
    "tilted-axis": Condition(
        partial(shapes, tilt_axis=35.0, tilt_range=(-50.0, 60.0)), 8, "tilt axis at 35°, tilts from −50° to 60°"
    ),
    "defocus-1.5": Condition(partial(shapes, defocus=1.5), 9, "1.5 µm of underfocus"),
    "defocus-6": Condition(partial(shapes, defocus=6.0), 10, "6 µm of underfocus"),
    "vesicles-0.5": Condition(lambda s, n: structures(s, n, *_VESICLES), 11, "three vesicles, SNR 0.5", "membrane"),
    "vesicles-1": Condition(lambda s, n: structures(s, n, *_VESICLES, snr=1.0), 11, "the same, SNR 1", "membrane"),
    "membranes-0.5": Condition(
        lambda s, n: structures(s, n, *_MEMBRANES), 12, "double membrane, sheet, vesicles, SNR 0.5", "membrane"
    ),
    "membranes-1": Condition(lambda s, n: structures(s, n, *_MEMBRANES, snr=1.0), 12, "the same, SNR 1", "membrane"),
    "microtubule": Condition(
        lambda s, n: structures(s, n, ("microtubule", 2, None)), 13, "microtubules, SNR 0.5", "microtubule"
    ),
    "filament": Condition(lambda s, n: structures(s, n, ("filament", 6, None)), 14, "filaments, SNR 0.5", "filament"),
    "absent": Condition(shapes, 15, "queries applied where there is none of the kind, SNR 0.5", absent=True),
}
"""By name; all but the phantoms' are at SNR 0.5 and 10 Å unless they say otherwise."""


def without(settings: SimulationSettings, split: Split, kind: str | None) -> SimulationSettings:
    """A tomogram without a kind: all others, in other places; with None, nothing but shapes of other families."""
    seed, here = settings.seed + SEEDS // 2, {s.shape for s in settings.species}
    if kind is None:
        families, count = families_of(split), settings.species[0].count
        every = random_species(seed, 2 * len(families), count, _largest(settings.shape, settings.voxel_size))
        species = tuple(s for s in every if s.shape not in here)[:4]
    else:
        species = tuple(s for s in settings.species if s.name != kind)
    other = replace(settings, seed=seed, species=species)
    require_split(other, split)
    return other
