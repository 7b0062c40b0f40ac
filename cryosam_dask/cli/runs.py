"""Commands that make a run: the whole job, or one stage of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


@app.command()
@with_options
def run(
    tomogram: TomogramArgument,
    out: OutOption,
    prompts: Prompts,
    choice: Choice,
    where: Where,
    reading: Reading,
    name: NameOption = "particle",
    overwrite: OverwriteOption = False,
) -> None:
    """Do the whole job: ingest, features, query, match, segment."""
    from cryosam_dask import pipeline
    from cryosam_dask.executors.progress import Progress

    made = pipeline.run(
        tomogram,
        prompts.required(),
        out,
        name=name,
        models=choice.models,
        settings=choice.settings(),
        overwrite=overwrite,
        progress=Progress(),
        **where.options(),
        **reading.options(),
    )
    _report(made, name)


@app.command()
@with_options
def ingest(
    tomogram: TomogramArgument, out: OutOption, where: Workers, reading: Reading, overwrite: OverwriteOption = False
) -> None:
    """Copy a tomogram into a store, chunked, with its resolution levels and statistics."""
    with driver(out, where, overwrite, uses_torch=False) as made:
        made.ingest(tomogram, **reading.options())
    say(made.notes)
    typer.echo(f"{out}: ingested {tomogram}")


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


def _report(made: Driver, name: str) -> None:
    from cryosam_dask.store import picks
    from cryosam_dask.store.run_store import RunStore

    say(made.notes)
    count = len(picks.read(RunStore.open(made.url), name))
    typer.echo(f"{made.url}: {count} instances of {name!r} (labels/{name}, picks/{name})")
