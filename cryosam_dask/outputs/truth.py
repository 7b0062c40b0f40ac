"""True positions of many tomograms: in a file that names them, or in files that are named for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.copick_project import run_name
from cryosam_dask.io.frame import one_line_errors, shown
from cryosam_dask.io.listing import run_names
from cryosam_dask.io.points.base import renamed
from cryosam_dask.io.points.files import ALL, read_points
from cryosam_dask.io.points.names import by_number, plain_name
from cryosam_dask.io.points.plausible import check_corner, check_place, in_a_corner
from cryosam_dask.outputs.truth_files import Kind, file_of, names_one_of, stem_of, truth_files
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Shape3

if TYPE_CHECKING:
    import pandas as pd

TOMOGRAM = "tomogram"
KIND_COLUMNS = ("kind", "species")
"""Columns that tell tomograms and kinds of particles apart in a file of several; `cryosam simulate` writes species."""


@dataclass(frozen=True)
class Tomogram:
    """What is asked of a truth: the tomogram of a run.

    name : what it is called in tables; keys : all that a truth may call it, without case
    series : what a truth may call it that has none of the keys: the tilt series, without case
    shape : (z, y, x); voxel_size : Å (z, y, x)
    """

    name: str
    keys: frozenset[str]
    shape: Shape3
    voxel_size: tuple[float, float, float]
    series: frozenset[str] = frozenset()

    def file_of(self, files: Sequence[Path], folder: Path, kind: Kind) -> Path | None:
        """Which of the files under a folder is of a kind in this tomogram; see `truth_files.file_of`."""
        path = file_of(files, folder, self.keys, self.name, kind)
        return path or file_of(files, folder, self.series, self.name, kind)


def tomogram_of(store: RunStore) -> Tomogram:
    """The tomogram of a run. It goes by the run's name and by what its input's path calls it."""
    name = stem_of(re.split(r"[/\\]", store.url.rstrip("/"))[-1])
    names = {name, *_named_by(str(store.info.get("input", {}).get("path", "")))}
    keys = frozenset(key.casefold() for called in names for key in (called, stem_of(called)))
    series = frozenset(plain_name(called).casefold() for called in names)
    return Tomogram(name, keys, store.shape, store.voxel_size, series)


def _named_by(path: str) -> set[str]:
    """What the path of a tomogram calls it: its file; in a copick project or a data set of the portal, its run."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    for place, part in enumerate(parts):
        if re.fullmatch(r"VoxelSpacing\d+(\.\d+)?", part):
            above = [part for part in parts[:place] if part != "Reconstructions"]  # the portal's RUN/Reconstructions/…
            return set(above[-1:])
    return {run_name(path) or run_names([path])[0]} if parts else set()


