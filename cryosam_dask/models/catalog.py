"""The known models: their names and specs, and their shapes and memory for planning.

A spec is a name, or `NAME=PATH` with weights of one's own. Shapes and memory come from a table, so that planning a run
imports neither torch nor timm (only a `timm:NAME` outside the table is built, on torch's meta device).
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryosam_dask.errors import ModelError
from cryosam_dask.models.sam import BATCH
from cryosam_dask.models.vit import PASS_TOKENS
from cryosam_dask.types import PromptedSegmenter, SliceEncoder

PRESETS = {"builtin": "texture+random-walker", "paper": "dinov2-vitl14+sam-vith"}
"""Named pairs of encoder and segmenter."""

TORCH_BYTES = 48 << 20
"""What torch's libraries take at a model's first call, and keep."""

TIMM_PREFIX = "timm:"
"""Any vision transformer of timm is `timm:NAME`."""


@dataclass(frozen=True)
class _Vit:
    """A row of the table of encoders: timm's name, patch, channels out, width inside, parameters."""

    architecture: str
    patch: int
    channels: int
    width: int
    parameters: int
    dense_attention: bool = False


def _sam_vit(size: str, width: int, parameters: int) -> _Vit:
    return _Vit(f"samvit_{size}_patch16.sa1b", 16, 256, width, parameters, dense_attention=True)


