"""Slice encoders and prompted segmenters by name. Importing this package imports neither torch nor timm."""

from cryosam_dask.models.cache import clear, get_encoder, get_segmenter
from cryosam_dask.models.catalog import (
    ENCODERS,
    PRESETS,
    SEGMENTERS,
    EncoderInfo,
    SegmenterInfo,
    encoder_info,
    parse_models,
    segmenter_info,
)
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
    "clear",
    "encoder_info",
    "ensure_weights",
    "get_encoder",
    "get_segmenter",
    "load_encoder",
    "load_segmenter",
    "parse_models",
    "resolve_device",
    "segmenter_info",
    "weights_identity",
]
