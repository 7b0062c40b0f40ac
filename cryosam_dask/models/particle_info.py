"""The entry of the built-in network in the catalog; nothing here needs torch. Its weights come with the package."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryosam_dask.errors import ModelError
from cryosam_dask.models.info import About, Cost
from cryosam_dask.types import Shape3, VolumeSegmenter

WEIGHTS = Path(__file__).with_name("particle-net.safetensors")

PARAMETERS = 3_800_000
OPERATIONS = 84e3
"""Floating-point operations of the trunk per voxel."""

BYTES = 150
"""Bytes that a look takes per voxel of its box, at its most, in single precision: 144 to 151 were measured, 58 to 86 in
bfloat16. What it keeps is less."""

ANSWER = 6e-3
"""Seconds of answering one click with its mask, on one core."""

_ABOUT = About(
    "a three-dimensional network trained on simulated tomograms",
    (
        "Tian Z, Shen C, Chen H. Conditional convolutions for instance segmentation. ECCV 2020.",
        "Khosla P, et al. Supervised contrastive learning. NeurIPS 2020.",
    ),
    {"match.rank": "descriptor", "match.count": "auto"},
)


@dataclass(frozen=True)
class ParticleNetInfo:
    """The entry of `particle_segmenter.ParticleSegmenter`; a `VolumeInfo`."""

    name: str = "particle-net"
    uses_torch: bool = True
    weights_bytes: int = 4 * PARAMETERS
    halo: int = 16
    multiple: int = 16
    reach: int = 22
    about: About = _ABOUT

    @property
    def version(self) -> str:
        return f"{self.name} sha256 {_digest()[:16]}"

    def source(self) -> None:
        """None: the weights are here."""

    def load(self, path: str | None, device: str, dtype: str) -> VolumeSegmenter:
        """The segmenter on a device."""
        from cryosam_dask.models.particle_segmenter import ParticleSegmenter

        return ParticleSegmenter(WEIGHTS, self.version, device, dtype)

    def look_bytes(self, shape: Shape3) -> int:
        return BYTES * math.prod(shape)

    def look_cost(self, shape: Shape3, clicks: int) -> Cost:
        return Cost(clicks * ANSWER, OPERATIONS * math.prod(shape))


@cache
def _digest() -> str:
    try:
        return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{WEIGHTS}: can't be read ({error.strerror}); install cryosam-dask again") from None
