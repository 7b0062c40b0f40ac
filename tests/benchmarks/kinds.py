"""What several kinds at once, and negative points, gain over one run for each kind.

    python tests/benchmarks/kinds.py --seeds 2 --snr 0.3 1 [--masks] [--out FOLDER]

For each seed and signal-to-noise ratio three simulated tomograms of 96 × 192 × 192 voxels with ribosomes, proteasomes
(15 nm), tetramers (12 nm) and small distractors: one that is clicked in, another with all kinds, and one without any
tetramer, which the queries of the first are applied to. Each in three ways: a run for each kind alone; all kinds at
once; and tetramers alone with a negative point on a proteasome. One JSON line for each tomogram, way and kind.

What is compared with the truth are the proposals; with `--masks` they are segmented, kinds compete, and it is the
picks, which takes three times as long.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd

from cryosam_dask.evaluate import evaluate_picks
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, Kinds, settings_for
from cryosam_dask.simulate import DISTRACTORS, TARGETS, SimulatedTomogram, SimulationSettings, simulate
from cryosam_dask.stages import borrow, propose
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (96, 192, 192)
COUNTS = {"ribosome": 18, "proteasome": 30, "tetramer": 40, "small": 120}
DIAMETER = {"ribosome": 25.0, "proteasome": 15.0, "tetramer": 12.0}
SETTINGS = settings_for("builtin")
TOMOGRAMS = {"clicked": 0, "all kinds": 1000, "no tetramer": 2000}
Points = dict[str, list[list[float]]]


def prepare(folder: Path, name: str, seed: int, snr: float) -> SimulatedTomogram:
    """Simulate, and make a run with its features at `folder/name.zarr`."""
    counts = COUNTS | ({"tetramer": 0} if name == "no tetramer" else {})
    species = tuple(replace(s, count=counts[s.name]) for s in (*TARGETS, *DISTRACTORS) if counts[s.name])
    made = simulate(SimulationSettings(shape=SHAPE, seed=seed + TOMOGRAMS[name], snr=snr, species=species))
    path = folder / f"{name}.mrc"
    with mrcfile.new(path, made.tomogram, overwrite=True) as file:
        file.voxel_size = 10
    driver = Driver(folder / f"{name}.zarr", SerialExecutor())
    driver.ingest(path)
    driver.features(SETTINGS)
    return made


def ways(clicks: Points) -> dict[str, list[Kinds]]:
    """What is asked for, in each of the three ways."""
    return {
        "alone": [Kinds({kind: points}) for kind, points in clicks.items()],
        "together": [Kinds(clicks)],
        "negative": [Kinds({"tetramer": clicks["tetramer"]}, negatives=clicks["proteasome"])],
    }


def figures(store: RunStore, kind: str, made: SimulatedTomogram, masks: bool) -> dict[str, Any]:
    """Precision, recall and F1; and how many were picked, where there are none."""
    if masks:
        table = picks.read(store, kind)
    else:
        points, _ = propose.read(store, kind)
        table = pd.DataFrame(points, columns=["z", "y", "x"])
        table["score"] = np.asarray(store.read(f"{layout.proposals(kind)}/scores"))
    truth = made.centres(kind) if kind in {s.name for s in made.settings.species} else np.empty((0, 3))
    row: dict[str, Any] = {"picked": len(table)}
    if len(truth):
        found = evaluate_picks(table[["z", "y", "x"]], table["score"], truth, 0.4 * DIAMETER[kind])
        row |= {key: round(float(getattr(found, key)), 3) for key in ("precision", "recall", "f1")}
    return row


def measure(folder: Path, seed: int, snr: float, masks: bool) -> Iterator[dict[str, Any]]:
    """All tomograms of one seed, in all ways."""
    made = {name: prepare(folder, name, seed, snr) for name in TOMOGRAMS}
    rng = np.random.default_rng(seed)
    clicks: Points = {}
    for kind in DIAMETER:
        centres = made["clicked"].centres(kind)
        click = centres[rng.integers(len(centres))] + rng.uniform(-2, 2, 3) / np.sqrt(3)
        clicks[kind] = [np.clip(click.round(), 0, np.array(SHAPE) - 1).tolist()]
    for way, asked in ways(clicks).items():
        loans: dict[str, borrow.Loan] = {}
        for name, tomogram in made.items():
            url = folder / f"{name}_{way}.zarr"
            shutil.copytree(folder / f"{name}.zarr", url)
            driver = Driver(url, SerialExecutor())
            for kinds in asked:
                used = kinds if name == "clicked" else kinds.lent(loans)
                with driver.command(f"run {', '.join(used.names)}"):
                    used.query(driver, SETTINGS)
                    if masks:
                        used.find(driver)
                    else:
                        for kind in used.names:
                            driver.match(kind)
                for kind in used.names:
                    if name == "clicked":
                        loans[kind] = borrow.take(RunStore.open(url), kind)
                    about = {"snr": snr, "seed": seed, "tomogram": name, "way": way, "kind": kind}
                    yield about | figures(RunStore.open(url), kind, tomogram, masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    sums: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for snr in options.snr:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            with tempfile.TemporaryDirectory(dir=options.out) as scratch:
                for row in measure(Path(scratch), seed, snr, options.masks):
                    print(json.dumps(row), flush=True)
                    sums[snr, row["tomogram"], row["kind"], row["way"]].append(row)
    for key, rows in sums.items():
        keys = [k for k in ("precision", "recall", "f1", "picked") if k in rows[0]]
        means = {k: round(float(np.mean([row[k] for row in rows])), 3) for k in keys}
        print(json.dumps({"mean of": len(rows), "of": key} | means), flush=True)


if __name__ == "__main__":
    main()
