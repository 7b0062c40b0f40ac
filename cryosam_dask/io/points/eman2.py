"""EMAN2's boxes in a tomogram, `info/NAME_info.json`: pixels along x, y, z from the tomogram's centre.

From EMAN2's `e2spt_boxer.py` and `e2spt_extract.py`: an entry of `boxes_3d` is x, y, z, how it was made, the score and
the number of its class; `class_list` names classes. Where the file has `apix_unbin`, coordinates are pixels of that
size (Å) from the tomogram's centre, which is voxel ⌊n/2⌋; else, as EMAN2 wrote until 2018, voxels of the tomogram from
the first one. Boxes have no orientations.

Written is a file of its own with one class, `apix_unbin` being the tomogram's voxel size: EMAN2 shows it at any
binning. It is no replacement for a project's own info file, which has the alignment of the tilt series, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import plausible_voxel, shown
from cryosam_dask.io.points import jsons
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part, axes_of, positions, rounded
from cryosam_dask.io.text import read_text

BOXES = "boxes_3d"

_WHAT = "points as EMAN2's boxes"
_PIXEL, _CLASSES = "apix_unbin", "class_list"
_BOX = 32  # pixels; picks have no size
_SCORE, _CLASS = 4, 5  # places in an entry


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A file of boxes; InputError for a frame without one voxel size, or a shape. Instances have no place in it."""
    ((table, frame),) = parts
    size = frame.cubic(_WHAT)
    centred = positions(table) - _centre(_WHAT, frame)
    boxes = [
        [x, y, z, "cryosam", score, 0]
        for (z, y, x), score in zip(centred.tolist(), table["score"].astype(float).tolist(), strict=True)
    ]
    classes = {"0": {"name": frame.kind or "picks", "boxsize": _BOX}}
    return json.dumps({_PIXEL: size, BOXES: boxes, _CLASSES: classes}, allow_nan=False).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x and kind, as the file names classes; score where each box has one."""
    return of_content(path, jsons.parse(str(path), read_text(path, _WHAT)), frame)


def of_content(path: Path, content: Any, frame: Frame) -> Columns:
    """The boxes in a file's JSON."""
    boxes = jsons.member(str(path), content, BOXES, list)
    entries = [_entry(f"{path}: box {i}", box) for i, box in enumerate(boxes, start=1)]
    zyx = np.array([place for place, _, _ in entries], dtype=float).reshape(-1, 3)
    if content.get(_PIXEL) is not None:
        pixel = jsons.real(str(path), content, _PIXEL)
        if not plausible_voxel(pixel):
            raise InputError(f"{path}: {_PIXEL} is {pixel:g} Å, which no camera's pixels are")
        what = f"{path}: boxes in pixels of {pixel:g} Å from the centre"
        with np.errstate(all="ignore"):  # what overflows is refused as no number
            zyx = zyx * (pixel / frame.angstrom(what)) + _centre(what, frame)
    columns = axes_of(rounded(zyx))
    scores = [score for _, score, _ in entries if score is not None]
    if len(scores) == len(entries):
        columns["score"] = np.array(scores, dtype=float)
    names = _names(content)
    return columns | {"kind": [names.get(kind, f"particles_{kind:02d}") for _, _, kind in entries]}


def _entry(where: str, box: Any) -> tuple[tuple[float, ...], float | None, int]:
    """z, y, x, score if there is one, number of the class."""
    if not isinstance(box, list) or len(box) < 3:
        raise InputError(f"{where} is {shown(box)}, expected x, y, z and more")
    place = tuple(jsons.real(where, dict(zip("xyz", box, strict=False)), axis) for axis in "zyx")
    score = jsons.real(where, {"score": box[_SCORE]}, "score") if len(box) > _SCORE else None
    return place, score, jsons.whole(where, {"class": box[_CLASS]}, "class") if len(box) > _CLASS else 0


def _names(content: dict[str, Any]) -> dict[int, str]:
    """Number → name of the classes, which older files have without a box size."""
    classes = content.get(_CLASSES)
    names: dict[int, str] = {}
    for key, value in classes.items() if isinstance(classes, dict) else ():
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and key.isascii() and key.isdigit() and len(key) < 10:
            names[int(key)] = name
    return names


def _centre(what: str, frame: Frame) -> Float64:
    if frame.shape is None:
        raise InputError(f"{what}: they count from the tomogram's centre, so its shape is needed")
    return np.asarray(frame.shape, dtype=float) // 2
