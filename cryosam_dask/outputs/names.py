"""What files of picks call tomograms: their tilt series, or what somebody asks for."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_project, listing
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import relion
from cryosam_dask.io.points.names import matching, series_names
from cryosam_dask.io.text import read_lines
from cryosam_dask.store.run_store import RunStore

Asked = str | Sequence[str] | Mapping[str, str] | None
"""What is asked for: the name of the one tomogram; of a folder of runs "RUN=NAME" of each, a mapping or a CSV file."""

COLUMNS = ("run", "tomogram")
"""Of such a CSV file: the run's name in the folder, and what picks call its tomogram."""


def file_name(store: RunStore) -> str:
    """What a run's tomogram is called: the run of a copick project, else its file without suffixes."""
    path = str(store.info["input"]["path"])
    return copick_project.run_name(path) or listing.run_names([path])[0]


def name_one(store: RunStore, asked: Asked, tomograms: Path | None) -> tuple[str, list[str]]:
    """What the picks of one run call its tomogram, and in words what that is if it is not its file's name.

    tomograms : RELION's tomograms.star, in which the name is looked up
    """
    own = file_name(store)
    texts = [asked] if isinstance(asked, str) else list(asked or [])
    if isinstance(asked, Mapping) or (texts and _is_csv(texts[0])):
        texts = [name for run, name in _all_pairs(asked) if matching(run, [own])]  # others are of other runs
    if len(texts) > 1:
        raise InputError(f"--tomogram {' --tomogram '.join(map(shown, texts))}: one run has one name")
    if texts:
        return texts[0], []
    names, notes = _written([own], {}, _kept(store, own), tomograms)
    return names[0], notes


def name_many(runs: Sequence[str], asked: Asked, tomograms: Path | None) -> tuple[list[str], list[str]]:
    """What picks call the tomograms of the runs in a folder, which are called as their runs, and that in words."""
    own = [PurePosixPath(run).stem for run in runs]
    kept = {name for run, name in zip(runs, own, strict=True) for name in _kept(RunStore.open(run), name)}
    return _written(own, asked_names(asked, own), kept, tomograms)


def asked_names(asked: Asked, own: Sequence[str]) -> dict[str, str]:
    """Own name → the name that is asked for; InputError for what is no such pair, or of no run."""
    names: dict[str, str] = {}
    for run, name in _all_pairs(asked):
        meant = matching(run, own)
        if len(meant) != 1 or not name:
            there = ", ".join(map(shown, own[:5])) + (", …" if len(own) > 5 else "")
            what = "an empty name" if len(meant) == 1 else "several runs are called" if meant else "no run is called"
            raise InputError(f"--tomogram: {what}: {shown(run)}; there are: {there}")
        if names.setdefault(meant[0], name) != name:
            raise InputError(f"--tomogram: two names of {shown(run)}: {shown(names[meant[0]])} and {shown(name)}")
    return names


def _written(
    own: Sequence[str], asked: Mapping[str, str], kept: set[str], tomograms: Path | None
) -> tuple[list[str], list[str]]:
    if tomograms is not None:
        free = [name for name in own if name not in asked]
        listed = dict(zip(free, relion.listed_names(tomograms, free), strict=True))
        names = [asked.get(name) or listed[name] for name in own]
        changed = [f"{shown(listed[name])} ({shown(name)})" for name in free if listed[name] != name]
        return names, [f"tomograms are called as in {tomograms}: {', '.join(changed)}"] if changed else []
    return series_names(own, asked=asked, kept=kept)


def _kept(store: RunStore, own: str) -> set[str]:
    """The name if it is that of a run in a copick project, where it has no additions."""
    return {own} if copick_project.run_name(str(store.info["input"]["path"])) == own else set()


def _all_pairs(asked: Asked) -> list[tuple[str, str]]:
    if isinstance(asked, Mapping):
        return list(asked.items())
    return [pair for text in ([asked] if isinstance(asked, str) else asked or []) for pair in _pairs(text)]


def _is_csv(text: str) -> bool:
    return text.lower().endswith(".csv") and "=" not in text


def _pairs(text: str) -> list[tuple[str, str]]:
    """(run, name) of `RUN=NAME`, or of each row of a CSV file."""
    if _is_csv(text):
        return _read(Path(text))
    run, equals, name = text.partition("=")
    if not equals:
        raise InputError(
            f"--tomogram {shown(text)}: of a folder of runs, no name for all of them: expected RUN=NAME, or a .csv "
            f"file with the columns {','.join(COLUMNS)}"
        )
    return [(run, name)]


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        rows = list(csv.reader(read_lines(path, "a CSV of names"), skipinitialspace=True, strict=True))
    except csv.Error as err:
        raise InputError(f"{path}: not a readable CSV: {err}") from err
    header, *rows = [row for row in rows if row]
    names = [name.strip().lower() for name in header]
    if any(names.count(column) != 1 for column in COLUMNS):
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, found {shown(','.join(header))}")
    run, name = map(names.index, COLUMNS)
    if any(len(row) <= max(run, name) for row in rows):
        raise InputError(f"{path}: a row without a {' or a '.join(COLUMNS)}")
    return [(row[run].strip(), row[name].strip()) for row in rows]
