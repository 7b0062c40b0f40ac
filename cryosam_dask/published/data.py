"""Which tomograms a folder of a data set holds, and where the positions of their particles stand.

Three layouts are known by their folders:

Warp/RELION : tomograms (MRC or OME-Zarr) in one folder, and one STAR file of the positions of all, or a file of
    positions for each tomogram, called as it is
CZII challenge, a static copick project : [train/]static/ExperimentRuns/RUN/VoxelSpacing…/NAME.zarr and
    [train/]overlay/ExperimentRuns/RUN/Picks/KIND.json
CryoET Data Portal : [DATASET/]RUN/Reconstructions/VoxelSpacing…/Tomograms/ID/RUN.zarr (or .mrc) and
    …/Annotations/ID/KIND-VERSION_point.ndjson (or `orientedpoint`)
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.io.listing import find_tomograms, natural
from cryosam_dask.io.points.names import matching, series_names, stem
from cryosam_dask.outputs.truth_files import files_under
from cryosam_dask.published.names import same_tomogram, star_names

POINT_SUFFIXES = (".star", ".csv", ".json", ".ndjson")
_SHOWN = 4
_ANNOTATION = re.compile(r"(?:\d+-)?(?P<kind>.+?)-(?P<version>\d+(?:\.\d+)*)_(?:oriented)?point", re.IGNORECASE)


@dataclass(frozen=True)
class Truth:
    """Where positions stand: a file, its format (None: by its suffix), and what the file calls the tomogram."""

    path: Path
    format: str | None = None
    tomogram_name: str | None = None


@dataclass(frozen=True)
class Entry:
    """A tomogram of a data set. `truths` : by kind of particle; `error` : why it can't be used, without its name."""

    name: str
    tomogram: str
    truths: dict[str, Truth] = field(default_factory=dict)
    error: str = ""


