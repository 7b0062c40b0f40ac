"""SAM 2.1 against its model in transformers, on random weights of a small one of the same classes.

A checkpoint with the official names is made of the weights of transformers' model, and loaded as an official one is.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from cryosam_dask import models
from cryosam_dask.errors import ModelError
from cryosam_dask.models import registry, sam2_encoder
from cryosam_dask.models.sam2_catalog import SAM2S

from .contract import PromptedSegmenterContract, noise, picture
from .test_sam import blob, clicks

SIZE, CHANNELS, HEADS, HIDDEN = 128, 32, 2, 64
TRUNK: dict[str, Any] = {
    "embed_dim": 8,
    "num_heads": 1,
    "stages": (1, 2, 3, 1),
    "global_att_blocks": (4,),
    "window_spec": (8, 4, 6, 3),  # the last two don't divide their grids
}
PLANES = [(48, 80), (300, 200)]

OFFICIAL = (
    (r"^vision_encoder\.backbone\.patch_embed\.projection\.", "image_encoder.trunk.patch_embed.proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^shared_image_embedding\.", "prompt_encoder.shared_embedding."),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"shared_embedding\.positional_embedding$", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"\.o_proj\.", ".out_proj."),
    (r"layer_norm(_final_attn|\d)\.", r"norm\1."),
    (r"((?:hypernetworks_mlps\.\d|_head)\.)layers\.0\.", r"\1layers.1."),
    (r"((?:hypernetworks_mlps\.\d|_head)\.)proj_out\.", r"\1layers.2."),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
)
"""Names of transformers, and what they are in an official checkpoint."""


def official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a model of transformers as an official checkpoint has them, with some that serve videos."""
    found = {"maskmem_tpos_enc": torch.zeros(7, 1, 1, 4), "memory_encoder.out_proj.bias": torch.zeros(4)}
    for name, tensor in tensors.items():
        if name == "prompt_encoder.point_embed.weight":
            found |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": tensor[i : i + 1] for i in range(4)}
            continue
        for theirs, ours in OFFICIAL:
            name = re.sub(theirs, ours, name)
        found[name] = tensor
    return found


def published() -> Any:
    """A Sam2Model of transformers of 128 × 128 pixels with random weights everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import (
            Sam2Config,
            Sam2HieraDetConfig,
            Sam2MaskDecoderConfig,
            Sam2Model,
            Sam2PromptEncoderConfig,
            Sam2VisionConfig,
        )

    widths = [TRUNK["embed_dim"] << stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=widths[0],
        image_size=[SIZE, SIZE],
        blocks_per_stage=list(TRUNK["stages"]),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=list(TRUNK["window_spec"]),
        global_attention_blocks=list(TRUNK["global_att_blocks"]),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[SIZE // r] * 2 for r in (4, 8, 16)],
        fpn_hidden_size=CHANNELS,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=CHANNELS, image_size=SIZE)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=CHANNELS, mlp_dim=HIDDEN, num_attention_heads=HEADS, iou_head_hidden_dim=256
    )
    torch.manual_seed(0)
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1) * 0.3)
    # one random matrix, as in published weights
    model.shared_image_embedding.positional_embedding = model.prompt_encoder.shared_embedding.positional_embedding
    return model.eval()


def tiny(architecture: str = "") -> sam2_encoder.Sam2:
    """What `sam2_encoder.build` makes, as small as `published`."""
    from timm.models.hieradet_sam2 import HieraDet

    encoder = sam2_encoder.Sam2Encoder(HieraDet(num_classes=0, **TRUNK), CHANNELS, SIZE)
    return sam2_encoder.Sam2(encoder, CHANNELS, HEADS, HIDDEN)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and wait for each other's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference() -> Any:
    return published()


@pytest.fixture(scope="module")
def checkpoint(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sam2.1.pt"
    torch.save({"model": official(reference.state_dict())}, path)
    return path


@pytest.fixture
def segmenter(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sam2_encoder, "build", tiny)
    return registry.load_segmenter(f"sam2.1-tiny={checkpoint}")


class TestContract(PromptedSegmenterContract):
    """SAM 2.1 keeps the contract of every segmenter."""


class Predictor:
    """What `SAM2ImagePredictor` does around the model: how planes, points and masks go in, and how masks come out."""

    def __init__(self, model: Any, grey: np.ndarray) -> None:
        self.model, self.plane = model, grey.shape
        transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, True), v2.Resize((SIZE, SIZE), antialias=True)])
        standardize = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        self.image = standardize(transform(np.repeat(grey[..., None], 3, 2)))[None]
        self.embeddings = model.get_image_embeddings(self.image)

    @torch.no_grad()
    def predict(self, point: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks as logits of the plane, scores and logits for one point (row, column)."""
        xy = torch.tensor([[[[point[1] / self.plane[1] * SIZE, point[0] / self.plane[0] * SIZE]]]])
        made = self.model(
            image_embeddings=list(self.embeddings),
            input_points=xy.float(),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int),
            input_masks=None if before is None else torch.tensor(before)[None, None].clamp(-32, 32),
            multimask_output=True,
        )
        low = made.pred_masks[0]
        full = interpolate(low, self.plane, mode="bilinear", align_corners=False)
        return full[0].numpy(), made.iou_scores[0, 0].numpy(), low[0].numpy()


