"""The known models: a row for each, and entries by spec.

A spec is a name, or `NAME=PATH` with weights of one's own. To add an encoder or a segmenter, write its module with an
`EncoderInfo` or a `SegmenterInfo` (`models.info`) and add that to the rows here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import cast

from cryosam_dask.errors import ModelError
from cryosam_dask.models.info import About, EncoderEntry, EncoderInfo, SegmenterInfo, VolumeInfo
from cryosam_dask.models.particle_info import ParticleNetInfo
from cryosam_dask.models.random_walker import RandomWalkerInfo
from cryosam_dask.models.sam2_catalog import SAM2S
from cryosam_dask.models.sam_catalog import SAMS
from cryosam_dask.models.texture import TextureInfo
from cryosam_dask.models.vit_catalog import TIMM, TIMM_PREFIX, VITS, timm_entry, timm_vit

_ENCODERS: tuple[EncoderInfo, ...] = (TextureInfo(), *VITS.values())
_SEGMENTERS: tuple[SegmenterInfo, ...] = (RandomWalkerInfo(), *SAMS.values(), *SAM2S.values())
_VOLUME_SEGMENTERS: tuple[VolumeInfo, ...] = (ParticleNetInfo(),)

ENCODERS = {row.name: row for row in _ENCODERS}
"""Encoders by name. Any other vision transformer of timm is `timm:NAME`."""

VOLUME_SEGMENTERS = {row.name: row for row in _VOLUME_SEGMENTERS}
"""Segmenters of boxes of the tomogram by name."""

SEGMENTERS: dict[str, SegmenterInfo | VolumeInfo] = {**VOLUME_SEGMENTERS, **{row.name: row for row in _SEGMENTERS}}
"""All segmenters by name."""

UNKNOWN_ENCODER, UNKNOWN_SEGMENTER = About("tokens of a slice encoder"), About("a promptable segmentation model")
"""What reports say of a run's models that this version does not know."""


def split_spec(spec: str) -> tuple[str, str | None]:
    """(name, path or None) of a spec `NAME` or `NAME=PATH`."""
    name, equals, path = spec.strip().partition("=")
    if equals and not path:
        raise ModelError(f"model {spec!r}: expected a path after '='")
    return name.strip(), path if equals else None


def encoder_entry(spec: str) -> tuple[EncoderEntry, str | None]:
    """The entry of an encoder, and the path of its weights if that is given; nothing is built.

    Raises
    ------
    ModelError
        The name is unknown, or weights are given for an encoder that has none.
    """
    name, path = split_spec(spec)
    if _is_of_timm(name):
        return timm_entry(name), path
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ModelError(
            f"encoder {name!r} is unknown{_nearest(name, ENCODERS)} Known: {known}, or timm:NAME for a "
            f"vision transformer of timm"
        )
    _check_path(name, path, ENCODERS[name].version)
    return ENCODERS[name], path


def segmenter_entry(spec: str) -> tuple[SegmenterInfo | VolumeInfo, str | None]:
    """The entry of a segmenter, and the path of its weights if that is given.

    Raises
    ------
    ModelError
        The name is unknown, or weights are given for a segmenter that has none.
    """
    name, path = split_spec(spec)
    if name not in SEGMENTERS:
        raise ModelError(f"segmenter {name!r} is unknown{_nearest(name, SEGMENTERS)} Known: {', '.join(SEGMENTERS)}")
    _check_path(name, path, SEGMENTERS[name].version)
    return SEGMENTERS[name], path


def encoder_info(spec: str) -> EncoderInfo:
    """What is known of an encoder, without its weights; imports torch only for a `timm:NAME`.

    Raises
    ------
    ModelError
        The name is unknown.
    """
    entry, _ = encoder_entry(spec)
    return ENCODERS[entry.name] if entry.name in ENCODERS else timm_vit(entry.name)


def segmenter_info(spec: str) -> SegmenterInfo:
    """What is known of a segmenter of planes, without its weights and without torch.

    Raises
    ------
    ModelError
        The name is unknown, or of a segmenter that has no planes.
    """
    entry, _ = segmenter_entry(spec)
    if entry.name in VOLUME_SEGMENTERS:
        raise ModelError(f"segmenter {entry.name} has no planes; it looks at boxes of the tomogram")
    return cast(SegmenterInfo, entry)


def volume_info(spec: str) -> VolumeInfo | None:
    """What is known of a segmenter that looks at boxes of the tomogram; None for one of planes.

    Raises
    ------
    ModelError
        The name is unknown.
    """
    return VOLUME_SEGMENTERS.get(segmenter_entry(spec)[0].name)


def about_encoder(spec: str) -> About:
    """What reports and settings need to know of an encoder, be it known or not; nothing is built."""
    name = spec.partition("=")[0].strip()
    if _is_of_timm(name):
        return TIMM
    return ENCODERS[name].about if name in ENCODERS else UNKNOWN_ENCODER


def about_segmenter(spec: str) -> About:
    """What reports and settings need to know of a segmenter, be it known or not."""
    name = spec.partition("=")[0].strip()
    return SEGMENTERS[name].about if name in SEGMENTERS else UNKNOWN_SEGMENTER


def looks_at_boxes(spec: str) -> bool:
    """Whether a segmenter, be it known or not, looks at boxes of the tomogram and not at planes."""
    return spec.partition("=")[0].strip() in VOLUME_SEGMENTERS


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a mistyped one, if one is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def _nearest(name: str, known: Iterable[str]) -> str:
    """How a sentence about an unknown name ends."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else "."


def _is_of_timm(name: str) -> bool:
    return name.startswith(TIMM_PREFIX) and name != TIMM_PREFIX


def _check_path(name: str, path: str | None, version: str | None) -> None:
    if version is not None and path is not None:
        raise ModelError(f"model {name} has no weights; expected {name} without '={path}'")
