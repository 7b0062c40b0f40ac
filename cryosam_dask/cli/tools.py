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
    pairs,
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
        "cryosam plan tomo.mrc --models builtin --tomograms 500",
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
    tomograms: Annotated[
        int, typer.Option("--tomograms", metavar="N", help="Also give the time of so many like this one.")
    ] = 1,
    at_once: Annotated[
        int | None, typer.Option("--at-once", metavar="N", help="Of them, how many go on at once; else as `run` does.")
    ] = None,
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
        tomograms=tomograms,
        at_once=at_once,
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
        "cryosam simulate tomo.mrc --preset crowded --seed 3 --truth truth.csv --labels labels.mrc",
        "cryosam simulate tomo.mrc --preset membranes --structures membranes.mrc",
        "cryosam simulate tomo.mrc --map apoferritin=emd_11638.map --count 40 --touching 0.5 --cytosol 0.1",
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
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NAME=FILE", help="A particle's density, instead of the preset's particles."),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option("--structures", metavar="MRC", help="Write numbers of membranes, filaments, gold here."),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="default, large, ribosome, proteasome, tetramer, crowded, membranes, filaments, shapes or random.",
        ),
    ] = "default",
    snr: Annotated[float | None, typer.Option("--snr", help=SNR)] = None,
    seed: Annotated[int, typer.Option("--seed", help=SEED)] = 0,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="Z,Y,X", help="Voxels, else the preset's: 96,192,192 of 'default'.")
    ] = None,
    voxel_size: Annotated[float | None, typer.Option("--voxel-size", metavar="Å", help="Å, else the preset's.")] = None,
    contrast: Annotated[str | None, typer.Option("--contrast", help="Particles bright or dark.")] = None,
    membranes: Annotated[int | None, typer.Option("--membranes", help="Number of round vesicles.")] = None,
    touching: Annotated[float | None, typer.Option("--touching", help="Share of particles that touch another.")] = None,
    cytosol: Annotated[
        float | None, typer.Option("--cytosol", help="Share of the volume filled with globules of 4 to 9 nm.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="Particles of the species, instead of its own.")] = None,
) -> None:
    """Simulate a tomogram with known particles, and say where to click.

    Presets: default has ribosomes, proteasomes and tetramers among small globules, with two vesicles; large the same in
    128 × 256 × 256 voxels; ribosome, proteasome and tetramer one of them alone; crowded has touching particles in a
    cytosol; membranes has vesicles, a sheet and a double membrane; filaments has microtubules, gold and uneven ice,
    too; shapes has four random shapes; random draws everything from the seed. Options change what a preset sets.
    """
    from cryosam_dask import demo

    given = {
        "snr": snr,
        "contrast": contrast,
        "shape": None if shape is None else tuple(whole_numbers(shape, "--shape")),
        "voxel_size": voxel_size,
        "membranes": membranes,
        "touching": touching,
        "cytosol": cytosol,
    }
    changes: dict[str, Any] = {"seed": seed} | {name: value for name, value in given.items() if value is not None}
    files = pairs(maps or [], "--map", "NAME=FILE")
    written = demo.write_simulation(
        path, preset, changes,
        count=count, truth=truth, labels=labels, species=species, structures=structures,
        maps={name: Path(file) for name, file in files.items()},
    )  # fmt: skip
    if structures is not None:
        numbered = ", ".join(f"{i} {kind}" for i, kind in enumerate(written.structures, 1))
        typer.echo(f"structures: {numbered}")
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