@pytest.mark.parametrize("plane", PLANES)
def test_a_click_and_the_walk_from_it_equal_the_published(
    segmenter: Any, reference: Any, plane: tuple[int, int]
) -> None:
    points, before = clicks(plane, 3), None
    for index in range(3):  # planes one after the other, each with the logits of the one before
        grey = picture(plane, index)[0]
        predictor = Predictor(reference, grey)
        embedding = segmenter._embed_one(grey)
        np.testing.assert_allclose(embedding[:CHANNELS], predictor.embeddings[-1][0].numpy(), atol=1e-4)
        found = segmenter.predict(embedding, plane, points, before)
        for b, point in enumerate(points):
            full, scores, low = predictor.predict(point, None if before is None else before[b])
            np.testing.assert_allclose(found.logits[b], low, atol=1e-4)
            np.testing.assert_allclose(found.scores[b], scores, atol=1e-4)
            clear = np.abs(full) > 1e-4  # nearer to zero, rounding may decide
            assert clear.mean() > 0.99
            assert (found.masks[b] == (full > 0))[clear].all()
        assert found.masks.any()
        assert not found.masks.all()
        before = found.logits[np.arange(3), found.scores.argmax(1)]


def test_logits_before_count_up_to_their_limit(segmenter: Any) -> None:
    plane = PLANES[0]
    embedding = segmenter.embed(picture(plane)[0][None])[0]
    before = noise(2, *segmenter.logits_shape(plane)) * 40
    cut, whole = (segmenter.predict(embedding, plane, clicks(plane, 2), b) for b in (before.clip(-32, 32), before))
    assert np.abs(before).max() > 32
    np.testing.assert_array_equal(cut.logits, whole.logits)


@pytest.mark.parametrize("plane", [*PLANES, (32, 32), (1, 200), (500, 3)])
@pytest.mark.parametrize("radius", [1.5, 4, 40])
def test_a_mask_is_made_where_it_lies_and_equals_the_published(
    segmenter: Any, plane: tuple[int, int], radius: float
) -> None:
    for f in (0.0, 0.4, 0.97):
        logits = blob((32, 32), (32 * f, 32 * f), radius)
        full = interpolate(torch.tensor(logits)[None, None], plane, mode="bilinear", align_corners=False)[0, 0].numpy()
        found = segmenter.enlarge(logits, plane)
        clear = np.abs(full) > 1e-5  # nearer to zero, rounding may decide
        assert (found.full() == (full > 0))[clear].all()
        assert (np.array(found.block.shape) <= (2 * radius + 6) * np.array(plane) / 32 + 1).all()


@pytest.mark.parametrize("plane", PLANES)
def test_the_peak_is_the_best_logit(segmenter: Any, plane: tuple[int, int]) -> None:
    logits = noise(3, 32, 32, seed=3)
    logits[0, -1, -1] = 100.0  # nothing is padding
    rows, columns = np.unravel_index(logits.reshape(3, -1).argmax(1), (32, 32))
    expected = (np.stack([rows, columns], 1) + 0.5) * np.array(plane) / 32 - 0.5
    np.testing.assert_allclose(segmenter.peak(logits, plane), expected.clip(0, np.array(plane) - 1), atol=1e-4)


def test_prompts_decoded_together_are_as_alone(segmenter: Any) -> None:
    plane = PLANES[0]
    embedding = segmenter.embed(picture(plane)[0][None])[0]
    points, before = clicks(plane, 5), noise(5, 32, 32) * 4
    alone = segmenter.predict(embedding, plane, points, before)
    segmenter.batch = 5
    np.testing.assert_allclose(segmenter.predict(embedding, plane, points, before).logits, alone.logits, atol=1e-4)


def test_bfloat16_computes_near_embeddings(segmenter: Any) -> None:
    grey = picture(PLANES[0])[0][None]
    exact = segmenter.embed(grey).astype(np.float32)
    segmenter.dtype = "bfloat16"
    rough = segmenter.embed(grey)
    assert rough.dtype == np.float16
    assert 0 < np.abs(rough - exact).mean() < 0.05 * np.abs(exact).mean()


def test_planes_that_are_not_uint8_are_refused(segmenter: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        segmenter.embed(np.zeros((1, 8, 8), np.float32))


@pytest.mark.parametrize("name", list(SAM2S))
def test_the_table_is_what_timm_and_torch_count(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    row = SAM2S[name]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = sam2_encoder.build(row.architecture).eval()
        embedding = model.image_encoder(model.preprocess(torch.empty(1, 3, 1024, 1024)))
    assert row.operations == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert row.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert model.image_encoder.trunk.patch_embed.proj.out_channels == row.width
    info = models.segmenter_info(name)
    assert info.embedding_shape((9, 7)) == tuple(embedding.shape[1:])
    assert info.logits_shape((9, 7)) == model.prompt_encoder.mask_input_size


def test_weights_of_another_model_are_refused(checkpoint: Path, segmenter: Any, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint)["model"]
    del tensors["no_mem_embed"]
    torch.save({"model": tensors}, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"less\.pt does not fit sam2\.1-tiny: 1 tensors missing"):
        registry.load_segmenter(f"sam2.1-tiny={tmp_path / 'less.pt'}")
    with pytest.raises(ModelError, match=r"does not fit sam-vitb"):
        registry.load_segmenter(f"sam-vitb={checkpoint}")
