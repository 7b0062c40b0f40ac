"""The vision transformers that are known by name, and any other one of timm: an entry for each.

Shapes come from the table, so that planning a run imports neither torch nor timm (only a `timm:NAME`, which is not in
the table, is built, on torch's meta device). The digests of weights are those that independent projects publish for
the official files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cryosam_dask.models import vit, weights
from cryosam_dask.models.info import About, Cost
from cryosam_dask.models.weights import Source
from cryosam_dask.types import SliceEncoder

TIMM_PREFIX = "timm:"
"""Any vision transformer of timm is `timm:NAME`."""

TORCH_BYTES = 48 << 20
"""What torch's libraries take at a model's first call, and keep."""

WINDOW, GLOBAL_LAYERS = 14, 4
"""SAM's image encoder: a window's side in tokens, and the layers that attend to all tokens."""

SEGMENT_ANYTHING = (
    "Kirillov A, Mintun E, Ravi N, et al. Segment anything. IEEE/CVF International Conference on Computer Vision, 2023."
)

_PHRASE = "tokens of a vision transformer"
_DINOV2 = About(
    _PHRASE,
    (
        "Oquab M, Darcet T, Moutakanni T, et al. DINOv2: learning robust visual features without supervision. "
        "arXiv:2304.07193, 2023.",
    ),
)
_DINOV3 = About(_PHRASE, ("Siméoni O, Vo HV, Seitzer M, et al. DINOv3. arXiv:2508.10104, 2025.",))
_DINO = About(
    _PHRASE,
    (
        "Caron M, Touvron H, Misra I, et al. Emerging properties in self-supervised vision transformers. "
        "IEEE/CVF International Conference on Computer Vision, 2021.",
    ),
)
_SAM = About(_PHRASE, (SEGMENT_ANYTHING,))
TIMM = About(_PHRASE, ("Wightman R. PyTorch image models. https://github.com/huggingface/pytorch-image-models",))
"""What reports say of a `timm:NAME`."""


@dataclass(frozen=True, kw_only=True)
class TimmEntry:
    """A vision transformer of timm whose shape is not known yet; an `EncoderEntry`.

    Attributes
    ----------
    architecture : timm's name, with the tag of the weights
    address : where the weights are; None for the address that timm names
    """

    name: str
    architecture: str
    about: About = TIMM
    address: Source | None = None
    version: None = None

    def source(self) -> Source | None:
        """Where the weights are fetched from; None if timm names no place."""
        return self.address or _timm_source(self.architecture)

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        """Load the encoder; nothing is fetched if the architecture or `dtype` can't be used."""
        vit.check_dtype(dtype)
        module = vit.build(self.architecture)
        vit.geometry(module, self.name)
        file = weights.locate(self.name, None if path else self.source(), path)
        vit.load_checkpoint(module, file.path, self.name)
        return vit.TimmEncoder(module, self.name, weights.identity(self.name, file.sha256), device, dtype)


