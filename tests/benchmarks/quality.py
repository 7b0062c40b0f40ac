"""How well one click does: simulated tomograms, each species in turn the target and the others distractors.

    python tests/benchmarks/quality.py --seeds 3 --snr 0.3 1 [--out FOLDER] [--set SECTION.NAME=VALUE …]

Prints one JSON line per (species, snr) with means over the seeds. The clicked particle is drawn at random, and the
click is up to 2 voxels off its centre. Default settings of the built-in models unless changed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import cryosam_dask as cs
from cryosam_dask import outputs
from cryosam_dask.cli.options import Choice
from cryosam_dask.demo import write_simulation
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.points.files import read_points
from cryosam_dask.pipeline import Driver
from cryosam_dask.settings import Settings

SPECIES = {"ribosome": 25.0, "proteasome": 15.0, "tetramer": 12.0}
VOXEL_SIZE = 10.0


def one(folder: Path, snr: float, seed: int, settings: Settings, changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures by species on one tomogram; ingest and features are made once."""
    out = {}
    store, first = folder / f"{snr:g}_{seed}.zarr", folder / f"{next(iter(SPECIES))}_{snr:g}_{seed}.mrc"
    rng = np.random.default_rng(seed)
    for species, diameter in SPECIES.items():
        tomogram, truth, labels = (folder / f"{species}_{snr:g}_{seed}{end}" for end in (".mrc", ".csv", "_labels.mrc"))
        simulated = {"snr": snr, "seed": seed, **changes}
        write_simulation(tomogram, "default", simulated, truth=truth, labels=labels, species=species)
        centres = read_points(truth)[["z", "y", "x"]].to_numpy()
        click = centres[rng.integers(len(centres))] + rng.uniform(-2, 2, 3) / np.sqrt(3)
        driver = Driver(store, SerialExecutor())
        start = time.perf_counter()
        driver.ingest(first)  # equal voxels; a file header has a time stamp
        driver.features(settings)
        driver.query(species, [click.round().tolist()], settings)
        driver.match(species)
        driver.segment(species)
        radius = 0.4 * diameter * 10 / VOXEL_SIZE
        figures = outputs.evaluate(store, truth, radius, name=species, truth_labels=labels)
        figures["seconds"] = time.perf_counter() - start
        out[species] = figures
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--contrast", default="bright")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    settings = Choice("builtin", set=options.set).settings()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for snr in options.snr:
            seeds = range(options.first_seed, options.first_seed + options.seeds)
            runs = [one(folder, snr, seed, settings, {"contrast": options.contrast}) for seed in seeds]
            for species in SPECIES:
                found = [run[species] for run in runs]
                row: dict[str, Any] = {"species": species, "snr": snr, "seeds": len(found), "version": cs.__version__}
                for key in ("precision", "recall", "f1", "average_precision", "mean_iou", "seconds"):
                    row[key] = round(float(np.mean([f[key] for f in found])), 3)
                row["f1_each"] = [round(f["f1"], 3) for f in found]
                row["iou_each"] = [round(f["mean_iou"], 3) for f in found]
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
