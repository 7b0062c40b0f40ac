"""The `cryosam` program: its name, its help, and the options before a command."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cryosam_dask import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One click on a particle in a cryo-ET tomogram → every particle of its kind, as masks and picks.",
)
RUNS, RESULTS, TRIALS = "Make a run", "Look at results, and take them elsewhere", "Trials and benchmarks"
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


@app.callback(invoke_without_command=True)
def _options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log each stage; -vv: and each unit.")
    ] = 0,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if verbose:
        # on our own logger: the root belongs to whoever embeds us, and Dask's own lines are not for users
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("cryosam_dask").addHandler(handler)
        logging.getLogger("cryosam_dask").setLevel(LEVELS[min(verbose, 2)])
    if version:
        typer.echo(f"cryosam_dask {__version__}")
        raise typer.Exit
