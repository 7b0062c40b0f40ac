"""True positions of many tomograms: in a file that names them, or in files that are named for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.copick import run_name
from cryosam_dask.io.frame import one_line_errors, shown
from cryosam_dask.io.picks import ALL, read_points
from cryosam_dask.outputs.truth_files import Kind, file_of, names_one_of, stem_of, truth_files
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Shape3

if TYPE_CHECKING:
    import pandas as pd

TOMOGRAM, KIND = "tomogram", "kind"
"""Columns that tell tomograms and kinds of particles apart in a file of several."""


@dataclass(frozen=True)
class Tomogram:
    """What is asked of a truth: the tomogram of a run.

    name : what it is called in tables; keys : all that a truth may call it, without case
    shape : (z, y, x); voxel_size : Å (z, y, x)
    """

    name: str
    keys: frozenset[str]
    shape: Shape3
    voxel_size: tuple[float, float, float]


def tomogram_of(store: RunStore) -> Tomogram:
    """The tomogram of a run. It goes by the run's name and by its input's; by its run's in a copick project."""
    path = str(store.info.get("input", {}).get("path", ""))
    parts = [part for part in re.split(r"[/\\]", path) if part]
    name = stem_of(re.split(r"[/\\]", store.url.rstrip("/"))[-1])
    names = {name, run_name(path) or name, *((parts[-1], stem_of(parts[-1])) if parts else ())}
    for above, below in itertools.pairwise(parts):
        if re.fullmatch(r"VoxelSpacing\d+(\.\d+)?", below):
            names.add(above)
    return Tomogram(name, frozenset(n.casefold() for n in names), store.shape, store.voxel_size)


@dataclass
class Truth:
    """True positions in a file, or in a folder of files.

    path : of it; format : of its files, None by their suffixes; files : those of the folder, empty for a file
    single : for one tomogram: a file that has points of one is taken whatever it calls it
    """

    path: Path
    format: str | None = None
    files: tuple[Path, ...] = ()
    single: bool = False
    _asked: set[str] = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _names: dict[str, None] = field(default_factory=dict)
    _tables: dict[object, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def open(cls, truth: str | Path, format: str | None = None, *, single: bool = False) -> Truth:
        """Arguments and errors are those of `truth_files`."""
        path, files = truth_files(truth, format)
        return cls(path, format, files, single)

    @one_line_errors()
    def read(self, tomogram: Tomogram, kind: Kind) -> pd.DataFrame | None:
        """Points of a kind in voxels of the tomogram (columns z, y, x, …); None where there is no truth for it.

        Raises InputError where several files or tomograms could be meant, for files that can't be read, and where more
        than half of the points are outside of the tomogram, as those in voxels of another size are.
        """
        self._asked |= tomogram.keys
        path: Path | None = self.path
        if self.files:
            path = file_of(self.files, self.path, tomogram.keys, tomogram.name, kind)
        if path is None:
            return None
        self._used.add(str(path))
        table = _of_kind(self._table(path, tomogram), path, kind)
        table = None if table is None else self._of_tomogram(table, path, tomogram)
        if table is not None:
            _check_inside(table, tomogram, path)
        return table

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
            return table if len(known) == 1 and (self.single or self.files) else None
        self._used.add(meant)
        return table[table[TOMOGRAM].astype(str) == meant]

    def _table(self, path: Path, tomogram: Tomogram) -> pd.DataFrame:
        """All points of a file as they are in this tomogram's frame. One file of many tomograms is not read again."""
        frame = (str(path), tomogram.voxel_size, tomogram.shape)
        if frame not in self._tables:
            self._tables.clear()
            self._tables[frame] = _points(path, self.format, tomogram)
        return self._tables[frame]


def _points(path: Path, format: str | None, tomogram: Tomogram) -> pd.DataFrame:
    """The points of all tomograms and kinds in a file; an empty table where it has none, which is a truth, too."""
    try:
        return read_points(path, format=format, voxel_size=tomogram.voxel_size, shape=tomogram.shape, tomogram_name=ALL)
    except InputError as error:
        if not str(error).endswith(": holds no points"):
            raise
    import pandas as pd

    return pd.DataFrame({axis: np.zeros(0) for axis in AXES})


def _match(names: Sequence[str], tomogram: Tomogram, path: Path) -> str | None:
    """Which of a file's names of tomograms is this one's: with or without folder and suffix."""
    found = []
    for name in names:
        last = re.split(r"[/\\]", name)[-1]
        if {name.casefold(), last.casefold(), stem_of(last).casefold()} & tomogram.keys:
            found.append(name)
    if len(found) > 1:
        raise InputError(f"{path}: {' and '.join(map(shown, found[:3]))} could both be {tomogram.name}")
    return found[0] if found else None


def _of_kind(table: pd.DataFrame, path: Path, kind: Kind) -> pd.DataFrame | None:
    """The rows of a kind where the file tells kinds apart, else all; None where it has others only.

    InputError where that is not clear: no other kind is looked for, and the file has several, or not the named one.
    """
    if KIND not in table.columns:
        return table
    kinds = table[KIND].astype(str)
    rows = kinds.str.casefold() == kind.name.casefold()
    if rows.any():
        return table[rows]
    if not kind.alone:
        return None
    if kind.named or kinds.nunique() > 1:
        known = ", ".join(map(shown, sorted(kinds.unique())[:6]))
        raise InputError(f"{path}: points of {known}, none of {kind.name!r}: name the kind, as in --radius KIND=120A")
    return table


def _check_inside(table: pd.DataFrame, tomogram: Tomogram, path: Path) -> None:
    """Refuse points most of which are nowhere in the tomogram."""
    points = table[list(AXES)].to_numpy(dtype=float)
    outside = ((points < -0.5) | (points > [n - 0.5 for n in tomogram.shape])).any(axis=1)
    if 2 * outside.sum() > len(points):
        size = " x ".join(map(str, tomogram.shape))
        raise InputError(
            f"{path}: {int(outside.sum())} of {len(points)} points are outside of {tomogram.name} ({size} voxels z, y, "
            f"x, of {tomogram.voxel_size[0]:g} Å): are they in voxels of another size, or another tomogram's?"
        )
