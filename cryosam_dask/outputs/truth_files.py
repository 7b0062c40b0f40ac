"""Files of a truth: which there are, and which is of which tomogram and kind.

In a folder a file is of a tomogram T and of a kind K when it is called `T_K` (or `T-K`, `T.K`), when it is called T in
a folder K, or when it is called K, or ends in `_K`, somewhere under a folder T, as in copick projects. Where one kind
alone is looked for, a file called T will do; and if the kind was not named, any file called T, or under a folder T.
Letters are compared without case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.files import FORMATS, PICK_FORMATS, looks_like_points
from cryosam_dask.storage.address import is_local, local_path, public

_SEPARATORS = "_-."
_PORTAL = re.compile(r"-\d+(\.\d+)*_(oriented)?point$", re.IGNORECASE)
"""What the CryoET Data Portal appends to the kind of an annotation: its version and shape."""
_INFO = re.compile(r"_info$", re.IGNORECASE)
"""What EMAN2 appends to a tomogram's name."""
_WILD = set("*?[")
_MOST_FILES = 100_000


@dataclass(frozen=True)
class Kind:
    """Which particles are asked for.

    alone : whether no other kind is, so that a truth need not name it
    named : whether the name is that of a kind, and not just what somebody called a query
    """

    name: str
    alone: bool = True
    named: bool = False


def truth_files(truth: str | Path, format: str | None) -> tuple[Path, tuple[Path, ...]]:
    """(folder, the files of points in it), or (file, ()).

    `truth` is a file, a folder, which is looked through with the folders in it, or a pattern with `*`, `?` and `**`,
    whose folder is what stands before the first of them. Runs, images, hidden files and what only shares its suffix
    with points (notes in a .txt, a volume in an .em, Warp's .xml) are passed over. InputError where there is nothing,
    and for a file whose format is not known.
    """
    if not is_local(str(truth)):
        raise InputError(f"{public(str(truth))}: true positions are read from local files: copy them here first")
    place = Path(local_path(truth)).expanduser()
    if place.is_dir():
        files = _kept(place, (path for _, paths in files_under(place) for path in paths), format)
        if not files:
            raise InputError(f"{place}: no files of points in this folder ({', '.join(suffixes())})")
        return place, files
    if not place.exists() and _WILD & set(str(place)):
        fixed = next(i for i, part in enumerate(place.parts) if _WILD & set(part))
        folder = Path(*place.parts[:fixed])
        files = _kept(folder, folder.glob(str(Path(*place.parts[fixed:]))), format)
        if not files:
            raise InputError(f"{place}: no files of points of such names ({', '.join(suffixes())})")
        return folder, files
    if not place.exists():
        raise InputError(f"{place}: no such file or folder")
    if format is None and place.suffix.lower() not in suffixes():
        raise InputError(
            f"{place}: its suffix tells no format for points ({', '.join(suffixes())}); give one with "
            f"--truth-format: {', '.join(PICK_FORMATS)}"
        )
    return place, ()


def suffixes() -> list[str]:
    """Suffixes of files of points."""
    return sorted({suffix for known in PICK_FORMATS.values() for suffix in known})


def _kept(folder: Path, paths: Iterable[Path], format: str | None) -> tuple[Path, ...]:
    chosen = None if format is None else FORMATS.get(format.lower())
    known = tuple(suffixes() if chosen is None else chosen.suffixes or chosen.among)
    files: list[Path] = []
    for path in paths:
        if path.suffix.lower() not in known or not path.is_file():
            continue
        if any(part.startswith(".") or part.endswith(".zarr") for part in path.relative_to(folder).parts):
            continue
        if format is None and not looks_like_points(path):
            continue
        files.append(path)
        if len(files) > _MOST_FILES:
            raise InputError(f"{folder}: more than {_MOST_FILES} files of points: name the folder of the truth alone")
    return tuple(sorted(files))


def file_of(files: Sequence[Path], folder: Path, keys: frozenset[str], name: str, kind: Kind) -> Path | None:
    """Which of the `files` under a folder is of a kind of a tomogram.

    Parameters
    ----------
    keys : what the tomogram may be called, without case; name : what errors call it

    None where none is; InputError where several could be.
    """
    exact: list[Path] = []
    loose: list[Path] = []
    for path in files:
        folders, stem = _words(path, folder)
        if _is_of(folders, stem, keys, kind.name.casefold()):
            exact.append(path)
        elif kind.alone and (stem in keys and not folders if kind.named else stem in keys or keys & set(folders)):
            loose.append(path)
    candidates = exact or loose
    if len(candidates) > 1:
        listed = ", ".join(shown(str(path.relative_to(folder))) for path in candidates[:3])
        raise InputError(
            f"{folder}: {len(candidates)} files could be the truth of {kind.name} in {name} "
            f"({listed}{', …' if len(candidates) > 3 else ''}): name the kind, or the files by a pattern"
        )
    return candidates[0] if candidates else None


def names_one_of(path: Path, folder: Path, keys: frozenset[str]) -> bool:
    """Whether a file is of any kind of a tomogram that is called by one of the keys."""
    folders, stem = _words(path, folder)
    return bool(keys & {stem, *folders}) or any(stem.startswith(f"{key}{sign}") for key in keys for sign in _SEPARATORS)


def _words(path: Path, folder: Path) -> tuple[list[str], str]:
    """The folders between and the name without suffix (nor an annotation's version), without case."""
    stem = _PORTAL.sub("", stem_of(path.name))
    stem = _INFO.sub("", stem) if path.suffix.lower() == ".json" else stem
    return [part.casefold() for part in path.relative_to(folder).parts[:-1]], stem.casefold()


def _is_of(folders: Sequence[str], stem: str, keys: frozenset[str], kind: str) -> bool:
    """Whether a file is of this kind of this tomogram; all without case."""
    if stem in keys and kind in folders:
        return True
    if any(stem == f"{key}{sign}{kind}" for key in keys for sign in _SEPARATORS):
        return True
    ends = stem == kind or stem.endswith(tuple(f"{sign}{kind}" for sign in _SEPARATORS))
    return ends and bool(keys & set(folders))


def files_under(folder: Path, leave: Path | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder from this one down, and the files in it. Hidden ones are passed over; Zarr stores, which have many,
    and the folder `leave` are not entered; a folder that links lead to again is entered once."""
    seen = {folder.resolve()} if leave is None else {folder.resolve(), leave.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = {Path(place, name).resolve(): name for name in sorted(folders, reverse=True) if not _is_aside(name)}
        folders[:] = sorted(name for real, name in inside.items() if real not in seen)
        seen.update(inside)
        yield Path(place), [Path(place, name) for name in sorted(names) if not name.startswith(".")]


def _is_aside(name: str) -> bool:
    return name.startswith(".") or ".zarr" in name


def stem_of(name: str) -> str:
    """A file's name without its suffix, nor a .gz after or an .ome before it. VoxelSpacing10.000 has none."""
    name = name.rstrip("/")
    name = name[:-3] if name.lower().endswith(".gz") else name
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or suffix.isdigit():
        return name
    return stem[:-4] if stem.lower().endswith(".ome") else stem
