"""Template matching by pytme on the tomograms of `clicks.py`: what a user would take instead of a click.

    python tests/benchmarks/template_matching.py --work FOLDER [--conditions NAME …] [--split held-out] [--seeds 2]
        [--shape 96,256,256] [--angle 20] [--out FILE] [--jobs 1]

The template is the exact density of the kind, with the contrast transfer and the missing wedge of the tomogram, in
orientations `--angle` degrees apart; the score is the normalized correlation under a spherical mask. Its best maxima,
four times as many as there are particles and no two nearer than half a diameter, are compared with the truth. F1 is at
the best cut, which a user does not know; AP goes over all cuts. One JSON line for each kind and tomogram is appended
to FILE (FOLDER/templates.jsonl), and what is in it is not run again. `clicks.py --report` prints these lines beside its
own.

pytme is not among what this project needs: install it in an environment of its own that has `cryosam_dask`, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
from click_conditions import CONDITIONS, SHAPE, conditions_of, shape_of
from click_report import TEMPLATES, append_row, read_rows
from click_truth import Case, Row, case
from numpy.typing import NDArray
from scipy import fft, ndimage
from template_scores import best_scores, orientations

from cryosam_dask.errors import CryosamError, InputError, SettingsError
from cryosam_dask.evaluate import evaluate_picks
from cryosam_dask.simulate import SimulationSettings, Species
from cryosam_dask.simulate.imaging import contrast_transfer
from cryosam_dask.simulate.shapes import template
from cryosam_dask.types import Float32

FRINGES_NM = 6.0  # room around the template for what the contrast transfer spreads
MAXIMA = 4  # times as many as there are particles


def microscope(side: int, settings: SimulationSettings) -> Float32:
    """(side, side, side) what the microscope passes of each frequency, the zero frequency first: the contrast transfer,
    and nothing outside of the tilt range."""
    voxel = settings.voxel_size / 10
    fz, fy, fx = np.meshgrid(*3 * [fft.fftfreq(side, voxel)], indexing="ij")
    angle = np.radians(settings.tilt_axis)
    across = fx * np.cos(angle) - fy * np.sin(angle)
    # the plane of a tilt t has fz cos t = f sin t, f being the frequency across the axis
    tilt = np.degrees(np.arctan2(np.where(across < 0, -fz, fz), np.abs(across)))
    low, high = settings.tilt_range
    seen = ((tilt >= low) & (tilt <= high)) | ((across == 0) & (fz == 0))
    passed: Float32 = contrast_transfer(np.sqrt(fz**2 + fy**2 + fx**2).astype(np.float32), settings) * seen
    return passed.astype(np.float32)


def template_of(species: Species, settings: SimulationSettings) -> tuple[Float32, Float32]:
    """The density of a kind as the tomogram shows it, without wedge and contrast transfer, and the spherical mask."""
    model = template(species, settings.voxel_size)
    room = round(FRINGES_NM * 10 / settings.voxel_size)
    density = np.pad(model.density, room)
    axes = np.ogrid[tuple(slice(0, n) for n in density.shape)]
    squared = sum((a - (n - 1) / 2) ** 2 for a, n in zip(axes, density.shape, strict=True))
    mask = (np.sqrt(squared) <= model.radius + 1).astype(np.float32)
    return density * np.float32(1 if settings.contrast == "bright" else -1), mask


def maxima(scores: Float32, distance: float, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The `count` best local maxima (n, 3), no two of them nearer than `distance` voxels, and their scores (n,)."""
    side = max(3, 2 * int(distance / np.sqrt(3)) + 1)  # a box inside the ball
    peaks = np.argwhere(scores == ndimage.maximum_filter(scores, side))
    values = scores[tuple(peaks.T)]
    kept: list[int] = []
    for i in np.argsort(-values, kind="stable").tolist():
        if all(((peaks[i] - peaks[j]) ** 2).sum() >= distance**2 for j in kept):
            kept.append(i)
            if len(kept) == count:
                break
    return peaks[kept].astype(np.float64).reshape(-1, 3), values[kept].astype(np.float64)


def figures(tomogram: Case, kind: str, angle: float, jobs: int) -> Row:
    """Matches one kind in one tomogram."""
    species = next(s for s in tomogram.settings.species if s.name == kind)
    with mrcfile.open(tomogram.tomogram) as file:
        volume = np.array(file.data, dtype=np.float32)
    density, mask = template_of(species, tomogram.settings)
    start = time.perf_counter()
    passed = microscope(density.shape[0], tomogram.settings)
    scores, _ = best_scores(volume, density, mask, passed, orientations(angle), jobs)
    seconds, centres, radius = time.perf_counter() - start, tomogram.centres(kind), tomogram.radius(kind)
    places, values = maxima(scores, radius, MAXIMA * len(centres))
    result = evaluate_picks(places, values, centres, radius)
    best = next((p for p in result.curve if p.threshold == result.best_threshold), None)
    return {
        "f1": result.best_f1,
        "precision": best.precision if best else 0.0,
        "recall": best.recall if best else 0.0,
        "average_precision": result.average_precision,
        "picks": int((values >= best.threshold).sum()) if best else 0,
        "truth": len(centres),
        "seconds": round(seconds, 1),
    }


def _run(options: argparse.Namespace) -> None:
    try:
        import tme  # noqa: F401
    except ImportError:
        raise InputError("pytme is not installed here: pip install pytme") from None
    shape, out = shape_of(options.shape), options.out or options.work / "templates.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    keys = ("condition", "split", "seed", "shape", "kind", "angle")
    done = {json.dumps([row[k] for k in keys]) for row in read_rows(out)}
    for index in range(options.seeds):
        for name in conditions_of(options.conditions):
            condition = CONDITIONS[name]
            settings = condition.settings(options.split, index, shape)
            about: Row = {"condition": name, "split": options.split, "seed": settings.seed, "shape": list(shape)}
            about |= {"models": TEMPLATES, "set": [], "click": "template", "receiver": None, "angle": options.angle}
            for kind in [] if condition.structure or condition.absent else condition.kinds(settings):
                row = about | {"kind": kind}
                if json.dumps([row[k] for k in keys]) in done:
                    continue
                try:
                    tomogram = case(options.work, name, settings)
                except SettingsError as error:
                    print(f"{name}, seed {settings.seed}, is left out: {error}", file=sys.stderr)
                    break
                row |= figures(tomogram, kind, options.angle, options.jobs)
                append_row(out, row)
                print(f"{name}, {kind}: best F1 {row['f1']:.2f}, AP {row['average_precision']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("click-benchmark"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--conditions", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--split", choices=["tune", "held-out"], default="tune")
    parser.add_argument("--seeds", type=int, default=1, help="tomograms of each condition")
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)))
    parser.add_argument("--angle", type=float, default=20.0, help="degrees between orientations")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    try:
        _run(parser.parse_args())
    except CryosamError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
