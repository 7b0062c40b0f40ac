"""How well a query does in other tomograms than the one that was clicked in, of equal and of unlike ones.

    python tests/benchmarks/applied_query.py [--out FOLDER] [--only NAME …]

Simulated tomograms of 96 × 192 × 192 voxels: two at a signal-to-noise ratio of 0.3, two at 1, and some at 0.5, of
another defocus, with more membranes, with few particles, and without one of the kinds. Each kind is clicked once in
each tomogram that has it, and its query used in all others. One JSON line for each donor, receiver and kind: F1, or,
where there is none of the kind, how many were picked. About half an hour on a core; `--only plain defocus2` takes some.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import outputs
from cryosam_dask.demo import write_simulation
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.points.files import read_points
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.simulate.settings import DISTRACTORS, TARGETS
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore

DIAMETER = {"ribosome": 25.0, "tetramer": 12.0}
VOXEL_NM = 1.0
SETTINGS = settings_for("builtin")


def _crowd(**counts: int) -> tuple[Any, ...]:
    """The kinds of the default simulation with other counts; without those of which there are none."""
    kinds = [replace(s, count=counts.get(s.name, s.count)) for s in (*TARGETS, *DISTRACTORS)]
    return tuple(s for s in kinds if s.count)


TOMOGRAMS: dict[str, dict[str, Any]] = {
    "noisy1": {"seed": 100, "snr": 0.3},
    "noisy2": {"seed": 101, "snr": 0.3},
    "clear1": {"seed": 102, "snr": 1.0},
    "clear2": {"seed": 103, "snr": 1.0},
    "plain": {"seed": 200, "snr": 0.5},
    "defocus2": {"seed": 203, "snr": 0.5, "defocus": 2.0},
    "defocus45": {"seed": 204, "snr": 0.5, "defocus": 4.5},
    "membranes": {"seed": 202, "snr": 0.5, "membranes": 7},
    "few": {"seed": 205, "snr": 0.5, "species": _crowd(ribosome=2, tetramer=4)},
    "no-ribosome": {"seed": 300, "snr": 0.5, "species": _crowd(ribosome=0)},
    "no-tetramer": {"seed": 301, "snr": 0.5, "species": _crowd(tetramer=0)},
}


def prepare(folder: Path, name: str) -> Path:
    """A run with features, and with a query for each kind that is there; `KIND_NAME.csv` holds the true places."""
    changes, url = TOMOGRAMS[name], folder / f"{name}.zarr"
    kinds = [s.name for s in changes.get("species", TARGETS) if s.name in DIAMETER]
    rng, driver = np.random.default_rng(changes["seed"]), Driver(url, SerialExecutor())
    for kind in kinds:
        write_simulation(folder / f"{name}.mrc", "default", changes, truth=folder / f"{kind}_{name}.csv", species=kind)
        if kind == kinds[0]:
            driver.ingest(folder / f"{name}.mrc")
            driver.features(SETTINGS)
        centres = read_points(folder / f"{kind}_{name}.csv")[["z", "y", "x"]].to_numpy()
        click = centres[rng.integers(len(centres))] + rng.uniform(-2, 2, 3) / np.sqrt(3)
        driver.query(kind, [click.round().tolist()], SETTINGS)
    return url


def apply(folder: Path, donor: str, receiver: str) -> Iterator[dict[str, Any]]:
    """The donor's queries in the receiver, under names of their own."""
    for kind, diameter in DIAMETER.items():
        if not (folder / f"{kind}_{donor}.csv").exists():
            continue
        lent = folder / f"{receiver}_borrows.zarr"
        if not lent.exists():
            driver = Driver(lent, SerialExecutor())
            driver.ingest(folder / f"{receiver}.mrc")
            driver.features(SETTINGS)
        driver = Driver(lent, SerialExecutor(), overwrite=True)
        driver.borrow(kind, folder / f"{donor}.zarr")
        driver.match(kind)
        driver.segment(kind)
        row: dict[str, Any] = {"donor": donor, "receiver": receiver, "kind": kind}
        truth = folder / f"{kind}_{receiver}.csv"
        if truth.exists():
            figures = outputs.evaluate(lent, truth, 0.4 * diameter / VOXEL_NM, name=kind)
            yield row | {key: round(figures[key], 3) for key in ("precision", "recall", "f1")}
        else:
            yield row | {"picked of none": len(picks.read(RunStore.open(lent), kind))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", nargs="+", choices=list(TOMOGRAMS), default=list(TOMOGRAMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            prepare(folder, name)
        for donor in options.only:
            for receiver in options.only:
                if receiver != donor:
                    for row in apply(folder, donor, receiver):
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
