"""Text files of points: read whole, checked before they are parsed, and their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import regular_file, shown

MOST_COLUMNS = 1000
"""More columns than any program writes; tables grow slowly by column."""

_MOST_BYTES = 1 << 28  # some millions of points
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What `float` takes beyond numbers of these signs (1_000, ١٢, nan, infinity) is no number of a table.
_SIGNS = frozenset("0123456789+-.eE \t")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, whichever way they end.

    Raises InputError for what is no such file, is empty, holds control characters, or is larger than any table of
    points; a file that is not text is known by its start, before the rest is loaded.
    """
    size = regular_file(path).st_size
    if size > _MOST_BYTES:
        raise InputError(f"{path}: {size} bytes, too large for points as CSV or STAR (at most {_MOST_BYTES})")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            if b"\0" in start:
                raise InputError(f"{path}: not a text file, expected points as CSV or STAR")
            text = (start + file.read(max(size - len(start), 0))).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {err.start}), expected CSV or STAR") from err
    except OSError as err:
        raise InputError(f"{path}: can't be read: {err.strerror or err}") from err
    if not text.strip():
        raise InputError(f"{path}: empty, expected points as CSV or STAR")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if _CONTROL.search(text):
        number = next(i for i, line in enumerate(lines, start=1) if _CONTROL.search(line))
        raise InputError(f"{path}: line {number}: a control character, expected text as CSV or STAR")
    return lines


def number(text: str) -> float:
    """The finite number that `text` is, in plain or scientific notation; NaN for anything else."""
    try:
        value = float(text) if _SIGNS.issuperset(text) else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def numbers(path: Path, name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """The column `name` of `path` as float64; InputError that shows the first text that is no number."""
    found = np.fromiter(map(number, texts), dtype=np.float64, count=len(texts))
    if np.isnan(found).any():
        row = int(np.flatnonzero(np.isnan(found))[0])
        raise InputError(f"{path}: row {row + 1}: {name} is '{shown(texts[row])}', expected a number")
    return found
