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
_TABLE = "points as CSV or STAR"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What `float` takes beyond numbers of these signs (1_000, ١٢, nan, infinity) is no number of a table.
_SIGNS = frozenset("0123456789+-.eE \t")


def read_bytes(path: Path, expected: str) -> bytes:
    """The bytes of a file of points; InputError if it is not a file, is empty, or is larger than any such file."""
    size = regular_file(path).st_size
    if size > _MOST_BYTES:
        raise InputError(f"{path}: {size} bytes, too large for {expected} (at most {_MOST_BYTES})")
    try:
        with path.open("rb") as file:
            content = file.read(size)
    except OSError as err:
        raise InputError(f"{path}: can't be read: {err.strerror or err}") from err
    if not content:
        raise InputError(f"{path}: empty, expected {expected}")
    return content


def read_text(path: Path, expected: str = _TABLE) -> str:
    """The text of a file in UTF-8; InputError as by `read_bytes`, and for a file that is not text, or is empty."""
    try:
        text = _without_nul(path, expected).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {err.start}), expected {expected}") from err
    if not text.strip():
        raise InputError(f"{path}: empty, expected {expected}")
    return text


def read_lines(path: Path, expected: str = _TABLE) -> list[str]:
    """The lines of a text file in UTF-8, whichever way they end.

    Raises InputError as by `read_text`, and for control characters.
    """
    text = read_text(path, expected)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if _CONTROL.search(text):
        number = next(i for i, line in enumerate(lines, start=1) if _CONTROL.search(line))
        raise InputError(f"{path}: line {number}: a control character, expected {expected.replace('points', 'text')}")
    return lines


def _without_nul(path: Path, expected: str) -> bytes:
    """The bytes; what is not text is known by its start, before the rest is loaded."""
    if regular_file(path).st_size <= _MOST_BYTES:
        try:
            with path.open("rb") as file:
                start = file.read(4096)
        except OSError as err:
            raise InputError(f"{path}: can't be read: {err.strerror or err}") from err
        if b"\0" in start:
            raise InputError(f"{path}: not a text file, expected {expected}")
    return read_bytes(path, expected)


def number(text: str) -> float:
    """The finite number that `text` is, in plain or scientific notation; NaN for anything else."""
    try:
        value = float(text) if _SIGNS.issuperset(text) else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def numbers(path: Path, name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """The column `name` of `path` as float64; InputError that shows the first text that is not a number."""
    values = np.fromiter(map(number, texts), dtype=np.float64, count=len(texts))
    if np.isnan(values).any():
        row = int(np.flatnonzero(np.isnan(values))[0])
        raise InputError(f"{path}: row {row + 1}: {name} is '{shown(texts[row])}', expected a number")
    return values


def plain(value: float, digits: int = 6) -> str:
    """A number with at most so many decimals, without trailing zeros: 1.5, 20, 0."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
