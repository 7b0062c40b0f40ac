"""Loaded models of this process: each is loaded once, by whichever thread asks first, and never pickled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from cryosam_dask.models.registry import load_encoder, load_segmenter
from cryosam_dask.types import PromptedSegmenter, SliceEncoder, VolumeSegmenter

_Key = tuple[str, str, str, str]

_models: dict[_Key, Any] = {}
_locks: dict[_Key, threading.Lock] = {}
_guard = threading.Lock()


def get_encoder(spec: str, device: str = "cpu", dtype: str = "float32") -> SliceEncoder:
    """The encoder of `spec` on `device`, loaded at the first call in this process; errors as in `load_encoder`."""
    return cast(SliceEncoder, _get(("encoder", spec, device, dtype), load_encoder))


def get_segmenter(spec: str, device: str = "cpu", dtype: str = "float32") -> PromptedSegmenter:
    """The segmenter of planes on `device`, loaded at the first call in this process; errors as in `load_segmenter`."""
    return cast(PromptedSegmenter, _get(("segmenter", spec, device, dtype), load_segmenter))


def get_volume_segmenter(spec: str, device: str = "cpu", dtype: str = "float32") -> VolumeSegmenter:
    """The same for a segmenter that looks at boxes."""
    return cast(VolumeSegmenter, _get(("segmenter", spec, device, dtype), load_segmenter))


def clear() -> None:
    """Forget all loaded models, so that their memory can be freed."""
    with _guard:
        _models.clear()
        _locks.clear()


def _get(key: _Key, load: Callable[[str, str, str], Any]) -> Any:
    with _guard:
        if key in _models:
            return _models[key]
        lock = _locks.setdefault(key, threading.Lock())
    with lock:  # other threads that want this model wait; those that want another one do not
        if key not in _models:
            model = load(*key[1:])
            with _guard:
                _models[key] = model
            return model
        return _models[key]
