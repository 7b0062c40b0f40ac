"""What a unit's computation takes, by figures that were measured once and the speed of a worker.

Models say themselves what they take (`models.info.Cost`). Those of torch are counted in floating-point operations, so
that a worker's speed is one number, the operations per second that it really does. Everything else runs on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cryosam_dask import geometry
from cryosam_dask.errors import SettingsError
from cryosam_dask.models.info import Cost, EncoderInfo, SegmenterInfo, VolumeInfo
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import tiling
from cryosam_dask.types import Axis, Shape3

REDUCTION = 500
"""What reducing a token takes per channel, in operations of float32 in the same time. It is bound by memory, whose
speed goes with that of arithmetic closely enough: 3.5 µs a token of 1024 channels on one thread of a CPU; the 80 kB
that it moves would take an H100's memory 24 ns, which is not measured."""

EXECUTE = 0.03
"""Seconds of the driver for beginning and ending a stage, or a turn of one: marks, memory check, asking workers.
Measured: 0.02 with two workers; each time that 64 workers are asked takes 0.003 more."""


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

    def seconds(self, cost: Cost, precision: str) -> float:
        """What a model's computation takes, in the precision that the settings ask for."""
        in_torch = cost.operations / self.rate(precision) + cost.float32_operations / self.rate("float32")
        return cost.seconds + in_torch


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


def encode_seconds(shape: Shape3, axis: Axis, settings: FeatureSettings, info: EncoderInfo, worker: Machine) -> float:
    """Seconds of one slice of an axis through the encoder, tile by tile."""
    plane, side = geometry.plane_shape(shape, axis), tiling.piece_side(settings, info.channels)
    rows, columns = (
        geometry.tiles(geometry.token_count(n, info.patch, settings.slice_size), settings.tile, settings.halo, side)
        for n in plane
    )
    tiles = [(row.last - row.first) * (column.last - column.first) for row in rows for column in columns]
    return worker.seconds(info.encode_cost(plane, tiles), settings.precision)


def reduce_seconds(info: EncoderInfo, tokens: int, worker: Machine) -> float:
    """Seconds of reducing tokens where an encoder of torch left them."""
    return worker.seconds(Cost(float32_operations=REDUCTION * info.channels * tokens), "float32")


def embed_seconds(info: SegmenterInfo, plane: tuple[int, int], precision: str, worker: Machine) -> float:
    """Seconds of one plane through the segmenter's encoder."""
    return worker.seconds(info.embed_cost(plane), precision)


def look_seconds(info: VolumeInfo | None, shape: Shape3, clicks: int, precision: str, worker: Machine) -> float:
    """Seconds of a look at a box and of answers to clicks; none for a segmenter of planes."""
    return 0.0 if info is None else worker.seconds(info.look_cost(shape, clicks), precision)


def predict_seconds(info: SegmenterInfo, first: int, further: int, precision: str, worker: Machine) -> float:
    """Seconds of predictions from points alone, and from points with the mask before."""
    return worker.seconds(info.predict_cost(first, further), precision)
