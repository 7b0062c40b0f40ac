"""Neuroglancer's *precomputed* volumes and meshes: what their description says, and how chunks and meshes are encoded.

Specification: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md and meshes.md.
Sizes and positions are x, y, z there, lengths in nm; voxel i covers [i, i + 1) of an axis, so its centre lies at
i + 0.5. Arrays here are (z, y, x), and an integer is a voxel's centre: that half a voxel is added in `mesh`, nowhere
else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.types import Array, Point, Shape3

Encoding = Literal["raw", "jpeg"]
MESH_FOLDER = "mesh"
JPEG_QUALITY = 75

_CHUNK = re.compile(r"(\d{1,9})-(\d{1,9})_(\d{1,9})-(\d{1,9})_(\d{1,9})-(\d{1,9})")


@dataclass(frozen=True)
class Scale:
    """One resolution of a volume.

    shape : voxels; size : of a voxel in nm; start : its first voxel; chunks : sizes of chunks that may be asked for,
    of which the viewer takes the one that has the largest area in the plane shown. All z, y, x.
    """

    key: str
    shape: Shape3
    size: Point
    chunks: tuple[Shape3, ...]
    start: Shape3 = (0, 0, 0)

    def box(self, chunk: str) -> Box:
        """The voxels of a chunk by its name, x0-x1_y0-y1_z0-z1; `InputError` unless it is one of this scale's."""
        match = _CHUNK.fullmatch(chunk)
        if match is None:
            raise InputError(f"{chunk[:80]!r} is no chunk; expected x0-x1_y0-y1_z0-z1")
        x0, x1, y0, y1, z0, z1 = map(int, match.groups())
        box = ((z0, z1), (y0, y1), (x0, x1))
        if not any(self._is_chunk(box, size) for size in self.chunks):
            raise InputError(f"{chunk} is no chunk of scale {self.key}")
        return box

    def _is_chunk(self, box: Box, chunk: Shape3) -> bool:
        return all(
            first <= a < first + n and (a - first) % size == 0 and b == min(a + size, first + n)
            for (a, b), size, first, n in zip(box, chunk, self.start, self.shape, strict=True)
        )


def info(scales: Sequence[Scale], dtype: str, *, segments: bool, encoding: Encoding = "raw") -> dict[str, Any]:
    """The description of a volume; `segments` have meshes."""
    described: dict[str, Any] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if segments else "image",
        "data_type": dtype,
        "num_channels": 1,
        "scales": [
            {
                "key": scale.key,
                "size": list(scale.shape[::-1]),
                "resolution": list(scale.size[::-1]),
                "voxel_offset": list(scale.start[::-1]),
                "chunk_sizes": [list(chunk[::-1]) for chunk in scale.chunks],
                "encoding": encoding,
            }
            for scale in scales
        ],
    }
    return described | ({"mesh": MESH_FOLDER} if segments else {})


def chunk(values: Array, encoding: Encoding) -> bytes:
    """A chunk (z, y, x), x running fastest: little-endian numbers, or a JPEG of its slices one under another."""
    if encoding == "raw":
        return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(values.reshape(-1, values.shape[-1])).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def manifest(label: int) -> dict[str, Any]:
    """What a mesh consists of: one fragment."""
    return {"fragments": [fragment(label)]}


def fragment(label: int) -> str:
    """The name of a segment's only fragment."""
    return f"{label}.all"


def mesh(vertices: NDArray[np.float64], faces: NDArray[np.int64], size: Point) -> bytes:
    """A fragment of a mesh in the single-resolution format.

    vertices : (n, 3) x, y, z in nm, 0 at the centre of the first voxel; faces : (m, 3); size : of a voxel, nm (z, y, x)
    """
    corners = vertices + np.asarray(size[::-1]) / 2
    return b"".join(
        (
            np.array([len(corners)], "<u4").tobytes(),
            corners.astype("<f4").tobytes(),
            faces.astype("<u4").tobytes(),
        )
    )


def mesh_info() -> dict[str, Any]:
    """The description of a folder of such meshes."""
    return {"@type": "neuroglancer_legacy_mesh"}
