"""Commands that look at what a run has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import app
from cryosam_dask.cli.options import JsonOption, RunArgument, WhichOption
from cryosam_dask.errors import InputError


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
def info(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what a run is of, how far it is, and what was found."""
    from cryosam_dask import outputs

    described = outputs.describe(run)
    typer.echo(json.dumps(described, indent=2) if as_json else outputs.describe_in_words(described))


@app.command()
def verify(
    run: RunArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget what is damaged: the command that made it makes it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every chunk of a run and name those that are damaged or lost."""
    from cryosam_dask.store import integrity

    report = integrity.verify(run)
    repaired = integrity.repair(run, report) if repair and not report.sound else None
    if as_json:
        typer.echo(json.dumps(report.to_json() | ({} if repaired is None else {"repaired": repaired.to_json()})))
    else:
        typer.echo(report.in_words(repaired=repaired is not None))
        for damage in repaired.left if repaired is not None else []:
            typer.echo(f"nothing is known to make this again: {damage.words}")
    left = report.damages if repaired is None else repaired.left
    raise typer.Exit(1 if left else 0)
