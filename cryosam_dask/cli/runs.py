"""Commands that make a run: the whole job, or one stage of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import app
from cryosam_dask.cli.options import (
    Choice,
    NameOption,
    OutOption,
    OverwriteOption,
    Prompts,
    Reading,
    RunArgument,
    TomogramArgument,
    Where,
    Workers,
    driver,
    say,
    with_options,
)

if TYPE_CHECKING:
    from cryosam_dask.pipeline import Driver
    from cryosam_dask.summary import Row


@app.command()
@with_options
def run(
    tomograms: Annotated[
        list[str],
        typer.Argument(
            metavar="TOMO…", help="MRC or OME-Zarr, path or URL; several, a folder of them, or a .txt list."
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="RUN.zarr", help="The store; of several tomograms, a folder.")],
    prompts: Prompts,
    choice: Choice,
    where: Where,
    reading: Reading,
    name: NameOption = "particle",
    clicked: Annotated[
        str | None,
        typer.Option("--in", metavar="TOMO", help="Of several, the one that the points are in; else the first."),
    ] = None,
    query_from: Annotated[
        str | None, typer.Option("--query-from", metavar="RUN.zarr", help="Instead of points: use this run's query.")
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Of several tomograms, stop at the first that fails.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Do the whole job: ingest, features, query, match, segment.

    Of several tomograms the one with the points is clicked, and all are searched. One that fails does not stop the
    rest; the same command goes on with what is left.
    """
    from cryosam_dask import batch, pipeline
    from cryosam_dask.executors.progress import Progress
    from cryosam_dask.io.listing import is_many
    from cryosam_dask.stages import borrow
    from cryosam_dask.store.run_store import RunStore

    points = prompts.required() if query_from is None else prompts.read() or None
    like = None if query_from is None else borrow.take(RunStore.open(query_from), name).settings
    common: dict[str, Any] = {
        "name": name,
        "settings": choice.settings(like),
        "overwrite": overwrite,
        "progress": Progress(),
        **where.options(),
        **reading.options(),
    }
    if clicked is None and not is_many(tomograms):
        made = pipeline.run(tomograms[0], points, out, query=query_from, **common)
        _report(made, name)
        return
    common |= {"reference": clicked, "query_from": query_from, "fail_fast": fail_fast, "report": _tell}
    summary = batch.run_many(tomograms, points, out, **common)
    typer.echo(summary.in_words())
    raise typer.Exit(summary.exit_code)


@app.command()
@with_options
def ingest(
    tomogram: TomogramArgument, out: OutOption, where: Workers, reading: Reading, overwrite: OverwriteOption = False
) -> None:
    """Copy a tomogram into a store, chunked, with its resolution levels and statistics."""
    from cryosam_dask.store.address import public

    with driver(out, where, overwrite, uses_torch=False) as made:
        made.ingest(tomogram, **reading.options())
    say(made.notes)
    typer.echo(f"{out}: ingested {public(tomogram)}")


@app.command()
@with_options
def features(run: RunArgument, choice: Choice, where: Where, overwrite: OverwriteOption = False) -> None:
    """Encode the slices of an ingested tomogram."""
    settings = choice.settings()
    with driver(run, where, overwrite, settings) as made:
        made.features(settings)
    typer.echo(f"{run}: features of {settings.features.encoder}")


@app.command()
@with_options
def query(
    run: RunArgument,
    prompts: Prompts,
    choice: Choice,
    where: Where,
    name: NameOption = "particle",
    overwrite: OverwriteOption = False,
) -> None:
    """Segment the prompted particle(s) and pool their features into a query.

    The settings given here also hold for this query's `match` and `segment`.
    """
    settings, points = choice.settings(), prompts.required()
    with driver(run, where, overwrite, settings) as made:
        made.query(name, points, settings)
    say(made.notes)
    typer.echo(f"{run}: query {name}")


@app.command()
@with_options
def match(run: RunArgument, where: Workers, name: NameOption = "particle", overwrite: OverwriteOption = False) -> None:
    """Find the places whose features are like the query's."""
    with driver(run, where, overwrite, uses_torch=False) as made:
        made.match(name)
    say(made.notes)
    typer.echo(f"{run}: matched {name}")


@app.command()
@with_options
def segment(run: RunArgument, where: Where, name: NameOption = "particle", overwrite: OverwriteOption = False) -> None:
    """Segment every place that was found; write labels and picks."""
    with driver(run, where, overwrite) as made:
        made.segment(name)
    _report(made, name)


def _tell(row: Row, number: int, count: int) -> None:
    """A line when a tomogram begins, and one when it has ended."""
    begins = row.status == "pending"
    say([f"{number} of {count}, {row.name}{'' if begins else f': {row.in_words()}'}", *row.notes])


def _report(made: Driver, name: str) -> None:
    from cryosam_dask.store import picks
    from cryosam_dask.store.run_store import RunStore

    say(made.notes)
    count = len(picks.read(RunStore.open(made.url), name))
    typer.echo(f"{made.url}: {count} instances of {name!r} (labels/{name}, picks/{name})")
