"""The command that compares results with true positions and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import RESULTS, app, examples
from cryosam_dask.cli.options import JsonOption, WhichOption, say
from cryosam_dask.errors import InputError

if TYPE_CHECKING:
    from cryosam_dask.evaluate import Radius

_RADIUS_FILES = (".yaml", ".yml", ".json")


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam evaluate run.zarr --truth picks_by_hand.csv --radius 60A",
        "cryosam evaluate runs/ --truth 'truth/*.star' --radius 60A --out figures.csv",
    ),
)
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN.zarr|FOLDER", help="A run's store, or a folder of runs.")],
    truth: Annotated[
        str,
        typer.Option(
            "--truth", metavar="PATH", help="True positions: a file of points, a folder, or a pattern in quotes."
        ),
    ],
    radius: Annotated[
        str | None,
        typer.Option(
            "--radius",
            metavar="R|KIND=R,…|FILE",
            help="Largest distance of a match: voxels, or 120A, 12nm; one for each kind; or a YAML or copick file.",
        ),
    ] = None,
    share: Annotated[float, typer.Option("--share", help="A match is within this share of the radius.")] = 1.0,
    name: WhichOption = None,
    truth_format: Annotated[
        str | None, typer.Option("--truth-format", help="Of the points, where the suffix does not tell it.")
    ] = None,
    truth_unit: Annotated[
        str | None,
        typer.Option("--truth-unit", metavar="voxel|angstrom", help="Of positions as plain text (xyz); else voxels."),
    ] = None,
    truth_labels: Annotated[
        str | None,
        typer.Option("--truth-labels", metavar="PATH", help="True instance labels, for masks; of a folder: a folder."),
    ] = None,
    czii: Annotated[
        bool, typer.Option("--czii", help="The CZII challenge's score too; its radii where none are given.")
    ] = False,
    curve: Annotated[
        list[Path] | None, typer.Option("--curve", metavar="FILE", help="Precision and recall to a .csv or .png.")
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option("--out", metavar="FILE", help="Figures to a .json, or rows to a .csv.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare picks (and masks) with a truth: precision, recall, F1, average precision, IoU, panoptic quality."""
    from cryosam_dask import outputs
    from cryosam_dask.evaluate import CurvePoint
    from cryosam_dask.outputs.evaluation_words import figures_in_words, runs_in_words
    from cryosam_dask.store.run_store import RunStore

    radii = _radii(radius, share, czii)
    given: dict[str, Any] = {"name": name, "truth_labels": truth_labels}
    given |= {"truth_format": truth_format, "truth_unit": truth_unit}
    if isinstance(radii, dict) or czii or not RunStore.exists(run):
        result = outputs.evaluate_runs(run, truth, radii, czii=czii, **given)
        figures, words, notes = result.to_dict(), runs_in_words(result), list(result.dataset.notes)
        curves = {kind.kind: kind.pooled.curve for kind in result.dataset.kinds}
    else:
        figures = outputs.evaluate(run, truth, radii, **given)
        words, notes = figures_in_words(figures), figures.get("notes", [])
        curves = {name or "picks": tuple(CurvePoint(**point) for point in figures["curve"])}
    for path in out or []:
        outputs.write_figures(figures, path)
    for path in curve or []:
        outputs.write_curves(curves, path)
    say(notes)
    typer.echo(json.dumps(figures) if as_json else words)


def _radii(text: str | None, share: float, czii: bool) -> Radius | dict[str, Radius]:
    """The radii that are meant by the options."""
    from cryosam_dask.evaluate import CZII_OBJECTS, Radius, parse_radii
    from cryosam_dask.evaluate.czii import CZII_SHARE
    from cryosam_dask.evaluate.radius import radii_of

    if not 0 < share <= 100:
        raise InputError(f"--share {share:g}: expected a number above 0")
    radii: Radius | dict[str, Radius]
    if text is None:
        if not czii:
            raise InputError("no radius: give --radius in voxels, or as a length (120A, 12nm)")
        if share != 1:
            raise InputError("--share is of --radius; the challenge's own radii have their share, one half")
        return {species.name: Radius(CZII_SHARE * species.radius, "angstrom") for species in CZII_OBJECTS}
    if text.lower().endswith(_RADIUS_FILES):
        import yaml

        from cryosam_dask.io.text import read_lines

        try:
            document = yaml.safe_load("\n".join(read_lines(Path(text))))
        except yaml.YAMLError as error:
            raise InputError(f"{text}: not readable as YAML or JSON: {' '.join(str(error).split())}") from None
        radii = radii_of(document, text)
    else:
        radii = parse_radii(text)
    if isinstance(radii, dict):
        return {kind: radius.scaled(share) for kind, radius in radii.items()}
    return radii.scaled(share)
