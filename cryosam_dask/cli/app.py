"""The `cryosam` program: its help, and the options that come before a command."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cryosam_dask.version import __version__

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
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Log each stage; -vv: and each unit. Before the command: cryosam -v run …",
        ),
    ] = 0,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if verbose:
        _log(LEVELS[min(verbose, 2)])
    if version:
        typer.echo(f"cryosam_dask {__version__}")
        raise typer.Exit


def examples(*commands: str) -> str:
    """Text for the end of a command's help, with one example a line. The site shows them as code."""
    return "\n\n".join(["Examples:", *(f"    {command}" for command in commands)])


def _log(level: int) -> None:
    """Log to stderr, on our own logger: the root belongs to whoever embeds us, and Dask's lines are not for users."""
    ours = logging.getLogger("cryosam_dask")
    for handler in ours.handlers[:]:
        if handler.name == __name__:  # an earlier command's in this process, whose stderr may be closed
            ours.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.name = __name__
    handler.addFilter(_name_run)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(run)s%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(level)


def _name_run(record: logging.LogRecord) -> bool:
    """Say which of several runs that go on at once a line is of: their threads are called so by `pipeline.at_once`."""
    thread = record.threadName or ""
    record.run = f"{thread.removeprefix('run ')}: " if thread.startswith("run ") else ""
    return True
