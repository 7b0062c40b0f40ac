"""Points as plain text: one line for each point, x, y, z first, in voxels of the tomogram or in Å from its first
voxel's centre.

RELION, EMAN2, crYOLO, IMOD's `point2model` and most scripts read such files, and they are what picking programs write
most often: `.coords`, `.txt`, `.xyz`. Nothing in them says what the numbers are. They are taken as zero-based voxels,
or as Å where that is asked for (`Frame.unit`), as their writers most often mean it. Written are x, y, z in voxels.

Columns are separated by spaces, or by commas, semicolons or tabs. Names of columns in the first line, or in a comment
above it, tell what is what. Without them a fourth column is the score; IMOD's `model2point` writes contours, or objects
and contours, before x, y, z (options -contour and -object), which is seen by how these count up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part, axes_of, positions, rounded
from cryosam_dask.io.text import MOST_COLUMNS, number, numbers, plain, read_lines

_WHAT = "points as text, x y z"
_SEPARATORS = (",", ";", "\t")
_XYZ = ("x", "y", "z")
_MEANT = {"scores": "score", "confidence": "score", "cc": "score", "id": "instance"}


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """x, y, z in voxels, and nothing else: programs differ in what they take a fourth column for."""
    ((table, _),) = parts
    lines = (" ".join(map(plain, place)) for place in positions(table)[:, ::-1].tolist())
    return "".join(f"{line}\n" for line in lines).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x; all columns of a file with names, else a fourth column as the score."""
    names, rows, places = _rows(path)
    if names is None:
        names = _guessed(rows, frame)
    columns: Columns = {name: [row[i] for row in rows] for i, name in enumerate(names) if name}
    xyz = np.stack([_numbers(path, axis, columns.pop(axis), places) for axis in _XYZ], axis=1)
    zyx = np.ascontiguousarray(xyz[:, ::-1])
    if frame.unit == "angstrom":
        with np.errstate(all="ignore"):  # what overflows is refused as no number
            zyx = rounded(zyx / frame.angstrom(f"{path}: positions in Å"))
    return axes_of(zyx) | columns


def looks_like(start: bytes) -> bool:
    """Whether the first line that is not a comment has three numbers, or the names x, y, z."""
    for line in start.decode("utf-8-sig", "ignore").splitlines():
        if cells := _cells(line.partition("#")[0]):
            return _names(cells) is not None or (len(cells) > 2 and all(map(_is_number, cells[:3])))
    return False


def _rows(path: Path) -> tuple[list[str] | None, list[list[str]], list[int]]:
    """The columns' names if there are any, the rows' cells, and the rows' lines."""
    names: list[str] | None = None
    rows: list[list[str]] = []
    places: list[int] = []
    for place, line in enumerate(read_lines(path, _WHAT), start=1):
        text, _, comment = line.partition("#")
        cells = _cells(text)
        if not cells:
            if not rows:
                names = _names(_cells(comment)) or names
            continue
        if not rows and names is None and not _is_number(cells[0]):
            names = _header(path, place, cells)
            continue
        if len(cells) < 3 or (rows and len(cells) != len(rows[0])) or (names and len(cells) != len(names)):
            expected = len(names) if names else len(rows[0]) if rows else "x, y, z"
            raise InputError(f"{path}: line {place}: {len(cells)} values, expected {expected}")
        rows.append(cells)
        places.append(place)
    if not rows:
        raise InputError(f"{path}: holds no points")
    if len(rows[0]) > MOST_COLUMNS:
        raise InputError(f"{path}: {len(rows[0])} columns, expected x, y, z (at most {MOST_COLUMNS} columns)")
    return names, rows, places


def _cells(text: str) -> list[str]:
    """The values of a line; one that is missing between two separators is empty."""
    for separator in _SEPARATORS:
        if separator in text:
            cells = [cell.strip() for cell in text.split(separator)]
            while cells and not cells[-1]:
                cells.pop()
            return cells
    return text.split()


def _names(cells: Sequence[str]) -> list[str] | None:
    """The columns' names, where cells are names and x, y and z are among them; one that comes again is no name."""
    names = [re.sub(r"[\"'\[\]()]", "", cell).strip().lower() for cell in cells]
    if len(names) > MOST_COLUMNS or not all(names.count(axis) == 1 for axis in _XYZ):
        return None
    names = [_MEANT.get(name, name) for name in names]
    return [name if name not in names[:i] else "" for i, name in enumerate(names)]


def _header(path: Path, place: int, cells: Sequence[str]) -> list[str]:
    """The columns' names in a first line that is no numbers."""
    if names := _names(cells):
        return names
    raise InputError(
        f"{path}: line {place}: expected numbers x y z, or the columns' names with x, y and z, found '"
        f"{shown(' '.join(cells[:MOST_COLUMNS]))}'"
    )


def _guessed(rows: Sequence[Sequence[str]], frame: Frame) -> list[str]:
    """Names of columns that have none; what had to be assumed goes to the frame's notes."""
    width = len(rows[0])
    counts = [_whole(rows, i) for i in range(2)] if width in (4, 5) else []
    shares = width == 4 and all(0 <= number(row[3]) <= 1 for row in rows)
    if width == 4 and not shares and _counts_up(counts[0]):
        frame.notes.append("four columns, the first of which counts up: read as contour, x, y, z of IMOD's model2point")
        return ["", *_XYZ]
    if width == 5 and _counts_up(counts[0]) and _counts_up(counts[1], counts[0]):
        frame.notes.append(
            "five columns, two of which count up: read as object, contour, x, y, z of IMOD's model2point"
        )
        return ["kind", "", *_XYZ]
    if width == 4 and all(_is_number(row[3]) for row in rows):
        return [*_XYZ, "score"]
    if width > 3:
        listed = "column 4" if width == 4 else f"columns 4 to {width}"
        frame.notes.append(f"{listed} without names: left out; x, y, z are taken from the first three")
    return [*_XYZ, *[""] * (width - 3)]


def _whole(rows: Sequence[Sequence[str]], column: int) -> Float64 | None:
    """A column of whole numbers from 0; None if it is anything else."""
    texts = [row[column] for row in rows]
    if not all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts):
        return None
    return np.array(texts, dtype=float)


def _counts_up(values: Float64 | None, group: Float64 | None = None) -> bool:
    """Whether values are running numbers: from 0 or 1, never falling but where the group changes, and no more of them
    than rows (and one, since a contour may be empty)."""
    if values is None or values[0] > 1 or values.max() > len(values) + 1:
        return False
    again = np.zeros(len(values) - 1, bool) if group is None else np.diff(group) != 0
    return bool(((np.diff(values) >= 0) | again).all())


def _is_number(text: str) -> bool:
    return not math.isnan(number(text))


def _numbers(path: Path, name: str, texts: Sequence[str], places: Sequence[int]) -> Float64:
    """A column of coordinates; InputError that names the line of what is no number."""
    for text, place in zip(texts, places, strict=True):
        if not _is_number(text):
            raise InputError(f"{path}: line {place}: {name} is '{shown(text)}', expected a number")
    return numbers(path, name, texts)
