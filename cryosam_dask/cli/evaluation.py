"""Commands that compare results with a truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import app
from cryosam_dask.cli.options import JsonOption, RunArgument, WhichOption


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
