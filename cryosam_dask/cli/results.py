"""Commands that export, describe and check a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cryosam_dask.cli.app import RESULTS, app, examples
from cryosam_dask.cli.options import JsonOption, RunArgument, WhichOption, say, with_options
from cryosam_dask.errors import InputError

if TYPE_CHECKING:
    from cryosam_dask.outputs.labels import What


@dataclass(frozen=True)
class Copick:
    """Names in a copick project, for --format copick."""

    copick_run: Annotated[str | None, typer.Option(metavar="RUN", help="copick: the run; else the tomogram's.")] = None
    copick_object: Annotated[
        str | None, typer.Option("--object", metavar="OBJECT", help="copick: the object; else the query's name.")
    ] = None
    user: Annotated[str, typer.Option(metavar="USER", help="copick: who made it.")] = "cryosam"
    session: Annotated[str, typer.Option(metavar="SESSION", help="copick: when; 0 is what a tool made.")] = "0"
    contents: Annotated[
        str,
        typer.Option(metavar="A,B,…", help="copick: of picks, segmentation, multilabel, meshes, tomogram."),
    ] = "picks,segmentation"
    tomogram_type: Annotated[str, typer.Option(metavar="TYPE", help="copick: what the tomogram is called.")] = (
        "tomogram"
    )


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam export run.zarr picks.star",
        "cryosam export run.zarr labels.mrc",
        "cryosam export run.zarr meshes.glb --smooth 1",
        "cryosam export runs/ picks.csv",
        "cryosam export run.zarr picks.star --reviewed",
    ),
)
@with_options
def export(
    run: RunArgument,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="picks.csv, picks.star, labels.mrc, labels.zarr, meshes.glb…")
    ],
    copick: Copick,
    name: WhichOption = None,
    what: Annotated[
        str | None, typer.Option("--what", help="picks, labels, semantic, kinds, meshes or query; else by the format.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Picks: csv, star, relion5, warp, imod, copick …; a wrong name lists them all. "
            "Labels: mrc, tiff, ome-zarr, ome-zarr-0.4, copick. Meshes: glb, ply. Else by the suffix.",
        ),
    ] = None,
    smooth: Annotated[float, typer.Option(metavar="VOXELS", help="Smooth meshes by so many voxels.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder, or a copick tomogram.")] = False,
    reviewed: Annotated[bool, typer.Option("--reviewed", help="Only what was accepted or added in a review.")] = False,
    not_rejected: Annotated[
        bool, typer.Option("--not-rejected", help="All but what was rejected in a review; with what was added.")
    ] = False,
    tomogram: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What picks call the tomogram, else as the tilt series, by its file. Of a folder of runs: RUN=NAME, "
            "again for each, or a .csv with the columns run,tomogram.",
        ),
    ] = None,
    tomograms: Annotated[
        Path | None,
        typer.Option(metavar="STAR", help="relion5: its tomograms.star, where the binning does not divide its sizes."),
    ] = None,
) -> None:
    """Write picks, labels or meshes to a file or a folder, or into a copick project.

    Picks of a folder of runs go into one file, as CSV, STAR or Parquet.
    """
    from cryosam_dask import outputs

    if reviewed and not_rejected:
        raise InputError("--reviewed and --not-rejected: give one of the two")
    choice = outputs.CopickChoice(
        run=copick.copick_run,
        object=copick.copick_object,
        user=copick.user,
        session=copick.session,
        contents=tuple(part.strip() for part in copick.contents.split(",")),
        tomogram=copick.tomogram_type,
    )
    notes = outputs.export(
        run,
        path,
        name=name,
        what=cast("What | None", what),  # it looks whether this is one
        format=format_,
        smooth=smooth,
        overwrite=overwrite,
        copick=choice,
        tomogram=tomogram,
        tomograms=tomograms,
        reviewed="accepted" if reviewed else "not-rejected" if not_rejected else None,
    )
    say(notes)
    typer.echo(f"{path}: written")


@app.command(rich_help_panel=RESULTS)
def info(run: RunArgument, as_json: JsonOption = False) -> None:
    """Print a run's tomogram, its progress and its results."""
    from cryosam_dask import outputs

    described = outputs.describe(run)
    typer.echo(json.dumps(described, indent=2) if as_json else outputs.describe_in_words(described))


@app.command(rich_help_panel=RESULTS)
def verify(
    run: RunArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget what is damaged: the command that made it makes it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every chunk of a run and name those that are damaged or lost."""
    from cryosam_dask.pipeline import integrity

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
