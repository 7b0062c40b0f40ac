"""One click beside template matching: both on the same simulated tomogram and the same cores, with F1 and time of both.

    python tests/benchmarks/beside.py --work FOLDER --tme-python tme/bin/python [--condition phantoms-crowded]
        [--kind large] [--shape 96,256,256] [--angle 15] [--parts 1] [--large 200,928,960] [--for SECONDS]

Ours is `cryosam run --point` with the built-in models in a fresh folder, from the click in the middle of a particle to
the picks; pytme (`template_scores.py`) has the particle's exact density, the contrast transfer and the missing wedge,
which a user rarely has. Ours is judged at its own cut, pytme at the one that it computes for five false positives (its
documentation's example), at the true number of particles, and both at the best cut, which nobody knows, and by AP over
all cuts. With `--large` pytme is timed on a few orientations of noise of that shape, and the time of all is projected.

Prints one JSON line. Each step (ours, each part of the orientations, the large one) is kept in FOLDER, and is not run
again: kill it anywhere, or let it begin nothing after `--for` seconds, and the same command goes on. With several parts
pytme starts several times; its starts beyond the first are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from click_conditions import CONDITIONS, SHAPE, conditions_of, shape_of
from click_truth import Case, Row, case, clicks_of, figures
from numpy.typing import NDArray
from scipy import stats
from template_matching import maxima, microscope, template_of

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.evaluate import evaluate_picks
from cryosam_dask.store import journal
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Float32, Shape3

CRYOSAM = "import sys; from cryosam_dask.cli import main; sys.exit(main())"
PEAKS = 1000  # that pytme's postprocessing looks for, unless it is told otherwise
FALSE_POSITIVES = 5  # in the example of pytme's documentation
FEW = 4  # orientations for each process of the large one


@dataclass(frozen=True)
class Duel:
    """What is compared, and where its steps are kept.

    folder : of this tomogram and kind; angle : degrees between orientations; parts : of these
    jobs : processes of pytme
    """

    tomogram: Case
    kind: str
    folder: Path
    tme_python: str
    angle: float
    parts: int
    jobs: int

    @property
    def run(self) -> Path:
        return self.folder / "run.zarr"

    def scores(self, part: int) -> Path:
        return self.folder / f"scores-{self.angle:g}-{part}-of-{self.parts}.npy"


def require_pytme(python: str) -> str:
    """The version of pytme that this Python has; InputError if there is none."""
    command = [python, "-c", "import tme, importlib.metadata as m; print(m.version('pytme'))"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise InputError(
            f"pytme: {python} cannot import it; expected a Python that has pytme (python3 -m venv tme && "
            "tme/bin/pip install pytme), as --tme-python tme/bin/python"
        ) from None


def timed(command: list[str]) -> tuple[Row, str]:
    """What a command took, seconds and processor seconds with those of its processes, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{' '.join(command[:3])} …: it ended with {done.returncode}: {last}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(seconds, 1), "processor": round(processor, 1)}, done.stdout


def kept(path: Path, step: Callable[[], Row]) -> Row:
    """What a step found, from its file if it was run before."""
    if not path.exists():
        row = step()
        path.with_suffix(".part").write_text(json.dumps(row))
        path.with_suffix(".part").rename(path)
    return dict(json.loads(path.read_text()))


def ours(duel: Duel) -> Row:
    """One click to picks in a fresh folder: time of all and of each stage, and how good the picks are."""
    shutil.rmtree(duel.run, ignore_errors=True)
    (click,) = clicks_of(duel.tomogram, duel.kind, 1)
    point = ",".join(map(str, click.point))
    command = ["run", str(duel.tomogram.tomogram), "--point", point, "--out", str(duel.run), "--name", duel.kind]
    row, _ = timed([sys.executable, "-c", CRYOSAM, *command, "--models", "builtin"])
    store = RunStore.open(duel.run)
    stages: dict[str, float] = {}
    for entry in journal.commands(store):
        for name, stage in entry["stages"].items():
            what = name.partition("/")[0]
            stages[what] = round(stages.get(what, 0.0) + stage["seconds"], 2)
    row["stages"] = stages | {"start and end": round(row["wall"] - sum(stages.values()), 2)}
    judged = figures(store, duel.kind, duel.tomogram, duel.kind)
    wanted = ("f1", "precision", "recall", "picks", "best_f1", "average_precision")
    return row | {key: round(judged[key], 3) for key in wanted}