def find(
    data: Path,
    *,
    kind: str | None = None,
    truth: Path | None = None,
    truth_format: str | None = None,
    which: str | None = None,
    only: str | None = None,
    out: Path | None = None,
) -> list[Entry]:
    """The tomograms of a data set, by natural order of their names.

    Parameters
    ----------
    data : the data set's folder, in one of the three layouts
    kind : of particle, as far as a name has to contain it ("ribosome"); all of a folder with one file of positions
    truth : the file of positions, where it is not in `data` or not the only one there; `truth_format` : its format
    which : a pattern that the path of a tomogram must match, where there are several of a run (`*/denoised.zarr`)
    only : a number of tomograms, or names separated by commas
    out : folder of results, of which nothing is taken, should it lie in `data`

    Raises InputError, one line that says what was found and what to give, where this is not clear.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; expected the folder of a data set")
    root = _czii_root(data)
    if root is not None:
        entries = _czii(root, which)
    elif runs := _portal_runs(data):
        entries = _portal(runs, which)
    else:
        entries = _flat(data, truth, truth_format, which, out)
    if truth is not None and (root is not None or not entries):
        raise InputError(f"{truth}: in this layout positions stand beside their tomograms; leave --truth out")
    entries = [_of_kind(entry, kind) for entry in sorted(entries, key=lambda entry: natural(entry.name))]
    for a, b in pairwise(entries):
        if a.name == b.name:
            raise InputError(f"{a.tomogram} and {b.tomogram} are both {a.name}; say which with --which PATTERN")
    return _chosen(entries, only)


def _of_kind(entry: Entry, kind: str | None) -> Entry:
    """The entry with the one kind of particle whose name contains `kind`; None keeps all."""
    if kind is None or entry.error:
        return entry
    if set(entry.truths) == {""}:
        return replace(entry, truths={kind: entry.truths[""]})
    kinds = [name for name in entry.truths if kind.casefold() in name.casefold()]
    exact = [name for name in kinds if name.casefold() == kind.casefold()] or kinds
    if len(exact) == 1:
        return replace(entry, truths={kind: entry.truths[exact[0]]})
    there = _some(sorted(entry.truths)) or "none"
    what = f"several kinds are called {kind!r}" if exact else f"no positions of {kind!r}"
    return replace(entry, truths={}, error=f"{what} (there are: {there})")


def _chosen(entries: list[Entry], only: str | None) -> list[Entry]:
    if only is None:
        return entries
    if only.isdecimal():
        if int(only) < 1:
            raise InputError(f"--tomograms {only}: expected a number from 1, or names separated by commas")
        return entries[: int(only)]
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = [entry.name for entry in entries]
    matches = {name: [e for e in entries if e.name in matching(name, known)] for name in wanted}
    if missing := [name for name, some in matches.items() if not some]:
        raise InputError(f"--tomograms: no {_some(missing)} among {_some([e.name for e in entries])}")
    keep = {e.name for some in matches.values() for e in some}
    return [e for e in entries if e.name in keep]


def _czii_root(data: Path) -> Path | None:
    """The folder that `static` and `overlay` are in."""
    for root in (data, data / "train"):
        if (root / "static" / "ExperimentRuns").is_dir():
            return root
    return None


def _czii(root: Path, which: str | None) -> list[Entry]:
    entries = []
    for run in _folders(root / "static" / "ExperimentRuns"):
        images = [path for path in run.glob("VoxelSpacing*/*.zarr") if path.is_dir()]
        if which is None:  # what the challenge is about
            images = [path for path in images if path.stem == "denoised"] or images
        entry = _one_image(run.name, images, which)
        picks = sorted((root / "overlay" / "ExperimentRuns" / run.name / "Picks").glob("*.json"))
        # copick names files USER_SESSION_KIND.json; the challenge's have the kind alone
        kinds = [(path.stem.split("_", 2)[-1] if path.stem.count("_") >= 2 else path.stem, path) for path in picks]
        entries.append(_with_truths(entry, kinds, "copick", str(root / "overlay")))
    return entries


def _portal_runs(data: Path) -> list[Path]:
    """Folders of runs: in `data` or in the folders of data sets in it."""
    runs = {path.parent for depth in ("*", "*/*") for path in data.glob(f"{depth}/Reconstructions") if path.is_dir()}
    return sorted(runs)


def _portal(runs: Sequence[Path], which: str | None) -> list[Entry]:
    entries = []
    for run in runs:
        inside = run / "Reconstructions"
        images = [p for p in inside.glob("VoxelSpacing*/Tomograms/*/*") if p.suffix in (".zarr", ".mrc")]
        # the portal keeps each volume as both
        zarrs = {path.with_suffix("") for path in images if path.suffix == ".zarr"}
        images = [path for path in images if path.suffix == ".zarr" or path.with_suffix("") not in zarrs]
        entry = _one_image(run.name, images, which)
        if entry.error:
            entries.append(entry)
            continue
        spacing = Path(entry.tomogram).parents[2]
        files = sorted(path for path in (spacing / "Annotations").rglob("*.ndjson"))
        named = [(match["kind"].replace("_", "-"), path) for path in files if (match := _ANNOTATION.match(path.name))]
        entries.append(_with_truths(entry, named, "ndjson", str(spacing / "Annotations")))
    return entries


def _one_image(name: str, images: Iterable[Path], which: str | None) -> Entry:
    """The entry of a run of which one tomogram is meant."""
    all_of_it = sorted(images, key=lambda path: natural(str(path)))
    chosen = all_of_it if which is None else [path for path in all_of_it if fnmatch.fnmatch(str(path), which)]
    if len(chosen) == 1:
        return Entry(name, str(chosen[0]))
    if not chosen:
        there = f"; there are {_some([str(p) for p in all_of_it])}" if all_of_it else ""
        return Entry(name, "", error=f"no tomogram{f' matches {which}' if which else ''}{there}")
    shown = _some([str(path) for path in chosen])
    return Entry(name, "", error=f"{len(chosen)} tomograms ({shown}); say which with --which PATTERN")


def _with_truths(entry: Entry, named: Sequence[tuple[str, Path]], format: str, where: str) -> Entry:
    if entry.error:
        return entry
    by_kind: defaultdict[str, list[Path]] = defaultdict(list)
    for kind, path in named:
        by_kind[kind].append(path)
    several = next((kind for kind, paths in by_kind.items() if len(paths) > 1), None)
    if several is not None:
        shown = _some([str(path) for path in by_kind[several]])
        return replace(entry, error=f"several files of positions of {several} ({shown}); keep one of them")
    if not by_kind:
        return replace(entry, error=f"no positions under {where}")
    return replace(entry, truths={kind: Truth(paths[0], format) for kind, paths in by_kind.items()})


def _flat(data: Path, truth: Path | None, truth_format: str | None, which: str | None, out: Path | None) -> list[Entry]:
    """Tomograms of one folder with one STAR file, or with a file each."""
    tomograms = [Path(path) for path in _tomograms(data, which, out)]
    place = data if truth is None else truth
    if not place.exists():
        raise InputError(f"{place}: no such file or folder")
    points = _point_files(place, out) if place.is_dir() else [place]
    stars = [path for path in points if path.suffix.lower() == ".star"]
    if len(stars) == 1:  # beside which other files lie that may be anything
        return _of_one_star(tomograms, stars[0], truth_format)
    by_name = {path: _own_file(path, points) for path in tomograms}
    if not any(by_name.values()):
        if not points:
            raise InputError(f"{place}: no file of positions (.star) in it; give it with --truth FILE")
        some = [str(path) for path in stars or points]
        raise InputError(f"{place}: {len(some)} files of positions ({_some(some)}); say which with --truth FILE")
    entries = []
    for name, (path, own) in zip(_names(tomograms), by_name.items(), strict=True):
        if len(own) == 1:
            entries.append(Entry(name, str(path), {"": Truth(own[0], truth_format)}))
        else:
            what = f"{len(own)} files of positions ({_some(map(str, own))})" if own else "no file of positions"
            entries.append(Entry(name, str(path), error=what))
    return entries


def _names(tomograms: Sequence[Path]) -> list[str]:
    """What tomograms are called: as their tilt series, where that tells them apart."""
    return series_names([stem(path.name) for path in tomograms])[0]


def _of_one_star(tomograms: Sequence[Path], star: Path, format: str | None) -> list[Entry]:
    """Each tomogram with its rows of a STAR file."""
    names = star_names(star)
    entries = []
    for name, path in zip(_names(tomograms), tomograms, strict=True):
        if not names and len(tomograms) == 1:
            entries.append(Entry(name, str(path), {"": Truth(star, format)}))
            continue
        rows = same_tomogram(path.name, names)
        if len(rows) == 1:
            entries.append(Entry(name, str(path), {"": Truth(star, format, rows[0])}))
        else:
            what = f"several names of {star} may be its ({_some(rows)})" if rows else f"{star} has no rows of it"
            entries.append(Entry(name, str(path), error=f"{what} (names there: {_some(names) or 'none'})"))
    if not any(entry.truths for entry in entries):
        shown = _some([entry.name for entry in entries])
        raise InputError(f"{star}: names none of the tomograms ({shown}); it has {_some(names) or 'no names'}")
    return entries


def _tomograms(data: Path, which: str | None, out: Path | None) -> list[str]:
    """The tomograms of `data`, or else of the one folder under it that has any."""
    places: dict[Path, list[str]] = {}
    for folder, _ in files_under(data, out):
        try:
            paths = find_tomograms([folder])
        except InputError:
            continue
        kept = [path for path in paths if which is None or fnmatch.fnmatch(path, which)]
        if kept:
            places[folder] = kept
        if folder == data and kept:
            break
    if len(places) > 1:
        shown = _some([str(folder) for folder in places])
        raise InputError(f"{data}: tomograms in {len(places)} folders ({shown}); choose with --which PATTERN")
    if not places:
        raise InputError(f"{data}: no tomograms in it (MRC or OME-Zarr{f' that match {which}' if which else ''})")
    return next(iter(places.values()))


def _point_files(folder: Path, out: Path | None) -> list[Path]:
    every = (path for _, paths in files_under(folder, out) for path in paths)
    return sorted(path for path in every if path.suffix.lower() in POINT_SUFFIXES and path.is_file())


def _own_file(tomogram: Path, points: Sequence[Path]) -> list[Path]:
    """The files of positions that are called as a tomogram is."""
    return [path for path in points if same_tomogram(tomogram.name, [path.name])]


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
