"""Dynamo's tables: numbers in columns without names, a row each particle (`motives` has the conventions).

Columns, from 1, by https://wiki.dynamo.biozentrum.unibas.ch/w/index.php/Table_convention: 1 tag, 4 to 6 shifts dx, dy,
dz, 7 to 9 tdrot, tilt, narot, 10 cc, 20 tomogram, 22 class, 24 to 26 x, y, z. The `.doc` beside a table, which names
the tomograms, is not read.

They are read here and not by the dynamotable library, which hands the file to pandas: a damaged one then ends in
pandas' own errors, or in columns of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import motives
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part
from cryosam_dask.io.text import number, plain, read_lines

_WHAT = "points as a Dynamo table"
_COLUMNS, _LEAST = 35, 26
_TAG, _SHIFTS, _ANGLES, _SCORE, _TOMOGRAM, _CLASS, _PLACES = 1, (4, 5, 6), (7, 8, 9), 10, 20, 22, (24, 25, 26)
_READ = (_TAG, *_SHIFTS, *_ANGLES, _SCORE, _TOMOGRAM, _CLASS, *_PLACES)
_ALIGNED, _AVERAGED, _ORIGINAL_TAG = 2, 3, 31


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A table of 35 columns with six decimals; class 1, no shifts."""
    picks = motives.of_parts(parts, _WHAT)
    table = np.zeros((len(picks.tags), _COLUMNS + 1))  # a column 0, so that all are called as Dynamo does
    table[:, [_TAG, _ORIGINAL_TAG]] = picks.tags[:, None]
    table[:, [_ALIGNED, _AVERAGED]] = 1
    phi, theta, psi = picks.angles.T
    table[:, _ANGLES] = np.stack([-psi, -theta, -phi], axis=1)
    table[:, _SCORE], table[:, _TOMOGRAM], table[:, _CLASS] = picks.scores, picks.tomograms, picks.classes
    table[:, _PLACES] = picks.places
    return "".join(" ".join(map(plain, row[1:])) + "\n" for row in table.tolist()).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x, tomogram; score, instance, class and orientation where they are not all 0."""
    rows = []
    for place, line in enumerate(read_lines(path, _WHAT), start=1):
        if cells := line.replace(",", " ").split():
            if len(cells) < _LEAST:
                raise InputError(
                    f"{path}: not a Dynamo table: line {place}: {len(cells)} values, expected {_LEAST} or more"
                )
            values = [number(cells[column - 1]) for column in _READ]
            for column, value in zip(_READ, values, strict=True):
                if value != value:
                    raise InputError(
                        f"{path}: line {place}: column {column} is '{shown(cells[column - 1])}', expected a number"
                    )
            rows.append(values)
    if not rows:
        raise InputError(f"{path}: holds no points")
    table = np.array(rows)

    def of(*columns: int) -> Float64:
        return table[:, [_READ.index(column) for column in columns]]

    tdrot, tilt, narot = (-of(column)[:, 0] + 0.0 for column in _ANGLES)
    return motives.columns(
        path,
        motives.Motives(
            of(*_PLACES),
            of(*_SHIFTS),
            np.stack([narot, tilt, tdrot], axis=1),
            of(_TOMOGRAM)[:, 0],
            of(_TAG)[:, 0],
            of(_SCORE)[:, 0],
            of(_CLASS)[:, 0],
        ),
        frame,
    )
