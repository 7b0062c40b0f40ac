"""Scores of template matching by pytme. It needs numpy and pytme alone, so an environment of pytme's own runs it.

    python tests/benchmarks/template_scores.py INPUTS.npz --angle 15 --out OUT.npy [--part 0/4] [--jobs 2]
        [--first 6 --each]

INPUTS.npz has `tomogram` (z, y, x), `density` and `mask` of the template, and `passed`, what the microscope passes of
each frequency. OUT.npy gets the largest score of each voxel over one of equal parts of the orientations, or over the
first of these. Prints one JSON line: orientations of this part and of all, seconds of matching, the mean square of all
correlations, and the memory of the largest process; with `--each` also the seconds from one orientation to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def orientations(angle: float, part: tuple[int, int] = (0, 1)) -> NDArray[np.float64]:
    """(n, 3, 3) rotations of pytme's set nearest to `angle` degrees; of equal parts, part[0] of part[1]."""
    from tme.rotations import get_rotation_matrices

    rotations: NDArray[np.float64] = np.asarray(get_rotation_matrices(angle))
    return rotations[part[0] :: part[1]]


def best_scores(
    tomogram: Float32,
    density: Float32,
    mask: Float32,
    passed: Float32,
    rotations: NDArray[np.float64],
    jobs: int,
    times: Path | None = None,
) -> tuple[Float32, float]:
    """(z, y, x) the largest score of each voxel over all rotations, and the mean square of all scores.

    Scores are normalized correlations under a spherical mask. Each orientation adds a line with the time when it is
    done to `times`.
    """
    from tme.analyzer import MaxScoreOverRotations
    from tme.filters.compose import ComposableFilter, Compose
    from tme.matching_data import MatchingData
    from tme.matching_exhaustive import MATCHING_EXHAUSTIVE_REGISTER, match_exhaustive

    class Microscope(ComposableFilter):  # type: ignore[misc]
        def _evaluate(self, **_: Any) -> dict[str, Any]:
            return {"data": passed.copy(), "shape": passed.shape}

    class Timed(MaxScoreOverRotations):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            state = super().__call__(*args, **kwargs)
            if times is not None:
                with times.open("a") as file:
                    file.write(f"{time.time()}\n")
            return state

    data = MatchingData(target=tomogram, template=density, template_mask=mask)
    data.template_filter = Compose((Microscope(),))
    data.rotations = rotations
    setup, score = MATCHING_EXHAUSTIVE_REGISTER["FLCSphericalMask"]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        result = match_exhaustive(
            matching_data=data,
            matching_score=score,
            matching_setup=setup,
            callback_class=MaxScoreOverRotations if times is None else Timed,
            job_schedule=(1, jobs),
            pad_target_edges=True,
        )
    scores: Float32 = np.asarray(result[0], dtype=np.float32)
    return scores, float(np.asarray(result[4]).reshape(()))


def seconds_each(times: list[float], jobs: int) -> float:
    """Seconds from one orientation to the next on all processes together, once each has done its first."""
    done = sorted(times)[jobs - 1 :]
    return (done[-1] - done[0]) / (len(done) - 1)


def part_of(text: str) -> tuple[int, int]:
    """`0/4` as (0, 4)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a part as 0/4, the first of four")
    return int(index), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--angle", type=float, required=True, help="degrees between orientations")
    parser.add_argument(
        "--part", type=part_of, default=(0, 1), help="which of equal parts, 0/4 being the first of four"
    )
    parser.add_argument("--first", type=int, help="of the part, only as many orientations")
    parser.add_argument("--each", action="store_true", help="time an orientation by itself, without what comes first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with np.load(options.inputs) as file:
        inputs = {name: file[name] for name in ("tomogram", "density", "mask", "passed")}
    rotations = orientations(options.angle, options.part)[: options.first]
    times = options.out.with_suffix(".times") if options.each else None
    start = time.perf_counter()
    scores, square = best_scores(**inputs, rotations=rotations, jobs=options.jobs, times=times)
    seconds = time.perf_counter() - start
    np.save(options.out, scores)
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    row = {"orientations": len(rotations), "all": len(orientations(options.angle)), "seconds": round(seconds, 2)}
    row |= {"mean_square": square}
    if times is not None:
        row["each"] = round(seconds_each([float(line) for line in times.read_text().split()], options.jobs), 3)
        times.unlink()
    print(json.dumps(row | {"peak": 1024 * max(resource.getrusage(w).ru_maxrss for w in who)}))


if __name__ == "__main__":
    main()
