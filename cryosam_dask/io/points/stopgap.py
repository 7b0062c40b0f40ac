"""STOPGAP's motive lists: a STAR file with the columns of `sg_get_motl_fields.m` (`motives` has the conventions).

`motl_idx` and `subtomo_num` number entries and subtomograms, `tomo_num` the tomograms; a particle stands at
`orig_x/y/z` + `x/y/z_shift`; `phi`, `psi`, `the` are angles, in the order in which they are in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.points import motives
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part
from cryosam_dask.io.star import Table, read_tables
from cryosam_dask.io.text import numbers, plain

_WHAT = "points as a STOPGAP motive list"
_PLACES = ["orig_x", "orig_y", "orig_z"]
_SHIFTS = ["x_shift", "y_shift", "z_shift"]
_ANGLES = ["phi", "the", "psi"]
_FIELDS = ["motl_idx", "tomo_num", "object", "subtomo_num", "halfset", *_PLACES, "score", *_SHIFTS, "phi", "psi", "the"]
_FIELDS += ["class"]


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """All of STOPGAP's fields: places at whole voxels, and shifts; object and class 1; half sets by turns.

    The empty line before the first row matters: STOPGAP's reader passes over one line there.
    """
    picks = motives.of_parts(parts, _WHAT, split=True)
    lines = ["", "data_stopgap_motivelist", "", "loop_", *(f"_{name}" for name in _FIELDS), ""]
    for i in range(len(picks.tags)):
        phi, theta, psi = picks.angles[i]
        values = [i + 1, picks.tomograms[i], 1, picks.tags[i], *picks.places[i], picks.scores[i], *picks.shifts[i]]
        texts = [*map(plain, (*values, phi, psi, theta, picks.classes[i]))]
        texts.insert(_FIELDS.index("halfset"), "AB"[i % 2])
        lines.append(" ".join(texts))
    return "".join(f"{line}\n" for line in lines).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x, tomogram; score, instance, class and orientation where they are not all 0."""
    columns = of_star(path, read_tables(path), frame)
    if columns is None:
        raise InputError(f"{path}: not a STOPGAP motive list: no table with orig_x, orig_y and orig_z")
    return columns


def of_star(path: Path, tables: Sequence[Table], frame: Frame) -> Columns | None:
    """The points of a motive list among the tables; None if there is no such list."""
    table = next((table for table in tables if table.has(_PLACES)), None)
    if table is None:
        return None

    def of(*names: str) -> Float64:
        """Columns of numbers, 0 where one is missing."""
        columns = [numbers(path, name, table.columns[name]) if name in table.columns else zeros for name in names]
        return np.stack(columns, axis=1)

    zeros = np.zeros(table.rows())
    tag = "subtomo_num" if "subtomo_num" in table.columns else "motl_idx"
    return motives.columns(
        path,
        motives.Motives(
            of(*_PLACES),
            of(*_SHIFTS),
            of(*_ANGLES),
            of("tomo_num")[:, 0],
            of(tag)[:, 0],
            of("score")[:, 0],
            of("class")[:, 0],
        ),
        frame,
    )
