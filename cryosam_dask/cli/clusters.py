"""Commands that start clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryosam_dask.cli.app import RUNS, app, examples
from cryosam_dask.cli.options import Certificates, with_options


@app.command(
    rich_help_panel=RUNS,
    epilog=examples(
        "cryosam cluster cluster.yaml --dry-run", "cryosam cluster cluster.yaml --scheduler-file cryosam.json"
    ),
)
@with_options
def cluster(
    tls: Certificates,
    spec: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file as deploy/slurm/cluster.yaml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job scripts; start nothing.")] = False,
    scheduler_file: Annotated[
        Path | None,
        typer.Option(
            "--scheduler-file",
            metavar="JSON",
            help="Write the scheduler's address and certificates here, for a Dask client in Python.",
        ),
    ] = None,
) -> None:
    """Start a cluster of SLURM jobs that several commands can use, and keep it until Ctrl-C.

    It prints the options with which `cryosam run` and others reach it.
    """
    from cryosam_dask.executors import clusters

    if dry_run:
        for kind, script in clusters.job_scripts(spec).items():
            typer.echo(f"# {kind}\n{script}")
        return
    clusters.serve(spec, scheduler_file, security=tls.security())
