"""All picks of a query as a link that holds them."""

from __future__ import annotations

import base64
import gzip
from typing import TYPE_CHECKING

from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

PLAIN_BYTES = 1 << 20
"""A table that is larger than this as CSV goes into the page compressed."""


def download(table: pd.DataFrame, store: RunStore, name: str) -> tuple[str, str]:
    """Return a data URL that holds all picks, and a name for the file."""
    columns = ["z", "y", "x", "score", "instance", "size", "similarity", "quality", "prompted"]
    whole = table[columns].copy()
    for axis, size, origin in zip("zyx", store.voxel_size, store.origin, strict=True):
        whole[f"position_{axis}"] = whole[axis] * size + origin
    text = whole.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    if len(text) <= PLAIN_BYTES:
        return f"data:text/csv;base64,{base64.b64encode(text).decode()}", f"{name}_picks.csv"
    packed = gzip.compress(text, 6, mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(packed).decode()}", f"{name}_picks.csv.gz"
