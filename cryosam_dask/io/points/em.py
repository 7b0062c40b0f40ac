"""Motive lists of TOM, AV3, Artiatomi and PyTom: an EM file of 20 numbers a particle (`motives` has the conventions).

Rows, from 1, by https://github.com/uermel/Artiatomi/wiki/Motivelist: 1 cross-correlation, 4 particle, 5 tomogram, 8 to
10 x, y, z, 11 to 13 shifts (after rotation of the reference), 17 to 19 phi, psi, theta, 20 class.

The file has 512 bytes of header: machine (6: little-endian; 0, 3, 5: big-endian), two bytes, the type of numbers, and
how many there are along x, y, z (STOPGAP's `sg_emread.m`). It is read here and not by the emfile library, which takes
the sizes in a file on trust, and big-endian ones for little-endian. An EM file may be a volume as well; that is
refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.points import motives
from cryosam_dask.io.points.base import Columns, Frame, Part
from cryosam_dask.io.text import read_bytes

_WHAT = "points as an EM motive list"
_HEADER, _ROWS = 512, 20
_ORDER = {0: ">", 3: ">", 5: ">", 6: "<"}
_TYPES = {1: "i1", 2: "i2", 4: "i4", 5: "f4", 9: "f8"}
_PC, _FLOAT = 6, 5
_SCORE, _PARTICLE, _TOMOGRAM, _PLACE, _SHIFT, _PHI, _CLASS = 0, 3, 4, slice(7, 10), slice(10, 13), 16, 19
_ANGLES = [_PHI, _PHI + 2, _PHI + 1]  # phi, theta, psi; in the file phi, psi, theta
_LARGEST = 2**24  # whole number that all smaller ones can be told from


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A list of 32-bit numbers; places at whole voxels, and shifts; class 1."""
    picks = motives.of_parts(parts, _WHAT, split=True, largest=_LARGEST)
    rows = np.zeros((len(picks.tags), _ROWS))
    rows[:, _SCORE], rows[:, _PARTICLE], rows[:, _TOMOGRAM] = picks.scores, picks.tags, picks.tomograms
    rows[:, _PLACE], rows[:, _SHIFT], rows[:, _ANGLES] = picks.places, picks.shifts, picks.angles
    rows[:, _CLASS] = picks.classes
    header = struct.pack("<4B3i", _PC, 0, 0, _FLOAT, _ROWS, len(rows), 1)
    return header.ljust(_HEADER, b"\0") + rows.astype("<f4").tobytes()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x, tomogram; score, instance, class and orientation where they are not all 0."""
    content = read_bytes(path, _WHAT)
    order, kind, sides = _described(content[:_HEADER])
    if order is None or kind is None:
        raise InputError(f"{path}: not an EM file: neither a machine nor a type of numbers that there is")
    if sides[0] != _ROWS or sides[2] != 1:
        size = " x ".join(map(str, sides))
        raise InputError(
            f"{path}: an EM file of {size} numbers (x, y, z), expected a motive list: {_ROWS} x particles x 1"
        )
    count, dtype = sides[1], np.dtype(order + kind)
    expected = _HEADER + _ROWS * count * dtype.itemsize
    if count < 0 or expected != len(content):
        raise InputError(f"{path}: truncated or damaged: {count} particles make {expected} bytes, found {len(content)}")
    if not count:
        raise InputError(f"{path}: holds no points")
    with np.errstate(all="ignore"):  # a signalling NaN
        rows = np.frombuffer(content, dtype, _ROWS * count, _HEADER).reshape(count, _ROWS).astype(float)
    if not np.isfinite(rows).all():
        particle, row = np.argwhere(~np.isfinite(rows))[0]
        raise InputError(f"{path}: particle {particle + 1}: row {row + 1} is {rows[particle, row]}, expected a number")
    return motives.columns(
        path,
        motives.Motives(
            rows[:, _PLACE],
            rows[:, _SHIFT],
            rows[:, _ANGLES],
            rows[:, _TOMOGRAM],
            rows[:, _PARTICLE],
            rows[:, _SCORE],
            rows[:, _CLASS],
        ),
        frame,
    )


def looks_like(start: bytes) -> bool:
    """Whether an EM file is a motive list rather than a volume."""
    order, kind, sides = _described(start)
    return order is not None and kind is not None and (sides[0], sides[2]) == (_ROWS, 1)


def _described(start: bytes) -> tuple[str | None, str | None, tuple[int, int, int]]:
    """Byte order and type of an EM file's numbers, None if they are unknown; and their count along x, y, z."""
    if len(start) < 16:
        return None, None, (0, 0, 0)
    order = _ORDER.get(start[0])
    sides = struct.unpack_from(f"{order or '<'}3i", start, 4)
    return order, _TYPES.get(start[3]), sides
