"""The `cryosam` command. It parses options, calls the functions of the Python interface, and prints the results."""

from __future__ import annotations

import os
import sys

import typer

# commands are added in the order of the help
# isort: off
from cryosam_dask.cli import runs, view, clusters, review, results, report, analysis, evaluation, tools, benchmark  # noqa: F401

# isort: on
from cryosam_dask.cli.app import app
from cryosam_dask.errors import CryosamError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command. Print an error that the user can act on as one line, and exit with its code."""
    try:
        code = app(standalone_mode=False)
    except CryosamError as error:
        print(f"cryosam: error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("cryosam: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"cryosam: error: {where}{os.strerror(error.errno)}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        if getattr(error, "option_name", None) in ("-v", "--verbose"):
            print("It goes before the command: cryosam -v run …", file=sys.stderr)  # noqa: T201
        sys.exit(getattr(error, "exit_code", 2))
    if isinstance(code, int) and code:
        sys.exit(code)
