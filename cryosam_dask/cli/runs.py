"""Commands that make a run: all stages, or one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import RUNS, app, examples
from cryosam_dask.cli.options import (
    Choice,
    NamesOption,
    OutOption,
    OverwriteOption,
    Reading,
    RunArgument,
    TomogramArgument,
    Where,
    Workers,
    driver,
    say,
    with_options,
)
from cryosam_dask.cli.prompts import Prompts, described
from cryosam_dask.errors import SettingsError

if TYPE_CHECKING:
    from cryosam_dask.pipeline import Driver
    from cryosam_dask.pipeline.summary import Row


@app.command(
    rich_help_panel=RUNS,
    epilog=examples(
        "cryosam run tomo.mrc --point 92,410,388 --out run.zarr --name ribosome --models builtin",
        "cryosam run tomo.mrc --kind ribosome=92,410,388 --kind proteasome=40,120,210 --out run.zarr",
        "cryosam run tomograms/ --in tomograms/TS_026.mrc --point 92,410,388 --out runs/ --name ribosome",
        "cryosam run TS_027.mrc --query-from runs/TS_026.zarr --out TS_027.zarr --name ribosome",
    ),
)
@with_options
def run(
    tomograms: Annotated[
        list[str],
        typer.Argument(
            metavar="TOMO…", help="MRC, OME-Zarr, TIFF, HDF5…, path or URL; several, a folder of them, or a .txt list."
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="RUN.zarr", help="The store; of several tomograms, a folder.")],
    prompts: Prompts,
    choice: Choice,
    where: Where,
    reading: Reading,
    name: NamesOption = None,
    clicked: Annotated[
        str | None,
        typer.Option("--in", metavar="TOMO", help="Of several, the one that the points are in; else the first."),
    ] = None,
    query_from: Annotated[
        list[str] | None,
        typer.Option(
            "--query-from",
            metavar="RUN.zarr|FILE.json",
            help="Instead of points: use this run's query, or the queries --name A --name B, or an exported one.",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            metavar="N",
            help="Of several tomograms, how many go on at once; else as many as keep the workers busy, by plan.",
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Of several tomograms, stop at the first that fails.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Run all stages: ingest, features, query, match, segment.

    Of several tomograms, the points are in one, and all are searched. A tomogram that fails does not stop the others,
    and the same command continues with the rest. Of several kinds, each voxel and each pick gets the best one.
    """
    from cryosam_dask import pipeline
    from cryosam_dask.executors.progress import Progress
    from cryosam_dask.io import listing, open_tomogram
    from cryosam_dask.pipeline import batch

    def tomogram() -> dict[str, Any]:
        path = listing.find_tomograms(tomograms if clicked is None else [clicked])[0]
        return described(open_tomogram(path, **reading.options()), path)

    kinds = prompts.by_kind(tomogram)
    read = prompts.read if query_from else prompts.required
    points = kinds or read(tomogram) or None
    # read once, for its settings and for its content
    loans = pipeline.take(query_from, name) if query_from and points is None else None
    common: dict[str, Any] = {
        "negatives": prompts.negatives(),
        "name": None if loans is not None else name,
        "settings": choice.settings(None if loans is None else next(iter(loans.values())).settings),
        "overwrite": overwrite,
        "progress": Progress(),
        **where.options(),
        **reading.options(),
    }
    source = query_from if loans is None else loans
    if clicked is None and not listing.is_many(tomograms):
        runner = pipeline.run(tomograms[0], points, out, query=source, **common)
        for kind in kinds or loans or name or [pipeline.PARTICLE]:
            _report(runner, kind)
        return
    common |= {"reference": clicked, "query_from": source, "at_once": at_once, "fail_fast": fail_fast}
    common["report"] = _tell
    summary = batch.run_many(tomograms, points, out, **common)
    typer.echo(summary.in_words())
    say(list(summary.notes))
    raise typer.Exit(summary.exit_code)


