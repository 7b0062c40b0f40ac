"""Results of a run as files that other programs read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.atomic import write_bytes
from cryosam_dask.io.frame import one_line_errors
from cryosam_dask.io.points.files import FORMATS, PICK_FORMATS, Frame, encode_picks, pick_format
from cryosam_dask.outputs.copick_export import COPICK, CopickChoice, export_copick, object_name
from cryosam_dask.outputs.evaluation import find_runs
from cryosam_dask.outputs.labels import LABEL_FORMATS, MESH_FORMATS, WHATS, What, kinds_name, write_labels, write_meshes
from cryosam_dask.outputs.names import Asked, name_many, name_one
from cryosam_dask.outputs.queries import export_query
from cryosam_dask.outputs.results import check_own, single_name
from cryosam_dask.outputs.reviewed import Only, chosen_picks, rejected_in_words
from cryosam_dask.outputs.reviewed import check as check_reviewed
from cryosam_dask.store import picks, reviews
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd


def export(
    run: str | Path,
    path: str | Path,
    *,
    name: str | None = None,
    what: What | None = None,
    format: str | None = None,
    smooth: float = 0.0,
    overwrite: bool = False,
    copick: CopickChoice | None = None,
    tomogram: Asked = None,
    tomograms: str | Path | None = None,
    reviewed: Only | None = None,
) -> list[str]:
    """Write the picks, the labels or the meshes of a query to a file, or all of it into a copick project.

    Parameters
    ----------
    run : the run's store, or of picks a folder of runs, whose picks go into one file
    path : the file, replaced when the new one is complete; or a folder
    name : the query; may be left out where there is one only
    what : "picks", "labels" (instance ids), "semantic" (0 or 1), "kinds" (which of several kinds) or "meshes"; None: by
        the format. "query": the query itself with its negatives, as a .json file for `run`'s `query`
    format : of picks, see `io.points.FORMATS`; mrc, tiff, ome-zarr, ome-zarr-0.4; glb, ply; copick; None: by the
        suffix
    smooth : of meshes, in voxels (`io.mesh.surface_of`)
    overwrite : whether a folder that exists may be replaced, and a tomogram in a copick project
    copick : names in the copick project, and what goes there
    tomogram : what a file of picks calls the tomogram; of a folder of runs a mapping (run → name), "RUN=NAME" of each,
        or a CSV file with the columns run, tomogram; None: as the tilt series, by its file (`io.points.names`)
    tomograms : RELION's tomograms.star, for relion5
    reviewed : "accepted": only picks, and their masks, that people accepted or added; "not-rejected": those, and what
        nobody decided on; None: all. An added particle without a mask is a pick with the instance 0

    Returns in words what was left out, that rejected picks were not, and tomograms' names that are not those of their
    files. Raises `InputError` for a format that does not hold `what`, for the run's own tomogram as the file, and for
    "accepted" where nothing was decided, `StoreError` where there is nothing to export.
    """
    path, asked = Path(path), None if format is None else format.lower()
    check_reviewed(reviewed)
    if what not in (None, *WHATS):
        raise InputError(f"--what {what}: expected {', '.join(WHATS)}")
    if re.match(r"[a-z][a-z0-9+]+:/", str(path)):
        raise InputError(f"{path}: an address; files are exported to a disk: copy them from there")
    if reviewed is not None and what in ("query", "kinds"):
        raise InputError(f"--what {what}: is not of reviewed picks alone; expected picks, labels, semantic or meshes")
    if what == "query":
        export_query(run, path, name=name)
        return []
    if asked == COPICK and _is_project(path):
        if what is not None:
            raise InputError(f"--what {what}: of a file; what goes into a copick project is said with --contents")
        export_copick(run, path, name=name, choice=copick, smooth=smooth, only=reviewed, overwrite=overwrite)
        store = RunStore.open(run)
        queries = [name] if name is not None else picks.names(store)
        return [note for query in queries for note in rejected_in_words(store, query, reviewed)]
    label_format, mesh_format = _format(path, asked, LABEL_FORMATS), _format(path, asked, MESH_FORMATS)
    if what == "meshes" and asked is None and not path.suffix:
        mesh_format = "ply"
    kind: What = what or ("labels" if label_format else "meshes" if mesh_format else "picks")
    _check_format(path, asked, kind, label_format, mesh_format)
    if kind == "picks":
        return _write_picks(run, path, name, asked, copick or CopickChoice(), tomogram, tomograms, reviewed)
    if _runs_in(run) is not None:
        raise InputError(
            f"{run}: a folder of runs; of several at once only picks are exported: give one run for {kind}"
        )
    store = RunStore.open(run)
    check_own(store, path)
    chosen = kinds_name(store, name) if kind == "kinds" else single_name(store, name)
    if mesh_format:
        write_meshes(store, chosen, path, mesh_format, smooth=smooth, only=reviewed, overwrite=overwrite)
    elif label_format:
        write_labels(store, chosen, path, label_format, kind, only=reviewed, overwrite=overwrite)
    return [] if kind == "kinds" else rejected_in_words(store, chosen, reviewed)


def _check_format(path: Path, format: str | None, kind: What, label: str | None, mesh: str | None) -> None:
    """InputError unless a format is known and holds what is to be written; `label`, `mesh`: it, if it is of these."""
    written = [name for name, each in FORMATS.items() if each.encode]
    known = [*written, *LABEL_FORMATS, *MESH_FORMATS]
    suffixes = (
        f"picks go to {_listed({name: PICK_FORMATS[name] for name in written})}, labels to {_listed(LABEL_FORMATS)}, "
        f"meshes to {', '.join(MESH_FORMATS['glb'] + MESH_FORMATS['ply'])} or a folder"
    )
    formats = f"--format: {', '.join(known)}"
    if format is not None and format not in known:
        raise InputError(f"unknown format {format!r}; expected with {formats}")
    if {"picks": label or mesh, "meshes": not mesh}.get(kind, not label):
        what = format or path.suffix or "a file without a suffix"
        raise InputError(f"{path}: {what} can't hold {kind}; {suffixes} (or give --format)")
    if kind == "picks" and format is None and not any(path.suffix.lower() in each for each in PICK_FORMATS.values()):
        raise InputError(f"{path}: the suffix {path.suffix!r} tells no format: {suffixes}; or give one with {formats}")


def _write_picks(
    run: str | Path,
    path: Path,
    name: str | None,
    format: str | None,
    copick: CopickChoice,
    tomogram: Asked,
    tomograms: str | Path | None,
    reviewed: Only | None,
) -> list[str]:
    """Picks of a run, or those of all runs in a folder, to one file; which of these have none, and names, in words."""
    chosen_format = pick_format(path, format)
    runs = _runs_in(run)
    joint = runs is not None
    names, notes = _names(str(run), runs, chosen_format, tomogram, tomograms)
    parts: list[tuple[pd.DataFrame, Frame]] = []
    without, undecided = [], []
    for url, tomogram_name in zip(runs or [str(run)], names, strict=True):
        store = RunStore.open(url)
        check_own(store, path)
        if joint and name is not None and name not in picks.names(store):
            without.append(PurePosixPath(url).stem)
            continue
        chosen = single_name(store, name)
        if joint and reviewed == "accepted" and not reviews.standing(store, chosen):
            undecided.append(PurePosixPath(url).stem)
            continue
        frame = Frame(
            voxel_size=store.voxel_size,
            shape=store.shape,
            tomogram=tomogram_name,
            tomograms=None if tomograms is None else Path(tomograms),
            kind=copick.object or (object_name(chosen) if chosen_format == COPICK else chosen),
            user=copick.user,
            session=copick.session,
        )
        parts.append((chosen_picks(store, chosen, reviewed, added=True), frame))
        notes += rejected_in_words(store, chosen, reviewed)
    if not parts:
        lacking = f"decisions about picks called {name!r}" if undecided else f"picks called {name!r}"
        raise StoreError(f"{run}: no {lacking} in any of its runs")
    with one_line_errors():
        write_bytes(path, encode_picks(parts, chosen_format, joint=joint))
    notes += [note for _, frame in parts for note in frame.notes]
    left = {f"no picks called {name!r}": without, "nothing was decided": undecided}
    return [f"left out, {why}: {', '.join(names)}" for why, names in left.items() if names] + notes


def _names(
    run: str, runs: Sequence[str] | None, format: str, tomogram: Asked, tomograms: str | Path | None
) -> tuple[list[str], list[str]]:
    """What picks call the tomograms, of all runs in the folder so that names do not depend on who has picks, and
    that in words, where the file holds names."""
    listed = Path(tomograms) if tomograms is not None and format == "relion5" else None
    if runs is not None:
        return name_many(runs, tomogram, listed)
    name, notes = name_one(RunStore.open(run), tomogram, listed)
    return [name], notes if FORMATS[format].names else []


def _runs_in(run: str | Path) -> list[str] | None:
    """The runs in a folder; None where this is no such folder."""
    if RunStore.exists(run):
        return None
    try:
        return find_runs(run)
    except InputError:
        return None


def _listed(formats: dict[str, tuple[str, ...]]) -> str:
    """The first suffix of each format."""
    known = [suffix for suffixes in formats.values() for suffix in suffixes[:1]]
    return f"{', '.join(known[:-1])} or {known[-1]}"


def _is_project(path: Path) -> bool:
    """Whether this is a copick project, and no file of picks in copick's format."""
    from cryosam_dask.io.copick_out import is_config

    return path.suffix.lower() != ".json" or is_config(path)


def _format(path: Path, format: str | None, known: dict[str, tuple[str, ...]]) -> str | None:
    """Which of the known formats is meant, None if none of them is."""
    if format is not None:
        return format if format in known else None
    return next((name for name, suffixes in known.items() if path.suffix.lower() in suffixes), None)
