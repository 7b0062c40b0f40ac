"""Read boxes of voxels from a file that holds one volume, with plain reads."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import changed
from cryosam_dask.types import Array

SCRATCH_BYTES = 1 << 20
_GAP_BYTES = 1 << 14  # a gap that takes longer to read over than to skip with a call of its own


@contextmanager
def opened(path: Path, size: int) -> Iterator[io.FileIO]:
    """The file at `path`, which must still have `size` bytes; errors of the disk become one-line InputErrors."""
    try:
        with io.FileIO(path) as file:
            now = os.fstat(file.fileno()).st_size
            if now != size:
                raise changed(path, f"{now} bytes", f"{size} bytes")
            yield file
    except OSError as err:
        raise InputError(f"{path}: can't be read any more, it was there when opened: {err.strerror or err}") from err


class Readable(Protocol):
    """What `read_box` reads from: a file, or bytes that are decoded as they are read."""

    def seek(self, offset: int, /) -> object: ...
    def readinto(self, buffer: Any, /) -> int: ...


def read_box(
    file: Readable, path: Path, dtype: np.dtype[Any], offset: int, shape: list[int], box: list[slice]
) -> Array:
    """The `box` (sections, rows, columns) of a file of `shape`, in the file's byte order.

    What lies together in the file is read at once: whole sections, else whole rows, else as many rows as fit in the
    scratch, columns cut out after. Where the columns are a small part of long rows, they are read row by row.
    """
    out = np.empty([part.stop - part.start for part in box], dtype)
    if not out.size:
        return out
    (_, ny, nx), item = shape, dtype.itemsize
    (z0, y0, x0), (sections, rows, columns) = (part.start for part in box), out.shape

    def fill(target: Array, z: int, y: int, x: int) -> None:
        file.seek(offset + ((z * ny + y) * nx + x) * item)
        rest = target.reshape(-1).view(np.uint8).data
        while rest:
            got = file.readinto(rest)
            if not got:
                raise InputError(f"{path}: can't be read any more: it ends at section {z}, row {y}; it was cut")
            rest = rest[got:]

    if (rows, columns) == (ny, nx):
        fill(out, z0, 0, 0)
    elif columns == nx:
        for z in range(sections):
            fill(out[z], z0 + z, y0, 0)
    elif (nx - columns) * item > _GAP_BYTES:
        for z, y in np.ndindex(sections, rows):
            fill(out[z, y], z0 + z, y0 + y, x0)
    else:
        step = max(1, SCRATCH_BYTES // (nx * item))
        scratch = np.empty((min(step, rows), nx), dtype)
        for z in range(sections):
            for y in range(0, rows, step):
                part = scratch[: min(step, rows - y)]
                fill(part, z0 + z, y0 + y, 0)
                out[z, y : y + len(part)] = part[:, x0 : x0 + columns]
    return out
