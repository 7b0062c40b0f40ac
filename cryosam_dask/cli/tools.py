"""Commands that plan a run, simulate a tomogram, and demonstrate the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cryosam_dask.cli.app import RUNS, TRIALS, app, examples
from cryosam_dask.cli.options import (
    Choice,
    JsonOption,
    Reading,
    TomogramArgument,
    WorkersOption,
    say,
    whole_numbers,
    with_options,
)

SEED = "Another one, another tomogram."
SNR = "Variance of signal over variance of noise."


@app.command(
    rich_help_panel=RUNS,
    epilog=examples(
        "cryosam plan tomo.mrc --models builtin",
        "cryosam plan tomo.mrc --models paper --workers 1,8 --speed a100 --bandwidth 1000",
    ),
)
@with_options
def plan(
    tomogram: TomogramArgument,
    choice: Choice,
    reading: Reading,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar="N,N,…", help="Give the time on so many workers; else 1 to 256.")
    ] = None,
    speed: Annotated[
        str,
        typer.Option("--speed", metavar="NAME|TFLOP/s", help="Of a worker: cpu (2 threads), a100, h100, or TFLOP/s."),
    ] = "cpu",
    diameter: Annotated[float, typer.Option("--diameter", metavar="Å", help="Of the particles.")] = 250.0,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", metavar="MB/s", help="Of the storage that all workers share, else no limit."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", metavar="RUN.zarr", help="Go by this run: its models and settings, and what its units took."
        ),
    ] = None,
    driver: Annotated[float, typer.Option("--driver", metavar="MS", help="Milliseconds of the driver a unit.")] = 2.0,
    kinds: Annotated[int, typer.Option("--kinds", metavar="N", help="Kinds that are clicked and told apart.")] = 1,
    negatives: Annotated[int, typer.Option("--negatives", metavar="N", help="Negative points (--not).")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a run will take: units, memory, disk, planes to embed, time on N workers. Nothing is run.

    Only the tomogram's header is read. No weights, GPU or store are needed.
    """
    from cryosam_dask import planning
    from cryosam_dask.io.source import open_tomogram

    worker = planning.machine(speed)
    options = planning.Options(
        workers=planning.WORKERS if workers is None else planning.worker_counts(workers),
        machine=worker,
        diameter=diameter,
        driver_seconds=driver / 1000,
        bandwidth=float("inf") if bandwidth is None else bandwidth * 1e6,
        like=None if like is None else planning.measured(like, worker),
        kinds=kinds,
        negatives=negatives,
    )
    source = open_tomogram(tomogram, **reading.options())
    say(list(source.notes))
    settings = choice.settings(None if options.like is None else options.like.settings)
    estimate = planning.plan_run(source, settings, options)
    typer.echo(json.dumps(planning.to_json(estimate)) if as_json else planning.in_words(estimate))


@app.command(
    rich_help_panel=TRIALS,
    epilog=examples(
        "cryosam simulate tomo.mrc --truth truth.csv",
        "cryosam simulate tomo.mrc --shape 100,260,210 --voxel-size 13.5 --species ribosome --truth truth.csv",
    ),
)
def simulate(
    path: Annotated[Path, typer.Argument(metavar="OUT.mrc", help="The tomogram to write.")],
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="CSV", help="Write the positions here, in voxels.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", metavar="MRC", help="Write instance labels here.")] = None,
    species: Annotated[
        str | None, typer.Option("--species", help="Only these particles in --truth and --labels; else all.")
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="default, large, ribosome, proteasome or tetramer.")
    ] = "default",
    snr: Annotated[float, typer.Option("--snr", help=SNR)] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help=SEED)] = 0,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="Z,Y,X", help="Voxels, else 96,192,192, or 128,256,256 of 'large'.")
    ] = None,
    voxel_size: Annotated[float | None, typer.Option("--voxel-size", metavar="Å", help="Å, else 10.")] = None,
    contrast: Annotated[str, typer.Option("--contrast", help="Particles bright or dark.")] = "bright",
    membranes: Annotated[int | None, typer.Option("--membranes", help="Number of vesicles, else 2.")] = None,
    count: Annotated[int | None, typer.Option("--count", help="Particles of the species, instead of its own.")] = None,
) -> None:
    """Simulate a tomogram with known particles, and say where to click."""
    from cryosam_dask import demo

    changes: dict[str, Any] = {"snr": snr, "seed": seed, "contrast": contrast}
    if shape is not None:
        changes["shape"] = tuple(whole_numbers(shape, "--shape"))
    if voxel_size is not None:
        changes["voxel_size"] = voxel_size
    if membranes is not None:
        changes["membranes"] = membranes
    written = demo.write_simulation(path, preset, changes, count=count, truth=truth, labels=labels, species=species)
    typer.echo(f"{path}: simulated; click e.g. on a {written.species}: --point {written.click}")


@app.command(rich_help_panel=TRIALS)
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("cryosam-demo"),
    seed: Annotated[int, typer.Option("--seed", help=SEED)] = 0,
    snr: Annotated[float, typer.Option("--snr", help=SNR)] = 1.0,
    species: Annotated[str, typer.Option("--species", help="ribosome, proteasome or tetramer.")] = "ribosome",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate, run with the built-in models, evaluate, and draw a picture. No download, no GPU."""
    from cryosam_dask import demo as script
    from cryosam_dask.executors.progress import Progress

    figures = script.demo(out, seed=seed, snr=snr, species=species, workers=workers, progress=Progress())
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(
        f"{species}: precision {figures['precision']:.3f}, recall {figures['recall']:.3f}, F1 {figures['f1']:.3f}, "
        f"average precision {figures['average_precision']:.3f}, mean mask IoU {figures['mean_iou']:.3f}"
    )
    typer.echo(f"picture {figures['picture']}, run {figures['run']}, {figures['seconds']:.0f} s")
