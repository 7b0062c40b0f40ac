"""IMOD models: pixel coordinates x, y, z as 3dmod draws them, whatever origin the tomogram's header has.

From IMOD's binary format page (bio3d.colorado.edu/imod/doc/binspec.html): coordinates run from 0 to NX and 0 to NY, but
from -0.5 to NZ - 0.5. So the centre of voxel (k, j, i) is x = i + 0.5, y = j + 0.5, z = k.

They are written with the imodmodel library, one contour a pick: its surface number is the instance, its general value
the score. They are read here, since imodmodel takes the sizes in a file on trust. The points of one object are read,
and what `MINX` records is undone: the part of an image that a model was drawn on, and, where the model was drawn on the
same volume at another binning (by its maxima and pixel size), that binning. Y and Z of a model that was saved on a
flipped view are exchanged, as 3dmod does it (`imodFlipYZ`).
"""

from __future__ import annotations

import struct
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Float64, Frame, Part, axes_of, positions, rounded
from cryosam_dask.io.text import read_bytes

_WHAT = "points as an IMOD model"
_CENTRE = np.array([0.0, 0.5, 0.5])  # of the first voxel, z, y, x
_LOW = np.array([-0.5, 0.0, 0.0])  # its edge
# The header after the file's 8 bytes, and pieces that don't tell their own size: bytes before what they count.
_HEADER, _OBJECT, _CONTOUR, _MESH = 232, 176, 16, 16
_OTRANS, _FLIPPED, _ROTATED = 1 << 14, 1 << 16, 1 << 17
_VALUE, _LIMITS = 10, 11  # general values: of a contour, and the smallest and the largest
_VALUE_FLAGS, _LIMITS_FLAGS = 1 << 7 | 1 << 2, 1 << 4 | 1 << 2 | 1
_LARGEST_INSTANCE = 2**31 - 1
_LONGEST_NAME = 63  # of the 64 bytes one ends it


@dataclass
class _Object:
    """An object of a model, and of its contours the points (x, y, z), the surface numbers and the values."""

    name: str
    points: list[Float64] = field(default_factory=list)
    surfaces: list[int] = field(default_factory=list)
    values: dict[int, float] = field(default_factory=dict)


@dataclass
class _Model:
    flags: int
    maxima: Float64  # z, y, x
    objects: list[_Object] = field(default_factory=list)
    minx: Float64 | None = None  # (6, 3): old scale, translation, rotation; new ones; x, y, z


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A model of one object of scattered points, named as the kind. Positions and scores have 24 bits."""
    from imodmodel import models

    ((table, frame),) = parts
    places = (positions(table) + _CENTRE)[:, ::-1]
    instances = table["instance"].astype(np.int64).tolist()
    if not all(abs(instance) <= _LARGEST_INSTANCE for instance in instances):
        raise InputError(f"{_WHAT}: an instance above {_LARGEST_INSTANCE}, which surface numbers end with")
    contours = [
        models.Contour(header=models.ContourHeader(surf=instance), points=place[None])
        for instance, place in zip(instances, places, strict=True)
    ]
    scores = table["score"].astype(float).tolist()
    values = [
        models.GeneralStorage(type=_VALUE, flags=_VALUE_FLAGS, index=i, value=score) for i, score in enumerate(scores)
    ]
    if scores:
        low, high = min(scores), max(scores)
        values.append(models.GeneralStorage(type=_LIMITS, flags=_LIMITS_FLAGS, index=low, value=high))
    head = models.ObjectHeader(
        name=_object_name(frame.kind or "picks"),
        flags=models.ObjectFlags(scattered=True),
        pdrawsize=5,
        surfsize=max(instances, default=0),
    )
    header = models.ModelHeader(
        name="cryosam",
        flags=models.ModelFlags(z_coordinates_start_from_negative_half=True, mat1_and_mat3_are_bytes=True),
    )
    if frame.shape is not None:
        header.zmax, header.ymax, header.xmax = (int(side) for side in frame.shape)
    if frame.voxel_size is not None:  # z is drawn in pixels of x
        header.pixelsize, header.units = frame.voxel_size[2] / 10, -9
        header.zscale = frame.voxel_size[0] / frame.voxel_size[2]
    model = models.ImodModel(header=header, objects=[models.Object(header=head, contours=contours, extra=values)])
    with tempfile.TemporaryDirectory() as folder:  # imodmodel writes to paths alone
        path = Path(folder) / "picks.mod"
        with warnings.catch_warnings():  # it calls pydantic by old names
            warnings.simplefilter("ignore", DeprecationWarning)
            model.to_file(path)
        return path.read_bytes()


def _object_name(name: str) -> str:
    if len(name.encode()) > _LONGEST_NAME or name != name.strip():
        raise InputError(
            f"{_WHAT}: the object's name {shown(repr(name))}: expected at most {_LONGEST_NAME} bytes, and no space at "
            "its ends: give another with --object"
        )
    return name


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x and kind; score where every contour of the file has a value, instance where each has a surface."""
    model = _parse(path, read_bytes(path, _WHAT))
    if model.flags & _ROTATED:
        raise InputError(f"{path}: a model on a rotated view: save it from 3dmod on the image as it is")
    objects = [obj for obj in model.objects if any(map(len, obj.points))]
    counts = [len(points) for obj in objects for points in obj.points]
    places = np.concatenate([points for obj in objects for points in obj.points] or [np.zeros((0, 3))]).astype(float)
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        columns = axes_of(rounded(_voxels(places, model, frame)))
    columns["kind"] = [
        obj.name or f"object {number}"
        for number, obj in enumerate(objects, start=1)
        for _ in range(sum(map(len, obj.points)))
    ]
    surfaces = [surface for obj in objects for surface in obj.surfaces]
    if all(surface > 0 for surface in surfaces):
        columns["instance"] = np.repeat(np.array(surfaces, dtype=np.int64), counts)
    if all(len(obj.values) == len(obj.points) for obj in objects):
        values = [obj.values[i] for obj in objects for i in range(len(obj.points))]
        columns["score"] = np.repeat(np.array(values, dtype=float), counts)
    return columns


