"""Find the tomograms that files, folders, lists and URLs stand for, and the names of their results."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_project
from cryosam_dask.io.frame import as_path, is_folder
from cryosam_dask.io.source import BESIDE, SUFFIXES, inside
from cryosam_dask.storage.address import is_local, local_path, public
from cryosam_dask.store.run_store import RunStore

LIST_SUFFIX = ".txt"
_ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_KINDS = "MRC files and others (" + ", ".join(s for s in SUFFIXES if s not in BESIDE) + ") or OME-Zarr folders"


def find_tomograms(what: Sequence[str | Path]) -> list[str]:
    """Paths and URLs of tomograms, in the order given, each once.

    Parameters
    ----------
    what : tomograms; folders, of which the files of `source.FORMATS` and the OME-Zarr folders directly in them are
        taken, by natural order of their names, without hidden files, what lies beside tomograms (`source.BESIDE`, such
        as tilt series) and runs of our own; `.txt` files, one of all these a line, relative to the file, empty lines
        and lines that begin with # aside; URLs, taken as they are

    Raises InputError for a path that does not exist, for a folder without tomograms, and if `what` is empty.
    """
    paths: dict[str, str] = {}
    for text in what:
        for path in _expand(str(text)):
            paths.setdefault(os.path.realpath(path) if is_local(path) else path.rstrip("/"), path)
    if not paths:
        raise InputError(f"no tomograms: give {_KINDS}, folders of them, or a {LIST_SUFFIX} file with one path a line")
    return list(paths.values())


def is_many(what: Sequence[str | Path]) -> bool:
    """Whether this may stand for more than one tomogram: several paths, a folder of them, or a list."""
    if len(what) == 1 and copick_project.is_address(str(what[0])):
        return len(copick_project.addresses(str(what[0]))) > 1
    if len(what) != 1 or not is_local(str(what[0])):
        return len(what) != 1
    path = as_path(what[0])
    return path.suffix.lower() == LIST_SUFFIX or (is_folder(path) and not _is_zarr(path))


def run_names(tomograms: Sequence[str]) -> list[str]:
    """The name of each tomogram among the others: its name without a suffix, with its folder's before it where
    several have the same. InputError if two are still called the same."""
    stems = [_stem(tomogram) for tomogram in tomograms]
    # file systems may not tell upper case from lower
    often = Counter(stem.casefold() for stem in stems)
    names = [
        f"{_folder(tomogram)}_{stem}" if often[stem.casefold()] > 1 else stem
        for tomogram, stem in zip(tomograms, stems, strict=True)
    ]
    taken: dict[str, str] = {}
    for tomogram, name in zip(tomograms, names, strict=True):
        if (other := taken.setdefault(name.casefold(), tomogram)) != tomogram:
            raise InputError(
                f"{public(tomogram)} and {public(other)}: the results of both would be called {name}; "
                "rename one of them, or run them into different folders"
            )
    return names


def _expand(text: str, listed: str = "") -> Iterator[str]:
    """The tomograms that one path stands for; `listed` says where it was listed, for errors."""
    if copick_project.is_address(text):
        yield from copick_project.addresses(text)
        return
    if not is_local(text):
        yield text
        return
    path = as_path(text)
    try:
        if path.suffix.lower() == LIST_SUFFIX and path.is_file():
            if listed:
                raise InputError(f"{listed}: {path} is a list itself; expected tomograms or folders")
            yield from _read_list(path)
        elif path.is_dir() and not _is_zarr(path):
            yield from _read_folder(path, listed)
        elif path.exists() or _level_of_zarr(path) or inside(path):
            yield str(path)
        else:
            raise InputError(f"{listed}{': ' if listed else ''}{path}: no such file or folder")
    except OSError as error:
        raise InputError(f"{error.filename or path}: can't be read ({error.strerror})") from error


def _read_list(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {error.start}), expected one path a line") from error
    named = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    entries = [(number, line) for number, line in named if line and not line.startswith("#")]
    if not entries:
        raise InputError(f"{path}: names no tomograms, expected one path a line")
    for number, line in entries:
        if "\0" in line:
            raise InputError(f"{path}: line {number}: not a path")
        entry = as_path(line)
        yield from _expand(str(path.parent / entry) if is_local(line) else line, f"{path}: line {number}")


def _read_folder(folder: Path, listed: str) -> Iterator[str]:
    tomograms = sorted((entry for entry in folder.iterdir() if _is_tomogram(entry)), key=lambda e: natural(e.name))
    if not tomograms:
        raise InputError(f"{listed}{': ' if listed else ''}{folder}: no tomograms in this folder: expected {_KINDS}")
    yield from map(str, tomograms)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, numbers in them by value: tomo_2 before tomo_10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts] + [(-1, 0, name)]


def _is_tomogram(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return _is_zarr(path) and not RunStore.exists(path)
    return path.name.lower().endswith(SUFFIXES) and not path.name.lower().endswith(BESIDE)


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR_FILES)


def _level_of_zarr(path: Path) -> bool:
    """`tomo.zarr/1`: a level, which a store may keep without a folder of its own."""
    return _is_zarr(path.parent)


def _parts(tomogram: str) -> list[str]:
    if run := copick_project.run_name(tomogram):
        return [copick_project.folder_name(tomogram), run]
    text = local_path(tomogram) if is_local(tomogram) else unquote(public(tomogram).partition("://")[2])
    parts = [
        part for part in str(Path(text).expanduser().absolute() if is_local(tomogram) else text).split("/") if part
    ]
    # a level of an OME-Zarr image is called as the image is
    while len(parts) > 1 and parts[-1].isdecimal() and ".zarr" in parts[-2].lower():
        parts.pop()
    return parts


def _stem(tomogram: str) -> str:
    """The name without a suffix; one array of several in a file is called by both names."""
    if is_local(tomogram) and (named := inside(as_path(tomogram))) is not None:
        return f"{_without_suffix(named[0].name)}_{named[1].replace('/', '_')}"
    return _without_suffix(_parts(tomogram)[-1])


def _without_suffix(name: str) -> str:
    for suffix in (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", *SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _folder(tomogram: str) -> str:
    parts = _parts(tomogram)
    return parts[-2] if len(parts) > 1 else "root"
