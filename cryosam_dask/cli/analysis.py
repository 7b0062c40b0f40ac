"""Commands that measure the instances of a run, and compare two runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import RESULTS, app, examples
from cryosam_dask.cli.options import JsonOption, RunArgument, WhichOption

TableOption = Annotated[
    Path | None, typer.Option("--out", "--output", "-o", metavar="FILE", help="table.csv, table.parquet or table.nc.")
]


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam table run.zarr -o instances.csv",
        "cryosam table run.zarr --name ribosome --distance-to membrane -o instances.parquet",
    ),
)
def table(
    run: RunArgument,
    output: TableOption = None,
    name: WhichOption = None,
    distance_to: Annotated[
        list[str] | None,
        typer.Option(
            "--distance-to",
            metavar="LABEL|FILE",
            help="Distances to another query's label or to a mask in a file. May be given again.",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Measure whole masks, also where a better instance covers them.")
    ] = False,
) -> None:
    """Measure the size, place, shape, similarity, neighbours and distances of each instance. Without -o, print CSV."""
    from cryosam_dask import analysis
    from cryosam_dask.analysis.files import check_path, write_table

    if output is not None:
        check_path(output)
    instances = analysis.instance_table(run, name, distance_to=distance_to, masks="whole" if whole else "painted")
    if output is None:
        instances.to_dataframe().to_csv(sys.stdout)
        return
    write_table(instances, output)
    typer.echo(f"{output}: {instances.sizes['instance']} instances")


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam compare run.zarr other.zarr --radius 10 -o both.csv",
    ),
)
def compare(
    run_a: RunArgument,
    run_b: Annotated[str, typer.Argument(metavar="OTHER.zarr", help="A run of the same tomogram.")],
    radius: Annotated[float, typer.Option("--radius", metavar="NM", help="Largest distance of partners, nm.")],
    output: TableOption = None,
    name: WhichOption = None,
    other_name: Annotated[str | None, typer.Option("--other-name", help="Which query of the other run.")] = None,
    same_content: Annotated[
        bool, typer.Option(help="Refuse tomograms of different content; without: compare two filterings.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs of one tomogram: common and unmatched instances, and how alike scores and masks are."""
    from cryosam_dask import analysis
    from cryosam_dask.analysis.files import check_path, write_table

    if output is not None:
        check_path(output)
    comparison = analysis.compare(run_a, run_b, name, name_b=other_name, radius=radius, same_content=same_content)
    if output is not None:
        write_table(comparison, output)
    if as_json:
        typer.echo(json.dumps({key: None if value != value else value for key, value in comparison.attrs.items()}))
        return
    for key, value in comparison.attrs.items():
        words = f"{value:.3f}" if isinstance(value, float) else str(value)
        typer.echo(f"{key.replace('_', ' '):22} {words}")
