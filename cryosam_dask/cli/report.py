"""The command that writes a page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import RESULTS, app, examples
from cryosam_dask.cli.options import WhichOption


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam report run.zarr -o report.html",
        "cryosam report run.zarr --truth picks_by_hand.csv --radius 60A",
    ),
)
def report(
    run: Annotated[str, typer.Argument(metavar="RUN.zarr|FOLDER", help="A run's store, or a folder of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page, one HTML file.")] = Path(
        "report.html"
    ),
    name: WhichOption = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="PATH", help="True positions to compare the picks with.")
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(
            "--radius",
            metavar="R",
            help="Largest distance of a match: voxels, or 120A, 12nm; else the prompted mask's.",
        ),
    ] = None,
    truth_format: Annotated[
        str | None, typer.Option("--truth-format", help="Of the points, where the suffix does not tell it.")
    ] = None,
) -> None:
    """Write a page about a run: slices, masks, scores, picks, timings. A folder of runs gets a row for each run.

    The page is one HTML file without other files, and opens in any browser.
    """
    from cryosam_dask.report import write_report

    write_report(run, out, name=name, truth=truth, radius=radius, truth_format=truth_format)
    typer.echo(f"{out}: written")
