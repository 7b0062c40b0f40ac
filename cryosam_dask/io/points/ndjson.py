"""Point annotations of the CryoET Data Portal: a JSON object a line; zero-based voxels along x, y, z.

From the portal's backend (`point_converter.py`, and the check that 0 ≤ coordinate ≤ size − 1): voxels of the tomogram
whose voxel spacing the annotation belongs to, the first voxel's centre at 0. Lines are `point`, `orientedPoint` (with
`xyz_rotation_matrix`, which turns the reference into the particle; see `orientation`) or `instancePoint` (with an
`instance_id`). Written are `point`, the one type that every reader of the portal takes, or `orientedPoint` where picks
have orientations: no scores, no instances.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import jsons, orientation
from cryosam_dask.io.points.base import Columns, Frame, Part, axes_of, positions
from cryosam_dask.io.text import read_lines

_WHAT = "points as the CryoET Data Portal's ndjson"
_ROTATION, _MATRIX_DIGITS = "xyz_rotation_matrix", 12
_TYPES = ("point", "orientedPoint", "instancePoint")


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """One line for each pick; numbers read back bit for bit."""
    ((table, _),) = parts
    points: list[dict[str, Any]] = [
        {"type": "point", "location": {"x": x, "y": y, "z": z}} for z, y, x in positions(table).tolist()
    ]
    if orientation.has_angles(table):
        rotations = np.round(orientation.to_matrices(table), _MATRIX_DIGITS) + 0.0
        for point, rotation in zip(points, rotations.tolist(), strict=True):
            point |= {"type": "orientedPoint", _ROTATION: rotation}
    lines = map(json.dumps, points)
    return "".join(f"{line}\n" for line in lines).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x, and instance and orientation where every line has one."""
    places, instances, rotations = [], [], []
    for number, line in enumerate(read_lines(path, _WHAT), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        point = jsons.parse(where, line)
        kind = jsons.member(where, point, "type", str)
        if kind not in _TYPES:
            raise InputError(f"{where}: {shown(kind)} is no point, expected {', '.join(_TYPES)}")
        places.append(jsons.location(where, point))
        if point.get("instance_id") is not None:
            instances.append(jsons.whole(where, point, "instance_id"))
        if point.get(_ROTATION) is not None:
            rotations.append(jsons.matrix(where, _ROTATION, point[_ROTATION], 3))
    columns = axes_of(np.array(places, dtype=float).reshape(-1, 3))
    if len(rotations) == len(places):
        columns |= jsons.orientations(str(path), rotations, frame.notes)
    return columns | ({"instance": np.array(instances)} if len(instances) == len(places) else {})
