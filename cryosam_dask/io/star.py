"""Particle positions as RELION's STAR files.

They are written with the starfile library and read by a stricter reader of this module's own: a table of points that
is quietly cut or mixed up would be worse than none. Every row must have as many values as the table has columns,
names of blocks and columns must differ, and what stands at the start of a value alone (`#`, quotes) is a sign.

Two conventions, both taken from RELION's sources (`particle_set.cpp`, `tomogram_set.cpp`, `reconstruct_tomogram`):

relion4: `rlnCoordinateX/Y/Z`, pixels, zero-based. RELION 4 adds 1 when it reads a position and places the first voxel
    of a reconstruction at 1; RELION 5 does neither, so in both the first voxel's centre is coordinate 0. What is
    written here are voxels of the picked tomogram: where that one is binned, give RELION's import the binning as its
    scale factor. A file whose optics table has `rlnTomoTiltSeriesPixelSize` holds unbinned pixels; they are scaled to
    the tomogram's voxels when read.
relion5: `rlnCenteredCoordinateX/Y/ZAngst`, Å from the centre, (i − D/2) · voxel size for index i of D. D/2 is what
    RELION 5's extraction uses (`Tomogram::centre`), for odd D too; the same at every binning.

Refined shifts are applied when read: position − Aᵀ · `rlnOriginX/Y/ZAngst`, A the ZYZ rotation of
`rlnTomoSubtomogramRot/Tilt/Psi` (the identity where these are missing).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, plausible_voxel, shown
from cryosam_dask.io.text import MOST_COLUMNS, numbers
from cryosam_dask.types import Point, Shape3

if TYPE_CHECKING:
    import pandas as pd

PIXELS = ["rlnCoordinateZ", "rlnCoordinateY", "rlnCoordinateX"]
CENTRED = ["rlnCenteredCoordinateZAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateXAngst"]
SHIFTS = ["rlnOriginZAngst", "rlnOriginYAngst", "rlnOriginXAngst"]
ANGLES = ["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]
SCORE, INSTANCE = "rlnAutopickFigureOfMerit", "rlnTomoParticleId"
NAMES = ["rlnTomoName", "rlnMicrographName"]
PIXEL_SIZE = "rlnTomoTiltSeriesPixelSize"
_DIGITS = 6  # decimals in the file, RELION's own number

Float64 = NDArray[np.float64]

# A quoted value, a comment to the line's end, or what stands between spaces. A lone quote at the start matches none.
_TOKEN = re.compile(r"""\s*(?:'([^']*)'(?=\s|$)|"([^"]*)"(?=\s|$)|(\#.*)|([^\s'"]\S*))""")


@dataclass
class Table:
    """A data block: its columns of texts by name. Single values (no `loop_`) are columns of one row."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    looped: bool = False

    def rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def keep(self, rows: Sequence[bool]) -> Table:
        """The table of the rows that are True."""
        columns = {k: [v for v, kept in zip(vs, rows, strict=True) if kept] for k, vs in self.columns.items()}
        return Table(columns, self.looped)


def star_text(
    picks: pd.DataFrame,
    *,
    centred: bool,
    tomogram_name: str | Sequence[str],
    voxel_size: Point | None,
    shape: Shape3 | None,
) -> str:
    """The text of a STAR file of `picks` (z, y, x, score, instance), in voxels; `centred` is RELION 5's convention.

    One table alone, because RELION's coordinate import reads a file's first one.
    """
    import pandas as pd

    positions = picks[["z", "y", "x"]].to_numpy(dtype=float)
    columns = PIXELS
    if centred:
        size, half = _centring(voxel_size, shape, "STAR in RELION 5's convention")
        positions, columns = (positions - half) * size, CENTRED
    named = [tomogram_name] * len(picks) if isinstance(tomogram_name, str) else list(tomogram_name)
    table = pd.DataFrame({NAMES[0]: named})
    for axis in (2, 1, 0):
        table[columns[axis]] = positions[:, axis]
    table[SCORE] = picks["score"].to_numpy(dtype=float)
    table[INSTANCE] = picks["instance"].to_numpy(dtype=np.int64)
    import starfile

    text: str = starfile.to_string({"particles": table}, float_format=f"%.{_DIGITS}f")
    return text


def read_star(
    path: Path, lines: Sequence[str], *, voxel_size: Point | None, shape: Shape3 | None, tomogram_name: str | None
) -> dict[str, list[str]]:
    """Columns z, y, x in voxels, and score and instance where the file has them, unchecked, as texts.

    `path` is what errors name, `lines` its text. Of several tomograms in one file, `tomogram_name` says which. Raises
    InputError for a file that is no STAR, has no coordinates, or whose convention needs a `voxel_size` or `shape` that
    is None.
    """
    tables = _parse(path, lines)
    table = _one_tomogram(path, _particles(path, tables), tomogram_name)
    known = voxel_size is not None and shape is not None
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        if set(CENTRED) <= set(table.columns) and (known or not set(PIXELS) <= set(table.columns)):
            size, half = _centring(voxel_size, shape, f"{path}: centred coordinates")
            positions = _numbers(path, table, CENTRED) / size + half
        else:
            positions = _numbers(path, table, PIXELS) * _binning(path, tables, voxel_size)
        positions = np.round(positions - _shifts(path, table, voxel_size), _DIGITS) + 0.0
    columns = {axis: list(map(repr, positions[:, i].tolist())) for i, axis in enumerate("zyx")}
    for name, column in (("score", SCORE), ("instance", INSTANCE)):
        if column in table.columns:
            columns[name] = table.columns[column]
    return columns


def _centring(voxel_size: Point | None, shape: Shape3 | None, what: str) -> tuple[Float64, Float64]:
    if voxel_size is None or shape is None:
        raise InputError(f"{what}: in Å from the tomogram's centre, so they need its voxel size and shape")
    return np.asarray(voxel_size, dtype=float), np.asarray(shape, dtype=float) / 2


def _parse(path: Path, lines: Sequence[str]) -> list[Table]:
    """The data blocks of a STAR file."""

    def unreadable(number: int, why: str) -> InputError:
        return InputError(f"{path}: not a readable STAR file: line {number}: {why}")

    tables: list[Table] = []
    names: set[str] = set()
    for number, tokens in _token_lines(path, lines):
        first = tokens[0]
        if first.startswith("data_") and len(tokens) == 1:
            if first in names:
                raise unreadable(number, f"a second block {shown(first)}")
            names.add(first)
            tables.append(Table())
        elif not tables:
            continue  # what stands before the first block is nobody's
        elif first == "loop_":
            if tables[-1].columns or tables[-1].looped:
                raise unreadable(number, "a second table in one block")
            tables[-1].looped = True
        elif first.startswith("_") and not (tables[-1].looped and tables[-1].rows()):
            table, label = tables[-1], first[1:]
            if label in table.columns or len(table.columns) == MOST_COLUMNS:
                raise unreadable(number, f"{shown(label)} again, or more than {MOST_COLUMNS} columns")
            if not table.looped and len(tokens) != 2:
                raise unreadable(number, f"{len(tokens) - 1} values for {shown(label)}, expected one")
            table.columns[label] = [] if table.looped else [tokens[1]]
        else:
            expected = len(tables[-1].columns) if tables[-1].looped else 0
            if len(tokens) != expected or not expected:
                raise unreadable(number, f"{len(tokens)} values, expected {expected}")
            for column, token in zip(tables[-1].columns.values(), tokens, strict=True):
                column.append(token)
    if not tables:
        raise InputError(f"{path}: not a STAR file: no data block in it")
    return tables


def _token_lines(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line's number, its values) of each line that has any."""
    for number, line in enumerate(lines, start=1):
        if not ("'" in line or '"' in line or "#" in line):
            tokens = line.split()
        else:
            tokens, place, line = [], 0, line.rstrip()
            while place < len(line):
                match = _TOKEN.match(line, place)
                if match is None:
                    raise InputError(f"{path}: not a readable STAR file: line {number}: a quote that does not end")
                place = match.end()
                if match[3] is None:
                    tokens.append(next(text for text in match.groups() if text is not None))
        if tokens:
            yield number, tokens


