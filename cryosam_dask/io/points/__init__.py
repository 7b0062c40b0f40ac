"""Points of other programs: one module a format, and the table of them. `cryosam_dask.io.picks` reads and writes.

Everything in Python is zero-based voxels of the tomogram, (z, y, x), the first voxel's centre at 0.
"""

from __future__ import annotations

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
from cryosam_dask.io.points.base import ALL, COLUMNS, Format, Frame, Part

STAR = (".star",)
ANGSTROM = ("angstrom",)

FORMATS: dict[str, Format] = {
    "csv": Format((".csv",), csv.read, csv.encode, joint=True),
    "star": Format((".star",), relion.read, relion.encode, joint=True, units=()),
    "relion4": Format((), partial(relion.read, convention="relion4"), relion.encode, joint=True, units=(), among=STAR),
    "relion5": Format(
        (), partial(relion.read, convention="relion5"), relion.encode_centred, joint=True, units=ANGSTROM, among=STAR
    ),
    "warp": Format((), partial(relion.read, convention="warp"), warp.encode, joint=True, units=(), among=STAR),
    "imod": Format((".mod",), imod.read, imod.encode),
    "copick": Format((".json",), copick.read, copick.encode, units=ANGSTROM),
    "ndjson": Format((".ndjson", ".jsonl"), ndjson.read, ndjson.encode),
    "dynamo": Format((".tbl",), dynamo.read, dynamo.encode, joint=True),
    "em": Format((".em",), em.read, em.encode, joint=True, looks_like=em.looks_like),
    "stopgap": Format((), stopgap.read, stopgap.encode, joint=True, among=STAR),
    "pytom": Format((".xml",), pytom.read, pytom.encode, joint=True, looks_like=pytom.looks_like),
    "eman2": Format((), eman2.read, eman2.encode, units=(), among=(".json",)),
    "cryolo": Format((".cbox",), cryolo.read, cryolo.encode),
    "cryosparc": Format((".cs",), cryosparc.read, None, units=(), looks_like=cryosparc.looks_like),
    "xyz": Format(
        (".coords", ".txt", ".xyz"), xyz.read, xyz.encode, units=("voxel", "angstrom"), looks_like=xyz.looks_like
    ),
    "parquet": Format((".parquet", ".pq"), parquet.read, parquet.encode, joint=True),
}
"""Name → format. `star` is RELION 4's convention when written, and whatever the file says when read; so is
`copick` with JSON."""

__all__ = ["ALL", "COLUMNS", "FORMATS", "Format", "Frame", "Part"]
