"""Break whole runs at random places, many times, and see what is lost.

    python tests/campaigns/workers.py [TOMOGRAM] --count 100

Each case runs the built-in models on local workers with one fault: a worker's process killed, stopped or hung, or a
unit that raises, in a random stage, at a random run of its units, before the work, after the data or after the mark.
`--count` cases are drawn with `--seed`. The run must end with the bytes of a run that nothing has disturbed, which is
made first, and with all marks. A TOMOGRAM must have a particle at voxel (20, 20, 20); without, one of four balls in
noise is made.

Prints a line for each case that lost anything, and a table in the end: fault, times injected, cases with a difference.
Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from injection import Fault, Spec

KINDS = ("kill", "raise", "hang", "stop")
MOMENTS = ("before", "data", "mark")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def balls(path: Path) -> Path:
    """A tomogram of 37 × 62 × 90 voxels with four balls, the first at (20, 20, 20)."""
    import mrcfile
    import numpy as np

    z, y, x = np.indices((37, 62, 90))
    values = np.random.default_rng(0).normal(size=z.shape)
    for a, b, c in ((20, 20, 20), (18, 44, 24), (22, 22, 66), (14, 46, 70)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 49)
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


def case(
    client: Any, tomogram: Path, expected: Path, folder: Path, fault: Fault, timeout: float
) -> tuple[int, list[str]]:
    """Run once with a fault; how often it happened, and what was lost."""
    from whole_run import differences, unmarked, whole_run

    from cryosam_dask.errors import CryosamError
    from cryosam_dask.executors import DaskExecutor, UserClient

    spec = Spec.new(folder / "faults", fault)
    out = folder / "run.zarr"
    lost = []
    try:
        with spec.on_workers(client), DaskExecutor(UserClient(client), "cpu", unit_timeout=timeout) as executor:
            whole_run(tomogram, out, executor)
    except CryosamError as error:
        lost.append(f"{type(error).__name__}: {error}")
    else:
        lost += differences(out, expected) + [f"marks of {name}" for name in unmarked(out)]
    return len(spec.fired()), lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tomogram", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unit-timeout", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    given = parser.parse_args()

    from whole_run import STAGES, reference  # not by workers, which load this file again

    from cryosam_dask.executors.local import close_local, local_client

    random_ = random.Random(given.seed)
    injected: Counter[str] = Counter()
    harmed: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    tomogram = given.tomogram or balls(folder / "balls.mrc")
    expected = reference(tomogram, folder / "expected.zarr")
    with Spec.new(folder / "counting").here() as counting:
        reference(tomogram, folder / "counted.zarr")
    runs = {stage: len(counting.runs(stage)) for stage in STAGES}
    client = local_client(given.workers)
    start = time.monotonic()
    try:
        for number in range(given.count):
            stage, kind = random_.choice(STAGES), given.kinds[number % len(given.kinds)]
            moment = random_.choice(MOMENTS if kind != "raise" else MOMENTS[:2])
            fault = Fault(stage, random_.randint(1, max(1, runs[stage])), moment, kind, settle=random_.choice((0, 0.1)))  # type: ignore[arg-type]
            here = folder / f"case{number}"
            times, lost = case(client, tomogram, expected, here, fault, given.unit_timeout)
            injected[kind] += times
            harmed[kind] += bool(lost)
            if lost or not times:
                say(f"case {number}: {fault}: {'; '.join(lost[:5]) or 'did not happen'}")
            shutil.rmtree(here)
    finally:
        close_local(client)
        shutil.rmtree(folder)
    say(f"{given.count} runs in {time.monotonic() - start:.0f} s, seed {given.seed}")
    say(f"{'fault':8}{'injected':>10}{'runs that lost anything':>26}")
    for kind in given.kinds:
        say(f"{kind:8}{injected[kind]:10}{harmed[kind]:26}")
    return int(any(harmed.values()))


if __name__ == "__main__":
    sys.exit(main())