def _particles(path: Path, tables: Sequence[Table]) -> Table:
    """The first table with positions."""
    found: list[str] = []
    for table in tables:
        if set(PIXELS) <= set(table.columns) or set(CENTRED) <= set(table.columns):
            return table
        found += table.columns
    raise InputError(
        f"{path}: no particle coordinates: expected rlnCoordinateX/Y/Z or rlnCenteredCoordinateX/Y/ZAngst, "
        f"found {shown(', '.join(found)) or 'no columns'}"
    )


def _one_tomogram(path: Path, table: Table, tomogram_name: str | None) -> Table:
    column = next((name for name in NAMES if name in table.columns), None)
    names = sorted(set(table.columns[column])) if column else []
    if column is None or len(names) < 2:
        return table
    if tomogram_name not in names:
        listed = ", ".join(map(shown, names[:5])) + (", …" if len(names) > 5 else "")
        asked = "say which one" if tomogram_name is None else f"none of them {tomogram_name!r}"
        raise InputError(f"{path}: points of {len(names)} tomograms ({listed}), {asked}")
    return table.keep([name == tomogram_name for name in table.columns[column]])


def _numbers(path: Path, table: Table, columns: list[str]) -> Float64:
    return np.stack([numbers(path, column, table.columns[column]) for column in columns], axis=1)


def _binning(path: Path, tables: Sequence[Table], voxel_size: Point | None) -> Float64:
    """Voxels per pixel of the file (z, y, x): 1 unless the file says that its pixels are the tilt series'."""
    sizes: set[float] = set()
    for table in tables:
        if PIXEL_SIZE in table.columns:
            sizes.update(_numbers(path, table, [PIXEL_SIZE]).ravel().tolist())
    if not sizes:
        return np.ones(3)
    if len(sizes) > 1:
        found = shown(", ".join(f"{size:g}" for size in sorted(sizes)))
        raise InputError(f"{path}: several tilt series pixel sizes ({found} Å), expected one: split the file")
    if not plausible_voxel(size := sizes.pop()):
        raise InputError(f"{path}: {PIXEL_SIZE} is {size:g} Å, which no camera's pixels are")
    if voxel_size is None:
        raise InputError(
            f"{path}: coordinates in pixels of {size:g} Å: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}"
        )
    return size / np.asarray(voxel_size, dtype=float)


def _shifts(path: Path, table: Table, voxel_size: Point | None) -> Float64:
    """The refined shifts in voxels (z, y, x), to be subtracted."""
    if not set(SHIFTS) <= set(table.columns):
        return np.zeros((table.rows(), 3))
    shifts = _numbers(path, table, SHIFTS)
    if not shifts.any():
        return shifts
    if voxel_size is None:
        raise InputError(f"{path}: refined shifts in Å: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}")
    if set(ANGLES) <= set(table.columns):
        from scipy.spatial.transform import Rotation

        rotation = Rotation.from_euler("ZYZ", _numbers(path, table, ANGLES), degrees=True)
        shifts = rotation.inv().apply(shifts[:, ::-1].copy())[:, ::-1]
    rotated: Float64 = shifts / np.asarray(voxel_size, dtype=float)
    return rotated
