"""Commands that start clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import RUNS, app
from cryosam_dask.cli.options import Certificates, with_options


@app.command(rich_help_panel=RUNS)
@with_options
def cluster(
    tls: Certificates,
    spec: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file as in deploy/, or 'cuda'.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job scripts; start nothing.")] = False,
    scheduler_file: Annotated[
        Path | None, typer.Option("--scheduler-file", metavar="JSON", help="Write the scheduler's address here.")
    ] = None,
) -> None:
    """Start a cluster that several commands share, and keep it until Ctrl-C."""
    from cryosam_dask.executors import clusters

    if dry_run:
        for kind, script in clusters.job_scripts(spec).items():
            typer.echo(f"# {kind}\n{script}")
        return
    clusters.serve(spec, scheduler_file, security=tls.security())
