"""What a unit costs, for planning: seconds of one core, and bytes read and written, by figures that were measured once.

The figures of one stage are in its module, those that all stages share are here. The `Bench` knows what a model costs.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.settings import Settings
from cryosam_dask.stages.base import Region, Unit
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Shape3

READ = 700e6
"""Bytes per second that one core reads from a local disk: zstd and crc32c, measured on noise in float16 and float32."""

WRITE = 250e6
"""Bytes per second that one core writes: zstd at level 1 and crc32c, measured likewise."""

PLAIN_READ = 1900e6
"""Bytes per second that one core reads of what is not compressed, latents and embeddings: measured likewise."""

PLAIN_WRITE = 1500e6
"""Bytes per second that one core writes of them."""

COPY = 1.5e9
"""Bytes per second that one core reads of a plain file."""

COMPRESSED = {
    "tomogram": 0.93,
    "features": 0.92,
    "latents": 1.0,
    "Gram maps": 0.88,
    "dense features": 0.93,
    "embeddings": 0.92,
    "products": 0.93,
    "similarity": 0.93,
    "labels": 0.01,
}
"""Compressed size over size with zstd, measured on noisy tomograms, by kind of array."""

UNIT = 0.01
"""Seconds of a unit that does nothing: it opens the store and its arrays, and sets its mark."""

CELL = 50e-9
"""Seconds per cell that is matched, and per value of a dense feature array, reading apart."""

LEVELS = 8 / 7
"""Voxels of all levels of an image over those of the finest."""


class Cost(NamedTuple):
    """A unit's computation in seconds, and the bytes it moves before and after."""

    seconds: float
    read: float = 0.0
    write: float = 0.0


class Bench(Protocol):
    """What a cost may depend on besides the unit: a run whose arrays are laid out, without data, and its models.

    Attributes
    ----------
    source : the tomogram; store : the run; settings : of the query; name : of the query
    diameter : of the particles in voxels; voxel_bytes : of the stored tomogram
    pool_bytes : of the chunks of native latents under one instance
    """

    source: TomogramSource
    settings: Settings
    store: RunStore
    diameter: float
    voxel_bytes: int
    name: str

    @property
    def pool_bytes(self) -> float: ...

    def touched(self, region: Region) -> int:
        """Bytes of the whole chunks that a region lies in."""
        ...

    def encode_seconds(self, axis: Axis) -> float:
        """One slice of an axis through the encoder."""
        ...

    def reduce_seconds(self, tokens: int) -> float:
        """Reducing tokens where an encoder of torch left them: on its device."""
        ...

    def embed_seconds(self, axis: Axis) -> float:
        """One plane of an axis through the segmenter's encoder."""
        ...

    def predict_seconds(self, first: int, further: int) -> float:
        """Predictions from points alone, and from points with the mask of the plane before."""
        ...

    def look_seconds(self, shape: Shape3, clicks: int) -> float:
        """A look of a segmenter of volumes at a box, and its answers to so many clicks."""
        ...

    def plane_bytes(self, axis: Axis) -> int:
        """One plane of an axis with its embedding."""
        ...


def cost(
    read: float, written: float, seconds: float, kind: str, *, source: str | None = None, coded: bool = True
) -> Cost:
    """The cost of a unit that reads and writes so many bytes; `coded`: what it reads is of a run, not a plain file.

    kind, source : of the arrays that it writes, and that it reads if they are others, in `COMPRESSED`
    """
    source = source or kind
    decoding = read / ((PLAIN_READ if source == "latents" else READ) if coded else COPY)
    encoding = written / (PLAIN_WRITE if kind == "latents" else WRITE)
    shares = COMPRESSED[source] if coded else 1.0, COMPRESSED[kind]
    return Cost(UNIT + decoding + encoding + seconds, read * shares[0], written * shares[1])


def size(region: Region) -> int:
    """Values in a region."""
    return math.prod(b - a for a, b in zip(region.start, region.stop, strict=True))


def written(unit: Unit) -> int:
    """Values that a unit writes."""
    return sum(map(size, unit.writes))
