"""Settings by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cryosam_dask.simulate.checks import require
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.simulate.species import DISTRACTORS, TARGETS, Species
from cryosam_dask.simulate.splits import families_of, split_of_seed

PRESETS: dict[str, str] = {
    "default": "96×192×192 voxels, three targets among small distractors and two vesicles",
    "large": "the same in 128×256×256",
    **{s.name: f"{s.name}s alone among the small distractors, quick" for s in TARGETS},
    "crowded": "three targets, of which half touch another particle, in a cytosol that fills 12 % of 96×256×256",
    "membranes": "vesicles, a sheet and a double membrane, with a few targets",
    "filaments": "filaments and microtubules, with a few targets, gold and uneven ice",
    "shapes": "four random shapes, apart from each other, in 96×256×256",
    "random": "random shapes, crowd, structures, voxels, ice and optics, all drawn from the seed",
}
"""Presets and what they are."""


def preset(name: str, **changes: Any) -> SimulationSettings:
    """Settings by name (see `PRESETS`), with changes.

    "shapes" and "random" draw from `seed`: from `splits.FIRST_HELD_OUT` on, shapes of held-out families too. Raises
    SettingsError for an unknown name or setting, or one that is out of range.
    """
    require(name in PRESETS, "preset", f"one of {', '.join(PRESETS)}", name)
    seed = changes.get("seed", 0)
    if name in ("shapes", "random"):
        SimulationSettings(seed=seed)  # it is a seed
    if name == "random":
        values = _random_values(seed, changes.get("shape", (96, 192, 192)))
    elif name == "shapes":
        values = {"shape": (96, 256, 256), "membranes": 0, "species": random_species(seed, 4, 30), "snr": 0.5}
    else:
        values = _fixed(name)
    return SimulationSettings.from_dict(values | changes)


def _fixed(name: str) -> dict[str, Any]:
    few = tuple(replace(s, count=8) for s in TARGETS)
    values: dict[str, dict[str, Any]] = {"default": {}, "large": {"shape": (128, 256, 256)}}
    values |= {s.name: {"species": (s, *DISTRACTORS)} for s in TARGETS}
    values["crowded"] = {
        "shape": (96, 256, 256), "species": tuple(replace(s, count=40) for s in TARGETS), "membranes": 0,
        "touching": 0.5, "cytosol": 0.12, "snr": 0.5,
    }  # fmt: skip
    values["membranes"] = {
        "shape": (96, 256, 256), "species": few, "membranes": 0, "touching": 0.0, "snr": 0.5,
        "structures": (
            {"kind": "double-membrane", "count": 1}, {"kind": "sheet", "count": 1},
            {"kind": "vesicle", "count": 3, "size": (18.0, 32.0)},
        ),
    }  # fmt: skip
    values["filaments"] = {
        "shape": (96, 256, 256), "species": few, "membranes": 0, "touching": 0.0, "snr": 0.5,
        "structures": (
            {"kind": "microtubule", "count": 2}, {"kind": "filament", "count": 6}, {"kind": "gold", "count": 4},
        ),
        "ice": {"thickness": (0.75, 1.0), "direction": 30.0, "gradient": 0.5},
    }  # fmt: skip
    return values[name]


def random_species(seed: int, kinds: int, count: int, largest: float = 26.0) -> tuple[Species, ...]:
    """Random shapes of as many kinds, `count` particles each, of families of the seed's split.

    Diameters go from 10 nm to `largest`, evenly, so that kinds differ in size as well as in shape.
    """
    rng = np.random.default_rng([seed, 1])
    families = rng.permutation(families_of(split_of_seed(seed)))
    steps = (np.arange(kinds) + rng.uniform(0, 1, kinds)) / kinds
    return tuple(
        Species(
            f"{family}-{k}",
            str(family),
            round(float(10 + (largest - 10) * step), 1),
            count,
            round(float(rng.uniform(0.9, 1.2)), 2),
            # a shape's seed is of the same split as the tomogram's
            seed=seed + k * 1_000_000 if split_of_seed(seed) == "held-out" else (seed + k * 99_991) % 1_000_000,
        )
        for k, (family, step) in enumerate(zip(np.resize(families, kinds), steps, strict=True))
    )


def _random_values(seed: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    rng = np.random.default_rng([seed, 2])
    voxel_size = float(rng.choice([5.0, 6.8, 7.84, 10.0, 10.0, 12.0, 13.5, 16.0, 20.0]))
    depth, area = shape[0] * voxel_size / 10, shape[1] * shape[2] * voxel_size**2 / 100
    largest = min(26.0, 0.45 * depth)
    kinds = int(rng.integers(3, 6))
    # particles fill 1 to 4 % of the volume with the balls that hold them
    balls = rng.uniform(0.01, 0.04) * depth * area / (4 / 3 * np.pi * (0.4 * largest) ** 3)
    crowded = rng.uniform() < 0.6
    steep = float(rng.integers(40, 66))
    lean = float(rng.integers(-8, 9)) if rng.uniform() < 0.4 else 0.0
    thin = float(round(rng.uniform(0.7, 1.0), 2))
    return {
        "shape": shape,
        "voxel_size": voxel_size,
        "species": random_species(seed, kinds, int(np.clip(balls / kinds, 4, 60)), largest),
        "membranes": 0,
        "structures": _random_structures(rng, depth, area),
        "touching": round(float(rng.uniform(0.2, 0.7)), 2) if crowded else 0.0,
        "cytosol": round(float(rng.uniform(0.04, 0.16)), 3) if crowded else 0.0,
        "ice": {
            "thickness": (thin, float(round(rng.uniform(thin, 1.0), 2))),
            "direction": float(rng.integers(360)),
            "gradient": round(float(rng.uniform(0.0, 0.8)), 2),
        },
        "tilt_range": (-steep + lean, steep + lean),
        "tilt_step": float(rng.choice([2.0, 3.0, 3.0])),
        "tilt_axis": float(rng.choice([0.0, 0.0, 90.0, float(rng.integers(180))])),
        "defocus": round(float(rng.uniform(1.5, 7.0)), 2),
        "phase_flip": bool(rng.uniform() < 0.8),
        "snr": round(float(np.exp(rng.uniform(np.log(0.2), np.log(2.0)))), 3),
        "contrast": str(rng.choice(["bright", "dark"])),
    }


def _random_structures(rng: np.random.Generator, depth: float, area: float) -> tuple[dict[str, Any], ...]:
    """Up to three kinds of structures in a volume of a depth (nm) and an area (nm²), gold beads among them or not."""
    every = ("double-membrane", "microtubule", "sheet", "vesicle", "filament")
    kinds = [str(k) for k in rng.permutation(every) if rng.uniform() < 0.35]
    room = area / 200**2  # sheets and microtubules go across the volume
    most = {"double-membrane": 1, "sheet": 1, "microtubule": max(1, int(room)), "vesicle": 3, "filament": 6}
    chosen = [k for k in every if k in kinds[:2] and (room > 0.25 or k == "filament")]  # the largest find a place first
    if "double-membrane" in chosen and "sheet" in chosen:
        chosen.remove("sheet")
    structures: list[dict[str, Any]] = [{"kind": k, "count": int(rng.integers(1, most[k] + 1))} for k in chosen]
    for s in structures:
        if s["kind"] == "vesicle":
            s["size"] = (0.2 * min(depth, 100.0), 0.4 * min(depth, 100.0))
    if rng.uniform() < 0.4:
        structures.append({"kind": "gold", "count": int(rng.integers(1, 7))})
    return tuple(structures)