@dataclass
class Truth:
    """True positions in a file, or in a folder of files.

    path : of it; format : of its files, None by their suffixes; unit : of plain text, None for voxels
    files : those of the folder, empty for a file
    single : for one tomogram: a file that has points of one is taken whatever it calls it
    """

    path: Path
    format: str | None = None
    files: tuple[Path, ...] = ()
    single: bool = False
    unit: str | None = None
    _asked: set[str] = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _names: dict[str, None] = field(default_factory=dict)
    _tables: dict[object, pd.DataFrame] = field(default_factory=dict)
    _outside: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    _cornered: dict[str, None] = field(default_factory=dict)
    _without: dict[str, dict[str, None]] = field(default_factory=dict)
    _assumed: dict[str, None] = field(default_factory=dict)
    _total: int = 0

    @classmethod
    def open(
        cls, truth: str | Path, format: str | None = None, *, single: bool = False, unit: str | None = None
    ) -> Truth:
        """Arguments and errors are those of `truth_files`."""
        path, files = truth_files(truth, format)
        return cls(path, format, files, single, unit)

    @one_line_errors()
    def read(self, tomogram: Tomogram, kind: Kind) -> pd.DataFrame | None:
        """Points of a kind in voxels of the tomogram (columns z, y, x, …); None where there is no truth for it.

        Points beyond the border are points: annotations and refined positions may lie there (`doubts` says how many
        do). So is a tomogram that a file of others has no points of, and a file without any in a folder with others.

        Raises InputError where several files or tomograms could be meant, for files that can't be read or hold no
        points, and where more than half of the points are far outside of the tomogram, as those in voxels of another
        size are, or all at its corner, as fractions of its size are.
        """
        self._asked |= tomogram.keys | tomogram.series
        path: Path | None = self.path
        if self.files:
            path = tomogram.file_of(self.files, self.path, kind)
        if path is None:
            return None
        self._used.add(str(path))
        table = _of_kind(self._table(path, tomogram), path, kind)
        table = None if table is None else self._of_tomogram(table, path, tomogram)
        if table is not None:
            self._look_where(table, tomogram, path, kind)
        return table

    def check_any(self) -> None:
        """InputError where files were read and none of them holds a point: a truth that says nothing."""
        if self._used and not self._total:
            read = [str(path) for path in self.files if str(path) in self._used]
            what = f"{read[0]}: holds" if len(read) == 1 else f"{self.path}: the {len(read)} files that were read hold"
            raise InputError(f"{what} no points")

    def doubts(self) -> list[str]:
        """What had to be assumed when files were read, and which tomograms have no true points, points beyond their
        border, or all of them in one corner, in words."""
        said = list(self._assumed)
        for kind, names in self._without.items():
            said.append(f"no true points of {kind}, so that every pick is false: {', '.join(map(shown, names))}")
        if self._outside:
            listed = ", ".join(f"{count} of {n} in {shown(name)}" for name, (count, n, _) in self._outside.items())
            most = max(far for _, _, far in self._outside.values())
            said.append(
                f"true points outside of their tomogram, by up to {most:.3g} voxels, count as all others: {listed}"
            )
        if self._cornered:
            listed = ", ".join(map(shown, self._cornered))
            said.append(f"all true points in the first half of each side: are they in larger voxels? {listed}")
        return said

    def left(self) -> list[str]:
        """What was not read, in words: truth of tomograms that nobody asked for, by name, and how many other files."""
        if not self.files:
            strange = [name for name in self._names if name not in self._used]
            return [f"left out, truth without a run: {', '.join(map(shown, strange))}"] if strange else []
        unread = [path for path in self.files if str(path) not in self._used]
        keys = frozenset(self._asked)
        strange = [str(path.relative_to(self.path)) for path in unread if not names_one_of(path, self.path, keys)]
        words = [f"left out, truth without a run: {', '.join(map(shown, strange))}"] if strange else []
        if other := len(unread) - len(strange):
            words.append(f"{other} more file{'s' * (other > 1)} of points under {self.path} not read: of other kinds")
        return words

    def _look_where(self, table: pd.DataFrame, tomogram: Tomogram, path: Path, kind: Kind) -> None:
        """Count points that are outside of the tomogram, look for a corner with all; InputError where most are far."""
        points, size, name = table[list(AXES)].to_numpy(dtype=float), np.array(tomogram.shape), tomogram.name
        if not len(points):
            self._without.setdefault(kind.name, {})[name] = None
            return
        check_place(path, points, name, tomogram.shape, tomogram.voxel_size)
        beyond = np.maximum(-0.5 - points, points - (size - 0.5)).max(axis=1)
        if (beyond > 0).any():
            count, n, most = self._outside.get(name, (0, 0, 0.0))
            self._outside[name] = count + int((beyond > 0).sum()), n + len(points), max(most, float(beyond.max()))
        if in_a_corner(points, tomogram.shape):
            self._cornered[name] = None

    def _of_tomogram(self, table: pd.DataFrame, path: Path, tomogram: Tomogram) -> pd.DataFrame | None:
        """The rows of a tomogram, where the file names tomograms; None where none is this one's."""
        if TOMOGRAM not in table.columns:
            if self.files or self.single:
                return table
            raise InputError(
                f"{path}: names no tomograms, and there are several runs: give a folder with a file for each"
            )
        known = self._table(path, tomogram)[TOMOGRAM].astype(str).unique().tolist()
        self._names |= dict.fromkeys(known)
        meant = _match(known, tomogram, path)
        if meant is None:
            if len(known) != 1 or not (self.single or self.files):
                return None
            if not (self.files and known[0].isdigit()):  # a file that is named for it may number from 1
                self._assumed |= dict.fromkeys(renamed(path, known[0], tomogram.name))
            return table
        self._used.add(meant)
        return table[table[TOMOGRAM].astype(str) == meant]

    def _table(self, path: Path, tomogram: Tomogram) -> pd.DataFrame:
        """All points of a file as they are in this tomogram's frame. One file of many tomograms is not read again."""
        frame = (str(path), tomogram.voxel_size, tomogram.shape)
        if frame not in self._tables:
            self._tables.clear()
            self._tables[frame] = self._points(path, tomogram)
        return self._tables[frame]

    def _points(self, path: Path, tomogram: Tomogram) -> pd.DataFrame:
        """The points of all tomograms and kinds in a file; an empty table where one of a folder's files has none."""
        notes: list[str] = []
        frame: dict[str, Any] = {"voxel_size": tomogram.voxel_size, "shape": tomogram.shape, "tomogram_name": ALL}
        try:
            table = read_points(path, format=self.format, unit=self.unit, notes=notes, **frame)
        except InputError as error:
            if not self.files or not str(error).endswith(": holds no points"):
                raise
            import pandas as pd

            return pd.DataFrame({axis: np.zeros(0) for axis in AXES})
        self._assumed |= dict.fromkeys(notes)
        self._total += len(table)
        check_corner(str(path), table[list(AXES)].to_numpy(dtype=float), alone=self.single)
        return table


def _match(names: Sequence[str], tomogram: Tomogram, path: Path) -> str | None:
    """Which of a file's names of tomograms is this one's: with or without folder and suffixes, or else that of its tilt
    series, or else its number."""
    matches: list[str] = []
    for name in names:
        last = re.split(r"[/\\]", name)[-1]
        if {form.casefold() for form in (name, last, stem_of(last))} & tomogram.keys:
            matches.append(name)
    matches = matches or [name for name in names if plain_name(name).casefold() in tomogram.series]
    matches = matches or [name for name in names if any(by_number(name, key) for key in tomogram.keys)]
    if len(matches) > 1:
        raise InputError(f"{path}: {' and '.join(map(shown, matches[:3]))} could both be {tomogram.name}")
    return matches[0] if matches else None


def _of_kind(table: pd.DataFrame, path: Path, kind: Kind) -> pd.DataFrame | None:
    """The rows of a kind where the file tells kinds apart, else all; None where it has others only.

    InputError where that is not clear: no other kind is looked for, and the file has several, or not the named one.
    """
    column = next((column for column in KIND_COLUMNS if column in table.columns), None)
    if column is None:
        return table
    kinds = table[column].astype(str)
    rows = kinds.str.casefold() == kind.name.casefold()
    if rows.any():
        return table[rows]
    if not kind.alone:
        return None
    if kind.named or kinds.nunique() > 1:
        known = ", ".join(map(shown, sorted(kinds.unique())[:6]))
        raise InputError(f"{path}: points of {known}, none of {kind.name!r}: name the kind, as in --radius KIND=120A")
    return table