@dataclass(frozen=True, kw_only=True)
class Vit(TimmEntry):
    """A vision transformer and its shape; an `EncoderInfo`.

    Attributes
    ----------
    width : channels inside; parameters : how many
    dense_attention : whether it is SAM's image encoder
    """

    patch: int
    channels: int
    width: int
    parameters: int
    dense_attention: bool = False
    uses_torch: bool = True

    @property
    def weights_bytes(self) -> int:
        return 4 * self.parameters

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        tokens = -(-plane[0] // self.patch) * -(-plane[1] // self.patch)
        tokens *= max(1, min(count, vit.PASS_TOKENS[device.split(":")[0]] // tokens))
        return self.activation_bytes(tokens) + 3 * 4 * tokens * self.patch**2

    def activation_bytes(self, tokens: int) -> int:
        """Bytes of a forward pass: 14 or 25 numbers for each token and unit of width, and once what torch keeps.

        At its widest a plain block holds its hidden layer twice, query, key, value, and the residual stream with
        copies. A block of SAM also pads tokens to whole windows and holds the bias of positions, and the allocator
        keeps more of its memory. Both numbers were measured.
        """
        return 4 * tokens * self.width * (25 if self.dense_attention else 14) + TORCH_BYTES

    def encode_cost(self, plane: tuple[int, int], tiles: Sequence[int]) -> Cost:
        return Cost(operations=sum(map(self.operations, tiles)))

    def operations(self, tokens: int) -> float:
        """Floating-point operations of one forward pass over `tokens` patches.

        2 for each parameter and token, and 4 · keys · width for each token and layer: all tokens are keys, but in
        SAM's encoder, where all but four layers look at windows of 14 × 14.
        """
        layers = max(1, round(self.parameters / (12 * self.width**2)))
        linear = 2.0 * self.parameters * tokens
        if not self.dense_attention:
            return linear + 4 * self.width * layers * float(tokens) ** 2
        dense = min(GLOBAL_LAYERS, layers)
        windows = math.ceil(math.sqrt(tokens) / WINDOW) ** 2
        local = (layers - dense) * windows * float(WINDOW**2) ** 2
        return linear + 4 * self.width * (dense * float(tokens) ** 2 + local)


def _timm_source(architecture: str) -> Source | None:
    import timm.models

    settings = timm.models.get_pretrained_cfg(architecture)
    if settings is None or not settings.has_weights:
        return None
    if settings.hf_hub_id:
        hub = settings.hf_hub_id
        tag = f"{settings.architecture}.{settings.tag}" if settings.tag else settings.architecture
        repository = f"{hub}{tag}" if hub.endswith("/") else hub
        return weights.hub_source(repository, settings.hf_hub_filename or "model.safetensors")
    url = settings.url if isinstance(settings.url, str) else ""
    return Source(url, url.rsplit("/", 1)[-1]) if url else None


def _vit(
    name: str, architecture: str, patch: int, width: int, parameters: int, about: About, address: Source | None
) -> Vit:
    return Vit(
        name=name,
        architecture=architecture,
        about=about,
        address=address,
        patch=patch,
        channels=width,
        width=width,
        parameters=parameters,
    )


def _dinov2(size: str, word: str, width: int, parameters: int, sha256: str, registers: bool = False) -> Vit:
    file = f"dinov2_vit{size}14{'_reg4' if registers else ''}_pretrain.pth"
    address = Source(f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14/{file}", file, sha256)
    name = f"dinov2-vit{size}14{'-reg' if registers else ''}"
    architecture = f"vit_{word}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
    return _vit(name, architecture, 14, width, parameters, _DINOV2, address)


def _dino(size: str, patch: int, word: str, width: int, parameters: int, stem: str) -> Vit:
    address = Source(f"https://dl.fbaipublicfiles.com/dino/{stem}/{stem}.pth", f"{stem}.pth")
    architecture = f"vit_{word}_patch{patch}_224.dino"
    return _vit(f"dino-vit{size}{patch}", architecture, patch, width, parameters, _DINO, address)


def _dinov3(size: str, word: str, width: int, parameters: int) -> Vit:
    architecture = f"vit_{word}_patch16_dinov3.lvd1689m"
    return _vit(f"dinov3-vit{size}", architecture, 16, width, parameters, _DINOV3, None)


def _sam(size: str, word: str, width: int, parameters: int, file: str, sha256: str) -> Vit:
    return Vit(
        name=f"sam-vit{size}",
        architecture=f"samvit_{word}_patch16.sa1b",
        about=_SAM,
        address=Source(f"https://dl.fbaipublicfiles.com/segment_anything/{file}", file, sha256),
        patch=16,
        channels=256,
        width=width,
        parameters=parameters,
        dense_attention=True,
    )


_ROWS = (
    _dinov2("s", "small", 384, 22_056_192, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _dinov2("b", "base", 768, 86_579_712, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _dinov2("l", "large", 1024, 304_367_616, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    _dinov2("g", "giant", 1536, 1_136_479_232, "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
    _dinov2("s", "small", 384, 22_057_344, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb", True),
    _dinov2("b", "base", 768, 86_582_016, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", True),
    _dinov2("l", "large", 1024, 304_370_688, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51", True),
    _dinov2(
        "g", "giant", 1536, 1_136_483_840, "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", True
    ),
    _dino("s", 16, "small", 384, 21_665_664, "dino_deitsmall16_pretrain"),
    _dino("s", 8, "small", 384, 21_670_272, "dino_deitsmall8_pretrain"),
    _dino("b", 16, "base", 768, 85_798_656, "dino_vitbase16_pretrain"),
    _dino("b", 8, "base", 768, 85_807_872, "dino_vitbase8_pretrain"),
    _dinov3("s16", "small", 384, 21_586_944),
    _dinov3("s16plus", "small_plus", 384, 28_683_264),
    _dinov3("b16", "base", 768, 85_641_216),
    _dinov3("l16", "large", 1024, 303_079_424),
    _dinov3("h16plus", "huge_plus", 1280, 840_509_440),
    _dinov3("7b16", "7b", 4096, 6_716_030_976),
    _sam(
        *("b", "base", 768, 89_670_912, "sam_vit_b_01ec64.pth"),
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam(
        *("l", "large", 1024, 308_278_272, "sam_vit_l_0b3195.pth"),
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam(
        *("h", "huge", 1280, 637_026_048, "sam_vit_h_4b8939.pth"),
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
)
VITS = {row.name: row for row in _ROWS}
"""The vision transformers of the catalog by name."""


def timm_entry(name: str) -> TimmEntry:
    """The entry of a `timm:NAME`."""
    return TimmEntry(name=name, architecture=name.removeprefix(TIMM_PREFIX))


@functools.cache
def timm_vit(name: str) -> Vit:
    """A `timm:NAME` with the shape that it has when it is built on the meta device, once for a process."""
    architecture = name.removeprefix(TIMM_PREFIX)
    module = vit.build(architecture, meta=True)
    patch, channels = vit.geometry(module, name)
    return Vit(
        name=name,
        architecture=architecture,
        patch=patch,
        channels=channels,
        width=int(getattr(module, "embed_dim", channels)),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        dense_attention=vit.has_dense_attention(module),
    )
