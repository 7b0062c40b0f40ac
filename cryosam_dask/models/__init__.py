"""Slice encoders and prompted segmenters by name. Importing this package imports neither torch nor timm."""

from cryosam_dask.models.cache import clear, get_encoder, get_segmenter
from cryosam_dask.models.catalog import ENCODERS, SEGMENTERS, encoder_info, segmenter_info, volume_info
from cryosam_dask.models.info import EncoderInfo, SegmenterInfo, VolumeInfo
from cryosam_dask.models.presets import PRESETS, parse_models, preset
from cryosam_dask.models.registry import (
    ensure_weights,
    load_encoder,
    load_segmenter,
    resolve_device,
    weights_identity,
)

__all__ = [
    "ENCODERS",
    "PRESETS",
    "SEGMENTERS",
    "EncoderInfo",
    "SegmenterInfo",
    "VolumeInfo",
    "clear",
    "encoder_info",
    "ensure_weights",
    "get_encoder",
    "get_segmenter",
    "load_encoder",
    "load_segmenter",
    "parse_models",
    "preset",
    "resolve_device",
    "segmenter_info",
    "volume_info",
    "weights_identity",
]