def _voxels(places: Float64, model: _Model, frame: Frame) -> Float64:
    """(n, 3) z, y, x in voxels of the tomogram, of x, y, z in the file."""
    flipped = bool(model.flags & _FLIPPED)
    order = [1, 0, 2] if flipped else [0, 1, 2]
    voxels: Float64 = places[:, ::-1][:, order]
    if model.minx is not None and model.flags & _OTRANS:
        otrans, scale, ctrans = (model.minx[i][::-1] for i in (1, 3, 4))
        if np.isfinite(model.minx).all() and (scale > 0).all():
            voxels = voxels + (otrans - ctrans) / scale
            voxels = (voxels - _LOW) * _binning(scale, model.maxima[order], frame) + _LOW
    centred: Float64 = voxels - _CENTRE
    return centred


def _binning(scale: Float64, maxima: Float64, frame: Frame) -> Float64:
    """Voxels per pixel of the model (z, y, x): 1 unless it was drawn on the same volume with other pixels."""
    if frame.shape is None or frame.voxel_size is None or (maxima <= 0).any() or (maxima == frame.shape).all():
        return np.ones(3)
    shape, ratio = np.asarray(frame.shape, dtype=float), scale / np.asarray(frame.voxel_size)
    same = (np.abs(maxima * ratio - shape) <= 1 + 0.02 * shape).all() and (np.abs(ratio - 1) > 0.01).any()
    return np.asarray(ratio if same else np.ones(3))


def _parse(path: Path, content: bytes) -> _Model:
    """The model in a file; InputError where its pieces don't fit into it."""
    if content[:8] != b"IMODV1.2":
        raise InputError(f"{path}: not an IMOD model (version 1.2)")
    if len(content) < 8 + _HEADER:
        raise InputError(f"{path}: not a readable IMOD model: ends in its header")
    *maxima, _, flags = struct.unpack_from(">3iiI", content, 8 + 128)
    model = _Model(flags, np.array(maxima[::-1], dtype=float))
    for kind, start, stop in _pieces(path, content):
        if kind == b"OBJT":
            model.objects.append(
                _Object(content[start : start + 64].partition(b"\0")[0].decode("utf-8", "replace").strip())
            )
        elif kind == b"MINX" and stop - start >= 72:
            model.minx = np.frombuffer(content, ">f4", 18, start).astype(float).reshape(6, 3)
        elif kind == b"CONT" and model.objects:
            count, _, _, surface = struct.unpack_from(">4i", content, start)
            points = np.frombuffer(content, ">f4", 3 * count, start + _CONTOUR).reshape(-1, 3)
            model.objects[-1].points.append(points)
            model.objects[-1].surfaces.append(surface)
        elif kind == b"OBST" and model.objects:
            for place in range(start, stop - 11, 12):
                what, how, index = struct.unpack_from(">hHi", content, place)
                if what == _VALUE and how & 15 == 4 and 0 <= index < len(model.objects[-1].points):
                    model.objects[-1].values[index] = struct.unpack_from(">f", content, place + 8)[0]
    return model


def _pieces(path: Path, content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(identifier, where its content starts, where it stops) of a model's pieces."""
    place, end = 8 + _HEADER, len(content)
    while True:
        kind, start = content[place : place + 4], place + 4
        if kind == b"IEOF":
            return
        sized = 0
        if kind == b"OBJT":
            stop = start + _OBJECT
        elif kind in (b"CONT", b"MESH"):
            if start + 16 > end:
                raise InputError(f"{path}: not a readable IMOD model: ends in its middle")
            first, second = struct.unpack_from(">2i", content, start)
            counted = 12 * first if kind == b"CONT" else 12 * first + 4 * second
            if first < 0 or (kind == b"MESH" and second < 0):
                raise InputError(f"{path}: not a readable IMOD model: {min(first, second)} points")
            stop = start + (_CONTOUR if kind == b"CONT" else _MESH) + counted
        else:
            if start + 4 > end:
                raise InputError(f"{path}: not a readable IMOD model: ends in its middle")
            (sized,) = struct.unpack_from(">i", content, start)
            if sized < 0:
                raise InputError(f"{path}: not a readable IMOD model: a piece of {sized} bytes")
            start += 4
            stop = start + sized
        if stop > end:
            raise InputError(
                f"{path}: not a readable IMOD model: a piece of {stop - start} bytes, {end - start} are left"
            )
        yield kind, start, stop
        place = stop
