"""More kinds of damaged inputs for `damage`: the formats of points of other programs. Importing it adds them."""

from __future__ import annotations

import io
import json
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import damage
import dynamotable
import emfile
import numpy as np
import pandas as pd

from cryosam_dask.io.points.files import Frame, encode_picks

SUFFIXES = {
    "xyz": ".txt",
    "dynamo": ".tbl",
    "em": ".em",
    "stopgap": ".star",
    "pytom": ".xml",
    "eman2": ".json",
    "cryolo": ".cbox",
    "cryosparc": ".cs",
}


def sound(r: random.Random, kind: str) -> bytes:
    """A file of one to five picks, half of the time with orientations."""
    count = r.choice((1, 1, 2, 3, 5))
    columns = {axis: [r.choice((1.5, 2, 7.25, 20, 33)) for _ in range(count)] for axis in "zyx"}
    table = pd.DataFrame(columns).assign(score=0.5, instance=range(1, count + 1))
    if r.random() < 0.5:
        table = table.assign(rot=r.choice((0, 30, 400)), tilt=r.choice((0, 45, 180)), psi=-20.0)
    if kind == "cryosparc":
        names = [(f"location/center_{axis}_frac", "f4") for axis in "xyz"]
        names += [("uid", "u8"), ("location/micrograph_path", "S12")]
        particles = np.zeros(count, names[: r.choice((3, 4, 5, 5, 2))])
        particles[names[0][0]] = r.random()
        file = io.BytesIO()
        np.save(file, particles)
        return file.getvalue()
    joint = kind in ("dynamo", "em", "stopgap", "pytom") and r.random() < 0.3
    parts = [(table, Frame((10.0,) * 3, damage.SHAPE, name, kind="apo")) for name in ("TS_1", "TS_2")[: 1 + joint]]
    return encode_picks(parts, kind, joint=joint)


def _token(r: random.Random, raw: bytes) -> bytes:
    """Some values of a text are others, some lines are twice, gone or strange."""
    text = raw.decode()
    for _ in range(r.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        place = r.randrange(len(lines))
        match r.randrange(5):
            case 0 | 1:
                values = lines[place].split(" ")
                values[r.randrange(len(values))] = r.choice(damage.ODD if r.random() < 0.6 else damage.NUMBERS)
                lines[place] = " ".join(values)
            case 2:
                lines.insert(
                    place, r.choice(("", "# x y z", "x,y,z", "loop_", "x" * 5000, "1 " * 5000, '"', "\x1b[31m"))
                )
            case 3:
                del lines[place]
            case _:
                lines.insert(place, lines[r.randrange(len(lines))])
        text = "\n".join(lines) or " "
    return text.encode("utf-8", "replace")


def _attributes(r: random.Random, raw: bytes) -> bytes:
    """Attributes and elements of XML are others."""
    parts = raw.decode().split('"')
    for _ in range(r.choice((1, 1, 2))):
        parts[r.randrange(len(parts))] = r.choice(
            (*damage.ODD, *damage.NUMBERS, "ZYZ", "&a;", "&#0;", "<a>", "</Particle>")
        )
    return '"'.join(parts).encode("utf-8", "replace")


def maker(kind: str) -> Callable[[random.Random, Path], Path]:
    def make(r: random.Random, folder: Path) -> Path:
        raw = sound(r, kind)
        if r.random() < 0.75:
            changed = {"pytom": _attributes, "em": damage.damaged, "cryosparc": damage.damaged}.get(kind, _token)
            changed = damage._damaged_json if kind == "eman2" else changed
            try:
                raw = damage.damaged(r, raw) if r.random() < 0.3 else changed(r, raw)
            except (ValueError, IndexError, KeyError, TypeError):
                raw = damage.damaged(r, raw)
        path = folder / f"points{SUFFIXES[kind]}"
        path.write_bytes(raw)
        return path

    return make


# Second readings, which may raise where ours does not look. What they can't read, or take for something else, is not
# compared.


def _xyz(path: Path) -> np.ndarray | None:
    text = path.read_text()
    if not text.isascii() or set(text) - set("0123456789.-+e \r\n") or "\r" in text.replace("\r\n", ""):
        return None
    table = np.loadtxt(io.StringIO(text), ndmin=2)
    return table[:, 2::-1] if table.shape[1] == 3 else None


def _dynamo(path: Path) -> np.ndarray | None:
    text = path.read_text()
    if any(sign in text for sign in "\"',#\r"):
        return None
    table = dynamotable.read(str(path))
    return np.stack([table[axis].astype(float) + table[f"d{axis}"].astype(float) - 1 for axis in "zyx"], axis=1)


def _em(path: Path) -> np.ndarray | None:
    if path.read_bytes()[0] != 6:
        return None
    rows = emfile.read(path)[1][0].astype(float)
    return (rows[:, 7:10] + rows[:, 10:13] - 1)[:, ::-1]


def _pytom(path: Path) -> np.ndarray | None:
    def of(particle: ElementTree.Element, name: str) -> np.ndarray:
        element = particle.find(name)
        return np.zeros(3) if element is None else np.array([float(element.attrib[axis]) for axis in "ZYX"])

    particles = ElementTree.fromstring(path.read_bytes()).findall("Particle")
    return np.array([of(each, "PickPosition") + of(each, "Shift") for each in particles])


def _eman2(path: Path) -> np.ndarray | None:
    content = json.loads(path.read_text())
    boxes = np.array([box[2::-1] for box in content["boxes_3d"]], dtype=float)
    if content.get("apix_unbin") is None:
        return boxes
    return boxes * content["apix_unbin"] / 10 + np.array(damage.SHAPE) // 2


def _cryosparc(path: Path) -> np.ndarray | None:
    table = np.load(path, allow_pickle=False)
    return np.stack(
        [table[f"location/center_{a}_frac"].astype(float) * n for a, n in zip("zyx", damage.SHAPE, strict=True)], 1
    )


def _second(read: Callable[[Path], np.ndarray | None]) -> Callable[[Path], np.ndarray | None]:
    def second(path: Path) -> np.ndarray | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = read(path)
            except Exception:  # noqa: BLE001
                return None
        return None if found is None or not np.isfinite(found).all() or math.prod(found.shape) == 0 else found

    return second


def _none(path: Path) -> None:
    """STAR files are compared as such; their columns are few."""


READINGS = {"xyz": _xyz, "dynamo": _dynamo, "em": _em, "pytom": _pytom, "eman2": _eman2, "cryosparc": _cryosparc}

damage.MAKERS.update({kind: maker(kind) for kind in SUFFIXES})
damage.POINTS.update({kind: _second(READINGS.get(kind, _none)) for kind in SUFFIXES})
