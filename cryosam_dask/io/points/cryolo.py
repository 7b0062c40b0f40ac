"""crYOLO's boxes in a tomogram, `.cbox`: a STAR file with corners of boxes, in zero-based voxels.

From crYOLO's box manager (`box_manager/io/cbox.py`): the table with `CoordinateX`, `CoordinateY` (the box's lower
corner), `Width`, `Height`, and `CoordinateZ`, which is the box's centre. So a particle stands at X + Width / 2, Y +
Height / 2, Z. `Confidence` is the score. Boxes of micrographs, whose Z is `<NA>`, are refused. Picks have no size:
written boxes have a side of 10 voxels, as the box manager takes where none is told. crYOLO's `.coords` are plain text
(`xyz`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Frame, Part, axes_of, positions, rounded
from cryosam_dask.io.star import read_tables
from cryosam_dask.io.text import number, numbers, plain

_WHAT = "points as crYOLO's boxes"
_CORNER, _SIDES, _Z, _SCORE = ["CoordinateX", "CoordinateY"], ["Width", "Height"], "CoordinateZ", "Confidence"
_MISSING = "<NA>"
_BOX = 10.0
_FIELDS = [*_CORNER, _Z, *_SIDES, "Depth", "EstWidth", "EstHeight", _SCORE, "NumBoxes", "Angle"]


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """Boxes with six decimals; which slices have any follows, as crYOLO has it."""
    ((table, _),) = parts
    lines = ["", "data_global", "", "_cbox_format_version 1.0", "", "data_cryolo", "", "loop_"]
    lines += [f"_{name} #{i}" for i, name in enumerate(_FIELDS, start=1)]
    for (z, y, x), score in zip(positions(table).tolist(), table["score"].astype(float).tolist(), strict=True):
        box = [x - _BOX / 2, y - _BOX / 2, z, _BOX, _BOX, _BOX]
        lines.append(" ".join([*map(plain, box), _MISSING, _MISSING, plain(score, 9), _MISSING, _MISSING]))
    slices = np.unique(positions(table)[:, 0]).tolist()
    lines += ["", "data_cryolo_include", "", "loop_", "_slice_index #1", *map(plain, slices)]
    return "".join(f"{line}\n" for line in lines).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x; score where each box has one."""
    table = next((table for table in read_tables(path) if table.has([*_CORNER, *_SIDES])), None)
    if table is None:
        raise InputError(f"{path}: no boxes: expected a table with {', '.join([*_CORNER, _Z, *_SIDES])}")
    columns = table.columns
    depth = columns.get(_Z, [_MISSING] * table.rows())
    if (missing := depth.count(_MISSING)) and missing == len(depth):
        raise InputError(f"{path}: boxes of a micrograph: none has a {_Z}, as those of a tomogram do")
    corner = np.stack([numbers(path, name, columns[name]) for name in _CORNER], axis=1)
    sides = np.stack([numbers(path, name, columns[name]) for name in _SIDES], axis=1)
    if (sides < 0).any():
        raise InputError(f"{path}: a box of size {shown(str(sides.min()))}")
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        xy = corner + sides / 2
        points = axes_of(rounded(np.stack([numbers(path, _Z, depth), xy[:, 1], xy[:, 0]], axis=1)))
    scores = columns.get(_SCORE, [_MISSING])
    if all(number(text) == number(text) for text in scores):
        points["score"] = scores
    return points
