"""Several small tomograms on two workers: one after the other, and several at once.

    python tests/benchmarks/at_once.py [--tomograms 6] [--workers 2] [--at-once 1,2,3] [--rounds 3] [--shape 48,96,96]
        [--models builtin] [--count 12]

Simulated tomograms with ribosomes; one click in the first, as a run of its own before. All ways take turns on the same
workers, so that what else the machine does is the same for each. Prints one JSON line: for each way seconds of its
rounds; the `bound`, seconds of its units on all workers without a pause; how `busy` these were; and the `ratio` of the
first way's seconds to its own. Of the last three it is the median of rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryosam_dask.demo import write_simulation
from cryosam_dask.executors.choice import make_executor
from cryosam_dask.pipeline import settings_for
from cryosam_dask.pipeline.batch import run_many
from cryosam_dask.simulate.settings import DISTRACTORS, TARGETS
from cryosam_dask.store import journal
from cryosam_dask.store.run_store import RunStore


def work_of(runs: list[Path]) -> float:
    """Seconds of all units of some runs together, by their journals."""
    entries = [entry for run in runs for entry in journal.commands(RunStore.open(run))]
    return sum(float(stage["unit_seconds"]) for entry in entries for stage in entry["stages"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tomograms", default=6, type=int)
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--at-once", default="1,2,3")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--shape", default="48,96,96")
    parser.add_argument("--models", default="builtin")
    parser.add_argument("--count", default=12, type=int)
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split(",")))
    ways = [int(count) for count in options.at_once.split(",")]
    seconds: dict[int, list[float]] = {count: [] for count in ways}
    work: dict[int, list[float]] = {count: [] for count in ways}
    with tempfile.TemporaryDirectory() as name, make_executor(options.workers, device="cpu") as executor:
        folder = Path(name)
        paths = [folder / f"t{i}.mrc" for i in range(options.tomograms + 1)]
        crowd = tuple(replace(s, count=max(2, s.count // 8)) for s in (*TARGETS, *DISTRACTORS))
        settings = [{"shape": shape, "seed": i, "species": crowd} for i in range(len(paths))]
        made = [
            write_simulation(path, "default", own, species="ribosome")
            for path, own in zip(paths, settings, strict=True)
        ]
        points = [[float(v) for v in made[0].click.split(",")]]
        changes = {"match.count": options.count}
        common: dict[str, Any] = {"settings": settings_for(options.models, changes), "executor": executor}
        run_many(paths[:1], points, folder / "query", **common)
        for number in range(options.rounds):
            for count in ways[:: 1 if number % 2 else -1]:
                out = folder / str(count)
                start = time.perf_counter()
                lender = folder / "query" / "t0.zarr"
                summary = run_many(paths[1:], None, out, query_from=lender, at_once=count, **common)
                seconds[count].append(round(time.perf_counter() - start, 2))
                assert not summary.exit_code, summary.in_words()
                work[count].append(round(work_of([out / f"{p.stem}.zarr" for p in paths[1:]]) / options.workers, 2))
                shutil.rmtree(out)
                print(count, seconds[count][-1], work[count][-1], file=sys.stderr, flush=True)
    row: dict[str, Any] = {"tomograms": options.tomograms, "shape": shape, "workers": options.workers}
    for count in ways:
        ratios = [a / b for a, b in zip(seconds[ways[0]], seconds[count], strict=True)]
        row[f"{count} at once"] = {
            "seconds": seconds[count],
            "bound": statistics.median(work[count]),
            "busy": round(statistics.median(w / s for w, s in zip(work[count], seconds[count], strict=True)), 2),
            "ratio": round(statistics.median(ratios), 2),
        }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
