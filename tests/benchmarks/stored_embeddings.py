"""Whether embeddings are worth storing, against embedding a plane again wherever a group of prompts comes to it.

    python tests/benchmarks/stored_embeddings.py [--shape 200,928,960] [--models paper] [--workers 1,64]
                                                 [--bandwidth 1000]

By the plan's cost model: no embedding is computed. Prints one JSON line: planes, how often groups come to one, bytes,
and for each speed of a worker and number of workers the seconds of both ways and their ratio (above 1: storing is worth
it). Stored: each plane is embedded and written once and read at each visit, by all workers at once, and through a
storage of so many MB/s that they share. Again: the plane itself is written once, and read and embedded at each visit.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from scaling import DIAMETER, Header

from cryosam_dask import geometry
from cryosam_dask.pipeline import settings_for
from cryosam_dask.planning import machine
from cryosam_dask.planning.plan import plan_stages
from cryosam_dask.planning.stages import Planner
from cryosam_dask.stages.cost import PLAIN_READ, PLAIN_WRITE
from cryosam_dask.stages.segment import TURN
from cryosam_dask.types import AXES


def compared(planner: Planner, workers: int, bandwidth: float) -> dict[str, float]:
    """Seconds of both ways for all waves of a plan."""
    planes = {plane for this in planner.rounds for plane in this.wave.planes}
    visits = [plane for this in planner.rounds for turn in this.wave.turns for plane in turn.planes]
    size = {axis: planner.plane_bytes(axis) for axis in AXES}
    seconds = {axis: planner.embed_seconds(axis) for axis in AXES}
    written, read = (sum(size[axis] for axis, _ in some) for some in (planes, visits))
    image = {axis: math.prod(geometry.plane_shape(planner.shape, axis)) for axis in AXES}
    images = [sum(image[axis] for axis, _ in some) for some in (planes, visits)]
    once = sum(seconds[axis] for axis, _ in planes) / workers

    def moved(written: float, read: float) -> float:
        return max(
            (written / PLAIN_WRITE + read / PLAIN_READ + len(visits) * TURN) / workers, (written + read) / bandwidth
        )

    through = moved(written, read)
    again = sum(seconds[axis] for axis, _ in visits) / workers + moved(*images)
    return {
        "stored_seconds": round(once + through, 1),
        "of_that_storage": round(through, 1),
        "again_seconds": round(again, 1),
        "ratio": round(again / (once + through), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="200,928,960", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--models", default="paper")
    parser.add_argument("--speeds", default="cpu,a100,h100", type=lambda v: v.split(","))
    parser.add_argument("--workers", default="1,64", type=lambda v: [int(n) for n in v.split(",")])
    parser.add_argument("--bandwidth", default=1000.0, type=float, help="MB/s of the storage")
    options = parser.parse_args()
    row: dict[str, Any] = {"shape": options.shape, "models": options.models, "bandwidth": options.bandwidth}
    for speed in options.speeds:
        settings = settings_for(options.models)
        if speed != "cpu":  # a GPU runs the encoders in half precision
            settings = settings.replace({"propagation.precision": "bfloat16", "features.precision": "bfloat16"})
        planner = Planner(Header(options.shape, np.dtype("f4")), settings, machine(speed), DIAMETER / 10)
        plan_stages(planner)
        planes = {plane for this in planner.rounds for plane in this.wave.planes}
        visits = sum(len(turn.planes) for this in planner.rounds for turn in this.wave.turns)
        row |= {
            "planes": len(planes),
            "visits_of_a_plane": round(visits / len(planes), 2),
            "gigabytes": round(sum(planner.plane_bytes(axis) for axis, _ in planes) / 1e9, 2),
        }
        row[speed] = {
            f"{workers}_workers": compared(planner, workers, 1e6 * options.bandwidth) for workers in options.workers
        }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
