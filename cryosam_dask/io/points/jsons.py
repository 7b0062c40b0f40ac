"""Parse JSON from other programs, with checks, so that any error in a file becomes a one-line InputError."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import orientation
from cryosam_dask.io.points.base import Columns

_ORTHOGONAL = 1e-3  # files have few decimals


def parse(where: str, text: str) -> Any:
    """The value of a JSON text; InputError that begins with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        why = "too deep" if isinstance(err, RecursionError) else str(err)
        raise InputError(f"{where}: not readable JSON: {shown(why)}") from err


def member(where: str, value: Any, name: str, kind: type[Any]) -> Any:
    """`value[name]`, which must be a `kind`; InputError otherwise."""
    content = value.get(name) if isinstance(value, dict) else None
    if not isinstance(content, kind):
        words = "an object" if kind is dict else "a list" if kind is list else "a text"
        raise InputError(f"{where}: expected {name!r} to be {words}, found {shown(content)}")
    return content


def location(where: str, point: Any) -> tuple[float, float, float]:
    """`point["location"]` as z, y, x."""
    place = member(where, point, "location", dict)
    return (real(where, place, "z"), real(where, place, "y"), real(where, place, "x"))


def real(where: str, value: dict[str, Any], name: str) -> float:
    """The finite number `value[name]`."""
    raw = value.get(name)
    try:
        number = float(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name} is {shown(raw)}, expected a number")
    return number


def whole(where: str, value: dict[str, Any], name: str) -> int:
    """The whole number `value[name]`."""
    number = real(where, value, name)
    if number != round(number) or abs(number) > 2**53:
        raise InputError(f"{where}: {name} is {shown(value[name])}, expected a whole number")
    return int(number)


def matrix(where: str, name: str, value: Any, side: int) -> list[list[float]]:
    """A square matrix of finite numbers."""
    if (
        not isinstance(value, list)
        or len(value) != side
        or any(not isinstance(r, list) or len(r) != side for r in value)
    ):
        raise InputError(f"{where}: {name} is {shown(value)}, expected {side} rows of {side} numbers")
    where = f"{where}: {name}"
    return [[real(where, {"an entry": entry}, "an entry") for entry in row] for row in value]


def orientations(where: str, rotations: Sequence[Any], notes: list[str]) -> Columns:
    """rot, tilt, psi of each point's rotation (3 x 3, reference to tomogram, x, y, z); no columns, and a note, if one
    of them is not a rotation."""
    turned = np.asarray(rotations, dtype=float).reshape(-1, 3, 3)
    with np.errstate(all="ignore"):
        off = np.abs(turned @ turned.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
        wrong = int((~(off < _ORTHOGONAL) | ~(np.linalg.det(turned) > 0)).sum())
    if wrong:
        notes.append(f"{where}: the matrices of {wrong} points are no rotations: orientations are left out")
        return {}
    return orientation.of_matrices(turned)


def point(path: Path, number: int) -> str:
    """The name of a point in errors."""
    return f"{path}: point {number}"
