"""Commands that reproduce published benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import TRIALS, app
from cryosam_dask.cli.options import Choice, Reading, Where, say, with_options
from cryosam_dask.errors import InputError, SettingsError

if TYPE_CHECKING:
    from cryosam_dask.published.empiar import Outcome
    from cryosam_dask.published.jobs import Asked
    from cryosam_dask.settings import Settings

benchmark = typer.Typer(no_args_is_help=True, help="Reproduce published benchmarks on their data sets.")
app.add_typer(benchmark, name="benchmark", rich_help_panel=TRIALS)

DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="The data set's folder.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of runs, results and tables.")]


@dataclass(frozen=True)
class Course:
    """Which tomograms of a data set a benchmark runs, and when it stops."""

    tomograms: Annotated[
        str | None, typer.Option("--tomograms", metavar="N|NAME,…", help="Only the first N by name, or these.")
    ] = None
    which: Annotated[
        str | None,
        typer.Option(
            "--which", metavar="PATTERN", help="Of several tomograms of a run, those at such a path (* and ?)."
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Of the sample of annotations that are prompts.")] = 0
    discard_runs: Annotated[
        bool, typer.Option("--discard-runs", help="Remove a tomogram's stores once all of its results are written.")
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what was found; run nothing.")] = False
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Tables from what is complete; run nothing.")] = (
        False
    )


@benchmark.command("empiar-10499")
@with_options
def empiar_10499(
    data: DataOption,
    out: OutFolder,
    course: Course,
    choice: Choice,
    where: Where,
    reading: Reading,
    table: Annotated[
        list[str] | None, typer.Option("--table", metavar="1|2|3|fig5", help="May be given again; else all four.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", metavar="NAME=MODEL", help="Model of SAM, DINO or DINOv2 in the tables."),
    ] = None,
    proposals: Annotated[
        str | None, typer.Option("--proposals", metavar="K,K,…", help="Of Figure 5; 'all' is one. 128,256,512,1024,all")
    ] = None,
    ablation: Annotated[
        int, typer.Option("--ablation", metavar="N", min=1, help="Tomograms of Tables 2 and 3 and Figure 5.")
    ] = 20,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="FILE", help="Positions: one STAR file, or a folder of files.")
    ] = None,
    truth_format: Annotated[
        str | None,
        typer.Option("--truth-format", metavar="FORMAT", help="Of the positions, where the suffix is not enough."),
    ] = None,
    truth_pixel_size: Annotated[
        float | None, typer.Option("--truth-pixel-size", metavar="Å", help="Of the pixels that positions are in.")
    ] = None,
    radius: Annotated[
        float, typer.Option("--radius", metavar="Å", help="Largest distance of a pick that counts as found.")
    ] = 125.0,
) -> None:
    """Reproduce the paper's Tables 1 to 3 and Figure 5, with the published figures beside.

    The folder holds tomograms and one STAR file of ribosome positions, or has the layout of the CryoET Data Portal's
    data set 10003. The same command continues an interrupted benchmark, and runs nothing again that is complete.
    """
    from cryosam_dask.published import empiar, paper
    from cryosam_dask.published.data import find

    if not radius > 0:
        raise SettingsError(f"--radius {radius:g}: expected ångström above 0")
    if truth_pixel_size is not None and not 0.1 <= truth_pixel_size <= 1000:
        raise SettingsError(f"--truth-pixel-size {truth_pixel_size:g}: expected ångström")
    chosen = paper.tables(_names(table, paper.TABLES), ablation, _counts(proposals, paper.COUNTS))
    needed = {config.encoder for paper_table in chosen for config in paper_table.configs}
    settings = {name: configured for name, configured in _encoders(choice, encoder or []).items() if name in needed}
    entries = find(
        data,
        kind=empiar.KIND,
        truth=truth,
        truth_format=truth_format,
        which=course.which,
        only=course.tomograms,
        out=out,
    )
    asked = empiar.asked_for(out, entries, chosen, settings, pixel_size=truth_pixel_size, **_common(course, reading))
    _go(asked, course, where, lambda stopped: empiar.tabulate(asked, chosen, radius, stopped))


@benchmark.command()
@with_options
def czii(
    data: DataOption,
    out: OutFolder,
    course: Course,
    choice: Choice,
    where: Where,
    reading: Reading,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="single|PERCENT,…", help="Annotations that are prompts.")
    ] = "single",
    object: Annotated[
        list[str] | None, typer.Option("--object", metavar="CLASS", help="Only this class. May be given again.")
    ] = None,
) -> None:
    """Score the classes of the CZII challenge: F-beta (β = 4) of each, from one prompt of each.

    The folder has the layout of the challenge (train/static, train/overlay) or of the CryoET Data Portal.
    """
    from cryosam_dask.evaluate import CZII_OBJECTS
    from cryosam_dask.published import czii as challenge
    from cryosam_dask.published.data import find

    known = [species.name for species in CZII_OBJECTS]
    if unknown := set(object or ()) - set(known):
        raise InputError(
            f"--object {', '.join(sorted(unknown))}: no class of the challenge; those are {', '.join(known)}"
        )
    shares = _shares(prompts)
    entries = challenge.with_classes(find(data, which=course.which, only=course.tomograms), object or ())
    asked = challenge.asked_for(out, entries, shares, choice.settings(), **_common(course, reading))
    _go(asked, course, where, lambda stopped: challenge.tabulate(asked, shares, stopped))


def _common(course: Course, reading: Reading) -> dict[str, Any]:
    return {"seed": course.seed, "reading": reading.options(), "discard": course.discard_runs}


def _go(asked: Asked, course: Course, where: Where, tabulate: Any) -> None:
    """Run what is not complete, and print the tables."""
    from cryosam_dask.executors.progress import Progress
    from cryosam_dask.published.survey import survey
    from cryosam_dask.published.work import run

    if course.dry_run:
        typer.echo(survey(asked))
        return
    stopped = ""
    if not course.tables_only:
        stopped = run(asked, progress=Progress(), report=lambda text: say([text]), **where.options())
    outcome: Outcome = tabulate(stopped)
    typer.echo(outcome.text)
    say([f"written: {', '.join(str(path) for path in outcome.files)}"])
    if outcome.stopped:
        say([f"stopped: {outcome.stopped}"])
    if not outcome.complete:
        say(["the same command again goes on with what is not complete"])
        raise typer.Exit(1)


def _names(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for text in given or known for name in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"--table {', '.join(unknown)}: expected {', '.join(known)}")
    return names


def _counts(text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """Values of K, smallest first."""
    from cryosam_dask.published.paper import ALL

    if text is None:
        return default
    parts = [part.strip().lower() for part in text.split(",")]
    if bad := [part for part in parts if part != "all" and not (part.isdecimal() and 0 < int(part) < ALL)]:
        raise SettingsError(f"--proposals {', '.join(bad)}: expected whole numbers from 1, or 'all'")
    return tuple(sorted({ALL if part == "all" else int(part) for part in parts}))


def _shares(text: str) -> list[float | None]:
    shares: list[float | None] = []
    for part in text.split(","):
        word = part.strip().removesuffix("%")
        try:
            value = None if word == "single" else float(word) / 100
        except ValueError:
            value = -1.0
        if value is not None and not 0 < value < 1:
            raise SettingsError(f"--prompts {part.strip()}: expected 'single' or a percentage between 0 and 100")
        shares.append(value)
    return list(dict.fromkeys(shares))


def _encoders(choice: Choice, given: Sequence[str]) -> dict[str, Settings]:
    """Settings by encoder of the tables; that of --models stands where the paper's default does."""
    from cryosam_dask.models.presets import parse_models
    from cryosam_dask.published.paper import DEFAULT, ENCODERS

    base, segmenter = parse_models(choice.models or "paper")
    named = dict(ENCODERS)
    if choice.models is not None:
        named[DEFAULT] = base
    for text in given:
        name, equals, model = text.partition("=")
        known = next((k for k in ENCODERS if k.casefold() == name.strip().casefold()), None)
        if known is None or not equals or not model:
            raise SettingsError(f"--encoder {text}: expected NAME=MODEL, NAME one of {', '.join(ENCODERS)}")
        named[known] = model.strip()
    return {
        name: choice.settings() if model == base else replace(choice, models=f"{model}+{segmenter}").settings()
        for name, model in named.items()
    }
