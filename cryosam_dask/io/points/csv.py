"""Points as CSV: a header with z, y, x in any order, zero-based voxels of the tomogram, and any other columns.

The columns score, instance, tomogram and kind have a meaning of their own. Written are z, y, x, score, instance.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Frame, Part
from cryosam_dask.io.text import MOST_COLUMNS, number, read_lines
from cryosam_dask.types import AXES

if TYPE_CHECKING:
    import pandas as pd


def joined(parts: Sequence[Part], joint: bool) -> pd.DataFrame:
    """One table; `joint`: the first column is the tomogram's name."""
    import pandas as pd

    if not joint:
        return parts[0][0]
    tables = [table.assign(tomogram=frame.tomogram) for table, frame in parts]
    every = pd.concat(tables, ignore_index=True)
    return every[["tomogram", *parts[0][0].columns]]


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """Write a CSV file; numbers read back bit for bit."""
    return encode_table(joined(parts, joint))


def encode_table(table: pd.DataFrame) -> bytes:
    """A table of numbers and names, all of which are quoted where one would be read as a comment or lose a space."""
    names = {str(name) for column in ("tomogram", "kind") if column in table for name in table[column].unique()}
    quoted = any("#" in name or name != name.strip() for name in names)
    quoting = csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL
    text: str = table.to_csv(index=False, lineterminator="\n", quoting=quoting)
    return text.encode()


def read(path: Path, frame: Frame) -> Columns:
    """Columns of text by lower-case name; those without a name (an index, empty cells of a spreadsheet) are left out.

    Empty lines and what follows a `#` are no part of the table. A value stays on its line, even where it is quoted.
    """
    lines = read_lines(path)
    names: list[str] = []
    rows: list[list[str]] = []
    for place, line in enumerate(lines, start=1):
        text = line if '"' in line and not line.lstrip().startswith("#") else line.partition("#")[0]
        if not text.strip():
            continue
        try:
            row = next(csv.reader([text], skipinitialspace=True, strict=True))
        except csv.Error as err:
            raise InputError(f"{path}: not a readable CSV: line {place}: {err}") from err
        if not names:
            names = _header(path, row)
        elif len(row) > len(names):
            raise InputError(f"{path}: not a readable CSV: line {place}: {len(row)} values, expected {len(names)}")
        else:
            rows.append(row + [""] * (len(names) - len(row)))
    if not names:
        raise InputError(f"{path}: holds no points: nothing but comments")
    return {name: [row[i] for row in rows] for i, name in enumerate(names) if name}


def _header(path: Path, row: Sequence[str]) -> list[str]:
    """The names of the columns; InputError unless z, y and x are among them and none comes twice."""
    names = [name.strip().lower() for name in row]
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{path}: {len(names)} columns, expected a header with z,y,x (at most {MOST_COLUMNS} columns)")
    missing = [axis for axis in AXES if axis not in names]
    if missing:
        sign = next((s for s in (";", "\t", "|") if len(names) == 1 and s in names[0]), None)
        hint = f"; the columns must be separated by commas, not by {sign!r}" if sign else ""
        if len(names) > 2 and not any(math.isnan(number(name)) for name in names[:3]):
            hint = "; columns x, y, z without a header are the format xyz (--points-format xyz, --truth-format xyz)"
        raise InputError(
            f"{path}: no column {', '.join(missing)}: expected a header with z,y,x, found '{shown(', '.join(names))}'"
            f"{hint}"
        )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: the column {shown(twice)} comes twice")
    return names
