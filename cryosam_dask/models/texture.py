"""The built-in slice encoder: multi-scale texture that needs no weights and no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryosam_dask.kernels.texture import CHANNELS, PATCH, texture_tokens
from cryosam_dask.models.info import About, Cost
from cryosam_dask.types import Float32, SliceEncoder

VOXELS_PER_SECOND = 35e6
"""What one core encodes (27 to 48 million measured, by the size of slices)."""


class TextureEncoder:
    """Rotation-invariant Gaussian-derivative features (see `kernels.texture`); a `SliceEncoder`.

    Its tokens are not yet standardised: channels differ in size until `kernels.standardization` is applied to them.
    """

    name = "texture"
    identity = "texture-1"
    patch = PATCH
    channels = len(CHANNELS)

    def encode(self, slices: Float32) -> Float32:
        """Encode slices (N, A, B), A and B multiples of `patch`; returns tokens (N, A/patch, B/patch, channels)."""
        return texture_tokens(slices)


_ABOUT = About(
    "rotation-invariant texture features",
    defaults={
        "features.standardize": "whiten",
        "features.thickness": 5,
        "features.tile": 176,
        "match.rank": "profile",
        "match.count": "auto",
        "match.ratios": (4,),
        "match.tau_sim": 0.0,
    },
)


@dataclass(frozen=True)
class TextureInfo:
    """The entry of the texture encoder in the catalog; an `EncoderInfo`."""

    name: str = TextureEncoder.name
    version: str = TextureEncoder.identity
    patch: int = PATCH
    channels: int = len(CHANNELS)
    uses_torch: bool = False
    weights_bytes: int = 0
    about: About = _ABOUT

    def source(self) -> None:
        """None: there are no weights."""

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        """The encoder, which runs on the CPU wherever it is asked to."""
        return TextureEncoder()

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        return 9 * plane[0] * plane[1] + (1 << 20)

    def encode_cost(self, plane: tuple[int, int], tiles: Sequence[int]) -> Cost:
        return Cost(plane[0] * plane[1] / VOXELS_PER_SECOND)
