"""What requests hold, checked: each error is one line that says what was expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.plausible import check_points
from cryosam_dask.store.clicks import Kind
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json, Point
from cryosam_dask.viewer.desk import Desk
from cryosam_dask.viewer.status import NotThereError


def kind_of(desk: Desk, body: Json, key: str = "kind") -> tuple[RunStore, Kind]:
    """The run, and the kind that a body names."""
    store, name = desk.need_store(), text(body, key)
    kinds = desk.clicks(store).kinds
    if name not in kinds:
        raise NotThereError(f"no kind {name[:64]!r}; there are: {', '.join(list(kinds)[:10]) or 'none yet'}")
    return store, kinds[name]


def text(body: Json, key: str) -> str:
    """A text that is not empty."""
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: expected a text, got {str(value)[:40]!r}")
    return value


def number(body: Json, key: str) -> float:
    """A finite number."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def whole(body: Json, key: str) -> int:
    """A whole number of 1 or more."""
    value = number(body, key)
    if value != int(value) or not 1 <= value <= 10_000_000:
        raise InputError(f"{key}: expected a whole number of 1 or more, got {value:g}")
    return int(value)


def position_of(store: RunStore, value: Any) -> Point:
    """A position (z, y, x) in the tomogram."""
    numbers = value if isinstance(value, list) and len(value) == 3 else []
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise InputError(f"position {str(value)[:60]}: expected three numbers [z, y, x]")
    z, y, x = check_points(np.array([numbers], float), store.shape)[0].tolist()
    return z, y, x
