"""Checks that settings share: one line that names the setting, what it takes and what it was given."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cryosam_dask.errors import SettingsError


def require(ok: bool, name: str, expected: str, value: object) -> None:
    """Raise SettingsError about the setting `name` unless `ok`."""
    if not ok:
        raise SettingsError(f"simulation setting {name}: expected {expected}, found {value!r}")


def is_number(value: object) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Whether the value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def require_range(name: str, values: Sequence[float], low: float, high: float) -> None:
    """Raise SettingsError unless the values are two numbers, the first no larger, within [low, high]."""
    ok = len(values) == 2 and all(is_number(v) for v in values) and low <= values[0] <= values[1] <= high
    require(ok, name, f"two numbers from {low:g} to {high:g}, the smaller first", values)