@app.command(rich_help_panel=RUNS)
@with_options
def ingest(
    tomogram: TomogramArgument, out: OutOption, where: Workers, reading: Reading, overwrite: OverwriteOption = False
) -> None:
    """Copy a tomogram into a store, chunked, with its resolution levels and statistics."""
    from cryosam_dask.storage.address import public

    with driver(out, where, overwrite, uses_torch=False) as runner:
        runner.ingest(tomogram, **reading.options())
    say(runner.notes)
    typer.echo(f"{out}: ingested {public(tomogram)}")


@app.command(rich_help_panel=RUNS)
@with_options
def features(run: RunArgument, choice: Choice, where: Where, overwrite: OverwriteOption = False) -> None:
    """Encode the slices of an ingested tomogram."""
    settings = choice.settings()
    with driver(run, where, overwrite, settings) as runner:
        runner.features(settings)
    typer.echo(f"{run}: features of {settings.features.encoder}")


@app.command(rich_help_panel=RUNS)
@with_options
def query(
    run: RunArgument,
    prompts: Prompts,
    choice: Choice,
    where: Where,
    name: NamesOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Segment the prompted particle(s) and pool their features into a query.

    Without --models, the models of the run's features are used. The settings given here also apply to `match` and
    `segment` of this query. Of several kinds, the points of each are negative points of the others.
    """
    from cryosam_dask.pipeline import kinds_of, models_of, settings_for
    from cryosam_dask.store.run_store import RunStore

    store = RunStore.open(run)

    def tomogram() -> dict[str, Any]:
        return described(store, str(store.info["input"]["path"]))

    settings = choice.settings(like=settings_for(models_of(store)))
    kinds = kinds_of(prompts.by_kind(tomogram) or prompts.required(tomogram), prompts.negatives(), None, name)
    with driver(run, where, overwrite, settings) as runner, runner.command(f"query {', '.join(kinds.names)}"):
        kinds.query(runner, settings)
    say(runner.notes)
    typer.echo(f"{run}: query {', '.join(kinds.names)}")


@app.command(rich_help_panel=RUNS)
@with_options
def match(
    run: RunArgument,
    where: Workers,
    name: NamesOption = None,
    count: Annotated[
        str | None,
        typer.Option("--count", "-k", metavar="K|auto", help="Keep so many prompts from now on; else as in `query`."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the places whose features are similar to the query's."""
    names, chosen = _names(name), None if count in (None, "auto") else _whole(str(count))
    with driver(run, where, overwrite, uses_torch=False) as runner, runner.command(f"match {', '.join(names)}"):
        for kind in names:
            if count is None:
                runner.match(kind)
            else:
                runner.choose(kind, chosen)
    say(runner.notes)
    typer.echo(f"{run}: matched {', '.join(names)}")


@app.command(rich_help_panel=RUNS)
@with_options
def segment(run: RunArgument, where: Where, name: NamesOption = None, overwrite: OverwriteOption = False) -> None:
    """Segment the matched places, and write labels and picks. Several names are kinds that compete for each place."""
    names = _names(name)
    with driver(run, where, overwrite) as runner:
        runner.segment(names[0] if len(names) == 1 else names)
    for kind in names:
        _report(runner, kind)


def _whole(count: str) -> int:
    if not count.isdecimal() or int(count) < 1:
        raise SettingsError(f"--count {count}: expected a whole number of 1 or more, or auto")
    return int(count)


def _names(given: list[str] | None) -> list[str]:
    from cryosam_dask.pipeline import PARTICLE

    return list(dict.fromkeys(given or [PARTICLE]))


def _tell(row: Row, number: int, count: int) -> None:
    """A line when a tomogram begins, and one when it has ended."""
    begins = row.status == "pending"
    say([f"{number} of {count}, {row.name}{'' if begins else f': {row.in_words()}'}", *row.notes])


def _report(runner: Driver, name: str) -> None:
    from cryosam_dask.store import picks
    from cryosam_dask.store.run_store import RunStore

    say(runner.notes)
    runner.notes.clear()
    count = len(picks.read(RunStore.open(runner.url), name))
    typer.echo(f"{runner.url}: {count} instances of {name!r} (labels/{name}, picks/{name})")
