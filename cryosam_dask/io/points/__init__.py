"""Points of other programs: one module a format, and the table of them. `cryosam_dask.io.picks` reads and writes.

Everything in Python is zero-based voxels of the tomogram, (z, y, x), the first voxel's centre at 0.
"""

from __future__ import annotations

from functools import partial

from cryosam_dask.io.points import copick, csv, imod, ndjson, parquet, relion, warp
from cryosam_dask.io.points.base import ALL, COLUMNS, Format, Frame, Part

FORMATS: dict[str, Format] = {
    "csv": Format((".csv",), csv.read, csv.encode, joint=True),
    "star": Format((".star",), relion.read, relion.encode, joint=True, names=True),
    "relion4": Format((), partial(relion.read, convention="relion4"), relion.encode, joint=True, names=True),
    "relion5": Format((), partial(relion.read, convention="relion5"), relion.encode_centred, joint=True, names=True),
    "warp": Format((), partial(relion.read, convention="warp"), warp.encode, joint=True, names=True),
    "imod": Format((".mod",), imod.read, imod.encode, kinds=True),
    "copick": Format((".json",), copick.read, copick.encode, names=True, kinds=True),
    "ndjson": Format((".ndjson", ".jsonl"), ndjson.read, ndjson.encode),
    "parquet": Format((".parquet", ".pq"), parquet.read, parquet.encode, joint=True),
}
"""Name → format. `star` is RELION 4's convention when written, and whatever the file says when read."""

__all__ = ["ALL", "COLUMNS", "FORMATS", "Format", "Frame", "Part"]