def write_inputs(path: Path, duel: Duel, volume: Float32) -> None:
    """What `template_scores.py` reads."""
    settings = duel.tomogram.settings
    density, mask = template_of(next(s for s in settings.species if s.name == duel.kind), settings)
    np.savez(path, tomogram=volume, density=density, mask=mask, passed=microscope(density.shape[0], settings))


def match(duel: Duel, inputs: Path, out: Path, *options: str) -> Row:
    """Times `template_scores.py`."""
    command = [duel.tme_python, str(Path(__file__).with_name("template_scores.py")), str(inputs), "--out", str(out)]
    row, printed = timed([*command, "--angle", str(duel.angle), "--jobs", str(duel.jobs), *options])
    return row | json.loads(printed.splitlines()[-1])


def match_part(duel: Duel, part: int) -> Row:
    """One part of the orientations in the tomogram."""
    inputs = duel.folder / "inputs.npz"
    if part == 0 or not inputs.exists():
        with mrcfile.open(duel.tomogram.tomogram) as file:
            write_inputs(inputs, duel, np.array(file.data, dtype=np.float32))
    return match(duel, inputs, duel.scores(part), "--part", f"{part}/{duel.parts}")


def match_large(duel: Duel, shape: Shape3) -> Row:
    """Time of an orientation in noise of another shape, and of all of them as projected from it."""
    inputs, scores = duel.folder / "large.npz", duel.folder / "large.npy"
    write_inputs(inputs, duel, np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    try:
        row = match(duel, inputs, scores, "--first", str(FEW * duel.jobs), "--each")
    finally:
        inputs.unlink()
        scores.unlink(missing_ok=True)
    of = {key: row[key] for key in ("orientations", "seconds", "each", "peak")}
    return {"shape": list(shape), **of, "projected": projected(row)}


def projected(row: Row) -> float:
    """Seconds of all orientations, from those of matching with a few of them, and of one."""
    return round(float(row["seconds"] + row["each"] * (row["all"] - row["orientations"])), 1)


def expected_cut(mean_square: float, correlations: int, false_positives: float) -> float:
    """The score that so many correlations would pass if all of them were Gaussian noise.

    pytme's `postprocess --n-false-positives` takes it, after Rickgauer, Grigorieff and Denk, eLife 6, e25648 (2017).
    """
    return float(stats.norm.isf(false_positives / correlations) * np.sqrt(mean_square))


def judge(scores: Float32, cut: float, centres: NDArray[np.float64], radius: float) -> Row:
    """How good the maxima of template matching's scores are, at pytme's `cut` and at others."""
    places, values = maxima(scores, radius, PEAKS)
    every = evaluate_picks(places, values, centres, radius)
    row: Row = {"best_f1": round(every.best_f1, 3), "average_precision": round(every.average_precision, 3)}
    chosen = {"cut of pytme": values >= cut, "true number": np.arange(len(values)) < len(centres)}
    for name, these in chosen.items():
        result = evaluate_picks(places[these], values[these], centres, radius)
        of = {key: round(getattr(result, key), 3) for key in ("f1", "precision", "recall")}
        row[name] = of | {"picks": int(these.sum())}
    return row


def pytme(duel: Duel, parts: list[Row]) -> Row:
    """All parts of the orientations together."""
    every = np.load(duel.scores(0))
    for part in range(1, duel.parts):
        np.maximum(every, np.load(duel.scores(part)), out=every)
    matching, orientations = sum(p["seconds"] for p in parts), sum(p["orientations"] for p in parts)
    start = max(p["wall"] - p["seconds"] for p in parts)
    square = sum(p["mean_square"] * p["orientations"] for p in parts) / orientations
    cut = expected_cut(square, every.size * orientations, FALSE_POSITIVES)
    centres, radius = duel.tomogram.centres(duel.kind), duel.tomogram.radius(duel.kind)
    row: Row = {"wall": round(matching + start, 1), "processor": round(sum(p["processor"] for p in parts), 1)}
    row |= {"angle": duel.angle, "orientations": orientations, "jobs": duel.jobs, "parts": duel.parts}
    return row | {"peak": max(p["peak"] for p in parts)} | judge(every, cut, centres, radius)


def steps(duel: Duel, large: Shape3 | None) -> Iterator[tuple[str, Callable[[], Row]]]:
    """What is to be done, by the name of the file that keeps it."""
    yield "ours", lambda: ours(duel)
    for part in range(duel.parts):
        yield duel.scores(part).stem, lambda part=part: match_part(duel, part)  # type: ignore[misc]
    if large is not None:
        name = f"large-{'-'.join(map(str, large))}-{duel.angle:g}-{duel.jobs}"
        yield name, lambda: match_large(duel, large)


def compare(duel: Duel, large: Shape3 | None, seconds: float) -> Row | None:
    """All figures; None if there was no time for all steps."""
    begun, rows = time.perf_counter(), []
    for name, step in steps(duel, large):
        path = duel.folder / f"{name}.json"
        if not path.exists() and time.perf_counter() - begun > seconds:
            return None
        rows.append(kept(path, step))
        print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
    settings, template = duel.tomogram.settings, pytme(duel, rows[1 : 1 + duel.parts])
    about = {"kind": duel.kind, "diameter": 2 * duel.tomogram.radius(duel.kind) * settings.voxel_size / 10}
    about |= {"particles": len(duel.tomogram.centres(duel.kind)), "seed": settings.seed}
    row = {"shape": list(settings.shape), "voxel_size": settings.voxel_size, **about, "cores": os.cpu_count()}
    row |= {"ours": rows[0], "pytme": template, "ratio": round(template["wall"] / rows[0]["wall"], 2)}
    return row | ({"large": rows[-1]} if large else {})


def _run(options: argparse.Namespace) -> None:
    version = require_pytme(options.tme_python)
    (name,) = conditions_of([options.condition])
    shape, large = shape_of(options.shape), shape_of(options.large) if options.large else None
    settings = CONDITIONS[name].settings(options.split, 0, shape)
    kinds = [s.name for s in settings.species if s.count]
    kind = options.kind or kinds[0]
    if kind not in kinds:
        raise InputError(f"kind {kind!r}: expected one of {', '.join(kinds)}, which are in {name}")
    tomogram = case(options.work, name, settings)
    folder = (options.work / "beside" / f"{tomogram.folder.name}-{kind}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    duel = Duel(tomogram, kind, folder, options.tme_python, options.angle, options.parts, options.jobs)
    row = compare(duel, large, options.seconds)
    if row is None:
        print("there is more to do: the same command goes on", file=sys.stderr)
    else:
        print(json.dumps({"condition": name, "split": options.split, "version": version} | row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("click-benchmark"))
    parser.add_argument("--tme-python", default=sys.executable, metavar="PATH", help="a Python that has pytme")
    parser.add_argument("--condition", default="phantoms-crowded")
    parser.add_argument("--kind", metavar="NAME", help="of particles; else the first")
    parser.add_argument("--split", choices=["tune", "held-out"], default="held-out")
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)))
    parser.add_argument("--angle", type=float, default=15.0, help="degrees between orientations")
    parser.add_argument("--parts", type=int, default=1, help="of the orientations, each a step")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of pytme")
    parser.add_argument("--large", metavar="Z,Y,X", help="also project the time for a tomogram of this shape")
    parser.add_argument("--for", dest="seconds", type=float, default=float("inf"), help="begin no step after so long")
    try:
        _run(parser.parse_args())
    except CryosamError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
