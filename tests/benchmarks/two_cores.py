"""A whole run with the built-in models on a few workers, and a second query on what it made; beside their plan.

    cryosam simulate tomo.mrc --shape 200,928,960 --count 400 --truth truth.csv
    python tests/benchmarks/two_cores.py tomo.mrc --points 131,788,858 51,593,151 --work FOLDER [--workers 2]

Prints one JSON line: for the run and for the second query the seconds of wall time with their bound, what the kernel
took of the workers' processor time (page faults, files), the picks, and for each stage of the run that takes more than
5 % of the units' time the seconds of its units, those of its plan, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import cryosam_dask as cs
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.pipeline import settings_for
from cryosam_dask.planning.plan import Options, plan_run
from cryosam_dask.stages import chain

BOUNDS = {"run": 150.0, "second": 40.0}
SHARE = 0.05


def timed(tomogram: str, point: tuple[float, ...], out: Path, name: str, workers: int) -> dict[str, Any]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    driver = cs.run(tomogram, [point], out, name=name, models="builtin", workers=workers)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    stages: dict[str, float] = {}
    for stage, timings in driver.timings.items():
        declared = chain.declaration_of(stage)
        key = stage if declared is None else declared.name.partition("/")[0]
        stages[key] = stages.get(key, 0.0) + sum(timing.seconds for timing in timings)
    return {
        "seconds": round(seconds, 1),
        "user": round(after.ru_utime - before.ru_utime, 1),
        "kernel": round(after.ru_stime - before.ru_stime, 1),
        "picks": len(cs.open_run(out)[f"picks/{name}"].to_dataset()["score"]),
        "stages": stages,
    }


def compared(measured: dict[str, float], tomogram: str, picks: int) -> dict[str, dict[str, float]]:
    """The stages that take more than their share, beside their plan."""
    settings = settings_for("builtin").replace({"match.count": max(picks, 1)})
    planned = {stage.name: stage.seconds for stage in plan_run(open_tomogram(tomogram), settings, Options()).stages}
    whole = sum(measured.values())
    return {
        name: {
            "seconds": round(seconds, 1),
            "planned": round(planned[name], 1),
            "ratio": round(seconds / planned[name], 2),
        }
        for name, seconds in measured.items()
        if seconds > SHARE * whole and planned.get(name)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tomogram")
    parser.add_argument("--points", nargs=2, required=True, metavar="Z,Y,X")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    out = given.work / "two_cores.zarr"
    shutil.rmtree(out, ignore_errors=True)
    result: dict[str, Any] = {"workers": given.workers}
    for (what, bound), text in zip(BOUNDS.items(), given.points, strict=True):
        point = tuple(float(v) for v in text.split(","))
        row = timed(given.tomogram, point, out, what, given.workers)
        stages = row.pop("stages")
        row["bound"], row["ratio"] = bound, round(row["seconds"] / bound, 2)
        row["stages"] = (
            compared(stages, given.tomogram, row["picks"])
            if what == "run"
            else {name: round(seconds, 1) for name, seconds in stages.items()}
        )
        result[what] = row
    shutil.rmtree(out, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
