"""Points and picks of all formats.

Everything in Python is zero-based voxels of the input tomogram, (z, y, x); `points` has a module for each format, and
`points.plausible` the checks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_project
from cryosam_dask.io.atomic import write_bytes
from cryosam_dask.io.frame import one_line_errors, parse_voxel_size, shown
from cryosam_dask.io.points import ALL, COLUMNS, FORMATS, Frame, orientation
from cryosam_dask.io.points.base import choose
from cryosam_dask.io.points.names import check_name
from cryosam_dask.io.points.plausible import check_origin, check_points
from cryosam_dask.io.points.recognize import PICK_FORMATS, UNITS, check_unit, looks_like_points, pick_format
from cryosam_dask.io.text import number, numbers
from cryosam_dask.types import AXES, Pick, Shape3

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALL",
    "FORMATS",
    "PICK_FORMATS",
    "UNITS",
    "Frame",
    "check_points",
    "encode_picks",
    "looks_like_points",
    "pick_format",
    "read_points",
    "write_picks",
]

logger = logging.getLogger(__name__)


@one_line_errors()
def write_picks(
    picks: pd.DataFrame | Sequence[Pick],
    path: str | PathLike[str],
    *,
    format: str | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: Shape3 | None = None,
    tomogram_name: str | None = None,
    tomograms: str | PathLike[str] | None = None,
    kind: str | None = None,
    user: str = "cryosam",
    session: str = "0",
    notes: list[str] | None = None,
) -> None:
    """Write picks to a file that is complete or absent.

    Parameters
    ----------
    picks : `Pick`s, or a table with the columns z, y, x, score, instance; voxels. Orientations in the columns rot,
        tilt, psi (`points.orientation`) are written by the formats that have them
    path : the file; one that exists is replaced
    format : a name in `FORMATS`; None takes it from the suffix
    voxel_size, shape : the tomogram's, Å and voxels; relion5, warp, copick need what their unit asks for
    tomogram_name : what the file calls the tomogram; relion5 and warp need it
    tomograms : RELION's tomograms.star, which has the tomogram's exact centre for relion5
    kind : what was picked; copick needs it
    user, session : copick's names for whose picks these are
    notes : gets a sentence for each thing that had to be assumed; without it they are logged as warnings

    Raises InputError for an unknown format or missing parameters, StoreError where the file can't be written. Each
    format's module describes what the format keeps, and how exactly.
    """
    path = Path(path)
    frame = Frame(
        parse_voxel_size(voxel_size),
        shape,
        tomogram_name,
        None if tomograms is None else Path(tomograms),
        kind,
        user,
        session,
    )
    write_bytes(path, encode_picks([(picks, frame)], pick_format(path, format)))
    _tell(frame, notes)


def encode_picks(
    parts: Sequence[tuple[pd.DataFrame | Sequence[Pick], Frame]], format: str, *, joint: bool = False
) -> bytes:
    """The file of picks of one or more tomograms, each with its frame; `joint`: with the tomogram's name at each pick.

    InputError if the format can't hold several tomograms, if a frame lacks something that it needs, or if the format
    can't hold a name exactly.
    """
    chosen = FORMATS[format]
    if (joint or len(parts) != 1) and not chosen.joint:
        joined = ", ".join(name for name, each in FORMATS.items() if each.joint)
        raise InputError(f"{format} holds the picks of one tomogram alone; of several: {joined}")
    for _, frame in parts:
        if joint or (chosen.names and frame.tomogram is not None):
            check_name("tomogram", frame.tomogram, "--tomogram")
        if chosen.kinds and frame.kind is not None:
            check_name("kind", frame.kind, "--object")
    if chosen.encode is None:
        written = ", ".join(name for name, each in FORMATS.items() if each.encode)
        raise InputError(f"{format} is read, not written; picks are written as {written}")
    tables = [_table(picks) for picks, _ in parts]
    if any(map(orientation.has_angles, tables)):  # of a joint file all tables have the same columns
        tables = [
            table if orientation.has_angles(table) else table.assign(rot=0.0, tilt=0.0, psi=0.0) for table in tables
        ]
    return chosen.encode([(table, frame) for table, (_, frame) in zip(tables, parts, strict=True)], joint)


def _table(picks: pd.DataFrame | Sequence[Pick]) -> pd.DataFrame:
    import pandas as pd

    if isinstance(picks, pd.DataFrame):
        table = picks
    else:
        table = pd.DataFrame([asdict(pick) for pick in picks], columns=COLUMNS)
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"picks lack the columns {missing}")
    real = ["z", "y", "x", "score", *(orientation.ANGLES if orientation.has_angles(table) else ())]
    table = table[list(dict.fromkeys([*COLUMNS, *real]))].astype({**dict.fromkeys(real, float), "instance": np.int64})
    if not np.isfinite(table.to_numpy(dtype=float)).all():
        raise ValueError("picks hold NaN or infinite numbers")
    return table


@one_line_errors()
def read_points(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: Shape3 | None = None,
    tomogram_name: str | None = None,
    tomograms: str | PathLike[str] | None = None,
    kind: str | None = None,
    unit: str | None = None,
    notes: list[str] | None = None,
) -> pd.DataFrame:
    """Points of a file, in voxels of the tomogram.

    Parameters
    ----------
    path : the file; or picks of a copick project, `config.json#RUN/OBJECT:USER/SESSION`
    format : a name in `FORMATS`; None takes it from the suffix, and STAR files tell their own convention
    voxel_size, shape : the tomogram's, Å and voxels, where the file's convention needs them
    tomogram_name : which of several tomograms in a file; `ALL`: the points of all, and of all kinds if none is named.
        Those of other tomograms are converted as if they were of this one, too, and may then be negative
    tomograms : RELION's tomograms.star, for centred coordinates; an optimisation set names its own
    kind : which of several kinds in a file (a column, an object, a class); `ALL`: the points of all
    unit : of the positions, "voxel" or "angstrom", where a format leaves that open (xyz: voxels unless told)
    notes : gets a sentence for each thing that had to be assumed; without it they are logged as warnings

    Returns a table of z, y, x (float64), then score (float64), instance (int64) and the orientation rot, tilt, psi
    (degrees, RELION's convention; see `points.orientation`) where the file has them, then its other columns: tomogram,
    kind, and further columns of a table. Points may lie beyond the tomogram's border, as annotated and refined ones do;
    `check_points` refuses those. Raises InputError for a file that can't be read, has no points, has points of several
    tomograms or kinds of which none was asked for, has coordinates that are not finite, or has mostly coordinates far
    below the first voxel, which are not counted from it.
    """
    if "#" in str(path) and copick_project.is_address(str(path)):
        path = copick_project.picks_path(str(path))
    path = Path(path)
    if kind == "" or tomogram_name == "":
        raise InputError("a tomogram's or a kind's name is empty")
    kind = ALL if kind is None and tomogram_name == ALL else kind
    if unit not in (None, *UNITS):
        raise InputError(f"the unit of points is {shown(unit)}, expected {' or '.join(UNITS)}")
    frame = Frame(
        parse_voxel_size(voxel_size),
        shape,
        tomogram_name,
        None if tomograms is None else Path(tomograms),
        kind,
        unit=unit,
    )
    table = _read(path, format, frame)
    _tell(frame, notes)
    return table


def _tell(frame: Frame, notes: list[str] | None) -> None:
    """Pass on what had to be assumed, each sentence once."""
    for note in dict.fromkeys(frame.notes):
        if notes is None:
            logger.warning("%s", note)
        else:
            notes.append(note)


def _read(path: Path, format: str | None, frame: Frame) -> pd.DataFrame:
    """See `read_points`."""
    import pandas as pd

    name = pick_format(path, format)
    check_unit(path, name, frame.unit)
    columns = FORMATS[name].read(path, frame)
    columns = choose(path, choose(path, columns, "tomogram", frame.tomogram, frame.notes), "kind", frame.kind)
    if not len(columns["z"]):
        raise InputError(f"{path}: holds no points")
    checked: dict[str, Any] = {axis: _numbers(path, axis, columns.pop(axis)) for axis in AXES}
    # positions of other tomograms, in the frame of this one, may be anywhere
    if frame.tomogram != ALL or len(set(columns.get("tomogram", ()))) < 2:
        check_origin(path, np.stack(list(checked.values()), axis=1), frame.shape)
    if "score" in columns:
        checked["score"] = _numbers(path, "score", columns.pop("score"))
    if "instance" in columns:
        checked["instance"] = _integers(path, "instance", columns.pop("instance"))
    if all(name in columns and _are_numbers(columns[name]) for name in orientation.ANGLES):
        checked |= {name: _numbers(path, name, columns.pop(name)) for name in orientation.ANGLES}
    return pd.DataFrame({**checked, **{name: _tidy(name, values) for name, values in columns.items()}})


def _are_numbers(values: Any) -> bool:
    """Whether a column is one of numbers, or of texts that all are."""
    return (
        values.dtype.kind in "iuf" if isinstance(values, np.ndarray) else not any(map(math.isnan, map(number, values)))
    )


def _numbers(path: Path, name: str, values: Any) -> NDArray[np.float64]:
    """A column, of texts or of numbers, as finite float64."""
    if not isinstance(values, np.ndarray):
        return numbers(path, name, values)
    column = values.astype(np.float64)
    if not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0])
        raise InputError(f"{path}: row {row + 1}: {name} is '{column[row]}', expected a number")
    return column


def _integers(path: Path, name: str, values: Any) -> NDArray[np.int64]:
    column = _numbers(path, name, values)
    if (column != np.round(column)).any() or (np.abs(column) > 2**53).any():
        raise InputError(f"{path}: column {name}: expected whole numbers")
    return column.astype(np.int64)


def _tidy(name: str, values: Any) -> Any:
    """A further column: numbers where all of it is numbers, else text; names stay text."""
    import pandas as pd

    if isinstance(values, np.ndarray):
        return values
    if name in ("tomogram", "kind"):
        return pd.Series(values, dtype=object)  # many rows share few texts
    parsed = [number(text) for text in values]
    if any(map(math.isnan, parsed)):
        return list(values)
    whole = all(text.strip().lstrip("+-").isdigit() for text in values) and all(abs(value) <= 2**53 for value in parsed)
    return [int(value) for value in parsed] if whole else parsed
