"""Points of other programs: one module for each format, and the table of formats. `io.points.files` reads and writes.

Everything in Python is zero-based voxels of the tomogram, (z, y, x), the first voxel's centre at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cryosam_dask.io.points import (
    copick,
    cryolo,
    cryosparc,
    csv,
    dynamo,
    em,
    eman2,
    imod,
    ndjson,
    parquet,
    pytom,
    relion,
    stopgap,
    warp,
    xyz,
)
from cryosam_dask.io.points.base import ALL, COLUMNS, Frame, Part, PointsFormat

STAR = (".star",)
ANGSTROM = ("angstrom",)


def _star(
    convention: relion.Convention, encode: Callable[[Sequence[Part], bool], bytes], units: tuple[str, ...] = ()
) -> PointsFormat:
    """One of the conventions of STAR files of particles."""
    read = partial(relion.read, convention=convention)
    return PointsFormat((), read, encode, joint=True, names=True, units=units, among=STAR)


FORMATS: dict[str, PointsFormat] = {
    "csv": PointsFormat((".csv",), csv.read, csv.encode, joint=True),
    "star": PointsFormat(STAR, relion.read, relion.encode, joint=True, names=True, units=()),
    "relion4": _star("relion4", relion.encode),
    "relion5": _star("relion5", relion.encode_centred, units=ANGSTROM),
    "warp": _star("warp", warp.encode),
    "imod": PointsFormat((".mod",), imod.read, imod.encode, kinds=True),
    "copick": PointsFormat((".json",), copick.read, copick.encode, names=True, kinds=True, units=ANGSTROM),
    "ndjson": PointsFormat((".ndjson", ".jsonl"), ndjson.read, ndjson.encode),
    "dynamo": PointsFormat((".tbl",), dynamo.read, dynamo.encode, joint=True),
    "em": PointsFormat((".em",), em.read, em.encode, joint=True, looks_like=em.looks_like),
    "stopgap": PointsFormat((), stopgap.read, stopgap.encode, joint=True, among=STAR),
    "pytom": PointsFormat((".xml",), pytom.read, pytom.encode, joint=True, looks_like=pytom.looks_like),
    "eman2": PointsFormat((), eman2.read, eman2.encode, units=(), among=(".json",)),
    "cryolo": PointsFormat((".cbox",), cryolo.read, cryolo.encode),
    "cryosparc": PointsFormat((".cs",), cryosparc.read, None, units=(), looks_like=cryosparc.looks_like),
    "xyz": PointsFormat(
        (".coords", ".txt", ".xyz"), xyz.read, xyz.encode, units=("voxel", "angstrom"), looks_like=xyz.looks_like
    ),
    "parquet": PointsFormat((".parquet", ".pq"), parquet.read, parquet.encode, joint=True),
}
"""Name → format. `star` is RELION 4's convention when written, and whatever the file says when read; so is
`copick` with JSON."""

__all__ = ["ALL", "COLUMNS", "FORMATS", "Frame", "Part", "PointsFormat"]
