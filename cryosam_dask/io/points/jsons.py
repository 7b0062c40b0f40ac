"""JSON from elsewhere: checked as it is taken apart, so that whatever stands in a file ends in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown


def parse(where: str, text: str) -> Any:
    """The value of a JSON text; InputError that begins with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        why = "too deep" if isinstance(err, RecursionError) else str(err)
        raise InputError(f"{where}: not readable JSON: {shown(why)}") from err


def member(where: str, value: Any, name: str, kind: type[Any]) -> Any:
    """`value[name]`, which must be a `kind`; InputError else."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        words = "an object" if kind is dict else "a list" if kind is list else "a text"
        raise InputError(f"{where}: expected {name!r} to be {words}, found {shown(found)}")
    return found


def location(where: str, point: Any) -> tuple[float, float, float]:
    """`point["location"]` as z, y, x."""
    place = member(where, point, "location", dict)
    return (real(where, place, "z"), real(where, place, "y"), real(where, place, "x"))


def real(where: str, value: dict[str, Any], name: str) -> float:
    """The finite number `value[name]`."""
    found = value.get(name)
    try:
        number = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name} is {shown(found)}, expected a number")
    return number


def whole(where: str, value: dict[str, Any], name: str) -> int:
    """The whole number `value[name]`."""
    number = real(where, value, name)
    if number != round(number) or abs(number) > 2**53:
        raise InputError(f"{where}: {name} is {shown(value[name])}, expected a whole number")
    return int(number)


def point(path: Path, number: int) -> str:
    """What an error calls a point."""
    return f"{path}: point {number}"
