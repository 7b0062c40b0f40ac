"""Pairs of an encoder and a segmenter by name, and the settings that serve them."""

from __future__ import annotations

from pathlib import Path

from cryosam_dask.errors import ModelError, SettingsError
from cryosam_dask.models.catalog import (
    ENCODERS,
    SEGMENTERS,
    VOLUME_SEGMENTERS,
    about_encoder,
    about_segmenter,
    encoder_entry,
    nearest,
    segmenter_entry,
    split_spec,
    volume_info,
)
from cryosam_dask.settings import FeatureSettings, PropagationSettings, Settings

PRESETS = {"builtin": "texture+particle-net", "paper": "dinov2-vitl14+sam-vith"}
"""Named pairs of encoder and segmenter."""


def parse_models(spec: str) -> tuple[str, str]:
    """(encoder spec, segmenter spec) of `builtin`, `paper` or `ENCODER+SEGMENTER`, each name optionally `=PATH`.

    Paths come back absolute.

    Raises
    ------
    ModelError
        The spec has another form, or a name is unknown.
    """
    spec = PRESETS.get(spec.strip(), spec.strip())
    splits = [(spec[:i], spec[i + 1 :]) for i, sign in enumerate(spec) if sign == "+"]
    if not splits:
        close = nearest(split_spec(spec)[0], (*PRESETS, *ENCODERS, *SEGMENTERS))
        hint = f"; did you mean {close}?" if close else ""
        raise ModelError(f"models {spec!r}: expected {', '.join(PRESETS)} or ENCODER+SEGMENTER{hint}")
    # A path may hold a plus sign: the one before a segmenter's name is meant.
    named = [pair for pair in splits if split_spec(pair[1])[0] in SEGMENTERS]
    encoder, segmenter = (named or splits)[0]
    (first, path), (second, other) = encoder_entry(encoder), segmenter_entry(segmenter)
    return _absolute(first.name, path), _absolute(second.name, other)


def _absolute(name: str, path: str | None) -> str:
    """The spec with an absolute path, so that it means the same file in a worker started elsewhere."""
    return name if path is None else f"{name}={Path(path).expanduser().absolute()}"


def check(settings: Settings) -> None:
    """`SettingsError` where the settings ask for what their models don't give."""
    segmenter = settings.propagation.segmenter
    if settings.match.rank == "descriptor" and volume_info(segmenter) is None:
        known = ", ".join(VOLUME_SEGMENTERS)
        raise SettingsError(
            f"setting match.rank: {segmenter} gives no descriptors; use similarity or profile, or the segmenter {known}"
        )


def preset(name: str, encoder: str, segmenter: str) -> Settings:
    """The settings that serve a pair of models best: those that each model declares, and the defaults otherwise.

    name : what the pair is called ("builtin", "paper", or "ENCODER+SEGMENTER")
    """
    features, propagation = FeatureSettings(encoder=encoder), PropagationSettings(segmenter=segmenter)
    plain = Settings(preset=name, features=features, propagation=propagation)
    return plain.replace({**about_encoder(encoder).defaults, **about_segmenter(segmenter).defaults})
