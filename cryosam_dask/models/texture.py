"""The built-in slice encoder: multi-scale texture that needs no weights and no GPU."""

from __future__ import annotations

from cryosam_dask.kernels.texture import CHANNELS, PATCH, texture_tokens
from cryosam_dask.types import Float32


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
