"""The known models: their names and specs, and their shapes and memory for planning.

A spec is a name, or `NAME=PATH` with weights of one's own. Shapes and memory come from a table, so that planning a run
imports neither torch nor timm (only a `timm:NAME` outside the table is built, on torch's meta device).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryosam_dask.errors import ModelError
from cryosam_dask.models.vit import PASS_TOKENS
from cryosam_dask.types import PromptedSegmenter, SliceEncoder

PRESETS = {"builtin": "texture+random-walker", "paper": "dinov2-vitl14+sam-vith"}
"""Named pairs of encoder and segmenter."""

TIMM_PREFIX = "timm:"
"""Any vision transformer of timm is `timm:NAME`."""


@dataclass(frozen=True)
class _Vit:
    """A row of the table of encoders: timm's name, patch, channels out, width and heads inside, parameters."""

    architecture: str
    patch: int
    channels: int
    width: int
    heads: int
    parameters: int
    dense_attention: bool = False


def _sam_vit(size: str, width: int, heads: int, parameters: int) -> _Vit:
    return _Vit(f"samvit_{size}_patch16.sa1b", 16, 256, width, heads, parameters, dense_attention=True)


VITS = {
    "dinov2-vits14": _Vit("vit_small_patch14_dinov2.lvd142m", 14, 384, 384, 6, 22_056_192),
    "dinov2-vitb14": _Vit("vit_base_patch14_dinov2.lvd142m", 14, 768, 768, 12, 86_579_712),
    "dinov2-vitl14": _Vit("vit_large_patch14_dinov2.lvd142m", 14, 1024, 1024, 16, 304_367_616),
    "dinov2-vitg14": _Vit("vit_giant_patch14_dinov2.lvd142m", 14, 1536, 1536, 24, 1_136_479_232),
    "dinov2-vits14-reg": _Vit("vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 384, 6, 22_057_344),
    "dinov2-vitb14-reg": _Vit("vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 768, 12, 86_582_016),
    "dinov2-vitl14-reg": _Vit("vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 1024, 16, 304_370_688),
    "dinov2-vitg14-reg": _Vit("vit_giant_patch14_reg4_dinov2.lvd142m", 14, 1536, 1536, 24, 1_136_483_840),
    "dino-vits16": _Vit("vit_small_patch16_224.dino", 16, 384, 384, 6, 21_665_664),
    "dino-vits8": _Vit("vit_small_patch8_224.dino", 8, 384, 384, 6, 21_670_272),
    "dino-vitb16": _Vit("vit_base_patch16_224.dino", 16, 768, 768, 12, 85_798_656),
    "dino-vitb8": _Vit("vit_base_patch8_224.dino", 8, 768, 768, 12, 85_807_872),
    "dinov3-vits16": _Vit("vit_small_patch16_dinov3.lvd1689m", 16, 384, 384, 6, 21_586_944),
    "dinov3-vits16plus": _Vit("vit_small_plus_patch16_dinov3.lvd1689m", 16, 384, 384, 6, 28_683_264),
    "dinov3-vitb16": _Vit("vit_base_patch16_dinov3.lvd1689m", 16, 768, 768, 12, 85_641_216),
    "dinov3-vitl16": _Vit("vit_large_patch16_dinov3.lvd1689m", 16, 1024, 1024, 16, 303_079_424),
    "dinov3-vith16plus": _Vit("vit_huge_plus_patch16_dinov3.lvd1689m", 16, 1280, 1280, 20, 840_509_440),
    "dinov3-vit7b16": _Vit("vit_7b_patch16_dinov3.lvd1689m", 16, 4096, 4096, 32, 6_716_030_976),
    "sam-vitb": _sam_vit("base", 768, 12, 89_670_912),
    "sam-vitl": _sam_vit("large", 1024, 16, 308_278_272),
    "sam-vith": _sam_vit("huge", 1280, 16, 637_026_048),
}

_SAMS = {"sam-vitb": 93_735_472, "sam-vitl": 312_342_832, "sam-vith": 641_090_608}
"""SAM segmenters and their numbers of parameters; width and heads of their encoders stand in `VITS`."""

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
        """Upper estimate of the working memory, in bytes, of one `encode` of `count` slices of shape (A, B).

        Input and output come on top. A transformer takes a few slices at a time, so its memory stops growing with
        `count`; `texture` holds a few derivatives of all of them.
        """
        if self._vit is None:
            return 12 * count * plane[0] * plane[1]
        vit = self._vit
        tokens = -(-plane[0] // self.patch) * -(-plane[1] // self.patch)
        if vit.dense_attention:  # the scores of all pairs of tokens, three times over; one slice at a time
            attention = 3 * 4 * vit.heads * tokens**2
        else:
            attention, tokens = 0, max(tokens, min(count * tokens, PASS_TOKENS[device.split(":")[0]]))
        # Per token: the residual stream and its copies, query, key, value, and the four-fold hidden layer twice.
        return attention + tokens * 4 * (20 * vit.width + 3 * self.patch**2)


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
        """Upper estimate of the working memory, in bytes, of embedding planes (A, B) one by one."""
        ...

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        """Upper estimate of the memory, in bytes, of predicting `prompts` masks on a plane (A, B), results included."""
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
        # Per token: the residual stream and its copies, and the four-fold hidden layer twice. Besides: the image in
        # float32, the bias of a few lines of attention, and what torch's libraries take at their first call.
        return 64 * 64 * 4 * 12 * self.encoder.width + 104 * 2**20

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # Kept: masks and logits of all prompts. At work on one batch: the decoder's embeddings, and masks in float32 at
        # 1024 × 1024 and at the plane's size.
        pixels = plane[0] * plane[1]
        kept = prompts * 3 * (pixels + 4 * 256**2)
        return kept + min(prompts, 32) * (3 * 4 * (1024**2 + pixels) + 32 * 2**20)


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
        return 16 * plane[0] * plane[1]

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        # A mask and a confidence for each candidate and pixel; the small systems are solved one by one.
        return 5 * self.candidates * prompts * plane[0] * plane[1] + 64 * 2**20


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


def vit_row(name: str) -> _Vit:
    """The table's row of an encoder, or one made of the timm model built on the meta device."""
    if name in VITS:
        return VITS[name]
    from cryosam_dask.models import vit

    architecture = name.removeprefix(TIMM_PREFIX)
    module = vit.build(architecture, meta=True)
    patch, channels = vit.geometry(module, name)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    width = int(getattr(module, "embed_dim", channels))
    return _Vit(architecture, patch, channels, width, width // 64, parameters, vit.has_dense_attention(module))


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
