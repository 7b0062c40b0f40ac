"""Models that know the kind of each voxel, for benchmarks of what the search makes of a vision encoder's features.

The tomogram is its truth: the grey level of a voxel is that of its kind. What the encoder gives for a token is a part
that all have in common, a vector of the kind (kinds are alike in pairs, as shapes of one size are), and noise that is
loud in a few directions, as what a vision encoder says of contrast and place is, and quiet in the others.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mrcfile
import numpy as np
from click_truth import Case
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask import models
from cryosam_dask.models import catalog
from cryosam_dask.models.info import About, Cost
from cryosam_dask.types import Array, Float32, PromptedSegmenter, SliceEncoder

sys.path.append(str(Path(__file__).parents[1]))  # what segmenters of tests have in common

from whole_planes import WholeBodies, WholePlanesInfo

STAND_IN = "stand-in"
CHANNELS = 48
ALIKE = 0.85
"""Cosine of the vectors of two kinds that are alike."""
NOISE = 1.0
"""Energy of a token's noise, that of what it says being 1."""
LOUD, SHARE = 4, 0.7
"""Directions that have this share of the noise."""


@dataclass(frozen=True)
class _Encoder:
    levels: tuple[float, ...]
    name: str = "kind-of-voxels"
    identity: str = "kind-of-voxels-1"
    patch: int = 4
    channels: int = CHANNELS

    def encode(self, slices: Float32) -> Float32:
        vectors, loud = _vectors(len(self.levels))
        out = []
        for plane in slices:
            kinds = np.abs(plane[..., None] - np.array(self.levels, np.float32)).argmin(-1)
            a, b = (n // self.patch for n in plane.shape)
            tokens = vectors[kinds].reshape(a, self.patch, b, self.patch, -1).mean((1, 3))
            rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(plane).tobytes()))
            tokens += rng.normal(size=(a, b, LOUD)) @ loud * np.sqrt(NOISE * SHARE / LOUD)
            out.append(tokens + rng.normal(size=tokens.shape) * np.sqrt(NOISE * (1 - SHARE) / self.channels))
        return np.array(out, np.float32)


def _vectors(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of the background and of kinds, and the loud directions (LOUD, C), which lie in the differences of
    kinds in part, as what tells kinds apart is not what varies least."""
    rng = np.random.default_rng(5)
    own = rng.normal(size=(1 + count, CHANNELS)) / np.sqrt(CHANNELS)
    for k in range(2, count, 2):  # the background is 0, and 1 and 2 are alike, 3 and 4, …
        own[1 + k] = ALIKE * own[k] + np.sqrt(1 - ALIKE**2) * own[1 + k]
    vectors = own[:1] + own[1:]
    loud = rng.normal(size=(LOUD, CHANNELS))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), loud / np.linalg.norm(loud, axis=1, keepdims=True)


class _Segmenter(WholeBodies):
    """The connected body of one grey level that the point is in."""

    name, identity = "bodies-of-voxels", "bodies-of-voxels-1"

    def body(self, plane: Array, point: Float32) -> NDArray[np.bool_]:
        row, column = np.clip(np.rint(point).astype(int), 0, np.array(plane.shape) - 1)
        bodies, _ = ndimage.label(np.abs(plane.astype(int) - int(plane[row, column])) < 8)
        body = bodies == bodies[row, column]
        return body if body.mean() < 0.2 else np.zeros(plane.shape, bool)  # the background


@dataclass(frozen=True)
class _EncoderInfo:
    levels: tuple[float, ...]
    name: str = "kind-of-voxels"
    patch: int = 4
    channels: int = CHANNELS
    uses_torch: bool = False
    weights_bytes: int = 0
    about: ClassVar[About] = About("the truth", defaults={"match.count": "auto"})

    @property
    def version(self) -> str:
        return "kind-of-voxels-1"

    def source(self) -> None:
        return None

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        return _Encoder(self.levels)

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        return 100 * plane[0] * plane[1]

    def encode_cost(self, plane: tuple[int, int], tiles: object) -> Cost:
        return Cost()


@dataclass(frozen=True)
class _SegmenterInfo(WholePlanesInfo):
    name: str = _Segmenter.name
    version: str = _Segmenter.identity

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        return _Segmenter()


def stand_in(tomogram: Case) -> tuple[Path, str]:
    """The tomogram that is its truth, in the folder of its case, and the spec of models that know it."""
    labels = tomogram.all_labels
    kinds = ["", *dict.fromkeys(name for name in tomogram.kind_of if name)]
    values = np.array([kinds.index(name) for name in tomogram.kind_of], np.float32)[labels]
    for axis in range(3):  # so that bodies of one kind that touch are two
        here, there = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        np.moveaxis(values, axis, 0)[:-1][(here != there) & (here > 0) & (there > 0)] = 0
    levels = (np.arange(len(kinds)) - values.mean()) / values.std()
    path = tomogram.folder / "kinds.mrc"
    if not path.exists():
        noise = 0.02 * np.random.default_rng(0).normal(size=values.shape)
        with mrcfile.new(path, (values + noise).astype(np.float32)) as file:
            file.voxel_size = tomogram.settings.voxel_size
    models.clear()
    catalog.ENCODERS["kind-of-voxels"] = _EncoderInfo(tuple(float(level) for level in levels))
    catalog.SEGMENTERS[_Segmenter.name] = _SegmenterInfo()  # type: ignore[assignment]
    return path, f"kind-of-voxels+{_Segmenter.name}"
