"""What a unit's computation takes, by figures that were measured once and the speed of a worker.

The vision models are counted in floating-point operations, 2 a parameter and token and the attention's own, so that a
worker's speed is one number, the operations per second that it really does. Everything else runs on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cryosam_dask import geometry
from cryosam_dask.errors import SettingsError
from cryosam_dask.models.catalog import VITS, EncoderInfo, vit_row
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import tiling
from cryosam_dask.types import Axis, Shape3

TEXTURE = 35e6
"""Voxels per second of the texture encoder on one core (27 to 48 million measured, by the size of slices)."""


SMOOTH = 40e-9
"""Seconds per pixel of the random walker's embedding."""

WALK_FIRST, WALK_NEXT = 10e-3, 3e-3
"""Seconds of the random walker for a point alone, and for a point with the mask of the plane before."""

DECODE = 4.5e9
"""Operations of SAM's decoder for a prompt on a plane, from the 0.032 s it took at 0.142 TFLOP/s."""


EXECUTE = 0.05
"""Seconds of the driver for beginning and ending a stage, or a turn of one: marks, memory check, asking workers."""


@dataclass(frozen=True)
class Machine:
    """A worker's speed.

    tflops, half : 10¹² operations per second that a vision model reaches in float32 and in bfloat16 or float16
    basis : where these figures come from
    """

    name: str
    tflops: float
    half: float
    basis: str

    def rate(self, precision: str) -> float:
        """Operations per second."""
        return 1e12 * (self.tflops if precision == "float32" else self.half)


MACHINES = {
    "cpu": Machine("cpu", 0.15, 0.23, "measured on 2 threads of a server CPU: ViT-S, ViT-L at 518², SAM ViT-B"),
    "a100": Machine("a100", 10.0, 90.0, "assumed: 50 % and 30 % of the chip's peaks"),
    "h100": Machine("h100", 30.0, 250.0, "assumed: 45 % and 25 % of the chip's peaks"),
}


def machine(speed: str) -> Machine:
    """The worker that `speed` names: one of `MACHINES`, or a number of TFLOP/s; `SettingsError` for anything else."""
    if speed in MACHINES:
        return MACHINES[speed]
    try:
        value = float(speed)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SettingsError(f"speed {speed!r}: expected {', '.join(MACHINES)} or TFLOP/s above 0, e.g. 0.5")
    return replace(MACHINES["cpu"], name=f"{value:g} TFLOP/s", tflops=value, half=value, basis="as given")


def vit_operations(name: str, tokens: int) -> float:
    """Floating-point operations of one forward pass of a vision transformer over `tokens` patches.

    2 for each parameter and token, and 4 · keys · width for each token and layer: all tokens are keys, but in SAM's
    encoder, where all but four layers look at windows of 14 × 14.
    """
    row = vit_row(name)
    layers = max(1, round(row.parameters / (12 * row.width**2)))
    linear = 2.0 * row.parameters * tokens
    if name in VITS and row.dense_attention:
        windows = math.ceil(math.sqrt(tokens) / 14) ** 2
        local = (layers - 4) * windows * 196.0**2
        return linear + 4 * row.width * (4 * float(tokens) ** 2 + local)
    return linear + 4 * row.width * layers * float(tokens) ** 2


def encode_seconds(shape: Shape3, axis: Axis, settings: FeatureSettings, info: EncoderInfo, worker: Machine) -> float:
    """Seconds of one slice of an axis through the encoder, tile by tile."""
    if not info.uses_torch:
        return math.prod(geometry.plane_shape(shape, axis)) / TEXTURE
    side = tiling.piece_side(settings, info.channels)
    rows, columns = (
        geometry.tiles(geometry.token_count(n, info.patch, settings.slice_size), settings.tile, settings.halo, side)
        for n in geometry.plane_shape(shape, axis)
    )
    sizes = [(row.last - row.first) * (column.last - column.first) for row in rows for column in columns]
    operations = sum(vit_operations(info.name, tokens) for tokens in sizes)
    return operations / worker.rate(settings.precision)


def embed_seconds(segmenter: str, plane: tuple[int, int], precision: str, worker: Machine) -> float:
    """Seconds of one plane through the segmenter's encoder: SAM sees 64 × 64 patches whatever the plane."""
    if segmenter == "random-walker":
        return math.prod(plane) * SMOOTH
    return vit_operations(segmenter, 64 * 64) / worker.rate(precision)


def predict_seconds(segmenter: str, first: int, further: int, worker: Machine) -> float:
    """Seconds of predictions from points alone, and from points with the mask before; SAM decodes in float32."""
    if segmenter == "random-walker":
        return first * WALK_FIRST + further * WALK_NEXT
    return (first + further) * DECODE / worker.rate("float32")
