"""PyTom's particle lists, XML: zero-based voxels along x, y, z.

From PyTom's `basic/structures.py`: a `Particle` has a `PickPosition` (X, Y, Z, and Origin, the tomogram's file), a
`Shift` that is added, a `Rotation` (Z1, Z2, X: phi, psi, theta of TOM; see `orientation`), a `Score` and a `Class`.
Positions are zero-based: `fromMOTL` subtracts 1 from those of TOM. An instance is the number that a particle's file
name ends in.

Read with expat, which keeps no tree. A document type is refused, since it could declare entities that expand to huge
texts; PyTom writes none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import orientation
from cryosam_dask.io.points.base import ALL, Columns, Frame, Part, axes_of, choose, positions, rounded
from cryosam_dask.io.text import number, plain, read_bytes

_WHAT = "points as a PyTom particle list"
_LIST, _PARTICLE = "ParticleList", "Particle"
_PLACE, _SHIFT, _ROTATION, _SCORE, _CLASS = "PickPosition", "Shift", "Rotation", "Score", "Class"
_READ = frozenset((_PLACE, _SHIFT, _ROTATION, _SCORE, _CLASS))
_XYZ = ("X", "Y", "Z")
_FILE = re.compile(r"(\d{1,15})\.\w+$")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


@dataclass
class _List:
    """The particles of a list: in each field one entry for each particle."""

    places: list[list[float]] = field(default_factory=list)
    angles: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    tomograms: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """A list with six decimals, no shifts; class 0. A particle's file is called by its instance."""
    lines = [f"<{_LIST}>"]
    for table, frame in parts:
        origin = _attribute(frame.tomogram or "")
        angles = orientation.to_zxz(table).tolist()
        scores, instances = table["score"].tolist(), table["instance"].astype(np.int64).tolist()
        for place, (phi, theta, psi), score, instance in zip(
            positions(table)[:, ::-1].tolist(), angles, scores, instances, strict=True
        ):
            x, y, z = map(plain, place)
            lines += [
                f'  <{_PARTICLE} Filename="particle_{instance}.em">',
                f'    <{_ROTATION} X="{plain(theta)}" Paradigm="ZXZ" Z1="{plain(phi)}" Z2="{plain(psi)}"/>',
                f'    <{_SHIFT} X="0.0" Y="0.0" Z="0.0"/>',
                f'    <{_PLACE} Origin={origin} X="{x}" Y="{y}" Z="{z}"/>',
                f'    <{_SCORE} Type="FLCFScore" Value="{plain(score, 9)}"/>',
                f'    <{_CLASS} Name="0"/>',
                f"  </{_PARTICLE}>",
            ]
    return "".join(f"{line}\n" for line in [*lines, f"</{_LIST}>"]).encode()


def read(path: Path, frame: Frame) -> Columns:
    """z, y, x; tomogram, score, instance, class and orientation where each particle has one."""
    particles = _parse(path, read_bytes(path, _WHAT))
    count = len(particles.places)
    xyz = np.array(particles.places, dtype=float).reshape(-1, 3)
    columns = axes_of(np.ascontiguousarray(rounded(xyz)[:, ::-1]))
    columns |= orientation.of_zxz(np.array(particles.angles, dtype=float).reshape(-1, 3))
    if count and not any(map(math.isnan, particles.scores)):
        columns["score"] = np.array(particles.scores)
    files = [_FILE.search(name) for name in particles.files]
    if all(files):
        columns["instance"] = np.array([int(match[1]) for match in files if match], dtype=np.int64)
    if any(particles.tomograms):
        columns["tomogram"] = particles.tomograms
    if all(particles.classes) and set(particles.classes) != {"0"}:
        columns["class"] = particles.classes
        if frame.kind not in (None, ALL):
            columns = choose(path, columns | {"kind": particles.classes}, "tomogram", frame.tomogram, frame.notes)
            columns = choose(path, columns, "kind", frame.kind)
    return columns


def looks_like(start: bytes) -> bool:
    return f"<{_LIST}".encode() in start


def _parse(path: Path, content: bytes) -> _List:
    particles, parts, depth = _List(), dict[str, dict[str, str]](), 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1 and name != _LIST:
            raise InputError(f"{path}: XML of {shown(name)}, expected a PyTom {_LIST}")
        if depth == 2 and name == _PARTICLE:
            parts.clear()
            parts[_PARTICLE] = attributes
        elif depth == 3 and name in _READ and name not in parts:
            parts[name] = attributes

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        if depth == 1 and name == _PARTICLE:
            _take(f"{path}: particle {len(particles.places) + 1}", parts, particles)

    def refuse(*_: Any) -> None:
        raise InputError(f"{path}: XML with a document type, which no particle list has")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = begin, end, refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as err:
        raise InputError(f"{path}: not readable XML: {shown(str(err))}") from err
    return particles


def _take(where: str, parts: dict[str, dict[str, str]], particles: _List) -> None:
    """Add a particle of these elements' attributes."""
    if _PLACE not in parts:
        raise InputError(f"{where}: no {_PLACE}")
    place = [_number(where, parts, _PLACE, axis) for axis in _XYZ]
    if _SHIFT in parts:
        place = [at + _number(where, parts, _SHIFT, axis) for at, axis in zip(place, _XYZ, strict=True)]
    rotation = parts.get(_ROTATION, {})
    if rotation.get("Paradigm", "ZXZ") != "ZXZ":
        raise InputError(f"{where}: a rotation in {shown(rotation['Paradigm'])}, expected ZXZ")
    particles.places.append(place)
    particles.angles.append([_number(where, parts, _ROTATION, name) if rotation else 0.0 for name in ("Z1", "X", "Z2")])
    particles.scores.append(number(parts.get(_SCORE, {}).get("Value", "")))
    particles.files.append(parts[_PARTICLE].get("Filename", ""))
    particles.tomograms.append(parts[_PLACE].get("Origin", ""))
    particles.classes.append(parts.get(_CLASS, {}).get("Name", ""))


def _number(where: str, parts: dict[str, dict[str, str]], element: str, name: str) -> float:
    text = parts[element].get(name, "")
    value = number(text)
    if math.isnan(value):
        raise InputError(f"{where}: {name} of its {element} is '{shown(text)}', expected a number")
    return value


def _attribute(text: str) -> str:
    """A tomogram's name in quotes; InputError for signs that XML does not have."""
    if _FORBIDDEN.search(text):
        raise InputError(f"{_WHAT}: the tomogram's name {shown(repr(text))} has signs that XML can't hold")
    return quoteattr(text)
