"""cryoSPARC's particles, `.cs`: a structured array of NumPy's, which is never unpickled.

cryoSPARC is a program for micrographs: its particles have `location/center_x_frac` and `…y_frac`, a place in a
micrograph as a fraction of its size (https://tools.cryosparc.com, "Dataset"). A place in a tomogram would need a third,
`location/center_z_frac`; a file that has all three is read, fraction · voxels, any other is refused. None is written.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Frame, axes_of, rounded
from cryosam_dask.io.text import read_bytes

_WHAT = "particles of cryoSPARC"
_PLACES = [f"location/center_{axis}_frac" for axis in "zyx"]
_NAME, _SCORE = "location/micrograph_path", "pick_stats/ncc_score"
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16
_LONGEST_NAME = 4096


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x; tomogram and score where the file has them."""
    content = read_bytes(path, _WHAT)
    table = _table(path, content)
    names = table.dtype.names or ()
    if missing := [name for name in _PLACES if name not in names or table.dtype[name].kind not in "iuf"]:
        raise InputError(
            f"{path}: {len(table)} particles without a place in a tomogram (no {shown(', '.join(missing))}): give "
            "the picks that they were made from, or cryoSPARC's export as STAR"
        )
    if frame.shape is None:
        raise InputError(f"{path}: places as fractions of the tomogram's size: its shape is needed")
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        fractions = np.stack([table[name].astype(float) for name in _PLACES], axis=1)
        columns = axes_of(rounded(fractions * np.asarray(frame.shape, dtype=float)))
    if _NAME in names and table.dtype[_NAME].kind in "SU" and table.dtype[_NAME].itemsize <= _LONGEST_NAME:
        columns["tomogram"] = [_text(value) for value in table[_NAME].tolist()]
    if _SCORE in names and table.dtype[_SCORE].kind in "iuf" and np.isfinite(table[_SCORE]).all():
        columns["score"] = table[_SCORE].astype(float)
    return columns


def looks_like(start: bytes) -> bool:
    return start.startswith(_MAGIC)


def _table(path: Path, content: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    """The array in a file, one row for each particle; InputError if it is not such an array, or the file is too short
    for it."""
    file = io.BytesIO(content)
    try:
        version = npy_format.read_magic(file)
        reader = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
        with warnings.catch_warnings():  # of headers as Python 2 wrote them
            warnings.simplefilter("ignore")
            shape, _, dtype = reader(file, max_header_size=_LONGEST_HEADER)
    except Exception as err:
        raise InputError(f"{path}: not a .cs file of cryoSPARC: {shown(str(err))}") from err
    start = file.tell()
    if dtype.hasobject or not dtype.names or len(shape) != 1:
        raise InputError(f"{path}: not a .cs file of cryoSPARC: expected one table, of numbers and texts")
    if not dtype.itemsize or shape[0] < 0 or start + shape[0] * dtype.itemsize > len(content):
        raise InputError(
            f"{path}: truncated: {shape[0]} particles of {dtype.itemsize} bytes, {len(content)} bytes in all"
        )
    return np.frombuffer(content, dtype, shape[0], start)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
