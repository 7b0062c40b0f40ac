"""Commands that take decisions about picks, and learn from them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import RESULTS, RUNS, app, examples
from cryosam_dask.cli.options import JsonOption, RunArgument, Where, WhichOption, driver, position, say, with_options
from cryosam_dask.cli.prompts import Prompts, described
from cryosam_dask.errors import InputError

if TYPE_CHECKING:
    from cryosam_dask.store.run_store import RunStore

_NUMBERS = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*")
_WHICH = "N,N-N,…|FILE"
_MOST = 1_000_000
"""Instances that a range may have."""


@dataclass(frozen=True)
class Files:
    """How files of points are read."""

    points_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of files of points, where the suffix does not tell it.")
    ] = None
    points_unit: Annotated[
        str | None, typer.Option(metavar="voxel|angstrom", help="Of positions as plain text (xyz); else voxels.")
    ] = None
    points_kind: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which points, of several kinds in a file.")
    ] = None

    def read(self, path: str, store: RunStore) -> list[list[float]]:
        """Points of a file, (z, y, x) voxels of the run's tomogram."""
        prompts = Prompts(
            points=Path(path),
            points_format=self.points_format,
            points_unit=self.points_unit,
            points_kind=self.points_kind,
        )
        return prompts.read(lambda: described(store, str(store.info["input"]["path"])))


@app.command(
    rich_help_panel=RESULTS,
    epilog=examples(
        "cryosam review run.zarr --accept 1-20 --reject 21,25-31",
        "cryosam review run.zarr --reject wrong.star --add 92,410,388 --by ada",
        "cryosam review run.zarr --decide rejected=92,410,388",
        "cryosam review run.zarr",
    ),
)
@with_options
def review(
    run: RunArgument,
    files: Files,
    name: WhichOption = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar=_WHICH, help="Picks that are right: instance numbers, or points at them."),
    ] = None,
    reject: Annotated[list[str] | None, typer.Option(metavar=_WHICH, help="Picks that are wrong.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(metavar="Z,Y,X|FILE", help="Particles that have no pick; voxels from 0.")
    ] = None,
    undecide: Annotated[list[str] | None, typer.Option(metavar=_WHICH, help="Take decisions back.")] = None,
    decide: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERDICT=Z,Y,X", help="accepted, rejected, added or undecided: this very place, pick or not."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; else the user's name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accept, reject and add picks; without these options, print what was decided.

    Decisions are kept by position, with who made them and when: they outlive another `segment`. `cryosam refine` learns
    from them, and `cryosam export --reviewed` leaves out what was not accepted.
    """
    from cryosam_dask import outputs, pipeline
    from cryosam_dask.store.run_store import RunStore

    store = RunStore.open(run)
    chosen = outputs.single_name(store, name)
    given = {"accept": accept, "reject": reject, "undecide": undecide}
    wanted: dict[str, Any] = {o: _which(texts, f"--{o}", files, store) for o, texts in given.items() if texts}
    if add:
        wanted["add"] = [point for text in add for point in _added(text, files, store)]
    if decide:
        wanted["decide"] = [_decided(text) for text in decide]
    if wanted:
        say(pipeline.review(run, chosen, **wanted, by=by).notes)
    figures = outputs.review_figures(run, name=chosen)
    typer.echo(json.dumps(figures) if as_json else outputs.review_in_words(figures))


@app.command(rich_help_panel=RUNS, epilog=examples("cryosam refine run.zarr --name ribosome"))
@with_options
def refine(
    run: RunArgument,
    where: Where,
    name: WhichOption = None,
    find: Annotated[
        bool, typer.Option("--find/--no-find", help="Match and segment again, or leave that to these commands.")
    ] = True,
) -> None:
    """Learn from the decisions about picks, and find better ones.

    What was accepted stays a pick, and where a pick was rejected none comes back; all else is ranked anew.
    """
    from cryosam_dask import outputs, pipeline
    from cryosam_dask.store import picks, reviews
    from cryosam_dask.store.run_store import RunStore

    # picks are made anew, and may be gone if that was interrupted
    chosen = outputs.single_name(RunStore.open(run), name, among=reviews.names)
    with driver(run, where, overwrite=False) as runner:
        names = pipeline.refine(runner, chosen, find=find)
    say(runner.notes)
    options = " ".join(f"--name {kind}" for kind in names)
    if not find:
        typer.echo(f"{run}: `cryosam match {run} --name {chosen}` and `cryosam segment {run} {options}` go on")
        return
    for kind in names:
        count = len(picks.read(RunStore.open(run), kind))
        typer.echo(f"{run}: {count} instances of {kind!r} (labels/{kind}, picks/{kind})")


def _which(texts: Sequence[str], option: str, files: Files, store: RunStore) -> list[int] | list[list[float]]:
    """Instance numbers, or points, of an option's values."""
    listed = [text for text in texts if _NUMBERS.fullmatch(text)]
    if not listed:
        return [point for text in texts for point in files.read(text, store)]
    if len(listed) < len(texts):
        raise InputError(f"{option}: give instance numbers or files of points, not both at once")
    return [number for text in listed for part in text.split(",") for number in _range(part, option)]


def _range(text: str, option: str) -> list[int]:
    """The numbers of "7-12", or of "3"."""
    low, high = (int(part) for part in (text.split("-") * 2)[:2])
    if not low <= high < low + _MOST:
        raise InputError(f"{option} {text.strip()}: expected a range that goes up, as 7-12")
    return list(range(low, high + 1))


def _added(text: str, files: Files, store: RunStore) -> list[list[float]]:
    """A position Z,Y,X, or the points of a file."""
    if not re.fullmatch(r"[-+.\d\s,e]+", text):
        return files.read(text, store)
    return [position(text, "--add")]


def _decided(text: str) -> tuple[str, list[float]]:
    """The verdict and the place of "rejected=92,410,388"."""
    verdict, equals, place = text.partition("=")
    if not equals:
        raise InputError(f"--decide {text}: expected VERDICT=Z,Y,X, as rejected=92,410,388")
    return verdict, position(place, f"--decide {verdict}")
