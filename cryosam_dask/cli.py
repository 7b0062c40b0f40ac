"""The `cryosam` command. It parses, calls the same functions that Python users call, and prints; nothing else."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask import __version__
from cryosam_dask.errors import CryosamError, InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryosam_dask.executors.base import Executor
    from cryosam_dask.pipeline import Driver
    from cryosam_dask.settings import Settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One click on a particle in a cryo-ET tomogram → every particle of its kind, as masks and picks.",
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN.zarr", help="A run's store, a folder or a URL.")]
TomogramArgument = Annotated[str, typer.Argument(metavar="TOMO", help="MRC file, or OME-Zarr as a folder or URL.")]
OutOption = Annotated[str, typer.Option("--out", metavar="RUN.zarr", help="The store to make or to continue.")]
PointOption = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="Z,Y,X", help="A voxel on a particle, from 0. May be given again: one kind only."),
]
PointsOption = Annotated[
    Path | None, typer.Option("--points", metavar="FILE", help="More points, from a CSV (z,y,x) or STAR file.")
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the query; one store can hold several.")]
WhichOption = Annotated[str | None, typer.Option("--name", help="Which query; not needed where there is one.")]
ModelsOption = Annotated[
    str,
    typer.Option("--models", help="'paper', 'builtin' (no download, no GPU) or ENCODER+SEGMENTER, each also =PATH."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting, e.g. match.tau_sim=0.4."),
]
CountOption = Annotated[str | None, typer.Option("--count", "-k", metavar="K|auto", help="Prompts to keep (K).")]
RatiosOption = Annotated[
    str | None, typer.Option("--ratios", metavar="R,R,…", help="Matching ratios, coarse to fine; 1 is naive matching.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Local worker processes; 0: none, all in this process.")
]
SchedulerOption = Annotated[str | None, typer.Option("--scheduler", metavar="ADDRESS", help="A Dask scheduler.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what was made with other settings.")]
VoxelOption = Annotated[
    str | None, typer.Option("--voxel-size", metavar="Å", help="Instead of the file's: one number, or Z,Y,X.")
]
UnsignedOption = Annotated[
    bool | None, typer.Option("--unsigned/--signed", help="How to read 8-bit MRC voxels, instead of by the header.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: errors that the user can act on are one line, with their exit code."""
    try:
        app(standalone_mode=False)
    except CryosamError as error:
        print(f"cryosam: error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("cryosam: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"cryosam: error: {where}{os.strerror(error.errno)}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


@app.callback(invoke_without_command=True)
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each stage.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if verbose:
        # on our own logger: the root belongs to whoever embeds us, and Dask's own lines are not for users
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("cryosam_dask").addHandler(handler)
        logging.getLogger("cryosam_dask").setLevel(logging.INFO)
    if version:
        typer.echo(f"cryosam_dask {__version__}")
        raise typer.Exit


@app.command()
def run(
    tomogram: TomogramArgument,
    out: OutOption,
    point: PointOption = None,
    points: PointsOption = None,
    name: NameOption = "particle",
    models: ModelsOption = "paper",
    count: CountOption = None,
    ratios: RatiosOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    voxel_size: VoxelOption = None,
    unsigned: UnsignedOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Do the whole job: ingest, features, query, match, segment."""
    from cryosam_dask import pipeline
    from cryosam_dask.executors.progress import Progress

    driver = pipeline.run(
        tomogram,
        _points(point, points),
        out,
        name=name,
        models=models,
        settings=_settings(models, set_, count, ratios),
        workers=workers,
        scheduler=scheduler,
        device=device,
        voxel_size=_voxel_size(voxel_size),
        unsigned=unsigned,
        overwrite=overwrite,
        progress=Progress(),
    )
    _report(driver, name)


@app.command()
def ingest(
    tomogram: TomogramArgument,
    out: OutOption,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    voxel_size: VoxelOption = None,
    unsigned: UnsignedOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Copy a tomogram into a store, chunked, with its resolution levels and statistics."""
    with _driver(out, workers, scheduler, "cpu", overwrite, uses_torch=False) as driver:
        driver.ingest(tomogram, voxel_size=_voxel_size(voxel_size), unsigned=unsigned)
    _say(driver)
    typer.echo(f"{out}: ingested {tomogram}")


@app.command()
def features(
    run: RunArgument,
    models: ModelsOption = "paper",
    set_: SetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Encode the slices of an ingested tomogram."""
    settings = _settings(models, set_)
    with _driver(run, workers, scheduler, device, overwrite, settings) as driver:
        driver.features(settings)
    typer.echo(f"{run}: features of {settings.features.encoder}")


@app.command()
def query(
    run: RunArgument,
    point: PointOption = None,
    points: PointsOption = None,
    name: NameOption = "particle",
    models: ModelsOption = "paper",
    count: CountOption = None,
    ratios: RatiosOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Segment the prompted particle(s) and pool their features into a query.

    The settings given here also hold for this query's `match` and `segment`.
    """
    settings = _settings(models, set_, count, ratios)
    prompts = _points(point, points)
    with _driver(run, workers, scheduler, device, overwrite, settings) as driver:
        driver.query(name, prompts, settings)
    _say(driver)
    typer.echo(f"{run}: query {name}")


@app.command()
def match(
    run: RunArgument,
    name: NameOption = "particle",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the places whose features are like the query's."""
    with _driver(run, workers, scheduler, "cpu", overwrite, uses_torch=False) as driver:
        driver.match(name)
    _say(driver)
    typer.echo(f"{run}: matched {name}")


@app.command()
def segment(
    run: RunArgument,
    name: NameOption = "particle",
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Segment every place that was found; write labels and picks."""
    with _driver(run, workers, scheduler, device, overwrite) as driver:
        driver.segment(name)
    _report(driver, name)


@app.command()
def export(
    run: RunArgument,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="picks.csv, picks.star, labels.mrc…")],
    name: WhichOption = None,
    what: Annotated[str | None, typer.Option("--what", help="picks, labels or semantic; else by the suffix.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="csv, star, relion4, relion5, mrc; else by the suffix.")
    ] = None,
) -> None:
    """Write picks or labels to a file."""
    from cryosam_dask import outputs

    if what not in (None, "picks", "labels", "semantic"):
        raise InputError(f"--what {what}: expected picks, labels or semantic")
    outputs.export(run, path, name=name, what=what, format=format_)  # type: ignore[arg-type]
    typer.echo(f"{path}: written")


@app.command()
def evaluate(
    run: RunArgument,
    truth: Annotated[Path, typer.Option("--truth", metavar="FILE", help="True positions, CSV (z,y,x) or STAR.")],
    radius: Annotated[float, typer.Option("--radius", metavar="VOXELS", help="Largest distance of a match.")],
    name: WhichOption = None,
    truth_labels: Annotated[
        Path | None, typer.Option("--truth-labels", metavar="MRC", help="True instance labels, for mask IoU.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare picks (and masks) with a truth: precision, recall, F1, average precision."""
    from cryosam_dask import outputs

    figures = outputs.evaluate(run, truth, radius, name=name, truth_labels=truth_labels)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for key, value in figures.items():
        if isinstance(value, int | float):
            typer.echo(f"{key.replace('_', ' '):20} {value:.3f}" if isinstance(value, float) else f"{key:20} {value}")


@app.command()
def info(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what a run is of, how far it is, and what was found."""
    from cryosam_dask import outputs

    described = outputs.describe(run)
    typer.echo(json.dumps(described, indent=2) if as_json else outputs.describe_in_words(described))


@app.command()
def plan(
    tomogram: TomogramArgument,
    models: ModelsOption = "paper",
    count: CountOption = None,
    ratios: RatiosOption = None,
    set_: SetOption = None,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar="N,N,…", help="Give the time on so many workers; else 1 to 256.")
    ] = None,
    speed: Annotated[
        str,
        typer.Option("--speed", metavar="NAME|TFLOP/s", help="Of a worker: cpu (2 threads), a100, h100, or a number."),
    ] = "cpu",
    diameter: Annotated[float, typer.Option("--diameter", metavar="Å", help="Of the particles.")] = 250.0,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", metavar="MB/s", help="Of the storage that all workers share.")
    ] = None,
    driver: Annotated[float, typer.Option("--driver", metavar="MS", help="Milliseconds of the driver a unit.")] = 2.0,
    voxel_size: VoxelOption = None,
    unsigned: UnsignedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take, before anything runs: units, memory, disk, planes to embed, time on N workers.

    It reads the tomogram's header only; no weights, no GPU and no store are needed.
    """
    from cryosam_dask import planning
    from cryosam_dask.io.source import open_tomogram

    options = planning.Options(
        **({} if workers is None else {"workers": planning.worker_counts(workers)}),
        machine=planning.machine(speed),
        diameter=diameter,
        driver_seconds=driver / 1000,
        bandwidth=float("inf") if bandwidth is None else bandwidth * 1e6,
    )
    source = open_tomogram(tomogram, voxel_size=_voxel_size(voxel_size), unsigned=unsigned)
    made = planning.plan_run(source, _settings(models, set_, count, ratios), options)
    typer.echo(json.dumps(planning.to_json(made)) if as_json else planning.in_words(made))


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(metavar="OUT.mrc", help="The tomogram to write.")],
    truth: Annotated[Path | None, typer.Option("--truth", metavar="CSV", help="Write the positions here.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", metavar="MRC", help="Write instance labels here.")] = None,
    species: Annotated[
        str | None, typer.Option("--species", help="Only these particles in --truth and --labels; else all.")
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="default, large, ribosome, proteasome or tetramer.")
    ] = "default",
    snr: Annotated[float, typer.Option("--snr", help="Variance of signal over variance of noise.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    shape: Annotated[str | None, typer.Option("--shape", metavar="Z,Y,X", help="Voxels.")] = None,
    contrast: Annotated[str, typer.Option("--contrast", help="Particles bright or dark.")] = "bright",
    membranes: Annotated[int | None, typer.Option("--membranes", help="Number of vesicles.")] = None,
    count: Annotated[int | None, typer.Option("--count", help="Particles of the species, instead of its own.")] = None,
) -> None:
    """Simulate a tomogram with known particles, and say where to click."""
    from cryosam_dask import demo

    changes: dict[str, Any] = {"snr": snr, "seed": seed, "contrast": contrast}
    if shape is not None:
        changes["shape"] = tuple(int(v) for v in _numbers(shape, "--shape"))
    if membranes is not None:
        changes["membranes"] = membranes
    written = demo.write_simulation(path, preset, changes, count=count, truth=truth, labels=labels, species=species)
    typer.echo(f"{path}: simulated; click e.g. on a {written.species}: --point {written.click}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("cryosam-demo"),
    seed: Annotated[int, typer.Option("--seed")] = 0,
    snr: Annotated[float, typer.Option("--snr")] = 1.0,
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


@contextmanager
def _driver(
    out: str,
    workers: int | None,
    scheduler: str | None,
    device: str,
    overwrite: bool,
    settings: Settings | None = None,
    *,
    uses_torch: bool = True,
) -> Iterator[Driver]:
    from cryosam_dask.executors.progress import Progress
    from cryosam_dask.pipeline import Driver, uses_torch_of

    torch = uses_torch if settings is None else uses_torch_of(settings)
    with _executor(workers, scheduler, device, torch) as executor:
        yield Driver(out, executor, Progress(), overwrite=overwrite)


def _executor(workers: int | None, scheduler: str | None, device: str, uses_torch: bool) -> Executor:
    from cryosam_dask.executors.local import make_executor

    return make_executor(workers, scheduler, device, uses_torch=uses_torch)


def _settings(models: str, changes: list[str] | None, count: str | None = None, ratios: str | None = None) -> Settings:
    from cryosam_dask.pipeline import settings_for

    values: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change}: expected SECTION.NAME=VALUE, e.g. match.tau_sim=0.4")
        values[key.strip()] = _value(value.strip())
    if count is not None:
        values["match.count"] = _value(count)
    if ratios is not None:
        values["match.ratios"] = [int(v) for v in _numbers(ratios, "--ratios")]
    return settings_for(models, values)


def _value(text: str) -> Any:
    """JSON where it is JSON; `16,8,4` a list; else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if "," in text:
        return [_value(part) for part in text.split(",") if part.strip()]
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers separated by commas") from None


def _points(point: list[str] | None, file: Path | None) -> list[list[float]]:
    found = []
    for text in point or []:
        values = _numbers(text, "--point")
        if len(values) != 3:
            raise InputError(f"--point {text}: expected three numbers Z,Y,X, got {len(values)}")
        found.append(values)
    if file is not None:
        from cryosam_dask.io.picks import read_points

        found += read_points(file)[["z", "y", "x"]].to_numpy().tolist()
    if not found:
        raise InputError("no point: give --point Z,Y,X on a particle (zero-based voxels), or --points FILE")
    return found


def _voxel_size(text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    values = _numbers(text, "--voxel-size")
    return values[0] if len(values) == 1 else values


def _say(driver: Driver) -> None:
    """What the user should know, beside the results."""
    for note in driver.notes:
        print(note, file=sys.stderr)  # noqa: T201


def _report(driver: Driver, name: str) -> None:
    from cryosam_dask.store import picks
    from cryosam_dask.store.run_store import RunStore

    _say(driver)
    count = len(picks.read(RunStore.open(driver.url), name))
    typer.echo(f"{driver.url}: {count} instances of {name!r} (labels/{name}, picks/{name})")
