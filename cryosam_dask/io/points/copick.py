"""copick's JSON of picks: Å along x, y, z, the first voxel's centre at 0, whatever origin the tomogram's header has.

From copick's geometry page and data model (`CopickPicksFile`): p = voxel · voxel spacing, zero-based, origin in the
corner; one file holds the points of one object by one user or tool in one session, session "0" being a tool's. A
particle's full position is its location and the translation of its transformation (refined shifts, Å).
The transformation's rotation turns the reference into the particle (`orientation`). Of picks without orientations it is
the identity, and `trust_orientation` is false; what is read with false has none.

EMAN2's boxes are JSON, too: a file with `boxes_3d` is read by `eman2`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import one_side
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import eman2, jsons, orientation
from cryosam_dask.io.points.base import Columns, Frame, Part, axes_of, positions, rounded
from cryosam_dask.io.text import read_text

_WHAT = "points as copick's JSON"
_MATRIX_DIGITS = 12
_SCORE, _INSTANCE = 1.0, 0  # what copick takes a point to have that says nothing of it


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A picks file; InputError for a frame without a voxel size or a kind."""
    ((table, frame),) = parts
    if not frame.kind:
        raise InputError(f"{_WHAT}: the object's name is needed")
    angstrom = positions(table) * frame.angstrom(_WHAT)
    transformations = np.tile(np.eye(4), (len(table), 1, 1))
    transformations[:, :3, :3] = np.round(orientation.to_matrices(table), _MATRIX_DIGITS) + 0.0
    content: dict[str, Any] = {
        "pickable_object_name": frame.kind,
        "user_id": frame.user,
        "session_id": frame.session,
        "run_name": frame.tomogram,
        "voxel_spacing": one_side(frame.angstrom(_WHAT).tolist(), frame.shape),
        "unit": "angstrom",
        "points": [
            {
                "location": {"x": x, "y": y, "z": z},
                "transformation_": transformation,
                "instance_id": instance,
                "score": score,
            }
            for (z, y, x), transformation, instance, score in zip(
                angstrom.tolist(),
                transformations.tolist(),
                table["instance"].astype(np.int64).tolist(),
                table["score"].astype(float).tolist(),
                strict=True,
            )
        ],
        "trust_orientation": orientation.has_angles(table),
    }
    return json.dumps(content, allow_nan=False).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x; score and instance where any point has one; kind and tomogram as the file names them."""
    content = jsons.parse(str(path), read_text(path, _WHAT))
    if isinstance(content, dict) and eman2.BOXES in content and "points" not in content:
        return eman2.of_content(path, content, frame)
    points = jsons.member(str(path), content, "points", list)
    unit = content.get("unit", "angstrom")
    if unit != "angstrom":
        raise InputError(f"{path}: points in {shown(unit)}, expected angstrom")
    places = [_position(jsons.point(path, i), point) for i, point in enumerate(points, start=1)]
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        voxels = np.array(places, dtype=float).reshape(-1, 3) / frame.angstrom(_WHAT)
    columns = axes_of(rounded(voxels))
    if any(point.get("score") is not None for point in points):
        columns["score"] = np.array([_real(path, i, p, "score", _SCORE) for i, p in enumerate(points, start=1)])
    if any(point.get("instance_id") is not None for point in points):
        instances = [_real(path, i, p, "instance_id", _INSTANCE) for i, p in enumerate(points, start=1)]
        columns["instance"] = np.array(instances)
    if content.get("trust_orientation") is not False:
        rotations = [np.asarray(_matrix(jsons.point(path, i), p), float)[:3, :3] for i, p in enumerate(points, start=1)]
        columns |= jsons.orientations(str(path), rotations, frame.notes)
    for name, key in (("kind", "pickable_object_name"), ("tomogram", "run_name")):
        if isinstance(content.get(key), str):
            columns[name] = [content[key]] * len(points)
    return columns


def _position(where: str, point: Any) -> tuple[float, float, float]:
    """z, y, x in Å: the location and the transformation's translation, which most points have none of."""
    z, y, x = jsons.location(where, point)
    if point.get("transformation_") is None:
        return z, y, x
    shift = [row[3] for row in _matrix(where, point)]
    return z + shift[2], y + shift[1], x + shift[0]


def _matrix(where: str, point: dict[str, Any]) -> list[list[float]]:
    """A point's transformation, the identity where it has none."""
    matrix = point.get("transformation_")
    return np.eye(4).tolist() if matrix is None else jsons.matrix(where, "transformation_", matrix, 4)


def _real(path: Path, number: int, point: dict[str, Any], name: str, default: float) -> float:
    return default if point.get(name) is None else jsons.real(jsons.point(path, number), point, name)
