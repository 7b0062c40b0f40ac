"""Points and picks: CSV and RELION STAR, and the check that a point lies in the tomogram.

Everything in Python is zero-based voxels of the input tomogram, (z, y, x); `star` owns RELION's conventions.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.atomic import write_text
from cryosam_dask.io.frame import one_line_errors, parse_voxel_size, shown
from cryosam_dask.io.star import read_star, star_text
from cryosam_dask.io.text import MOST_COLUMNS, number, numbers, read_lines
from cryosam_dask.types import AXES, Pick, Shape3

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["z", "y", "x", "score", "instance"]
# Format names and the suffixes that stand for them; `star` is RELION 4's convention when written, either when read.
PICK_FORMATS = {"csv": (".csv",), "star": (".star",), "relion4": (), "relion5": ()}


def write_picks(
    picks: pd.DataFrame | Sequence[Pick],
    path: str | PathLike[str],
    *,
    format: str | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: Shape3 | None = None,
    tomogram_name: str = "tomogram",
) -> None:
    """Write picks to a file that is complete or absent.

    Parameters
    ----------
    picks : `Pick`s, or a table with the columns z, y, x, score, instance; voxels
    path : the file; one that exists is replaced
    format : csv, star (= relion4) or relion5; None takes it from the suffix
    voxel_size, shape : the tomogram's, Å and voxels; only relion5 needs them
    tomogram_name : what STAR files call the tomogram

    Raises InputError for an unknown format or missing parameters, StoreError where the file can't be written.
    CSV numbers read back bit for bit; STAR numbers have six decimals.
    """
    import pandas as pd

    path = Path(path)
    kind = _format(path, format)
    if isinstance(picks, pd.DataFrame):
        table = picks
    else:
        table = pd.DataFrame([asdict(pick) for pick in picks], columns=COLUMNS)
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"picks lack the columns {missing}")
    table = table[COLUMNS].astype({"z": float, "y": float, "x": float, "score": float, "instance": np.int64})
    if not np.isfinite(table.to_numpy(dtype=float)).all():
        raise ValueError("picks hold NaN or infinite numbers")
    if kind == "csv":
        text = table.to_csv(index=False, lineterminator="\n")
    else:
        text = star_text(
            table,
            centred=kind == "relion5",
            tomogram_name=tomogram_name,
            voxel_size=parse_voxel_size(voxel_size),
            shape=shape,
        )
    write_text(path, text)


@one_line_errors()
def read_points(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: Shape3 | None = None,
    tomogram_name: str | None = None,
) -> pd.DataFrame:
    """Points of a CSV or STAR file, in voxels of the tomogram.

    Parameters
    ----------
    path : a CSV with a header that has z, y, x in any order, or a RELION STAR file
    format : csv, star, relion4 or relion5; None takes it from the suffix. STAR files tell their own convention
    voxel_size, shape : the tomogram's, Å and voxels, where the file's convention needs them
    tomogram_name : which of several tomograms in a STAR file

    Returns a table of z, y, x (float64), then score (float64) and instance (int64) where the file has them, then a
    CSV's other columns. Raises InputError for a file that can't be read, has no points, or holds anything but finite,
    non-negative coordinates.
    """
    import pandas as pd

    path = Path(path)
    if _format(path, format) == "csv":
        columns: dict[str, list[str]] = _read_csv(path, read_lines(path))
    else:
        size = parse_voxel_size(voxel_size)
        columns = read_star(path, read_lines(path), voxel_size=size, shape=shape, tomogram_name=tomogram_name)
    if not len(columns["z"]):
        raise InputError(f"{path}: holds no points")
    found: dict[str, Any] = {axis: _coordinates(path, axis, columns.pop(axis)) for axis in AXES}
    if "score" in columns:
        found["score"] = numbers(path, "score", columns.pop("score"))
    if "instance" in columns:
        found["instance"] = _integers(path, "instance", columns.pop("instance"))
    return pd.DataFrame({**found, **{name: _tidy(values) for name, values in columns.items()}})


@one_line_errors()
def check_points(points: ArrayLike | pd.DataFrame, shape: Shape3) -> NDArray[np.float64]:
    """`points` as (N, 3) float64 (z, y, x), all in the tomogram of `shape`: 0 ≤ coordinate ≤ size − 1.

    Raises InputError that names the first point outside, the valid range of each axis, and notices x,y,z order.
    """
    if hasattr(points, "columns"):  # a table of pandas, which is not imported for this
        table: Any = points
        points = table[list(AXES)].to_numpy()
    try:
        array = np.array(points, dtype=np.float64, ndmin=2)
    except (TypeError, ValueError) as err:
        raise InputError(f"points {shown(points)}: expected numbers Z,Y,X") from err
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise InputError(f"points of shape {array.shape}: expected three numbers Z,Y,X for each of one or more points")
    top = np.asarray(shape) - 1
    inside = _inside(array, top)
    if inside.all():
        return array
    worst = int(np.flatnonzero(~inside)[0])
    ranges = ", ".join(f"{axis} 0 to {limit}" for axis, limit in zip(AXES, top, strict=True))
    message = f"point {_show(array[worst])} is outside the tomogram (valid: {ranges})"
    if len(array) > 1:
        message += f"; {int((~inside).sum())} of {len(array)} points are"
    if _inside(array[:, ::-1], top).all():
        swapped = _show(array[worst][::-1])
        message += f"; it looks like x,y,z order, cryosam takes Z,Y,X: try {swapped}"
    raise InputError(message)


def _inside(points: NDArray[np.float64], top: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.all((points >= 0) & (points <= top), axis=1), dtype=np.bool_)


def _show(point: Iterable[float]) -> str:
    return ",".join(f"{v:g}" for v in point)


def _format(path: Path, asked: str | None) -> str:
    if asked is not None:
        if asked.lower() not in PICK_FORMATS:
            raise InputError(f"unknown format {asked!r} for points; known: {', '.join(PICK_FORMATS)}")
        return asked.lower()
    for name, suffixes in PICK_FORMATS.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffix for suffixes in PICK_FORMATS.values() for suffix in suffixes)
    raise InputError(
        f"{path}: the suffix {path.suffix!r} tells no format for points (known: {known}); "
        f"give one with --format: {', '.join(PICK_FORMATS)}"
    )


def _read_csv(path: Path, lines: Sequence[str]) -> dict[str, list[str]]:
    """Columns of text by lower-case name; those without a name (an index, empty cells of a spreadsheet) are left out.

    Empty lines and what follows a `#` are no part of the table. A value stays on its line, even where it is quoted.
    """
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
        raise InputError(
            f"{path}: no column {', '.join(missing)}: expected a header with z,y,x, found '{shown(', '.join(names))}'"
            f"{hint}"
        )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: the column {shown(twice)} comes twice")
    return names


def _coordinates(path: Path, axis: str, texts: Sequence[str]) -> NDArray[np.float64]:
    found = numbers(path, axis, texts)
    if (found < 0).any():
        row = int(np.flatnonzero(found < 0)[0])
        raise InputError(f"{path}: row {row + 1}: {axis} is {found[row]:g}, outside the tomogram (voxels count from 0)")
    return found


def _integers(path: Path, name: str, texts: Sequence[str]) -> NDArray[np.int64]:
    found = numbers(path, name, texts)
    if (found != np.round(found)).any() or (np.abs(found) > 2**53).any():
        raise InputError(f"{path}: column {name}: expected whole numbers")
    return found.astype(np.int64)


def _tidy(texts: Sequence[str]) -> Any:
    """A further column: numbers where all of it is numbers, else text."""
    found = [number(text) for text in texts]
    if any(map(math.isnan, found)):
        return list(texts)
    whole = all(text.strip().lstrip("+-").isdigit() for text in texts) and all(abs(value) <= 2**53 for value in found)
    return [int(value) for value in found] if whole else found