VITS = {
    "dinov2-vits14": _Vit("vit_small_patch14_dinov2.lvd142m", 14, 384, 384, 22_056_192),
    "dinov2-vitb14": _Vit("vit_base_patch14_dinov2.lvd142m", 14, 768, 768, 86_579_712),
    "dinov2-vitl14": _Vit("vit_large_patch14_dinov2.lvd142m", 14, 1024, 1024, 304_367_616),
    "dinov2-vitg14": _Vit("vit_giant_patch14_dinov2.lvd142m", 14, 1536, 1536, 1_136_479_232),
    "dinov2-vits14-reg": _Vit("vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 384, 22_057_344),
    "dinov2-vitb14-reg": _Vit("vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 768, 86_582_016),
    "dinov2-vitl14-reg": _Vit("vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 1024, 304_370_688),
    "dinov2-vitg14-reg": _Vit("vit_giant_patch14_reg4_dinov2.lvd142m", 14, 1536, 1536, 1_136_483_840),
    "dino-vits16": _Vit("vit_small_patch16_224.dino", 16, 384, 384, 21_665_664),
    "dino-vits8": _Vit("vit_small_patch8_224.dino", 8, 384, 384, 21_670_272),
    "dino-vitb16": _Vit("vit_base_patch16_224.dino", 16, 768, 768, 85_798_656),
    "dino-vitb8": _Vit("vit_base_patch8_224.dino", 8, 768, 768, 85_807_872),
    "dinov3-vits16": _Vit("vit_small_patch16_dinov3.lvd1689m", 16, 384, 384, 21_586_944),
    "dinov3-vits16plus": _Vit("vit_small_plus_patch16_dinov3.lvd1689m", 16, 384, 384, 28_683_264),
    "dinov3-vitb16": _Vit("vit_base_patch16_dinov3.lvd1689m", 16, 768, 768, 85_641_216),
    "dinov3-vitl16": _Vit("vit_large_patch16_dinov3.lvd1689m", 16, 1024, 1024, 303_079_424),
    "dinov3-vith16plus": _Vit("vit_huge_plus_patch16_dinov3.lvd1689m", 16, 1280, 1280, 840_509_440),
    "dinov3-vit7b16": _Vit("vit_7b_patch16_dinov3.lvd1689m", 16, 4096, 4096, 6_716_030_976),
    "sam-vitb": _sam_vit("base", 768, 89_670_912),
    "sam-vitl": _sam_vit("large", 1024, 308_278_272),
    "sam-vith": _sam_vit("huge", 1280, 637_026_048),
}

_SAMS = {"sam-vitb": 93_735_472, "sam-vitl": 312_342_832, "sam-vith": 641_090_608}
"""SAM segmenters and their numbers of parameters; the width of their encoders stands in `VITS`."""

ENCODERS = ("texture", *VITS)
SEGMENTERS = ("random-walker", *_SAMS)


@dataclass(frozen=True)
class EncoderInfo:
    """What planning needs to know of an encoder.

    Attributes
    ----------
    name : the name it is loaded by; patch : pixels of a token's side; channels : C
    uses_torch : whether it runs in torch (and can use a GPU); weights_bytes : memory of the loaded weights
    """

    name: str
    patch: int
    channels: int
    uses_torch: bool
    weights_bytes: int
    _vit: _Vit | None = None

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        """Working memory, in bytes, of one `encode` of `count` slices of shape (A, B), within a third of the real one.

        Input and output come on top. Only a few slices are at work at a time, so it stops growing with `count`.
        """
        if self._vit is None:
            return 9 * plane[0] * plane[1] + (1 << 20)
        vit = self._vit
        tokens = -(-plane[0] // self.patch) * -(-plane[1] // self.patch)
        tokens *= max(1, min(count, PASS_TOKENS[device.split(":")[0]] // tokens))
        return _activations(vit, tokens) + 3 * 4 * tokens * self.patch**2


def _activations(vit: _Vit, tokens: int) -> int:
    """Bytes that a forward pass takes: so many numbers for each token and unit of width, and once what torch keeps.

    A plain block's most is its hidden layer twice, query, key, value, and the residual stream with copies. SAM's also
    pads tokens to whole windows and holds the bias of positions; of it the allocator keeps more. Both were measured.
    """
    return 4 * tokens * vit.width * (25 if vit.dense_attention else 14) + TORCH_BYTES


class SegmenterInfo(Protocol):
    """What planning needs to know of a segmenter; shapes as in `PromptedSegmenter`.

    Attributes
    ----------
    name : the name it is loaded by; candidates : masks that `predict` gives for one prompt, at most
    uses_torch : whether it runs in torch (and can use a GPU); weights_bytes : memory of the loaded weights
    embedding_dtype : the type embeddings are stored in
    """

    @property
    def name(self) -> str: ...
    @property
    def candidates(self) -> int: ...
    @property
    def uses_torch(self) -> bool: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def embedding_dtype(self) -> np.dtype[Any]: ...

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the embedding of a plane (A, B)."""
        ...

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Shape of the logits of a plane (A, B)."""
        ...

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        """Working memory, in bytes, of embedding planes (A, B) one by one, without the embeddings."""
        ...

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        """Memory, in bytes, of `prompts` prompts on a plane (A, B): all their candidates, and a mask of each."""
        ...

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        """Bytes that a prompt holds between two planes (A, B): the logits of its mask."""
        ...


@dataclass(frozen=True)
class _SamInfo:
    name: str
    weights_bytes: int
    encoder: _Vit
    uses_torch: bool = True
    candidates: int = 3

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16)

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return 256, 64, 64

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return 256, 256

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return _activations(self.encoder, 64 * 64) + 3 * 4 * 1024**2

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # One batch is at work at a time, with the pixels' embeddings several times over, their enlargement and its
        # candidates' logits; of these one becomes a mask of the plane's size, in float32.
        pixels = plane[0] * plane[1]
        return min(prompts, BATCH["cpu"]) * (28 << 20) + 6 * pixels + TORCH_BYTES // 3

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        return 4 * 256**2


@dataclass(frozen=True)
class _WalkerInfo:
    segmenter: PromptedSegmenter
    candidates: int
    name: str = "random-walker"
    uses_torch: bool = False
    weights_bytes: int = 0

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return self.segmenter.embedding_dtype

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return self.segmenter.embedding_shape(plane)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return self.segmenter.logits_shape(plane)

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        return 9 * plane[0] * plane[1]

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # One prompt at a time, on a window of about 64 pixels.
        return 40 * min(64**2, plane[0] * plane[1]) + (1 << 20)

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        # A window about 64 pixels wide; only a mask that leaks is larger.
        return 4 * min(64**2, plane[0] * plane[1])


def split_spec(spec: str) -> tuple[str, str | None]:
    """(name, path or None) of a spec `NAME` or `NAME=PATH`."""
    name, equals, path = spec.strip().partition("=")
    if equals and not path:
        raise ModelError(f"model {spec!r}: expected a path after '='")
    return name.strip(), path if equals else None


def parse_models(spec: str) -> tuple[str, str]:
    """(encoder spec, segmenter spec) of `builtin`, `paper` or `ENCODER+SEGMENTER`, each name optionally `=PATH`.

    Paths come back absolute.

    Raises
    ------
    ModelError
        The form is another, or a name is unknown.
    """
    spec = PRESETS.get(spec.strip(), spec.strip())
    splits = [(spec[:i], spec[i + 1 :]) for i, sign in enumerate(spec) if sign == "+"]
    if not splits:
        presets = ", ".join(PRESETS)
        hint = _nearest(split_spec(spec)[0], (*PRESETS, *ENCODERS, *SEGMENTERS))
        raise ModelError(f"models {spec!r}: expected {presets} or ENCODER+SEGMENTER{hint}")
    # A path may hold a plus sign: the one before a segmenter's name is meant.
    named = [pair for pair in splits if split_spec(pair[1])[0] in SEGMENTERS]
    encoder, segmenter = (named or splits)[0]
    return _absolute(*check_encoder(encoder)), _absolute(*check_segmenter(segmenter))


def _absolute(name: str, path: str | None) -> str:
    """The spec with an absolute path, so that it means the same file in a worker started elsewhere."""
    return name if path is None else f"{name}={Path(path).expanduser().absolute()}"


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_encoder(spec: str) -> tuple[str, str | None]:
    name, path = split_spec(spec)
    if name not in ENCODERS and not (name.startswith(TIMM_PREFIX) and name != TIMM_PREFIX):
        known = ", ".join(ENCODERS)
        raise ModelError(
            f"encoder {name!r} is unknown{_nearest(name, ENCODERS)} Known: {known}, or timm:NAME for a "
            f"vision transformer of timm"
        )
    return _without_path(name, path, "texture")


def check_segmenter(spec: str) -> tuple[str, str | None]:
    name, path = split_spec(spec)
    if name not in SEGMENTERS:
        raise ModelError(f"segmenter {name!r} is unknown{_nearest(name, SEGMENTERS)} Known: {', '.join(SEGMENTERS)}")
    return _without_path(name, path, "random-walker")


def _without_path(name: str, path: str | None, builtin: str) -> tuple[str, str | None]:
    if name == builtin and path is not None:
        raise ModelError(f"model {name} has no weights; expected {name} without '={path}'")
    return name, path


def texture() -> SliceEncoder:
    from cryosam_dask.models.texture import TextureEncoder

    return TextureEncoder()


def random_walker() -> PromptedSegmenter:
    from cryosam_dask.models.random_walker import RandomWalkerSegmenter

    return RandomWalkerSegmenter()


@functools.cache
def vit_row(name: str) -> _Vit:
    """The table's row of an encoder, or one made of the timm model built on the meta device, once for a process."""
    if name in VITS:
        return VITS[name]
    from cryosam_dask.models import vit

    architecture = name.removeprefix(TIMM_PREFIX)
    module = vit.build(architecture, meta=True)
    patch, channels = vit.geometry(module, name)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    width = int(getattr(module, "embed_dim", channels))
    return _Vit(architecture, patch, channels, width, parameters, vit.has_dense_attention(module))


def encoder_info(spec: str) -> EncoderInfo:
    """Shapes and memory of an encoder, without its weights; imports torch only for a `timm:NAME`.

    Raises
    ------
    ModelError
        The name is unknown.
    """
    name, _ = check_encoder(spec)
    if name == "texture":
        built = texture()
        return EncoderInfo(name, built.patch, built.channels, uses_torch=False, weights_bytes=0)
    row = vit_row(name)
    return EncoderInfo(name, row.patch, row.channels, True, 4 * row.parameters, row)


def segmenter_info(spec: str) -> SegmenterInfo:
    """Shapes and memory of a segmenter, without its weights and without torch.

    Raises
    ------
    ModelError
        The name is unknown.
    """
    name, _ = check_segmenter(spec)
    if name == "random-walker":
        from cryosam_dask.kernels import walker

        return _WalkerInfo(random_walker(), len(walker.SCALES))
    return _SamInfo(name, 4 * _SAMS[name], VITS[name])
